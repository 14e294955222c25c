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
	"errors"
	"fmt"
	"io/fs"
	"time"
)

const (
	caFile   = "ca.pem"
	leafFile = "leaf.pem"

	blockCert = "CERTIFICATE"
	blockKey  = "PRIVATE KEY"
)

const (
	// caLife: see the package comment, "Why".
	caLife = 10 * 365 * 24 * time.Hour
	// leafLife is short enough that no client calls it too long, long enough that a server may be switched
	// off for a month and still come back with a certificate that holds.
	leafLife = 90 * 24 * time.Hour
	// backdate puts the beginning of a certificate into the past, for clients whose clocks are late.
	backdate = time.Hour
)

// caRemedy ends every error about the CA's file; invariant 1.
const caRemedy = "restore it from a backup; or move it away to have a new CA made, which every node and " +
	"workstation must then be told to trust"

// loadCA returns the CA that is kept in d, made now if there is none.
func loadCA(d dir, now time.Time) (*tls.Certificate, error) {
	b, err := d.load(caFile)
	if errors.Is(err, fs.ErrNotExist) {
		return makeCA(d, now)
	}
	if err != nil {
		return nil, fmt.Errorf("the CA: %w", err)
	}
	pair, err := tls.X509KeyPair(b, b)
	if err == nil {
		err = checkCA(pair.Leaf, now)
	}
	if err != nil {
		return nil, fmt.Errorf("the CA in %s cannot be used: %w; %s", d.path(caFile), err, caRemedy)
	}
	return &pair, nil
}

// checkCA says why a certificate cannot sign leaves.
func checkCA(c *x509.Certificate, now time.Time) error {
	if !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return errors.New("it may not sign certificates")
	}
	return holds(c, now)
}

// makeCA makes a CA and keeps it.
func makeCA(d dir, now time.Time) (*tls.Certificate, error) {
	// Eight digits tell two CAs of one cluster apart in a list of trusted roots; nothing depends on them.
	id := make([]byte, 4)
	rand.Read(id) // returns no error (crypto/rand)
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: fmt.Sprintf("Trow CA %x", id)},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // it signs leaves and no other CA
	}
	pair, err := makePair(d, caFile, template, nil)
	if err != nil {
		return nil, fmt.Errorf("make the CA: %w", err)
	}
	return pair, nil
}

// loadLeaf returns the leaf that is kept in d, or a new one where that does not serve; invariant 2.
func loadLeaf(d dir, ca *tls.Certificate, n names, now time.Time) (*tls.Certificate, error) {
	if b, err := d.load(leafFile); err == nil {
		pair, err := tls.X509KeyPair(b, b)
		if err == nil && serves(pair.Leaf, ca.Leaf, n) && !due(pair.Leaf, ca.Leaf, now) {
			return &pair, nil
		}
	}
	return makeLeaf(d, ca, n, now)
}

// serves reports whether a leaf is of this CA and for just these names.
func serves(leaf, ca *x509.Certificate, n names) bool {
	return leaf.CheckSignatureFrom(ca) == nil && namesOf(leaf).equal(n)
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

// makeLeaf makes a leaf and keeps it.
func makeLeaf(d dir, ca *tls.Certificate, n names, now time.Time) (*tls.Certificate, error) {
	end := now.Add(leafLife)
	if end.After(ca.Leaf.NotAfter) {
		end = ca.Leaf.NotAfter
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "Trow"}, // for people; clients look at the names below alone
		NotBefore:   now.Add(-backdate),
		NotAfter:    end,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    n.dns,
		IPAddresses: n.addrs(),
	}
	pair, err := makePair(d, leafFile, template, ca)
	if err != nil {
		return nil, fmt.Errorf("make the server's certificate: %w", err)
	}
	return pair, nil
}

// makePair makes a key, has the certificate signed by ca (nil: by itself), and keeps both under name. P-256
// because every client has it and its handshakes are the cheapest.
func makePair(d dir, name string, template *x509.Certificate, ca *tls.Certificate) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	parent, signer := template, crypto.PrivateKey(key)
	if ca != nil {
		parent, signer = ca.Leaf, ca.PrivateKey
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	b := pem.EncodeToMemory(&pem.Block{Type: blockCert, Bytes: cert})
	b = append(b, pem.EncodeToMemory(&pem.Block{Type: blockKey, Bytes: der})...)
	if err := d.save(name, b); err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(b, b)
	return &pair, err
}
