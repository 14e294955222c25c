package admission_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"trow/admission"
	"trow/storage/files"
)

const callerToken = "0123456789abcdef-token"

func newCallers(t *testing.T, o admission.CallersOptions, token string) *admission.Callers {
	t.Helper()
	if token != "" {
		o.TokenFile = filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(o.TokenFile, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := admission.NewCallers(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// call sends a request with headers, given as names and values, through Protect.
func call(c *admission.Callers, headers ...string) (w *httptest.ResponseRecorder, passed bool) {
	r := httptest.NewRequest("POST", "/validate", nil)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w = httptest.NewRecorder()
	c.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed = true })).ServeHTTP(w, r)
	return w, passed
}

func TestOnlyTheAPIServerMayCall(t *testing.T) {
	cert := func(r *http.Request) *x509.Certificate {
		if cn := r.Header.Get("X-Certificate"); cn != "" {
			return &x509.Certificate{Subject: pkix.Name{CommonName: cn}}
		}
		return nil
	}
	const authorization, right = "Authorization", "Bearer " + callerToken
	token := admission.CallersOptions{TokenFile: "set"}
	ca := admission.CallersOptions{Certificate: cert}
	named := admission.CallersOptions{Certificate: cert, Names: []string{"a", "kube-apiserver"}}
	both := admission.CallersOptions{Certificate: cert, Names: []string{"kube-apiserver"}, TokenFile: "set"}
	for _, row := range []struct {
		name    string
		options admission.CallersOptions
		headers []string
		status  int
	}{
		{"no credentials", token, nil, 401},
		{"the token", token, []string{authorization, right}, 200},
		{"the token, the scheme in lower case", token, []string{authorization, "bearer " + callerToken}, 200},
		{"another token", token, []string{authorization, right + "x"}, 401},
		{"a part of the token", token, []string{authorization, right[:len(right)-1]}, 401},
		{"an empty token", token, []string{authorization, "Bearer "}, 401},
		{"the token as Basic", token, []string{authorization, "Basic " + callerToken}, 401},
		{"two tokens", token, []string{authorization, right, authorization, "Bearer x"}, 401},
		{"a token where none is set", ca, []string{authorization, right}, 401},
		{"an empty token where none is set", ca, []string{authorization, "Bearer "}, 401},
		{"no certificate", ca, nil, 401},
		{"any certificate of the CA", ca, []string{"X-Certificate", "x"}, 200},
		{"a certificate with one of the names", named, []string{"X-Certificate", "kube-apiserver"}, 200},
		{"a certificate with another name", named, []string{"X-Certificate", "kubelet"}, 403},
		{"a certificate where only the token counts", token, []string{"X-Certificate", "x"}, 401},
		{"a certificate with another name, and the token", both,
			[]string{"X-Certificate", "kubelet", authorization, right}, 200},
		{"a certificate with another name, and another token", both,
			[]string{"X-Certificate", "kubelet", authorization, "Bearer x"}, 401},
	} {
		refused, content := "", ""
		if row.options.TokenFile != "" {
			content = callerToken + "\n"
		}
		row.options.Refused = func(_ *http.Request, why string) { refused = why }
		w, passed := call(newCallers(t, row.options, content), row.headers...)
		if w.Code != row.status || passed != (row.status == 200) || (refused == "") != passed {
			t.Errorf("%s: %d, want %d; passed %v, refused %q", row.name, w.Code, row.status, passed, refused)
		}
		if challenge := w.Header().Get("WWW-Authenticate"); (challenge != "") != (row.status == 401) {
			t.Errorf("%s: challenge %q", row.name, challenge)
		}
		if strings.Contains(w.Body.String()+refused, callerToken[:8]) {
			t.Errorf("%s: the answer contains the token: %s%s", row.name, w.Body, refused)
		}
	}
}

func TestWithoutSettingsEveryClientMayCall(t *testing.T) {
	c := newCallers(t, admission.CallersOptions{}, "")
	if w, passed := call(c); c != nil || w.Code != 200 || !passed || c.Authenticate() {
		t.Errorf("%v: status %d, passed %v, authenticated %v", c, w.Code, passed, c.Authenticate())
	}
	if c := newCallers(t, admission.CallersOptions{}, callerToken); !c.Authenticate() {
		t.Error("callers with a token do not count as authenticated")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestCallersOptionsThatContradictAreRefused(t *testing.T) {
	dir := t.TempDir()
	for want, o := range map[string]admission.CallersOptions{
		"validate-client-ca": {Names: []string{"kube-apiserver"}},
		"not exist":          {TokenFile: filepath.Join(dir, "none")},
	} {
		if _, err := admission.NewCallers(o); err == nil || !strings.HasPrefix(err.Error(), "validate-") ||
			!strings.Contains(err.Error(), want) && !strings.Contains(err.Error(), "no such file") {
			t.Errorf("%s: %v", want, err)
		}
	}
	for i, content := range []string{"", "\n", "short", "two lines of a token\nand more", "0123456789abcdef 2"} {
		file := filepath.Join(dir, strconv.Itoa(i))
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := admission.NewCallers(admission.CallersOptions{TokenFile: file})
		if err == nil || !strings.HasPrefix(err.Error(), "validate-token-file: ") ||
			strings.Contains(err.Error(), "012345") {
			t.Errorf("%q: %v", content, err)
		}
	}
	if err := (&admission.CallersOptions{Names: []string{"a", ""}}).Validate(); err == nil {
		t.Error("an empty common name is accepted")
	}
}

// TestTheTokenFollowsItsFile checks that a new token counts, and that a file which cannot be used changes nothing.
func TestTheTokenFollowsItsFile(t *testing.T) {
	const second = "fedcba9876543210-token"
	file := filepath.Join(t.TempDir(), "token")
	write := func(content string) {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(callerToken)
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c, err := admission.NewCallers(admission.CallersOptions{TokenFile: file, Log: zerolog.New(&log)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		check := func(token string, status int, logged string) {
			t.Helper()
			time.Sleep(3 * files.PollInterval)
			synctest.Wait()
			if w, _ := call(c, "Authorization", "Bearer "+token); w.Code != status ||
				!strings.Contains(log.String(), logged) {
				t.Errorf("%s: %d, want %d; log %q, want %q", token, w.Code, status, log.String(), logged)
			}
			log.Reset()
		}
		check(callerToken, 200, "")
		write("short")
		check(callerToken, 200, `"level":"error"`)
		write(second)
		check(second, 200, `{"level":"info","what":"the webhook's token","message":"credentials reloaded"}`)
		check(callerToken, 401, "")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
