package upstream_test

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/upstream"
)

const (
	imageType = "application/vnd.oci.image.manifest.v1+json"
	image     = `{"schemaVersion":2,"mediaType":"` + imageType + `","config":{},"layers":[]}`
	layer     = "the bytes of a layer"
)

// origin is a registry over TLS that wants tokens for alice, whose password is in a file, and keeps blobs elsewhere.
type origin struct {
	*testing.T
	registry, elsewhere *httptest.Server
	ca, passwordFile    string
	realm               atomic.Pointer[string] // of its challenges
	given               atomic.Int64           // tokens

	mu       sync.Mutex
	password string
	leaked   []string // the logins that arrived where blobs are
}

func newOrigin(t *testing.T) *origin {
	t.Helper()
	o := &origin{T: t, password: "p4ssw0rd", passwordFile: write(t, "password", "p4ssw0rd\n")}
	o.elsewhere = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, h := range []string{"Authorization", "Cookie", "Referer"} {
			if v := req.Header.Get(h); v != "" {
				o.leaked = append(o.leaked, h+": "+v)
			}
		}
		w.Header().Set("ETag", `"v"`)
		http.ServeContent(w, req, "", time.Time{}, strings.NewReader(layer))
	}))
	t.Cleanup(o.elsewhere.Close)
	o.registry = httptest.NewTLSServer(o)
	t.Cleanup(o.registry.Close)
	realm := o.registry.URL + "/token"
	o.realm.Store(&realm)
	var pems strings.Builder
	for _, s := range []*httptest.Server{o.registry, o.elsewhere} {
		if err := pem.Encode(&pems, &pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}); err != nil {
			t.Fatal(err)
		}
	}
	o.ca = write(t, "ca.crt", pems.String())
	return o
}

func (o *origin) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	o.mu.Lock()
	known := user == "alice" && password == o.password
	o.mu.Unlock()
	token := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
	switch {
	case req.URL.Path == "/token" && user != "" && !known:
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"errors":[{"code":"UNAUTHORIZED","message":"%s:%s is wrong"}]}`, user, password)
	case req.URL.Path == "/token":
		o.given.Add(1)
		fmt.Fprintf(w, `{"token":"%s of %s","expires_in":300}`, req.URL.Query().Get("scope"), user)
	case token == "" || !strings.Contains(token, strings.Split(strings.TrimPrefix(req.URL.Path, "/v2/"), "/")[0]+":") ||
		!strings.HasSuffix(token, "alice") && !strings.Contains(token, ":open:"):
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s",service="r"`, *o.realm.Load()))
		w.WriteHeader(http.StatusUnauthorized)
	case strings.Contains(req.URL.Path, "/blobs/"):
		http.Redirect(w, req, o.elsewhere.URL+"/signed", http.StatusTemporaryRedirect)
	default:
		w.Header().Set("Content-Type", imageType)
		w.Header().Set("Docker-Content-Digest", digest.FromString(image).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(image)))
		_, _ = io.WriteString(w, image)
	}
}

// entry is the entry of upstreams for it.
func (o *origin) entry() upstream.Entry {
	return upstream.Entry{Host: "up.example", CAFile: o.ca,
		Also:      []string{strings.TrimPrefix(o.elsewhere.URL, "https://")},
		Endpoints: []upstream.Endpoint{{URL: o.registry.URL, Username: "alice", PasswordFile: o.passwordFile}}}
}

func (o *origin) upstreams(c upstream.Config, entries ...upstream.Entry) *upstream.Upstreams {
	o.Helper()
	u := upstream.New(c)
	if err := u.Set(entries); err != nil {
		o.Fatal(err)
	}
	return u
}

func (o *origin) find(u *upstream.Upstreams, repo string) *upstream.Upstream {
	o.Helper()
	up, _, err := u.Find("up.example", repo)
	if err != nil {
		o.Fatal(err)
	}
	return up
}

// TestALoginGoesToItsEndpointAlone: with it manifests come, and blobs from elsewhere come without it. A reload keeps
// the tokens, and a password that changes is read again.
func TestALoginGoesToItsEndpointAlone(t *testing.T) {
	o := newOrigin(t)
	u := o.upstreams(upstream.Config{}, o.entry())
	pull := func() {
		t.Helper()
		m, err := o.find(u, "private").Manifest(t.Context(), "private", "v")
		if err != nil || string(m.Body) != image {
			t.Fatalf("%s, %v", m.Body, err)
		}
		b, err := o.find(u, "private").Blob(t.Context(), "private", digest.FromString(layer), 0, "")
		if err != nil {
			t.Fatal(err)
		}
		defer b.Body.Close()
		if body, err := io.ReadAll(b.Body); err != nil || string(body) != layer || b.Size != int64(len(layer)) {
			t.Errorf("%s, %v", body, err)
		}
		// Elsewhere continues too, if it is the same.
		for etag, from := range map[string]int64{`"v"`: 5, "": 5, `"w"`: 0} {
			b, err := o.find(u, "private").Blob(t.Context(), "private", digest.FromString(layer), 5, etag)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(b.Body); err != nil || b.From != from || string(body) != layer[from:] ||
				b.ETag != `"v"` {
				t.Errorf("%s: %s from %d, %v", etag, body, b.From, err)
			}
			b.Body.Close()
		}
	}
	pull()
	pull()
	if n := o.given.Load(); n != 1 || len(o.leaked) > 0 {
		t.Errorf("%d tokens; elsewhere arrived %v", n, o.leaked)
	}
	if err := u.Set([]upstream.Entry{{Host: "quay.io"}, o.entry()}); err != nil {
		t.Fatal(err)
	}
	if pull(); o.given.Load() != 1 {
		t.Error("a reload has lost the token")
	}
	if err := u.Set([]upstream.Entry{{Host: "docker.io", As: "a/b"}}); err == nil {
		t.Error("invalid settings are accepted")
	}
	if pull(); o.given.Load() != 1 {
		t.Error("a reload that fails has changed something")
	}
	changed := o.entry()
	changed.Realm = []string{"login.example"}
	if err := u.Set([]upstream.Entry{changed}); err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	o.password = "n3w"
	o.mu.Unlock()
	_, err := o.find(u, "private").Manifest(t.Context(), "private", "v")
	if !errors.Is(err, upstream.ErrUnauthorized) || strings.Contains(fmt.Sprintf("%+v", err), "p4ssw0rd") {
		t.Errorf("with the old password: %v", err)
	}
	if err := os.WriteFile(o.passwordFile, []byte("n3w"), 0o600); err != nil {
		t.Fatal(err)
	}
	if pull(); o.given.Load() != 2 {
		t.Errorf("%d tokens", o.given.Load())
	}
}

// TestWhereLoginsAre: each way to give one, and errors that name the entry and no secret.
func TestWhereLoginsAre(t *testing.T) {
	o := newOrigin(t)
	own := strings.TrimPrefix(o.registry.URL, "https://")
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, own,
		base64.StdEncoding.EncodeToString([]byte("alice:p4ssw0rd")))
	bin := t.TempDir()
	helper := "#!/bin/sh\nread host\necho '{\"Username\":\"alice\",\"Secret\":\"p4ssw0rd\"}'\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-xyz"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	secrets := func(_ context.Context, namespace, name string) ([]byte, error) {
		if namespace != "infra" {
			return nil, errors.New("forbidden")
		}
		return []byte(map[string]string{"pull": config, "bad": `{"auths":{"x":{"auth":"p4ssw0rd"}}}`,
			"none": "p4ssw0rd"}[name]), nil
	}
	for name, c := range map[string]struct {
		endpoint upstream.Endpoint
		secrets  upstream.Secrets
		want     string
	}{
		"docker-config":          {upstream.Endpoint{DockerConfig: write(t, "config.json", config)}, nil, ""},
		"helper":                 {upstream.Endpoint{Helper: "xyz"}, nil, ""},
		"secret":                 {upstream.Endpoint{Secret: "infra/pull"}, secrets, ""},
		"none":                   {upstream.Endpoint{}, nil, "401"},
		"a helper that is not":   {upstream.Endpoint{Helper: "nothing"}, nil, "docker-credential-nothing"},
		"another's secret":       {upstream.Endpoint{Secret: "other/pull"}, secrets, "secret: other/pull: forbidden"},
		"no cluster":             {upstream.Endpoint{Secret: "infra/pull"}, nil, "cannot be read by this server"},
		"a secret that is not":   {upstream.Endpoint{Secret: "infra/none"}, secrets, "is not of the type"},
		"a secret that is wrong": {upstream.Endpoint{Secret: "infra/bad"}, secrets, ""},
	} {
		entry := o.entry()
		c.endpoint.URL = o.registry.URL
		entry.Endpoints = []upstream.Endpoint{c.endpoint}
		u := o.upstreams(upstream.Config{Secrets: c.secrets}, entry)
		_, err := o.find(u, "private").Head(t.Context(), "private", "v")
		text := fmt.Sprint(err)
		for e := errors.Unwrap(err); e != nil; e = errors.Unwrap(e) {
			text += e.Error()
		}
		if ue, ok := errors.AsType[*upstream.Error](err); ok && ue.Cause != nil {
			text += ue.Cause.Error()
		}
		if strings.Contains(text, "p4ssw0rd") {
			t.Errorf("%s: %s", name, text)
		}
		if name != "a secret that is wrong" && (c.want == "") != (err == nil) || !strings.Contains(text, c.want) {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// TestALoginIsNotSentToAnotherRealm: a registry that is taken over cannot have it sent elsewhere.
func TestALoginIsNotSentToAnotherRealm(t *testing.T) {
	o := newOrigin(t)
	evil := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		t.Errorf("it got %v", req.Header)
	}))
	defer evil.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(evil.URL, "https://"), ":")
	for _, realm := range []string{"https://localhost:" + port, "http://" + strings.TrimPrefix(evil.URL, "https://"),
		"https://evil.example/token", "https://169.254.169.254/token"} {
		o.realm.Store(&realm)
		_, err := o.find(o.upstreams(upstream.Config{}, o.entry()), "private").Manifest(t.Context(), "private", "v")
		if !errors.Is(err, upstream.ErrRefused) {
			t.Errorf("%s: %v", realm, err)
		}
	}
}

// TestRedirectsOfAnUpstream lead nowhere that is inside, not secure, or endless.
func TestRedirectsOfAnUpstream(t *testing.T) {
	inside := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("it was asked")
	}))
	defer inside.Close()
	for _, to := range []string{inside.URL, "http://" + strings.TrimPrefix(inside.URL, "https://"), "/v2/a/manifests/v",
		"https://[::ffff:169.254.169.254]/", "file:///etc/passwd", "https://me:secret@registry.example/"} {
		s := httptest.NewTLSServer(http.RedirectHandler(to, http.StatusFound))
		o := newOrigin(t)
		entry := upstream.Entry{Host: "up.example", Endpoints: []upstream.Endpoint{{URL: s.URL}}, CAFile: o.ca}
		// All httptest servers have the same certificate.
		_, err := o.find(o.upstreams(upstream.Config{}, entry), "a").Manifest(t.Context(), "a", "v")
		if !errors.Is(err, upstream.ErrRefused) && !(strings.HasPrefix(to, "file") && err != nil) {
			t.Errorf("%s: %v", to, err)
		}
		if strings.Contains(fmt.Sprint(err), "secret") {
			t.Error(err)
		}
		s.Close()
	}
}
