package storage_test

import (
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/storagetest"
)

// recordManifest records a manifest with its bytes, whatever it refers to, as the registry does for foreign layers and
// for manifests of an unknown type.
func (s *store) recordManifest(repo, tag string, refs ...digest.Digest) digest.Digest {
	s.Helper()
	content := []byte("manifest " + tag)
	d := digest.FromBytes(content)
	release, err := s.commit(s.Context(), repo, content)
	if err != nil {
		s.Fatal(err)
	}
	defer release()
	storagetest.Update(s.T, s.index, repo, func(tx *storage.Tx) error {
		m := storage.Manifest{Digest: d, MediaType: "application/a", Size: int64(len(content)), Refs: refs}
		return errors.Join(tx.PutManifest(m), tx.SetTag(tag, d))
	})
	return d
}

func TestReferencedContentIsNotMissing(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		layer, foreign := s.push("a", []byte("layer")), digest.FromString("foreign")
		m := s.recordManifest("a", "v", layer, foreign)
		if done, found := s.scrub(); done.Contents != 2 || done.Damaged != 0 || len(found) != 0 {
			t.Errorf("scrub: %+v, %v; want two intact contents", done, found)
		}
		if err := s.index.Quarantine(t.Context(), foreign, "test"); err != nil || s.index.Stats().Quarantined != 0 {
			t.Errorf("content that is not present was quarantined: %v", err)
		}
		at, ok, err := s.index.Resolve(t.Context(), "a", "v")
		if !ok || err != nil || at.Digest() != m || at.Damaged() != "" {
			t.Errorf("damaged: %q, found: %v, %v", at.Damaged(), ok, err)
		}
	})
}

// TestAnOldMarkOnReferencedContent: earlier versions quarantined foreign layers. Their journals must open, the mark
// must not count, and the next collection removes it.
func TestAnOldMarkOnReferencedContent(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		content := s.push("b", []byte("foreign"))
		s.recordManifest("a", "v", content)
		if err := s.index.Quarantine(t.Context(), content, "its bytes are missing"); err != nil {
			t.Fatal(err)
		}
		if at, _, _ := s.index.Resolve(t.Context(), "a", "v"); at.Damaged() != "" {
			t.Error("a manifest is damaged for content that its own repository does not hold")
		}
		storagetest.Update(t, s.index, "b", func(tx *storage.Tx) error { return tx.Unlink(content) })
		if n, all := s.index.Stats().Quarantined, s.index.Damages(); n != 0 || len(all) != 0 ||
			s.index.Quarantined(content) {
			t.Errorf("what is only referred to counts as damaged: %d, %v", n, all)
		}
		s.collect()
		s.push("a", []byte("foreign"))
		if len(s.index.Damages()) != 0 || !s.holds("a", content) {
			t.Error("the old mark survived a collection and a push")
		}
	})
}

// TestAReferenceKeepsTheLinkAndTheLinkKeepsTheBytes: the collector asks about both separately.
func TestAReferenceKeepsTheLinkAndTheLinkKeepsTheBytes(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		foreign, layer := s.push("a", []byte("foreign")), s.push("b", []byte("layer"))
		m := s.recordManifest("a", "v", foreign, layer)
		index := s.recordManifest("a", "index", m)
		time.Sleep(grace + 2*time.Second)
		dry, err := s.collector.Run(t.Context(), true, nil)
		if err != nil {
			t.Fatal(err)
		}
		// layer is linked in b alone, where no manifest refers to it. The reference in a promises nothing.
		if done := s.collect(); done != dry || done.Unlinked != 1 || done.Deleted != 1 || s.has(layer) {
			t.Errorf("collected %+v, dry run %+v; want one link and its bytes", done, dry)
		}
		if !s.holds("a", foreign) || !s.has(foreign) {
			t.Error("a foreign layer that was pushed all the same was collected")
		}
		if !s.has(m) || !s.has(index) {
			t.Error("a manifest was collected")
		}
		storagetest.Update(t, s.index, "a", func(tx *storage.Tx) error {
			for part, by := range map[digest.Digest]digest.Digest{foreign: m, layer: m, m: index} {
				if got, ok := tx.ReferredBy(part); !ok || got != by {
					t.Errorf("ReferredBy(%s): %s, %v; want %s", part, got, ok, by)
				}
			}
			return nil
		})
	})
}

// TestASparseIndex refers to a manifest that was never pushed, and that is pushed and deleted later.
func TestASparseIndex(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		child := digest.FromString("manifest child")
		index := s.recordManifest("a", "index", child)
		if done, _ := s.scrub(); done.Contents != 1 || done.Damaged != 0 {
			t.Errorf("without the child: %+v", done)
		}
		s.recordManifest("a", "child")
		if done, _ := s.scrub(); done.Contents != 2 || done.Damaged != 0 {
			t.Errorf("with the child: %+v", done)
		}
		if err := s.blobs.Delete(t.Context(), child); err != nil {
			t.Fatal(err)
		}
		if done, _ := s.scrub(); done.Damaged != 1 {
			t.Errorf("the child's bytes are lost: %+v", done)
		}
		if at, _, _ := s.index.Resolve(t.Context(), "a", "index"); at.Damaged() != child {
			t.Errorf("damaged: %q, want the child", at.Damaged())
		}
		storagetest.Update(t, s.index, "a", func(tx *storage.Tx) error { return tx.DeleteManifest(child) })
		s.collect()
		if at, _, _ := s.index.Resolve(t.Context(), "a", "index"); at.Digest() != index || at.Damaged() != "" {
			t.Errorf("damaged: %q, though the child is sparse again", at.Damaged())
		}
	})
}

// TestALinkWithAnotherSizeCorrectsIt: a rebuild may have recorded a size that a manifest gave.
func TestALinkWithAnotherSizeCorrectsIt(t *testing.T) {
	inBubble(t, func(t *testing.T, s *store) {
		d := digest.FromString("layer")
		s.index.SetQuotas(modelQuotas)
		for _, size := range []int64{7, 5, 5} {
			storagetest.Update(t, s.index, "a", func(tx *storage.Tx) error { tx.Link(d, size); return nil })
			if got, ok, err := s.index.Blob(t.Context(), "a", d); got != size || !ok || err != nil {
				t.Errorf("size %d, %v, %v; want %d", got, ok, err, size)
			}
			if used := s.index.Quotas()[0].Used; used != size || s.index.Stats().Links != 1 {
				t.Errorf("%d bytes used, want %d", used, size)
			}
		}
	})
}
