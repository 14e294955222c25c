package admission_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"trow/admission"
)

const callerToken = "0123456789abcdef-token"

func TestOnlyTheAPIServerMayCall(t *testing.T) {
	cert := func(r *http.Request) *x509.Certificate {
		if cn := r.Header.Get("X-Certificate"); cn != "" {
			return &x509.Certificate{Subject: pkix.Name{CommonName: cn}}
		}
		return nil
	}
	with := func(token string, names ...string) *admission.Callers {
		c := &admission.Callers{Certificate: cert, Names: names}
		if names == nil {
			c.Certificate = nil
		} else if names[0] == "" {
			c.Names = nil
		}
		if token != "" {
			if err := c.SetToken([]byte(token + "\n")); err != nil {
				t.Fatal(err)
			}
		}
		return c
	}
	right := "Bearer " + callerToken
	for _, row := range []struct {
		name    string
		c       *admission.Callers
		headers []string
		status  int
	}{
		{"nothing", with(callerToken), nil, 401},
		{"the token", with(callerToken), []string{"Authorization", right}, 200},
		{"the token, the scheme in lower case", with(callerToken), []string{"Authorization", "bearer " + callerToken}, 200},
		{"another token", with(callerToken), []string{"Authorization", right + "x"}, 401},
		{"a part of the token", with(callerToken), []string{"Authorization", right[:len(right)-1]}, 401},
		{"no token", with(callerToken), []string{"Authorization", "Bearer "}, 401},
		{"the token as Basic", with(callerToken), []string{"Authorization", "Basic " + callerToken}, 401},
		{"two tokens", with(callerToken), []string{"Authorization", right, "Authorization", "Bearer x"}, 401},
		{"a token where there is none", with("", ""), []string{"Authorization", right}, 401},
		{"an empty token where there is none", with("", ""), []string{"Authorization", "Bearer "}, 401},
		{"no certificate", with("", ""), nil, 401},
		{"any certificate of the CA", with("", ""), []string{"X-Certificate", "x"}, 200},
		{"the one that is named", with("", "a", "kube-apiserver"), []string{"X-Certificate", "kube-apiserver"}, 200},
		{"one that is not named", with("", "kube-apiserver"), []string{"X-Certificate", "kubelet"}, 403},
		{"no certificate, where the token alone counts", with(callerToken), []string{"X-Certificate", "x"}, 401},
		{"one that is not named, and the token", with(callerToken, "kube-apiserver"), []string{"X-Certificate", "kubelet", "Authorization", right}, 200},
		{"one that is not named, and another token", with(callerToken, "kube-apiserver"), []string{"X-Certificate", "kubelet", "Authorization", "Bearer x"}, 401},
	} {
		refused, passed := "", false
		row.c.Refused = func(_ *http.Request, why string) { refused = why }
		r := httptest.NewRequest("POST", "/validate", nil)
		for i := 0; i < len(row.headers); i += 2 {
			r.Header.Add(row.headers[i], row.headers[i+1])
		}
		w := httptest.NewRecorder()
		row.c.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed = true })).ServeHTTP(w, r)
		if w.Code != row.status || passed != (row.status == 200) || (refused == "") != passed || (w.Header().Get("WWW-Authenticate") != "") != (row.status == 401) {
			t.Errorf("%s: %d, want %d; passed %v, refused %q", row.name, w.Code, row.status, passed, refused)
		}
		if strings.Contains(w.Body.String()+refused, callerToken[:8]) {
			t.Errorf("%s: the token is told: %s%s", row.name, w.Body, refused)
		}
	}
}

func TestABadTokenOfTheCallerLeavesTheOneBefore(t *testing.T) {
	c := &admission.Callers{}
	if err := c.SetToken([]byte(callerToken)); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "\n", "short", "two lines of a token\nand more", "0123456789abcdef 2"} {
		if err := c.SetToken([]byte(text)); err == nil || strings.Contains(err.Error(), "012345") {
			t.Errorf("%q: %v", text, err)
		}
	}
	r := httptest.NewRequest("POST", "/validate", nil)
	r.Header.Set("Authorization", "Bearer "+callerToken)
	w := httptest.NewRecorder()
	c.Protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(w, r)
	if w.Code != 200 {
		t.Errorf("%d", w.Code)
	}
}
