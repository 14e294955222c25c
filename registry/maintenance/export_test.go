package maintenance

import (
	"context"
	"testing"
	"time"

	"trow/storage"
	"trow/storage/etcd"
	"trow/storage/s3"
)

// SetOpenJournal makes Open open the journal by another function, for one test.
func SetOpenJournal(t *testing.T, open func(dir string) (storage.Journal, error)) {
	old := openJournal
	openJournal = open
	t.Cleanup(func() { openJournal = old })
}

// SetEngines makes Load open the engines that are elsewhere by other functions, for one test.
func SetEngines(t *testing.T, journal func() (storage.Journal, error),
	blobs func(storage.Records) (storage.Blobs, error)) {
	oldJournal, oldBlobs, oldRetry := openEtcd, openS3, retryInterval
	openEtcd = func(context.Context, etcd.Options) (storage.Journal, error) { return journal() }
	openS3 = func(_ context.Context, o s3.Options) (storage.Blobs, error) { return blobs(o.Records) }
	retryInterval = time.Millisecond
	t.Cleanup(func() { openEtcd, openS3, retryInterval = oldJournal, oldBlobs, oldRetry })
}
