package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Scrubber compares content with its digest. It quarantines what is damaged or missing, and ends the quarantine of what
// is intact again. Of a [Placed] engine, whose service verifies what it stores and bills what is read, it compares the
// names and sizes that the engine lists with those of the facts, and reads what differs; see [Scrub].
type Scrubber struct {
	Blobs Blobs
	Index *Index
	// Trust is called before a content is quarantined. An error of it means that the bytes may be those of another
	// registry, so that nothing is known about this content. nil: they are not.
	Trust func(context.Context) error
}

// maxDamaged is how many contents a run quarantines before an administrator must look at it: so much damage is more
// often a volume that is not mounted, or a bucket that was emptied.
const maxDamaged = 100

// Scrub says how a run goes on.
type Scrub struct {
	Rate int64 // bytes per second that are read at most; 0: as many as possible
	All  bool  // go on however much is damaged
	Read bool  // read the content of a Placed engine as well
}

// Scrubbed is what a run has found.
type Scrubbed struct {
	Contents int   `json:"contents"`         // to be examined in all
	Total    int64 `json:"total,omitempty"`  // bytes that they have, as far as the facts say
	Listed   bool  `json:"listed,omitempty"` // names and sizes are compared, and only what differs is read
	Blobs    int   `json:"blobs"`            // examined so far
	Bytes    int64 `json:"bytes"`            // read so far
	Damaged  int   `json:"damaged"`          // of these, damaged or missing
	Healed   int   `json:"healed"`           // of these, quarantined before and intact again
	Failed   int   `json:"failed"`           // of these, could not be checked, as when no file could be opened
}

// Finding is what a Scrubber reports about one content.
type Finding struct {
	Digest digest.Digest `json:"digest"`
	Reason string        `json:"reason,omitempty"` // what is wrong; empty: intact again
	Err    error         `json:"-"`                // why it could not be checked
}

// Run examines everything that is present once, and reads at most rate bytes per second (0: as many as possible). It
// starts at a random place, so that passes that restarts always cut short reach everything in the end. found is called
// for every Finding; report, which may be nil, about once a second with the progress. Errors: ctx's; those of the
// Journal, and of a list; ErrSuspicious after 100 contents that were not quarantined before.
func (s *Scrubber) Run(ctx context.Context, rate int64, found func(Finding),
	report func(Scrubbed)) (done Scrubbed, err error) {
	return s.RunWith(ctx, Scrub{Rate: rate}, found, report)
}

// RunWith is Run with other options. With Read, it first reports how much it will read.
func (s *Scrubber) RunWith(ctx context.Context, o Scrub, found func(Finding),
	report func(Scrubbed)) (done Scrubbed, err error) {
	r := &scrub{Scrubber: s, done: &done, most: maxDamaged, found: found, report: report,
		pace: &pace{rate: o.Rate, start: time.Now()}, reported: time.Now()}
	if o.All {
		r.most = math.MaxInt
	}
	for d := range s.Index.Contents() {
		done.Contents++
		done.Total += s.Index.sizeOf(keyOf(d))
	}
	if placed, ok := s.Blobs.(Placed); ok && !o.Read {
		return done, r.list(ctx, placed)
	}
	if o.Read && report != nil {
		report(done)
	}
	for d := range s.Index.contents(rand.IntN(max(1, s.Index.records()))) {
		if err := r.check(ctx, d); err != nil {
			return done, err
		}
	}
	return done, nil
}

// scrub is one run.
type scrub struct {
	*Scrubber
	done     *Scrubbed
	most     int // how many contents it may still quarantine
	pace     *pace
	found    func(Finding)
	report   func(Scrubbed)
	reported time.Time
}

// check reads one content. Errors: as Run.
func (r *scrub) check(ctx context.Context, d digest.Digest) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	known := r.Index.Quarantined(d)
	f, n, err := r.Scrubber.check(ctx, d, r.pace)
	if err != nil {
		return fmt.Errorf("scrub: %w", err)
	}
	r.done.Blobs++
	r.done.Bytes += n
	r.count(r.done, f, r.found)
	if f != nil && f.Reason != "" && !known {
		if r.most--; r.most == 0 {
			return fmt.Errorf("scrub: %w: %d contents are damaged or missing after %d of %d; is this the "+
				"right storage, and all of it?", ErrSuspicious, r.done.Damaged, r.done.Blobs, r.done.Contents)
		}
	}
	r.progress()
	return nil
}

// progress reports, about once a second.
func (r *scrub) progress() {
	if r.report != nil && time.Since(r.reported) >= time.Second {
		r.reported = time.Now()
		r.report(*r.done)
	}
}

func (s *Scrubber) count(done *Scrubbed, f *Finding, found func(Finding)) {
	switch {
	case f == nil:
		return
	case f.Err != nil:
		done.Failed++
	case f.Reason != "":
		done.Damaged++
	default:
		done.Healed++
	}
	found(*f)
}

// Check reads one content and quarantines it if it is damaged. It returns nil if there is nothing to report. Errors: as
// Run.
func (s *Scrubber) Check(ctx context.Context, d digest.Digest) (*Finding, error) {
	f, _, err := s.check(ctx, d, &pace{})
	return f, err
}

func (s *Scrubber) check(ctx context.Context, d digest.Digest, pace *pace) (f *Finding, n int64, err error) {
	if !s.Index.Present(d) {
		return nil, 0, nil // deleted since
	}
	damage, n, err := s.read(ctx, d, pace)
	// A second reading, so that a fault of the memory, or a file that is just being replaced, condemns nothing.
	if damage != "" {
		damage, _, err = s.read(ctx, d, pace)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, n, context.Cause(ctx)
	case err != nil:
		return &Finding{Digest: d, Err: err}, n, nil
	case damage == "" && s.Index.Quarantined(d):
		return &Finding{Digest: d}, n, s.Index.heal(ctx, d)
	case damage == "":
		return nil, n, nil
	case s.Index.Quarantined(d):
		return &Finding{Digest: d, Reason: damage}, n, nil
	}
	return s.quarantine(ctx, d, damage, n)
}

// quarantine sets the mark and reads once more. A push first replaces the bytes and then looks for the mark; here the
// mark comes first. So at least one of the two sees the other, and content that was just healed does not stay marked.
func (s *Scrubber) quarantine(ctx context.Context, d digest.Digest, damage string, n int64) (*Finding, int64, error) {
	if !s.Index.Present(d) {
		return nil, n, nil // deleted while it was read
	}
	if s.Trust != nil {
		if err := s.Trust(ctx); err != nil {
			return &Finding{Digest: d, Err: fmt.Errorf("%s, but it is not quarantined: %w", damage, err)}, n, nil
		}
	}
	if err := s.Index.Quarantine(ctx, d, damage); err != nil {
		return nil, n, err
	}
	if again, _, err := s.read(ctx, d, &pace{}); err == nil && again == "" {
		return nil, n, s.Index.heal(ctx, d)
	}
	return &Finding{Digest: d, Reason: damage}, n, nil
}

// scrubBuffers are the buffers that contents are read through.
var scrubBuffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// read compares a content with its digest. damage is what is wrong with it. An error means that the content could not
// be checked, and says nothing about it.
func (s *Scrubber) read(ctx context.Context, d digest.Digest, pace *pace) (damage string, n int64, err error) {
	r, err := s.Blobs.Open(ctx, d)
	if err != nil {
		damage, err = s.judge(err)
		return damage, 0, err
	}
	defer r.Close()
	h := d.Algorithm().Hash()
	buf := scrubBuffers.Get().(*[256 << 10]byte)
	defer scrubBuffers.Put(buf)
	// The wrappers hide ReadFrom and WriteTo, which would bypass the buffer and the pace.
	n, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{pace.reader(ctx, r)}, buf[:])
	if err != nil {
		damage, err = s.judge(err)
		return damage, n, err
	}
	if got := digest.NewDigest(d.Algorithm(), h); got != d {
		return fmt.Sprintf("its %d bytes have the digest %s", n, got), n, nil
	}
	return "", n, nil
}

// judge turns an error of the engine that means that the bytes are lost into damage, and returns any other error.
func (s *Scrubber) judge(err error) (damage string, _ error) {
	if errors.Is(err, ErrNotFound) {
		return "its bytes are missing", nil
	}
	if b, ok := s.Blobs.(interface{ Lost(error) bool }); ok && b.Lost(err) {
		return "its bytes cannot be read: " + err.Error(), nil
	}
	return "", err
}

// pace keeps readings to a rate in bytes per second; 0 means no limit.
type pace struct {
	rate  int64
	start time.Time
	read  int64
}

func (p *pace) reader(ctx context.Context, r io.Reader) io.Reader { return &pacedReader{ctx, p, r} }

type pacedReader struct {
	ctx  context.Context
	pace *pace
	r    io.Reader
}

func (r *pacedReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	n, err := r.r.Read(b)
	if p := r.pace; p.rate > 0 {
		p.read += int64(n)
		due := p.start.Add(time.Duration(float64(p.read) / float64(p.rate) * float64(time.Second)))
		pause(r.ctx, time.Until(due))
	}
	return n, err
}
