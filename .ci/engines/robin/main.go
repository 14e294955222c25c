// robin is a round robin in front of replicas: each request goes to the next one, whatever connection it came over.
//
//	robin CA-FILE URL…
//
// It listens on a free port of loopback, with TLS and a certificate of its own and, as Trow does there, without. It
// writes the certificate to CA-FILE, and prints its URL. It does not verify the replicas' certificates: they are on
// loopback, and each has its own CA.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"sync/atomic"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "robin:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: robin CA-FILE URL…")
	}
	var replicas []*url.URL
	for _, arg := range args[1:] {
		u, err := url.Parse(arg)
		if err != nil {
			return err
		}
		replicas = append(replicas, u)
	}
	pair, err := certificate(args[0])
	if err != nil {
		return err
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	l := &listener{plain, &tls.Config{Certificates: []tls.Certificate{pair}}}
	var n atomic.Uint64
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(replicas[n.Add(1)%uint64(len(replicas))])
			r.Out.Host = r.In.Host // the address that the answers name
		},
		Transport: &http.Transport{MaxIdleConnsPerHost: 64,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, // see the package comment
	}
	fmt.Printf("https://%s\n", l.Addr())
	server := &http.Server{Handler: proxy, ReadHeaderTimeout: time.Minute}
	return server.Serve(l)
}

// listener accepts connections with and without TLS.
type listener struct {
	net.Listener
	config *tls.Config
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, config: l.config}, nil
}

// conn is a connection that begins TLS if the first byte, which is that of a handshake (22), says so. It is read only
// by the goroutine of the connection, so a client that sends nothing keeps no other one waiting.
type conn struct {
	net.Conn
	config *tls.Config
	begun  bool
}

func (c *conn) Read(b []byte) (int, error) {
	if !c.begun {
		first := make([]byte, 1)
		if _, err := io.ReadFull(c.Conn, first); err != nil {
			return 0, err
		}
		c.begun = true
		c.Conn = &replayed{c.Conn, first}
		if first[0] == 22 {
			c.Conn = tls.Server(c.Conn, c.config)
		}
	}
	return c.Conn.Read(b)
}

// replayed is a connection of which the first bytes were read.
type replayed struct {
	net.Conn
	first []byte
}

func (c *replayed) Read(b []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(b, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// certificate makes a pair for loopback, and writes its certificate to a file.
func certificate(file string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1),
		// curl wants a name.
		Subject: pkix.Name{CommonName: "robin"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, os.WriteFile(file, text, 0o600)
}
