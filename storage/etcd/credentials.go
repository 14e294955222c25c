package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"

	"trow/storage/files"
)

// fileCredentials are TLS credentials that are read from the files for each handshake: a certificate that was renewed
// counts from the next connection on, and there is nothing that follows the files. Handshakes are rare.
type fileCredentials struct {
	credentials.TransportCredentials // for what does not depend on the files

	connected     func(error) // called with the outcome of each handshake
	ca, cert, key string      // paths; ca "": the CAs of the system; cert "": no client certificate
}

// newFileCredentials reads the files once, so that a mistake in them is reported at the start.
func newFileCredentials(ca, cert, key string, connected func(error)) (*fileCredentials, error) {
	if (cert == "") != (key == "") {
		return nil, errors.New("a client certificate needs its key, and the key its certificate: give both files")
	}
	c := &fileCredentials{credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}), connected, ca, cert, key}
	_, err := c.config()
	return c, err
}

// config reads the files.
func (c *fileCredentials) config() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.ca != "" {
		pem, err := files.Read(c.ca, files.MaxSize)
		if err != nil {
			return nil, fmt.Errorf("the CA of etcd: %w", err)
		}
		if config.RootCAs = x509.NewCertPool(); !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the CA of etcd: %s has no PEM certificate", c.ca)
		}
	}
	if c.cert == "" {
		return config, nil
	}
	cert, err := files.Read(c.cert, files.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("the client certificate for etcd: %w", err)
	}
	key, err := files.Read(c.key, files.MaxSize)
	if err != nil {
		return nil, fmt.Errorf("the key of the client certificate for etcd: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("the client certificate for etcd: %s and %s: %w", c.cert, c.key, err)
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// ClientHandshake implements [credentials.TransportCredentials].
func (c *fileCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (
	secure net.Conn, info credentials.AuthInfo, err error,
) {
	defer func() { c.connected(err) }()
	config, err := c.config()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(config).ClientHandshake(ctx, authority, conn)
}

// Clone implements [credentials.TransportCredentials].
func (c *fileCredentials) Clone() credentials.TransportCredentials {
	copied := *c
	copied.TransportCredentials = c.TransportCredentials.Clone()
	return &copied
}
