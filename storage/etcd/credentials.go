package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"trow/storage/files"
	"trow/storage/internal/local"
)

// fileCredentials are TLS credentials that are read from the files for each handshake: a certificate that was renewed
// counts from the next connection on, and there is nothing that follows the files. Handshakes are rare.
type fileCredentials struct {
	credentials.TransportCredentials // for what does not depend on the files

	connected     func(error) // called with why a connection was of no use, or nil once etcd has said something
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
	config, err := c.config()
	if err == nil {
		secure, info, err = credentials.NewTLS(config).ClientHandshake(ctx, authority, conn)
	}
	if err != nil {
		remedy := local.CertificateRemedy(err, "journal-ca-file")
		if remedy == "" && hungUp(err) {
			remedy = "if etcd is without TLS, write etcd://"
		}
		c.connected(withRemedy(err, remedy))
		return nil, nil, err
	}
	// With TLS 1.3 the handshake is over before etcd has looked at the client's certificate.
	return &greeted{Conn: secure, connected: c.connected, remedy: "if etcd asks for a client certificate, set " +
		"journal-cert-file and journal-key-file to one that is valid, and of a CA that it trusts"}, info, nil
}

// Clone implements [credentials.TransportCredentials].
func (c *fileCredentials) Clone() credentials.TransportCredentials {
	copied := *c
	copied.TransportCredentials = c.TransportCredentials.Clone()
	return &copied
}

// plainCredentials are those without TLS.
type plainCredentials struct {
	credentials.TransportCredentials
	connected func(error)
}

func newPlainCredentials(connected func(error)) *plainCredentials {
	return &plainCredentials{insecure.NewCredentials(), connected}
}

// ClientHandshake implements [credentials.TransportCredentials].
func (c *plainCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (
	plain net.Conn, info credentials.AuthInfo, err error,
) {
	plain, info, err = c.TransportCredentials.ClientHandshake(ctx, authority, conn)
	if err != nil {
		c.connected(err)
		return nil, nil, err
	}
	return &greeted{Conn: plain, connected: c.connected, remedy: "if etcd is with TLS, write etcds://"}, info, nil
}

// Clone implements [credentials.TransportCredentials].
func (c *plainCredentials) Clone() credentials.TransportCredentials {
	return &plainCredentials{c.TransportCredentials.Clone(), c.connected}
}

// greeted is a connection of which it is reported whether etcd has said anything on it. Only then it is known that etcd
// wants this client: it refuses a certificate, or a client without TLS, by ending the connection.
type greeted struct {
	net.Conn
	connected func(error)
	remedy    string // if it said nothing
	once      sync.Once
}

// Read implements [net.Conn].
func (c *greeted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	switch {
	case n > 0:
		c.once.Do(func() { c.connected(nil) })
	case err != nil && !errors.Is(err, net.ErrClosed): // closed by this side
		c.once.Do(func() { c.connected(withRemedy(err, c.remedy)) })
	}
	return n, err
}

// hungUp reports whether the other side has ended a connection.
func hungUp(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) }

// withRemedy adds a remedy, if there is one, to an error.
func withRemedy(err error, remedy string) error {
	if remedy == "" {
		return err
	}
	return fmt.Errorf("%w; %s", err, remedy)
}
