package archive_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry"
	"trow/registry/archive"
	"trow/registry/auth"
	"trow/registry/client"
	front "trow/registry/server"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

const (
	typeManifest = v1.MediaTypeImageManifest
	typeIndex    = v1.MediaTypeImageIndex
)

// target is a running registry with its content in memory.
type target struct {
	*testing.T
	*client.Client
	http     *http.Client
	index    *storage.Index
	blobs    *memory.Blobs
	requests atomic.Int64
	// hold answers a request to hold retention.
	hold   atomic.Pointer[func(w http.ResponseWriter)]
	before atomic.Pointer[func(w http.ResponseWriter, req *http.Request) (answered bool)] // intercepts requests
}

func newTarget(t *testing.T) *target {
	t.Helper()
	index := storagetest.OpenIndex(t, memory.NewJournal())
	r := &target{T: t, index: index, blobs: memory.NewBlobs()}
	// As for the administration socket, an index may be sparse.
	reg := registry.New(registry.Options{Blobs: r.blobs, Index: index, Auth: allowAll{},
		Bodies: front.NewBodies(1 << 30), Sparse: func(string) bool { return true }})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/admin/retention-hold" {
			if hold := r.hold.Load(); hold != nil {
				(*hold)(w)
			} else {
				w.WriteHeader(http.StatusNoContent)
			}
			return
		}
		r.requests.Add(1)
		if before := r.before.Load(); before != nil && (*before)(w, req) {
			return
		}
		if req.URL.Path != "/admin/repositories" {
			reg.ServeHTTP(w, req)
			return
		}
		for _, h := range r.holdings() {
			_ = json.NewEncoder(w).Encode(h)
		}
	}))
	t.Cleanup(s.Close)
	r.http = s.Client()
	c, err := client.New(client.Options{URL: s.URL, HTTP: s.Client()})
	if err != nil {
		t.Fatal(err)
	}
	r.Client = c
	return r
}

func (r *target) intercept(f func(w http.ResponseWriter, req *http.Request) bool) { r.before.Store(&f) }

func (r *target) holdings() (all []storage.Holdings) {
	for _, name := range r.index.Names() {
		if h, found, err := r.index.Holdings(context.Background(), name); err == nil && found {
			all = append(all, h)
		}
	}
	return all
}

// send sends a request and returns status and body.
func (r *target) send(method, path, contentType string, body []byte) (int, []byte) {
	r.Helper()
	req, err := http.NewRequestWithContext(r.Context(), method, r.URL()+path, bytes.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := r.http.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		r.Fatal(err)
	}
	return resp.StatusCode, got
}

func (r *target) must(method, path, contentType string, body []byte) {
	r.Helper()
	if status, text := r.send(method, path, contentType, body); status >= 300 {
		r.Fatalf("%s %s: %d %s", method, path, status, text)
	}
}

// blob pushes a blob.
func (r *target) blob(repo string, content []byte) v1.Descriptor {
	r.Helper()
	d := digest.FromBytes(content)
	r.must("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", content)
	return v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: int64(len(content))}
}

// image makes a manifest of layers and pushes it.
func (r *target) image(repo, tag string, subject *v1.Descriptor, layers ...[]byte) v1.Descriptor {
	r.Helper()
	m := v1.Manifest{MediaType: typeManifest, Subject: subject, Config: r.blob(repo, []byte(`{"of":"`+repo+tag+`"}`))}
	m.SchemaVersion = 2
	m.Config.MediaType = v1.MediaTypeImageConfig
	for _, l := range layers {
		m.Layers = append(m.Layers, r.blob(repo, l))
	}
	return r.manifest(repo, tag, typeManifest, m)
}

func (r *target) manifest(repo, tag, mediaType string, m any) v1.Descriptor {
	r.Helper()
	body, err := json.Marshal(m)
	if err != nil {
		r.Fatal(err)
	}
	d := digest.FromBytes(body)
	r.must("PUT", "/v2/"+repo+"/manifests/"+cmp.Or(tag, d.String()), mediaType, body)
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
}

func (r *target) list(repo, tag string, children ...v1.Descriptor) v1.Descriptor {
	r.Helper()
	all := v1.Index{MediaType: typeIndex, Manifests: children}
	all.SchemaVersion = 2
	return r.manifest(repo, tag, typeIndex, all)
}

func layer(seed uint64, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// fill fills a registry with one of everything.
func fill(r *target) {
	shared := layer(1, 1<<20)
	for n := range 3 {
		r.image("team/app", fmt.Sprintf("v%d", n), nil, shared, layer(uint64(10+n), 5000))
	}
	amd, arm := r.image("team/app", "", nil, layer(20, 100), shared), r.image("team/app", "", nil, layer(21, 100))
	all := r.list("team/app", "multi", amd, arm)
	r.list("team/app", "nested", all)
	r.image("team/app", "", &all, []byte(`{"json":"layer"}`)) // a referrer
	r.image("other", "v0", nil, shared, []byte{})
	r.must("PUT", "/v2/other/manifests/again", typeManifest, r.get("other", "v0"))
	r.image("other", "", nil, layer(30, 1000)) // untagged
	unknown := []byte("not JSON")
	r.must("PUT", "/v2/other/manifests/"+digest.FromBytes(unknown).String(), "application/x-mine", unknown)
	long := digest.SHA512.FromBytes(shared)
	r.must("POST", "/v2/other/blobs/uploads/?digest="+long.String(), "application/octet-stream", shared)
	m := v1.Manifest{MediaType: typeManifest, Config: v1.Descriptor{MediaType: "x/y", Digest: long,
		Size: int64(len(shared))}}
	m.SchemaVersion = 2
	body, _ := json.Marshal(m)
	r.must("PUT", "/v2/other/manifests/"+digest.SHA512.FromBytes(body).String()+"?tag=long", typeManifest, body)
}

func (r *target) get(repo, ref string) []byte {
	r.Helper()
	status, body := r.send("GET", "/v2/"+repo+"/manifests/"+ref, "", nil)
	if status != 200 {
		r.Fatalf("%s:%s: %d %s", repo, ref, status, body)
	}
	return body
}

// wantSame compares what two registries hold, except for times, and reads every byte of the second.
func wantSame(t *testing.T, from, to *target) {
	t.Helper()
	want, got := timeless(from.holdings()), timeless(to.holdings())
	if !reflect.DeepEqual(want, got) {
		t.Fatalf("holds\n%+v\nwant\n%+v", got, want)
	}
	for _, h := range to.holdings() {
		for _, b := range h.Blobs {
			to.wantContent(h.Repo, "blobs", b.Digest)
		}
		for _, m := range h.Manifests {
			to.wantContent(h.Repo, "manifests", m.Digest)
		}
	}
}

func (r *target) wantContent(repo, kind string, d digest.Digest) {
	r.Helper()
	status, body := r.send("GET", "/v2/"+repo+"/"+kind+"/"+d.String(), "", nil)
	if status != 200 || d.Algorithm().FromBytes(body) != d {
		r.Errorf("%s %s of %s: status %d, %d bytes", kind, d, repo, status, len(body))
	}
}

func timeless(all []storage.Holdings) []storage.Holdings {
	for _, h := range all {
		for i := range h.Blobs {
			h.Blobs[i].Time = 0
		}
		for i := range h.Manifests {
			h.Manifests[i].Time = 0
			for j := range h.Manifests[i].Tags {
				h.Manifests[i].Tags[j].Time, h.Manifests[i].Tags[j].Order = 0, 0
			}
		}
	}
	return all
}

func export(t *testing.T, from *target, dir string, o archive.ExportOptions) archive.Progress {
	t.Helper()
	done, err := archive.Export(t.Context(), from.Client, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func exportTar(t *testing.T, from *target, o archive.ExportOptions) []byte {
	t.Helper()
	var out bytes.Buffer
	if _, err := archive.ExportTar(t.Context(), from.Client, &out, o); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func importTar(t *testing.T, to *target, in []byte, o archive.ImportOptions) archive.Progress {
	t.Helper()
	o.Temp = t.TempDir()
	done, err := archive.ImportTar(t.Context(), to.Client, bytes.NewReader(in), o)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func TestRoundTrip(t *testing.T) {
	from := newTarget(t)
	fill(from)
	ways := map[string]func(t *testing.T, to *target) (archive.Progress, error){
		"directory": func(t *testing.T, to *target) (archive.Progress, error) {
			dir := t.TempDir()
			export(t, from, dir, archive.ExportOptions{})
			return archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{})
		},
		"tar stream": func(t *testing.T, to *target) (archive.Progress, error) {
			return importTar(t, to, exportTar(t, from, archive.ExportOptions{}), archive.ImportOptions{}), nil
		},
		"tar file": func(t *testing.T, to *target) (archive.Progress, error) {
			name := filepath.Join(t.TempDir(), "a.tar")
			write(t, name, exportTar(t, from, archive.ExportOptions{}))
			return archive.Import(t.Context(), to.Client, name, archive.ImportOptions{Temp: t.TempDir()})
		},
		"tar.gz": func(t *testing.T, to *target) (archive.Progress, error) {
			var out bytes.Buffer
			z := gzip.NewWriter(&out)
			_, _ = z.Write(exportTar(t, from, archive.ExportOptions{}))
			_ = z.Close()
			return importTar(t, to, out.Bytes(), archive.ImportOptions{}), nil
		},
		"tar of a directory, in any order": func(t *testing.T, to *target) (archive.Progress, error) {
			dir, name := t.TempDir(), filepath.Join(t.TempDir(), "a.tar")
			export(t, from, dir, archive.ExportOptions{})
			write(t, name, tarOf(t, dir))
			return archive.Import(t.Context(), to.Client, name, archive.ImportOptions{Temp: t.TempDir()})
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			to := newTarget(t)
			done, err := way(t, to)
			if err != nil {
				t.Fatal(err)
			}
			wantSame(t, from, to)
			if done.Items != done.TotalItems || done.Items < 9 || done.Manifests == 0 || done.Blobs == 0 {
				t.Errorf("reported progress: %+v", done)
			}
		})
	}
}

// tarOf makes a tar of a directory in the order of names, so that blobs come before index.json.
func tarOf(t *testing.T, dir string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func write(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestAnotherExportCopiesOnlyWhatIsNew(t *testing.T) {
	from, dir := newTarget(t), t.TempDir()
	fill(from)
	first := export(t, from, dir, archive.ExportOptions{})
	if again := export(t, from, dir, archive.ExportOptions{}); again.Bytes != 0 ||
		again.Present != first.Manifests+first.Blobs {
		t.Errorf("a second export of the same: %+v after %+v", again, first)
	}
	from.image("new", "v1", nil, layer(77, 3000))
	if more := export(t, from, dir, archive.ExportOptions{}); more.Manifests != 1 || more.Blobs != 2 {
		t.Errorf("one more image: %+v", more)
	}
	to := newTarget(t)
	if _, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	wantSame(t, from, to)
	done, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{})
	if err != nil || done.Bytes != 0 {
		t.Errorf("a second import: %+v, %v", done, err)
	}
}

// A tar on top of another one has only new content. It can be imported where the first one was.
func TestATarOnTopOfAnother(t *testing.T) {
	from, to := newTarget(t), newTarget(t)
	fill(from)
	name := filepath.Join(t.TempDir(), "first.tar")
	write(t, name, exportTar(t, from, archive.ExportOptions{}))
	from.image("team/app", "v9", nil, layer(1, 1<<20), layer(99, 2000))
	have, err := archive.Have(name)
	if err != nil {
		t.Fatal(err)
	}
	second := exportTar(t, from, archive.ExportOptions{Have: have})
	if len(second) > 100<<10 {
		t.Errorf("the second tar has %d bytes", len(second))
	}
	if _, err := archive.Import(t.Context(), to.Client, name, archive.ImportOptions{Temp: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	importTar(t, to, second, archive.ImportOptions{})
	wantSame(t, from, to)
	var reported []string
	_, err = archive.ImportTar(t.Context(), newTarget(t).Client, bytes.NewReader(second), archive.ImportOptions{
		Options: archive.Options{Problem: func(s string) { reported = append(reported, s) }}, Temp: t.TempDir()})
	if err == nil || len(reported) == 0 || !strings.Contains(reported[0], "the archive does not have it") {
		t.Errorf("the second tar alone: %v, %q", err, reported)
	}
}

func TestPruneDeletesWhatTheRegistryNoLongerHolds(t *testing.T) {
	from, dir := newTarget(t), t.TempDir()
	fill(from)
	gone := from.image("gone", "v1", nil, layer(50, 3000))
	export(t, from, dir, archive.ExportOptions{})
	file := filepath.Join(dir, "blobs", "sha256", gone.Digest.Encoded())
	from.must("DELETE", "/v2/gone/manifests/"+gone.Digest.String(), "", nil)
	export(t, from, dir, archive.ExportOptions{})
	if _, err := os.Stat(file); err != nil {
		t.Error("an export without Prune deleted it:", err)
	}
	export(t, from, dir, archive.ExportOptions{Prune: true})
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Error("still in the archive:", err)
	}
	to := newTarget(t)
	if _, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(to.index.Names(), "gone") {
		t.Error("a deleted image was imported")
	}
}

func TestMatchSelectsRepositories(t *testing.T) {
	from, to := newTarget(t), newTarget(t)
	fill(from)
	only := archive.Options{Match: func(repo string) bool { return repo == "other" }}
	importTar(t, to, exportTar(t, from, archive.ExportOptions{Options: only}), archive.ImportOptions{})
	if got := to.index.Names(); !slices.Equal(got, []string{"other"}) {
		t.Errorf("exported: %v", got)
	}
	to = newTarget(t)
	importTar(t, to, exportTar(t, from, archive.ExportOptions{}), archive.ImportOptions{Options: only})
	if got := to.index.Names(); !slices.Equal(got, []string{"other"}) {
		t.Errorf("imported: %v", got)
	}
}

// Whatever is deleted during an export, the archive is complete.
func TestContentThatIsDeletedDuringAnExport(t *testing.T) {
	for _, form := range []string{"directory", "tar"} {
		t.Run(form, func(t *testing.T) {
			from, to := newTarget(t), newTarget(t)
			fill(from)
			victim := from.image("victim", "v1", nil, layer(60, 4000))
			v2 := from.image("victim", "v2", nil, layer(61, 4000))
			from.intercept(func(_ http.ResponseWriter, req *http.Request) bool {
				if strings.HasSuffix(req.URL.Path, victim.Digest.String()) && req.Method == "GET" {
					none := func(http.ResponseWriter, *http.Request) bool { return false }
					from.before.Store(&none)
					from.must("DELETE", "/v2/victim/manifests/"+victim.Digest.String(), "", nil)
				}
				return false
			})
			var done archive.Progress
			if form == "tar" {
				var out bytes.Buffer
				var err error
				if done, err = archive.ExportTar(t.Context(), from.Client, &out, archive.ExportOptions{}); err != nil {
					t.Fatal(err)
				}
				importTar(t, to, out.Bytes(), archive.ImportOptions{})
			} else {
				dir := t.TempDir()
				done = export(t, from, dir, archive.ExportOptions{})
				if _, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if done.Gone != 1 || done.Problems != 0 {
				t.Errorf("reported progress: %+v", done)
			}
			to.wantContent("victim", "manifests", v2.Digest)
			if status, _ := to.send("HEAD", "/v2/victim/manifests/v1", "", nil); status != 404 {
				t.Errorf("the deleted image: status %d", status)
			}
		})
	}
}

// TestADamagedManifestIsAProblemOfAnExport: the registry answers as if it were not there, but it was not deleted.
func TestADamagedManifestIsAProblemOfAnExport(t *testing.T) {
	from := newTarget(t)
	fill(from)
	victim := from.image("victim", "v1", nil, layer(60, 4000))
	if err := from.index.Quarantine(t.Context(), victim.Digest, "its bytes are missing"); err != nil {
		t.Fatal(err)
	}
	done, err := archive.Export(t.Context(), from.Client, t.TempDir(), archive.ExportOptions{})
	if err == nil || done.Problems != 1 || done.Gone != 0 {
		t.Errorf("%+v, %v", done, err)
	}
}

// An export that is stopped at any request continues when it runs again, and no file is ever incomplete.
func TestACopyThatIsStoppedAtAnyRequestContinues(t *testing.T) {
	from, dir := newTarget(t), t.TempDir()
	fill(from)
	for stop := int64(1); ; stop++ {
		ctx, cancel := context.WithCancel(t.Context())
		from.requests.Store(0)
		from.intercept(func(http.ResponseWriter, *http.Request) bool {
			if from.requests.Load() == stop {
				cancel()
			}
			return false
		})
		_, err := archive.Export(ctx, from.Client, dir, archive.ExportOptions{})
		cancel()
		if err == nil {
			break
		}
		wantIntactFiles(t, dir)
	}
	to := newTarget(t)
	for stop := int64(1); ; stop++ {
		ctx, cancel := context.WithCancel(t.Context())
		to.requests.Store(0)
		to.intercept(func(http.ResponseWriter, *http.Request) bool {
			if to.requests.Load() == 3*stop {
				cancel()
			}
			return false
		})
		_, err := archive.Import(ctx, to.Client, dir, archive.ImportOptions{})
		cancel()
		if err == nil {
			break
		}
	}
	to.intercept(func(http.ResponseWriter, *http.Request) bool { return false })
	from.intercept(func(http.ResponseWriter, *http.Request) bool { return false })
	wantSame(t, from, to)
}

func wantIntactFiles(t *testing.T, dir string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), "blobs", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := os.ReadFile(filepath.Join(dir, path))
		want := digest.Digest(filepath.Base(filepath.Dir(path)) + ":" + d.Name())
		if err == nil && want.Algorithm().FromBytes(body) != want {
			t.Errorf("%s does not match the digest in its name", path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // an export that read no list makes no directory
		t.Fatal(err)
	}
}

// Layouts of other tools: no repositories, and tags or whole names of images as names.
func TestPlainLayouts(t *testing.T) {
	from := newTarget(t)
	d := from.image("a", "v1", nil, layer(3, 8<<10), layer(4, 5<<20))
	dir := t.TempDir()
	export(t, from, dir, archive.ExportOptions{})
	for refName, want := range map[string]string{"v1": "v1", "docker.io/library/a:v1": "v1", "": "", "x/y:1.2": "1.2"} {
		for _, form := range []string{"directory", "pipe"} {
			t.Run(refName+" "+form, func(t *testing.T) {
				entry := d
				if refName != "" {
					entry.Annotations = map[string]string{v1.AnnotationRefName: refName}
				}
				body, _ := json.Marshal(v1.Index{Manifests: []v1.Descriptor{entry}})
				write(t, filepath.Join(dir, "index.json"), body)
				to := newTarget(t)
				var err error
				o := archive.ImportOptions{As: "team/b", Temp: t.TempDir()}
				if form == "pipe" {
					_, err = archive.ImportTar(t.Context(), to.Client, bytes.NewReader(tarOf(t, dir)), o)
				} else {
					_, err = archive.Import(t.Context(), to.Client, dir, o)
				}
				if err != nil {
					t.Fatal(err)
				}
				to.wantContent("team/b", "manifests", d.Digest)
				if want == "" {
					return
				}
				if got := to.get("team/b", want); digest.FromBytes(got) != d.Digest {
					t.Error("the tag names another manifest")
				}
			})
		}
	}
	to := newTarget(t)
	if _, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{As: "b:mine"}); err != nil {
		t.Fatal(err)
	}
	if got := to.get("b", "mine"); digest.FromBytes(got) != d.Digest {
		t.Error("the tag of As names another manifest")
	}
	_, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{})
	if err == nil || !strings.Contains(err.Error(), "--as") {
		t.Errorf("without As: %v", err)
	}
	_, err = archive.ImportTar(t.Context(), to.Client, bytes.NewReader(tarOf(t, dir)),
		archive.ImportOptions{Temp: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "--as") {
		t.Errorf("a pipe with blobs before manifests: %v", err)
	}
	if _, err := archive.Export(t.Context(), from.Client, dir, archive.ExportOptions{}); err == nil {
		t.Error("the layout of another program was overwritten")
	}
}

func TestKeepTags(t *testing.T) {
	from, to := newTarget(t), newTarget(t)
	fill(from)
	mine := to.image("other", "again", nil, layer(70, 100))
	tarball := exportTar(t, from, archive.ExportOptions{})
	done := importTar(t, to, tarball, archive.ImportOptions{KeepTags: true})
	if got := to.get("other", "again"); digest.FromBytes(got) != mine.Digest || done.Kept != 1 {
		t.Errorf("KeepTags moved the tag; reported: %+v", done)
	}
	importTar(t, to, tarball, archive.ImportOptions{})
	if got := to.get("other", "again"); !bytes.Equal(got, from.get("other", "again")) {
		t.Error("the tag was not moved")
	}
}

// An import retries while the registry is busy.
func TestABusyRegistryIsAskedAgain(t *testing.T) {
	from, to := newTarget(t), newTarget(t)
	fill(from)
	var refused atomic.Bool
	to.intercept(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == "POST" && refused.CompareAndSwap(false, true) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	})
	importTar(t, to, exportTar(t, from, archive.ExportOptions{}), archive.ImportOptions{})
	if !refused.Load() {
		t.Error("the registry refused nothing")
	}
	wantSame(t, from, to)
}

// A full registry ends the import at once: other items would fail as well.
func TestAFullRegistryEndsTheImport(t *testing.T) {
	from, to := newTarget(t), newTarget(t)
	fill(from)
	to.intercept(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == "PUT" {
			w.WriteHeader(http.StatusInsufficientStorage)
			fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"no space"}]}`)
		}
		return req.Method == "PUT"
	})
	_, err := archive.ImportTar(t.Context(), to.Client, bytes.NewReader(exportTar(t, from, archive.ExportOptions{})),
		archive.ImportOptions{Temp: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("got %v", err)
	}
}

// A damaged blob costs only the items that need it; each is reported.
func TestImportOfDamage(t *testing.T) {
	from := newTarget(t)
	fill(from)
	bad := from.image("bad", "v1", nil, layer(80, 9000))
	blob := digest.FromBytes(layer(80, 9000))
	whole := t.TempDir()
	export(t, from, whole, archive.ExportOptions{})
	ways := map[string]func(t *testing.T, file string){
		"flipped":  func(t *testing.T, file string) { write(t, file, layer(81, 9000)) },
		"short":    func(t *testing.T, file string) { write(t, file, layer(80, 9000)[:5000]) },
		"missing":  func(t *testing.T, file string) { _ = os.Remove(file) },
		"a link":   func(t *testing.T, file string) { _ = os.Remove(file); _ = os.Symlink("/etc/passwd", file) },
		"a folder": func(t *testing.T, file string) { _ = os.Remove(file); _ = os.Mkdir(file, 0o755) },
	}
	for name, damage := range ways {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			damage(t, filepath.Join(dir, "blobs", "sha256", blob.Encoded()))
			for _, form := range []string{"directory", "tar"} {
				if form == "tar" && name == "a link" {
					continue
				}
				to := newTarget(t)
				var reported []string
				o := archive.ImportOptions{Options: archive.Options{Problem: func(s string) {
					reported = append(reported, s)
				}},
					Temp: t.TempDir()}
				at := dir
				if form == "tar" {
					at = filepath.Join(t.TempDir(), "a.tar")
					write(t, at, tarOf(t, dir))
				}
				done, err := archive.Import(t.Context(), to.Client, at, o)
				if err == nil || done.Problems != 1 || len(reported) != 1 ||
					!strings.HasPrefix(reported[0], "bad:v1: ") ||
					!strings.Contains(reported[0], blob.String()) {
					t.Errorf("%s: %v, %+v, %q", form, err, done, reported)
				}
				if status, _ := to.send("HEAD", "/v2/bad/manifests/"+bad.Digest.String(), "", nil); status != 404 {
					t.Errorf("%s: the incomplete manifest: status %d", form, status)
				}
				if got, want := len(to.holdings()), len(from.holdings())-1; got < want {
					t.Errorf("%s: %d repositories of %d", form, got, want)
				}
			}
		})
	}
}

// Damage in the registry: the export reports it, leaves out the incomplete items, and has all others.
func TestExportOfDamage(t *testing.T) {
	for _, form := range []string{"directory", "tar"} {
		for _, how := range []string{"gone", "other bytes", "an error", "cut off"} {
			if form == "tar" && how == "cut off" { // a stream cannot go on after half a file
				continue
			}
			t.Run(form+" "+how, func(t *testing.T) {
				from, to := newTarget(t), newTarget(t)
				fill(from)
				from.image("bad", "v1", nil, layer(80, 9000))
				blob := digest.FromBytes(layer(80, 9000))
				from.intercept(func(w http.ResponseWriter, req *http.Request) bool {
					if !strings.HasSuffix(req.URL.Path, blob.String()) {
						return false
					}
					switch how {
					case "gone":
						w.WriteHeader(404)
					case "an error":
						w.WriteHeader(500)
					case "cut off":
						w.Header().Set("Content-Length", "9000")
						_, _ = w.Write(layer(80, 9000)[:4000])
						panic(http.ErrAbortHandler)
					default:
						_, _ = w.Write(layer(81, 9000))
					}
					return true
				})
				var reported []string
				o := archive.ExportOptions{Options: archive.Options{Problem: func(s string) {
					reported = append(reported, s)
				}}}
				dir := t.TempDir()
				var out bytes.Buffer
				var err error
				if form == "tar" {
					_, err = archive.ExportTar(t.Context(), from.Client, &out, o)
				} else {
					_, err = archive.Export(t.Context(), from.Client, dir, o)
				}
				if err == nil || len(reported) != 1 || !strings.HasPrefix(reported[0], "bad:v1: ") ||
					!strings.Contains(reported[0], blob.String()) {
					t.Errorf("%v, %q", err, reported)
				}
				if form == "tar" {
					importTar(t, to, out.Bytes(), archive.ImportOptions{})
				} else if _, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{}); err != nil {
					t.Error(err)
				}
				notBad := func(all []storage.Holdings) []storage.Holdings {
					return slices.DeleteFunc(timeless(all), func(h storage.Holdings) bool {
						return h.Repo == "bad" && len(h.Manifests) < 2
					})
				}
				if want, got := notBad(from.holdings()), notBad(to.holdings()); !reflect.DeepEqual(want, got) {
					t.Errorf("the archive has %+v, want %+v", got, want)
				}
			})
		}
	}
}

// Archives with names that lead out of the archive, or out of /v2/.
func TestHostileArchives(t *testing.T) {
	from := newTarget(t)
	d := from.image("a", "v1", nil, layer(3, 300))
	good := t.TempDir()
	export(t, from, good, archive.ExportOptions{})
	entry := func(repo, name string, d v1.Descriptor) []byte {
		d.Annotations = map[string]string{archive.AnnotationRepository: repo, v1.AnnotationRefName: name}
		body, _ := json.Marshal(v1.Index{Manifests: []v1.Descriptor{d}})
		return body
	}
	other := d
	for name, index := range map[string][]byte{
		"repository":         entry("../../admin/gc", "../../admin/gc:v1", d),
		"repository's query": entry("a?x=", "a?x=:v1", d),
		"tag":                entry("a", "a:../../x", d),
		"tag's query":        entry("a", "a:v1&x=y", d),
		"digest": entry("a", "a:v1",
			func() v1.Descriptor { other.Digest = "sha256:../../../../etc/passwd"; return other }()),
		"no digest": entry("a", "a:v1", v1.Descriptor{MediaType: typeManifest}),
		"no JSON":   []byte("{"),
		"nothing":   nil,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(good)); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "index.json"), index)
			to := newTarget(t)
			to.intercept(func(_ http.ResponseWriter, req *http.Request) bool {
				if !strings.HasPrefix(req.URL.Path, "/v2/a/") || req.URL.Query().Has("x") {
					t.Errorf("%s %s", req.Method, req.URL)
				}
				return false
			})
			if _, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{}); err == nil {
				t.Error("no error")
			}
			file := filepath.Join(t.TempDir(), "a.tar")
			write(t, file, tarOf(t, dir))
			if _, err := archive.Import(t.Context(), to.Client, file,
				archive.ImportOptions{Temp: t.TempDir()}); err == nil {
				t.Error("no error for the tar")
			}
		})
	}
}

func TestWhatIsNotAnArchiveIsRefused(t *testing.T) {
	to := newTarget(t)
	trow, empty, text := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "a.txt")
	write(t, filepath.Join(trow, "journal.db"), []byte("x"))
	write(t, text, []byte(strings.Repeat("not a tar ", 100)))
	for name, want := range map[string]string{trow: "data directory of Trow", empty: "not an archive",
		text: "not a tar"} {
		_, err := archive.Import(t.Context(), to.Client, name, archive.ImportOptions{Temp: t.TempDir()})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	full := t.TempDir()
	write(t, filepath.Join(full, "thesis.doc"), []byte("x"))
	if _, err := archive.Export(t.Context(), to.Client, full, archive.ExportOptions{}); err == nil {
		t.Error("exported into a directory with other files")
	}
	cut := exportTar(t, func() *target { from := newTarget(t); fill(from); return from }(), archive.ExportOptions{})
	half := bytes.NewReader(cut[:len(cut)/2])
	if _, err := archive.ImportTar(t.Context(), to.Client, half, archive.ImportOptions{Temp: t.TempDir()}); err == nil {
		t.Error("imported half an archive")
	}
}

// ---- Data directories of other registries

// TestDistribution imports a data directory of Distribution's filesystem driver, whose layout is described in the
// package comment of its registry/storage.
func TestDistribution(t *testing.T) {
	from, dir := newTarget(t), t.TempDir()
	fill(from)
	asDistribution(t, from, dir)
	base := filepath.Join(dir, "docker", "registry", "v2", "repositories")
	schema1 := []byte(`{"schemaVersion":1,"name":"old","fsLayers":[]}`)
	asRevision(t, dir, "old", schema1, "v1")
	write(t, filepath.Join(base, "old", "_manifests", "tags", "torn", "current", "link"), nil)
	if err := os.MkdirAll(filepath.Join(base, "old", "_manifests", "tags", "gone", "current"), 0o755); err != nil {
		t.Fatal(err) // it was left out without a word
	}
	to := newTarget(t)
	var reported []string
	var form string
	_, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{Form: func(s string) { form = s },
		Options: archive.Options{Problem: func(s string) { reported = append(reported, s) }}})
	slices.Sort(reported)
	if err == nil || len(reported) != 4 || !strings.HasPrefix(reported[0], "old:gone: ") ||
		!strings.HasPrefix(reported[1], "old:torn: ") ||
		!strings.Contains(reported[1], "the link of the tag is missing") ||
		!strings.HasPrefix(reported[2], "old:v1: ") || !strings.Contains(reported[2], "schema 1") ||
		!strings.Contains(form, "Distribution") {
		t.Errorf("%v, %q, %q", err, reported, form)
	}
	wantSame(t, from, to)
	to = newTarget(t)
	at := filepath.Join(dir, "docker", "registry", "v2")
	_, err = archive.Import(t.Context(), to.Client, at, archive.ImportOptions{
		Options: archive.Options{Match: func(repo string) bool { return repo != "old" }}})
	if err != nil {
		t.Error(err)
	}
	wantSame(t, from, to)
}

// asDistribution writes what a registry holds in the form of Distribution. Distribution cannot hold unknown media
// types.
func asDistribution(t *testing.T, from *target, dir string) {
	t.Helper()
	for _, h := range from.holdings() {
		for _, b := range h.Blobs {
			_, body := from.send("GET", "/v2/"+h.Repo+"/blobs/"+b.Digest.String(), "", nil)
			asBlob(t, dir, b.Digest, body)
		}
		for _, m := range h.Manifests {
			if m.MediaType == "application/x-mine" {
				from.must("DELETE", "/v2/"+h.Repo+"/manifests/"+m.Digest.String(), "", nil)
				continue
			}
			var tags []string
			for _, tag := range m.Tags {
				tags = append(tags, tag.Name)
			}
			body := from.get(h.Repo, m.Digest.String())
			asRevisionOf(t, dir, h.Repo, m.Digest, body, tags...)
		}
	}
}

func asBlob(t *testing.T, dir string, d digest.Digest, body []byte) {
	t.Helper()
	at := filepath.Join(dir, "docker/registry/v2/blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
	write(t, filepath.Join(at, "data"), body)
}

func asRevision(t *testing.T, dir, repo string, body []byte, tags ...string) {
	t.Helper()
	asRevisionOf(t, dir, repo, digest.FromBytes(body), body, tags...)
}

func asRevisionOf(t *testing.T, dir, repo string, d digest.Digest, body []byte, tags ...string) {
	t.Helper()
	asBlob(t, dir, d, body)
	at := filepath.Join(dir, "docker/registry/v2/repositories", repo, "_manifests")
	write(t, filepath.Join(at, "revisions", d.Algorithm().String(), d.Encoded(), "link"), []byte(d))
	for _, tag := range tags {
		write(t, filepath.Join(at, "tags", tag, "current", "link"), []byte(d))
		write(t, filepath.Join(at, "tags", tag, "index", d.Algorithm().String(), d.Encoded(), "link"), []byte(d))
	}
}

// TestZot imports a tree of layouts, in which a blob that another repository has is an empty file or missing.
func TestZot(t *testing.T) {
	from, dir := newTarget(t), t.TempDir()
	fill(from)
	asZot(t, from, dir)
	write(t, filepath.Join(dir, "_trivy", "db", "index.json"), []byte("nothing of ours"))
	write(t, filepath.Join(dir, "team/app", ".uploads", "x"), []byte("half"))
	to := newTarget(t)
	var form string
	_, err := archive.Import(t.Context(), to.Client, dir, archive.ImportOptions{Form: func(s string) { form = s }})
	if err != nil || !strings.Contains(form, "zot") {
		t.Errorf("%v, %q", err, form)
	}
	wantSame(t, from, to)
}

func asZot(t *testing.T, from *target, dir string) {
	t.Helper()
	seen := map[digest.Digest]bool{}
	for n, h := range from.holdings() {
		at := filepath.Join(dir, h.Repo)
		write(t, filepath.Join(at, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
		content := map[digest.Digest][]byte{}
		var index v1.Index
		index.SchemaVersion = 2
		for _, b := range h.Blobs {
			_, content[b.Digest] = from.send("GET", "/v2/"+h.Repo+"/blobs/"+b.Digest.String(), "", nil)
			if n > 0 && seen[b.Digest] {
				content[b.Digest] = nil // as zot leaves it after deduplication
			}
			seen[b.Digest] = true
		}
		for _, m := range h.Manifests {
			content[m.Digest] = from.get(h.Repo, m.Digest.String())
			desc := v1.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}
			if len(m.Tags) == 0 {
				index.Manifests = append(index.Manifests, desc)
			}
			for _, tag := range m.Tags {
				named := desc
				named.Annotations = map[string]string{v1.AnnotationRefName: tag.Name}
				index.Manifests = append(index.Manifests, named)
			}
		}
		for d, body := range maps.All(content) {
			write(t, filepath.Join(at, "blobs", d.Algorithm().String(), d.Encoded()), body)
		}
		body, _ := json.Marshal(index)
		write(t, filepath.Join(at, "index.json"), body)
	}
}

// allowAll allows everything to every client.
type allowAll struct{}

func (allowAll) Identify(*http.Request) (*auth.Identity, error)                       { return &auth.Identity{}, nil }
func (allowAll) Authorize(context.Context, *auth.Identity, string, auth.Action) error { return nil }
func (allowAll) Readable(context.Context, *auth.Identity) func(string) (bool, error)  { return nil }
func (allowAll) Challenge(*http.Request, string, auth.Action, error) []string         { return nil }
