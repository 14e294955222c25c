package maintenance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"trow/registry/audit"
	"trow/registry/retention"
	"trow/registry/size"
	"trow/storage"
)

// Data is the data directory of a running server, and the engines that its settings name. Make it with [Open], then
// call [Data.Load] once, and [Data.Run].
type Data struct {
	options Options
	log     zerolog.Logger
	journal storage.Journal // nil until Load has opened one that is not in the directory
	blobs   atomic.Pointer[storage.Blobs]
	release func() error // releases the lock of a directory without a journal
	uploads *storage.Uploads

	loaded atomic.Pointer[loaded] // nil until Load has returned
	full   bool                   // uploads are refused, and the log has said so; used by one loop
	hold   *hold

	copying sync.Mutex // held while the journal is copied: two copies would write one file

	readOnly string // why the directory is not written to; empty: it is
	// unwritable is the error with which the directory has become unwritable; nil: it has not.
	unwritable atomic.Pointer[error]

	indexFull string // the settings because of which new names are refused, as last logged; used by one loop

	collected, freed prometheus.Counter
	suspicions       suspicions
}

// loaded are the index and what works on it.
type loaded struct {
	index     *storage.Index
	shared    bool // other processes write to the journal as well
	retention *retention.Policy
	collector *storage.Collector
	scrubber  *storage.Scrubber
	turns     *turns
}

// Open locks the data directory and opens what is in it; one that holds data and cannot be written to is opened
// read-only, see [Data.ReadOnly]. The caller closes Data. Errors: another process uses the directory; the journal is
// damaged, with the remedy; those of the file system.
func Open(o Options) (*Data, error) {
	if o.Audit == nil {
		o.Audit = func(audit.Event) {}
	}
	d := &Data{options: o, log: o.Log, uploads: storage.NewUploads(),
		collected: counter("trow_gc_deleted_total", "Blobs that were collected."),
		freed:     counter("trow_gc_freed_bytes_total", "Bytes that were collected.")}
	if err := d.open(); err != nil {
		return nil, err
	}
	return d, nil
}

// Load loads the index and finishes the deletions that a crash interrupted. While an engine that is not in the data
// directory does not answer, it tries again. Errors: those of the journal; [ErrIdentity]; those of a service that
// answers, with the remedy; other replicas write what this version does not know.
func (d *Data) Load(ctx context.Context, keep *retention.Policy, quotas []storage.Quota) (*storage.Index, error) {
	var index *storage.Index
	err := d.untilAnswered(ctx, func() (err error) {
		index, err = d.openEngines(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	index.SetQuotas(quotas)
	l := &loaded{index: index, retention: keep, shared: d.journal.Traits().Shared,
		collector: &storage.Collector{Blobs: d.Blobs(), Index: index, Grace: d.options.GCGrace},
		scrubber:  &storage.Scrubber{Blobs: d.Blobs(), Index: index, Trust: d.trust},
		turns:     newTurns(d.journal, index, d.log)}
	if l.shared {
		d.hold.keepIn(index)
	}
	if d.readOnly != "" { // what follows writes
		d.loaded.Store(l)
		return index, nil
	}
	// In this order: the comparison comes before any commit, and the record of this replica before any other commit.
	d.expectAtStart(ctx, index)
	if err := l.turns.join(ctx); err != nil {
		index.Close()
		return nil, err
	}
	if err := l.turns.finishNow(ctx, l.collector); err != nil { // not fatal: the next collection tries again
		d.log.Error().Err(err).Msg("finishing the last collection")
	}
	// Not fatal: the state in memory counts until the next start.
	if err := d.hold.loaded(index.Stats() == storage.Stats{}); err != nil {
		d.log.Error().Err(err).Msg("retention")
	}
	d.loaded.Store(l)
	return index, nil
}

// openIndex loads the index from the journal.
func (d *Data) openIndex(ctx context.Context) (*storage.Index, error) {
	return storage.OpenIndex(ctx, d.journal, storage.IndexOptions{
		Progress: func(facts int) { d.log.Info().Int("facts", facts).Msg("loading the index") },
		Limits:   d.options.limits(),
		Uploads:  d.uploads,
		Placed:   d.options.Blobs != "",
		Grace:    d.options.GCGrace,
		Warn:     func(err error) { d.log.Error().Err(err).Msg("storage") },
	})
}

// Close closes the index, copies a journal of the directory for trow rebuild, and releases the directory. No request
// may be under way, and Run has returned. Errors: those of the journal.
func (d *Data) Close() error {
	if l := d.loaded.Load(); l != nil {
		l.index.Close()
		d.backup(context.Background()) // last: nothing changes any more, so the copy has everything
	}
	return errors.Join(d.closeJournal(), d.hold.root.Close())
}

const (
	// expireInterval is the time between two searches for idle uploads, unless a quarter of upload-timeout is shorter:
	// an upload must not stay much longer than that.
	expireInterval = 10 * time.Minute
	// backupInterval is the time between two backups of the journal, and so how much of the changes a rebuild can lose.
	backupInterval = time.Hour
	// startDelay is the time after the start before work begins that can wait; invariant 2.
	startDelay = time.Minute
	// spaceInterval is the time between two looks at the free space and the index for the log. Uploads check the space
	// themselves.
	spaceInterval = 5 * time.Second
)

// Run does the work that is due, until ctx is done. Load must have returned.
func (d *Data) Run(ctx context.Context) error {
	o := d.options
	g := &errgroup.Group{}
	every := func(interval, first time.Duration, do func(context.Context)) {
		if interval > 0 {
			g.Go(func() error { repeat(ctx, interval, first, do); return nil })
		}
	}
	if d.shared() != nil {
		every(confirmInterval, 0, d.confirm)
	}
	if d.readOnly != "" { // the rest writes, or watches what is written
		<-ctx.Done()
		return g.Wait()
	}
	every(min(expireInterval, o.UploadTimeout/4), 0, d.expire)
	if b, ok := d.Blobs().(spacious); ok {
		every(spaceInterval, 0, func(context.Context) { d.watchSpace(b) })
	}
	every(writableInterval, 0, d.watchWritable)
	every(spaceInterval, 0, d.watchIndex)
	every(backupInterval, startDelay, d.backup)
	l := d.loaded.Load()
	g.Go(func() error { l.turns.beat(ctx); return nil })
	g.Go(func() error { l.turns.finish(ctx, l.collector); return nil })
	turn := func(task string, interval time.Duration, do func(context.Context)) {
		if interval > 0 {
			g.Go(func() error { l.turns.repeat(ctx, task, interval, startDelay, do); return nil })
		}
	}
	turn(taskCollect, o.GCInterval, d.collect)
	turn(taskScrub, o.ScrubInterval, d.scrub)
	if _, ok := d.keeper(); ok {
		turn(taskCopy, copyInterval, d.copyFacts)
	}
	return g.Wait()
}

// repeat calls do at intervals until ctx is done, for the first time after first or after an interval, whichever is
// shorter.
func repeat(ctx context.Context, interval, first time.Duration, do func(context.Context)) {
	t := time.NewTimer(min(first, interval))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		start := time.Now()
		do(ctx)
		t.Reset(interval - time.Since(start)) // at once if it took longer
	}
}

// backed is implemented by a journal that keeps a copy of itself, which Backup makes.
type backed interface{ Backup() error }

// spacious is implemented by engines that know how much room there is.
type spacious interface{ Space() (storage.Space, error) }

// backup copies the journal, for trow rebuild.
func (d *Data) backup(ctx context.Context) {
	if err := d.Backup(ctx); err != nil {
		d.log.Error().Err(err).Msg("storage")
	}
}

// Backup copies the journal, for trow rebuild, unless the copy is up to date, or the journal keeps no copy. Errors:
// those of the file system.
func (d *Data) Backup(context.Context) error {
	j, ok := d.journal.(backed)
	if !ok {
		return nil
	}
	d.copying.Lock()
	defer d.copying.Unlock()
	return j.Backup()
}

// expire drops idle uploads.
func (d *Data) expire(ctx context.Context) {
	freed, err := d.Blobs().Expire(ctx, time.Now().Add(-d.options.UploadTimeout))
	switch {
	case err != nil && ctx.Err() == nil:
		d.log.Error().Err(err).Msg("looking for idle uploads")
	case freed > 0:
		d.log.Info().Int64("bytes", freed).Msg("dropped idle uploads")
	}
}

// watchSpace logs once that uploads are refused because the disk is full, and once that they are accepted again.
func (d *Data) watchSpace(b spacious) {
	space, err := b.Space()
	switch {
	case err != nil:
		d.log.Error().Err(err).Msg("looking at the free space")
	case space.Full() && !d.full:
		d.full = true
		d.log.Error().Int64("free", space.Free).Int64("reserve", space.Reserve).
			Msg("the storage is full: uploads are refused, everything else continues; delete tags, or enlarge the " +
				"volume")
	case !space.Full() && d.full:
		d.full = false
		d.log.Info().Int64("free", space.Free).Msg("there is space again: uploads are accepted")
	}
}

// Volume returns the size of the volume with the blobs in bytes. Errors: they are not on a volume; those of the file
// system.
func (d *Data) Volume() (int64, error) {
	b, ok := d.Blobs().(spacious)
	if !ok {
		return 0, errors.New("the blobs are not on a volume")
	}
	space, err := b.Space()
	return space.Size, err
}

// Drop deletes the bytes of those of the contents that no repository holds, at once and without the grace of a
// collection. Load must have returned. Errors: those of the engines; then the next collection deletes the rest.
func (d *Data) Drop(ctx context.Context, all []digest.Digest) error {
	done, err := d.loaded.Load().collector.Drop(ctx, all)
	d.freed.Add(float64(done.Freed))
	d.collected.Add(float64(done.Deleted))
	return err
}

// SpaceCheck is a line of /readyz?verbose: ok reports whether there is space for uploads.
func (d *Data) SpaceCheck() (ok bool, text string) {
	if d.readOnly != "" {
		return true, "" // ReadOnlyCheck has a line
	}
	b, has := d.Blobs().(spacious)
	if !has {
		return true, ""
	}
	space, err := b.Space()
	if err != nil {
		return false, "space for uploads: unknown"
	}
	return !space.Full(), fmt.Sprintf("space for uploads: %s free of %s, %s reserved",
		size.Format(space.Free), size.Format(space.Size), size.Format(space.Reserve))
}

// ContentCheck is a line of /readyz?verbose: ok reports whether no content is known to be damaged.
func (d *Data) ContentCheck() (ok bool, text string) {
	l := d.loaded.Load()
	if l == nil {
		return false, "" // no line while it is loading
	}
	n := l.index.Stats().Quarantined
	return n == 0, fmt.Sprintf("content whole: %d quarantined", n)
}

// collect applies the retention rules, and then collects: in this order, so that one run frees the space of what the
// rules remove.
func (d *Data) collect(ctx context.Context) {
	if d.resting() {
		return
	}
	d.retain(ctx)
	c := d.loaded.Load().collector
	done, err := d.collectTrusted(ctx, func() (storage.Collected, error) { return c.Run(ctx, false, nil) })
	d.countCollected(ctx, done, err)
}

// removed logs a removal by retention.
func (d *Data) removed(r retention.Removal) {
	d.log.Info().Str("repo", r.Repo).Str("tag", r.Tag).Stringer("digest", r.Digest).Str("why", r.Why).
		Msg("removed by retention")
	e := audit.Event{What: audit.Delete, Outcome: audit.OK, Kind: "retention", Action: "delete", Repo: r.Repo,
		Digest: r.Digest.String(), Reason: r.Why}
	if r.Tag != "" {
		e.Tags = []string{r.Tag}
	}
	d.options.Audit(e)
}

func (d *Data) countCollected(ctx context.Context, done storage.Collected, err error) {
	d.collected.Add(float64(done.Deleted))
	d.freed.Add(float64(done.Freed))
	line := d.log.Debug()
	switch {
	case err != nil && ctx.Err() == nil:
		line = d.log.Error().Err(err)
	case done.Unlinked+done.Deleted > 0:
		line = d.log.Info()
	}
	line.Int("unlinked", done.Unlinked).Int("deleted", done.Deleted).Int64("freed", done.Freed).Msg("collected")
}

// scrub compares all content with its digests, or, in S3, with a list.
func (d *Data) scrub(ctx context.Context) {
	if d.loaded.Load().index.Sealed() != nil {
		return // it could record nothing
	}
	if d.suspicions.scrub.Load() != nil {
		return // an administrator must look first; ScrubCheck says so
	}
	done, err := d.loaded.Load().scrubber.Run(ctx, d.options.ScrubRate.Value(), d.found, nil)
	err = d.noteScrub(err)
	if err != nil && ctx.Err() == nil {
		d.log.Error().Err(err).Msg("scrub")
		return
	}
	d.log.Info().Int("blobs", done.Blobs).Int64("bytes", done.Bytes).Bool("listed", done.Listed).
		Int("damaged", done.Damaged).Int("failed", done.Failed).Msg("scrubbed")
}

// found logs what a scrub has found.
func (d *Data) found(f storage.Finding) {
	switch {
	case f.Err != nil:
		d.log.Error().Err(f.Err).Stringer("digest", f.Digest).Msg("content cannot be read; the next scrub tries again")
	case f.Reason != "":
		d.log.Error().Stringer("digest", f.Digest).Str("why", f.Reason).
			Msg("damaged content: quarantined until it is pushed again")
	default:
		d.log.Info().Stringer("digest", f.Digest).Msg("content is intact again")
	}
}

// Check reads content that a pull did not find as it should be, and quarantines it if it is damaged. Errors: the
// content could not be checked.
func (d *Data) Check(ctx context.Context, dgst digest.Digest) error {
	f, err := d.loaded.Load().scrubber.Check(ctx, dgst)
	if f != nil {
		d.found(*f)
	}
	return err
}
