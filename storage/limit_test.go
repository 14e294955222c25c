package storage_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// full is a journal whose full state is made up while it is loaded, so that it takes no memory itself.
type full struct {
	storage.Journal
	each func(apply func(repo string, facts ...storage.Fact) error) error
}

func (f full) Watch(ctx context.Context, apply func(storage.Update) error) error {
	err := f.each(func(repo string, facts ...storage.Fact) error {
		return apply(storage.Update{Revision: 1, Batches: []storage.Batch{{Repo: repo, Base: 1, Facts: facts}}})
	})
	if err != nil {
		return err
	}
	if err := apply(storage.Update{Revision: 1, Synced: true}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (f full) History(context.Context, string, string) ([]storage.Fact, error) { return nil, nil }

func (f full) Head(context.Context) (storage.Revision, error) { return 1, nil }

// TestTheEstimateOfMemoryIsThatOfTheHeap within a fifth, for each way to fill a registry.
func TestTheEstimateOfMemoryIsThatOfTheHeap(t *testing.T) {
	type put func(repo string, facts ...storage.Fact) error
	random := rand.New(rand.NewPCG(1, 2))
	sum := func(i int) digest.Digest { return digest.FromString(fmt.Sprint(i)) }
	manifest := func(m storage.Manifest) storage.Fact { return storage.ManifestFact(m) }
	tag := func(name string, d digest.Digest) storage.Fact {
		return storage.Fact{Kind: storage.KindTag, Name: name,
			Value: storage.TagValue(d, 1_800_000_000, 1_800_000_000_000_000_001)}
	}
	const kind = "application/vnd.oci.image.manifest.v1+json"
	for name, fill := range map[string]func(put put) error{
		"tags of one manifest": func(put put) error {
			facts := []storage.Fact{manifest(storage.Manifest{Digest: sum(0), MediaType: kind})}
			for i := range 100_000 {
				facts = append(facts, tag(fmt.Sprintf("v1.%06d", i), sum(0)))
			}
			return put("app", facts...)
		},
		"tags in random order, with long names": func(put put) error {
			facts := []storage.Fact{manifest(storage.Manifest{Digest: sum(0), MediaType: kind})}
			for range 100_000 {
				facts = append(facts, tag(fmt.Sprintf("%0100d", random.Uint64()), sum(0)))
			}
			return put("app", facts...)
		},
		"manifests with many references": func(put put) error {
			for i := range 4 {
				m := storage.Manifest{Digest: sum(i), MediaType: kind}
				for k := range 38_000 {
					m.Refs = append(m.Refs, sum(1000+i*40_000+k))
				}
				if err := put("app", manifest(m)); err != nil {
					return err
				}
			}
			return nil
		},
		"manifests with the same references": func(put put) error {
			var refs []digest.Digest
			for k := range 10_000 {
				refs = append(refs, sum(1000+k))
			}
			for i := range 200 {
				m := storage.Manifest{Digest: sum(i), MediaType: kind, Refs: refs}
				if err := put("app", manifest(m)); err != nil {
					return err
				}
			}
			return nil
		},
		"repositories with a link": func(put put) error {
			for i := range 60_000 {
				if err := put(fmt.Sprintf("team/app-%d", i), storage.LinkFact(sum(0), 1)); err != nil {
					return err
				}
			}
			return nil
		},
		"images": func(put put) error {
			for r := range 500 {
				for i := range 20 {
					n := (r*20 + i) * 10
					m := storage.Manifest{Digest: sum(n), MediaType: kind}
					var facts []storage.Fact
					for k := range 4 {
						m.Refs = append(m.Refs, sum(n+1+k), sum(-1-k))
						facts = append(facts, storage.LinkFact(sum(n+1+k), 1), storage.LinkFact(sum(-1-k), 1))
					}
					facts = append(facts, manifest(m), tag(fmt.Sprint("v", i), m.Digest))
					if err := put(fmt.Sprintf("repository/%d", r), facts...); err != nil {
						return err
					}
				}
			}
			return nil
		},
		"sha512": func(put put) error {
			for i := range 100_000 {
				if err := put("app", storage.LinkFact(digest.SHA512.FromString(fmt.Sprint(i)), 1)); err != nil {
					return err
				}
			}
			return nil
		},
		"referrers": func(put put) error {
			for i := range 60_000 {
				m := storage.Manifest{Digest: sum(i), MediaType: kind, Subject: sum(i - i%2 + 1_000_000)}
				if err := put("app", manifest(m)); err != nil {
					return err
				}
			}
			return nil
		},
		"media types": func(put put) error {
			for i := range 50_000 {
				m := storage.Manifest{Digest: sum(i), MediaType: fmt.Sprintf("application/%0200d", i)}
				if err := put("app", manifest(m)); err != nil {
					return err
				}
			}
			return nil
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
				t.Errorf("the estimate is %d bytes, the heap has %d", estimate, real)
			}
			x.Close()
		})
	}
}

func limited(t *testing.T, j storage.Journal, l storage.Limits) *storage.Index {
	t.Helper()
	x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Close)
	return x
}

// wantLimit tests that an error names a limit.
func wantLimit(t *testing.T, err error, want storage.Limit) {
	t.Helper()
	var e *storage.LimitError
	if !errors.As(err, &e) || !errors.Is(err, storage.ErrLimit) || e.Limit != want {
		t.Errorf("%v, want limit %d", err, want)
	}
}

func TestTagsOfARepoAreLimited(t *testing.T) {
	j := memory.NewJournal()
	x := limited(t, j, storage.Limits{Tags: 4})
	m, other := digestOf("manifest", 1), digestOf("manifest", 2)
	storagetest.Update(t, x, "a", setTags(m, "1", "2", "3"))
	wantLimit(t, x.Update(t.Context(), "a", setTags(m, "4", "5")), storage.LimitTags) // both or none
	storagetest.Update(t, x, "a", setTags(m, "4"))
	wantLimit(t, x.Update(t.Context(), "a", setTags(m, "5")), storage.LimitTags)
	storagetest.Update(t, x, "a", setTags(other, "1", "2", "3", "4")) // moved
	storagetest.Update(t, x, "b", setTags(m, "1", "2", "3", "4"))     // another repo
	storagetest.Update(t, x, "a", func(tx *storage.Tx) error { return tx.DeleteTag("2") })
	storagetest.Update(t, x, "a", setTags(m, "5"))
	if at := x.Load().Refused[storage.LimitTags]; at.IsZero() {
		t.Error("no refusal is recorded")
	}
	x.Close()
	x = limited(t, j, storage.Limits{Tags: 2}) // a lower limit: what is there stays, and can be changed
	if tags, _, err := x.Tags(t.Context(), "a", "", -1); err != nil || len(tags) != 4 {
		t.Errorf("%v, %v", tags, err)
	}
	storagetest.Update(t, x, "a", setTags(other, "1", "3", "4", "5"))
	wantLimit(t, x.Update(t.Context(), "a", setTags(m, "6")), storage.LimitTags)
}

func TestReposAreLimited(t *testing.T) {
	x := limited(t, memory.NewJournal(), storage.Limits{Repos: 2})
	storagetest.Update(t, x, "a", link(1, 1))
	storagetest.Update(t, x, "b", link(1, 1))
	wantLimit(t, x.Update(t.Context(), "c", link(1, 1)), storage.LimitRepos)
	wantLimit(t, x.View("c", func(tx *storage.Tx) error { return tx.Room("") }), storage.LimitRepos)
	wantLimit(t, x.View("c", func(tx *storage.Tx) error {
		return tx.Fits(storage.Manifest{Digest: digestOf("manifest", 1)}, "v")
	}), storage.LimitRepos)
	storagetest.Update(t, x, "a", link(2, 1))
	storagetest.Update(t, x, "b", func(tx *storage.Tx) error { return tx.Unlink(digestOf("blob", 1)) })
	storagetest.Update(t, x, "c", link(1, 1))
}

// TestMemoryIsLimited: one connection filled the memory with tags, or with manifests of many references.
func TestMemoryIsLimited(t *testing.T) {
	const limit = 1 << 20
	x := limited(t, memory.NewJournal(), storage.Limits{Bytes: limit})
	big := storage.Manifest{Digest: digestOf("manifest", 9), MediaType: "m"}
	for i := range 20_000 {
		big.Refs = append(big.Refs, digestOf("part", i))
	}
	put := func(m storage.Manifest, tags ...string) func(*storage.Tx) error {
		return func(tx *storage.Tx) error {
			err := tx.PutManifest(m)
			for _, tag := range tags {
				err = errors.Join(err, tx.SetTag(tag, m.Digest))
			}
			return err
		}
	}
	wantLimit(t, x.Update(t.Context(), "a", put(big)), storage.LimitBytes)
	m := storage.Manifest{Digest: digestOf("manifest", 1), MediaType: "m"}
	var err error
	n := 0
	for ; err == nil && n < 20_000; n++ {
		err = x.Update(t.Context(), "a", put(m, fmt.Sprint("v", n)))
	}
	wantLimit(t, err, storage.LimitBytes)
	if got := x.Load().Bytes; got > limit || got < limit*9/10 {
		t.Errorf("%d bytes when changes are refused, the limit is %d", got, limit)
	}
	other := storage.Manifest{Digest: digestOf("manifest", 2), MediaType: "m"}
	for what, fn := range map[string]func(*storage.Tx) error{"manifest": put(other), "link": link(1, 1),
		"tag": put(m, "w")} {
		if err := x.Update(t.Context(), "a", fn); !errors.Is(err, storage.ErrLimit) {
			t.Errorf("a new %s: %v", what, err)
		}
	}
	m.MediaType = "n"
	storagetest.Update(t, x, "a", put(m, "v1", "v2")) // nothing new
	for i := range 200 {
		storagetest.Update(t, x, "a", func(tx *storage.Tx) error { return tx.DeleteTag(fmt.Sprint("v", i)) })
	}
	storagetest.Update(t, x, "a", put(other, "v0"))
}

// TestChangesOfOneCommitShareTheLimits: concurrent pushes do not exceed a limit together.
func TestChangesOfOneCommitShareTheLimits(t *testing.T) {
	x := limited(t, memory.NewJournal(), storage.Limits{Tags: 50, Repos: 20, Bytes: 1 << 20})
	var wg sync.WaitGroup
	for i := range 400 {
		wg.Go(func() {
			_ = x.Update(t.Context(), "a", setTags(digestOf("manifest", 1), fmt.Sprint("v", i)))
			_ = x.Update(t.Context(), fmt.Sprint("repo", i), link(1, 1))
			_ = x.Update(t.Context(), "a", setTags(digestOf("manifest", 1), strings.Repeat("x", 100)+fmt.Sprint(i)))
		})
	}
	wg.Wait()
	if l, s := x.Load(), x.Stats(); s.Tags != 50 || s.Repos != 20 || l.Repos != 20 || l.Bytes > 1<<20 {
		t.Errorf("%+v, %+v", l, s)
	}
}

func (full) Traits() storage.Traits { return storage.Traits{} }
