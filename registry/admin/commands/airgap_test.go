package commands_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"trow/registry/admin/commands"
	"trow/registry/service"
	"trow/registry/upstream"
)

// newService runs a whole registry, with these upstreams.
func newService(t *testing.T, upstreams ...upstream.Entry) *server {
	t.Helper()
	return newServiceOf(t, "64Mi", upstreams...)
}

// newServiceOf is newService with a cache of this size.
func newServiceOf(t *testing.T, size string, upstreams ...upstream.Entry) *server {
	t.Helper()
	var o service.Options
	o.AddFlags(pflag.NewFlagSet("x", pflag.ContinueOnError))
	s := &server{T: t, dir: filepath.Join(t.TempDir(), "data")}
	o.Data.DataDir, o.Names, o.Log = s.dir, []string{"trow.kube-public:31000"}, zerolog.Nop()
	o.Upstream.Upstreams, o.Upstream.CacheSize = upstreams, size
	reg, err := service.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reg.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- reg.ServeSocket(ctx) }()
	t.Cleanup(func() {
		stop()
		<-done
		reg.Close()
	})
	s.handler = reg.API()
	return s
}

// newOrigin is another registry with the images of fill, and what it was asked.
func newOrigin(t *testing.T) (o *server, entry upstream.Entry, index v1.Descriptor) {
	t.Helper()
	o = newRegistry(t)
	index = o.fill()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		o.mu.Lock()
		o.asked = append(o.asked, req.Method+" "+req.URL.Path)
		o.mu.Unlock()
		o.handler.ServeHTTP(w, req)
	}))
	t.Cleanup(web.Close)
	return o, upstream.Entry{Host: "quay.io", Insecure: true, Endpoints: []upstream.Endpoint{{URL: web.URL}}}, index
}

// pull gets a path without a login, as a node does.
func (s *server) pull(path string) (int, string) {
	s.Helper()
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

// write makes a file and returns its name.
func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const pods = `
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: "quay.io/team/app:1.0"}]}}
---
apiVersion: example.org/v1
kind: Widget
metadata: {name: w}
spec: {template: {spec: {containers: [{name: c, image: "trow.kube-public:31000/own/app:1"}]}}}
`

// TestAirGap: what pods need is exported from a registry with an upstream, and imported where there is none. There the
// same names answer the same bytes, and all of them are there.
func TestAirGap(t *testing.T) {
	origin, entry, index := newOrigin(t)
	from := newService(t, entry)
	from.image("own/app", "1", "amd64")
	from.image("own/other", "1", "amd64")
	_, want := origin.pull("/v2/team/app/manifests/1.0")
	file := filepath.Join(t.TempDir(), "images.tar")
	from.wantStderr("Exported ", true, "", "export", "-f", write(t, "pods.yaml", pods), "-o", file, "--platform",
		"linux/amd64")
	if _, err := os.Stat(file + ".unfinished"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	origin.handler = http.NotFoundHandler() // from here on there is no origin

	for name, entries := range map[string][]upstream.Entry{
		"without upstreams": nil,
		"with an upstream that is down": {{Host: "quay.io", As: "q", Insecure: true,
			Endpoints: []upstream.Endpoint{{URL: "http://127.0.0.1:1"}}}},
		"with another upstream of the host's name": {{Host: "quay.io", As: "q"}, {Host: "evil.example", As: "quay.io"}},
	} {
		t.Run(name, func(t *testing.T) {
			to := newService(t, entries...)
			to.wantStderr("quay.io/team/app@"+index.Digest.String()+": not in the archive, and so not here: "+
				"linux/arm64/v8", true, "", "import", file)
			to.wantStderr("Imported ", true, "", "import", file) // and again
			code, got := to.pull("/v2/team/app/manifests/1.0?ns=quay.io")
			if code != 200 || got != want {
				t.Fatalf("%d %s", code, got)
			}
			var all v1.Index
			if err := json.Unmarshal([]byte(got), &all); err != nil {
				t.Fatal(err)
			}
			code, got = to.pull("/v2/team/app/manifests/" + all.Manifests[0].Digest.String() + "?ns=quay.io")
			var m v1.Manifest
			if err := json.Unmarshal([]byte(got), &m); code != 200 || err != nil || len(m.Layers) != 2 {
				t.Fatalf("%d %v %s", code, err, got)
			}
			for _, d := range append(m.Layers, m.Config) {
				code, got := to.pull("/v2/team/app/blobs/" + d.Digest.String() + "?ns=quay.io")
				if code != 200 || digest.FromString(got) != d.Digest {
					t.Errorf("blob: %d, %d bytes", code, len(got))
				}
			}
			code, got = to.pull("/v2/team/app/referrers/" + index.Digest.String() + "?ns=quay.io")
			if code != 200 || strings.Count(got, "application/vnd.example.signature") != 1 {
				t.Errorf("the signature: %d %s", code, got)
			}
			for path, want := range map[string]int{"/v2/own/app/manifests/1": 200, "/v2/own/other/manifests/1": 404,
				"/v2/team/web/manifests/latest": 404, "/v2/team/app/manifests/1.0": 404} {
				if code, _ := to.pull(path); code != want {
					t.Errorf("%s: %d", path, code)
				}
			}
			// It is imported: never evicted, and a tag of it is never moved.
			out, _, err := to.run("", "cached", "-o", "json")
			if err != nil || strings.Count(out, `"state": "imported"`) != 1 || strings.Contains(out, "cached") {
				t.Errorf("%v %s", err, out)
			}
			out, _, err = to.run("", "evict", "--all-of", "quay.io")
			if !errors.Is(err, commands.ErrKept) || !strings.Contains(out, "it was imported, and is never evicted") {
				t.Errorf("%v %s", err, out)
			}
			if out, _, err := to.run("", "warm", "quay.io/team/app:1.0", "--platform=linux/amd64"); err != nil {
				t.Errorf("%v %s", err, out)
			}
		})
	}
}

// TestAnImportReplacesWhatIsCached: what was fetched, whole or in part, is imported afterwards, whatever its upstream
// says of it.
func TestAnImportReplacesWhatIsCached(t *testing.T) {
	origin, entry, index := newOrigin(t)
	from, to := newService(t, entry), newService(t, entry)
	file := filepath.Join(t.TempDir(), "images.tar")
	from.image("own/app", "1", "amd64")
	from.wantStderr("Exported ", true, pods, "export", "-f", "-", "-o", file, "--platform", "all")
	if code, _ := to.pull("/v2/team/app/manifests/1.0?ns=quay.io"); code != 200 {
		t.Fatalf("status %d", code)
	}
	origin.forget()
	to.wantStderr("Imported ", true, "", "import", file)
	if asked := origin.questions(); len(asked) > 0 {
		t.Errorf("the import asked the upstream: %v", asked)
	}
	out, _, err := to.run("", "cached", "-o", "json")
	var held struct {
		Images []struct {
			Digest    digest.Digest
			State     string
			Whole     bool
			Platforms []string
		}
	}
	if err := errors.Join(err, json.Unmarshal([]byte(out), &held)); err != nil || len(held.Images) != 1 ||
		held.Images[0].Digest != index.Digest || held.Images[0].State != "imported" || !held.Images[0].Whole ||
		!slices.Equal(held.Images[0].Platforms, []string{"linux/amd64", "linux/arm64/v8"}) {
		t.Errorf("%v %s", err, out)
	}
}

// TestACopyToANameOfAnotherRegistry is here as a whole, although its upstream has the same blobs and manifests.
func TestACopyToANameOfAnotherRegistry(t *testing.T) {
	_, entry, _ := newOrigin(t)
	s := newService(t, entry)
	url, ca := s.remote(distribution)
	for range 2 {
		s.wantStderr("", true, "", "cp", "f/quay.io/team/app:1.0", "own/app:1")
		s.wantStderr("", true, "", "cp", strings.TrimPrefix(url, "https://")+"/own/app:1", "f/quay.io/team/app:1.0",
			"--cacert", ca)
	}
	out, errOut, err := s.run("", "cached", "-o", "json")
	if err != nil || strings.Count(out, `"state": "imported"`) != 1 || strings.Contains(out, `"state": "cached"`) {
		t.Errorf("%v: %s%s", err, out, errOut)
	}
}

// TestExportOfPods has exactly what they need, and names what it lacks.
func TestExportOfPods(t *testing.T) {
	_, entry, index := newOrigin(t)
	s := newService(t, entry)
	s.image("own/app", "1", "amd64")
	s.image("own/other", "1", "amd64")
	manifests := write(t, "pods.yaml", pods)
	want := []string{"quay.io|team/app|", "quay.io|team/app|quay.io/team/app:1.0", "|own/app|own/app:1"}
	slices.Sort(want)
	out := s.wantStderr("Exported ", true, "", "export", "-f", manifests, "-", "--platform", "linux/amd64")
	if got := names(t, strings.NewReader(out)); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	dir := filepath.Join(t.TempDir(), "archive")
	s.wantStderr("Exported ", true, "", "export", "-f", manifests, dir, "--platform", "linux/amd64")
	s.wantStderr("Exported 0 manifests and 0 blobs", true, "", "export", "-f", manifests, dir, "--platform",
		"linux/amd64")

	// By its digest, and one that is nowhere: the rest is exported, and the exit code says that it is not all.
	file := filepath.Join(t.TempDir(), "images.tar")
	some := write(t, "some.yaml", `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [
		{name: a, image: "quay.io/team/app@`+index.Digest.String()+`"}, {name: b, image: "quay.io/team/none:1"}]}}`)
	_, errOut, err := s.run("", "export", "-f", some, "-o", file, "--platform", "linux/amd64")
	if err == nil || err.Error() != "1 of 2 images could not be fetched, and so not exported" ||
		!strings.Contains(errOut, "quay.io/team/none:1: not found") {
		t.Errorf("%v %s", err, errOut)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := names(t, f); !slices.Equal(got, []string{"quay.io|team/app|", "quay.io|team/app|"}) {
		t.Errorf("%q", got)
	}
	none := filepath.Join(t.TempDir(), "none.tar")
	for _, row := range []struct {
		want string
		args []string
	}{
		{"1 of 1 image could not be fetched", []string{"export", "-o", none, "-f",
			write(t, "none.yaml", strings.ReplaceAll(pods[:strings.Index(pods, "---")], "app:1.0", "none:1"))}},
		{"no manifest for the platforms", []string{"export", "-o", none, "-f",
			write(t, "one.yaml", pods[:strings.Index(pods, "---")]), "--platform", "plan9/amd64"}},
		{`platform: "amd64" is not valid; want OS/ARCH`,
			[]string{"export", "-o", none, "-f", manifests, "--platform", "amd64"}},
		{"repository: it excludes -f", []string{"export", "-o", none, "-f", manifests, "--repository", "a"}},
		{"platform: it is for -f", []string{"export", "-o", none, "--platform", "all"}},
		{"got 1 argument", []string{"export", "-o", none, dir}},
		{"is a directory", []string{"export", "-o", dir}},
		{"nowhere is not a directory; create it first", []string{"export", "-o", "/nowhere/images.tar", "-f",
			manifests}},
		{"no such file", []string{"export", "-o", none, "-f", dir + "/none.yaml"}},
		{"has an image", []string{"export", "-o", none, "-f", write(t, "empty.yaml", "")}},
		{"running: ", []string{"export", "-o", none, "--running", "--kubeconfig", "/nowhere"}},
	} {
		_, errOut, err := s.run("", row.args...)
		if err == nil || !strings.Contains(err.Error()+errOut, row.want) {
			t.Errorf("%v: %v %s", row.args, err, errOut)
		}
	}
	if all, _ := filepath.Glob(none + "*"); len(all) > 0 {
		t.Errorf("what failed has left %v", all)
	}
}

// TestExportThroughASmallCache: it has room for one image at a time, and the archive has both.
func TestExportThroughASmallCache(t *testing.T) {
	origin, entry, _ := newOrigin(t)
	for _, name := range []string{"one", "two"} {
		origin.manifest("team/"+name, "1", v1.MediaTypeImageManifest, v1.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
			Config: origin.blob("team/"+name, v1.MediaTypeImageConfig, `{"of":"`+name+`"}`),
			Layers: []v1.Descriptor{origin.blob("team/"+name, v1.MediaTypeImageLayerGzip,
				strings.Repeat(name, 20_000))}})
	}
	s, to := newServiceOf(t, "100Ki", entry), newService(t)
	file := filepath.Join(t.TempDir(), "images.tar")
	const both = `{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [
		{name: a, image: "quay.io/team/one:1"}, {name: b, image: "quay.io/team/two:1"}]}}`
	s.wantStderr("Exported 2 manifests and 4 blobs", true, both, "export", "-f", "-", "-o", file)
	to.wantStderr("Imported 2 manifests and 4 blobs", true, "", "import", file)
	for _, name := range []string{"one", "two"} {
		layer := digest.FromString(strings.Repeat(name, 20_000)).String()
		if code, _ := to.pull("/v2/team/" + name + "/blobs/" + layer + "?ns=quay.io"); code != 200 {
			t.Errorf("%s: %d", name, code)
		}
	}
}

// TestTheCacheByCommands: warm, cached and evict at a whole registry.
func TestTheCacheByCommands(t *testing.T) {
	_, entry, _ := newOrigin(t)
	s := newService(t, entry)
	s.image("own/app", "1", "amd64")
	transcript := func(name string, lines ...string) {
		t.Helper()
		var all strings.Builder
		for _, line := range lines {
			out, errOut, err := s.run(pods, strings.Fields(line)...)
			fmt.Fprintf(&all, "$ trow %s\n%s%s", line, out, errOut)
			if err != nil {
				fmt.Fprintf(&all, "error: %v\n", err)
			}
			all.WriteString("\n")
		}
		golden(t, name, all.String())
	}
	transcript("cache", "cached", "warm -f - --platform linux/amd64", "warm quay.io/team/app:1.0 --platform all",
		"warm ghcr.io/x/y quay.io/team/app:1.0 --platform all", "warm quay.io/team/web:none",
		"warm -q quay.io/team/app:latest --platform linux/arm64",
		"warm quay.io/team/app:1.0 -o json --platform linux/amd64", "warm", "cached", "cached -q",
		"cached -o json quay.io", "cached ghcr.io", "cached quay.io/team/app:1.0",
		"evict quay.io/team/app:1.0 quay.io/team/web:1 --dry-run",
		"evict --older-than 30d", "evict --all-of quay.io -o json", "cached", "evict",
		"evict trow.kube-public:31000/own/app:1")
}

// names returns the entries of the index.json in a tar.
func names(t *testing.T, in io.Reader) (all []string) {
	t.Helper()
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(all)
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		var index v1.Index
		if h.Name != "index.json" {
			continue
		}
		if err := json.NewDecoder(r).Decode(&index); err != nil {
			t.Fatal(err)
		}
		all = nil // the last one counts
		for _, m := range index.Manifests {
			a := m.Annotations
			all = append(all, fmt.Sprintf("%s|%s|%s", a["io.trow.namespace"], a["io.trow.repository"],
				a[v1.AnnotationRefName]))
		}
	}
}
