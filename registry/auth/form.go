package auth

import (
	"bytes"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strings"
)

const (
	// maxForm bounds the body of a POST to the token endpoint, in bytes.
	maxForm = 64 << 10
	// formFactor is how many times its size a form takes in memory while it is parsed. One of short names takes most.
	formFactor = 32
)

// Bodies reads the bodies of requests that are kept in memory. Read reads that of r, of at most most bytes, and
// reserves factor times its size until release is called. Errors: *http.MaxBytesError; one with a method RetryAfter()
// int, in seconds, if there is no memory; those of the body. On an error there is nothing to release.
type Bodies interface {
	Read(into *bytes.Buffer, w http.ResponseWriter, r *http.Request, most int64, factor int) (release func(), err error)
}

// unboundedBodies are Bodies without a bound for all together, for a Guard that has no others.
type unboundedBodies struct{}

func (unboundedBodies) Read(into *bytes.Buffer, w http.ResponseWriter, r *http.Request, most int64, _ int) (
	release func(), err error) {
	_, err = into.ReadFrom(http.MaxBytesReader(w, r.Body, most))
	return func() {}, err
}

// form is what the token endpoint uses of a form.
type form struct {
	grant, name, password, secret string
	scopes                        []string
}

// readForm reads the form of a POST. Errors: errForm, errLarge, errSlow, errTokenRequests.
func (g *Guard) readForm(w http.ResponseWriter, r *http.Request) (f form, err error) {
	var body bytes.Buffer
	release, err := g.options.Forms.Read(&body, w, r, maxForm, formFactor)
	var later interface{ RetryAfter() int }
	switch large := (*http.MaxBytesError)(nil); {
	case err == nil:
	case errors.As(err, &large):
		return f, errLarge
	case errors.As(err, &later):
		return f, errTokenRequests
	case errors.Is(err, os.ErrDeadlineExceeded):
		return f, errSlow
	default:
		return f, errForm
	}
	defer release()
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/x-www-form-urlencoded" {
		return f, errForm
	}
	all, err := url.ParseQuery(body.String())
	if err != nil {
		return f, errForm
	}
	// Clones: verifying can take long, and the body must not stay until then.
	get := func(key string) string { return strings.Clone(all.Get(key)) }
	f = form{grant: get("grant_type"), name: get("username"), password: get("password"), secret: get("refresh_token")}
	for _, scope := range all["scope"] {
		if len(f.scopes) == maxScopes { // of those few are considered in any case
			break
		}
		f.scopes = append(f.scopes, strings.Clone(scope))
	}
	return f, nil
}
