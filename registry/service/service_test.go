package service_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"trow/registry/auth"
	"trow/registry/maintenance"
	"trow/registry/namespace"
	"trow/registry/service"
	"trow/storage"
)

// options returns the default settings for a new data directory, which does not exist yet.
func options(t *testing.T) service.Options {
	t.Helper()
	var o service.Options
	o.AddFlags(pflag.NewFlagSet("x", pflag.ContinueOnError))
	o.Data.DataDir = filepath.Join(t.TempDir(), "data")
	o.Names, o.Log = []string{"trow.kube-public:31000"}, zerolog.New(&bytes.Buffer{})
	return o
}

func open(t *testing.T, o service.Options) *service.Service {
	t.Helper()
	s, err := service.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// get asks a handler as a client of the socket does.
func get(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, path, nil)
	h.ServeHTTP(w, r.WithContext(auth.WithSocket(r.Context())))
	return w
}

// TestTheAuditLogMayBeInTheDataDirectory, which does not exist at the first start.
func TestTheAuditLogMayBeInTheDataDirectory(t *testing.T) {
	o := options(t)
	o.Audit.AuditLog = filepath.Join(o.Data.DataDir, "audit.log")
	open(t, o)
	if _, err := os.Stat(o.Audit.AuditLog); err != nil {
		t.Error(err)
	}
}

func TestASecondServiceChangesNothing(t *testing.T) {
	o := options(t)
	open(t, o)
	o.Audit.AuditLog = filepath.Join(t.TempDir(), "audit.log")
	if _, err := service.Open(o); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second service: %v", err)
	}
	if _, err := os.Stat(o.Audit.AuditLog); err == nil {
		t.Error("it has made its audit log")
	}
}

// TestWhileLoading: requests are answered in the form of their path, and nothing is called unknown.
func TestWhileLoading(t *testing.T) {
	s := open(t, options(t))
	for method, path := range map[string]string{"GET": "/v2/a/manifests/v", "POST": "/admin/gc"} {
		w := get(s.Administration(), method, path)
		oci := strings.Contains(w.Body.String(), `"errors":[{"code"`)
		if w.Code != 503 || w.Header().Get("Retry-After") == "" || oci != strings.HasPrefix(path, "/v2/") {
			t.Errorf("%s %s: %d %v %s", method, path, w.Code, w.Header(), w.Body)
		}
	}
	if _, err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w := get(s.Administration(), "GET", "/v2/a/manifests/v"); w.Code != 404 {
		t.Errorf("after it: %d %s", w.Code, w.Body)
	}
	if w := get(s.Administration(), "BREW", "/v2/"); w.Code != 405 ||
		!strings.Contains(w.Body.String(), "UNSUPPORTED") {
		t.Errorf("an unknown method: %d %s", w.Code, w.Body)
	}
}

// TestAReloadIsWholeOrNothing: what is read again changes together.
func TestAReloadIsWholeOrNothing(t *testing.T) {
	o := options(t)
	s := open(t, o)
	if _, err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := o
	next.Auth.Rules = []auth.Rule{{Who: []string{"*"}, May: []string{"pull"}}}
	next.Upstream.CacheSize = "7Mi"
	if err := service.Reload(s, next); err != nil || s.Guard().Policy().Rules() != 1 {
		t.Errorf("%v, %d rules", err, s.Guard().Policy().Rules())
	}
	if err := testutil.CollectAndCompare(s, strings.NewReader("# HELP trow_cache_limit_bytes How much the content of "+
		"other registries may take.\n# TYPE trow_cache_limit_bytes gauge\ntrow_cache_limit_bytes 7.340032e+06\n"),
		"trow_cache_limit_bytes"); err != nil {
		t.Error(err)
	}
	bad := o
	bad.Limit.Quotas = append(bad.Limit.Quotas, bad.Limit.Quotas...)
	bad.Auth.Rules = []auth.Rule{{Who: []string{"nonsense"}}}
	if err := service.Reload(s, bad); err == nil || s.Guard().Policy().Rules() != 1 {
		t.Errorf("%v, %d rules", err, s.Guard().Policy().Rules())
	}
}

func TestRunEndsWithTheContext(t *testing.T) {
	s := open(t, options(t))
	if _, err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestRobotsOfAnEarlierVersion go on after an upgrade, and are in the copy of the journal before their file is gone;
// trow rebuild keeps them.
func TestRobotsOfAnEarlierVersion(t *testing.T) {
	o := options(t)
	o.Auth.User, o.Auth.Password = "owner", "p"
	dir := o.Data.DataDir
	if err := os.MkdirAll(filepath.Join(dir, "auth"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "auth", "robots.json")
	content := fmt.Sprintf(`[{"name":"ci","repositories":["**"],"actions":["pull"],"sha256":"%x"}]`,
		sha256.Sum256([]byte("trow_x")))
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/v2/", nil)
	r.Header.Set("Authorization", "Bearer trow_x")
	run := func() {
		t.Helper()
		s, err := service.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Guard().Identify(r); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("while it is loading: %v", err)
		}
		if _, err := s.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		if who, err := s.Guard().Identify(r); err != nil || who.Name != "robot:ci" {
			t.Errorf("%v", err)
		}
		if _, err := os.Stat(file); err == nil {
			t.Error("the file is still there")
		}
		copied, err := os.ReadFile(filepath.Join(dir, "journal.backup"))
		if err != nil || !bytes.Contains(copied, []byte("auth/robot/ci")) {
			t.Errorf("the copy of the journal does not have the robot: %v", err)
		}
	}
	run()
	run()
	if err := os.WriteFile(filepath.Join(dir, "journal.db"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	parse := func([]byte) (m storage.Manifest, parts map[digest.Digest]int64, ok bool) { return m, nil, false }
	done, err := maintenance.Rebuild(t.Context(), dir, maintenance.RebuildOptions{Into: "recovered", Parse: parse})
	if err != nil || done.Damage == "" || done.Backup.IsZero() {
		t.Fatalf("%+v, %v", done, err)
	}
	run()
}

// TestRepositoriesOfOtherRegistriesAreNamedAtStart: those that were pushed before f/ had a meaning, too.
func TestRepositoriesOfOtherRegistriesAreNamedAtStart(t *testing.T) {
	o := options(t)
	var log bytes.Buffer
	o.Log = zerolog.New(&log)
	s := open(t, o)
	if _, err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(log.String(), "below f/") {
		t.Errorf("without any: %s", &log)
	}
	d := digest.FromString("x").String()
	for _, repo := range []string{"f/docker.io/library/nginx", "f/team/app", "team/f"} {
		r := httptest.NewRequest("POST", "/v2/"+repo+"/blobs/uploads/?digest="+d, strings.NewReader("x"))
		w := httptest.NewRecorder()
		s.Administration().ServeHTTP(w, r.WithContext(auth.WithSocket(r.Context())))
		if w.Code != 201 {
			t.Fatalf("%s: %d %s", repo, w.Code, w.Body)
		}
	}
	s.Close()
	s = open(t, o)
	if _, err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), `"count":2,"repositories":["f/docker.io/library/nginx","f/team/app"]`) {
		t.Errorf("%s", &log)
	}
}

func TestAHostOfOursStandsForAnotherRegistry(t *testing.T) {
	o := options(t)
	o.Namespaces.Sites = []namespace.Site{{Host: o.Names[0], Upstream: "docker.io"}}
	_, err := service.Open(o)
	if err == nil || !strings.Contains(err.Error(), "namespaces: entry 1: host: trow.kube-public") {
		t.Errorf("a name of the registry: %v", err)
	}
	o.Namespaces.Sites[0].Host = "hub.trow.example"
	s := open(t, o)
	if _, err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	push := httptest.NewRequest("POST", "/v2/f/docker.io/library/nginx/blobs/uploads/?digest="+
		digest.FromString("x").String(), strings.NewReader("x"))
	w := httptest.NewRecorder()
	s.Administration().ServeHTTP(w, push.WithContext(auth.WithSocket(push.Context())))
	pull := httptest.NewRequest("GET", "/v2/library/nginx/blobs/"+digest.FromString("x").String(), nil)
	pull.Host = "hub.trow.example"
	w = httptest.NewRecorder()
	s.API().ServeHTTP(w, pull)
	if w.Code != 200 || w.Body.String() != "x" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
