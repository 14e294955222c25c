package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNginxConfiguration(t *testing.T) {
	p := place{dir: "/w/it's", data: "/store", addr: "127.0.0.1:80", cert: "/c", key: "/k"}
	text, err := renderNginx(p, `{"a":"it's \"b\""}`)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"worker_processes 2;", "sendfile on;", `access_log '/w/it\'s/access.log';`, `pid '/w/it\'s/nginx.pid';`,
		"keepalive_requests 1000000000;", "root '/store';", "    listen 127.0.0.1:80;\n",
		`return 200 '{"a":"it\'s \\"b\\""}';`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("missing: %s in\n%s", want, text)
		}
	}
	if strings.Contains(text, "ssl") {
		t.Errorf("unexpected TLS:\n%s", text)
	}
	p.secure = true
	text, err = renderNginx(p, "{}")
	for _, want := range []string{"listen 127.0.0.1:80 ssl http2;", "ssl_certificate '/c';",
		"ssl_certificate_key '/k';"} {
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("%v: missing: %s in\n%s", err, want, text)
		}
	}
	if _, err := renderNginx(p, "a $b"); err == nil {
		t.Error("an answer with a variable was accepted")
	}
}

func TestPeerConfigurations(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for _, p := range newPeers() {
			at := place{dir: t.TempDir(), data: t.TempDir(), addr: "127.0.0.1:4567", secure: secure,
				cert: "/x/cert", key: "/x/key"}
			if err := os.WriteFile(filepath.Join(at.data, answerFile), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := p.launch(at)
			if err != nil {
				t.Errorf("%s: %v", p.name, err)
			}
			all := strings.Join(c.args, " ")
			files, _ := filepath.Glob(filepath.Join(at.dir, "*"))
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				all += "\n" + string(b)
			}
			if !strings.Contains(all, at.data) || !strings.Contains(all, "4567") ||
				!strings.Contains(all, "127.0.0.1") {
				t.Errorf("%s: directory or address is missing:\n%s", p.name, all)
			}
			certificate := strings.Contains(all, "/x/cert") && strings.Contains(all, "/x/key")
			if p.name != nameTrow && certificate != secure {
				t.Errorf("%s, secure %v:\n%s", p.name, secure, all)
			}
			if p.name == nameTrow && strings.Contains(all, "--no-tls") == secure {
				t.Errorf("Trow, secure %v: %s", secure, all)
			}
		}
	}
}

func TestUnsupportedTasks(t *testing.T) {
	can := map[string]int{}
	for _, p := range newPeers() {
		for _, x := range everything {
			if p.unsupported(x) == "" {
				can[p.name]++
			}
		}
	}
	for name, want := range map[string]int{
		nameTrow: len(everything), "distribution": len(everything) - 1, nameLimit: 2, nameNginx: 10,
	} {
		if can[name] != want {
			t.Errorf("%s is measured in %d tasks, want %d", name, can[name], want)
		}
	}
}

func TestLimit(t *testing.T) {
	dir := t.TempDir()
	server := httptest.NewServer(limit{dir})
	defer server.Close()
	do := func(method, url, body string) *http.Response {
		q, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := server.Client().Do(q)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp
	}
	uploads := server.URL + "/v2/bench/upload/blobs/uploads/"
	at := do("POST", uploads, "")
	if at.StatusCode != 202 || !strings.HasPrefix(at.Header.Get("Location"), "/v2/bench/upload/blobs/uploads/") {
		t.Fatalf("%d %v", at.StatusCode, at.Header)
	}
	sum := sha256.Sum256([]byte("content"))
	name := hex.EncodeToString(sum[:])
	if resp := do("PUT", server.URL+at.Header.Get("Location")+"?digest=sha256:"+name,
		"content"); resp.StatusCode != 201 {
		t.Errorf("a blob: %d", resp.StatusCode)
	}
	if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != "content" {
		t.Errorf("%q: %v", b, err)
	}
	if resp := do("PUT", server.URL+at.Header.Get("Location")+"?digest=sha256:"+name, "other"); resp.StatusCode != 500 {
		t.Errorf("another content: %d", resp.StatusCode)
	}
	if resp := do("GET", server.URL+"/v2/", ""); resp.StatusCode != 200 {
		t.Errorf("/v2/: %d", resp.StatusCode)
	}
	if resp := do("DELETE", uploads, ""); resp.StatusCode != 405 {
		t.Errorf("DELETE: %d", resp.StatusCode)
	}
}

func TestProxy(t *testing.T) {
	var reviewed []byte
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		switch {
		case err != nil:
			w.WriteHeader(500)
		case r.URL.Path == "/validate":
			reviewed = body
			fmt.Fprint(w, "verdict")
		case bytes.Equal(body, []byte("bad")):
			w.WriteHeader(400)
		default:
			w.WriteHeader(201)
		}
	}))
	defer behind.Close()
	p, err := newProxy(&server{url: behind.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	send := func(method, path, body string) {
		q, err := http.NewRequestWithContext(t.Context(), method, p.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	send("POST", "/v2/a/blobs/uploads/", "")
	send("PUT", "/v2/a/blobs/uploads/1?digest=x", "content")
	send("PUT", "/v2/a/blobs/uploads/2?digest=x", "bad")
	send("PUT", "/v2/a/blobs/uploads/3?digest=x", "content")
	send("PUT", "/v2/a/manifests/t", "content")
	own := strings.TrimPrefix(p.url, "http://")
	send("POST", "/validate?timeout=5s", "image "+own+"/a and "+own+"/b")
	if p.pushed(pushLarge) != 2 || p.pushed(pushImage) != 1 {
		t.Errorf("%d blobs, %d images", p.blobs, p.images)
	}
	host := strings.TrimPrefix(behind.URL, "http://")
	if want := "image " + host + "/a and " + host + "/b"; string(reviewed) != want || string(p.answer) != "verdict" {
		t.Errorf("%q was answered %q", reviewed, p.answer)
	}
}

func TestStraceSummary(t *testing.T) {
	got := readSummary([]byte(`% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.012345         123       100           fsync
 40.00    0.010000         100        50         2 fdatasync
------ ----------- ----------- --------- --------- ----------------
100.00    0.022345         148       150         2 total
`))
	if len(got) != 2 || got["fsync"] != 100 || got["fdatasync"] != 50 {
		t.Errorf("%v", got)
	}
	if f := (syncFigure{Operations: 50, Calls: got}); f.total() != 3 {
		t.Errorf("%v calls per push", f.total())
	}
	if got := readSummary(nil); len(got) != 0 {
		t.Errorf("without lines: %v", got)
	}
}

func TestReasonsAreOneLineWithoutAddresses(t *testing.T) {
	for out, want := range map[string]string{
		"":                     "",
		"go: one\ngo: two\n\n": "go: two",
		"go: module x.org/x: reading https://proxy.x.org/x/@v/list: 403 Forbidden\n": "go: module x.org/x: 403 " +
			"Forbidden",
		strings.Repeat("x", 400): strings.Repeat("x", 300) + "…",
	} {
		if got := lastLine([]byte(out)); got != want {
			t.Errorf("%q", got)
		}
	}
}

func TestMissingPeers(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	l := &laboratory{errOut: io.Discard,
		options: options{without: reasons{"zot": "too large"}, binaries: pairs{"olareg": "/x"}}}
	for name, want := range map[string]string{
		"zot":             "too large",
		"olareg":          "",
		"docker-registry": "not installed: apt-get install docker-registry",
		"distribution":    `go build github.com/distribution/distribution/v3/cmd/registry@v3.1.2: exec: "go"`,
		nameLimit:         "",
	} {
		p := &peer{name: name}
		if err := l.obtain(t.Context(), p); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.HasPrefix(p.missing, want) || want == "" && (p.missing != "" || p.program == "") {
			t.Errorf("%s: missing is %q, program %q", name, p.missing, p.program)
		}
	}
	if err := l.obtain(t.Context(), &peer{name: nameTrow}); err == nil {
		t.Error("no error without Trow")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.obtain(ctx, &peer{name: nameLimit}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestTheRootIsFound(t *testing.T) {
	root := t.TempDir()
	inner := filepath.Join(root, ".ci", "comparison")
	if err := os.MkdirAll(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Chdir(inner)
	if got, err := findRoot(); err == nil {
		t.Errorf("found %s without a go.mod", got)
	}
	for dir, module := range map[string]string{root: "module trow\n", inner: "module trow/comparison\n"} {
		if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(module), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := findRoot(); err != nil || got != root {
		t.Errorf("found %q, %v; want %s", got, err, root)
	}
}
