package ocierror

import "net/http"

// Values of headers, each a slice without room for more: an append makes a copy, so that all answers can share them.
var (
	noSniff   = []string{"nosniff"}
	noContent = []string{"default-src 'none'; sandbox; frame-ancestors 'none'"}
)

// secureLines are the headers of [Secure] as they are sent.
var secureLines = "X-Content-Type-Options: " + noSniff[0] + "\r\nContent-Security-Policy: " + noContent[0] + "\r\n"

// Secure makes a browser show nothing of an answer as a page: what clients push must not become a page, or a script, of
// the registry's origin.
func Secure(h http.Header) {
	h["X-Content-Type-Options"] = noSniff
	h["Content-Security-Policy"] = noContent
}
