package tls_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	trowtls "trow/tls"
)

// clientCA is a CA whose certificates clients present.
type clientCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newClientCA(t *testing.T, name string) clientCA {
	t.Helper()
	return sign(t, clientCA{}, &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(day)})
}

// sign makes a certificate; without a parent it is self-signed.
func sign(t *testing.T, parent clientCA, template *x509.Certificate) clientCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if parent.key == nil {
		parent = clientCA{template, key}
	}
	template.SerialNumber, template.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, &key.PublicKey, parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return clientCA{cert, key}
}

// client makes a client's certificate that expires after life.
func (c clientCA) client(t *testing.T, cn string, life time.Duration) tls.Certificate {
	t.Helper()
	one := sign(t, c, &x509.Certificate{Subject: pkix.Name{CommonName: cn}, NotAfter: time.Now().Add(life),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return tls.Certificate{Certificate: [][]byte{one.cert.Raw}, PrivateKey: one.key}
}

func write(t *testing.T, path string, all ...clientCA) string {
	t.Helper()
	var text []byte
	for _, c := range all {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})...)
	}
	replace(t, path, text)
	return path
}

// replace replaces a file by renaming, so that a server that polls it quickly never reads half of it.
func replace(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// serve starts a server that answers with what the client has presented.
func serve(t *testing.T, k keeper) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	name := func(c *x509.Certificate) string {
		if c == nil {
			return "-"
		}
		return c.Subject.CommonName
	}
	s := &http.Server{TLSConfig: k.Config(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "client %s, caller %s, resumed %v", name(k.Certificate(r, trowtls.ForClient)),
			name(k.Certificate(r, trowtls.ForCaller)), r.TLS.DidResume)
	})}
	s.ErrorLog = log.New(io.Discard, "", 0)
	go s.ServeTLS(l, "", "")
	t.Cleanup(func() { s.Close() })
	return "https://" + l.Addr().String()
}

// presenting makes a client that presents a certificate, whichever CAs the server asks for. Each request has its own
// connection unless keep is set.
func presenting(t *testing.T, k keeper, version uint16, keep bool, cert ...tls.Certificate) *http.Client {
	t.Helper()
	c := &tls.Config{RootCAs: pool(k.CA()), MaxVersion: version,
		ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	if len(cert) > 0 {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert[0], nil }
	}
	tr := &http.Transport{TLSClientConfig: c, DisableKeepAlives: !keep}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func get(c *http.Client, url string) string {
	resp, err := c.Get(url)
	if err != nil {
		return "error"
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "error"
	}
	return string(b)
}

func versions(t *testing.T, f func(t *testing.T, version uint16)) {
	t.Run("1.2", func(t *testing.T) { t.Parallel(); f(t, tls.VersionTLS12) })
	t.Run("1.3", func(t *testing.T) { t.Parallel(); f(t, tls.VersionTLS13) })
}

func TestClientsNeedNoCertificateAndEachPurposeHasItsOwnCAs(t *testing.T) {
	versions(t, func(t *testing.T, v uint16) {
		users, api := newClientCA(t, "users"), newClientCA(t, "api")
		other := newClientCA(t, "users") // with the same name
		dir := t.TempDir()
		k := open(t, t.TempDir(),
			trowtls.Options{ClientCA: write(t, dir+"/users", users), CallerCA: write(t, dir+"/api", api)})
		url := serve(t, k)
		for name, row := range map[string]struct {
			c    *http.Client
			want string
		}{
			"no certificate": {presenting(t, k, v, false), "client -, caller -, resumed false"},
			"a user's": {presenting(t, k, v, false, users.client(t, "alice", day)),
				"client alice, caller -, resumed false"},
			"the API server's": {presenting(t, k, v, false, api.client(t, "kube-apiserver", day)),
				"client -, caller kube-apiserver, resumed false"},
			"of another CA with that name": {presenting(t, k, v, false, other.client(t, "alice", day)), "error"},
			"an expired one": {presenting(t, k, v, false, users.client(t, "alice", -time.Minute)),
				"error"},
			"one for servers only": {presenting(t, k, v, false, serverOnly(t, users)), "error"},
		} {
			if got := get(row.c, url); got != row.want {
				t.Errorf("%s: %s, want %s", name, got, row.want)
			}
		}
		both := open(t, t.TempDir(), trowtls.Options{ClientCA: dir + "/users", CallerCA: dir + "/users"})
		got := get(presenting(t, both, v, false, users.client(t, "x", day)), serve(t, both))
		if got != "client x, caller x, resumed false" {
			t.Errorf("one CA for both: %s", got)
		}
		none := open(t, t.TempDir(), trowtls.Options{})
		got = get(presenting(t, none, v, false, users.client(t, "x", day)), serve(t, none))
		if got != "client -, caller -, resumed false" {
			t.Errorf("without client CAs: %s", got)
		}
	})
}

func serverOnly(t *testing.T, ca clientCA) tls.Certificate {
	one := sign(t, ca, &x509.Certificate{Subject: pkix.Name{CommonName: "alice"}, NotAfter: time.Now().Add(day),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return tls.Certificate{Certificate: [][]byte{one.cert.Raw}, PrivateKey: one.key}
}

// TestARemovedClientCADoesNotCount in resumed sessions and on open connections.
func TestARemovedClientCADoesNotCount(t *testing.T) {
	versions(t, func(t *testing.T, v uint16) {
		old, next := newClientCA(t, "old"), newClientCA(t, "next")
		file := write(t, filepath.Join(t.TempDir(), "ca"), old)
		k := open(t, t.TempDir(), trowtls.Options{ClientCA: file, Poll: 10 * time.Millisecond})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { k.Run(ctx) })
		url := serve(t, k)
		alice, bob, plain := old.client(t, "alice", day), next.client(t, "bob", day), presenting(t, k, v, false)
		c, kept := presenting(t, k, v, false, alice), presenting(t, k, v, true, alice)
		for _, want := range []string{"client alice, caller -, resumed false", "client alice, caller -, resumed true"} {
			if got := get(c, url); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		get(plain, url)
		if got := get(plain, url); got != "client -, caller -, resumed true" {
			t.Errorf("without a certificate: %s", got)
		}
		get(kept, url)
		await := func(want string) {
			t.Helper()
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				if list := k.log.take(); len(list) > 0 {
					if got := list[0].String(); got != want {
						t.Errorf("%s, want %s: %v", got, want, list[0].Error)
					}
					return
				}
				if time.Now().After(end) {
					t.Fatalf("nothing was logged, want %s", want)
				}
			}
		}
		write(t, file, old, next) // both
		await("reloaded clients")
		if got := get(c, url); got != "client alice, caller -, resumed false" {
			t.Errorf("with both CAs: %s", got)
		}
		if got := get(kept, url); got != "client alice, caller -, resumed false" {
			t.Errorf("with both CAs, on an open connection: %s", got)
		}
		if got := get(presenting(t, k, v, false, bob), url); got != "client bob, caller -, resumed false" {
			t.Errorf("bob: %s", got)
		}
		replace(t, file, []byte("garbage"))
		await("rejected clients")
		if got := get(c, url); got != "client alice, caller -, resumed true" {
			t.Errorf("after an invalid file: %s", got)
		}
		write(t, file, next) // the new one only
		await("reloaded clients")
		if got := get(c, url); got != "error" {
			t.Errorf("a session of the old CA: %s", got)
		}
		if got := get(kept, url); got != "client -, caller -, resumed false" {
			t.Errorf("an open connection: %s", got)
		}
		if got := get(plain, url); got != "client -, caller -, resumed false" {
			t.Errorf("without a certificate, at the end: %s", got)
		}
		if ends := k.NotAfter(trowtls.Clients); !ends.Equal(next.cert.NotAfter) {
			t.Errorf("the CA ends at %v, want %v", ends, next.cert.NotAfter)
		}
	})
}

// TestACertificateExpiresOnAnOpenConnection, not only at the next handshake.
func TestACertificateExpiresOnAnOpenConnection(t *testing.T) {
	ca := newClientCA(t, "users")
	k := open(t, t.TempDir(), trowtls.Options{ClientCA: write(t, filepath.Join(t.TempDir(), "ca"), ca)})
	url := serve(t, k)
	c := presenting(t, k, tls.VersionTLS13, true, ca.client(t, "alice", 2*time.Second)) // certificates have seconds
	if got := get(c, url); got != "client alice, caller -, resumed false" {
		t.Fatal(got)
	}
	time.Sleep(2100 * time.Millisecond)
	if got := get(c, url); got != "client -, caller -, resumed false" {
		t.Errorf("after it has expired: %s", got)
	}
}

func TestABadClientCAIsAnErrorThatNamesTheFile(t *testing.T) {
	ca := newClientCA(t, "users")
	dir := t.TempDir()
	leaf := sign(t, ca, &x509.Certificate{Subject: pkix.Name{CommonName: "leaf"}, NotAfter: time.Now().Add(day)})
	files := map[string]string{
		"no certificate in PEM": "",
		"no certificate":        "hello",
		"certificates only":     "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
		"malformed":             "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"is not a CA's":         string(read(t, write(t, dir+"/leaf", leaf))),
	}
	for want, text := range files {
		path := filepath.Join(dir, "ca.pem")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, o := range []trowtls.Options{{ClientCA: path}, {CallerCA: path}} {
			o.Names = wanted
			_, err := openDir(t.TempDir(), o)
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "ca.pem") {
				t.Errorf("%q: %v, want %q", text, err, want)
			}
		}
	}
	_, err := openDir(t.TempDir(), trowtls.Options{Names: wanted, ClientCA: dir + "/none"})
	if err == nil || !strings.Contains(err.Error(), "/none") {
		t.Errorf("a missing file: %v", err)
	}
}
