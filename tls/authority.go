package tls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

const (
	caFile = "ca.pem"

	// headerPublished and headerRetired mark, in the CA's file, the certificates other than the one that signs. Their
	// value is the time of that step of the rotation.
	headerPublished = "Trow-Published"
	headerRetired   = "Trow-Retired"

	// caLife is explained in the package comment, under "Why".
	caLife = 10 * 365 * 24 * time.Hour
	// lastYear is the time before its end in which a CA is rotated automatically. It is long because people may have to
	// bring the new CA to every machine.
	lastYear = 365 * 24 * time.Hour
	// defaultOverlap is explained at [Options.Overlap].
	defaultOverlap = 24 * time.Hour
)

// caRemedy ends every error about the CA's file (invariant 1).
const caRemedy = "restore it from a backup; or move it away, then a new CA is made, which every node and workstation " +
	"must be set up to trust"

// authority is the CA that signs and, during a rotation, the others in the bundle. It is immutable. Its file contains
// all of them, the one that signs first.
type authority struct {
	signer tls.Certificate
	next   *tls.Certificate // published, and does not sign yet; nil outside a rotation
	since  time.Time        // when next was published
	old    []oldCA          // no longer sign, and are still published
}

// oldCA is a CA that no longer signs, without its key.
type oldCA struct {
	cert  *x509.Certificate
	since time.Time
}

// bundle returns the certificates of all CAs in PEM, the one that signs first: what a client needs to trust the server.
func (a *authority) bundle() []byte {
	out := pemCert(a.signer.Certificate[0], nil)
	if a.next != nil {
		out = append(out, pemCert(a.next.Certificate[0], nil)...)
	}
	for _, r := range a.old {
		out = append(out, pemCert(r.cert.Raw, nil)...)
	}
	return out
}

// step returns the authority after the step of a rotation that is due now, or a itself. rotate starts a
// rotation. published reports whether a bundle has reached the clients.
func (a *authority) step(now time.Time, overlap time.Duration, rotate bool, published func([]byte) bool) (*authority,
	error) {
	b := *a
	b.old = nil
	// The last step: an old CA leaves the bundle when no leaf of it can be in use any more.
	for _, r := range a.old {
		if now.Before(r.since.Add(overlap)) && validAt(r.cert, now) == nil {
			b.old = append(b.old, r)
		}
	}
	switch ended := validAt(a.signer.Leaf, now) != nil; {
	// The first step: a new CA enters the bundle. After the end of the old one it is too late for a rotation.
	case a.next == nil && (rotate || validAt(a.signer.Leaf, now.Add(lastYear)) != nil) && !ended:
		next, err := makeCA(now)
		if err != nil {
			return nil, err
		}
		b.next, b.since = next, now
	// The second step: the new CA signs. Clients must know it by then, unless the old one has expired anyway.
	case a.next != nil && (ended || !now.Before(a.since.Add(overlap)) && published(a.bundle())):
		b.old = append(b.old, oldCA{a.signer.Leaf, now})
		b.signer, b.next = *a.next, nil
	case len(b.old) == len(a.old):
		return a, nil
	}
	return &b, nil
}

// encode returns the content of the CA's file.
func (a *authority) encode() ([]byte, error) {
	out, err := pemPair(&a.signer, nil)
	if err != nil {
		return nil, err
	}
	if a.next != nil {
		next, err := pemPair(a.next, map[string]string{headerPublished: a.since.UTC().Format(time.RFC3339)})
		if err != nil {
			return nil, err
		}
		out = append(out, next...)
	}
	for _, r := range a.old {
		headers := map[string]string{headerRetired: r.since.UTC().Format(time.RFC3339)}
		out = append(out, pemCert(r.cert.Raw, headers)...)
	}
	return out, nil
}

// parseAuthority reads the content of the CA's file. It is strict, because a CA that is misread would be replaced on
// each client (invariant 1). Errors: the first thing that is wrong with the file.
func parseAuthority(b []byte) (*authority, error) {
	a := new(authority)
	for first := true; ; first = false {
		var entry caEntry
		if b = entry.read(b); entry.err != nil {
			return nil, entry.err
		}
		switch {
		case entry.cert == nil && first:
			return nil, errors.New("it contains no certificate")
		case entry.cert == nil:
			return a, nil
		case !entry.since.IsZero() && entry.key == nil:
			a.old = append(a.old, oldCA{entry.cert, entry.since})
			continue
		}
		pair, err := entry.pair()
		if err != nil {
			return nil, err
		}
		switch {
		case first && entry.since.IsZero():
			a.signer = *pair
		case !first && a.next == nil && !entry.since.IsZero():
			a.next, a.since = pair, entry.since
		default:
			return nil, errors.New("it contains one certificate too many")
		}
	}
}

// caEntry is a certificate in the CA's file, with its headers and its key.
type caEntry struct {
	cert  *x509.Certificate // nil: the end of the file
	since time.Time         // zero: the one that signs
	key   *pem.Block        // nil if the entry has no key
	err   error
}

// read reads an entry from the start of b and returns the rest.
func (e *caEntry) read(b []byte) []byte {
	block, rest := pem.Decode(b)
	if block == nil {
		if len(bytes.TrimSpace(b)) > 0 {
			e.err = errors.New("it contains something that is not PEM")
		}
		return nil
	}
	if block.Type != blockCert {
		e.err = fmt.Errorf("it contains a %s in place of a certificate", block.Type)
		return nil
	}
	if e.cert, e.err = x509.ParseCertificate(block.Bytes); e.err != nil {
		return nil
	}
	if !e.cert.IsCA || e.cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		e.err = errors.New("its certificate is not a CA's: it may not sign certificates")
		return nil
	}
	for _, header := range []string{headerPublished, headerRetired} {
		if text, ok := block.Headers[header]; ok {
			if e.since, e.err = time.Parse(time.RFC3339, text); e.err != nil {
				return nil
			}
		}
	}
	if key, after := pem.Decode(rest); key != nil && key.Type != blockCert {
		e.key, rest = key, after
	}
	return rest
}

// pair returns certificate and key together. Errors: there is no key, or one that does not match.
func (e *caEntry) pair() (*tls.Certificate, error) {
	if e.key == nil {
		return nil, errors.New("the key is missing")
	}
	pair, err := tls.X509KeyPair(pemCert(e.cert.Raw, nil), pem.EncodeToMemory(e.key))
	return &pair, err
}

// newAuthority makes the first CA.
func newAuthority(now time.Time) (*authority, error) {
	ca, err := makeCA(now)
	if err != nil {
		return nil, err
	}
	return &authority{signer: *ca}, nil
}

// makeCA makes a CA.
func makeCA(now time.Time) (*tls.Certificate, error) {
	pair, err := makePair(&x509.Certificate{
		// Eight digits distinguish two CAs of one cluster in a list of trusted roots; nothing depends on them.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("Trow CA %08x", rand.Uint32())},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // it signs leaves and no other CA
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("make the CA: %w", err)
	}
	return pair, nil
}
