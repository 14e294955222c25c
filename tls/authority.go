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

	// headerPublished and headerRetired mark, in the CA's file, the certificates beside the one that signs, and
	// since when they are that.
	headerPublished = "Trow-Published"
	headerRetired   = "Trow-Retired"

	// caLife: see the package comment, "Why".
	caLife = 10 * 365 * 24 * time.Hour
	// lastYear is when a CA is replaced unasked: to bring a new one to every machine takes its time.
	lastYear = 365 * 24 * time.Hour
	// defaultOverlap: see [Options.Overlap].
	defaultOverlap = 24 * time.Hour
)

// caRemedy ends every error about the CA's file; invariant 1.
const caRemedy = "restore it from a backup; or move it away to have a new CA made, which every node and " +
	"workstation must then be told to trust"

// authority is the CA that signs and, while one takes the place of another, those beside it. It is not changed
// once it is made. Its file has all of them, the one that signs first.
type authority struct {
	signer tls.Certificate
	next   *tls.Certificate // told to everybody, and not used yet; nil: none
	since  time.Time        // of next
	old    []retired        // not used any more, and still told to everybody
}

// retired is a CA without its key.
type retired struct {
	cert  *x509.Certificate
	since time.Time
}

// bundle is the certificates of all, in PEM, the one that signs first: what a client needs in order to trust us.
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

// step returns what an authority is to become now: itself, if nothing is due. rotate asks for a new CA. published
// tells whether a bundle has reached those who trust us.
func (a *authority) step(now time.Time, overlap time.Duration, rotate bool, published func([]byte) bool) (*authority, error) {
	b := *a
	b.old = nil
	for _, r := range a.old {
		if now.Before(r.since.Add(overlap)) && holds(r.cert, now) == nil {
			b.old = append(b.old, r)
		}
	}
	switch ended := holds(a.signer.Leaf, now) != nil; {
	case a.next == nil && (rotate || holds(a.signer.Leaf, now.Add(lastYear)) != nil) && !ended:
		next, err := makeCA(now)
		if err != nil {
			return nil, err
		}
		b.next, b.since = next, now
	case a.next != nil && (ended || !now.Before(a.since.Add(overlap)) && published(a.bundle())):
		b.old = append(b.old, retired{a.signer.Leaf, now})
		b.signer, b.next = *a.next, nil
	case len(b.old) == len(a.old):
		return a, nil
	}
	return &b, nil
}

// encode is the content of the CA's file.
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
		out = append(out, pemCert(r.cert.Raw, map[string]string{headerRetired: r.since.UTC().Format(time.RFC3339)})...)
	}
	return out, nil
}

// parseAuthority reads the content of the CA's file. Errors: the first thing that is wrong with it.
func parseAuthority(b []byte) (*authority, error) {
	a := new(authority)
	for first := true; ; first = false {
		var entry caEntry
		if b = entry.read(b); entry.err != nil {
			return nil, entry.err
		}
		switch {
		case entry.cert == nil && first:
			return nil, errors.New("it holds no certificate")
		case entry.cert == nil:
			return a, nil
		case !entry.since.IsZero() && entry.key == nil:
			a.old = append(a.old, retired{entry.cert, entry.since})
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
			return nil, errors.New("it holds more certificates than belong there")
		}
	}
}

// caEntry is a certificate in the CA's file, and what belongs to it.
type caEntry struct {
	cert  *x509.Certificate // nil: the file has ended
	since time.Time         // of one that does not sign
	key   *pem.Block        // nil: there is none
	err   error
}

// read reads an entry from the beginning of b and returns the rest.
func (e *caEntry) read(b []byte) []byte {
	block, rest := pem.Decode(b)
	if block == nil {
		if len(bytes.TrimSpace(b)) > 0 {
			e.err = errors.New("it holds something that is not PEM")
		}
		return nil
	}
	if block.Type != blockCert {
		e.err = fmt.Errorf("it holds a %s where a certificate belongs", block.Type)
		return nil
	}
	if e.cert, e.err = x509.ParseCertificate(block.Bytes); e.err != nil {
		return nil
	}
	if !e.cert.IsCA || e.cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		e.err = errors.New("it may not sign certificates")
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

// pair puts certificate and key together.
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
		// Eight digits tell two CAs of one cluster apart in a list of trusted roots; nothing depends on them.
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
