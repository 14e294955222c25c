// Package tls keeps the server's certificates: it makes them, renews them, and picks one for each connection.
//
// # Words
//
//   - pair: a certificate and its private key. One file in PEM holds both, so that no crash and no restored
//     backup can tear them apart.
//   - CA: our own root. Every workstation and node that pushes or pulls holds a copy of its certificate.
//   - bundle: the certificates of all CAs that clients are to trust: one, and during a rotation two.
//   - leaf: the pair that we serve, signed by the CA, for the names the caller wants.
//   - user: a pair that the user brings, served beside the leaf and never instead of it.
//   - client CAs: those whose certificates clients may show, for a purpose each: to say who they are, or that they are the
//     API server. A certificate that was verified for one purpose proves nothing for another.
//   - names: the DNS names and IP addresses the leaf is for.
//   - [Store]: where CA and leaf are kept: a directory, or what the caller brings.
//   - rotation: a new CA takes the place of the old one. First it is told to everybody beside the old one, then it
//     signs, then the old one is no longer told; the overlap lies between each two steps.
//   - [Keeper]: holds all of that for one server.
//
// # Invariants
//
//  1. A CA that exists is replaced by rotation alone. If its file cannot be used, [Open] says so and what to do:
//     people trust that CA, and a new one in its place would look like an attack to each of them.
//  2. A leaf is expendable: whatever is wrong with its file, a new one is made.
//  3. Whoever reaches us by IP address, without SNI, or by a name below .svc gets the leaf. Nodes and the
//     Kubernetes API server know nothing but our CA, whatever the user's pair says.
//  4. A handshake waits for nothing: the pairs are read through atomic pointers. A pair that changes touches
//     no connection that stands.
//  5. A pair that was bad when the user's files changed leaves the one before it in place.
//  6. A file is written whole or not at all: temporary file, fsync, rename, fsync of the directory.
//  7. What is served is kept: nothing that is new is used before the store has it. Processes that share a store
//     serve leaves of the same CA.
//  8. Nobody needs a certificate to connect; one that cannot be verified ends the handshake. When the client CAs change,
//     no session is resumed that was begun before, and what a standing connection has shown counts only as long as its CA
//     is one of them.
//
// # What it does not do
//
// It does not lock its directory: two processes that start on one directory at once may each make a CA. The
// caller holds the lock of the data directory around it. It does not log; [Keeper.Run] tells its caller what
// happened. It asks no ACME server, checks no revocation and knows nothing of Kubernetes.
//
// # Why
//
// The CA lives ten years because a copy of it lies on machines that nobody wants to visit each year. The leaf
// lives 90 days because nothing has to be told when it changes.
package tls

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
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

	// ClientCA and CallerCA are files of CAs' certificates in PEM, whose clients may show certificates: users of the
	// registry, and who calls the webhook. Empty: none may. They are followed as the user's files are.
	ClientCA, CallerCA string

	// Poll is how often Run looks at the user's files, at the store and at the age of the certificates. 0 means
	// 5 s: a look costs a few small reads, and nobody waits longer than that for a certificate.
	Poll time.Duration

	// Overlap is the time between the steps of a rotation. 0 means a day: tools that hold a copy of the bundle
	// should have fetched it anew by then.
	Overlap time.Duration

	// Published, if set, is asked before a new CA signs: whether this bundle has reached those who trust us. As
	// long as it says no, the rotation waits, however long the overlap has passed.
	Published func(bundle []byte) bool
}

// Cert names one of the certificates a [Keeper] holds. The values are fit for a metric's label.
type Cert string

// The certificates of a Keeper.
const (
	CA   Cert = "ca"
	Leaf Cert = "leaf"
	User Cert = "user"
	// Clients are the certificates of the client CAs.
	Clients Cert = "clients"
)

const (
	// defaultPoll: see [Options.Poll].
	defaultPoll = 5 * time.Second
	// saveTries is how often others may change the store while we want to. Each of them comes closer to what
	// all want, so it ends sooner.
	saveTries = 10
)

// Keeper holds the certificates of one server. Make one with [Open]. Safe for concurrent use.
type Keeper struct {
	store     Store
	names     names
	poll      time.Duration
	overlap   time.Duration
	published func([]byte) bool

	mu               sync.Mutex // of those who settle; not of handshakes
	keptCA, keptLeaf []byte     // the files as they were when ca and leaf were last made of them

	ca       atomic.Pointer[authority]
	leaf     atomic.Pointer[tls.Certificate]
	user     atomic.Pointer[tls.Certificate] // nil: there is none
	userFile userFiles
	userSeen userPEM // what user was made of; used by Open, then by Run alone

	clientFiles clientFiles
	clients     atomic.Pointer[clientCAs] // nil: nobody is asked for a certificate
}

// Open reads the pairs in the store and makes what is missing: the CA, the leaf. It makes a new leaf when the old
// one is for other names, of another CA, past two thirds of its life, or unreadable.
//
// Errors: a name that no certificate can carry, by that name; a CA that cannot be used, with the file and the
// remedy; a user's pair that cannot be used, with the file and the cause (one that has expired can be used:
// Run tells); whatever the store reports.
func Open(ctx context.Context, store Store, o Options) (*Keeper, error) {
	names, err := parseNames(o.Names)
	if err != nil {
		return nil, err
	}
	k := &Keeper{store: store, names: names, poll: o.Poll, overlap: o.Overlap, published: o.Published,
		userFile: userFiles{cert: o.CertFile, key: o.KeyFile}, clientFiles: clientFiles{o.ClientCA, o.CallerCA}}
	if k.poll <= 0 {
		k.poll = defaultPoll
	}
	if k.overlap <= 0 {
		k.overlap = defaultOverlap
	}
	if k.published == nil {
		k.published = func([]byte) bool { return true }
	}
	if err := k.settle(ctx, time.Now(), false); err != nil {
		return nil, err
	}
	if err := k.openClients(); err != nil {
		return nil, err
	}
	return k, k.openUser()
}

// Rotate begins the rotation of the CA, unless one is under way; [Keeper.Run] completes it. Errors: whatever the
// store reports.
func (k *Keeper) Rotate(ctx context.Context) error { return k.settle(ctx, time.Now(), true) }

// settle makes what is kept and what is served one, after doing what is due.
func (k *Keeper) settle(ctx context.Context, now time.Time, rotate bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for range saveTries {
		if done, err := k.trySettle(ctx, now, rotate); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("the certificates in %s: others keep changing them", k.store)
}

// trySettle is settle, but that somebody else may be faster: false.
func (k *Keeper) trySettle(ctx context.Context, now time.Time, rotate bool) (bool, error) {
	files, version, err := k.store.Load(ctx)
	if err != nil {
		return false, fmt.Errorf("the certificates in %s: %w", k.store, err)
	}
	ca, err := k.authority(files, now)
	if err != nil {
		return false, err
	}
	next, err := ca.step(now, k.overlap, rotate, k.published)
	if err != nil {
		return false, err
	}
	if err := holds(next.signer.Leaf, now); err != nil {
		return false, k.unusable(err)
	}
	if next == k.ca.Load() && bytes.Equal(files[leafFile], k.keptLeaf) && !due(k.leaf.Load().Leaf, next.signer.Leaf, now) {
		return true, nil // nothing has changed
	}
	leaf, made, err := k.pickLeaf(files[leafFile], &next.signer, now)
	if err != nil {
		return false, err
	}
	if _, kept := files[caFile]; next != ca || made || !kept {
		if files, err = k.save(ctx, next, leaf, version); files == nil || err != nil {
			return false, err
		}
	}
	k.keptCA, k.keptLeaf = files[caFile], files[leafFile]
	k.ca.Store(next)
	k.leaf.Store(leaf)
	return true, nil
}

// authority reads the CA's file. Nothing kept: what we have, which others trust; or a new one.
func (k *Keeper) authority(files map[string][]byte, now time.Time) (*authority, error) {
	have := k.ca.Load()
	content, kept := files[caFile]
	switch {
	case have != nil && (!kept || bytes.Equal(content, k.keptCA)):
		return have, nil
	case !kept:
		return newAuthority(now)
	}
	ca, err := parseAuthority(content)
	if err != nil {
		return nil, k.unusable(err)
	}
	return ca, nil
}

func (k *Keeper) unusable(err error) error {
	return fmt.Errorf("the CA in %s/%s cannot be used: %w; %s", k.store, caFile, err, caRemedy)
}

// pickLeaf returns the leaf that is kept, or else that which is served now, or else a new one. The second is for
// two processes that want different names, for a while: each goes on with its own.
func (k *Keeper) pickLeaf(content []byte, ca *tls.Certificate, now time.Time) (leaf *tls.Certificate, made bool, err error) {
	have := k.leaf.Load()
	if kept := parseLeaf(content); serves(kept, ca.Leaf, k.names, now) && (have == nil || !kept.Leaf.Equal(have.Leaf)) {
		return kept, false, nil
	}
	if serves(have, ca.Leaf, k.names, now) {
		return have, false, nil
	}
	leaf, err = makeLeaf(ca, k.names, now)
	return leaf, true, err
}

// save keeps both and returns the files, nil if somebody else was faster.
func (k *Keeper) save(ctx context.Context, ca *authority, leaf *tls.Certificate, version string) (map[string][]byte, error) {
	content, err := ca.encode()
	if err != nil {
		return nil, err
	}
	pair, err := pemPair(leaf, nil)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{caFile: content, leafFile: pair}
	saved, err := k.store.Save(ctx, files, version)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the certificates in %s: %w", k.store, err)
	case !saved:
		return nil, nil
	}
	return files, nil
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

// Config returns the configuration for a listener: TLS 1.2 or later, and the certificate that holds at the time of each handshake. The caller may change the copy it gets.
func (k *Keeper) Config() *tls.Config {
	c := &tls.Config{
		// 1.2 because the API servers and container runtimes still in use speak it, and nothing older.
		MinVersion:     tls.VersionTLS12,
		GetCertificate: k.pick,
	}
	if k.clients.Load() != nil {
		k.askClients(c)
	}
	return c
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

// CA returns the bundle in PEM, without keys: what a client needs in order to trust us. The one that signs is the
// first.
func (k *Keeper) CA() []byte { return k.ca.Load().bundle() }

// Fingerprint returns the SHA-256 of the CA's certificate as openssl x509 -fingerprint -sha256 prints it:
// upper case, a colon between the bytes.
func (k *Keeper) Fingerprint() string {
	sum := sha256.Sum256(k.ca.Load().signer.Certificate[0])
	return strings.ReplaceAll(fmt.Sprintf("% X", sum), " ", ":")
}

// NotAfter returns the time at which a certificate ends, of the client CAs the first, and the zero time if there is no
// such certificate.
func (k *Keeper) NotAfter(c Cert) time.Time {
	if c == Clients {
		return k.clients.Load().notAfter()
	}
	pair := map[Cert]*tls.Certificate{CA: &k.ca.Load().signer, Leaf: k.leaf.Load(), User: k.user.Load()}[c]
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
