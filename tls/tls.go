// Package tls keeps the server's certificates: it makes them, renews them, and picks one for each connection.
//
// # Words
//
//   - pair: a certificate and its private key. One PEM file contains both, so that neither a crash nor a restored
//     backup can separate them.
//   - CA: the server's own certificate authority. Every workstation and node that pushes or pulls has a copy of its
//     certificate.
//   - bundle: the certificates of all CAs that clients should trust: one, and during a rotation two.
//   - leaf: the pair that the server presents, signed by the CA, for the names in the Options.
//   - user's pair: a pair that the user provides, served in addition to the leaf and never instead of it.
//   - client CAs: the CAs whose certificates clients may present, for one purpose each: to log in, or to prove that
//     they are the API server. A certificate that was verified for one purpose proves nothing for another.
//   - [Store]: where CA and leaf are kept: a directory, or what the caller provides.
//   - rotation: a new CA replaces the old one in three steps. First it is published in the bundle beside the old one,
//     then it signs, then the old one is retired from the bundle. Between two steps passes the overlap.
//   - [Keeper]: the certificates of one server.
//
// # Invariants
//
//  1. An existing CA is replaced by rotation only. If its file is unusable, [Open] reports that and the remedy: clients
//     trust that CA, and a new one in its place would look like an attack to each of them.
//  2. A leaf is expendable: if anything is wrong with its file, a new one is made.
//  3. A client that connects to an IP address, without SNI, or to a name below .svc gets the leaf. Nodes and the
//     Kubernetes API server trust nothing but our CA, whatever the user's pair is.
//  4. A handshake never waits: the pairs are read through atomic pointers. A change of the pairs does not affect open
//     connections.
//  5. If the user's files or the client CAs change to something invalid, what was loaded before stays in use.
//  6. Files are written durably, by package files: after a crash there is the old content or the new.
//  7. What is served is kept: nothing new is used before it is in the store. Processes that share a store serve leaves
//     of the same CA.
//  8. No client needs a certificate to connect; an invalid one ends the handshake. When the client CAs change, no
//     session is resumed that was started before, and what a client has presented on an open connection counts only as
//     long as its CA is one of them.
//
// # What it does not do
//
// It does not lock its directory: two processes that start on one directory at the same time may each make a CA. The
// caller must hold the lock of the data directory. It speaks to no ACME server, checks no revocation, and knows nothing
// of Kubernetes.
//
// # Why
//
// The CA is valid for ten years because a copy of it is on machines that people do not want to visit each year. The
// leaf is valid for 90 days because no client has to be changed when the leaf changes.
package tls

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Cert names one of the certificates of a [Keeper].
type Cert string

// The certificates of a Keeper.
const (
	CA   Cert = "ca"
	Leaf Cert = "leaf"
	User Cert = "user"
	// Clients are the client CAs.
	Clients Cert = "clients"
)

const (
	// minVersion is the oldest version of TLS: the API servers and container runtimes in use speak 1.2.
	minVersion = tls.VersionTLS12
	// defaultPoll: see [Options.Poll].
	defaultPoll = 5 * time.Second
	// openRetry is the time between two tries of Open with [Options.Wait].
	openRetry = time.Second
	// saveTries is how often another process may change the store while this one wants to. Each change brings the store
	// closer to what all of them want, so few tries are needed.
	saveTries = 10
)

// Keeper keeps the certificates of one server. Make one with [Open]. A nil Keeper stands for a server without TLS. Safe
// for concurrent use.
type Keeper struct {
	store     Store
	names     names
	poll      time.Duration
	overlap   time.Duration
	published func([]byte) bool
	caFile    string
	readOnly  bool
	volume    string // data directory of a server whose pairs are kept elsewhere; see reinstall.go
	log       zerolog.Logger
	sources   []*source // of user and clients

	mu               sync.Mutex // held by reconcile; not by handshakes. Guards the next line
	keptCA, keptLeaf []byte     // the content of the store from which ca and leaf were last made

	opened runner // what Run reports changes of first: what Open had

	ca      atomic.Pointer[authority]
	leaf    atomic.Pointer[tls.Certificate]
	user    atomic.Pointer[tls.Certificate] // nil: the user provides none
	clients atomic.Pointer[clientCAs]       // nil: clients are not asked for certificates
}

// Open reads the pairs in the store and makes what is missing: the CA, the leaf. It makes a new leaf if the old one is
// for other names, of another CA, past two thirds of its life, or unreadable.
//
// store nil means that the pairs are kept in o.Dir. With [Options.NoTLS] the Keeper is nil.
//
// Errors: an invalid name, with that name; an unusable CA, with the file and the remedy; an invalid user's pair or
// client CA, with the file and the cause (a user's pair that has expired is accepted, and logged by Run); those of the
// store. With [Options.Wait] it returns only the first of these, and those left when ctx is done.
func Open(ctx context.Context, store Store, o Options) (*Keeper, error) {
	if o.NoTLS {
		return nil, nil
	}
	volume := ""
	if store == nil {
		var err error
		if store, err = openStore(filepath.Join(o.Dir, "tls"), o.ReadOnly); err != nil {
			return nil, err
		}
	} else {
		volume = o.Dir
	}
	if o.CAFile == "" && o.Dir != "" {
		o.CAFile = filepath.Join(o.Dir, "ca.crt")
	}
	names, err := parseNames(slices.Concat(o.Names, o.ExtraNames))
	if err != nil {
		return nil, err
	}
	k := &Keeper{store: store, names: names, poll: o.Poll, overlap: o.Overlap, published: o.Published,
		caFile: o.CAFile, volume: volume, readOnly: o.ReadOnly, log: o.Log}
	if k.poll <= 0 {
		k.poll = defaultPoll
	}
	if k.overlap <= 0 {
		k.overlap = defaultOverlap
	}
	if k.published == nil {
		k.published = func([]byte) bool { return true }
	}
	for _, s := range []*source{k.clientSource([2]string{o.ClientCA, o.CallerCA}),
		k.userSource(o.CertFile, o.KeyFile)} {
		if s.used() {
			k.sources = append(k.sources, s)
		}
	}
	open := k.open
	if o.Wait {
		open = k.openWait
	}
	if err := open(ctx); err != nil {
		return nil, err
	}
	k.compareVolume()
	k.writeCAFile()
	// Not when Run begins: Rotate and Refresh may be called earlier, and Run must not miss what they change.
	k.opened = runner{Keeper: k, reportedCA: k.ca.Load(), reportedLeaf: k.leaf.Load()}
	return k, nil
}

// open reads everything for the first time.
func (k *Keeper) open(ctx context.Context) error {
	if err := k.reconcile(ctx, time.Now(), false); err != nil {
		return err
	}
	for _, s := range k.sources {
		if err := s.open(); err != nil {
			return err
		}
	}
	return nil
}

// openWait retries open until it succeeds or ctx is done. It logs each error once.
func (k *Keeper) openWait(ctx context.Context) error {
	lastReported := ""
	for {
		err := k.open(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if err.Error() != lastReported {
			lastReported = err.Error()
			k.log.Warn().Err(err).Msg("waiting for the certificates")
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(openRetry):
		}
	}
}

// Refresh takes over what other processes have saved in the store, and does what is due, now and not at the next poll
// of [Keeper.Run]. Errors: those of the store.
func (k *Keeper) Refresh(ctx context.Context) error { return k.reconcile(ctx, time.Now(), false) }

// Key returns a secret of 32 bytes that all processes with the same CA have, and no other: one for each purpose, from
// which neither another nor the CA's key can be computed (HKDF, RFC 5869). It changes with the CA. A nil Keeper has
// none.
func (k *Keeper) Key(purpose string) ([]byte, error) {
	if k == nil {
		return nil, errors.New("a server without TLS has no CA, and no key that others have too")
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k.ca.Load().signer.PrivateKey)
	if err != nil {
		return nil, err
	}
	return hkdf.Key(sha256.New, secret, nil, "trow "+purpose, sha256.Size)
}

// Rotate starts a rotation of the CA, unless one is under way; [Keeper.Run] completes it. Errors: those of the store.
func (k *Keeper) Rotate(ctx context.Context) error { return k.reconcile(ctx, time.Now(), true) }

// reconcile does what is due, and makes the store and what is served agree.
func (k *Keeper) reconcile(ctx context.Context, now time.Time, rotate bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for range saveTries {
		if done, err := k.tryReconcile(ctx, now, rotate); done || err != nil {
			return err
		}
	}
	return fmt.Errorf("the certificates in %s: other processes keep changing them", k.store)
}

// tryReconcile is one try of reconcile. It returns false if another process has changed the store meanwhile. The caller
// holds mu.
func (k *Keeper) tryReconcile(ctx context.Context, now time.Time, rotate bool) (bool, error) {
	pairs, version, err := k.store.Load(ctx)
	if err != nil {
		return false, fmt.Errorf("the certificates in %s: %w", k.store, err)
	}
	ca, err := k.authority(pairs, now)
	if err != nil {
		return false, err
	}
	next := ca
	if _, fixed := k.store.(*fixedDir); !fixed { // a rotation that is under way waits
		next, err = ca.step(now, k.overlap, rotate, k.published)
	} else if rotate {
		err = errFixedCA
	}
	if err != nil {
		return false, err
	}
	if err := validAt(next.signer.Leaf, now); err != nil {
		return false, k.unusable(err)
	}
	if next == k.ca.Load() && bytes.Equal(pairs[leafFile], k.keptLeaf) &&
		!due(k.leaf.Load().Leaf, next.signer.Leaf, now) {
		return true, nil // nothing has changed
	}
	leaf, made, err := k.pickLeaf(pairs[leafFile], &next.signer, now)
	if err != nil {
		return false, err
	}
	// Saved first, served second (invariant 7).
	if _, kept := pairs[caFile]; next != ca || made || !kept {
		if pairs, err = k.save(ctx, next, leaf, version); pairs == nil || err != nil {
			return false, err
		}
	}
	k.keptCA, k.keptLeaf = pairs[caFile], pairs[leafFile]
	k.ca.Store(next)
	k.leaf.Store(leaf)
	return true, nil
}

// authority returns the CA in the store. If the store is empty, it is the CA that is served, because clients trust it;
// or else a new one.
func (k *Keeper) authority(pairs map[string][]byte, now time.Time) (*authority, error) {
	have := k.ca.Load()
	content, kept := pairs[caFile]
	switch {
	case have != nil && (!kept || bytes.Equal(content, k.keptCA)):
		return have, nil
	case !kept:
		if earlier := k.fromVolume(now); earlier != nil {
			return earlier, nil
		}
		return newAuthority(now)
	}
	ca, err := parseAuthority(content)
	if err != nil {
		return nil, k.unusable(err)
	}
	return ca, nil
}

func (k *Keeper) unusable(err error) error {
	return fmt.Errorf("the CA in %s/%s is unusable: %w; %s", k.store, caFile, err, caRemedy)
}

// pickLeaf returns the leaf in the store, or else the one that is served now, or else a new one. The second case is for
// two processes that want different names, for example during an upgrade: each of them keeps its own leaf, instead of
// replacing the other's again and again.
func (k *Keeper) pickLeaf(content []byte, ca *tls.Certificate, now time.Time) (leaf *tls.Certificate, made bool,
	err error) {
	have := k.leaf.Load()
	kept := parseLeaf(content)
	if usable(kept, ca.Leaf, k.names, now) && (have == nil || !kept.Leaf.Equal(have.Leaf)) {
		return kept, false, nil
	}
	if usable(have, ca.Leaf, k.names, now) {
		return have, false, nil
	}
	leaf, err = makeLeaf(ca, k.names, now)
	return leaf, true, err
}

// save saves both and returns what was saved, nil if another process has changed the store.
func (k *Keeper) save(ctx context.Context, ca *authority, leaf *tls.Certificate, version string) (map[string][]byte,
	error) {
	content, err := ca.encode()
	if err != nil {
		return nil, err
	}
	pair, err := pemPair(leaf, nil)
	if err != nil {
		return nil, err
	}
	pairs := map[string][]byte{caFile: content, leafFile: pair}
	saved, err := k.store.Save(ctx, pairs, version)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the certificates in %s: %w", k.store, err)
	case !saved:
		return nil, nil
	}
	return pairs, nil
}

// Config returns the configuration of a listener: TLS 1.2 or later, and the certificate that is current at each
// handshake. The caller may change it. A nil Keeper returns nil.
func (k *Keeper) Config() *tls.Config {
	if k == nil {
		return nil
	}
	c := &tls.Config{MinVersion: minVersion, GetCertificate: k.pick}
	if k.clients.Load() != nil {
		k.requestClientCerts(c)
	}
	return c
}

// pick chooses the pair for one handshake (invariant 3).
func (k *Keeper) pick(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	user, name := k.user.Load(), strings.TrimSuffix(strings.ToLower(hello.ServerName), ".")
	if user != nil && name != "" && !ofCluster(name) && user.Leaf.VerifyHostname(name) == nil {
		return user, nil
	}
	return k.leaf.Load(), nil
}

// ofCluster reports whether the API server may use this name to call a webhook: it always asks for
// <service>.<namespace>.svc, and trusts nothing but the caBundle, which is our CA.
func ofCluster(name string) bool { return strings.HasSuffix(name, ".svc") }

// CA returns the bundle in PEM, without keys: what a client needs to trust the server. The CA that signs comes first.
func (k *Keeper) CA() []byte { return k.ca.Load().bundle() }

// SkopeoFlag returns the flag with which skopeo on this machine copies to this server, after a space.
func (k *Keeper) SkopeoFlag() string {
	if k == nil {
		return " --dest-tls-verify=false"
	}
	return " --dest-cert-dir " + filepath.Dir(k.caFile)
}

// Scheme returns the scheme of the server's URLs: https, or http for a nil Keeper.
func (k *Keeper) Scheme() string {
	if k == nil {
		return "http"
	}
	return "https"
}

// Fingerprint returns the SHA-256 of the CA's certificate as openssl x509 -fingerprint -sha256 prints it: in upper
// case, with a colon between the bytes.
func (k *Keeper) Fingerprint() string {
	sum := sha256.Sum256(k.ca.Load().signer.Certificate[0])
	return strings.ReplaceAll(fmt.Sprintf("% X", sum), " ", ":")
}

// NotAfter returns the time at which a certificate expires, of the client CAs the first. It returns the zero time if
// there is no such certificate.
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

// validAt returns an error if a certificate is not valid at this time.
func validAt(c *x509.Certificate, now time.Time) error {
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("it is valid until %s", c.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(c.NotBefore):
		return fmt.Errorf("it is valid from %s on", c.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}
