package tls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"time"
)

const (
	leafFile = "leaf.pem"

	blockCert = "CERTIFICATE"
	blockKey  = "PRIVATE KEY"
)

const (
	// leafLife is short enough that no client rejects it as too long, and long enough that a server may be switched off
	// for a month and still have a valid certificate.
	leafLife = 90 * 24 * time.Hour
	// backdate puts the start of a certificate into the past, for clients whose clocks are slow.
	backdate = time.Hour
)

// parseLeaf reads the content of the leaf's file. It returns nil if that is not a valid pair.
func parseLeaf(b []byte) *tls.Certificate {
	pair, err := tls.X509KeyPair(b, b)
	if err != nil {
		return nil // then a new one is made (invariant 2)
	}
	return &pair
}

// usable reports whether there is a leaf, of this CA, for exactly these names, and not due for renewal.
func usable(leaf *tls.Certificate, ca *x509.Certificate, n names, now time.Time) bool {
	return leaf != nil && leaf.Leaf.CheckSignatureFrom(ca) == nil && namesOf(leaf.Leaf).equal(n) &&
		!due(leaf.Leaf, ca, now)
}

// due reports whether a leaf must be renewed: past two thirds of its life, which leaves a month in which the renewal
// may fail. A leaf that ends with its CA is never due: a new one would end at the same time.
func due(leaf, ca *x509.Certificate, now time.Time) bool {
	if now.Before(leaf.NotBefore) {
		return true // the clock was wrong when it was made, or is wrong now
	}
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return now.After(leaf.NotBefore.Add(life/3*2)) && leaf.NotAfter.Before(ca.NotAfter)
}

// makeLeaf makes a leaf, which does not outlive its CA.
func makeLeaf(ca *tls.Certificate, n names, now time.Time) (*tls.Certificate, error) {
	end := now.Add(leafLife)
	if end.After(ca.Leaf.NotAfter) {
		end = ca.Leaf.NotAfter
	}
	pair, err := makePair(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "Trow"}, // for people; clients only look at the names below
		NotBefore:   now.Add(-backdate),
		NotAfter:    end,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    n.dns,
		IPAddresses: n.addrs(),
	}, ca)
	if err != nil {
		return nil, fmt.Errorf("make the server's certificate: %w", err)
	}
	return pair, nil
}

// makePair makes a key, and a certificate that ca signs; if ca is nil it is self-signed. The key is P-256, because
// every client supports it and its handshakes are the cheapest.
func makePair(template *x509.Certificate, ca *tls.Certificate) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	parent, signer := template, crypto.PrivateKey(key)
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}, nil
}

// pemPair returns certificate and key in PEM, the certificate with these headers.
func pemPair(pair *tls.Certificate, headers map[string]string) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return nil, err
	}
	key := pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der})
	return append(pemCert(pair.Certificate[0], headers), key...), nil
}

func pemCert(der []byte, headers map[string]string) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockCert, Headers: headers, Bytes: der})
}
