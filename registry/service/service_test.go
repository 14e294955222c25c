package service_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"trow/registry/auth"
	"trow/registry/service"
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
	if w := get(s.Administration(), "BREW", "/v2/"); w.Code != 405 || !strings.Contains(w.Body.String(), "UNSUPPORTED") {
		t.Errorf("an unknown method: %d %s", w.Code, w.Body)
	}
}

// TestAReloadIsWholeOrNothing: rules, limits and quotas change together.
func TestAReloadIsWholeOrNothing(t *testing.T) {
	o := options(t)
	s := open(t, o)
	if _, err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	next := o
	next.Auth.Rules = []auth.Rule{{Who: []string{"*"}, May: []string{"pull"}}}
	if err := service.Reload(s, next); err != nil || s.Guard().Policy().Rules() != 1 {
		t.Errorf("%v, %d rules", err, s.Guard().Policy().Rules())
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
