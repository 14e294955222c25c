package storage_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// scrub reads everything once and returns the findings.
func (s *store) scrub() (done storage.Scrubbed, found []storage.Finding) {
	s.Helper()
	scrubber := &storage.Scrubber{Blobs: s.blobs, Index: s.index}
	done, err := scrubber.Run(s.Context(), 0, func(f storage.Finding) { found = append(found, f) }, nil)
	if err != nil {
		s.Fatal(err)
	}
	return done, found
}

func TestScrubFindsDamageAndAPushHeals(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, openDisk(t, dir), openBolt(t, t.TempDir()))
	file := func(d digest.Digest) string { return filepath.Join(dir, "blobs", "sha256", d.Encoded()) }
	damages := map[string]func(d digest.Digest) error{
		"digest":  func(d digest.Digest) error { return os.WriteFile(file(d), []byte("lay3r"), 0o600) },
		"bytes":   func(d digest.Digest) error { return os.Truncate(file(d), 2) },
		"missing": func(d digest.Digest) error { return os.Remove(file(d)) },
	}
	for reason, damage := range damages {
		t.Run(reason, func(t *testing.T) {
			s := *s
			s.T = t
			layer := s.push("a", []byte("layer"))
			m, err := s.manifest(t.Context(), "a", "v", layer)
			if err != nil {
				t.Fatal(err)
			}
			if done, found := s.scrub(); len(found) > 0 || done.Blobs != 2 || done.Contents != 2 {
				t.Fatalf("nothing is damaged, and scrub reports %+v, %v", done, found)
			}
			if err := damage(layer); err != nil {
				t.Fatal(err)
			}
			done, found := s.scrub()
			if done.Damaged != 1 || len(found) != 1 || found[0].Digest != layer || !strings.Contains(found[0].Reason, reason) {
				t.Fatalf("scrub reports %+v, %v", done, found)
			}
			at, ok, err := s.index.Resolve(t.Context(), "a", "v")
			if !ok || err != nil || at.Damaged() != layer || at.Digest() != m || s.holds("a", layer) {
				t.Errorf("after the finding: %v, %v, %v", at.Damaged(), ok, err)
			}
			if _, err := s.manifest(t.Context(), "a", "w", layer); !errors.Is(err, errMissing) {
				t.Errorf("a manifest that refers to damaged content: %v", err)
			}
			s.push("b", []byte("layer"))
			at, _, _ = s.index.Resolve(t.Context(), "a", "v")
			if at.Damaged() != "" || !s.holds("a", layer) || s.index.Stats().Quarantined != 0 {
				t.Errorf("a push does not heal: %v", at.Damaged())
			}
		})
	}
}

func TestScrubReportsWhatIsIntactAgain(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, openDisk(t, dir), openBolt(t, t.TempDir()))
	d := s.push("a", []byte("layer"))
	file := filepath.Join(dir, "blobs", "sha256", d.Encoded())
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	s.scrub()
	if got := s.index.Damages(); len(got) != 1 || got[d].Reason != "its bytes are missing" || got[d].Time == 0 {
		t.Errorf("damages: %v", got)
	}
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	if done, found := s.scrub(); done.Healed != 1 || len(found) != 1 || found[0].Reason != "" || !s.holds("a", d) {
		t.Errorf("intact again: %+v, %v", done, found)
	}
}

// TestQuarantineEndsWithTheLastLink: content that is no longer present is not quarantined.
func TestQuarantineEndsWithTheLastLink(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		d := s.push("a", []byte("layer"))
		if err := s.index.Quarantine(t.Context(), d, "test"); err != nil {
			t.Fatal(err)
		}
		// DELETE works on damaged content.
		storagetest.Update(t, s.index, "a", func(tx *storage.Tx) error { return tx.Unlink(d) })
		s.collect()
		if len(s.index.Damages()) != 0 {
			t.Error("it stays in quarantine")
		}
		if err := s.index.Quarantine(t.Context(), d, "test"); err != nil || len(s.index.Damages()) != 0 {
			t.Errorf("content that is not present was quarantined: %v", err)
		}
	})
}

// TestTransientErrorsAreNotDamage: an error is damage only if the engine says that the bytes are lost, and only if two
// reads fail.
func TestTransientErrorsAreNotDamage(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		d := s.push("a", []byte("layer"))
		inner := s.blobs
		noHandle := errors.New("no file handle")
		failing := func(err error) storage.Blobs {
			fault := &storagetest.Fault{Method: "Open", N: 1, Err: err}
			return lossy{storagetest.FailBlobs{Blobs: inner, Fault: fault}}
		}
		s.blobs = failing(noHandle)
		if done, found := s.scrub(); done.Failed != 1 || done.Damaged != 0 || found[0].Err == nil || !s.holds("a", d) {
			t.Errorf("no file handle: %+v, %v", done, found)
		}
		s.blobs = failing(errLost)
		if done, found := s.scrub(); done.Damaged != 0 || len(found) != 0 || !s.holds("a", d) {
			t.Errorf("one reading of two failed: %+v, %v", done, found)
		}
		s.blobs = lossy{lost{inner}}
		done, found := s.scrub()
		if done.Damaged != 1 || !strings.Contains(found[0].Reason, "cannot be read") || s.holds("a", d) {
			t.Errorf("every reading failed: %+v, %v", done, found)
		}
	})
}

// errLost is what a reader of lossy returns for bytes that cannot be read any more.
var errLost = errors.New("lost")

type lossy struct{ storage.Blobs }

func (lossy) Lost(err error) bool { return errors.Is(err, errLost) }

// lost opens blobs of which nothing can be read.
type lost struct{ storage.Blobs }

func (lost) Open(context.Context, digest.Digest) (io.ReadSeekCloser, error) {
	return struct {
		io.ReadSeeker
		io.Closer
	}{noBytes{}, io.NopCloser(nil)}, nil
}

type noBytes struct{ io.Seeker }

func (noBytes) Read([]byte) (int, error) { return 0, errLost }

// TestAPushDuringAScrubIsNotQuarantined replaces damaged bytes when the scrubber has just read them.
func TestAPushDuringAScrubIsNotQuarantined(t *testing.T) {
	for at := int32(1); at <= 3; at++ {
		inBubble(t, func(t *testing.T, s *store) {
			d := s.push("a", []byte("layer"))
			b := &twoFaced{Blobs: s.blobs.(*memory.Blobs)}
			b.damaged.Store(true)
			b.onRead = func(n int32) {
				if n == at {
					b.damaged.Store(false)
					s.push("a", []byte("layer"))
				}
			}
			s.blobs = b
			s.scrub()
			if !s.holds("a", d) {
				t.Errorf("healed after reading %d, and still quarantined", at)
			}
		})
	}
}

// twoFaced shows damaged bytes while damaged is set.
type twoFaced struct {
	*memory.Blobs
	damaged atomic.Bool
	reads   atomic.Int32
	onRead  func(n int32)
}

func (b *twoFaced) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	r, err := b.Blobs.Open(ctx, d)
	if err != nil || !b.damaged.Load() {
		return r, err
	}
	return &afterEnd{Reader: bytes.NewReader([]byte("damage")), end: func() { b.onRead(b.reads.Add(1)) }}, r.Close()
}

type afterEnd struct {
	*bytes.Reader
	end func()
}

func (r *afterEnd) Close() error { r.end(); return nil }

func TestScrubKeepsToItsPace(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		s.push("a", make([]byte, 10<<20))
		scrubber := &storage.Scrubber{Blobs: s.blobs, Index: s.index}
		reports := 0
		start := time.Now()
		done, err := scrubber.Run(t.Context(), 1<<20, nil, func(storage.Scrubbed) { reports++ })
		took := time.Since(start)
		if err != nil || done.Bytes != 10<<20 || took < 9*time.Second || took > 11*time.Second || reports != 1 {
			t.Errorf("%+v in %s with %d reports, %v", done, took, reports, err)
		}
		synctest.Wait()
	})
}
