package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"trow/storage"
	"trow/storage/internal/local"
)

// uploadInfo is a multipart upload.
type uploadInfo struct{ key, id string }

// uploads lists the multipart uploads that began before a time.
func (c *client) uploads(ctx context.Context, prefix string, before time.Time) (found []uploadInfo, err error) {
	var key, id string
	for {
		var page minio.ListMultipartUploadsResult
		err := c.do(ctx, "list multipart uploads", func(ctx context.Context) (err error) {
			page, err = c.core.ListMultipartUploads(ctx, c.bucket, prefix, key, id, "", 1000)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, u := range page.Uploads {
			if strings.HasPrefix(u.Key, prefix) && u.Initiated.Before(before) {
				found = append(found, uploadInfo{u.Key, u.UploadID})
			}
		}
		if !page.IsTruncated || page.NextKeyMarker == key && page.NextUploadIDMarker == id {
			return found, nil
		}
		key, id = page.NextKeyMarker, page.NextUploadIDMarker
	}
}

// probe does with the bucket all that the engine does later, and returns what does not work. Objects that it makes and
// cannot delete lie under PREFIX/probe/.
func (c *client) probe(ctx context.Context, warn func(error)) error {
	c.probeVersions(ctx, warn)
	key, data := c.prefix+probesPrefix+local.NewUploadID(), []byte("0123456789")
	if err := c.put(ctx, key, "probe", data); err != nil {
		return err // nothing else can be said
	}
	checks := []struct {
		what string
		try  func() error
	}{
		{"look an object up, with its length and metadata", func() error {
			return c.wantObject(ctx, key, int64(len(data)))
		}},
		{"read a range of an object", func() error { return c.wantRange(ctx, key, data) }},
		{"list objects", func() error { return c.wantListed(ctx, key) }},
		{"complete a multipart upload", func() error { return c.wantMultipart(ctx, key+"-parts", data) }},
		{"list and abort a multipart upload", func() error { return c.wantAborted(ctx, warn) }},
		{"delete objects", func() error { return c.wantDeleted(ctx, key, key+"-parts") }},
	}
	var failed []error
	for _, check := range checks {
		if err := check.try(); err != nil {
			failed = append(failed, fmt.Errorf("the service cannot %s: %w", check.what, err))
		}
	}
	return errors.Join(failed...)
}

// probeVersions warns of a bucket in which deleted bytes stay. Services that do not know versions refuse the question.
func (c *client) probeVersions(ctx context.Context, warn func(error)) {
	if status, _, _, _, err := c.core.GetObjectLockConfig(ctx, c.bucket); err == nil && status == "Enabled" {
		warn(c.error("probe", errors.New("the bucket has an object lock: what is deleted stays until its retention "+
			"ends, and is paid for; use a bucket without one")))
		return
	}
	if v, err := c.core.GetBucketVersioning(ctx, c.bucket); err == nil && v.Enabled() {
		warn(c.error("probe", errors.New("the bucket keeps versions: what is deleted stays, and is paid for; suspend "+
			"versioning, or add a lifecycle rule that ends old versions (see storage/s3/README.md)")))
	}
}

func (c *client) wantObject(ctx context.Context, key string, size int64) error {
	info, err := c.head(ctx, key)
	switch {
	case err != nil:
		return err
	case info.Size != size:
		return fmt.Errorf("it has %d bytes instead of %d", info.Size, size)
	case info.UserMetadata[uploadMeta] != "probe":
		return fmt.Errorf("its metadata x-amz-meta-%s is %.40q instead of \"probe\"", strings.ToLower(uploadMeta),
			info.UserMetadata[uploadMeta])
	}
	// Without the right to list, S3 answers 403 for an object that does not exist.
	if _, err := c.head(ctx, key+"-missing"); !errors.Is(err, storage.ErrNotFound) {
		return fmt.Errorf("an object that does not exist is not reported as missing (without s3:ListBucket it is "+
			"not): %w",
			cmpErr(err))
	}
	return nil
}

func cmpErr(err error) error {
	if err == nil {
		return errors.New("it is there")
	}
	return err
}

func (c *client) wantRange(ctx context.Context, key string, data []byte) error {
	body, total, err := c.get(ctx, key, 2, 3)
	if err != nil {
		return err
	}
	defer body.Close()
	got, err := io.ReadAll(io.LimitReader(body, 100))
	if err == nil && (!bytes.Equal(got, data[2:5]) || total != int64(len(data))) {
		err = fmt.Errorf("got %.20q of %d bytes, want %q of %d", got, total, data[2:5], len(data))
	}
	return err
}

func (c *client) wantListed(ctx context.Context, key string) error {
	found := false
	err := c.list(ctx, key, func(info minio.ObjectInfo) bool {
		found = info.Key == key && info.Size > 0
		return !found
	})
	if err == nil && !found {
		err = errors.New("one that was written before is not in the list")
	}
	return err
}

func (c *client) wantMultipart(ctx context.Context, key string, data []byte) error {
	id, err := c.begin(ctx, key, "probe")
	if err != nil {
		return err
	}
	etag, err := c.putPart(ctx, key, id, 3, data) // numbers need not begin with 1, nor follow each other
	if err == nil {
		err = c.complete(ctx, key, id, "probe", []part{{3, int64(len(data)), etag}})
	}
	if err != nil {
		return errors.Join(err, c.abort(ctx, key, id))
	}
	return c.wantObject(ctx, key, int64(len(data)))
}

// wantAborted warns if the list of multipart uploads lacks one. MinIO lists those of a whole key only, and removes them
// after a day itself. Uploads of sessions are found by their records; the list is for those whose server died before it
// had recorded them.
func (c *client) wantAborted(ctx context.Context, warn func(error)) error {
	key := c.key("probe/" + local.NewUploadID())
	id, err := c.begin(ctx, key, "probe")
	if err != nil {
		return err
	}
	listed, err := c.uploads(ctx, c.key(""), time.Now().Add(time.Hour))
	if err = errors.Join(err, c.abort(ctx, key, id)); err != nil {
		return err
	}
	for _, u := range listed {
		if u.id == id && u.key == key {
			return nil
		}
	}
	warn(c.error("probe", errors.New("the service does not list multipart uploads below a prefix: parts that a killed "+
		"server leaves stay until the service removes them, as MinIO does after a day; elsewhere, add a lifecycle "+
		"rule that aborts incomplete multipart uploads (see storage/s3/README.md)")))
	return nil
}

func (c *client) wantDeleted(ctx context.Context, keys ...string) error {
	if err := c.remove(ctx, keys); err != nil {
		return err
	}
	for _, key := range keys {
		if _, err := c.head(ctx, key); !errors.Is(err, storage.ErrNotFound) {
			return fmt.Errorf("an object is still there after it was deleted: %w", cmpErr(err))
		}
	}
	return nil
}
