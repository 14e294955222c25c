package ocierror

import (
	"bytes"
	"net/http"
	"slices"
)

// Values of headers, each a slice without room for more: an append makes a copy, so that all answers can share them.
var (
	noSniff   = []string{"nosniff"}
	noContent = []string{"default-src 'none'; sandbox; frame-ancestors 'none'"}
)

// Secure makes a browser show nothing of an answer as a page: what clients push must not become a page, or a script, of
// the registry's origin.
func Secure(h http.Header) {
	h["X-Content-Type-Options"] = noSniff
	h["Content-Security-Policy"] = noContent
}

// SecureAnswer adds the headers of Secure to an answer that no handler has made, as it is written to a connection.
// net/http answers what it cannot read as a request with one write.
func SecureAnswer(p []byte) []byte {
	end := bytes.IndexByte(p, '\n') + 1
	if end == 0 || !bytes.HasPrefix(p, []byte("HTTP/1.")) {
		return p
	}
	return slices.Concat(p[:end], []byte("X-Content-Type-Options: "+noSniff[0]+"\r\nContent-Security-Policy: "+
		noContent[0]+"\r\n"), p[end:])
}
