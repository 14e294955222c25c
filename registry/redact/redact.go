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
	"bytes"
	"errors"
	"io"
	"net/url"
	"regexp"
	"strings"
)

// secret matches a secret, also one that was clipped or changed to lower case, or whose underscore is encoded as in a
// URL, any number of times. Shorter words may be names: trow_backend.
var secret = regexp.MustCompile(`(?i)trow(?:_|%(?:25)*5f)[a-z2-7]{20,}`)

// Secrets returns the text with [REDACTED] in place of what follows trow_ in secrets.
func Secrets(text string) string {
	// Most texts have neither; looking for them costs nanoseconds.
	if strings.IndexByte(text, '_') < 0 && strings.IndexByte(text, '%') < 0 ||
		!begun(text) || !secret.MatchString(text) {
		return text
	}
	return secret.ReplaceAllString(text, "trow_[REDACTED]")
}

// begun reports whether a text has trow_ or trow%, which the regular expression takes 50 times as long to find.
func begun[T string | []byte](text T) bool {
	for i := len("trow"); i < len(text); i++ {
		if (text[i] == '_' || text[i] == '%') && text[i-1]|0x20 == 'w' && text[i-2]|0x20 == 'o' &&
			text[i-3]|0x20 == 'r' && text[i-4]|0x20 == 't' {
			return true
		}
	}
	return false
}

// Writer returns a writer that writes what it gets to w without secrets. Each Write must have a whole line, as those of
// zerolog have: it is the last step before the log, so that no line has to be thought of. Values that are cut to a
// length go through Secrets before: one that is cut too short is not recognized.
func Writer(w io.Writer) io.Writer { return writer{w} }

type writer struct{ to io.Writer }

func (w writer) Write(line []byte) (int, error) {
	// As in Secrets. JSON escapes nothing in a secret.
	if bytes.IndexByte(line, '_') < 0 && bytes.IndexByte(line, '%') < 0 || !begun(line) || !secret.Match(line) {
		return w.to.Write(line)
	}
	if _, err := w.to.Write(secret.ReplaceAll(line, []byte("trow_[REDACTED]"))); err != nil {
		return 0, err
	}
	return len(line), nil // of what it was given, or zerolog takes it for a short write
}

// URL returns an error of net/http without the URL, which may contain a secret, or be made up.
func URL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}
