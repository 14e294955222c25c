package s3

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"trow/storage"
)

// Options say where the bytes are and what uploads may use. [ParseURL] fills in the first part.
type Options struct {
	Endpoint  string // such as https://s3.example.org:9000; empty: that of AWS for the region
	Bucket    string
	Prefix    string // of all keys, without a slash at its end; empty: the whole bucket is for this engine
	Region    string // empty: AWS_REGION, or us-east-1
	PathStyle bool   // the bucket is a part of the path, not of the host name
	CAFile    string // PEM certificates that the service's certificate is verified with, beside those of the system
	SSE       string // how the service encrypts: empty (the bucket's default), AES256 or aws:kms
	KMSKey    string // the key for aws:kms; empty: the bucket's or the account's default
	PartSize  int64  // bytes of the first parts, 5 MiB or more; 0: 8 MiB. See limits.go for how parts grow

	Records storage.Records  // required
	Uploads *storage.Uploads // counts the uploads for quotas. nil: they do not count
	// Memory bounds the bytes of parts in memory, of all uploads together; 0: 256 MiB. An upload that has no room
	// waits, and its client with it. Each upload also has up to 64 KiB that are not counted.
	Memory int64
	// MaxUploads bounds the uploads that CreateAs makes; beyond it, CreateAs fails with ErrBusy. Other processes may
	// make one at the same moment, so the bound is not exact with several. 0: no bound.
	MaxUploads int
	ReadOnly   bool // everything that writes fails with ErrReadOnly, and Open does not try to write
	// Timeout is how long the service may be silent within a request; 0: 2 minutes.
	Timeout time.Duration
	Warn    func(error) // hears of what an operator should know and that fails no call. nil: nothing is reported
	minPart int64       // 0: minPart; less for tests
	dialer  dialer      // nil: that of the net package; another one for tests
}

// dialer makes a connection to the service, as [net.Dialer.DialContext] does.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

const (
	defaultPartSize = 8 << 20
	defaultMemory   = 256 << 20
	defaultTimeout  = 2 * time.Minute
	defaultRegion   = "us-east-1"
)

// parameters are those of a URL, and what each sets.
var parameters = map[string]func(o *Options, value string) error{
	"endpoint":   func(o *Options, v string) error { o.Endpoint = v; return nil },
	"region":     func(o *Options, v string) error { o.Region = v; return nil },
	"ca-file":    func(o *Options, v string) error { o.CAFile = v; return nil },
	"sse":        func(o *Options, v string) error { o.SSE = v; return nil },
	"kms-key":    func(o *Options, v string) error { o.KMSKey = v; return nil },
	"path-style": func(o *Options, v string) (err error) { o.PathStyle, err = parseBool(v); return err },
	"part-size": func(o *Options, v string) (err error) {
		if o.PartSize, err = strconv.ParseInt(v, 10, 64); err != nil {
			return errors.New("want a number of bytes")
		}
		return nil
	},
}

func parseBool(v string) (bool, error) {
	if v != "true" && v != "false" {
		return false, errors.New("want true or false")
	}
	return v == "true", nil
}

// ParseURL reads s3://BUCKET/PREFIX?endpoint=…&region=…&path-style=true. Its errors never quote credentials.
func ParseURL(text string) (Options, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "s3" || u.Opaque != "":
		return Options{}, errors.New("not a URL of the form s3://BUCKET/PREFIX?endpoint=https://HOST&region=REGION")
	case u.User != nil:
		return Options{}, errors.New("the URL has credentials, which every list of processes would show; " +
			"set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a credentials file, or the role of the machine")
	case u.Fragment != "":
		return Options{}, errors.New("the URL has a fragment (#…); write %23 for a # within a parameter")
	}
	o := Options{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Options{}, errors.New("the parameters of the URL are not well-formed")
	}
	for name, all := range values {
		set := parameters[name]
		switch {
		case set == nil:
			return Options{}, fmt.Errorf("%.40q is not a parameter of an s3 URL: there are endpoint, region, "+
				"path-style, ca-file, sse, kms-key and part-size", name)
		case len(all) != 1:
			return Options{}, fmt.Errorf("%s: the URL has it %d times", name, len(all))
		}
		if err := set(&o, all[0]); err != nil {
			return Options{}, fmt.Errorf("%s: %.40q is not valid; %w", name, all[0], err)
		}
	}
	return o, o.check()
}

var (
	validBucket = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	validPrefix = regexp.MustCompile(`^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$`)
)

// check checks what a user can get wrong, and fills in the defaults.
func (o *Options) check() error {
	if o.PartSize == 0 {
		o.PartSize = defaultPartSize
	}
	if o.minPart == 0 {
		o.minPart = minPart
	}
	if o.Memory == 0 {
		o.Memory = max(defaultMemory, 4*o.PartSize)
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Region == "" {
		o.Region = cmp.Or(os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"), defaultRegion)
	}
	if o.Endpoint == "" {
		o.Endpoint = "https://s3.amazonaws.com" // the client adds the region
	}
	u, err := url.Parse(o.Endpoint)
	switch {
	case !validBucket.MatchString(o.Bucket):
		return fmt.Errorf("bucket: %.70q is not the name of a bucket: 3 to 63 lower-case letters, digits, dots and "+
			"dashes",
			o.Bucket)
	case len(o.Prefix) > maxPrefix || o.Prefix != "" && !validPrefix.MatchString(o.Prefix) || dots(o.Prefix):
		return fmt.Errorf("prefix: %.70q is not valid: up to %d letters, digits, dots, dashes and underscores between "+
			"slashes", o.Prefix, maxPrefix)
	case slices.Contains(strings.Split(o.Prefix, "/"), strings.Trim(objectsPrefix, "/")):
		return fmt.Errorf("prefix: %.70q lies among the objects of a place whose prefix ends before %q, which would "+
			"take uploads there for its own, and abort them; choose one without that", o.Prefix, objectsPrefix)
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" ||
		u.RawQuery != "" || u.Fragment != "":
		return errors.New("endpoint: not of the form https://HOST:PORT")
	case u.User != nil:
		return errors.New("endpoint: it has credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
	case o.SSE != "" && o.SSE != "AES256" && o.SSE != "aws:kms":
		return fmt.Errorf("sse: %.40q is not valid; want AES256 or aws:kms", o.SSE)
	case o.KMSKey != "" && o.SSE != "aws:kms":
		return errors.New("kms-key: it needs sse=aws:kms")
	case o.PartSize < o.minPart || o.PartSize > 1<<30:
		return fmt.Errorf("part-size: %d is not valid; want %d (5 MiB) to %d (1 GiB) bytes", o.PartSize, minPart, 1<<30)
	case o.Memory < 2*o.PartSize:
		return fmt.Errorf("memory for uploads: %d bytes are too few; want %d, two parts, or more", o.Memory,
			2*o.PartSize)
	}
	return nil
}

// maxPrefix keeps keys far below the 1,024 bytes that S3 allows.
const maxPrefix = 256

// dots reports whether a part of a prefix is . or .., which some services resolve as a file system does.
func dots(prefix string) bool {
	for part := range strings.SplitSeq(prefix, "/") {
		if part == "." || part == ".." {
			return true
		}
	}
	return false
}

// dial makes the client of the service.
func (o *Options) dial() (*minio.Core, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil {
		return nil, errors.New("endpoint: not of the form https://HOST:PORT") // the text may have credentials
	}
	transport, err := o.transport()
	if err != nil {
		return nil, err
	}
	lookup := minio.BucketLookupAuto
	if o.PathStyle {
		lookup = minio.BucketLookupPath
	}
	return minio.NewCore(u.Host, &minio.Options{
		// The usual chain: environment, credentials file, role of the pod (web identity), the container or the machine.
		Creds: credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{},
			&credentials.IAM{Client: &http.Client{Transport: http.DefaultTransport, Timeout: 10 * time.Second}},
		}),
		Secure: u.Scheme == "https", Region: o.Region, BucketLookup: lookup, Transport: transport,
		MaxRetries: 1, // client.do repeats: it knows what may be repeated, and when to stop
	})
}

func (o *Options) transport() (http.RoundTripper, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca-file: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca-file: %s has no PEM certificate", o.CAFile)
		}
		config.RootCAs = pool
	}
	dial := o.dialer
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &impatient{conn, o.Timeout}, nil
		},
		TLSClientConfig: config, TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: o.Timeout / 2,
		MaxIdleConns: 256, MaxIdleConnsPerHost: 256, // one host, and as many requests as there are uploads and readers
		ReadBufferSize: 64 << 10, WriteBufferSize: 64 << 10,
		DisableCompression: true, // bytes are returned as they were stored
		// A service that has all of a request and says nothing is down, or does not hear.
		ResponseHeaderTimeout: o.Timeout / answerShare,
	}
	slow := t.Clone()
	slow.ResponseHeaderTimeout = 0
	return byPatience{t, slow}, nil
}

// answerShare is the part of Timeout after which a request must have an answer's first byte: 30 s of 2 minutes.
const answerShare = 4

// byPatience gives Timeout to the request that a service may have to work on: to make an object of its parts.
type byPatience struct{ to, slow *http.Transport }

func (b byPatience) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodPost && req.URL.Query().Has("uploadId") {
		return b.slow.RoundTrip(req)
	}
	return b.to.RoundTrip(req)
}

// impatient is a connection on which nothing may stand still for longer than its timeout. Requests have no time limit
// of their own: how long one takes depends on its length.
type impatient struct {
	net.Conn
	timeout time.Duration
}

func (c *impatient) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *impatient) Write(p []byte) (int, error) {
	now := time.Now()
	// The answer may only be waited for once the request is written: a read that began before counts from now.
	if err := c.SetDeadline(now.Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

func (o *Options) encryption() encrypt.ServerSide {
	switch o.SSE {
	case "AES256":
		return encrypt.NewSSE()
	case "aws:kms":
		sse, err := encrypt.NewSSEKMS(o.KMSKey, nil)
		if err == nil { // it fails only for a context that is no JSON, and there is none
			return sse
		}
	}
	return nil
}
