package tls

import (
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"
)

// Options are the settings of the certificates, and what the program adds to them.
type Options struct {
	// NoTLS switches TLS off: the program then opens no Keeper.
	NoTLS bool
	// CertFile and KeyFile contain the user's pair in PEM, the chain after the certificate. Both empty: no such pair.
	// KeyFile empty: CertFile contains the key as well.
	CertFile, KeyFile string
	// ExtraNames are further names of the leaf, in the same form as Names.
	ExtraNames []string
	// Overlap is the time between the steps of a rotation. 0 means a day: tools that keep a copy of the bundle should
	// have fetched it again by then.
	Overlap time.Duration
	// ClientCA and CallerCA are files with certificates of CAs in PEM, whose certificates clients may present: users of
	// the registry, and callers of the webhook. Empty: none may. They are followed as the user's files are.
	ClientCA, CallerCA string

	// The fields below are set by the program. There must be a name; the zero value of the others works.

	// Names are what the leaf is for: DNS names (one leading "*." is allowed) and IP addresses, each alone or as
	// host:port, IPv6 with or without brackets. Order and case do not matter.
	Names []string
	// Published, if set, is called before a new CA signs: it reports whether this bundle has reached the clients. As
	// long as it returns false the rotation waits, even after the overlap.
	Published func(bundle []byte) bool
	// Wait makes Open wait for the store and the files, and retry each second, instead of returning their errors. After
	// a power cut the API server may take longer to come back than this process, and Kubernetes restarts a process that
	// ends at ever longer intervals.
	Wait bool
	// Dir is the data directory. Open writes the bundle there (ca.crt, unless CAFile is set) and, without another
	// store, keeps the pairs there (tls/). A new store gets the CA that the directory has from before, if there is one.
	Dir string
	// ReadOnly reports that nothing may be written to Dir. The pairs there are used, and a new leaf is kept in memory.
	ReadOnly bool
	// CAFile is a file into which the bundle is written for people on this machine, by Open and whenever it changes.
	// Its directory must exist. Empty: no file. An error is only logged.
	CAFile string
	// Log gets what happens to the certificates.
	Log zerolog.Logger
	// Poll is how often Run looks at the store, the files, and the age of the certificates. 0 means 5 s: that costs a
	// few small reads, and a new certificate is in use within ten seconds.
	Poll time.Duration
}

// AddFlags registers the settings as flags.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.NoTLS, "no-tls", false, "speak plain HTTP, behind a proxy that ends TLS")
	fs.StringVar(&o.CertFile, "tls-cert", "", "file with a certificate (PEM) that is served for its names, in "+
		"addition to the server's own; reloaded when it changes")
	fs.StringVar(&o.KeyFile, "tls-key", "", "file with the key of tls-cert; empty: the same file")
	fs.StringSliceVar(&o.ExtraNames, "tls-names", nil,
		"further names and IP addresses of the server's own certificate")
	fs.DurationVar(&o.Overlap, "ca-overlap", defaultOverlap, "how long a new CA is published before it signs, and the "+
		"old one after it")
	fs.StringVar(&o.ClientCA, "client-ca", "", "file of CAs (PEM) whose certificates clients may use to log in; "+
		"reloaded when it changes")
	fs.StringVar(&o.CallerCA, "validate-client-ca", "", "file of CAs (PEM): a caller of the webhook must present a "+
		"certificate of one of them; reloaded when it changes")
}

// minOverlap is the smallest time in which the steps of a rotation can reach the clients: two polls.
const minOverlap = 10 * time.Second

// Validate reports the first invalid setting.
func (o *Options) Validate() error {
	switch {
	case o.NoTLS && (o.CertFile != "" || o.KeyFile != ""):
		return errors.New("no-tls conflicts with tls-cert and tls-key")
	case o.NoTLS && (o.ClientCA != "" || o.CallerCA != ""):
		return errors.New("no-tls conflicts with client-ca and validate-client-ca: " +
			"a client can present a certificate only over TLS")
	case o.Overlap < minOverlap:
		return fmt.Errorf("ca-overlap: %s is too short; want at least %s", o.Overlap, minOverlap)
	}
	return nil
}
