// Package tls keeps the server's certificates: it makes them, renews them, and picks one for each connection.
//
// # Words
//
//   - pair: a certificate and its private key. One file in PEM holds both, so that no crash and no restored
//     backup can tear them apart.
//   - CA: our own root. Every workstation and node that pushes or pulls holds a copy of its certificate.
//   - leaf: the pair that we serve, signed by the CA, for the names the caller wants.
//   - user: a pair that the user brings, served beside the leaf and never instead of it.
//   - names: the DNS names and IP addresses the leaf is for.
//   - [Keeper]: holds all three for one server.
//
// # Invariants
//
//  1. A CA that exists is never replaced. If its file cannot be used, [Open] says so and what to do: people
//     trust that CA, and a new one in its place would look like an attack to each of them.
//  2. A leaf is expendable: whatever is wrong with its file, a new one is made.
//  3. Whoever reaches us by IP address, without SNI, or by a name below .svc gets the leaf. Nodes and the
//     Kubernetes API server know nothing but our CA, whatever the user's pair says.
//  4. A handshake waits for nothing: the pairs are read through atomic pointers. A pair that changes touches
//     no connection that stands.
//  5. A pair that was bad when the user's files changed leaves the one before it in place.
//  6. A file is written whole or not at all: temporary file, fsync, rename, fsync of the directory.
//
// # What it does not do
//
// It does not lock its directory: two processes that start on one directory at once may each make a CA. The
// caller holds the lock of the data directory around it. It does not log; [Keeper.Run] tells its caller what
// happened. It asks no ACME server, checks no revocation and knows nothing of Kubernetes. It does not replace
// the CA before its end.
//
// # Why
//
// The CA lives ten years because a copy of it lies on machines that nobody wants to visit each year. The leaf
// lives 90 days because nothing has to be told when it changes.
package tls

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// Options say what the certificates are for. Names must be set; the zero value of the rest works.
type Options struct {
	// Names the leaf is for: DNS names (one leading "*." is allowed) and IP addresses, each alone or as
	// host:port, IPv6 with or without brackets. Order and case do not matter.
	Names []string

	// CertFile and KeyFile hold the user's pair in PEM, the chain after the certificate. Both empty: there is
	// none. KeyFile empty: CertFile holds the key as well.
	CertFile, KeyFile string

	// Poll is how often Run looks at the user's files and at the age of the leaf. 0 means 5 s: a look costs
	// two small reads, and nobody waits longer than that for a certificate.
	Poll time.Duration
}

// Cert names one of the certificates a [Keeper] holds. The values are fit for a metric's label.
type Cert string

// The certificates of a Keeper.
const (
	CA   Cert = "ca"
	Leaf Cert = "leaf"
	User Cert = "user"
)

// defaultPoll: see [Options.Poll].
const defaultPoll = 5 * time.Second

// Keeper holds the certificates of one server. Make one with [Open]. Safe for concurrent use.
type Keeper struct {
	dir   dir
	names names
	poll  time.Duration

	ca       *tls.Certificate
	leaf     atomic.Pointer[tls.Certificate]
	user     atomic.Pointer[tls.Certificate] // nil: there is none
	userFile userFiles
	userSeen userPEM // what user was made of; used by Open, then by Run alone
}

// Open reads the pairs in dir, making what is missing: the directory (mode 0700), the CA, the leaf (files of
// mode 0600). It makes a new leaf when the old one is for other names, of another CA, past two thirds of its
// life, or unreadable. What a crash left behind is removed.
//
// Errors: a name that no certificate can carry, by that name; a CA that cannot be used, with the file and the
// remedy; a user's pair that cannot be used, with the file and the cause (one that has expired can be used:
// Run tells); whatever the file system reports.
func Open(path string, o Options) (*Keeper, error) {
	names, err := parseNames(o.Names)
	if err != nil {
		return nil, err
	}
	d, err := openDir(path)
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	k := &Keeper{dir: d, names: names, poll: o.Poll, userFile: userFiles{cert: o.CertFile, key: o.KeyFile}}
	if k.poll <= 0 {
		k.poll = defaultPoll
	}
	if k.ca, err = loadCA(d, time.Now()); err != nil {
		return nil, err
	}
	leaf, err := loadLeaf(d, k.ca, names, time.Now())
	if err != nil {
		return nil, err
	}
	k.leaf.Store(leaf)
	return k, k.openUser()
}

// openUser reads the user's pair for the first time, if there is one.
func (k *Keeper) openUser() error {
	if k.userFile == (userFiles{}) {
		return nil
	}
	p, err := k.userFile.read()
	if err != nil {
		return fmt.Errorf("the user's certificate: %w", err)
	}
	user, err := k.userFile.parse(p)
	if err != nil {
		return err
	}
	k.user.Store(user)
	k.userSeen = p
	return nil
}

// Config returns the configuration for a listener: HTTP/2 and HTTP/1.1 over TLS 1.2 or later, and the
// certificate that holds at the time of each handshake. The caller may change the copy it gets.
func (k *Keeper) Config() *tls.Config {
	return &tls.Config{
		// 1.2 because the API servers and container runtimes still in use speak it, and nothing older.
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: k.pick,
	}
}

// pick chooses the pair for one handshake; invariant 3.
func (k *Keeper) pick(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	user, name := k.user.Load(), strings.TrimSuffix(strings.ToLower(hello.ServerName), ".")
	if user != nil && name != "" && !ofCluster(name) && user.Leaf.VerifyHostname(name) == nil {
		return user, nil
	}
	return k.leaf.Load(), nil
}

// ofCluster reports whether the API server may use this name to call a webhook: it always asks for
// <service>.<namespace>.svc, and trusts the caBundle alone, which is our CA.
func ofCluster(name string) bool { return strings.HasSuffix(name, ".svc") }

// CA returns the certificate of the CA in PEM, without its key: what a client needs in order to trust us.
func (k *Keeper) CA() []byte {
	var out []byte
	for _, der := range k.ca.Certificate {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: blockCert, Bytes: der})...)
	}
	return out
}

// Fingerprint returns the SHA-256 of the CA's certificate as openssl x509 -fingerprint -sha256 prints it:
// upper case, a colon between the bytes.
func (k *Keeper) Fingerprint() string {
	sum := sha256.Sum256(k.ca.Certificate[0])
	return strings.ReplaceAll(fmt.Sprintf("% X", sum), " ", ":")
}

// NotAfter returns the time at which a certificate ends, and the zero time if there is no such certificate.
func (k *Keeper) NotAfter(c Cert) time.Time {
	pair := map[Cert]*tls.Certificate{CA: k.ca, Leaf: k.leaf.Load(), User: k.user.Load()}[c]
	if pair == nil {
		return time.Time{}
	}
	return pair.Leaf.NotAfter
}

// userFiles are the user's pair on disk.
type userFiles struct {
	cert, key string
}

// read returns the bytes of both files, the key's empty if the certificate's file has it.
func (u userFiles) read() (p userPEM, err error) {
	if u.cert == "" {
		return p, fmt.Errorf("key %s is given without a certificate", u.key)
	}
	if p.cert, err = readFile(u.cert); err != nil || u.key == "" {
		return p, err
	}
	p.key, err = readFile(u.key)
	return p, err
}

// userPEM is what the user's files held. Strings, so that two of them compare.
type userPEM struct {
	cert, key string
}

// parse checks what was read: the key must match, and the certificate must name something to be served for.
func (u userFiles) parse(p userPEM) (*tls.Certificate, error) {
	from, key := filepath.Clean(u.cert), p.key
	if u.key == "" {
		key = p.cert
	} else {
		from += " with key " + filepath.Clean(u.key)
	}
	pair, err := tls.X509KeyPair([]byte(p.cert), []byte(key))
	if err != nil {
		return nil, fmt.Errorf("the user's certificate %s: %w", from, err)
	}
	if len(pair.Leaf.DNSNames) == 0 {
		return nil, fmt.Errorf("the user's certificate %s: it names no host (no DNS name among its subject "+
			"alternative names), so it would never be served", from)
	}
	return &pair, nil
}

// holds says why a certificate does not hold at this time.
func holds(c *x509.Certificate, now time.Time) error {
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("it is valid until %s", c.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(c.NotBefore):
		return fmt.Errorf("it is valid from %s on", c.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}
