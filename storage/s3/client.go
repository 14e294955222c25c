package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"trow/storage"
)

// client makes the requests to the service, repeats those that may pass, and stops asking a service that is down.
type client struct {
	core                     *minio.Core
	bucket, prefix, endpoint string
	encrypted                encrypt.ServerSide
	patience                 time.Duration // how long the service may be silent within a request
	circuit                  circuit
}

// attempts is how often a request is made that may pass. With the pauses, that takes 3 s at most, and more than 1 s
// mostly: longer than the restart of a service behind a load balancer, shorter than clients wait.
const attempts = 5

// pauseUnit is half of the longest pause after the first attempt. It is a variable for tests alone.
var pauseUnit = 50 * time.Millisecond

// pause is the time before the next attempt: half of it by chance, so that those who failed together do not come back
// together.
func pause(attempt int) time.Duration {
	d := pauseUnit << attempt
	return d/2 + rand.N(d/2)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// do makes a request, again if it may pass. op names it in errors. A request that failed may have taken effect: callers
// whose second attempt would be refused then look.
func (c *client) do(ctx context.Context, op string, request func(ctx context.Context) error) error {
	for attempt := 1; ; attempt++ {
		begin := time.Now()
		err := c.circuit.enter()
		again, open := err != nil, err != nil
		if err == nil {
			err = request(ctx)
			var down bool
			again, down = passing(ctx, err)
			c.circuit.leave(begin, down, err)
		}
		// A new request does not wait for a circuit that is open. One that was under way when it opened does: what it
		// has sent so far would be lost.
		if !again || attempt == attempts || open && attempt == 1 || sleep(ctx, pause(attempt)) != nil {
			return c.error(op, err)
		}
	}
}

// circuit stops requests to a service that is down, so that they fail at once instead of after their timeouts.
type circuit struct {
	warn func(requests int, last error)

	mu       sync.Mutex // guards all below
	failed   int        // requests in a row
	broken   bool       // so many of them that the circuit is open
	last     error      // of the last of them
	until    time.Time  // when the next one may be tried
	answered time.Time  // when the last answer came
}

const (
	failuresToOpen = 20 // more than the attempts of one request, fewer than those of the uploads at one moment
	openFor        = 2 * time.Second
)

// enter returns errLater while the circuit is open. One request after each period is let through.
func (c *circuit) enter() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.broken {
		return nil
	}
	now := time.Now()
	if wait := c.until.Sub(now); wait > 0 {
		return fmt.Errorf("%w: %s; it is asked again in %v", errLater, failedInARow(c.failed),
			wait.Round(100*time.Millisecond))
	}
	c.until = now.Add(openFor)
	return nil
}

func (c *circuit) leave(begin time.Time, down bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case down:
		c.last = err
		c.failed++
		// If nothing has answered for as long as a request waits, others need not find that out, each for itself.
		if !c.broken && (c.failed == failuresToOpen || silent(err) && c.answered.Before(begin)) {
			c.broken = true
			c.until = time.Now().Add(openFor)
			if c.warn != nil {
				go c.warn(c.failed, err) // it may log, and the lock is held
			}
		}
	case !cancelled(err) && !errors.Is(err, errWorking): // an answer, whatever it says; others say nothing
		c.failed, c.last, c.broken, c.answered = 0, nil, false, time.Now()
	}
}

// failedInARow says why a circuit is open. One request opens it if it was not answered at all.
func failedInARow(n int) string {
	if n == 1 {
		return "a request was not answered"
	}
	return fmt.Sprintf("%d requests in a row have failed", n)
}

// open returns how many requests have failed if the circuit is open, and the error of the last one.
func (c *circuit) open() (failed int, last error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.broken {
		return 0, nil
	}
	return c.failed, c.last
}

// The keys of the bucket.
const (
	identityName  = "identity" // of the pair of journal and blobs; see storage.Identified
	objectsPrefix = "objects/" // followed by a place
	probesPrefix  = "probe/"
)

func (c *client) key(place string) string { return c.prefix + objectsPrefix + place }

// uploadMeta is the metadata of an object that names the upload that made it.
const uploadMeta = "Trow-Upload"

func (c *client) putOptions(upload string) minio.PutObjectOptions {
	return minio.PutObjectOptions{
		UserMetadata:         map[string]string{uploadMeta: upload},
		ContentType:          "application/octet-stream",
		ServerSideEncryption: c.encrypted,
		DisableContentSha256: true, // see sum
	}
}

// sum is what a body is signed with. TLS protects the bytes on the way, so with it they are not signed. Otherwise the
// signature covers all of the body: the client would sign it in chunks of 64 KiB, which takes as long, 12 times the
// allocations, and a form of body that not all services read.
func (c *client) sum(data []byte) string {
	if c.core.EndpointURL().Scheme == "https" {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// put makes an object of one request. If the answers were lost, it looks whether the object is there.
func (c *client) put(ctx context.Context, key, upload string, data []byte) error {
	sum := c.sum(data)
	err := c.do(ctx, "write "+key, func(ctx context.Context) error {
		_, err := c.core.PutObject(ctx, c.bucket, key, bytes.NewReader(data), int64(len(data)), "", sum,
			c.putOptions(upload))
		return err
	})
	return c.unlessMade(ctx, err, key, upload, int64(len(data)))
}

// unlessMade returns nil instead of err if the object exists that the failed request should have made: the request may
// have taken effect although its answer was lost. An object may be there from before, as the identity is, so the random
// name of the upload is compared, and the length.
func (c *client) unlessMade(ctx context.Context, err error, key, upload string, size int64) error {
	if err == nil || errors.Is(err, storage.ErrFull) {
		return err
	}
	info, herr := c.head(ctx, key)
	if herr == nil && info.UserMetadata[uploadMeta] == upload && info.Size == size {
		return nil
	}
	return err
}

func (c *client) head(ctx context.Context, key string) (info minio.ObjectInfo, err error) {
	err = c.do(ctx, "look up "+key, func(ctx context.Context) (err error) {
		info, err = c.core.StatObject(ctx, c.bucket, key, minio.StatObjectOptions{})
		return err
	})
	if !errors.Is(err, storage.ErrNotFound) {
		return info, err
	}
	// The answer to a HEAD has no body, so a bucket that is gone looks like an object that is. That is no loss of
	// bytes: everything would be taken for damaged. The answer to a GET says which it is.
	body, _, gerr := c.get(ctx, key, 0, 1)
	if gerr == nil {
		_ = body.Close()
		gerr = err // written in between
	}
	return info, gerr
}

// get opens n bytes of an object from an offset; there may be fewer. total is the length of the object.
func (c *client) get(ctx context.Context, key string, offset, n int64) (body io.ReadCloser, total int64, err error) {
	err = c.do(ctx, "read "+key, func(ctx context.Context) error {
		var o minio.GetObjectOptions
		o.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, offset+n-1))
		var info minio.ObjectInfo
		var header http.Header
		body, info, header, err = c.core.GetObject(ctx, c.bucket, key, o)
		if err != nil {
			return err
		}
		total, err = totalOf(header.Get("Content-Range"), offset, info.Size)
		if err != nil {
			_ = body.Close()
		}
		return err
	})
	return body, total, err
}

// totalOf returns the length of an object from an answer to a request of a range: bytes 0-9/100 (RFC 9110, 14.4). A
// service may send all of a small object instead.
func totalOf(contentRange string, offset, length int64) (int64, error) {
	if contentRange == "" && offset == 0 {
		return length, nil
	}
	part, total, ok := strings.Cut(strings.TrimPrefix(contentRange, "bytes "), "/")
	first, _, ok2 := strings.Cut(part, "-")
	n, err := strconv.ParseInt(total, 10, 64)
	if !ok || !ok2 || err != nil || first != strconv.FormatInt(offset, 10) {
		return 0, fmt.Errorf("the service does not answer requests of a range as HTTP says: Content-Range %.60q from "+
			"%d",
			contentRange, offset)
	}
	return n, nil
}

// begin starts a multipart upload.
func (c *client) begin(ctx context.Context, key, upload string) (id string, err error) {
	err = c.do(ctx, "begin a multipart upload of "+key, func(ctx context.Context) (err error) {
		id, err = c.core.NewMultipartUpload(ctx, c.bucket, key, c.putOptions(upload))
		return err
	})
	return id, err
}

// putPart uploads a part. The same bytes may be sent under one number more than once; they are the same bytes.
func (c *client) putPart(ctx context.Context, key, id string, number int, data []byte) (etag string, err error) {
	sum := c.sum(data)
	err = c.do(ctx, fmt.Sprintf("write part %d of %s", number, key), func(ctx context.Context) error {
		p, err := c.core.PutObjectPart(ctx, c.bucket, key, id, number, bytes.NewReader(data), int64(len(data)),
			minio.PutObjectPartOptions{Sha256Hex: sum, DisableContentSha256: true})
		etag = p.ETag
		return err
	})
	return etag, err
}

// complete makes the object of its parts. If the answer was lost, a second attempt may be answered in any way, so the
// object is what counts: versitygw answers it as if the object were there while it still works on the first one.
func (c *client) complete(ctx context.Context, key, id, upload string, parts []part) error {
	named, size := make([]minio.CompletePart, len(parts)), int64(0)
	for i, p := range parts {
		named[i] = minio.CompletePart{PartNumber: p.number, ETag: p.etag}
		size += p.size
	}
	connected := 0 // requests that may have reached the service
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected++ }}
	err := c.do(httptrace.WithClientTrace(ctx, trace), "complete "+key, func(ctx context.Context) error {
		before := connected
		_, err := c.core.CompleteMultipartUpload(ctx, c.bucket, key, id, named, minio.PutObjectOptions{})
		if silent(err) && connected > before {
			return fmt.Errorf("%w: no answer for %v", errWorking, c.patience)
		}
		return err
	})
	if err == nil && connected > 1 {
		return c.awaitMade(ctx, key, upload, size)
	}
	return c.unlessMade(ctx, err, key, upload, size)
}

// awaitMade waits until the object exists that an earlier request makes. Error: ErrUnavailable after the time that the
// service may be silent within a request.
func (c *client) awaitMade(ctx context.Context, key, upload string, size int64) error {
	missing := fmt.Errorf("%w: the service says that %s is complete, and does not have it", errLater, key)
	for end := time.Now().Add(c.patience); ; {
		err := c.unlessMade(ctx, missing, key, upload, size)
		if err == nil || time.Now().After(end) || sleep(ctx, pause(attempts)) != nil {
			return c.error("complete "+key, err)
		}
	}
}

// abort drops a multipart upload. It is no error if it does not exist.
func (c *client) abort(ctx context.Context, key, id string) error {
	err := c.do(ctx, "abort "+key, func(ctx context.Context) error {
		return c.core.AbortMultipartUpload(ctx, c.bucket, key, id)
	})
	if errors.Is(err, errNoUpload) || errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	return err
}

// remove deletes objects. It is no error if one does not exist.
func (c *client) remove(ctx context.Context, keys []string) error {
	if len(keys) == 1 { // no list: a policy or a service without DeleteObjects still works
		err := c.do(ctx, "delete "+keys[0], func(ctx context.Context) error {
			return c.core.RemoveObject(ctx, c.bucket, keys[0], minio.RemoveObjectOptions{})
		})
		if errors.Is(err, storage.ErrNotFound) {
			return nil
		}
		return err
	}
	return c.do(ctx, fmt.Sprintf("delete %d objects", len(keys)), func(ctx context.Context) error {
		results, err := c.core.RemoveObjectsWithIter(ctx, c.bucket, func(yield func(minio.ObjectInfo) bool) {
			for _, key := range keys {
				if !yield(minio.ObjectInfo{Key: key}) {
					return
				}
			}
		}, minio.RemoveObjectsOptions{})
		if err != nil {
			return err
		}
		for r := range results {
			if r.Err != nil && minio.ToErrorResponse(r.Err).Code != "NoSuchKey" {
				return fmt.Errorf("%s: %w", r.ObjectName, r.Err)
			}
		}
		return nil
	})
}

// list calls each with the objects whose keys have a prefix, up to the first that makes it return false.
func (c *client) list(ctx context.Context, prefix string, each func(minio.ObjectInfo) bool) error {
	after, owner := "", false
	for {
		before := after
		err := c.do(ctx, "list "+prefix, func(ctx context.Context) error {
			for info := range c.core.ListObjectsIter(ctx, c.bucket, minio.ListObjectsOptions{
				Prefix: prefix, Recursive: true, StartAfter: after, FetchOwner: &owner}) {
				if info.Err != nil {
					return info.Err
				}
				if after = info.Key; !each(info) {
					return nil
				}
			}
			return ctx.Err() // the client ends quietly then
		})
		// The attempts are for one page, not for a million objects.
		if err == nil || after == before || ctx.Err() != nil {
			return err
		}
	}
}
