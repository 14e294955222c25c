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
	// leafLife is short enough that no client calls it too long, long enough that a server may be switched
	// off for a month and still come back with a certificate that holds.
	leafLife = 90 * 24 * time.Hour
	// backdate puts the beginning of a certificate into the past, for clients whose clocks are late.
	backdate = time.Hour
)

// parseLeaf reads the content of the leaf's file, nil if that is no pair.
func parseLeaf(b []byte) *tls.Certificate {
	pair, err := tls.X509KeyPair(b, b)
	if err != nil {
		return nil // invariant 2
	}
	return &pair
}

// serves reports whether a leaf is there, of this CA, for just these names, and not due.
func serves(leaf *tls.Certificate, ca *x509.Certificate, n names, now time.Time) bool {
	return leaf != nil && leaf.Leaf.CheckSignatureFrom(ca) == nil && namesOf(leaf.Leaf).equal(n) && !due(leaf.Leaf, ca, now)
}

// due reports whether a leaf is to be renewed: past two thirds of its life, which leaves a month in which the
// renewal may fail. A leaf that ends with its CA is not: a new one would end at the same time.
func due(leaf, ca *x509.Certificate, now time.Time) bool {
	if now.Before(leaf.NotBefore) {
		return true // the clock was wrong when it was made, or is now
	}
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return now.After(leaf.NotBefore.Add(life/3*2)) && leaf.NotAfter.Before(ca.NotAfter)
}

// makeLeaf makes a leaf.
func makeLeaf(ca *tls.Certificate, n names, now time.Time) (*tls.Certificate, error) {
	end := now.Add(leafLife)
	if end.After(ca.Leaf.NotAfter) {
		end = ca.Leaf.NotAfter
	}
	pair, err := makePair(&x509.Certificate{
		Subject:     pkix.Name{CommonName: "Trow"}, // for people; clients look at the names below alone
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

// makePair makes a key and has the certificate signed by ca (nil: by itself). P-256 because every client has it
// and its handshakes are the cheapest.
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

// pemPair is certificate and key in PEM, the certificate with these headers.
func pemPair(pair *tls.Certificate, headers map[string]string) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return nil, err
	}
	return append(pemCert(pair.Certificate[0], headers), pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der})...), nil
}

func pemCert(der []byte, headers map[string]string) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: blockCert, Headers: headers, Bytes: der})
}
