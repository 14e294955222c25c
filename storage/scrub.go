package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
)

// Scrubber reads content and compares it with its digest. What is damaged or missing is quarantined, and what was
// and is whole again is told to be there again.
type Scrubber struct {
	Blobs Blobs
	Index *Index
}

// Scrubbed says what a run has found.
type Scrubbed struct {
	Contents int   `json:"contents"` // to be read in all
	Blobs    int   `json:"blobs"`    // read so far
	Bytes    int64 `json:"bytes"`    // read so far
	Damaged  int   `json:"damaged"`  // among them, damaged or missing
	Healed   int   `json:"healed"`   // among them, were quarantined and are whole again
	Failed   int   `json:"failed"`   // among them, could not be judged, such as for want of file handles
}

// Finding is what a Scrubber has to say about one content.
type Finding struct {
	Digest digest.Digest `json:"digest"`
	Reason string        `json:"reason,omitempty"` // what is wrong; empty: whole again
	Err    error         `json:"-"`                // why it could not be judged
}

// Run reads everything that is present once, at most rate bytes per second (0: as fast as it goes), beginning
// anywhere: so a pass that is always cut short by a restart gets everywhere in the end. found is told of every
// damage; report, which may be nil, now and then how far it has come. Errors: ctx's; those of the Journal.
func (s *Scrubber) Run(ctx context.Context, rate int64, found func(Finding), report func(Scrubbed)) (done Scrubbed, err error) {
	for range s.Index.contents(0) {
		done.Contents++
	}
	pace := &pace{rate: rate, began: time.Now()}
	told := time.Now()
	for k := range s.Index.contents(rand.IntN(max(1, s.Index.records()))) {
		if err := ctx.Err(); err != nil {
			return done, context.Cause(ctx)
		}
		f, n, err := s.check(ctx, k.digest(), pace)
		if err != nil {
			return done, fmt.Errorf("scrub: %w", err)
		}
		done.Blobs++
		done.Bytes += n
		s.count(&done, f, found)
		if report != nil && time.Since(told) >= time.Second {
			told = time.Now()
			report(done)
		}
	}
	return done, nil
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

// Check reads one content and quarantines it if it is damaged. It returns nil if there is nothing to tell. Errors:
// as Run.
func (s *Scrubber) Check(ctx context.Context, d digest.Digest) (*Finding, error) {
	f, _, err := s.check(ctx, d, &pace{})
	return f, err
}

// check judges by two readings, lest a fault of the memory or a file that was being replaced condemns what is whole.
func (s *Scrubber) check(ctx context.Context, d digest.Digest, pace *pace) (f *Finding, n int64, err error) {
	if !s.Index.present(keyOf(d)) {
		return nil, 0, nil // deleted since
	}
	damage, n, err := s.read(ctx, d, pace)
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

// quarantine sets the mark and looks again: somebody who pushes first replaces the bytes and then looks for the
// mark, so one of the two sees the other.
func (s *Scrubber) quarantine(ctx context.Context, d digest.Digest, damage string, n int64) (*Finding, int64, error) {
	if !s.Index.present(keyOf(d)) {
		return nil, n, nil // deleted while it was read
	}
	if err := s.Index.Quarantine(ctx, d, damage); err != nil {
		return nil, n, err
	}
	if again, _, err := s.read(ctx, d, &pace{}); err == nil && again == "" {
		return nil, n, s.Index.heal(ctx, d)
	}
	return &Finding{Digest: d, Reason: damage}, n, nil
}

// scrubBuffers are what contents are read through.
var scrubBuffers = sync.Pool{New: func() any { return new([256 << 10]byte) }}

// read compares a content with its digest; damage says what is wrong with it. Errors: what says nothing about the
// content.
func (s *Scrubber) read(ctx context.Context, d digest.Digest, pace *pace) (damage string, n int64, err error) {
	r, err := s.Blobs.Open(ctx, d)
	if err != nil {
		return unreadable(err)
	}
	defer r.Close()
	h := d.Algorithm().Hash()
	buf := scrubBuffers.Get().(*[256 << 10]byte)
	defer scrubBuffers.Put(buf)
	n, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{pace.reader(ctx, r)}, buf[:])
	if err != nil {
		damage, _, err = unreadable(err)
		return damage, n, err
	}
	if got := digest.NewDigest(d.Algorithm(), h); got != d {
		return fmt.Sprintf("its %d bytes have the digest %s", n, got), n, nil
	}
	return "", n, nil
}

// unreadable tells errors that speak of the content from those that may pass.
func unreadable(err error) (damage string, n int64, _ error) {
	switch {
	case errors.Is(err, ErrNotFound):
		return "its bytes are missing", 0, nil
	case errors.Is(err, syscall.EIO):
		return "its bytes cannot be read: " + err.Error(), 0, nil
	}
	return "", 0, err
}

// pace holds readings to a rate in bytes per second; 0 is none.
type pace struct {
	rate  int64
	began time.Time
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
		due := p.began.Add(time.Duration(float64(p.read) / float64(p.rate) * float64(time.Second)))
		pause(r.ctx, time.Until(due))
	}
	return n, err
}
