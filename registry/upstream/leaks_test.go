package upstream_test

import (
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"trow/registry/upstream"
)

// TestALoginIsNotSentToTheNextEndpoint of the same upstream, wherever the login is from and however that one asks.
func TestALoginIsNotSentToTheNextEndpoint(t *testing.T) {
	o := newOrigin(t)
	down := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
	}))
	defer down.Close()
	bin := t.TempDir()
	helper := "#!/bin/sh\nread host\necho '{\"Username\":\"alice\",\"Secret\":\"p4ssw0rd\"}'\n" // for every host
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-xyz"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for name, first := range map[string]upstream.Endpoint{
		"password": {Username: "alice", PasswordFile: o.passwordFile},
		"helper":   {Helper: "xyz"},
	} {
		for _, challenge := range []string{`Basic realm="r"`, `Bearer realm="%s/token",service="r"`} {
			asked := 0
			var next *httptest.Server
			next = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				asked++
				if user, _, ok := req.BasicAuth(); ok || strings.Contains(req.URL.RawQuery, "alice") {
					t.Errorf("%s, %s: it got the login of %s at %s", name, challenge, user, req.URL)
				}
				if req.URL.Path == "/token" {
					_, _ = w.Write([]byte(`{"token":"anonymous"}`))
					return
				}
				w.Header().Set("WWW-Authenticate", strings.ReplaceAll(challenge, "%s", next.URL))
				w.WriteHeader(http.StatusUnauthorized)
			}))
			entry := o.entry()
			first.URL = down.URL
			entry.Endpoints = []upstream.Endpoint{first, {URL: next.URL}}
			_, err := o.find(o.upstreams(upstream.Config{}, entry), "private").Manifest(t.Context(), "private", "v")
			if !errors.Is(err, upstream.ErrUnauthorized) || asked == 0 {
				t.Errorf("%s, %s: %v after %d requests", name, challenge, err, asked)
			}
			next.Close()
		}
	}
}

// TestATokenServerInsideIsNotAsked by an upstream without a login either: its realm is checked like a redirect.
func TestATokenServerInsideIsNotAsked(t *testing.T) {
	inside := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		t.Errorf("it was asked for %s", req.URL)
	}))
	defer inside.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(inside.URL, "https://"), ":")
	for _, realm := range []string{inside.URL + "/token", "https://localhost:" + port + "/token",
		"https://[::ffff:127.0.0.1]:" + port + "/token", "https://0.0.0.0:" + port + "/token",
		"https://2130706433:" + port + "/token", "https://169.254.169.254/token", "https://100.64.0.1/token",
		"https://[64:ff9b::a00:1]/token", "http://" + strings.TrimPrefix(inside.URL, "https://") + "/token",
		"https://[::1]:" + port + "/token"} {
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="r"`)
			w.WriteHeader(http.StatusUnauthorized)
		}))
		o := newOrigin(t)
		o.ca = write(t, "ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE",
			Bytes: s.Certificate().Raw})))
		entry := upstream.Entry{Host: "up.example", Endpoints: []upstream.Endpoint{{URL: s.URL}}, CAFile: o.ca}
		_, err := o.find(o.upstreams(upstream.Config{}, entry), "a").Manifest(t.Context(), "a", "v")
		if err == nil || !errors.Is(err, upstream.ErrRefused) && !strings.Contains(realm, "2130706433") {
			t.Errorf("%s: %v", realm, err)
		}
		s.Close()
	}
}
