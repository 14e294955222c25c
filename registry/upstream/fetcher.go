package upstream

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

const (
	// defaultDownloads bounds the downloads at once if the options do not: each takes a connection, a buffer of
	// copySize bytes and an open upload. One upstream alone gets half of them, see places.
	defaultDownloads = 128
	// maxThrough bounds the reads at once that store nothing: each is a download of its own from the upstream. One
	// upstream alone gets half of them.
	maxThrough = 64
	// HeldBack is how many bytes at the end of a content no reader gets before the digest is verified, so that no
	// client takes damaged content as complete. More would delay the end of a small layer.
	HeldBack = 64 << 10
	// stallTime is how long a download may go on without a byte from the upstream, attempts to continue it included.
	stallTime = 30 * time.Second
	// lingerTime is how long a download without readers goes on: clients whose connection broke come back, and clients
	// that read in ranges open one after the other.
	lingerTime = 10 * time.Second
	// nearPart and nearBytes define when a download is nearly done, and goes on without readers: at most one part in
	// nearPart, or nearBytes, are missing. To throw the rest away would cost more than to fetch it.
	nearPart  = 4
	nearBytes = 8 << 20
)

// ErrNoRoom: the cache, or the spool, has no room for the content. See [Fetcher.Through].
var ErrNoRoom = errors.New("the cache has no room")

// ErrBusy: too many downloads are under way. Errors of this kind are ErrUnavailable as well.
var ErrBusy = errors.New("too many downloads are under way")

// ErrHeld: the content has been stored in the meantime; read it from the storage.
var ErrHeld = errors.New("the content is held already")

// The causes with which the context of a download is cancelled.
var (
	errStalled   = fmt.Errorf("the upstream sent nothing for %s", stallTime)
	errAbandoned = errors.New("no client reads it any more")
	errClosed    = errors.New("the server ends")
)

// FetcherOptions are what bounds a Fetcher.
type FetcherOptions struct {
	Downloads int // how many run at once; 0: defaultDownloads
	// Dir is the directory of the spool files; Spool bounds their bytes, of all downloads together.
	Dir   string
	Spool int64
	// Reserve reserves bytes of the cache before they are fetched; release is called once they are stored, or dropped.
	// It may block while room is made. nil: there is no bound.
	Reserve func(n int64) (release func(), ok bool)
}

// Fetcher downloads contents, each once at a time from an upstream for all readers. Make it with [NewFetcher]. It is
// safe for concurrent use.
type Fetcher struct {
	options FetcherOptions
	ctx     context.Context // of all downloads, which do not end when a client disconnects
	cancel  context.CancelCauseFunc
	running sync.WaitGroup

	mu      sync.Mutex      // guards all below; taken before that of a flight
	flights map[key]*flight // those that readers can join
	active  places          // downloads, also those that readers can no longer join
	through places          // reads that store nothing
	spooled int64           // bytes of spool files
	full    filling
	left    map[key]*leftover
	sweeps  bool // a timer calls sweepLeft
}

// NewFetcher returns a Fetcher without downloads. Close ends it.
func NewFetcher(o FetcherOptions) *Fetcher {
	if o.Downloads == 0 {
		o.Downloads = defaultDownloads
	}
	if o.Reserve == nil {
		o.Reserve = func(int64) (func(), bool) { return func() {}, true }
	}
	f := &Fetcher{options: o, flights: map[key]*flight{}, left: map[key]*leftover{},
		active: newPlaces(o.Downloads), through: newPlaces(maxThrough)}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	f.findLeft()
	return f
}

// SetSpool changes the bound of the spool files. Those that are beyond a lower one stay until they are read.
func (f *Fetcher) SetSpool(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.options.Spool = bytes
}

// Close ends all downloads, and returns when they have ended.
func (f *Fetcher) Close() {
	f.mu.Lock() // Join looks at the context under this lock, so no download begins after Wait
	f.cancel(errClosed)
	f.mu.Unlock()
	f.running.Wait()
}

// Download describes what to fetch, and how. A caller that joins the download of another one must not serve bytes
// before its own upstream has answered for the content with the same size.
type Download struct {
	Digest digest.Digest
	// From names the upstream. One that stalls, or sends wrong bytes, must not affect the readers of another one that
	// has the same content, so a download has readers of one upstream alone.
	From string
	Size int64 // in bytes, by the descriptor; -1: not known
	// Open opens the content at an offset, as [Upstream.Blob] does.
	Open func(ctx context.Context, from int64, etag string) (*Blob, error)
	// Resume returns the upload that Create has made in an earlier download, also before a restart, and that was closed
	// with a part of the bytes. nil: uploads cannot be continued. Errors: there is no such upload.
	Resume func(ctx context.Context) (storage.Upload, error)
	// Create creates the upload to which the bytes are written.
	Create func(ctx context.Context) (storage.Upload, error)
	// Commit commits the upload, and records the content. nil: the upload is only committed.
	Commit func(ctx context.Context, u storage.Upload) error
	// Held reports whether the storage has the content: another download may have ended after the caller looked. nil:
	// it has not.
	Held func() bool
}

// fullFor is for how long after the disk was full no download of a content begins that is as large: it would find the
// disk full at the same byte again. Until then such contents are not stored, see Through.
const fullFor = time.Minute

// filling is when a download has found the disk full.
type filling struct {
	at   time.Time
	size int64 // bytes of its content
}

// filled notes that a content of so many bytes did not fit on the disk.
func (f *Fetcher) filled(size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.full.at) >= fullFor || size < f.full.size {
		f.full = filling{now, size}
	}
}

// isFull reports whether the disk was too full for a content of so many bytes just before.
func (f *Fetcher) isFull(size int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return size >= f.full.size && time.Since(f.full.at) < fullFor
}

// key is what downloads are shared by, and found again.
type key struct {
	digest digest.Digest
	from   string // of the form of fromID
}

// fromID returns a form of Download.From that fits into the name of a file.
func fromID(from string) string {
	sum := sha256.Sum256([]byte(from))
	return hex.EncodeToString(sum[:8])
}

// Join returns a reader of the download of a content, and starts the download if there is none. ctx bounds the reads,
// not the download. The caller closes the reader. Errors: ErrHeld; ErrBusy; ErrUnavailable if the Fetcher is closed;
// ErrDamaged if the download is of another size. Later failures are errors of the reads.
func (f *Fetcher) Join(ctx context.Context, d Download) (*Reader, error) {
	k := key{d.Digest, fromID(d.From)}
	f.mu.Lock()
	if fl := f.flights[k]; fl != nil {
		defer f.mu.Unlock()
		r, err := fl.reader(ctx, d.Size)
		if err == nil {
			r.joined = true
		}
		return r, err
	}
	if f.ctx.Err() != nil {
		defer f.mu.Unlock()
		return nil, &Error{Kind: ErrUnavailable, Ref: d.Digest.String(), Retry: time.Second,
			Reason: context.Cause(f.ctx).Error()}
	}
	if !f.active.take(k.from, 1) {
		defer f.mu.Unlock()
		return nil, &Error{Kind: ErrUnavailable, Ref: d.Digest.String(), Retry: time.Second,
			Reason: fmt.Sprintf("%d downloads are under way", f.active.taken), Cause: ErrBusy}
	}
	fl := &flight{fetcher: f, key: k, d: d, size: d.Size, changed: make(chan struct{})}
	var stop context.Context
	stop, fl.cancel = context.WithCancelCause(f.ctx)
	f.flights[k] = fl
	f.running.Add(1)
	r, err := fl.reader(ctx, d.Size)
	f.mu.Unlock()
	if err != nil {
		return nil, err // impossible: the flight has the size of d
	}
	// After the flight is in the map, and without the lock, because Held may do I/O: a download that ended before is
	// seen here, and a later request joins this flight. So the content is not fetched twice.
	if d.Held != nil && d.Held() {
		fl.end(ErrHeld)
		return nil, errors.Join(ErrHeld, r.Close())
	}
	go fl.run(stop)
	return r, nil
}

// flight is one download.
type flight struct {
	fetcher *Fetcher
	key     key
	d       Download
	cancel  context.CancelCauseFunc

	mu       sync.Mutex       // guards all below; never held across I/O
	changed  chan struct{}    // closed and replaced by each update, so that any number of readers can wait
	answered bool             // the upstream has answered; size is final, or not known before the end
	size     int64            // -1: not known
	got      int64            // bytes that source has
	source   storage.Follower // nil: nothing has arrived yet
	done     bool
	err      error // with done: why the content has not arrived
	given    bool  // a reader has got bytes
	readers  int
	idle     *time.Timer // calls abandon; nil: there was always a reader
}

// update changes the state under the lock, and wakes the readers that wait.
func (fl *flight) update(change func()) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	change()
	close(fl.changed)
	fl.changed = make(chan struct{})
}

// visible returns how many bytes may be read: before the digest is verified, all but the last HeldBack, of the content
// or of what has arrived. The caller holds mu.
func (fl *flight) visible() int64 {
	switch {
	case fl.done:
		return fl.got
	case fl.size >= 0:
		return min(fl.got, max(fl.size-HeldBack, 0))
	}
	return max(fl.got-HeldBack, 0)
}

// nearly reports whether the download is nearly done. The caller holds mu.
func (fl *flight) nearly() bool {
	return fl.size >= 0 && fl.size-fl.got <= max(fl.size/nearPart, nearBytes) && fl.answered
}

// end records that the download has ended. A later Join starts another one, or finds the content held.
func (fl *flight) end(err error) {
	fl.leave() // first: a reader that joined a flight that is done would be counted after source is closed
	var source storage.Follower
	fl.update(func() {
		fl.done, fl.err = true, err
		if fl.idle != nil {
			fl.idle.Stop()
		}
		if err == nil {
			fl.size = fl.got
		}
		if fl.readers == 0 {
			source = fl.source
		}
	})
	if source != nil {
		source.Close()
	}
	fl.cancel(nil) // releases the context
	f := fl.fetcher
	f.mu.Lock()
	f.active.leave(fl.key.from, 1)
	f.mu.Unlock()
	f.running.Done()
}

// leave removes the flight from the map, so that no further reader joins.
func (fl *flight) leave() {
	f := fl.fetcher
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flights[fl.key] == fl {
		delete(f.flights, fl.key)
	}
}

// abandon ends a download that has no readers and is not nearly done.
func (fl *flight) abandon() {
	f := fl.fetcher
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.mu.Lock()
	defer fl.mu.Unlock()
	// Under both locks, so that no reader joins between the look and the cancellation.
	if fl.readers > 0 || fl.done || fl.nearly() {
		return
	}
	if f.flights[fl.key] == fl {
		delete(f.flights, fl.key)
	}
	fl.cancel(errAbandoned)
}

// reader returns a new reader of a content of this size; -1: any. The caller holds the lock of the Fetcher and has the
// flight from its map, so the flight is not done. Errors: ErrDamaged if it has another size. Until the upstream has
// answered, that is only what one of those says who want the content.
func (fl *flight) reader(ctx context.Context, size int64) (*Reader, error) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.answered && fl.size >= 0 && size >= 0 && fl.size != size {
		return nil, &Error{Kind: ErrDamaged, Ref: fl.d.Digest.String(),
			Reason: fmt.Sprintf("it is on its way with %d bytes, and not %d", fl.size, size)}
	}
	fl.readers++
	if fl.idle != nil {
		fl.idle.Stop()
	}
	return &Reader{ctx: ctx, flight: fl}, nil
}

// left removes a reader. The last one closes the source of a flight that is done, or starts the time after which the
// flight is abandoned. Errors: those of closing the source.
func (fl *flight) left() error {
	fl.mu.Lock()
	fl.readers--
	var source storage.Follower
	switch {
	case fl.readers > 0:
	case fl.done:
		source = fl.source
	default:
		fl.idle = time.AfterFunc(lingerTime, fl.abandon)
	}
	fl.mu.Unlock()
	if source == nil {
		return nil
	}
	return source.Close() // without a lock: Close of a spool takes that of the Fetcher
}
