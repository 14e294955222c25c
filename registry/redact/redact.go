// Package redact removes from texts and errors what must not get into a log: secrets of robots, which people type where
// names belong, and URLs.
//
// # Words
//
// A secret of a robot is trow_ and 52 letters and digits of base32 (RFC 4648).
//
// # Invariants
//
// A text without such a secret is returned as it is, without an allocation: Secrets is called for each line of a log.
//
// # What it does not do
//
// It does not recognize passwords or tokens of other forms: no log has a field for them.
package redact

import (
	"errors"
	"net/url"
	"regexp"
	"strings"
)

// secret matches a secret, also one that was clipped or changed to lower case. Shorter words may be names:
// trow_backend.
var secret = regexp.MustCompile(`(?i)trow_[a-z2-7]{20,}`)

// Secrets returns the text with [REDACTED] in place of what follows trow_ in secrets.
func Secrets(text string) string {
	// Most texts have no underscore; looking for one costs nanoseconds.
	if strings.IndexByte(text, '_') < 0 || !secret.MatchString(text) {
		return text
	}
	return secret.ReplaceAllString(text, "trow_[REDACTED]")
}

// URL returns an error of net/http without the URL, which may contain a secret, or be made up.
func URL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}
