package engines

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"trow/storage"
	"trow/storage/etcd"
)

// TestUsers: tokens end while a watch and commits go on, and what a user may not do is said.
func TestUsers(t *testing.T) {
	t.Parallel()
	c := startEtcd(t, 1, "--auth-token-ttl", "1")
	ctx := t.Context()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	a := c.admin
	must(a.UserAdd(ctx, "root", "rootpass"))
	must(a.UserGrantRole(ctx, "root", "root"))
	must(a.UserAdd(ctx, "trow", "pass"))
	must(a.RoleAdd(ctx, "trow"))
	must(a.RoleGrantPermission(ctx, "trow", "trow/", clientv3.GetPrefixRangeEnd("trow/"),
		clientv3.PermissionType(clientv3.PermReadWrite)))
	must(a.UserGrantRole(ctx, "trow", "trow"))
	must(a.AuthEnable(ctx))
	file := func(password string) string {
		path := filepath.Join(t.TempDir(), "password")
		must(nil, os.WriteFile(path, []byte(password+"\n"), 0o600))
		return path
	}
	good := etcd.Options{Endpoints: c.endpoints(), Prefix: "trow", User: "trow", PasswordFile: file("pass")}
	for want, o := range map[string]etcd.Options{
		"check the user and the file": {Endpoints: c.endpoints(), User: "trow", PasswordFile: file("wrong")},
		"set the user":                {Endpoints: c.endpoints()},
		"readwrite other/": {Endpoints: c.endpoints(), Prefix: "other", User: "trow",
			PasswordFile: good.PasswordFile},
	} {
		if _, err := etcd.Open(ctx, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		} else {
			t.Log(err)
		}
	}
	j := openWith(t, good)
	v := newView(t, j)
	v.await(0)
	var last storage.Revision
	for i := range 12 { // for four lives of a token; the connections are cut in between
		rev, err := j.Commit(ctx, one("r", last, set("a", fmt.Sprint(i))))
		must(nil, err)
		last = rev
		v.await(rev)
		if i%4 == 3 {
			c.members[0].proxy.cut()
		}
		time.Sleep(400 * time.Millisecond)
	}
	if v.loads.Load() != 1 {
		t.Errorf("the state was loaded %d times", v.loads.Load())
	}
	lead, cancel := context.WithCancel(ctx)
	defer cancel()
	_, _, err := j.Lead(lead, "collect", "one")
	must(nil, err)
}

// authority signs certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	dir  string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, dir: t.TempDir()}
	a.cert, a.key = a.sign("ca", true)
	return a
}

// sign writes NAME.crt and NAME.key.
func (a *authority) sign(name string, isCA bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: isCA,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	parent, signer := a.cert, a.key
	if isCA {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{
		a.file(name + ".crt"): {Type: "CERTIFICATE", Bytes: der},
		a.file(name + ".key"): {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// TestTLS: with client certificates, which are renewed along with the CA while the journal is open.
func TestTLS(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.sign("server", false)
	a.sign("client", false)
	other := newAuthority(t)
	m := &member{t: t, dir: t.TempDir(), addr: freeAddr(t)}
	m.proxy = newProxy(t, m.addr)
	peer := "http://" + freeAddr(t)
	m.args = []string{"--data-dir", filepath.Join(m.dir, "data"), "--listen-client-urls", "https://" + m.addr,
		"--advertise-client-urls", "https://" + m.addr, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer,
		"--initial-cluster", "default=" + peer, "--log-level", "error", "--unsafe-no-fsync", "--client-cert-auth",
		"--trusted-ca-file", a.file("ca.crt"), "--cert-file", a.file("server.crt"), "--key-file", a.file("server.key")}
	m.start()
	t.Cleanup(m.kill)
	o := etcd.Options{Endpoints: []string{m.proxy.addr()}, TLS: true, CAFile: a.file("ca.crt"),
		CertFile: a.file("client.crt"), KeyFile: a.file("client.key"), DialTimeout: 20 * time.Second}
	j := openWith(t, o)
	commit := func(base storage.Revision) storage.Revision {
		t.Helper()
		rev, err := j.Commit(t.Context(), one("r", base, set("a", "1")))
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	rev := commit(0)
	plain := startEtcd(t, 1)
	for name, c := range map[string]struct {
		etcd.Options
		want string
	}{
		"another CA": {etcd.Options{TLS: true, CAFile: other.file("ca.crt"), CertFile: o.CertFile,
			KeyFile: o.KeyFile}, "set journal-ca-file"},
		"without a certificate": {etcd.Options{TLS: true, CAFile: o.CAFile}, "set journal-cert-file"},
		"the CAs of the system": {etcd.Options{TLS: true, CertFile: o.CertFile, KeyFile: o.KeyFile},
			"set journal-ca-file"},
		"without TLS": {etcd.Options{}, "write etcds://"},
		"a certificate of another": {etcd.Options{TLS: true, CAFile: o.CAFile, CertFile: other.file("ca.crt"),
			KeyFile: other.file("ca.key")}, "set journal-cert-file"},
		"an etcd without TLS": {etcd.Options{Endpoints: plain.endpoints(), TLS: true}, "write etcd://"},
	} {
		if c.Endpoints == nil {
			c.Endpoints = o.Endpoints
		}
		c.DialTimeout, c.RequestTimeout = time.Second, time.Second
		if j, err := etcd.Open(t.Context(), c.Options); err == nil {
			j.Close()
			t.Errorf("%s: etcd was opened", name)
		} else if t.Logf("%s: %v", name, err); !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the error does not say %q", name, c.want)
		}
	}
	// All are renewed: the server trusts only what the new CA has signed, and so must the client.
	a.cert, a.key = a.sign("ca", true)
	a.sign("server", false)
	a.sign("client", false)
	m.kill()
	m.start()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) { // until the server is there again
		if _, err := j.Head(t.Context()); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("after all certificates were renewed: %v", err)
		}
	}
	commit(rev)
}
