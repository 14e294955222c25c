package archive_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/archive"
)

// entry is a file or a link of a tar.
type entry struct {
	name string
	kind byte
	link string
	body string
}

func tarWith(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Size: int64(len(e.body)), Mode: 0o644}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// encoded returns a value as JSON.
func encoded(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// configOf is the config of an image with these layers.
func configOf(t *testing.T, layers ...string) string {
	c := v1.Image{Platform: v1.Platform{Architecture: "amd64", OS: "linux"}, RootFS: v1.RootFS{Type: "layers"}}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromString(l))
	}
	return encoded(t, c)
}

type saveEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// TestImportOfDockerSave reads what Docker 1.10 to 24 and podman write, from a tar and from a directory: layers that
// are files, links, and the same one twice.
func TestImportOfDockerSave(t *testing.T) {
	one, two := string(tarWith(t, entry{name: "f", body: "1"})), string(tarWith(t, entry{name: "f", body: "2"}))
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write([]byte(two)) // a buffer has no errors
	_ = z.Close()
	config := configOf(t, one, two, one, two)
	archived := tarWith(t,
		entry{name: "aa/VERSION", body: "1.0"}, entry{name: "aa/json", body: "{}"},
		entry{name: "aa/layer.tar", body: one},
		entry{name: "./two.tar", body: two},
		entry{name: "bb/layer.tar", kind: tar.TypeSymlink, link: "../two.tar"},
		entry{name: "cc/layer.tar", kind: tar.TypeLink, link: "aa/layer.tar"},
		entry{name: "dd.tar.gz", body: zipped.String()},
		entry{name: "c.json", body: config},
		entry{name: "repositories", body: `{"app":{"1":"bb"}}`},
		entry{name: "../../escape", body: "x"},
		entry{name: "manifest.json", body: encoded(t, []saveEntry{{"c.json",
			[]string{"host:5000/app:1", "app:latest"},
			[]string{"aa/layer.tar", "bb/layer.tar", "cc/layer.tar", "dd.tar.gz"}}})})
	file := filepath.Join(t.TempDir(), "image.tar")
	write(t, file, archived)
	dir := t.TempDir()
	for name, body := range map[string]string{"aa/layer.tar": one, "two.tar": two, "dd.tar.gz": zipped.String(),
		"c.json": config, "cc/layer.tar": one, "manifest.json": encoded(t, []saveEntry{{"c.json", []string{"app:1",
			"app:latest"}, []string{"aa/layer.tar", "bb/layer.tar", "cc/layer.tar", "dd.tar.gz"}}})} {
		_ = os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700) // the file cannot be written without it
		write(t, filepath.Join(dir, name), []byte(body))
	}
	if err := os.MkdirAll(filepath.Join(dir, "bb"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../two.tar", filepath.Join(dir, "bb", "layer.tar")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, dir} {
		to := newTarget(t)
		if _, err := archive.Import(t.Context(), to.Client, name, archive.ImportOptions{As: "team/app"}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		desc, in, err := to.Manifest(t.Context(), "team/app", "1")
		if err != nil {
			t.Fatal(err)
		}
		var m v1.Manifest
		err = json.NewDecoder(in).Decode(&m)
		if cerr := in.Close(); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		var layers []string
		for _, l := range m.Layers {
			layers = append(layers, strings.TrimPrefix(l.MediaType, "application/vnd.oci.image.layer.v1.")+" "+
				l.Digest.String())
		}
		want := []string{"tar " + digest.FromString(one).String(), "tar " + digest.FromString(two).String(),
			"tar " + digest.FromString(one).String(), "tar+gzip " + digest.FromBytes(zipped.Bytes()).String()}
		if strings.Join(layers, "\n") != strings.Join(want, "\n") || m.Config.Digest != digest.FromString(config) {
			t.Errorf("%s: %+v", name, m)
		}
		if latest, err := to.Resolve(t.Context(), "team/app", "latest"); err != nil || latest.Digest != desc.Digest {
			t.Errorf("%s: latest is %+v, %v", name, latest, err)
		}
		o := archive.ImportOptions{As: "other:v"}
		if _, err := archive.Import(t.Context(), to.Client, name, o); err != nil {
			t.Error(err)
		}
		if d, err := to.Resolve(t.Context(), "other", "v"); err != nil || d.Digest != desc.Digest {
			t.Errorf("%s: as other:v: %+v, %v", name, d, err)
		}
	}
}

// TestArchivesOfDockerThatCannotBeImported say what is wrong, and what to do. None leads outside of the archive.
func TestArchivesOfDockerThatCannotBeImported(t *testing.T) {
	layer := string(tarWith(t, entry{name: "f"}))
	good := []entry{{name: "c.json", body: configOf(t, layer)}, {name: "l/layer.tar", body: layer}}
	manifest := func(e ...saveEntry) entry { return entry{name: "manifest.json", body: encoded(t, e)} }
	whole := manifest(saveEntry{"c.json", []string{"app:1"}, []string{"l/layer.tar"}})
	for name, row := range map[string]struct {
		entries []entry
		as      string
		want    string
	}{
		"no name":        {append(good, whole), "", "--as"},
		"a tag for two":  {append(good, manifest(saveEntry{"c.json", nil, nil}, saveEntry{})), "app:1", "has 2"},
		"before 1.10":    {[]entry{{name: "repositories", body: "{}"}, good[1]}, "app", "docker load"},
		"without a name": {[]entry{{name: "l/json", body: "{}"}, good[1]}, "app", "docker load"},
		"not JSON":       {[]entry{{name: "manifest.json", body: "["}}, "app", "manifest.json is not valid"},
		"nothing":        {[]entry{manifest()}, "app", "nothing"},
		"a config elsewhere": {[]entry{manifest(saveEntry{"../../etc/passwd", nil, nil})}, "app",
			`config "../../etc/passwd": the archive does not have it`},
		"a layer elsewhere": {append(good, manifest(saveEntry{"c.json", nil, []string{"/etc/hostname"}})), "app",
			`layer "/etc/hostname": the archive does not have it`},
		"a link elsewhere": {append(good, entry{name: "x.tar", kind: tar.TypeSymlink, link: "../../../etc/hostname"},
			manifest(saveEntry{"c.json", nil, []string{"x.tar"}})), "app", "the archive does not have it"},
		"a circle": {append(good, entry{name: "x.tar", kind: tar.TypeSymlink, link: "y.tar"},
			entry{name: "y.tar", kind: tar.TypeSymlink, link: "x.tar"},
			manifest(saveEntry{"c.json", nil, []string{"x.tar"}})), "app", "the archive does not have it"},
		"a layer too few": {append(good, manifest(saveEntry{"c.json", nil, nil})), "app", "its config has 1 layers"},
		"a damaged layer": {[]entry{{name: "c.json", body: configOf(t, "another")}, good[1], whole}, "app",
			"is damaged"},
		"no config": {[]entry{{name: "c.json", body: "[]"}, good[1], whole}, "app", "is not that of an image"},
	} {
		file := filepath.Join(t.TempDir(), "image.tar")
		write(t, file, tarWith(t, row.entries...))
		var problems []string
		o := archive.ImportOptions{As: row.as, Options: archive.Options{Problem: func(text string) {
			problems = append(problems, text)
		}}}
		_, err := archive.Import(t.Context(), newTarget(t).Client, file, o)
		if err == nil || !strings.Contains(strings.Join(problems, "\n")+err.Error(), row.want) {
			t.Errorf("%s: %v, problems %q; want %s", name, err, problems, row.want)
		}
	}
	archived := tarWith(t, append(good, whole)...)
	if _, err := archive.ImportTar(t.Context(), newTarget(t).Client, bytes.NewReader(archived),
		archive.ImportOptions{As: "app"}); err == nil || !strings.Contains(err.Error(), "from a file") {
		t.Errorf("from a pipe: %v", err)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(archived) // a buffer has no errors
	_ = z.Close()
	file := filepath.Join(t.TempDir(), "image.tar.gz")
	write(t, file, zipped.Bytes())
	if _, err := archive.Import(t.Context(), newTarget(t).Client, file, archive.ImportOptions{As: "app"}); err == nil ||
		!strings.Contains(err.Error(), "gunzip") {
		t.Errorf("compressed: %v", err)
	}
}
