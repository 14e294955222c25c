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
			if done.Damaged != 1 || len(found) != 1 || found[0].Digest != layer ||
				!strings.Contains(found[0].Reason, reason) {
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

// TestWhatIsDamagedStaysInQuarantine when the Collector runs, and keeps nothing else from being served.
func TestWhatIsDamagedStaysInQuarantine(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		damaged, intact := s.push("a", []byte("damaged")), s.push("a", []byte("intact"))
		if _, err := s.manifest(t.Context(), "a", "v", damaged, intact); err != nil {
			t.Fatal(err)
		}
		gone := s.push("b", []byte("gone"))
		for _, d := range []digest.Digest{damaged, gone} {
			if err := s.index.Quarantine(t.Context(), d, "test"); err != nil {
				t.Fatal(err)
			}
		}
		storagetest.Update(t, s.index, "b", func(tx *storage.Tx) error { return tx.Unlink(gone) })
		s.collect()
		if !s.index.Quarantined(damaged) || s.holds("a", damaged) || !s.holds("a", intact) {
			t.Errorf("after a collection: %v", s.index.Damages())
		}
		// The mark of what was not present any more is gone: a repository that holds it again has other bytes.
		storagetest.Update(t, s.index, "b", func(tx *storage.Tx) error { tx.Link(gone, 4); return nil })
		if s.index.Quarantined(gone) {
			t.Error("the mark of what was collected stays")
		}
	})
}

// TestDamageInARingOfManifestsEnds: only manifests of unknown types can name each other.
func TestDamageInARingOfManifestsEnds(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	a, b, damaged := digest.FromString("a"), digest.FromString("b"), digest.FromString("damaged")
	put := func(d digest.Digest, refs ...digest.Digest) {
		storagetest.Update(t, x, "r", func(tx *storage.Tx) error {
			tx.Link(damaged, 1)
			return tx.PutManifest(storage.Manifest{Digest: d, MediaType: "application/a", Refs: refs})
		})
	}
	put(a, b)
	put(b, a)
	if err := x.Quarantine(t.Context(), damaged, "test"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []digest.Digest{"", damaged} {
		if m, ok, err := x.Resolve(t.Context(), "r", a.String()); !ok || err != nil || m.Damaged() != want {
			t.Errorf("%q is damaged, want %q; %v, %v", m.Damaged(), want, ok, err)
		}
		storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.DeleteManifest(b) })
		put(b, a, damaged)
	}
}

// TestFactsAboutContentAreApplied as they come, without an error that only a new full state hides; and a kind of a
// later version is refused.
func TestFactsAboutContentAreApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := memory.NewJournal()
		warned := 0
		s := newStore(t, memory.NewBlobs(), j)
		s.index = storagetest.OpenIndexWith(t, j, storage.IndexOptions{Warn: func(error) { warned++ }})
		d := s.push("a", []byte("layer"))
		if err := s.index.Quarantine(t.Context(), d, "test"); err != nil {
			t.Fatal(err)
		}
		s.push("a", []byte("layer")) // heals
		synctest.Wait()
		if warned != 0 || s.index.Quarantined(d) {
			t.Errorf("%d warnings", warned)
		}
		unknown := storage.Fact{Kind: 'z', Name: string(binary(d)), Value: []byte{1}}
		batch := storage.Batch{Repo: storage.StoreRepo, Facts: []storage.Fact{unknown}}
		if _, err := j.Commit(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		if _, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{}); !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("an unknown kind: %v", err)
		}
	})
}

// TestScrubOfManyContents checks each once, from a random one on.
func TestScrubOfManyContents(t *testing.T) {
	s := newStore(t, memory.NewBlobs(), memory.NewJournal())
	const n = 2500 // several times the number that is listed at a time
	storagetest.Update(t, s.index, "a", func(tx *storage.Tx) error {
		for i := range n {
			tx.Link(digestOf("blob", i), 1)
		}
		return nil
	})
	for range 3 {
		seen := map[digest.Digest]int{}
		scrubber := &storage.Scrubber{Blobs: s.blobs, Index: s.index}
		done, err := scrubber.RunWith(t.Context(), storage.Scrub{All: true},
			func(f storage.Finding) { seen[f.Digest]++ }, nil)
		// none has bytes
		if err != nil || done.Contents != n || done.Blobs != n || done.Damaged != n || len(seen) != n {
			t.Errorf("%+v, %d findings, %v", done, len(seen), err)
		}
		s.index = storagetest.OpenIndex(t, memory.NewJournal())
		storagetest.Update(t, s.index, "b", func(tx *storage.Tx) error {
			for i := range n {
				tx.Link(digestOf("blob", i), 1)
			}
			return nil
		})
	}
}

// TestAScrubThatIsCutShortReportsNoFinding: that its context ended says nothing about the bytes.
func TestAScrubThatIsCutShortReportsNoFinding(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		s.push("a", []byte("layer"))
		ctx, cancel := context.WithCancel(t.Context())
		scrubber := &storage.Scrubber{Blobs: onOpen{s.blobs, cancel}, Index: s.index}
		done, err := scrubber.Run(ctx, 0, func(f storage.Finding) { t.Errorf("finding %+v", f) }, nil)
		if !errors.Is(err, context.Canceled) || done.Failed != 0 {
			t.Errorf("%+v, %v", done, err)
		}
	})
}

type onOpen struct {
	storage.Blobs
	hook func()
}

func (b onOpen) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	b.hook()
	return b.Blobs.Open(ctx, d)
}

func TestScrubReportsProgressOnceASecond(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		for i := range 4 {
			s.push("a", append(make([]byte, 1<<20-1), byte(i)))
		}
		scrubber := &storage.Scrubber{Blobs: s.blobs, Index: s.index}
		for rate, want := range map[int64]int{0: 0, 1 << 20: 4, 4 << 20: 1} {
			reports := 0
			_, err := scrubber.Run(t.Context(), rate, nil, func(storage.Scrubbed) { reports++ })
			if err != nil || reports != want {
				t.Errorf("%d reports at %d bytes a second, want %d; %v", reports, rate, want, err)
			}
			if _, err := scrubber.Run(t.Context(), rate, nil, nil); err != nil {
				t.Error(err)
			}
		}
	})
}

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
