package service_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry/service"
	"trow/storage"
)

// loaded opens a service and loads its index.
func loaded(t *testing.T, o service.Options) (*service.Service, *storage.Index) {
	t.Helper()
	s := open(t, o)
	x, err := s.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s, x
}

func upload(s *service.Service, repo, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	path := "/v2/" + repo + "/blobs/uploads/?digest=" + digest.FromString(body).String()
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/octet-stream")
	s.API().ServeHTTP(w, r)
	return w
}

// TestMigration moves a registry to another data directory by way of its job.
func TestMigration(t *testing.T) {
	o := options(t)
	o.Auth.Anonymous = "push"
	s, _ := loaded(t, o)
	if w := upload(s, "team/app", "layer"); w.Code != http.StatusCreated {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	dir := filepath.Join(t.TempDir(), "new")
	job := "/admin/migrate?data=" + url.QueryEscape(dir)
	plain := "/admin/migrate?blobs=s3://abc&journal=etcd://h:1/x"
	for name, row := range map[string]struct{ path, want string }{
		"no target":       {"/admin/migrate", "the target is missing"},
		"itself":          {"/admin/migrate?data=" + url.QueryEscape(o.Data.DataDir), "want another one"},
		"relative":        {"/admin/migrate?data=x", "not an absolute path"},
		"bytes of no one": {"/admin/migrate?journal=etcd://h:1/x", "to-blobs"},
		"facts of no one": {"/admin/migrate?blobs=s3://abc", "to-journal"},
		"a password":      {"/admin/migrate?journal=etcd://u:secret@h:1/x&blobs=s3://abc", "credentials"},
		"half a login":    {plain + "&journal-user=u", "to-journal-user: a user needs"},
		"a certificate":   {plain + "&journal-cert-file=/c", "to-journal-cert-file: "},
		"a CA for no TLS": {plain + "&journal-ca-file=/c", "to-journal-ca-file: "},
		"a CA for no S3":  {job + "&blobs-ca-file=/c", "to-blobs-ca-file: it is for blobs in S3"},
		"two journals":    {job + "&journal=etcd://h:1/x&blobs=s3://abc", "has a journal already"},
		"parallel":        {job + "&parallel=0", "from 1 to 256"},
		"nothing to do":   {"/admin/migrate?cancel", `"none":true`},
		"a dry run":       {job + "&dry-run", `"contents":1,"bytes":5`},
	} {
		if got := get(s.Administration(), "POST", row.path).Body.String(); !strings.Contains(got, row.want) ||
			strings.Contains(got, "secret") {
			t.Errorf("%s: %s; want %s", name, got, row.want)
		}
	}
	remote := httptest.NewRecorder()
	s.Administration().ServeHTTP(remote, httptest.NewRequest("POST", job, nil))
	if remote.Code != http.StatusForbidden || !strings.Contains(remote.Body.String(), "socket") {
		t.Errorf("not by the socket: %d %s", remote.Code, remote.Body)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("what was refused, or only planned, has made the target")
	}
	used := filepath.Join(t.TempDir(), "blobs", "sha256", digest.FromString("x").Encoded())
	if err := errors.Join(os.MkdirAll(filepath.Dir(used), 0o755), os.WriteFile(used, []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	full := "/admin/migrate?data=" + url.QueryEscape(filepath.Join(used, "../../.."))
	if got := get(s.Administration(), "POST", full).Body.String(); !strings.Contains(got, "give an empty directory") ||
		strings.Contains(got, "run the same trow migrate again") {
		t.Errorf("a target with content: %s", got)
	}
	if got := get(s.Administration(), "POST", job).Body.String(); !strings.Contains(got, `"stage":"done"`) {
		t.Fatalf("the migration: %s", got)
	}
	w := upload(s, "team/app", "other")
	if w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), dir) ||
		!strings.Contains(w.Body.String(), `"UNSUPPORTED"`) {
		t.Errorf("a push after it: %d %s", w.Code, w.Body)
	}
	for _, job := range []string{"gc", "retention"} {
		if got := get(s.Administration(), "POST", "/admin/"+job).Body.String(); !strings.Contains(got, dir) {
			t.Errorf("%s after it: %s", job, got)
		}
	}
	said := false
	for _, check := range s.Checks() {
		ok, text := check()
		said = said || !ok && strings.Contains(text, "moves to data directory "+dir) &&
			strings.Contains(text, "cut short, run it again")
	}
	if !said {
		t.Error("/readyz?verbose does not say that everything moves, and what to do")
	}
	o.Data.DataDir = dir
	moved, _ := loaded(t, o)
	if w := upload(moved, "team/app", "other"); w.Code != http.StatusCreated {
		t.Errorf("a push to the target: %d %s", w.Code, w.Body)
	}
	if got := get(moved.API(), "GET", "/v2/team/app/blobs/"+digest.FromString("layer").String()); got.Code != 200 {
		t.Errorf("a pull from the target: %d %s", got.Code, got.Body)
	}
}

// TestNoServerOnAnUnfinishedTarget: it says what to do.
func TestNoServerOnAnUnfinishedTarget(t *testing.T) {
	o := options(t)
	s, x := loaded(t, o)
	if err := x.Seal(t.Context(), storage.Migration{ID: "id", From: "from"}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s, err := service.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if _, err := s.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "run trow migrate again") {
		t.Errorf("a start: %v", err)
	}
}
