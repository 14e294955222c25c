package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"oras.land/oras-go/v2/registry/remote/auth"

	"trow/registry/client"
)

// TestTheLogSaysWhyAnEndpointDidNotAnswer, also while it is left alone after that, and the text for clients does not.
func TestTheLogSaysWhyAnEndpointDidNotAnswer(t *testing.T) {
	refusing, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refusing.Close()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		panic(http.ErrAbortHandler)
	}))
	defer silent.Close()
	for name, c := range map[string]struct{ url, want string }{
		"another certificate": {server.URL, "certificate"},
		"no listener":         {"https://" + refusing.Addr().String(), "connection refused"},
		"plain HTTP":          {"https://" + plain.Listener.Addr().String(), "HTTP response to HTTPS client"},
		"no answer":           {silent.URL, "it closed the connection"},
	} {
		u := New(Config{})
		entry := Entry{Host: "up.example", Insecure: true, Endpoints: []Endpoint{{URL: c.url}}}
		if err := u.Set([]Entry{entry}); err != nil {
			t.Fatal(err)
		}
		up, _, err := u.Find("up.example", "a")
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time, the endpoint is left alone
			_, err = up.Head(t.Context(), "a", "v")
			if !errors.Is(err, ErrUnavailable) || strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: to a client: %v", name, err)
			}
			logged := Explained(fmt.Errorf("a: %w", err))
			if !errors.Is(logged, ErrUnavailable) || !strings.Contains(logged.Error(), err.Error()) ||
				!strings.Contains(logged.Error(), c.want) {
				t.Errorf("%s: in the log: %v", name, logged)
			}
		}
	}
}

// TestTheLogSaysWhyALoginCannotBeRead, with the command that helps.
func TestTheLogSaysWhyALoginCannotBeRead(t *testing.T) {
	o := &origin{next: func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}}
	u := upstreamOf(t, o)
	c, err := client.New(client.Options{URL: "https://e1.up.example", Once: true, HTTP: &http.Client{Transport: o},
		Logins: func(context.Context, string) (auth.Credential, error) {
			return auth.EmptyCredential, errors.New("secret: a/b: run: kubectl create role")
		}})
	if err != nil {
		t.Fatal(err)
	}
	u.endpoints[0].login = c
	_, err = u.Head(t.Context(), "a", "v")
	if err == nil || strings.Contains(err.Error(), "kubectl") ||
		!strings.HasSuffix(err.Error(), "its login cannot be read") {
		t.Errorf("to a client: %v", err)
	}
	if logged := Explained(err); !strings.HasSuffix(logged.Error(), ": secret: a/b: run: kubectl create role") {
		t.Errorf("in the log: %v", logged)
	}
}

// TestTheLogRepeatsNothingThatAnUpstreamSends: it may be the login of the request.
func TestTheLogRepeatsNothingThatAnUpstreamSends(t *testing.T) {
	for _, cause := range []error{nil, errors.New(`malformed HTTP response "secret"`),
		&client.Error{Status: http.StatusForbidden, Message: "secret"}} {
		err := &Error{Kind: ErrUnavailable, Host: "up.example", Cause: cause}
		if logged := Explained(err); logged != error(err) {
			t.Errorf("%v", logged)
		}
	}
	if err := Explained(nil); err != nil {
		t.Error(err)
	}
	bad := &tls.CertificateVerificationError{Err: errors.New("not valid for a\x1b[2Jb\n")}
	if logged := Explained(&Error{Kind: ErrUnavailable, Cause: bad}).Error(); strings.ContainsAny(logged, "\x1b\n") {
		t.Errorf("%q", logged)
	}
	if logged := Explained(&Error{Kind: ErrUnavailable, Cause: io.EOF}); !errors.Is(logged, io.EOF) {
		t.Error(logged)
	}
}
