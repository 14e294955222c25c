package storage_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// The bytes of a tag's fact, which are part of the data format: the length and the digest of "a" in binary form and the
// time 1_800_000_000; and since the order is recorded, 123_456_789 ns.
const (
	tagBefore = "2101ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb" + "80c8ceb40d"
	tagNow    = tagBefore + "aab4de75"
)

// TestTheFormOfATag pins both forms of the value, as bytes.
func TestTheFormOfATag(t *testing.T) {
	const unix, order = 1_800_000_000, 1_800_000_000_123_456_789
	d := digest.FromString("a")
	if got := hex.EncodeToString(storage.TagValue(d, unix, order)); got != tagNow {
		t.Errorf("a tag is written as %s, want %s", got, tagNow)
	}
	for text, want := range map[string]int64{tagBefore: 0, tagNow: order, tagNow + "ff00": order} {
		v, _ := hex.DecodeString(text)
		got, at, seq, err := storage.ParseTag(v)
		if err != nil || got != d || at != unix || seq != want {
			t.Errorf("%s is read as %s, %d, %d, %v; want the order %d", text, got, at, seq, err, want)
		}
	}
	for _, text := range []string{tagBefore[:len(tagBefore)-2], tagNow[:len(tagNow)-2]} {
		v, _ := hex.DecodeString(text)
		if _, _, _, err := storage.ParseTag(v); err == nil {
			t.Errorf("half of a value is read: %s", text)
		}
	}
}

// order returns the tags of a repo as TagsInOrder groups them: "a b|c" are a group of two, and a newer one.
func order(t *testing.T, x *storage.Index, repo string) string {
	t.Helper()
	h, _, err := x.Holdings(t.Context(), repo)
	if err != nil {
		t.Fatal(err)
	}
	var all []storage.HeldTag
	for _, m := range h.Manifests {
		all = append(all, m.Tags...)
	}
	var groups []string
	for _, g := range storage.TagsInOrder(all) {
		var names []string
		for _, tag := range g {
			names = append(names, tag.Name)
		}
		groups = append(groups, strings.Join(names, " "))
	}
	return strings.Join(groups, "|")
}

func setTags(d digest.Digest, names ...string) func(tx *storage.Tx) error {
	return func(tx *storage.Tx) error {
		err := tx.PutManifest(storage.Manifest{Digest: d, MediaType: "application/a"})
		for _, name := range names {
			err = errors.Join(err, tx.SetTag(name, d))
		}
		return err
	}
}

// TestTheOrderOfTagsIsThatOfTheJournal: within one second, within one commit, and after a restart.
func TestTheOrderOfTagsIsThatOfTheJournal(t *testing.T) {
	for name, place := range journals {
		t.Run(name, func(t *testing.T) {
			open := place(t)
			x := storagetest.OpenIndex(t, open())
			var want []string
			for i := range 12 {
				names := []string{fmt.Sprint("z", 99-i), fmt.Sprint("a", i), fmt.Sprint("m", 99-i)}
				storagetest.Update(t, x, "a", setTags(digestOf("manifest", i), names...))
				want = append(want, names...)
			}
			// A tag that is moved is the newest; one that is set to the same manifest again stays where it is.
			storagetest.Update(t, x, "a", setTags(digestOf("manifest", 11), want[0], want[35]))
			want = append(want[1:], want[0])
			for range 2 {
				if got := order(t, x, "a"); got != strings.Join(want, "|") {
					t.Errorf("the order is %s, want %v", got, want)
				}
				x.Close()
				x = storagetest.OpenIndex(t, open())
			}
		})
	}
}

// TestTheOrderOfTagsOfSeveralProcesses is that of the journal, whichever process sets a tag, whatever its clock says,
// and if it has not seen the last one yet.
func TestTheOrderOfTagsOfSeveralProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := sharedJournal()
		far := delayed{j, make(chan struct{})}
		all := []*storage.Index{storagetest.OpenIndex(t, j), storagetest.OpenIndex(t, far)}
		d := digest.FromString("a")
		storagetest.Update(t, all[0], "a", setTags(d, "a"))
		// The clock of the first one is an hour ahead of that of the second one.
		ahead := time.Now().Add(time.Hour).UnixNano()
		facts := []storage.Fact{{Kind: storage.KindTag, Name: "z", Value: storage.TagValue(d, ahead/1e9, ahead)}}
		if _, err := j.Commit(t.Context(), storage.Batch{Repo: "a", Base: 1, Facts: facts}); err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(time.Second)
			close(far.pass) // until then the second one knows none of these
		}()
		want := []string{"a", "z"}
		for i := range 12 {
			name := fmt.Sprint(string(rune('y'-i)), i)
			storagetest.Update(t, all[(i+1)%2], "a", setTags(d, name))
			want = append(want, name)
		}
		for i, x := range all {
			if _, err := x.CatchUp(t.Context(), time.Second); err != nil {
				t.Fatal(err)
			}
			if got := order(t, x, "a"); got != strings.Join(want, "|") {
				t.Errorf("process %d: the order is %s, want %v", i, got, want)
			}
		}
	})
}

// TestTheOrderOfTagsWithOlderData: tags of earlier versions have only whole seconds.
func TestTheOrderOfTagsWithOlderData(t *testing.T) {
	j := memory.NewJournal()
	d := digest.FromString("a")
	storagetest.Update(t, storagetest.OpenIndex(t, j), "a", setTags(d))
	value := func(unix, order int64) []byte {
		if order == 0 {
			v := storage.TagValue(d, unix, unix*1e9)
			return v[:len(v)-1]
		}
		return storage.TagValue(d, unix, order)
	}
	const at, future = 1_800_000_000, 4_000_000_000
	facts := []storage.Fact{{Kind: storage.KindTag, Name: "b", Value: value(at, 0)},
		{Kind: storage.KindTag, Name: "a", Value: value(at, 0)},
		{Kind: storage.KindTag, Name: "c", Value: value(at-1, 0)},
		// set between two runs of an earlier version
		{Kind: storage.KindTag, Name: "exact", Value: value(at, at*1e9+5)},
		{Kind: storage.KindTag, Name: "d", Value: value(at+1, (at+1)*1e9)},
		{Kind: storage.KindTag, Name: "f", Value: value(future, 0)}} // the clock was wrong
	_, err := j.Commit(t.Context(), storage.Batch{Repo: "a", Base: 1, Facts: facts})
	if err != nil {
		t.Fatal(err)
	}
	x := storagetest.OpenIndex(t, j)
	storagetest.Update(t, x, "a", setTags(d, "y", "x"))
	if got, want := order(t, x, "a"), "c|a b exact|d|f|y|x"; got != want {
		t.Errorf("the order is %s, want %s", got, want)
	}
	h, _, err := x.Holdings(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(h.Manifests[0].Tags, func(t storage.HeldTag) bool { return t.Name == "y" })
	if got := h.Manifests[0].Tags[i].Time; got >= future {
		t.Errorf("the time of a tag is %d: only its order follows the future one", got)
	}
}

// TestATagOfTheSameSecondIsNewerThanOlderData: an earlier version may have set its tag at any time of the second.
func TestATagOfTheSameSecondIsNewerThanOlderData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := memory.NewJournal()
		d := digest.FromString("a")
		x := storagetest.OpenIndex(t, j)
		storagetest.Update(t, x, "a", setTags(d))
		old := storage.TagValue(d, time.Now().Unix(), time.Now().Unix()*1e9)
		old = old[:len(old)-1] // without an order
		facts := []storage.Fact{{Kind: storage.KindTag, Name: "old", Value: old}}
		if _, err := j.Commit(t.Context(), storage.Batch{Repo: "a", Base: 1, Facts: facts}); err != nil {
			t.Fatal(err)
		}
		storagetest.Update(t, x, "a", setTags(d, "new"))
		h, _, err := x.Holdings(t.Context(), "a")
		if err != nil || len(h.Manifests) != 1 || len(h.Manifests[0].Tags) != 2 {
			t.Fatalf("%+v, %v", h, err)
		}
		if got, want := h.Manifests[0].Tags[0].Order, (time.Now().Unix()+1)*1e9; got != want {
			t.Errorf("the order of the new tag is %d, want %d: just after the second of the old one", got, want)
		}
	})
}

// TestHoldingsAreWhatWasRecorded, with moments as far as they can be kept.
func TestHoldingsAreWhatWasRecorded(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	m := manifest(1)
	m.Subject, m.Refs = digestOf("m", 2), []digest.Digest{digestOf("blob", 1)}
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.PutManifest(m) })
	storagetest.Update(t, x, "r", put(3, "v"))
	h, ok, err := x.Holdings(t.Context(), "r")
	if !ok || err != nil || len(h.Manifests) != 2 {
		t.Fatalf("%+v, %v", h, err)
	}
	for _, got := range h.Manifests {
		want := m
		if got.Digest != m.Digest {
			want = manifest(3)
		}
		if got.Digest != want.Digest || got.Subject != want.Subject || !slices.Equal(got.Refs, want.Refs) ||
			got.Size != want.Size {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	const last = 1<<32 - 1 // in the year 2106
	for i, unix := range []int64{-1, 0, 7, last, last + 1, last + 2, 1 << 50} {
		j := memory.NewJournal()
		facts := []storage.Fact{storage.ManifestFact(manifest(1)), {Kind: storage.KindTag, Name: "v",
			Value: storage.TagValue(manifest(1).Digest, unix, unix*1e9)}}
		if _, err := j.Commit(t.Context(), storage.Batch{Repo: "r", Facts: facts}); err != nil {
			t.Fatal(err)
		}
		h, _, err := storagetest.OpenIndex(t, j).Holdings(t.Context(), "r")
		if want := min(max(unix, 0), last); err != nil || h.Manifests[0].Tags[0].Time != want {
			t.Errorf("%d: the time %d became %+v, want %d; %v", i, unix, h.Manifests, want, err)
		}
	}
}
