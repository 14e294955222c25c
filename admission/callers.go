package admission

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"trow/storage/files"
)

// CallersOptions configures who may call the webhook.
type CallersOptions struct {
	Names     []string // common names that certificates may have; empty: any
	TokenFile string   // file of a token; empty: none
	Hints     string   // who gets hints with tags and digests; empty: those who may pull

	// Set by the program. Certificate returns the certificate of the API server's CA that the connection of a request
	// has shown, verified and valid now, or nil. The field is nil if no such CA is set (validate-client-ca).
	Certificate func(*http.Request) *x509.Certificate
	Refused     func(r *http.Request, why string) // optional: called for each call that is refused
	Log         zerolog.Logger                    // for what becomes of a changed token file
}

// AddFlags registers the settings as flags.
func (o *CallersOptions) AddFlags(fs *pflag.FlagSet) {
	fs.StringSliceVar(&o.Names, "validate-client-names", nil,
		"common names that the certificate of a caller of the webhook may have; empty: any")
	fs.StringVar(&o.TokenFile, "validate-token-file", "",
		"file with a token that a caller of the webhook must send, unless it shows a certificate of validate-client-ca")
	fs.StringVar(&o.Hints, "validate-hints", "",
		"who gets hints that name tags and digests: authenticated, all or off (default: authenticated where pulling "+
			"needs a login, else all)")
}

// Validate reports what is wrong without the options that the program sets; [NewCallers] checks those.
func (o *CallersOptions) Validate() error {
	if slices.Contains(o.Names, "") {
		return errors.New(`validate-client-names: "" is not a common name; leave it out to accept any name`)
	}
	return o.checkHints()
}

// Callers admits only the API server to the webhook. It proves who it is by a certificate, or by a token from the
// kubeconfig that it has for webhooks; either is enough. Without Callers any client may ask for verdicts, which say
// what the registry holds and what is allowed. All methods of a nil *Callers admit everybody. It is safe for concurrent
// use.
type Callers struct {
	options CallersOptions
	seen    []byte // what the token's file held at the start
	token   atomic.Pointer[[sha256.Size]byte]
}

// NewCallers reads the token. It returns nil if neither a CA nor a token is set. Errors name the setting.
func NewCallers(o CallersOptions) (*Callers, error) {
	if o.Certificate == nil && len(o.Names) > 0 {
		return nil, errors.New("validate-client-names: set without a CA that certificates are verified with; add " +
			"validate-client-ca")
	}
	if o.Certificate == nil && o.TokenFile == "" {
		return nil, nil
	}
	c := &Callers{options: o}
	if o.TokenFile == "" {
		return c, nil
	}
	var err error
	if c.seen, err = files.Read(o.TokenFile, files.MaxSize); err == nil {
		err = c.setToken(c.seen)
	}
	if err != nil {
		return nil, fmt.Errorf("validate-token-file: %w", err)
	}
	return c, nil
}

// Run follows the token's file until ctx is done. If the file becomes invalid, the previous token stays valid.
func (c *Callers) Run(ctx context.Context) error {
	if c == nil || c.options.TokenFile == "" {
		<-ctx.Done()
		return nil
	}
	files.Follow(ctx, c.options.TokenFile, c.seen, c.setToken, func(err error) {
		const what = "the webhook's token"
		if err != nil {
			c.options.Log.Error().Err(err).Str("what", what).
				Msg("credentials not reloaded; the previous ones stay valid")
			return
		}
		c.options.Log.Info().Str("what", what).Msg("credentials reloaded")
	})
	return nil
}

// setToken replaces the token by the content of its file. On an error the previous token stays valid. Errors do not
// quote the content.
func (c *Callers) setToken(content []byte) error {
	const least = 16 // characters; 16 random ones cannot be guessed
	token := bytes.TrimSpace(content)
	if len(token) < least || bytes.ContainsAny(token, " \t\r\n") {
		return fmt.Errorf("the file must have one line: a token of at least %d characters (openssl rand -hex 32)",
			least)
	}
	sum := sha256.Sum256(token)
	c.token.Store(&sum)
	return nil
}

// Why a call is refused.
var (
	errNoCredentials = errors.New("this webhook is for the API server, which identifies itself by a certificate or " +
		"a token (kubeConfigFile of its AdmissionConfiguration)")
	errBadToken  = errors.New("wrong token; this webhook expects the one of its setting validate-token-file")
	errOtherName = errors.New("the certificate has a name that may not call the webhook (setting " +
		"validate-client-names)")
)

// Protect admits the API server to next. Other callers are answered 401, or 403 if their certificate has another name.
func (c *Callers) Protect(next http.Handler) http.Handler {
	if c == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := c.check(r)
		if err == nil {
			next.ServeHTTP(w, r)
			return
		}
		if c.options.Refused != nil {
			c.options.Refused(r, err.Error())
		}
		status := http.StatusUnauthorized
		if errors.Is(err, errOtherName) {
			status = http.StatusForbidden
		} else {
			w.Header().Set("WWW-Authenticate", `Bearer realm="trow webhook"`)
		}
		http.Error(w, err.Error(), status)
	})
}

// Authenticate reports whether each call that Protect admits has proved to be one of the API server.
func (c *Callers) Authenticate() bool { return c != nil }

// check returns nil if the caller has shown a certificate that counts, or sent the token.
func (c *Callers) check(r *http.Request) error {
	err := errNoCredentials
	if c.options.Certificate != nil {
		if cert := c.options.Certificate(r); cert != nil {
			if len(c.options.Names) == 0 || slices.Contains(c.options.Names, cert.Subject.CommonName) {
				return nil
			}
			err = errOtherName
		}
	}
	want, given := c.token.Load(), r.Header["Authorization"]
	if want == nil || len(given) != 1 {
		return err
	}
	scheme, token, _ := strings.Cut(given[0], " ")
	// The sums have one length, so that the time of the comparison says nothing about the token.
	sum := sha256.Sum256([]byte(strings.TrimSpace(token)))
	if subtle.ConstantTimeCompare(sum[:], want[:]) == 1 && strings.EqualFold(scheme, "Bearer") {
		return nil
	}
	return errBadToken
}
