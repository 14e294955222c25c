package maintenance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry/maintenance"
	"trow/storage"
	"trow/storage/storagetest"
)

// pushImage pushes a manifest with its layer, of the form that parseManifest reads.
func pushImage(t *testing.T, data *maintenance.Data, index *storage.Index, repo, tag string) digest.Digest {
	t.Helper()
	content := "manifest of " + tag
	push(t, data, index, repo, "layer of "+content)
	d := push(t, data, index, repo, content)
	m, _, _ := parseManifest([]byte(content))
	m.Digest, m.Size = d, int64(len(content))
	err := index.Update(t.Context(), repo, func(tx *storage.Tx) error {
		return errors.Join(tx.PutManifest(m), tx.SetTag(tag, d))
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// lost returns a pair of engines whose journal is new, and the options of a server with it.
func (s *service) lost(t *testing.T) (*service, maintenance.Options) {
	fresh := newService()
	fresh.objects, fresh.id = s.objects, "FRESH"
	fresh.use(t)
	return fresh, replica(t, &bytes.Buffer{})
}

func rebuildOptions() maintenance.RebuildOptions {
	return maintenance.RebuildOptions{Into: "recovered", Parse: parseManifest}
}

// TestAPairIsRebuilt: the facts come from the copy, what is newer from the objects, and servers start with the identity
// that the bytes have.
func TestAPairIsRebuilt(t *testing.T) {
	ctx := t.Context()
	s := newService()
	s.use(t)
	data, index, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	before := pushImage(t, data, index, "app", "1.0")
	if err := index.SetRecord(ctx, "auth/robot/ci", nil, []byte("hash")); err != nil {
		t.Fatal(err)
	}
	gone := push(t, data, index, "app", "content that is lost")
	maintenance.CopyFacts(data)
	pushImage(t, data, index, "app", "in between")
	maintenance.CopyFacts(data)
	after := pushImage(t, data, index, "app", "2.0")
	place, err := index.Place(ctx, gone)
	if err != nil {
		t.Fatal(err)
	}
	_ = data.Blobs().(storage.Placed).Remove(ctx, place)
	copies, objects := s.copies(t), s.objects.Len()

	fresh, o := s.lost(t)
	if _, _, err := start(t, o); !errors.Is(err, maintenance.ErrIdentity) { // it leaves records in the journal
		t.Fatal(err)
	}
	// So has one that saw how the journal became empty.
	if err := storagetest.OpenIndex(t, fresh.journal).
		SetRecord(ctx, "journal/went-back", nil, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	r := rebuildOptions()
	r.DryRun = true
	done, err := maintenance.RebuildPair(ctx, o.Engines, r)
	if err != nil || done.Copy != copies[0] || done.Restored.Tags != 2 || done.Unread != 2 || done.ToRead == 0 ||
		len(done.Missing) != 1 {
		t.Errorf("a dry run: %+v, %v", done, err)
	}
	r = rebuildOptions()
	done, err = maintenance.RebuildPair(ctx, o.Engines, r)
	if !errors.Is(err, maintenance.ErrUndecided) || len(done.Found) != 1 {
		t.Fatalf("undecided: %+v, %v", done, err)
	}
	if _, _, err := start(t, o); !errors.Is(err, maintenance.ErrIdentity) {
		t.Fatalf("a server starts on what is unfinished: %v", err)
	}
	said := ""
	r.Recover, r.Reading = true, func(n int, bytes int64) { said += fmt.Sprint(n, " objects of ", bytes, " bytes") }
	done, err = maintenance.RebuildPair(ctx, o.Engines, r)
	if err != nil || len(done.Found) != 1 || done.Found[0].Digest != after || done.Unclaimed != 0 ||
		!slices.Equal(done.Missing, []digest.Digest{gone}) || said != "2 objects of 39 bytes" {
		t.Fatalf("%+v, %v; said %q", done, err, said)
	}
	again, index, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		repo, ref string
		d         digest.Digest
	}{{"app", "1.0", before}, {"recovered", after.String(), after}} {
		if m, ok, err := index.Resolve(ctx, row.repo, row.ref); !ok || err != nil || m.Digest() != row.d {
			t.Errorf("%s:%s: %v, %v", row.repo, row.ref, ok, err)
		}
	}
	f, err := again.Blobs().Open(ctx, digest.FromString("layer of manifest of 2.0"))
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(f); string(text) != "layer of manifest of 2.0" {
		t.Errorf("the layer is %q", text)
	}
	if id, _ := s.objects.Identity(ctx); id != "JOURNAL" || !index.Quarantined(gone) || s.objects.Len() != objects {
		t.Errorf("identity %s, %d objects of %d", id, s.objects.Len(), objects)
	}
	if robot, err := index.Record(ctx, "auth/robot/ci"); string(robot) != "hash" || err != nil {
		t.Errorf("the robot: %q, %v", robot, err)
	}
	// The collector trusts the journal that is new, and the next copy is of it.
	if ok, text := again.CollectorCheck(); !ok {
		t.Error(text)
	}
	fresh.id = "JOURNAL"
	maintenance.CopyFacts(again)
	if all := fresh.copies(t); len(all) != 2 || !all[0].Time.After(copies[0].Time) {
		t.Errorf("%+v", all)
	}
	if _, err := maintenance.RebuildPair(ctx, o.Engines, r); err == nil || !strings.Contains(err.Error(), "in use") &&
		!strings.Contains(err.Error(), "not empty") {
		t.Errorf("a journal that is not empty is rebuilt: %v", err)
	}
}

// TestADamagedCopyIsPassedOver: the one before it is used; without any, there are the objects.
func TestADamagedCopyIsPassedOver(t *testing.T) {
	ctx := t.Context()
	s := newService()
	s.use(t)
	data, index, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range []string{"1.0", "2.0"} {
		pushImage(t, data, index, "app", tag)
		maintenance.CopyFacts(data)
	}
	copies := s.copies(t)
	for n, want := range []struct{ tags, found int }{{2, 0}, {1, 1}, {0, 2}} { // so many copies are damaged
		if n > 0 {
			s.objects.SetCopy(copies[n-1].Name, []byte("trow facts 1\ndamaged"))
		}
		_, o := s.lost(t)
		r := rebuildOptions()
		r.Recover = true
		done, err := maintenance.RebuildPair(ctx, o.Engines, r)
		if err != nil || done.Restored.Tags != want.tags || len(done.Found) != want.found || len(done.Damaged) != n ||
			len(done.Missing) != 0 {
			t.Errorf("%d damaged: %+v, %v", n, done, err)
		}
		now := s.allCopies(t)
		_ = s.objects.RemoveCopies(ctx, now[0].Name) // of this rebuild
	}
}

// allCopies returns the copies, whole or not.
func (s *service) allCopies(t *testing.T) []storage.Copy {
	t.Helper()
	all, err := storage.CopiesOf(t.Context(), s.objects)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestARebuildOfAPairThatIsCutShort goes on with the same copy.
func TestARebuildOfAPairThatIsCutShort(t *testing.T) {
	s := newService()
	s.use(t)
	data, index, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	pushImage(t, data, index, "app", "1.0")
	maintenance.CopyFacts(data)
	copies := s.copies(t)
	pushImage(t, data, index, "app", "2.0")
	_, o := s.lost(t)
	ctx, cancel := context.WithCancel(t.Context())
	r := rebuildOptions()
	r.Recover, r.Reading = true, func(int, int64) { cancel() }
	if _, err := maintenance.RebuildPair(ctx, o.Engines, r); !errors.Is(err, context.Canceled) {
		t.Fatalf("it is not cut short: %v", err)
	}
	if _, _, err := start(t, o); !errors.Is(err, maintenance.ErrIdentity) {
		t.Fatalf("a server starts on what is unfinished: %v", err)
	}
	maintenance.CopyFacts(data) // a server that was forgotten makes another copy
	r.Reading = nil
	done, err := maintenance.RebuildPair(t.Context(), o.Engines, r)
	if err != nil || done.Copy != copies[0] || len(done.Found) != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	if _, _, err := start(t, o); err != nil {
		t.Error(err)
	}
}

// TestAJournalInTheDirectoryIsRebuilt from the copy beside the bytes, where those are elsewhere.
func TestAJournalInTheDirectoryIsRebuilt(t *testing.T) {
	newService().use(t)
	o := options(t, &bytes.Buffer{})
	o.Blobs = "s3://bucket?endpoint=http://127.0.0.1:2"
	data, index, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	d := pushImage(t, data, index, "app", "1.0")
	maintenance.CopyFacts(data)
	if err := data.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(o.DataDir, ".trow-tmp-*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	journal := filepath.Join(o.DataDir, "journal.db")
	if err := os.Truncate(journal, 5000); err != nil {
		t.Fatal(err)
	}
	r := rebuildOptions()
	_, err = maintenance.RebuildPair(t.Context(), o.Engines, r)
	if !errors.Is(err, storage.ErrDamaged) ||
		!strings.Contains(err.Error(), "move journal.* and owner out of "+o.DataDir) {
		t.Fatalf("a damaged journal: %v", err)
	}
	o.DataDir = t.TempDir()
	if done, err := maintenance.RebuildPair(t.Context(), o.Engines, r); err != nil || done.Restored.Tags != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	_, index, err = start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	if m, ok, err := index.Resolve(t.Context(), "app", "1.0"); !ok || err != nil || m.Digest() != d {
		t.Errorf("the tag: %v, %v", ok, err)
	}
}
