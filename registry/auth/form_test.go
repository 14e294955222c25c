package auth_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"trow/registry/auth"
)

// bodies are auth.Bodies that fail with err, or read and count what they hold.
type bodies struct {
	err  error
	held int
}

func (b *bodies) Read(into *bytes.Buffer, _ http.ResponseWriter, r *http.Request, _ int64, _ int) (func(), error) {
	if _, err := into.ReadFrom(r.Body); err != nil || b.err != nil {
		return nil, errors.Join(err, b.err)
	}
	b.held++
	return func() { b.held-- }, nil
}

type later struct{ error }

func (later) RetryAfter() int { return 1 }

// TestFormsThatDoNotComeTakeNoPlaces: a client that holds back its forms prevents no login of others.
func TestFormsThatDoNotComeTakeNoPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := guard(t, auth.Options{User: "u", Password: "p"})
		var all []*io.PipeWriter
		var wg sync.WaitGroup
		for range 2 * auth.MaxTokenRequests {
			r := tokenPOST(nil)
			body, end := io.Pipe()
			r.Body, all = body, append(all, end)
			wg.Go(func() { g.ServeToken(httptest.NewRecorder(), r) })
		}
		synctest.Wait()
		ask(t, g, tokenGET("u", "p"), 200)
		ask(t, g, tokenPOST(url.Values{"grant_type": {"password"}, "username": {"u"}, "password": {"p"}}), 200)
		for _, end := range all {
			end.Close()
		}
		wg.Wait()
	})
}

// TestTheMemoryOfFormsIsBounded by Bodies, and given back before credentials are verified.
func TestTheMemoryOfFormsIsBounded(t *testing.T) {
	for err, want := range map[error]int{
		later{errors.New("busy")}: 429, os.ErrDeadlineExceeded: 408, io.ErrUnexpectedEOF: 400,
		&http.MaxBytesError{Limit: 1}: 413,
	} {
		ask(t, guard(t, auth.Options{User: "u", Password: "p", Forms: &bodies{err: err}}),
			tokenPOST(url.Values{}), want)
	}
	b := &bodies{}
	g := guard(t, auth.Options{Htpasswd: htpasswd(t, "alice"), Forms: b})
	verified := false
	auth.SlowComparisons(t, func(_, _ []byte) error {
		if verified = true; b.held != 0 {
			t.Error("the memory of the form is held while its password is verified")
		}
		return nil
	})
	ask(t, g, tokenPOST(url.Values{"grant_type": {"password"}, "username": {"alice"}, "password": {"alice-password"},
		"scope": {strings.Repeat("x ", 1000)}}), 200)
	if !verified || b.held != 0 {
		t.Errorf("verified: %v, held: %d", verified, b.held)
	}
}
