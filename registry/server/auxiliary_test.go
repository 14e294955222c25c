package server_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"trow/registry/server"
)

// TestAnswersOfAuxiliaryListenersAreNoPages: those of handlers, and those of net/http before there is a request. A body
// that looks like an answer stays as it is.
func TestAnswersOfAuxiliaryListenersAreNoPages(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const line = "HTTP/1.1 in a body\n"
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- server.ServeAuxiliary(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, line)
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, line)
		}), nil)
	}()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	for request, want := range map[string]int{
		get:                                     200,
		"GET / HTTP/1.1\r\n\r\n":                400,
		"rubbish\r\n\r\n":                       400,
		"GET / HTTP/3.0\r\n\r\n":                505,
		get + "GET / HTTP/1.1\r\n\r\n":          400, // after a request that was answered
		"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n": 200,
		"GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 2<<20) + "\r\n\r\n": 431,
		"GET / HTTP/1.1\r\nHost: x\r\nExpect: more\r\n\r\n":                          417,
		"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n":               501,
	} {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		go io.WriteString(conn, request)
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, nil)
		if strings.HasPrefix(request, get) && err == nil {
			if body, err := io.ReadAll(resp.Body); string(body) != line+line {
				t.Errorf("%q, %v", body, err)
			}
			if len(request) > len(get) {
				resp, err = http.ReadResponse(in, nil)
			}
		}
		if err != nil {
			t.Errorf("%.40q: %v", request, err)
		} else if resp.StatusCode != want || len(resp.Header["X-Content-Type-Options"]) != 1 ||
			resp.Header.Get("Content-Security-Policy") != "default-src 'none'; sandbox; frame-ancestors 'none'" {
			t.Errorf("%.40q: %d, %v; want %d", request, resp.StatusCode, resp.Header, want)
		}
		_ = conn.Close()
	}
}
