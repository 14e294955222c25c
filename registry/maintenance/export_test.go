package maintenance

import (
	"context"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"trow/storage"
	"trow/storage/etcd"
	"trow/storage/s3"
)

// SetWritable makes the file system answer whether it can be written to, for one test.
func SetWritable(t *testing.T, answer func() error) {
	old := stillWritable
	stillWritable = func(writable) error { return answer() }
	t.Cleanup(func() { stillWritable = old })
}

// WatchWritable is one look at whether the directory can be written to.
func WatchWritable(d *Data) { d.watchWritable(context.Background()) }

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

// StaleAfter changes the age of the index from which JournalCheck fails, for one test.
func StaleAfter(t *testing.T, age time.Duration) {
	old := staleAfter
	staleAfter = age
	t.Cleanup(func() { staleAfter = old })
}

// CopyFacts is one run of the task copy.
func CopyFacts(d *Data) { d.copyFacts(context.Background()) }

// Retain is one run of retention.
func Retain(ctx context.Context, d *Data) { d.retain(ctx) }

// RecordKey is recordKey.
var RecordKey = recordKey

// Turns are the turns of one replica, of the task collect.
type Turns struct{ *turns }

// NewTurns returns the turns of a replica, which has a name.
func NewTurns(j storage.Journal, index *storage.Index, log zerolog.Logger, name string) Turns {
	t := newTurns(j, index, log)
	if t != nil {
		t.name = name
	}
	return Turns{t}
}

func (t Turns) Repeat(ctx context.Context, interval time.Duration, do func(context.Context)) {
	t.repeat(ctx, taskCollect, interval, time.Minute, do)
}

func (t Turns) Finish(ctx context.Context, c *storage.Collector) { t.finish(ctx, c) }

func (t Turns) Stay(ctx context.Context, task string, do func(context.Context)) {
	t.stay(ctx, task, do)
}

func (t Turns) Join(ctx context.Context) error { return t.join(ctx) }

func (t Turns) Beat(ctx context.Context) { t.beat(ctx) }

func (t Turns) Now(ctx context.Context, report func(any), do func(context.Context) error) error {
	return t.now(ctx, taskCollect, report, do)
}

// Alone is alone.
func (t Turns) Alone(ctx context.Context, task string, do func(context.Context) error) error {
	return t.alone(ctx, task, do)
}
