package upstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

const (
	// defaultDownloads is how many downloads run at once where the settings do not say: each has a connection, a buffer
	// of copySize bytes and an open upload.
	defaultDownloads = 64
	// maxThrough bounds the reads that store nothing: each is a request of its own to the upstream.
	maxThrough = 32
	// heldBack is how much of the end of a content no reader gets before the digest is known to be right: enough that
	// no client takes a damaged content for whole.
	heldBack = 64 << 10
	// stallTime is how long a download may get no byte, whatever the upstream does in the meantime.
	stallTime = 30 * time.Second
	// lingerTime is how long a download without readers goes on: clients whose connection broke come back, and those
	// that read in ranges open one after the other.
	lingerTime = 10 * time.Second
	// nearPart and nearBytes say when a download is nearly done, and goes on without readers: at most a quarter of it,
	// or this many bytes, are missing.
	nearPart  = 4
	nearBytes = 8 << 20
)

// ErrNoRoom: the cache, or the place for downloads, has no room for the content. It can be sent on unstored.
var ErrNoRoom = errors.New("the cache has no room")

// ErrHeld: the content has arrived meanwhile; read it from the storage.
var ErrHeld = errors.New("the content is held already")

// The reasons for which a download ends before its content has arrived.
var (
	errStalled   = fmt.Errorf("the upstream sent nothing for %s", stallTime)
	errAbandoned = errors.New("no client reads it any more")
	errClosed    = errors.New("the server ends")
)

// FetcherOptions are what bounds a Fetcher.
type FetcherOptions struct {
	Downloads int // how many run at once; 0: 64
	// Dir is where the bytes of uploads are that cannot be read while they grow; Spool bounds them, of all downloads
	// together.
	Dir   string
	Spool int64
	// Reserve reserves bytes of the cache before they are fetched; release is called when they are stored, or never
	// will be. nil: nothing is bounded.
	Reserve func(n int64) (release func(), ok bool)
}

// Fetcher downloads contents: each once at a time, for all who want it. Make it with [NewFetcher]. It is safe for
// concurrent use.
type Fetcher struct {
	options FetcherOptions
	ctx     context.Context // of all downloads: no client's leaving ends them
	cancel  context.CancelCauseFunc
	running sync.WaitGroup
	through atomic.Int64 // reads that store nothing

	mu      sync.Mutex // guards all below; taken before that of a flight
	flights map[digest.Digest]*flight
	active  int   // downloads, also those that new readers cannot join any more
	spooled int64 // bytes
}

// NewFetcher returns a Fetcher without downloads. Close ends it.
func NewFetcher(o FetcherOptions) *Fetcher {
	if o.Downloads == 0 {
		o.Downloads = defaultDownloads
	}
	if o.Reserve == nil {
		o.Reserve = func(int64) (func(), bool) { return func() {}, true }
	}
	f := &Fetcher{options: o, flights: map[digest.Digest]*flight{}}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	return f
}

// Close ends all downloads, and returns when they have ended.
func (f *Fetcher) Close() {
	f.mu.Lock() // so that no download begins after this
	f.cancel(errClosed)
	f.mu.Unlock()
	f.running.Wait()
}

// Download says what to fetch, and how. Those that join a download must have made sure that they may read the content
// from their own upstream, with the same size.
type Download struct {
	Digest digest.Digest
	Size   int64 // by the descriptor; -1: not known
	// Open opens the content at an offset, as [Upstream.Blob] does.
	Open func(ctx context.Context, from int64, etag string) (*Blob, error)
	// Create makes the upload that it is stored through.
	Create func(ctx context.Context) (storage.Upload, error)
	// Commit commits the upload, and records the content. nil: it commits the upload.
	Commit func(ctx context.Context, u storage.Upload) error
	// Held reports whether the storage has the content by now: it may have arrived after the caller looked. nil: it
	// does not.
	Held func() bool
}

// Join returns a reader of a content that is being downloaded; it starts the download if needed. ctx bounds the
// reads, not the download. The caller closes the reader. Errors: ErrHeld; ErrUnavailable, if too many downloads are
// under way; ErrDamaged, if others wait for another size. What goes wrong later is the error of the reads.
func (f *Fetcher) Join(ctx context.Context, d Download) (*Reader, error) {
	f.mu.Lock()
	if fl := f.flights[d.Digest]; fl != nil {
		defer f.mu.Unlock()
		return fl.reader(ctx, d.Size)
	}
	if f.ctx.Err() != nil || f.active >= f.options.Downloads {
		defer f.mu.Unlock()
		return nil, &Error{Kind: ErrUnavailable, Ref: d.Digest.String(), Retry: time.Second,
			Reason: fmt.Sprintf("%d downloads are under way", f.active)}
	}
	fl := &flight{fetcher: f, d: d, size: d.Size, changed: make(chan struct{})}
	var stop context.Context
	stop, fl.cancel = context.WithCancelCause(f.ctx)
	f.flights[d.Digest] = fl
	f.active++
	f.running.Add(1)
	r, err := fl.reader(ctx, d.Size)
	f.mu.Unlock()
	if err != nil {
		return nil, err // not possible: it has this size
	}
	// Now that others would join this one, the content cannot be stored unseen between this look and the download.
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
	d       Download
	cancel  context.CancelCauseFunc

	mu       sync.Mutex       // guards all below; never held across I/O
	changed  chan struct{}    // closed, and replaced, with each change of what follows
	answered bool             // the upstream has answered; size is all that is known about it
	size     int64            // -1: not known
	got      int64            // bytes that source has
	source   storage.Follower // nil: nothing has arrived yet
	done     bool
	err      error // with done: why the content has not arrived
	readers  int
	idle     *time.Timer // ends the download if no reader comes back
}

// update changes the state under the lock, and wakes those who wait for that.
func (fl *flight) update(change func()) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	change()
	close(fl.changed)
	fl.changed = make(chan struct{})
}

// visible returns how many bytes may be read. The caller holds mu.
func (fl *flight) visible() int64 {
	switch {
	case fl.done:
		return fl.got
	case fl.size >= 0:
		return min(fl.got, max(fl.size-heldBack, 0))
	}
	return max(fl.got-heldBack, 0)
}

// nearly reports whether the download is nearly done. The caller holds mu.
func (fl *flight) nearly() bool {
	return fl.size >= 0 && fl.size-fl.got <= max(fl.size/nearPart, nearBytes) && fl.answered
}

// end records that the download has ended: who comes from now on starts another one.
func (fl *flight) end(err error) {
	fl.leave()
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
	fl.cancel(nil) // frees the context
	f := fl.fetcher
	f.mu.Lock()
	f.active--
	f.mu.Unlock()
	f.running.Done()
}

// leave makes sure that no reader joins the flight any more.
func (fl *flight) leave() {
	f := fl.fetcher
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.flights[fl.d.Digest] == fl {
		delete(f.flights, fl.d.Digest)
	}
}

// abandon ends a download that has no readers and is not nearly done.
func (fl *flight) abandon() {
	f := fl.fetcher
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.mu.Lock()
	defer fl.mu.Unlock()
	// With both locks held no reader can join in between.
	if fl.readers > 0 || fl.done || fl.nearly() {
		return
	}
	if f.flights[fl.d.Digest] == fl {
		delete(f.flights, fl.d.Digest)
	}
	fl.cancel(errAbandoned)
}

// reader returns a new reader for one who expects this size; -1: any. The caller holds the lock of the Fetcher, so the
// flight has not ended. Errors: ErrDamaged, it has another size.
func (fl *flight) reader(ctx context.Context, size int64) (*Reader, error) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	if fl.size >= 0 && size >= 0 && fl.size != size {
		return nil, &Error{Kind: ErrDamaged, Ref: fl.d.Digest.String(),
			Reason: fmt.Sprintf("it is on its way with %d bytes, and not %d", fl.size, size)}
	}
	fl.readers++
	if fl.idle != nil {
		fl.idle.Stop()
	}
	return &Reader{ctx: ctx, flight: fl}, nil
}

// left counts a reader down.
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
	return source.Close() // with no lock held: it takes that of the Fetcher
}
