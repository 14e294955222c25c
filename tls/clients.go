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

// Purpose is what a client's certificate is shown for.
type Purpose int

// The purposes: to say who a user of the registry is, and that the caller of the webhook is the API server.
const (
	ForClient Purpose = iota
	ForCaller
)

// clientFiles are the client CAs on disk, by purpose. Empty: there are none.
type clientFiles [2]string

// clientCAs are the client CAs. They never change; other files make new ones.
type clientCAs struct {
	read  clientPEM
	roots [2][]*x509.Certificate
	pool  *x509.CertPool // of all purposes
	mark  []byte         // of these, in the sessions that begin with them
}

// clientPEM is what the files held. Strings, so that two of them compare.
type clientPEM [2]string

func (f clientFiles) read() (p clientPEM, err error) {
	for i, path := range f {
		if path == "" {
			continue
		}
		if p[i], err = readFile(path); err != nil {
			return p, err
		}
	}
	return p, nil
}

// parse reads the certificates. Errors: a file that has none; one that is no CA's.
func (f clientFiles) parse(p clientPEM) (*clientCAs, error) {
	c := &clientCAs{read: p, pool: x509.NewCertPool()}
	sum := sha256.New()
	for i, path := range f {
		if path == "" {
			continue
		}
		roots, err := parseRoots([]byte(p[i]))
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
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it has a %s; certificates alone belong there", block.Type)
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

// openClients reads the client CAs for the first time, if there are any.
func (k *Keeper) openClients() error {
	if k.clientFiles == (clientFiles{}) {
		return nil
	}
	p, err := k.clientFiles.read()
	if err != nil {
		return fmt.Errorf("the client CA: %w", err)
	}
	c, err := k.clientFiles.parse(p)
	if err != nil {
		return err
	}
	k.clients.Store(c)
	return nil
}

// askClients makes a configuration ask for certificates of the client CAs of the time. What a session was begun with is
// noted in its ticket, and a ticket of other client CAs is not taken: then there is a whole handshake.
func (k *Keeper) askClients(c *tls.Config) {
	tickets := &tls.Config{} // its keys seal the tickets, and are changed each day
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := k.clients.Load()
		return &tls.Config{
			MinVersion:                  tls.VersionTLS12,
			GetCertificate:              k.pick,
			NextProtos:                  []string{"http/1.1"}, // as the server has it, whose own configuration this replaces
			DynamicRecordSizingDisabled: true,
			ClientAuth:                  tls.VerifyClientCertIfGiven,
			ClientCAs:                   now.pool,
			WrapSession: func(state tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
				session.Extra = append(session.Extra, now.mark)
				return tickets.EncryptTicket(state, session)
			},
			UnwrapSession: func(ticket []byte, state tls.ConnectionState) (*tls.SessionState, error) {
				session, err := tickets.DecryptTicket(ticket, state)
				if session == nil || !slices.ContainsFunc(session.Extra, func(b []byte) bool { return bytes.Equal(b, now.mark) }) {
					return nil, err
				}
				return session, err
			},
		}, nil
	}
}

// Certificate is what the client of a request has shown for a purpose. nil: nothing, or nothing that is good now: its CA
// may have gone, or its time be over, while the connection stands.
func (k *Keeper) Certificate(r *http.Request, p Purpose) *x509.Certificate {
	c := k.clients.Load()
	if c == nil || r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	leaf := r.TLS.VerifiedChains[0][0]
	if holds(leaf, time.Now()) != nil {
		return nil
	}
	for _, chain := range r.TLS.VerifiedChains {
		if slices.ContainsFunc(c.roots[p], chain[len(chain)-1].Equal) {
			return leaf
		}
	}
	return nil
}

// follower follows the client CAs' files.
type follower struct {
	last clientPEM // what they held at the last look
	seen clientPEM // what they held when they were last acted upon
}

func newFollower(c *clientCAs) (f follower) {
	if c != nil {
		f.last, f.seen = c.read, c.read
	}
	return f
}

// reloadClients takes over client CAs that have changed, as reload does with the user's pair.
func (w *watch) reloadClients() {
	if w.clientFiles == (clientFiles{}) {
		return
	}
	p, err := w.clientFiles.read()
	if err != nil {
		p = clientPEM{err.Error()} // so that the same error twice is the same
	}
	settled := p == w.clients.last
	w.clients.last = p
	if p == w.clients.seen || !settled {
		return
	}
	w.clients.seen = p
	var c *clientCAs
	if err == nil {
		c, err = w.clientFiles.parse(p)
	}
	if err != nil {
		w.tell(Rejected, Clients, err)
		return
	}
	w.Keeper.clients.Store(c)
	w.tell(Reloaded, Clients, nil)
}

// notAfter is when the first of them ends.
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
