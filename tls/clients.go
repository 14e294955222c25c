package tls

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"time"
)

// Purpose is what a client presents a certificate for.
type Purpose int

// The purposes: to log in to the registry, and to prove that the caller of the webhook is the API server.
const (
	ForClient Purpose = iota
	ForCaller
)

// clientCAs are the client CAs. They never change; new content of the files makes new ones.
type clientCAs struct {
	roots [2][]*x509.Certificate // by purpose
	pool  *x509.CertPool         // of all purposes
	mark  []byte                 // identifies these CAs in the sessions that are started with them
}

// clientSource is the source of the client CAs, whose files are given by purpose.
func (k *Keeper) clientSource(paths [2]string) *source {
	apply := func(contents [][]byte) error {
		c, err := parseClientCAs(paths, contents)
		if err == nil {
			k.clients.Store(c)
		}
		return err
	}
	return &source{cert: Clients, what: "the client CA", paths: paths[:], apply: apply}
}

// parseClientCAs reads the certificates. Errors, with the name of the file: it contains none, or one that is not a
// CA's.
func parseClientCAs(paths [2]string, contents [][]byte) (*clientCAs, error) {
	c := &clientCAs{pool: x509.NewCertPool()}
	sum := sha256.New()
	for i, path := range paths {
		if path == "" {
			continue
		}
		roots, err := parseRoots(contents[i])
		if err != nil {
			return nil, fmt.Errorf("the client CA %s: %w", filepath.Clean(path), err)
		}
		for _, root := range roots {
			c.pool.AddCert(root)
			fmt.Fprintf(sum, "%d %x\n", i, root.Raw)
		}
		c.roots[i] = roots
	}
	c.mark = sum.Sum([]byte("trow client CAs "))
	return c, nil
}

func parseRoots(text []byte) (roots []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != blockCert {
			return nil, fmt.Errorf("it contains a %s; want certificates only", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			return nil, err
		case !c.IsCA || !c.BasicConstraintsValid:
			return nil, fmt.Errorf("%q is not a CA's certificate", c.Subject)
		}
		roots = append(roots, c)
	}
	if len(roots) == 0 {
		return nil, errors.New("it has no certificate in PEM")
	}
	return roots, nil
}

// requestClientCerts makes a configuration ask clients for certificates of the client CAs, those at the time of the
// handshake. The ticket of a session contains their mark. A ticket with another mark is not accepted, so that a session
// is not resumed after the client CAs have changed (invariant 8): there is a full handshake instead.
func (k *Keeper) requestClientCerts(c *tls.Config) {
	tickets := &tls.Config{} // its keys encrypt the tickets; crypto/tls replaces them each day
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := k.clients.Load()
		return &tls.Config{
			MinVersion:                  minVersion,
			GetCertificate:              k.pick,
			NextProtos:                  []string{"http/1.1"}, // this replaces the server's own configuration
			DynamicRecordSizingDisabled: true,                 // likewise
			ClientAuth:                  tls.VerifyClientCertIfGiven,
			ClientCAs:                   now.pool,
			WrapSession: func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
				session.Extra = append(session.Extra, now.mark)
				return tickets.EncryptTicket(state, session)
			},
			UnwrapSession: func(ticket []byte, state tls.ConnectionState) (*tls.SessionState, error) {
				session, err := tickets.DecryptTicket(ticket, state)
				if session == nil || !hasMark(session, now.mark) {
					return nil, err
				}
				return session, err
			},
		}, nil
	}
}

func hasMark(session *tls.SessionState, mark []byte) bool {
	return slices.ContainsFunc(session.Extra, func(b []byte) bool { return bytes.Equal(b, mark) })
}

// Certificates returns the method [Keeper.Certificate] for a purpose, nil if the options have no CA for it. keeper need
// not be set before the first request: it is read at each one.
func (o *Options) Certificates(keeper **Keeper, p Purpose) func(*http.Request) *x509.Certificate {
	if ca := map[Purpose]string{ForClient: o.ClientCA, ForCaller: o.CallerCA}[p]; ca == "" {
		return nil
	}
	return func(r *http.Request) *x509.Certificate { return (*keeper).Certificate(r, p) }
}

// Certificate returns the certificate that the client of a request has presented for a purpose. It returns nil without
// a certificate that is valid now: its CA may have been removed, or it may have expired, since the connection was
// opened.
func (k *Keeper) Certificate(r *http.Request, p Purpose) *x509.Certificate {
	if k == nil {
		return nil
	}
	c := k.clients.Load()
	if c == nil || r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	leaf := r.TLS.VerifiedChains[0][0]
	if validAt(leaf, time.Now()) != nil {
		return nil
	}
	// The handshake verified against the CAs of all purposes, so the purpose is checked here.
	for _, chain := range r.TLS.VerifiedChains {
		if slices.ContainsFunc(c.roots[p], chain[len(chain)-1].Equal) {
			return leaf
		}
	}
	return nil
}

// notAfter is the end of the client CA that ends first.
func (c *clientCAs) notAfter() (first time.Time) {
	if c == nil {
		return first
	}
	for _, root := range slices.Concat(c.roots[:]...) {
		if first.IsZero() || root.NotAfter.Before(first) {
			first = root.NotAfter
		}
	}
	return first
}
