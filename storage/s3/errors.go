package s3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"

	"trow/storage"
	"trow/storage/internal/local"
)

var (
	// errNoUpload: the service does not know the multipart upload. It was completed, aborted or swept.
	errNoUpload = errors.New("no such multipart upload")
	// errLater is part of the errors of requests that may succeed later: the service is down, or wants to be asked
	// less.
	errLater = storage.ErrUnavailable
	// errWorking: the service has not answered a request that it may work on for long. It need not be down.
	errWorking = fmt.Errorf("%w: it may still make the object of its parts", errLater)
	// errShort: an object does not have the bytes that it had.
	errShort = errors.New("the object is shorter than it was")
)

// Error is an error of the service. Its text names bucket and endpoint, and never a credential.
type Error struct {
	Op, Bucket, Endpoint string
	Code                 string // the service's own; empty if there was no answer
	Remedy               string // empty if nothing can be said
	Err                  error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("S3 bucket %s at %s: %s: %v", e.Bucket, e.Endpoint, e.Op, e.Err)
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// class is what an error means to the callers, and what the operator can do.
type class struct {
	err    error
	remedy string
}

const checkAccess = "check the credentials and the policy, see storage/s3/README.md"

// classes are the codes of the services that mean something to callers or operators. Those of AWS are in its API
// reference under "Error responses"; the others are those of MinIO, Ceph and versitygw.
var classes = map[string]class{
	"NoSuchKey":                      {err: storage.ErrNotFound},
	"NoSuchUpload":                   {err: errNoUpload},
	"NoSuchBucket":                   {remedy: "create the bucket, or correct its name"},
	"PermanentRedirect":              {remedy: "set the endpoint and the region to those of the bucket"},
	"AuthorizationHeaderMalformed":   {remedy: "set the region to that of the bucket"},
	"AccessDenied":                   {remedy: checkAccess},
	"AllAccessDisabled":              {remedy: checkAccess},
	"InvalidAccessKeyId":             {remedy: checkAccess},
	"SignatureDoesNotMatch":          {remedy: checkAccess},
	"ExpiredToken":                   {remedy: checkAccess},
	"InvalidToken":                   {remedy: checkAccess},
	"XAdminUserNotFound":             {remedy: checkAccess}, // versitygw, of the access key
	"RequestTimeTooSkewed":           {remedy: "set the clock of this machine"},
	"InvalidObjectState":             {remedy: "a lifecycle rule has moved the object to an archive: remove that rule"},
	"InternalError":                  {remedy: "the log of the service says more"},
	"QuotaExceeded":                  {err: storage.ErrFull},
	"XMinioStorageFull":              {err: storage.ErrFull},
	"XMinioAdminBucketQuotaExceeded": {err: storage.ErrFull},
	"InsufficientStorage":            {err: storage.ErrFull},
	"ServiceQuotaExceeded":           {err: storage.ErrFull},
	"SlowDown":                       {err: errLater},
	"SlowDownRead":                   {err: errLater},
	"SlowDownWrite":                  {err: errLater},
	"ServiceUnavailable":             {err: errLater},
	"RequestLimitExceeded":           {err: errLater},
	"Throttling":                     {err: errLater},
	"ThrottlingException":            {err: errLater},
	"TooManyRequests":                {err: errLater},
}

// statuses are for services that answer with codes of their own, and for HEAD, whose answers have no code.
var statuses = map[int]class{
	http.StatusInsufficientStorage: {err: storage.ErrFull},
	http.StatusServiceUnavailable:  {err: errLater},
	http.StatusTooManyRequests:     {err: errLater},
	http.StatusForbidden:           {remedy: checkAccess},
	http.StatusUnauthorized:        {remedy: checkAccess},
}

// error makes an error of the service one of storage.
func (c *client) error(op string, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Op: op, Bucket: c.bucket, Endpoint: c.endpoint}
	var answer minio.ErrorResponse
	var failed *url.Error
	switch {
	case errors.As(err, &answer):
		e.Code = answer.Code
		known, ok := classes[answer.Code]
		if !ok {
			known = statuses[answer.StatusCode]
		}
		if known.err == nil && answer.StatusCode >= 500 && answer.StatusCode != http.StatusNotImplemented {
			known.err = errLater // it was asked several times
		}
		e.Remedy = known.remedy
		e.Err = fmt.Errorf("%s: %s", answer.Code, strings.TrimSuffix(answer.Message, "."))
		if known.err != nil {
			e.Err = fmt.Errorf("%w (%w)", known.err, e.Err)
		}
	case errors.As(err, &failed): // without the URL, whose parameters are of no use to a reader
		e.Err = failed.Err
		if e.Remedy = local.CertificateRemedy(err, "ca-file or blobs-ca-file"); errors.Is(err, http.ErrSchemeMismatch) {
			e.Remedy = "if the service is without TLS, write http:// in endpoint"
		}
		if !cancelled(failed.Err) && !errors.Is(err, errLater) {
			e.Err = fmt.Errorf("%w: no answer: %w", errLater, failed.Err)
		}
	default:
		e.Err = err
	}
	return e
}

// cancelled reports whether a request was given up. The net package says of its own timeouts that they are the
// context's (errors.Is), so values are compared.
func cancelled(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if err == context.Canceled || err == context.DeadlineExceeded {
			return true
		}
	}
	return false
}

// silent reports whether a request ended because nothing came in time.
func silent(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// passing reports whether an attempt may succeed if it is repeated, and whether it says that the service is down.
func passing(ctx context.Context, err error) (again, down bool) {
	var answer minio.ErrorResponse
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &certificate): // no attempt changes it
		return false, true
	case err == nil, ctx.Err() != nil, errors.Is(err, storage.ErrNotFound):
		return false, false
	case errors.Is(err, errWorking):
		return true, false
	case !errors.As(err, &answer):
		return true, true // no answer, or a torn one
	case answer.StatusCode == http.StatusTooManyRequests, classes[answer.Code].err == errLater:
		return true, false // it is up, and wants to be asked less
	case answer.Code == "RequestTimeout", answer.Code == "OperationAborted",
		answer.StatusCode == http.StatusRequestTimeout,
		// versitygw removes the directory of the last object in it, also while it makes another one there.
		answer.Code == "ExistingObjectIsDirectory":
		return true, false
	case classes[answer.Code].err == storage.ErrFull, answer.StatusCode == http.StatusInsufficientStorage,
		answer.StatusCode == http.StatusNotImplemented:
		return false, false
	}
	down = answer.StatusCode >= 500 || answer.Code == "InternalError"
	return down, down
}

// Lost reports whether an error of a reader means that the bytes cannot be read any more, see [storage.Blobs]: the
// object has fewer bytes than it had, or lies in an archive. That an object does not exist is ErrNotFound; that the
// bucket does not exist, or may not be read, says nothing about the bytes.
func (b *Blobs) Lost(err error) bool {
	var e *Error
	return errors.Is(err, errShort) || errors.As(err, &e) && e.Code == "InvalidObjectState"
}
