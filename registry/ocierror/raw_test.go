package ocierror_test

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"

	"trow/registry/ocierror"
)

// TestAnswersOfNetHTTP as they are written to a connection, and what becomes of them.
func TestAnswersOfNetHTTP(t *testing.T) {
	const headers = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
	for answer, want := range map[string]string{
		"HTTP/1.1 400 Bad Request: missing required Host header" + headers +
			"400 Bad Request: missing required Host header": "not a valid HTTP request: missing required Host header",
		"HTTP/1.1 400 Bad Request" + headers + "400 Bad Request": "not a valid HTTP request",
		"HTTP/1.1 431 Request Header Fields Too Large" + headers +
			"431 Request Header Fields Too Large": "request header fields too large",
		"HTTP/1.1 501 Not Implemented" + headers +
			"Unsupported transfer encoding": "unsupported transfer encoding",
		"HTTP/1.1 417 Expectation Failed\r\nConnection: close\r\nContent-Length: 0\r\n\r\n": "expectation failed",
	} {
		resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(string(ocierror.RawAnswer([]byte(answer))))),
			nil)
		if err != nil {
			t.Fatalf("%s: %v", answer, err)
		}
		body, err := io.ReadAll(resp.Body)
		if got := string(body); err != nil || resp.StatusCode < 400 || !resp.Close ||
			got != `{"errors":[{"code":"UNSUPPORTED","message":"`+want+`"}]}` ||
			resp.Header.Get("Content-Type") != "application/json" ||
			resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d %v %s, %v", answer, resp.StatusCode, resp.Header, got, err)
		}
	}
	for answer, want := range map[string]bool{ // whether it gets headers
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n": true, "HTTP/1.1 100 Continue\r\n\r\n": true,
		"": false, "more of a body\n": false, "HTTP/1.1\n": true, "HTTP/1.1 400": false,
	} {
		got := string(ocierror.RawAnswer([]byte(answer)))
		if strings.Contains(got, "nosniff") != want || !want && got != answer ||
			want && !strings.HasPrefix(got, strings.SplitAfter(answer, "\n")[0]) {
			t.Errorf("%q becomes %q", answer, got)
		}
	}
}
