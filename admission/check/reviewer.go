package check

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	admissionv1 "k8s.io/api/admission/v1"

	"trow/admission"
	"trow/manifests/kube"
	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/memory"
)

const (
	// serverPort is the default port of a server, which completes the local names.
	serverPort = 8443

	// askTimeout bounds a call to a server. The webhook answers in milliseconds; the rest is for slow networks.
	askTimeout = 30 * time.Second

	// maxAnswer bounds the answer of a server, in bytes. The webhook's have less than 128 KiB.
	maxAnswer = 1 << 20
)

// newLocal returns a reviewer over a data directory, and what closes it. It holds the lock of the journal until then.
func newLocal(ctx context.Context, dir string, c Config) (reviewer, func(), error) {
	settings := c.Policy
	// Opening a journal creates one: a wrong path must not.
	if _, err := os.Stat(dir); err != nil {
		return nil, nil, fmt.Errorf("data-dir: %w", err)
	}
	settings.Complete(kube.LocalNames(serverPort, kube.Inside()))
	settings.EnforceTemplates = true // invariant 1
	policy, err := admission.NewPolicy(settings)
	if err != nil {
		return nil, nil, errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	journal, err := openJournal(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("data-dir: %w; ask a running server with --server", err)
	}
	index, err := storage.OpenIndex(ctx, journal, storage.IndexOptions{})
	if err != nil {
		return nil, nil, errors.Join(err, journal.Close())
	}
	images := admission.Images(index)
	if c.Images != nil {
		if images, err = c.Images(index, dir); err != nil {
			index.Close()
			return nil, nil, errors.Join(err, journal.Close())
		}
	}
	w := admission.New(admission.Options{Images: images, Policy: policy})
	review := func(ctx context.Context, r *admissionv1.AdmissionReview) (*admissionv1.AdmissionResponse, error) {
		answer, err := w.Review(ctx, r.Request)
		if admission.Malformed(err) {
			err = fmt.Errorf("%w: %w", errObject, err)
		}
		return answer, err
	}
	return review, func() { index.Close(); journal.Close() }, nil
}

// journal is a journal that can be closed.
type journal interface {
	storage.Journal
	Close() error
}

// openToWrite is bolt.Open. Tests replace it, because root may write wherever permissions are all that is missing.
var openToWrite = bolt.Open

// openJournal opens the journal in a directory. It creates nothing where no server has run yet: such a directory is
// that of an empty registry. Where the facts of a server are elsewhere it fails: nothing is known of them. On a volume
// that cannot be written to, the journal is only read, as a server does.
func openJournal(dir string) (journal, error) {
	if bolt.LockedOnly(dir) {
		return nil, bolt.NoData(dir)
	}
	if !bolt.Exists(dir) {
		return memory.NewJournal(), nil
	}
	j, err := openToWrite(dir) // first: only then a journal of an earlier format can be read
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) || errors.Is(err, storage.ErrReadOnly) {
		if read, rerr := bolt.OpenReadOnly(dir); rerr == nil {
			return read, nil
		}
	}
	if err != nil {
		return nil, err // not j, which would be a journal of its own type
	}
	return j, nil
}

// newRemote returns a reviewer that asks a server.
func newRemote(server, ca, tokenFile string) (reviewer, error) {
	if u, err := url.Parse(server); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("server: %.100q is not a valid URL; want https://host[:port]", server)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("cacert: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("cacert: %s contains no certificate in PEM", ca)
		}
	}
	var token []byte
	if tokenFile != "" {
		var err error
		if token, err = os.ReadFile(tokenFile); err != nil {
			return nil, fmt.Errorf("token-file: %w", err)
		}
	}
	c := client{
		url:   strings.TrimRight(server, "/") + "/validate",
		token: string(bytes.TrimSpace(token)),
		http: &http.Client{Timeout: askTimeout, Transport: &http.Transport{
			TLSClientConfig: config, Proxy: http.ProxyFromEnvironment,
		}},
	}
	return c.ask, nil
}

// client calls the webhook of a server.
type client struct {
	url   string
	token string // empty: none
	http  *http.Client
}

// ask sends a review and returns the answer. Errors start with "server".
func (c *client) ask(ctx context.Context, r *admissionv1.AdmissionReview) (*admissionv1.AdmissionResponse, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	answer, err := c.post(ctx, body)
	if err != nil {
		return nil, fmt.Errorf("server: %w%s", err, remedy(err))
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(answer, &review); err != nil || review.Response == nil {
		return nil, fmt.Errorf("server: %s does not answer as a webhook does", c.url)
	}
	return review.Response, nil
}

// errUnauthorized is the error of a server that wants a credential.
var errUnauthorized = errors.New("401 Unauthorized")

// errObject is the error of an object that the webhook cannot read, or that is too large for it. Others can be
// reviewed.
var errObject = errors.New("cannot be reviewed")

// remedy names the flag that helps with an error of a server, if there is one.
func remedy(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "; name the file of its CA with --cacert (ca.crt of its data directory, or of the ConfigMap trow-ca)"
	}
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
		return "; is this the host and the port of the server, and does it run?"
	}
	if errors.Is(err, errUnauthorized) {
		return "; name the file of its token with --token-file"
	}
	return ""
}

// post sends a body and returns that of the answer, whose status must be 200.
func (c *client) post(ctx context.Context, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return answer, nil
	case http.StatusUnauthorized:
		return nil, fmt.Errorf("%w: %.200s", errUnauthorized, strings.TrimSpace(string(answer)))
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return nil, fmt.Errorf("%w: %s: %.200s", errObject, resp.Status, strings.TrimSpace(string(answer)))
	default:
		return nil, fmt.Errorf("%s: %.200s", resp.Status, strings.TrimSpace(string(answer)))
	}
}
