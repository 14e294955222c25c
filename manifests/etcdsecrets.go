package manifests

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"

	"trow/manifests/kube"
)

// etcdLife is how long the certificates of etcd are valid. It is long because nothing renews them: the key of their CA
// is not kept.
const etcdLife = 10 * 365 * 24 * time.Hour

// writeEtcdSecrets makes a CA, and certificates of it for the members of --with-etcd and for the registry, and writes
// them as two Secrets. They are not part of the manifest, which is the same each time (invariant 1), and which people
// keep in repositories. Errors: an invalid namespace; those of out.
func writeEtcdSecrets(out io.Writer, namespace string, now time.Time) error {
	if msg := validation.IsDNS1123Label(namespace); len(msg) > 0 {
		return fmt.Errorf("namespace: %.80q: %s", namespace, msg[0])
	}
	from, to := now.Add(-time.Hour), now.Add(etcdLife) // an hour for nodes whose clocks are behind
	certificate := func(name string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to,
			KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true}
	}
	authority := certificate("Trow etcd CA")
	authority.IsCA, authority.MaxPathLenZero, authority.KeyUsage = true, true, x509.KeyUsageCertSign
	ca, caKey, _, err := issue(authority, nil, nil)
	if err != nil {
		return err
	}
	// The members accept this name alone as one of theirs (peer-cert-allowed-cn), and are clients of each other.
	server := certificate(kube.EtcdName)
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	server.DNSNames, server.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, m := range members(namespace) {
		server.DNSNames = append(server.DNSNames, m.Host)
	}
	client := certificate(kube.Name)
	client.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for i, s := range []struct {
		name     string
		template *x509.Certificate
	}{{kube.EtcdName, server}, {kube.EtcdClientSecretName, client}} {
		cert, _, key, err := issue(s.template, ca, caKey)
		if err != nil {
			return err
		}
		if i > 0 {
			if _, err := io.WriteString(out, "---\n"); err != nil {
				return err
			}
		}
		if _, err := fmt.Fprintf(out, "apiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\n"+
			"  labels: {app.kubernetes.io/name: trow}\ntype: kubernetes.io/tls\n"+
			"data:\n  ca.crt: %s\n  tls.crt: %s\n  tls.key: %s\n", s.name, str(namespace),
			block("CERTIFICATE", ca.Raw), block("CERTIFICATE", cert.Raw), block("PRIVATE KEY", key)); err != nil {
			return err
		}
	}
	return nil
}

// issue makes a key and a certificate for it, signed by parent, or by itself. It returns the key in PKCS #8 as well.
func issue(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey,
	[]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if parent == nil {
		parent, parentKey = template, key
	}
	encoded, encodeErr := x509.MarshalPKCS8PrivateKey(key)
	if err := errors.Join(err, encodeErr); err != nil {
		return nil, nil, nil, err
	}
	raw, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, nil, err
	}
	cert, err := x509.ParseCertificate(raw)
	return cert, key, encoded, err
}

// block returns PEM in base64, as a Secret has it.
func block(kind string, der []byte) string {
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
