package storage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	varint "encoding/binary" // binary is a test here
	"errors"
	"fmt"
	"maps"
	"math"
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
	all, repos := map[string]string{}, map[string]bool{}
	done := errors.New("done")
	err := j.Watch(t.Context(), func(u storage.Update) error {
		for _, b := range u.Batches {
			repos[b.Repo] = true
			for _, f := range b.Facts {
				all[fmt.Sprintf("%s %c %q", b.Repo, f.Kind, f.Name)] = string(f.Value)
			}
		}
		return done
	})
	if !errors.Is(err, done) {
		t.Fatal(err)
	}
	for repo := range repos {
		past, err := j.History(t.Context(), repo, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range past {
			all[fmt.Sprintf("%s %c %q", repo, f.Kind, f.Name)] = string(f.Value)
		}
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

// inParts delivers its full state in parts, and counts the histories that are read.
type inParts struct {
	storage.Journal
	parts     []storage.Batch
	histories *[]string
}

func (j inParts) Watch(_ context.Context, apply func(storage.Update) error) error {
	for _, b := range j.parts {
		if err := apply(storage.Update{Batches: []storage.Batch{b}}); err != nil {
			return err
		}
	}
	return apply(storage.Update{Revision: 7, Synced: true})
}

func (j inParts) History(_ context.Context, repo, _ string) ([]storage.Fact, error) {
	*j.histories = append(*j.histories, repo)
	return nil, nil
}

// TestACopyOfAFullStateInParts has all of them, and the history of each repo once.
func TestACopyOfAFullStateInParts(t *testing.T) {
	var histories []string
	link := func(i int) []storage.Fact { return []storage.Fact{storage.LinkFact(digestOf("blob", i), 1)} }
	record := []storage.Fact{storage.RecordFact("auth/robot/a", []byte("a"))}
	j := inParts{parts: []storage.Batch{{Repo: storage.StoreRepo, Facts: record}, {Repo: "a", Facts: link(1)},
		{Repo: "a", Facts: link(2)}, {Repo: "b", Facts: link(3)}}, histories: &histories}
	var b bytes.Buffer
	rev, err := storage.WriteFacts(t.Context(), &b, j, storage.CopyHeader{}, func(string) bool { return false })
	if err != nil || rev != 7 || !slices.Equal(histories, []string{"a", "b"}) {
		t.Fatalf("revision %d, histories of %q: %v", rev, histories, err)
	}
	got := map[string]int{}
	if _, err := storage.ReadFacts(&b, func(repo string, facts []storage.Fact) error {
		got[repo] += len(facts)
		return nil
	}); err != nil || !maps.Equal(got, map[string]int{storage.StoreRepo: 1, "a": 2, "b": 1}) {
		t.Errorf("%v, %v", got, err)
	}
}

// TestTheLongestTextOfACopy is 16 MiB; what is longer is refused when the copy is written.
func TestTheLongestTextOfACopy(t *testing.T) {
	const most = 16 << 20
	for _, n := range []int{127, 128, 129, most, most + 1} {
		j := inParts{parts: []storage.Batch{{Repo: storage.StoreRepo, Facts: []storage.Fact{
			storage.RecordFact("a", make([]byte, n))}}}, histories: new([]string)}
		var b bytes.Buffer
		_, err := storage.WriteFacts(t.Context(), &b, j, storage.CopyHeader{}, func(string) bool { return false })
		if n > most {
			if err == nil || !strings.Contains(err.Error(), fmt.Sprint("a text of ", n, " bytes")) {
				t.Errorf("%d bytes are written: %v", n, err)
			}
			continue
		}
		got := -1
		_, rerr := storage.ReadFacts(&b, func(_ string, facts []storage.Fact) error {
			got = len(facts[0].Value)
			return nil
		})
		if err := errors.Join(err, rerr); err != nil || got != n {
			t.Errorf("%d bytes came back as %d: %v", n, got, err)
		}
	}
}

// crafted returns a copy of numbers and texts, with a correct checksum.
func crafted(parts ...any) []byte {
	text := func(b []byte, s string) []byte { return append(varint.AppendUvarint(b, uint64(len(s))), s...) }
	b := text([]byte("trow facts 1\n"), "{}")
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = varint.AppendUvarint(b, uint64(p))
		case storage.Kind:
			b = varint.AppendUvarint(b, uint64(p))
		case uint64:
			b = varint.AppendUvarint(b, p)
		case string:
			b = text(b, p)
		case []byte:
			b = append(b, p...)
		}
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// TestACraftedCopy has a correct checksum, so that only its bounds protect a reader.
func TestACraftedCopy(t *testing.T) {
	endless := bytes.Repeat([]byte{0xff}, 10)
	for name, row := range map[string]struct {
		data []byte
		want string // in the error; "": none
	}{
		"no facts":          {crafted(0, 0), ""},
		"a fact":            {crafted(1, "a", storage.KindLink, "name", "value", 0, 1), ""},
		"the greatest kind": {crafted(1, "a", 255, "name", "value", 0, 1), ""},
		"a greater kind":    {crafted(1, "a", 256, "name", "value", 0, 1), "a fact of kind 256"},
		"the greatest number": {crafted(1, "a", uint64(math.MaxUint64), "n", "v", 0, 1),
			"a fact of kind 18446744073709551615"},
		"a number of 65 bits":   {crafted(1, "a", append(endless[:9:9], 2), "n", "v", 0, 1), "more than 64 bits"},
		"a number without end":  {crafted(1, "a", endless, []byte{1}, "n", "v", 0, 1), "more than 64 bits"},
		"a long text":           {crafted(1, "a", storage.KindLink, 16<<20+1), "a text of 16777217 bytes"},
		"a text longer than it": {crafted(1, "a", storage.KindLink, 16<<20), "cut off"},
		"more facts than it":    {crafted(1<<40, "a", storage.KindLink, "name", "value"), "the copy"},
		"too few facts":         {crafted(1, "a", 1, "name", "value", 0, 2), "it has 1 facts of 2"},
		"too many facts":        {crafted(1, "a", 1, "name", "value", 0, 0), "it has 1 facts of 0"},
	} {
		_, err := storage.ReadFacts(bytes.NewReader(row.data), func(string, []storage.Fact) error { return nil })
		_, dry := storage.ReadFacts(bytes.NewReader(row.data), nil)
		for _, err := range []error{err, dry} {
			if row.want == "" && err != nil || row.want != "" && (!errors.Is(err, storage.ErrCopy) ||
				!strings.Contains(err.Error(), row.want)) {
				t.Errorf("%s: %v, want %q", name, err, row.want)
			}
		}
	}
}

// TestACopyIsReadInSteps of 4096 facts, and what was cut off within a step is not applied.
func TestACopyIsReadInSteps(t *testing.T) {
	for n, want := range map[int][]int{1: {1}, 4095: {4095}, 4096: {4096}, 4097: {4096, 1}, 10000: {4096, 4096, 1808}} {
		parts := []any{n, "a"}
		for i := range n {
			parts = append(parts, storage.KindLink, fmt.Sprint(i), "value")
		}
		whole := crafted(append(parts, 0, n)...)
		for _, cut := range []int{0, sha256.Size + 2 + 4} { // 4: within the last value
			var steps []int
			next := 0
			_, err := storage.ReadFacts(bytes.NewReader(whole[:len(whole)-cut]),
				func(repo string, facts []storage.Fact) error {
					steps = append(steps, len(facts))
					for _, f := range facts {
						if repo != "a" || f.Name != fmt.Sprint(next) || string(f.Value) != "value" {
							t.Fatalf("%d of %d: %s %q", next, n, repo, f)
						}
						next++
					}
					return nil
				})
			if cut == 0 && (err != nil || !slices.Equal(steps, want)) {
				t.Errorf("%d facts in steps of %d, want %d: %v", n, steps, want, err)
			}
			if cut != 0 && (!errors.Is(err, storage.ErrCopy) || !slices.Equal(steps, want[:(n-1)/4096])) {
				t.Errorf("%d facts without an end in steps of %d: %v", n, steps, err)
			}
		}
	}
}
