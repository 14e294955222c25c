package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// factsOf returns all facts of a journal, histories included, as text.
func factsOf(t *testing.T, j storage.Journal) map[string]string {
	t.Helper()
	all := map[string]string{}
	done := errors.New("done")
	err := j.Watch(t.Context(), func(u storage.Update) error {
		for _, b := range u.Batches {
			all[b.Repo] = ""
			for _, f := range b.Facts {
				all[fmt.Sprintf("%s %c %q", b.Repo, f.Kind, f.Name)] = string(f.Value)
			}
		}
		return done
	})
	if !errors.Is(err, done) {
		t.Fatal(err)
	}
	for _, repo := range slices.Collect(maps.Keys(all)) {
		past, err := j.History(t.Context(), repo, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range past {
			all[fmt.Sprintf("%s %c %q", repo, f.Kind, f.Name)] = string(f.Value)
		}
		delete(all, repo)
	}
	return all
}

// copied returns a journal with all kinds of facts, and a copy of it.
func copied(t *testing.T) (j *memory.Journal, copy []byte) {
	t.Helper()
	j = sharedMemory()
	x := storagetest.OpenIndexWith(t, j, storage.IndexOptions{Placed: true})
	pushObjects(t, x, memory.NewService(), "content", 30)
	var m storage.Manifest
	for d := range x.Places() {
		m = storage.Manifest{Digest: d, MediaType: "application/x", Size: 9, Refs: slices.Collect(x.Contents())}
		break
	}
	for range 3 {
		storagetest.Update(t, x, "a", func(tx *storage.Tx) error {
			tx.As("somebody")
			return errors.Join(tx.PutManifest(m), tx.SetTag("tag", m.Digest))
		})
	}
	for _, name := range []string{"identity", "auth/key/1", "auth/robot/x", "replica/r", "upload/a\x00id"} {
		if err := x.SetRecord(t.Context(), name, nil, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Quarantine(t.Context(), m.Digest, "damaged"); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	h := storage.CopyHeader{Identity: "PAIR", Time: time.Now().Truncate(time.Second)}
	rev, err := storage.WriteFacts(t.Context(), &b, j, h, func(record string) bool {
		return strings.HasPrefix(record, "auth/key/")
	})
	if head, _ := j.Head(t.Context()); err != nil || rev != head {
		t.Fatalf("revision %d of %d: %v", rev, head, err)
	}
	return j, b.Bytes()
}

// TestACopyHasAllFacts that mean something with another journal, and no others.
func TestACopyHasAllFacts(t *testing.T) {
	j, data := copied(t)
	if bytes.Contains(data, []byte("auth/key/1")) {
		t.Error("what is to be left out is in the copy")
	}
	if again := new(bytes.Buffer); true {
		_, err := storage.WriteFacts(t.Context(), again, j, storage.CopyHeader{}, func(string) bool { return false })
		if err != nil || bytes.Equal(again.Bytes(), data) {
			t.Error(err)
		}
	}
	into := sharedMemory()
	x := storagetest.OpenIndexWith(t, into, storage.IndexOptions{Placed: true})
	h, err := storage.ReadFacts(bytes.NewReader(data), func(repo string, facts []storage.Fact) error {
		return x.CopyFacts(t.Context(), repo, facts)
	})
	if err != nil || h.Identity != "PAIR" || h.Time.IsZero() {
		t.Fatalf("%+v, %v", h, err)
	}
	want, got := factsOf(t, j), factsOf(t, into)
	for _, name := range []string{"auth/key/1", "replica/r", "upload/a\x00id", "identity"} {
		delete(want, fmt.Sprintf("_ r %q", name))
	}
	if !maps.Equal(got, want) {
		t.Errorf("the copy came back with %d facts of %d", len(got), len(want))
	}
	// Another index loads what came back.
	y := storagetest.OpenIndexWith(t, into, storage.IndexOptions{Placed: true})
	if s := y.Stats(); s.Tags != 1 || s.Manifests != 1 || s.Contents != 30 || s.Quarantined != 1 {
		t.Errorf("%+v", s)
	}
	if past, err := y.History(t.Context(), "a", "tag"); err != nil || len(past) == 0 || past[0].By != "somebody" {
		t.Errorf("the history: %v, %v", past, err)
	}
}

// TestADamagedCopyIsNoticed wherever it is damaged, and without taking its lengths for true.
func TestADamagedCopyIsNoticed(t *testing.T) {
	_, data := copied(t)
	for i := range data {
		changed := bytes.Clone(data)
		changed[i] ^= 0x41
		if _, err := storage.ReadFacts(bytes.NewReader(changed), nil); !errors.Is(err, storage.ErrCopy) {
			t.Fatalf("byte %d is another: %v", i, err)
		}
		if _, err := storage.ReadFacts(bytes.NewReader(data[:i]), nil); !errors.Is(err, storage.ErrCopy) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
	_, err := storage.ReadFacts(strings.NewReader("trow facts 2\nwhatever follows"), nil)
	if !errors.Is(err, storage.ErrCopy) || !strings.Contains(err.Error(), "another version") {
		t.Errorf("a later version: %v", err)
	}
	failed := errors.New("the connection broke")
	broken := readerFunc(func([]byte) (int, error) { return 0, failed })
	if _, err := storage.ReadFacts(broken, nil); !errors.Is(err, failed) || errors.Is(err, storage.ErrCopy) {
		t.Errorf("a reader that fails is taken for a copy that is damaged: %v", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestNamesOfCopies sort by time, and have the revision.
func TestNamesOfCopies(t *testing.T) {
	c, ok := storage.ParseCopy("20261128T204416Z-1234")
	if !ok || c.Revision != 1234 || !c.Time.Equal(time.Date(2026, 11, 28, 20, 44, 16, 0, time.UTC)) {
		t.Errorf("%+v, %v", c, ok)
	}
	for _, name := range []string{"", "x", "20261128T204416Z-", "20261128T204416Z-01", "20261128T204416-1",
		"20261128T204416Z-1-2", "20261128T204416Z--1", "../20261128T204416Z-1"} {
		if c, ok := storage.ParseCopy(name); ok {
			t.Errorf("%q is the name of %+v", name, c)
		}
	}
	service := memory.NewService()
	for _, name := range []string{"20261128T204416Z-9", "20261128T204417Z-1", "20251128T204416Z-10", "notes.txt"} {
		service.SetCopy(name, nil)
	}
	all, err := storage.CopiesOf(context.Background(), &memory.Objects{Service: service})
	if err != nil || len(all) != 3 || all[0].Revision != 1 || all[2].Revision != 10 {
		t.Errorf("%+v, %v", all, err)
	}
}
