package ocierror

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Raw returns the answer with e as it is written to a connection on which no handler answers, and which ends after it.
func Raw(e *Error) []byte {
	body := e.Body()
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\n"+secureLines+"Content-Type: application/json\r\nContent-Length: %d\r\n"+
		"Connection: close\r\n\r\n%s", e.HTTPStatus(), http.StatusText(e.HTTPStatus()), len(body), body)
}

// RawAnswer makes what net/http itself answers look like the answers of handlers; p is what it writes to a connection.
// An error gets the form of the specification, because clients show no other: net/http refuses what it cannot read as a
// request with one write of plain text, before its path is known, and closes the connection. Another answer gets the
// headers of [Secure].
func RawAnswer(p []byte) []byte {
	end := bytes.IndexByte(p, '\n') + 1
	if end == 0 || !bytes.HasPrefix(p, []byte("HTTP/1.")) {
		return p
	}
	line := strings.Fields(string(p[:end]))
	status, err := strconv.Atoi(line[min(1, len(line)-1)])
	if err != nil || status < http.StatusBadRequest {
		return append(append(p[:end:end], secureLines...), p[end:]...)
	}
	_, text, _ := bytes.Cut(p, []byte("\r\n\r\n"))
	return Raw(&Error{Code: Unsupported, Status: status, Message: reason(status, string(text))})
}

// reason says why net/http has refused a request, from the status and the text of its answer.
func reason(status int, text string) string {
	known := http.StatusText(status)
	why := strings.TrimPrefix(strings.TrimPrefix(text, fmt.Sprintf("%d %s", status, known)), ": ")
	switch {
	case status == http.StatusBadRequest && why == "":
		return "not a valid HTTP request"
	case status == http.StatusBadRequest:
		return "not a valid HTTP request: " + Clip(why)
	case why == "":
		return strings.ToLower(known)
	}
	return strings.ToLower(Clip(why))
}
