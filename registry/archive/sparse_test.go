package archive_test

import (
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/archive"
)

// saved is what docker save makes of one platform of an image: a layout whose index.json names the index, which names
// manifests of other platforms that are not there.
func saved(t *testing.T, lacksAll bool) (dir string, index v1.Descriptor) {
	t.Helper()
	from := newTarget(t)
	amd, arm := from.image("app", "", nil, layer(1, 100)), from.image("app", "", nil, layer(2, 100))
	amd.Platform, arm.Platform = &v1.Platform{OS: "linux", Architecture: "amd64"},
		&v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
	index = from.list("app", "v1", amd, arm)
	dir = t.TempDir()
	export(t, from, dir, archive.ExportOptions{})
	remove := []v1.Descriptor{arm}
	if lacksAll {
		remove = append(remove, amd)
	}
	for _, d := range remove {
		if err := os.Remove(filepath.Join(dir, "blobs", "sha256", d.Digest.Encoded())); err != nil {
			t.Fatal(err)
		}
	}
	return dir, index
}

// TestImportOfOnePlatform keeps digest and tag of the image, and says what is not here.
func TestImportOfOnePlatform(t *testing.T) {
	for _, form := range []string{"directory", "tar"} {
		dir, index := saved(t, false)
		to := newTarget(t)
		var notes []string
		o := archive.ImportOptions{Options: archive.Options{Note: func(s string) { notes = append(notes, s) }}}
		name := dir
		if form == "tar" {
			name = filepath.Join(t.TempDir(), "image.tar")
			write(t, name, tarOf(t, dir))
		}
		if _, err := archive.Import(t.Context(), to.Client, name, o); err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		d, err := to.Resolve(t.Context(), "app", "v1")
		if err != nil || d.Digest != index.Digest {
			t.Errorf("%s: %+v, %v", form, d, err)
		}
		if len(notes) != 1 || !strings.Contains(notes[0], index.Digest.String()) ||
			!strings.HasSuffix(notes[0], ": linux/arm/v7") {
			t.Errorf("%s: notes %q", form, notes)
		}
		notes = nil
		if _, err := archive.Import(t.Context(), to.Client, name, o); err != nil { // again
			t.Errorf("%s: %v", form, err)
		}
	}
	dir, _ := saved(t, true)
	if _, err := archive.Import(t.Context(), newTarget(t).Client, dir, archive.ImportOptions{}); err == nil {
		t.Error("an index without any of its manifests was imported")
	}
}

// TestCopyOfOnePlatform: an image that the source has for some of its platforms arrives as it is there, with a note,
// and with its referrers. If it has nothing of any, or lacks a layer of a platform whose manifest it has, which no
// registry should, the tag does not arrive.
func TestCopyOfOnePlatform(t *testing.T) {
	for _, lacks := range []string{"platform", "all", "layer"} {
		from, to := newTarget(t), newTarget(t)
		content := layer(2, 100)
		amd, arm := from.image("app", "", nil, layer(1, 100)), from.image("app", "", nil, content)
		arm.Platform = &v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
		index := from.list("app", "v1", amd, arm)
		sig := from.image("app", "", &index, layer(3, 100))
		missing := map[string][]digest.Digest{"platform": {arm.Digest}, "all": {arm.Digest, amd.Digest},
			"layer": {digest.FromBytes(content)}}[lacks]
		from.intercept(func(w http.ResponseWriter, req *http.Request) bool {
			if slices.Contains(missing, digest.Digest(path.Base(req.URL.Path))) {
				http.NotFound(w, req)
				return true
			}
			return false
		})
		var notes []string
		_, _, err := archive.Copy(t.Context(), from.Client, to.Client,
			[]archive.Copied{{FromRepo: "app", From: "v1", ToRepo: "copy", ToTag: "1"}},
			archive.CopyOptions{Referrers: true, Options: archive.Options{Note: func(s string) {
				notes = append(notes, s)
			}}})
		now, _ := to.Resolve(t.Context(), "copy", "1")
		if lacks != "platform" {
			if err == nil || !strings.Contains(err.Error(), "the source does not have it") || now.Digest != "" {
				t.Errorf("%s: %v, %v", lacks, now.Digest, err)
			}
			continue
		}
		if err != nil || now.Digest != index.Digest || len(notes) != 1 ||
			!strings.HasSuffix(notes[0], "not at the source, and so not here: linux/arm/v7") {
			t.Errorf("%v: %v, notes %q", now.Digest, err, notes)
		}
		to.wantContent("copy", "manifests", sig.Digest)
	}
}

// TestAWrongBlobIsTheSources: the error names the side that has it.
func TestAWrongBlobIsTheSources(t *testing.T) {
	from, to := newTarget(t), newTarget(t)
	content := layer(1, 100)
	from.image("app", "v1", nil, content)
	name := digest.FromBytes(content)
	dir := t.TempDir()
	export(t, from, dir, archive.ExportOptions{})
	wrong := make([]byte, len(content))
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", name.Encoded()), wrong, 0o600); err != nil {
		t.Fatal(err)
	}
	var problems []string
	_, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{Options: archive.Options{
		Problem: func(text string) { problems = append(problems, text) }}})
	if text := strings.Join(problems, "|"); err == nil || !strings.Contains(text, "the archive has other bytes") {
		t.Errorf("import: %v, %s", err, text)
	}
	from.intercept(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, name.String()) {
			return false
		}
		_, _ = w.Write(wrong)
		return true
	})
	_, _, err = archive.Copy(t.Context(), from.Client, to.Client,
		[]archive.Copied{{FromRepo: "app", From: "v1", ToRepo: "app", ToTag: "v1"}}, archive.CopyOptions{})
	if err == nil || !strings.Contains(err.Error(), "the source sends other bytes") {
		t.Errorf("copy: %v", err)
	}
}

// TestAnArchiveWithNothingInIt is an error, as is an export for which nothing was found.
func TestAnArchiveWithNothingInIt(t *testing.T) {
	from, dir := newTarget(t), t.TempDir()
	if _, err := archive.Export(t.Context(), from.Client, dir, archive.ExportOptions{}); err != nil {
		t.Errorf("an empty registry: %v", err)
	}
	name := filepath.Join(t.TempDir(), "empty.tar")
	write(t, name, tarOf(t, dir))
	for _, name := range []string{dir, name} {
		_, err := archive.Import(t.Context(), from.Client, name, archive.ImportOptions{})
		if err == nil || !strings.Contains(err.Error(), "nothing was imported") {
			t.Errorf("import of %s: %v", name, err)
		}
	}
	from.image("app", "v1", nil, layer(1, 100))
	none := archive.Options{Match: func(string) bool { return false }}
	if _, err := archive.Export(t.Context(), from.Client, t.TempDir(),
		archive.ExportOptions{Options: none}); err == nil ||
		!strings.Contains(err.Error(), "nothing was exported") {
		t.Errorf("export: %v", err)
	}
	all := t.TempDir()
	export(t, from, all, archive.ExportOptions{})
	if _, err := archive.Import(t.Context(), from.Client, all, archive.ImportOptions{Options: none}); err == nil ||
		!strings.Contains(err.Error(), "no selected repository") {
		t.Errorf("import: %v", err)
	}
}
