package storage_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
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

// TestNamesOfObjects: only what String makes is the name of an object of ours; others of a bucket are left alone.
func TestNamesOfObjects(t *testing.T) {
	random := strings.Repeat("0f", 16)
	for name, want := range map[string]bool{
		"00000000/" + random: true, "ffffffff/" + random: true, "0000000a/" + random: true,
		"": false, "/": false, "00000001" + random: false, "00000001/" + random[1:]: false,
		"00000001/" + random + "0":  false,
		"00000001/" + random + "00": false, "00000001/" + strings.ToUpper(random): false, "0000000A/" + random: false,
		"1/" + random: false, "100000000/" + random: false, "0000000g/" + random: false, "+0000001/" + random: false,
		"00000001/" + random[2:] + "0g": false, "00000001/" + random + "/": false, " 0000001/" + random: false,
		"g/" + random: false, "00000001/g": false,
	} {
		if got := storage.IsPlace(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

// TestFactsAboutPlacesAreRead, and malformed ones are damage.
func TestFactsAboutPlacesAreRead(t *testing.T) {
	random := strings.Repeat("r", 16)
	for value, ok := range map[string]bool{
		"\x00" + random: true, "\x01" + random: true, "\xff\xff\xff\xff\x0f" + random: true,
		"\x01" + random + "more":        true, // of a later version
		"\x80\x80\x80\x80\x10" + random: false, "\xff\xff\xff\xff\x1f" + random: false, "": false, "\x01": false,
		"\x01" + random[1:]: false, "\x80\x01" + random[1:]: false, random[1:]: false,
		strings.Repeat("\xff", 40): false,
	} {
		j := sharedJournal()
		f := storage.PlaceFact(digestOf("blob", 1), "00000001/"+strings.Repeat("00", 16))
		f.Value = []byte(value)
		if _, err := j.Commit(t.Context(), storage.Batch{Repo: storage.StoreRepo,
			Facts: []storage.Fact{f}}); err != nil {
			t.Fatal(err)
		}
		x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{Placed: true})
		if (err == nil) != ok || err != nil && !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("%q: %v", value, err)
		}
		if err == nil {
			x.Close()
		}
	}
}

// TestTheEstimateOfMemoryHasWhatOnlySharedJournalsHave: places, records, and what deleted manifests leave.
func TestTheEstimateOfMemoryHasWhatOnlySharedJournalsHave(t *testing.T) {
	sum := func(i int) digest.Digest { return digest.FromString(fmt.Sprint(i)) }
	type put func(repo string, facts ...storage.Fact) error
	for name, fill := range map[string]func(put put) error{
		"places": func(put put) (err error) {
			for i := range 20_000 {
				err = errors.Join(err, put(storage.StoreRepo,
					storage.PlaceFact(sum(i), fmt.Sprintf("00000001/%032x", i))))
			}
			return err
		},
		"records": func(put put) (err error) {
			for i := range 20_000 {
				err = errors.Join(err, put(storage.StoreRepo,
					storage.RecordFact(fmt.Sprintf("upload/app\x00%036d", i), make([]byte, 200))))
			}
			return err
		},
		"small records": func(put put) (err error) {
			for i := range 40_000 {
				err = errors.Join(err, put(storage.StoreRepo,
					storage.RecordFact(fmt.Sprintf("quota/%d", i), make([]byte, 8))))
			}
			return err
		},
		"deleted manifests": func(put put) (err error) {
			for i := range 4_000 {
				var refs []digest.Digest
				for k := range 8 {
					refs = append(refs, sum(1_000_000+8*i+k))
				}
				err = errors.Join(err, put("app", storage.DepartedFact(sum(i), 1_800_000_000, refs...)))
			}
			return err
		},
		"deleted manifests with the same references": func(put put) (err error) {
			var refs []digest.Digest
			for k := range 1000 {
				refs = append(refs, sum(1_000_000+k))
			}
			for i := range 400 {
				err = errors.Join(err, put("app", storage.DepartedFact(sum(i), 1_800_000_000, refs...)))
			}
			return err
		},
		"a deleted manifest with many references": func(put put) (err error) {
			for i := range 4 {
				var refs []digest.Digest
				for k := range 10_000 {
					refs = append(refs, sum(1_000_000+10_000*i+k))
				}
				err = errors.Join(err, put("app", storage.DepartedFact(sum(i), 1_800_000_000, refs...)))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := heap()
			x := storagetest.OpenIndex(t,
				full{each: func(apply func(string, ...storage.Fact) error) error { return fill(apply) }})
			real := int64(heap() - before)
			estimate := x.Load().Bytes
			t.Logf("estimate %d, heap %d: %.2f", estimate, real, float64(estimate)/float64(real))
			if estimate < real*4/5 || estimate > real*6/5 {
				t.Errorf("estimate %d, heap %d", estimate, real)
			}
		})
	}
}

// exact is a journal of one process that compares each Ends with the facts that the commit leaves.
type exact struct {
	*memory.Journal
	t     *testing.T
	facts map[string]map[string]bool
}

func (j exact) Commit(ctx context.Context, batches ...storage.Batch) (storage.Revision, error) {
	for _, b := range batches {
		r := j.facts[b.Repo]
		if r == nil {
			r = map[string]bool{}
			j.facts[b.Repo] = r
		}
		for _, f := range b.Facts {
			if name := string(f.Kind) + f.Name; f.Kind != storage.KindHistory && f.Value != nil {
				r[name] = true
			} else {
				delete(r, name)
			}
		}
		if b.Ends != (len(r) == 0) {
			j.t.Errorf("%s ends: %v, with the facts %q", b.Repo, b.Ends, slices.Sorted(maps.Keys(r)))
		}
	}
	return j.Journal.Commit(ctx, batches...)
}

// TestARevisionEndsWithTheLastFact of any kind, of a repository and of content itself.
func TestARevisionEndsWithTheLastFact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		s, _, _ := placed(t, exact{memory.NewJournal(), t, map[string]map[string]bool{}})
		s.index.SetQuotas(team(1 << 40))
		repos := []string{"team/a", "team/b", "c"}
		for range 2000 {
			repo, text := repos[r.IntN(len(repos))], []byte(fmt.Sprint("blob ", r.IntN(3)))
			d, name := digest.FromBytes(text), fmt.Sprint("record ", r.IntN(2))
			m := digest.FromBytes(fmt.Appendf(nil, "manifest of %s", []digest.Digest{d}))
			var err error
			switch r.IntN(8) {
			case 0:
				s.push(repo, text)
			case 1:
				if s.holds(repo, d) {
					_, err = s.manifest(t.Context(), repo, fmt.Sprint("tag", r.IntN(2)), d)
				}
			case 2:
				err = s.index.Update(t.Context(), repo, func(tx *storage.Tx) error { return tx.DeleteManifest(m) })
			case 3:
				err = s.index.Update(t.Context(), repo, func(tx *storage.Tx) error { return tx.Unlink(d) })
			case 4:
				err = s.index.Update(t.Context(), repo, func(tx *storage.Tx) error { return tx.DeleteTag("tag0") })
			case 5:
				now, _ := s.index.Record(t.Context(), name)
				err = s.index.SetRecord(t.Context(), name, now, map[bool][]byte{true: []byte("v")}[now == nil])
			case 6:
				if place, perr := s.index.Place(t.Context(), d); perr == nil && r.IntN(4) == 0 {
					_ = s.blobs.(storage.Placed).Remove(t.Context(), place)
					_, err = (&storage.Scrubber{Blobs: s.blobs, Index: s.index}).
						Run(t.Context(), 0, func(storage.Finding) {}, nil)
				}
			case 7:
				time.Sleep(time.Hour)
				s.collect()
			}
			if err != nil && !errors.Is(err, storage.ErrNotFound) {
				t.Fatal(err)
			}
		}
	})
}

// TestARevisionDoesNotEndBesideARecordOfADeletedManifest, which a journal may have from a time when it was shared.
func TestARevisionDoesNotEndBesideARecordOfADeletedManifest(t *testing.T) {
	inner := memory.NewJournal()
	m := manifest(1)
	if _, err := inner.Commit(t.Context(), storage.Batch{Repo: "r", Facts: []storage.Fact{storage.ManifestFact(m),
		{Kind: storage.KindTag, Name: "v", Value: storage.TagValue(m.Digest, 1_800_000_000, 0)},
		storage.DepartedFact(digestOf("m", 2), 1_800_000_000, digestOf("blob", 1))}}); err != nil {
		t.Fatal(err)
	}
	var ends []bool
	x := storagetest.OpenIndex(t, watched(inner, func(b []storage.Batch) error {
		ends = append(ends, b[0].Ends)
		return nil
	}))
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.DeleteTag("v") })
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.DeleteManifest(m.Digest) })
	if !slices.Equal(ends, []bool{false, false}) {
		t.Errorf("ends: %v", ends)
	}
}
