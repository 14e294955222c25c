package upstream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// TestFilesThatUpstreamsNameAreReadAgain: a CA and a login may be in a Secret that is mounted and changes. What cannot
// be used changes nothing.
func TestFilesThatUpstreamsNameAreReadAgain(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, password, _ := req.BasicAuth(); user+":"+password != "ann:new" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	defer server.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	other, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ca, config := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "config.json")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certificate := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	login := func(password string) string {
		return `{"auths":{"` + server.Listener.Addr().String() + `":{"username":"ann","password":"` + password + `"}}}`
	}
	write(ca, "")
	write(config, login("old"))
	u := New(Config{})
	entries := []Entry{{Host: "up.example", CAFile: ca,
		Endpoints: []Endpoint{{URL: server.URL, DockerConfig: config}}}}
	if err := u.Set(entries); err == nil {
		t.Fatal("a CA without a certificate")
	}
	write(ca, certificate(other))
	if err := u.Set(entries); err != nil {
		t.Fatal(err)
	}
	head := func() error {
		up, _, err := u.Find("up.example", "a")
		if err != nil {
			t.Fatal(err)
		}
		_, err = up.Head(t.Context(), "a", "v")
		return err
	}
	reread := func(want bool) {
		t.Helper()
		if changed, err := u.Reread(); err != nil || changed != want {
			t.Errorf("%t, %v", changed, err)
		}
	}
	if err := head(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("with another CA: %v", err)
	}
	reread(false)
	before := u.Files()
	write(ca, certificate(server.Certificate().Raw))
	if reflect.DeepEqual(before, u.Files()) {
		t.Error("the change is not seen")
	}
	reread(true)
	if err := head(); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("with another login: %v", err)
	}
	write(config, login("new"))
	reread(true)
	if err := head(); !errors.Is(err, ErrNotFound) {
		t.Errorf("with the right login: %v", err)
	}
	if err := os.Remove(ca); err != nil {
		t.Fatal(err)
	}
	if changed, err := u.Reread(); err == nil || changed {
		t.Errorf("without the file: %t, %v", changed, err)
	}
	if err := head(); !errors.Is(err, ErrNotFound) {
		t.Errorf("after that: %v", err)
	}
}
