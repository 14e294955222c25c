package tls

import (
	"crypto/tls"
	"fmt"
	"path/filepath"
)

// userSource is the source of the user's pair.
func (k *Keeper) userSource(certFile, keyFile string) *source {
	apply := func(contents [][]byte) error {
		user, err := parseUser(certFile, keyFile, contents[0], contents[1])
		if err == nil {
			k.user.Store(user)
		}
		return err
	}
	return &source{cert: User, what: "the user's certificate", paths: []string{certFile, keyFile}, apply: apply}
}

// parseUser checks the content of the user's files: the key must match, and the certificate must have a DNS name to be
// served for. An expired one is accepted; [Keeper.Run] logs it.
func parseUser(certFile, keyFile string, cert, key []byte) (*tls.Certificate, error) {
	if certFile == "" {
		return nil, fmt.Errorf("the user's certificate: key %s is given without a certificate", keyFile)
	}
	from := filepath.Clean(certFile)
	if keyFile == "" {
		key = cert
	} else {
		from += " with key " + filepath.Clean(keyFile)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("the user's certificate %s: %w", from, err)
	}
	if len(pair.Leaf.DNSNames) == 0 {
		return nil, fmt.Errorf("the user's certificate %s: it names no host (no DNS name among its subject "+
			"alternative names), so it would never be served", from)
	}
	return &pair, nil
}
