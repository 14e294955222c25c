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
// may understand differently, is the last one of its connection (RFC 9112, section 6.1), without TLS or with the header
// of a proxy. A chunked request of a client without a proxy keeps its connection.
func TestALengthBesideAnEncodingEndsTheConnection(t *testing.T) {
	served := make(chan string, 10)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		served <- r.URL.Path + " " + string(b)
		fmt.Fprint(w, "ok")
	})
	s := start(t, modes[0], server.Options{Handler: h})
	secure := start(t, modes[1], server.Options{Handler: h})
	for _, header := range []string{"", "Via", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip"} {
		r, _ := http.NewRequest("POST", secure.url+"/v2/first", io.MultiReader(strings.NewReader("")))
		if header != "" {
			r.Header.Set(header, "x")
		}
		resp, err := secure.client.Do(r)
		if err != nil || resp.Close != (header != "") {
			t.Errorf("%q: %v, %v", header, resp, err)
		} else {
			resp.Body.Close()
		}
		<-served
	}
	for name, headers := range map[string]string{
		"length first":   "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
		"encoding first": "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
	} {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "POST /v2/first HTTP/1.1\r\nHost: x\r\n%s\r\n0\r\n\r\nGET /v2/second HTTP/1.1\r\nHost: "+
			"x\r\n\r\n",
			headers)
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		answer, err := io.ReadAll(c)
		if err != nil || strings.Count(string(answer), "HTTP/1.1 ") != 1 ||
			!strings.Contains(string(answer), "Connection: close\r\n") {
			t.Errorf("%s: %q, %v", name, answer, err)
		}
		for len(served) > 0 {
			if got := <-served; got != "/v2/first " {
				t.Errorf("%s: served %q", name, got)
			}
		}
	}
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

// TestALengthBesideAnEncodingSmugglesNothing: over TLS without a proxy the connection goes on, and nothing of the body
// becomes a request, nor anything of the first request part of the second.
func TestALengthBesideAnEncodingSmugglesNothing(t *testing.T) {
	served := make(chan string, 10)
	s := start(t, modes[1], server.Options{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		served <- fmt.Sprintf("%s %q %q", r.URL.Path, r.Header.Get("Authorization"), b)
		fmt.Fprint(w, "ok")
	})})
	const hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, headers := range map[string]string{
		"a length that ends in the body":     "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
		"a length that ends behind the body": "Transfer-Encoding: chunked\r\nContent-Length: 400\r\n",
		"a length of zero":                   "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
	} {
		c, err := tls.Dial("tcp", s.addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "POST /first HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YTpi\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n"+
			"GET /second HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", headers, len(hidden), hidden)
		c.SetReadDeadline(time.Now().Add(30 * time.Second))
		answer, err := io.ReadAll(c)
		if n := strings.Count(string(answer), "HTTP/1.1 200"); err != nil || n != 2 {
			t.Errorf("%s: %d answers, %v", name, n, err)
		}
		for _, want := range []string{fmt.Sprintf(`/first "Basic YTpi" %q`, hidden), `/second "" ""`} {
			select {
			case got := <-served:
				if got != want {
					t.Errorf("%s: served %s, want %s", name, got, want)
				}
			default:
				t.Errorf("%s: %s was not served", name, want)
			}
		}
	}
	if len(served) > 0 {
		t.Errorf("served %s too", <-served)
	}
}
