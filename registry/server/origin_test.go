package server_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"trow/registry/server"
)

// TestAnswersAreNoPages: each answer, from any handler, keeps a browser from showing it as a page.
func TestAnswersAreNoPages(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/panic":
			panic("boom")
		case "/v2/blob":
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<script>alert(1)</script>")
		default:
			http.NotFound(w, r)
		}
	})
	want := func(what string, got http.Header) {
		t.Helper()
		if got.Get("X-Content-Type-Options") != "nosniff" ||
			got.Get("Content-Security-Policy") != "default-src 'none'; sandbox; frame-ancestors 'none'" {
			t.Errorf("%s: %v", what, got)
		}
	}
	s := start(t, modes[1], server.Options{Handler: h})
	for _, path := range []string{"/v2/blob", "/panic", "/nothing"} {
		resp, _ := s.do(t, "GET", path, nil)
		want(path, resp.Header)
	}
	c, err := net.Dial("tcp", s.addr) // a client that speaks plain HTTP to the port of TLS
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	want("plain HTTP", resp.Header)
}

// ask sends a request with headers, name and value in turns, to a handler behind a server with these options.
func ask(t *testing.T, o server.Options, method, path string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	o.Log = zerolog.Nop()
	o.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "served") })
	s, err := server.New(o)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(method, "https://registry.example:31000"+path, nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w
}

// TestAPageOfAnotherOriginChangesNothing: a browser that can reach the registry does not push or delete for a page of
// another site. Clients that are not browsers are not affected.
func TestAPageOfAnotherOriginChangesNothing(t *testing.T) {
	for _, c := range []struct {
		method, path string
		headers      []string
		status       int
	}{
		{"DELETE", "/v2/app/manifests/v", nil, 200},
		{"DELETE", "/v2/app/manifests/v", []string{"Origin", "https://evil.example"}, 403},
		{"POST", "/v2/app/blobs/uploads/", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"POST", "/v2/app/blobs/uploads/", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"POST", "/v2/app/blobs/uploads/", []string{"Sec-Fetch-Site", "same-origin"}, 200},
		{"PUT", "/v2/app/manifests/v", []string{"Origin", "https://registry.example:31000"}, 200},
		{"POST", "/validate", []string{"Origin", "https://evil.example"}, 403},
		{"GET", "/v2/app/manifests/v", []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}, 200},
		{"HEAD", "/v2/app/manifests/v", []string{"Sec-Fetch-Site", "cross-site"}, 200},
	} {
		w := ask(t, server.Options{}, c.method, c.path, c.headers...)
		isOCI := strings.Contains(w.Body.String(), `"code":"DENIED"`)
		if w.Code != c.status || w.Code == 403 && isOCI != strings.HasPrefix(c.path, "/v2") {
			t.Errorf("%s %s %v: %d %s", c.method, c.path, c.headers, w.Code, w.Body)
		}
		if w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s %s: %v", c.method, c.path, w.Header())
		}
	}
}

// TestOnlyListedOriginsUseTheAPI from a page in a browser, and without cookies.
func TestOnlyListedOriginsUseTheAPI(t *testing.T) {
	o := server.Options{CORSOrigins: []string{"https://ui.example:8443"}, TokenPath: "/token"}
	const listed, preflight = "https://ui.example:8443", "Access-Control-Request-Method"
	for _, c := range []struct {
		method, path, origin string
		preflight, allowed   bool
		status               int
	}{
		{"OPTIONS", "/v2/app/manifests/v", listed, true, true, 204},
		{"OPTIONS", "/token", listed, true, true, 204},
		{"GET", "/v2/_catalog", listed, false, true, 200},
		{"DELETE", "/v2/app/manifests/v", listed, false, true, 200},
		{"OPTIONS", "/v2/app/manifests/v", listed, false, true, 200},
		{"OPTIONS", "/v2/app/manifests/v", "https://evil.example", true, false, 200}, // the handler refuses the method
		{"GET", "/v2/_catalog", "https://evil.example", false, false, 200},
		{"GET", "/v2/_catalog", "https://ui.example", false, false, 200},
		{"GET", "/v2/_catalog", "null", false, false, 200},
		{"GET", "/v2/_catalog", "*", false, false, 200},
		{"DELETE", "/v2/app/manifests/v", "https://evil.example", false, false, 403},
		{"GET", "/metrics", listed, false, false, 200},
		{"OPTIONS", "/admin/gc", listed, true, false, 200},
	} {
		headers := []string{"Origin", c.origin, "Sec-Fetch-Site", "cross-site"}
		if c.preflight {
			headers = append(headers, preflight, "DELETE", "Access-Control-Request-Headers", "authorization")
		}
		w := ask(t, o, c.method, c.path, headers...)
		h := w.Header()
		if got := h.Get("Access-Control-Allow-Origin"); w.Code != c.status || (got != "") != c.allowed ||
			c.allowed && got != listed || h.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s %s of %s: %d %v", c.method, c.path, c.origin, w.Code, h)
		}
		if w.Code == 204 && (!strings.Contains(h.Get("Access-Control-Allow-Headers"), "Authorization") ||
			!strings.Contains(h.Get("Access-Control-Allow-Methods"), "DELETE")) {
			t.Errorf("preflight: %v", h)
		}
		if strings.HasPrefix(c.path, "/v2") && h.Get("Vary") != "Origin" {
			t.Errorf("%s: a cache may mix up the answers: %v", c.path, h)
		}
	}
	for _, origin := range []string{"*", "https://*.example", "http://ui.example", "https://ui.example/", "ui.example",
		"https://UI.example", "https://ui.example:443", "https://", "https://a b", "https://u@ui.example", "null"} {
		bad := server.Options{CORSOrigins: []string{origin}, StallTimeout: time.Minute, LogLevel: "info"}
		if err := bad.Validate(); err == nil || !strings.HasPrefix(err.Error(), "cors-origins: ") {
			t.Errorf("%q: %v", origin, err)
		}
	}
	good := server.Options{CORSOrigins: []string{"https://ui.example", listed}, StallTimeout: time.Minute,
		LogLevel: "info"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
}

// TestALengthBesideAnEncodingEndsTheConnection: a request with both Content-Length and Transfer-Encoding, which a proxy
// may understand differently, is the last one of its connection (RFC 9112, section 6.1), and nothing that follows is
// served. A chunked request without a length keeps its connection.
func TestALengthBesideAnEncodingEndsTheConnection(t *testing.T) {
	const hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
	post := func(headers string) string {
		return fmt.Sprintf("POST /first HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YTpi\r\n%s"+
			"\r\n%x\r\n%s\r\n0\r\n\r\n", headers, len(hidden), hidden)
	}
	const (
		chunked = "Transfer-Encoding: chunked\r\n"
		second  = "GET /second HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	)
	first := fmt.Sprintf("/first %q %q", "Basic YTpi", hidden)
	each(t, func(t *testing.T, m mode) {
		served := make(chan string, 10)
		s := start(t, m, server.Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			served <- fmt.Sprintf("%s %q %q", r.URL.Path, r.Header.Get("Authorization"), b)
			fmt.Fprint(w, "ok")
		})})
		for name, tt := range map[string]struct {
			sent string
			want []string
		}{
			"length first":             {post("Content-Length: 4\r\n"+chunked) + second, []string{first}},
			"encoding first":           {post(chunked+"content-length: 4\r\n") + second, []string{first}},
			"a length behind the body": {post(chunked+"CONTENT-LENGTH:400\r\n") + second, []string{first}},
			"a length of zero": {post("Content-Length: 0\r\ntransfer-encoding:\tchunked\r\n") + second,
				[]string{first}},
			"with other lines": {post("Via: 1.1 x\r\nContent-Length: 4\r\nA: b\r\n"+chunked+"C: d\r\n") + second,
				[]string{first}},
			"chunked": {post(chunked) + second, []string{first, `/second "" ""`}},
			"chunked, with a proxy and similar names": {
				post("Via: 1.1 x\r\nX-Content-Length: 4\r\nContent-Lengths: 4\r\n"+chunked) + second,
				[]string{first, `/second "" ""`}},
			// Its headers come in the buffer of the request before, where they are not counted.
			"after another request": {"GET /zero HTTP/1.1\r\nHost: x\r\n\r\n" +
				post(chunked+"Content-Length: 4\r\n") + second, []string{`/zero "" ""`, first}},
		} {
			for _, size := range []int{1 << 20, 7, 1} { // of what is written at once
				c := raw(t, s, m)
				for p := range slices.Chunk([]byte(tt.sent), size) {
					if _, err := c.Write(p); err != nil {
						break // it has ended, as it should
					}
				}
				c.SetReadDeadline(time.Now().Add(30 * time.Second))
				// What was sent after the last request may make the kernel reset the connection.
				answer, err := io.ReadAll(c)
				if n := strings.Count(string(answer), "HTTP/1.1 200"); n != len(tt.want) ||
					!strings.Contains(string(answer), "Connection: close\r\n") {
					t.Errorf("%s, %d bytes at once: %d answers, %v: %q", name, size, n, err, answer)
				}
				for _, want := range tt.want {
					select {
					case got := <-served:
						if got != want {
							t.Errorf("%s: served %s, want %s", name, got, want)
						}
					default:
						t.Errorf("%s: %s was not served", name, want)
					}
				}
				for len(served) > 0 {
					t.Errorf("%s: served %s too", name, <-served)
				}
			}
		}
	})
}

// TestAnEncodingOfHTTP10EndsTheConnection: net/http reads such a request by its length, and a proxy may read it as
// chunked (RFC 9112, section 6.1). What follows was served. HTTP/1.0 without an encoding keeps its connection.
func TestAnEncodingOfHTTP10EndsTheConnection(t *testing.T) {
	each(t, func(t *testing.T, m mode) {
		s := start(t, m, server.Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, "ok")
		})})
		for headers, want := range map[string]int{"": 2, "Content-Length: 3\r\nX-Transfer-Encoding: chunked\r\n": 2,
			"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n":  1,
			"transfer-encoding:\tCHUNKED\r\ncontent-length: 3\r\n": 1, "Transfer-Encoding: chunked\r\n": 1} {
			c := raw(t, s, m)
			body := ""
			if strings.Contains(strings.ToLower(headers), "content-length") {
				body = "abc"
			}
			sent := "POST /first HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n" + headers + "\r\n" + body +
				"GET /second HTTP/1.0\r\nHost: x\r\n\r\n"
			_, _ = c.Write([]byte(sent)) // it may have ended, as it should
			c.SetReadDeadline(time.Now().Add(30 * time.Second))
			answer, err := io.ReadAll(c)
			if n := strings.Count(string(answer), " 200 OK"); n != want {
				t.Errorf("%q: %d answers, want %d (%v): %q", headers, n, want, err, answer)
			}
		}
	})
}

// raw connects to a server.
func raw(t *testing.T, s *running, m mode) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if m.tls {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	}
	return c
}

// TestProbesHaveAListenerOfTheirOwn that answers them alone.
func TestProbesHaveAListenerOfTheirOwn(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := server.Options{ProbeListen: free.Addr().String(), Probes: new(server.Probes)}
	if err := o.ServeProbes(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "probe-listen: ") {
		t.Errorf("an address in use: %v", err)
	}
	free.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- o.ServeProbes(ctx) }()
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 503, "/v2/": 404, "/metrics": 404} {
		var resp *http.Response
		for range 100 { // until it listens
			if resp, err = http.Get("http://" + o.ProbeListen + path); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil || resp.StatusCode != want {
			t.Fatalf("%s: %v, %v; want %d", path, resp, err, want)
		}
		resp.Body.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := new(server.Options).ServeProbes(t.Context()); err != nil {
		t.Errorf("without the setting: %v", err)
	}
}

// TestAPrefix: requests come with it or without it.
func TestAPrefix(t *testing.T) {
	s, err := server.New(server.Options{Log: zerolog.Nop(), Prefix: "/some/path",
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.EscapedPath()) })})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/some/path/v2/a/tags/list?n=1": "/v2/a/tags/list", "/v2/a/tags/list": "/v2/a/tags/list", "/some/path": "/",
		"/some/path/": "/", "/some/pathv2/": "/some/pathv2/", "/some/path/v2/a%2Fb": "/v2/a%2Fb", "/some": "/some",
		"/%73ome/path/v2/": "/%73ome/path/v2/",
	} {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Body.String() != want {
			t.Errorf("%s: %s, want %s", path, w.Body, want)
		}
	}
}
