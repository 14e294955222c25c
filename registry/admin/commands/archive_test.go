package commands_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry"
	"trow/registry/admin"
	"trow/registry/auth"
	front "trow/registry/server"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// newRegistry serves a registry over memory on the socket of a new data directory.
func newRegistry(t *testing.T) *server {
	t.Helper()
	index := storagetest.OpenIndex(t, memory.NewJournal())
	reg := registry.New(registry.Options{Blobs: memory.NewBlobs(), Index: index, Auth: allowAll{},
		Bodies: front.NewBodies(1 << 30)})
	s := &server{T: t, dir: t.TempDir()}
	s.handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/admin/repositories" {
			reg.ServeHTTP(w, req)
			return
		}
		for _, name := range index.Names() {
			if h, found, err := index.Holdings(req.Context(), name); err == nil && found {
				_ = json.NewEncoder(w).Encode(h)
			}
		}
	})
	s.serve(s.handler)
	return s
}

// request sends a request to the registry and returns its status.
func (s *server) request(method, path, contentType string, body []byte) int {
	s.Helper()
	req, err := http.NewRequestWithContext(s.Context(), method, admin.URL+path, bytes.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := admin.NewClient(s.dir).HTTP.Do(req)
	if err != nil {
		s.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// push pushes an image repo:v of one blob, which is its config.
func (s *server) push(repo string) {
	s.Helper()
	blob := []byte("the config of " + repo)
	d := digest.FromBytes(blob)
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest,
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: d, Size: int64(len(blob))},
		Layers: []v1.Descriptor{}}
	m.SchemaVersion = 2
	body, err := json.Marshal(m)
	if err != nil {
		s.Fatal(err)
	}
	upload := "/v2/" + repo + "/blobs/uploads/?digest=" + d.String()
	if status := s.request("POST", upload, "application/octet-stream", blob); status != http.StatusCreated {
		s.Fatalf("the blob of %s: status %d", repo, status)
	}
	status := s.request("PUT", "/v2/"+repo+"/manifests/v", v1.MediaTypeImageManifest, body)
	if status != http.StatusCreated {
		s.Fatalf("the manifest of %s: status %d", repo, status)
	}
}

// wantStderr runs a command that must print text to standard error; ok reports whether it must succeed.
func (s *server) wantStderr(text string, ok bool, stdin string, args ...string) (stdout string) {
	s.Helper()
	out, errOut, err := s.run(stdin, args...)
	if (err == nil) != ok || !strings.Contains(errOut, text) {
		s.Errorf("trow %v: error %v, standard error %q; want success %v and %q", args, err, errOut, ok, text)
	}
	return out
}

func TestExportAndImport(t *testing.T) {
	from, to := newRegistry(t), newRegistry(t)
	from.push("team/app")
	from.push("other")
	dir := filepath.Join(t.TempDir(), "archive")
	from.wantStderr("Exported 2 manifests and 2 blobs, ", true, "", "export", dir)
	from.wantStderr("Exported 0 manifests and 0 blobs, 0 B; 4 already there.\n", true, "", "export", dir)
	stream := from.wantStderr("Exported 1 manifest and 1 blob, ", true, "", "export", "-", "--repository=team/**")
	less := from.wantStderr("Exported 1 manifest and 0 blobs, ", true, "", "export", "-", "--repository=team/**",
		"--base="+dir)
	if len(less) >= len(stream) {
		t.Errorf("the tar on top of an archive has %d bytes, the one with everything %d", len(less), len(stream))
	}

	to.wantStderr("Importing the tar of an OCI image layout.\nImported 1 manifest and 1 blob, ", true, stream,
		"import", "-")
	if status := to.request("HEAD", "/v2/other/manifests/v", "", nil); status != http.StatusNotFound {
		t.Errorf("a repository that was not exported: status %d", status)
	}
	to.wantStderr("Importing an OCI image layout.\nImported 1 manifest and 1 blob, ", true, "", "import", dir)
	for _, repo := range []string{"team/app", "other"} {
		if status := to.request("HEAD", "/v2/"+repo+"/manifests/v", "", nil); status != http.StatusOK {
			t.Errorf("%s after the import: status %d", repo, status)
		}
	}
}

func TestImportNamesWhatItCannotCopy(t *testing.T) {
	from, to := newRegistry(t), newRegistry(t)
	from.push("good")
	from.push("bad")
	dir := t.TempDir()
	from.wantStderr("Exported 2", true, "", "export", dir)
	missing := digest.FromString("the config of bad")
	if err := os.Remove(filepath.Join(dir, "blobs", "sha256", missing.Encoded())); err != nil {
		t.Fatal(err)
	}
	to.wantStderr("bad:v: ", false, "", "import", dir)
	if status := to.request("HEAD", "/v2/good/manifests/v", "", nil); status != http.StatusOK {
		t.Errorf("the other image: status %d", status)
	}
}

func TestExportAndImportWithArgumentsThatAreWrong(t *testing.T) {
	s := newRegistry(t)
	dir := t.TempDir()
	s.wantError("--prune: not supported for a tar stream", "export", "-", "--prune")
	s.wantError("--base: ", "export", dir, "--base="+dir+"/none")
	s.wantError("repository: ", "export", dir, "--repository=a b")
	s.wantError("repository: ", "import", dir, "--repository=a b")
	s.wantError("archive", "import", dir)
	s.wantError("got no argument; want: trow ", "export")
	s.wantError("got no argument; want: trow ", "import")
	_, errOut, err := run(t, t.TempDir(), "", "export", filepath.Join(dir, "a"))
	if err == nil || strings.Contains(errOut, "Exported") {
		t.Errorf("without a server: error %v, %s", err, errOut)
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an export without a server has left its directory: %v", err)
	}
}

// allowAll allows everything to every client.
type allowAll struct{}

func (allowAll) Identify(*http.Request) (*auth.Identity, error)                       { return &auth.Identity{}, nil }
func (allowAll) Authorize(context.Context, *auth.Identity, string, auth.Action) error { return nil }
func (allowAll) Readable(context.Context, *auth.Identity) func(string) (bool, error)  { return nil }
func (allowAll) Challenge(*http.Request, string, auth.Action, error) []string         { return nil }
