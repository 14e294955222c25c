package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// identity describes a certificate: the user of a client of the API server, or the names of a server.
type identity struct {
	name         string // of the files
	organization string // a group, for Kubernetes
	commonName   string // a user, for Kubernetes
	names        []string
	addresses    []string
}

var identities = []identity{
	{name: "apiserver", commonName: "kube-apiserver", addresses: []string{"127.0.0.1", "::1", NodeIP, "10.96.0.1"},
		names: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local"}},
	{name: "etcd", commonName: "etcd", addresses: []string{"127.0.0.1"}, names: []string{"localhost"}},
	{name: "kubelet-server", commonName: NodeName, addresses: []string{"127.0.0.1", NodeIP}, names: []string{NodeName}},
	{name: "engines", commonName: "engines", addresses: []string{"127.0.0.1", NodeIP}}, // of package engines
	{name: "admin", organization: "system:masters", commonName: "admin"},
	{name: "apiserver-kubelet-client", organization: "system:masters", commonName: "kube-apiserver-kubelet-client"},
	{name: "controller-manager", commonName: "system:kube-controller-manager"},
	{name: "scheduler", commonName: "system:kube-scheduler"},
	{name: "kubelet", organization: "system:nodes", commonName: "system:node:" + NodeName},
	{name: "kube-proxy", commonName: "system:kube-proxy"},
	{name: "front-proxy", commonName: "front-proxy-client"},
}

// writeCertificates writes a CA, ca.crt; NAME.crt and NAME.key for each identity; and the key pair that signs
// ServiceAccount tokens, sa.key and sa.pub.
func writeCertificates(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := certificateTemplate(1, pkix.Name{CommonName: "trow-e2e-ca"})
	ca.IsCA, ca.BasicConstraintsValid = true, true
	ca.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	if err := errors.Join(writePEM(dir, "ca.crt", "CERTIFICATE", der), writeKey(dir, "ca.key", caKey)); err != nil {
		return err
	}
	for i, id := range identities {
		if err := writeIdentity(dir, int64(i+2), id, ca, caKey); err != nil {
			return fmt.Errorf("certificate of %s: %w", id.name, err)
		}
	}
	sa, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	pub, err := x509.MarshalPKIXPublicKey(sa.Public())
	if err != nil {
		return err
	}
	return errors.Join(writeKey(dir, "sa.key", sa), writePEM(dir, "sa.pub", "PUBLIC KEY", pub))
}

// writeIdentity writes the certificate and key of an identity. Each may be used by a server and by a client.
func writeIdentity(dir string, serial int64, id identity, ca *x509.Certificate, caKey crypto.Signer) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	subject := pkix.Name{CommonName: id.commonName}
	if id.organization != "" {
		subject.Organization = []string{id.organization}
	}
	c := certificateTemplate(serial, subject)
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	c.DNSNames = id.names
	for _, a := range id.addresses {
		c.IPAddresses = append(c.IPAddresses, net.ParseIP(a))
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), caKey)
	if err != nil {
		return err
	}
	return errors.Join(writePEM(dir, id.name+".crt", "CERTIFICATE", der), writeKey(dir, id.name+".key", key))
}

// certificateTemplate returns the common fields of all certificates. They outlive each run.
func certificateTemplate(serial int64, subject pkix.Name) *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: subject,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0)}
}

func writeKey(dir, name string, key crypto.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(dir, name, "PRIVATE KEY", der)
}

func writePEM(dir, name, kind string, der []byte) error {
	return os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

// writeKubeconfig writes a kubeconfig with which a program reaches the API server as the given identity.
func writeKubeconfig(dir, pki, name string) (string, error) {
	path := filepath.Join(dir, name+".kubeconfig")
	file := func(f string) string { return filepath.Join(pki, f) }
	return path, os.WriteFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: "https://127.0.0.1:6443", certificate-authority: %q}}]
users: [{name: %s, user: {client-certificate: %q, client-key: %q}}]
contexts: [{name: e2e, context: {cluster: e2e, user: %s}}]
current-context: e2e
`, file("ca.crt"), name, file(name+".crt"), file(name+".key"), name), 0o600)
}
