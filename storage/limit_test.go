package storage_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

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
			for i := range 25_000 {
				facts = append(facts, tag(fmt.Sprintf("v1.%06d", i), sum(0)))
			}
			return put("app", facts...)
		},
		"tags in random order, with long names": func(put put) error {
			facts := []storage.Fact{manifest(storage.Manifest{Digest: sum(0), MediaType: kind})}
			for range 25_000 {
				facts = append(facts, tag(fmt.Sprintf("%0100d", random.Uint64()), sum(0)))
			}
			return put("app", facts...)
		},
		"manifests with many references": func(put put) error {
			for i := range 4 {
				m := storage.Manifest{Digest: sum(i), MediaType: kind}
				for k := range 10_000 {
					m.Refs = append(m.Refs, sum(1000+i*10_000+k))
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
			for i := range 40 {
				m := storage.Manifest{Digest: sum(i), MediaType: kind, Refs: refs}
				if err := put("app", manifest(m)); err != nil {
					return err
				}
			}
			return nil
		},
		"repositories with a link": func(put put) error {
			for i := range 15_000 {
				if err := put(fmt.Sprintf("team/app-%d", i), storage.LinkFact(sum(0), 1)); err != nil {
					return err
				}
			}
			return nil
		},
		"images": func(put put) error {
			for r := range 125 {
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
			for i := range 25_000 {
				if err := put("app", storage.LinkFact(digest.SHA512.FromString(fmt.Sprint(i)), 1)); err != nil {
					return err
				}
			}
			return nil
		},
		"what waits": func(put put) error {
			for i := range 25_000 {
				if err := put(storage.WaitingOf("app"), storage.LinkFact(sum(i), 1)); err != nil {
					return err
				}
			}
			return nil
		},
		"referrers": func(put put) error {
			for i := range 15_000 {
				m := storage.Manifest{Digest: sum(i), MediaType: kind, Subject: sum(i - i%2 + 1_000_000)}
				if err := put("app", manifest(m)); err != nil {
					return err
				}
			}
			return nil
		},
		"media types": func(put put) error {
			for i := range 12_500 {
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
	storagetest.Update(t, x, "a", link(1, 1)) // adds no tag
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

// TestCachedContentLeavesAQuarterToPushes, of repos and of memory; tags of a repo it shares with nobody. Where there
// is room for pushes, no refusal is recorded.
func TestCachedContentLeavesAQuarterToPushes(t *testing.T) {
	cached := func(f func(*storage.Tx) error) func(*storage.Tx) error {
		return func(tx *storage.Tx) error { tx.ForCache(); return f(tx) }
	}
	x := limited(t, memory.NewJournal(), storage.Limits{Repos: 4, Tags: 4})
	for _, repo := range []string{"a", "b", "c"} {
		storagetest.Update(t, x, repo, cached(link(1, 1)))
	}
	wantLimit(t, x.Update(t.Context(), "d", cached(link(1, 1))), storage.LimitRepos)
	if at := x.Load().Refused[storage.LimitRepos]; !at.IsZero() {
		t.Errorf("a refusal is recorded at %v, and there is room for a push", at)
	}
	storagetest.Update(t, x, "d", link(1, 1))
	wantLimit(t, x.Update(t.Context(), "e", link(1, 1)), storage.LimitRepos)
	if at := x.Load().Refused[storage.LimitRepos]; at.IsZero() {
		t.Error("the refusal of a push is not recorded")
	}
	m := digestOf("manifest", 1)
	storagetest.Update(t, x, "a", cached(setTags(m, "1", "2", "3", "4")))
	wantLimit(t, x.Update(t.Context(), "a", cached(setTags(m, "5"))), storage.LimitTags)
	if at := x.Load().Refused[storage.LimitTags]; at.IsZero() {
		t.Error("the refusal of a tag is not recorded")
	}

	x = limited(t, memory.NewJournal(), storage.Limits{})
	storagetest.Update(t, x, "a", link(1, 1))
	one := x.Load().Bytes // three quarters of it are three quarters of 4/3 and less than a byte more
	for most, fits := range map[int64]bool{one + one/3 + 1: true, one + one/3 - 2: false} {
		x := limited(t, memory.NewJournal(), storage.Limits{Bytes: most})
		if err := x.Update(t.Context(), "a", cached(link(1, 1))); errors.Is(err, storage.ErrLimit) == fits {
			t.Errorf("%d bytes of %d, of which a quarter is for pushes: %v", one, most, err)
		}
		if at := x.Load().Refused[storage.LimitBytes]; !at.IsZero() {
			t.Errorf("a refusal is recorded at %v, and there is room for a push", at)
		}
		storagetest.Update(t, x, "a", link(1, 1))
	}
}

// TestATagThatIsNamedTwiceIsOne: a push may name it in the path and in a parameter.
func TestATagThatIsNamedTwiceIsOne(t *testing.T) {
	x := limited(t, memory.NewJournal(), storage.Limits{Tags: 2})
	m := storage.Manifest{Digest: digestOf("manifest", 1)}
	fits := func(tags ...string) error {
		return x.View("a", func(tx *storage.Tx) error { return tx.Fits(m, tags...) })
	}
	if err := fits("1", "2", "1", "2"); err != nil {
		t.Errorf("two tags: %v", err)
	}
	wantLimit(t, fits("1", "2", "1", "3"), storage.LimitTags)
	storagetest.Update(t, x, "a", setTags(m.Digest, "1"))
	if err := fits("1", "2", "1"); err != nil {
		t.Errorf("one tag that is there: %v", err)
	}
	wantLimit(t, fits("2", "3"), storage.LimitTags)
}

// TestReposOfOneCommitShareTheLimit, and what the Index records about content itself is no repo.
func TestReposOfOneCommitShareTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := limited(t, memory.NewJournal(), storage.Limits{Repos: 2})
		storagetest.Update(t, x, "a", link(1, 1))
		if err := x.Quarantine(t.Context(), digestOf("blob", 1), "test"); err != nil {
			t.Fatal(err)
		}
		if n := x.Load().Repos; n != 1 {
			t.Errorf("%d repositories, want 1", n)
		}
		together(t, x,
			func(x *storage.Index) error { return x.Update(t.Context(), "b", link(1, 1)) },
			func(x *storage.Index) error {
				wantLimit(t, x.Update(t.Context(), "c", link(1, 1)), storage.LimitRepos)
				return nil
			})
	})
}

// TestTheLimitOfMemoryIsExact: a change is accepted if the memory after it is the limit, and refused if it would be one
// byte more.
func TestTheLimitOfMemoryIsExact(t *testing.T) {
	long := func(i int) digest.Digest { return digest.SHA512.FromString(fmt.Sprint(i)) }
	image := storage.Manifest{Digest: digestOf("image", 1), MediaType: "application/x",
		Refs: []digest.Digest{digestOf("blob", 1), long(3), long(4), digestOf("blob", 5)}}
	tagged := func(names ...string) func(*storage.Tx) error {
		return func(tx *storage.Tx) (err error) {
			for _, name := range names {
				err = errors.Join(err, tx.SetTag(name, image.Digest))
			}
			return err
		}
	}
	// The first manifest of a media type takes a little more, for the type: it is put before all limits.
	first := func(tx *storage.Tx) error {
		return tx.PutManifest(storage.Manifest{Digest: digestOf("image", 2), MediaType: image.MediaType})
	}
	steps := []func(*storage.Tx) error{
		func(tx *storage.Tx) error { tx.Link(digestOf("blob", 1), 1); return nil },
		func(tx *storage.Tx) error { tx.Link(long(2), 1); return nil },
		func(tx *storage.Tx) error {
			tx.Link(digestOf("blob", 6), 1)
			tx.Link(digestOf("blob", 7), 1)
			return nil
		},
		func(tx *storage.Tx) error { return tx.PutManifest(image) },
		tagged("first"),
		tagged("second"),
		tagged("a name that is longer than sixteen", "4"),
	}
	for n := range steps {
		measure := limited(t, memory.NewJournal(), storage.Limits{})
		storagetest.Update(t, measure, "other", first)
		for _, step := range steps[:n+1] {
			storagetest.Update(t, measure, "team/app", step)
		}
		want := measure.Load().Bytes
		for _, short := range []int64{0, 1} {
			j := memory.NewJournal()
			before := limited(t, j, storage.Limits{})
			storagetest.Update(t, before, "other", first)
			for _, step := range steps[:n] {
				storagetest.Update(t, before, "team/app", step)
			}
			x := limited(t, j, storage.Limits{Bytes: want - short})
			err := x.Update(t.Context(), "team/app", steps[n])
			if got := errors.Is(err, storage.ErrLimit); got != (short > 0) {
				t.Errorf("step %d with %d bytes too few: %v", n, short, err)
			}
			if got := x.Load().Bytes; short == 0 && got != want {
				t.Errorf("step %d: %d bytes, want %d", n, got, want)
			}
		}
	}
}

// TestTheMemoryOfOneCommitIsCountedTogether, to the byte.
func TestTheMemoryOfOneCommitIsCountedTogether(t *testing.T) {
	measure := limited(t, memory.NewJournal(), storage.Limits{})
	for i := range 3 {
		storagetest.Update(t, measure, fmt.Sprint("repo", i), link(i, 1))
	}
	for _, short := range []int64{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			x := limited(t, memory.NewJournal(), storage.Limits{Bytes: measure.Load().Bytes - short})
			var updates []func(*storage.Index) error
			for i := range 3 {
				updates = append(updates, func(x *storage.Index) error {
					err := x.Update(t.Context(), fmt.Sprint("repo", i), link(i, 1))
					if got := errors.Is(err, storage.ErrLimit); got != (i == 2 && short > 0) {
						t.Errorf("update %d with %d bytes too few: %v", i, short, err)
					}
					return nil
				})
			}
			together(t, x, updates...)
		})
	}
}

// TestRoomAsksAsAChangeDoes, also for a blob whose digest is not known yet; and so does Fits.
func TestRoomAsksAsAChangeDoes(t *testing.T) {
	measure := limited(t, memory.NewJournal(), storage.Limits{})
	storagetest.Update(t, measure, "a", link(1, 1))
	one := measure.Load().Bytes
	for short, want := range map[int64]bool{0: false, 1: true} {
		x := limited(t, memory.NewJournal(), storage.Limits{Bytes: one - short})
		for what, d := range map[string]digest.Digest{"a digest": digestOf("blob", 1), "none yet": ""} {
			err := x.View("a", func(tx *storage.Tx) error { return tx.Room(d) })
			if got := errors.Is(err, storage.ErrLimit); got != want {
				t.Errorf("Room of %s with %d bytes too few: %v", what, short, err)
			}
		}
		err := x.Update(t.Context(), "a", link(1, 1))
		if got := errors.Is(err, storage.ErrLimit); got != want {
			t.Errorf("a link with %d bytes too few: %v", short, err)
		}
	}
	// A referrer takes more than a manifest without a subject.
	m := storage.Manifest{Digest: digestOf("m", 1), MediaType: "m"}
	storagetest.Update(t, measure, "b", func(tx *storage.Tx) error { return tx.PutManifest(m) })
	x := limited(t, memory.NewJournal(), storage.Limits{Bytes: measure.Load().Bytes - one})
	fits := func(m storage.Manifest) error {
		return x.View("b", func(tx *storage.Tx) error { return tx.Fits(m) })
	}
	if err := fits(m); err != nil {
		t.Errorf("a manifest that fits: %v", err)
	}
	m.Subject = digestOf("m", 2)
	wantLimit(t, fits(m), storage.LimitBytes)
	// Also if there is room for the referrer, but not for the content that it is about.
	x = limited(t, memory.NewJournal(), storage.Limits{Bytes: measure.Load().Bytes - one + 280 + 58 + 5})
	wantLimit(t, fits(m), storage.LimitBytes)
}

// TestTagsOfOneCommitShareTheLimit, to the last one.
func TestTagsOfOneCommitShareTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := limited(t, memory.NewJournal(), storage.Limits{Tags: 2})
		var updates []func(*storage.Index) error
		for i := range 3 {
			updates = append(updates, func(x *storage.Index) error {
				err := x.Update(t.Context(), "a", setTags(digestOf("manifest", 1), fmt.Sprint("v", i)))
				if got := errors.Is(err, storage.ErrLimit); got != (i == 2) {
					t.Errorf("tag %d: %v", i, err)
				}
				return nil
			})
		}
		together(t, x, updates...)
	})
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

// TestTheMemoryOfTextsAndReferences grows with them, in steps of 16 bytes, as Go allocates them.
func TestTheMemoryOfTextsAndReferences(t *testing.T) {
	var blobs []digest.Digest
	for i := range 101 {
		blobs = append(blobs, digestOf("blob", i))
	}
	takes := func(repo, tag, mediaType string, refs int, subject digest.Digest) int64 {
		x := storagetest.OpenIndex(t, memory.NewJournal())
		// Whatever a manifest refers to is here: its contents and entries are no part of it.
		storagetest.Update(t, x, "r"+repo, func(tx *storage.Tx) error {
			for _, d := range blobs {
				tx.Link(d, 1)
			}
			return nil
		})
		storagetest.Update(t, x, "r"+repo, func(tx *storage.Tx) error {
			m := storage.Manifest{Digest: digestOf("m", 1), MediaType: mediaType, Refs: blobs[:refs], Subject: subject}
			return errors.Join(tx.PutManifest(m), tx.SetTag("t"+tag, m.Digest))
		})
		return x.Load().Bytes
	}
	long := strings.Repeat("x", 160)
	least := takes("", "", "m", 1, "")
	for name, row := range map[string]struct{ got, more int64 }{
		"a repository's name": {takes(long, "", "m", 1, ""), 160},
		"a tag's name":        {takes("", long, "m", 1, ""), 160},
		"a name of 16 bytes":  {takes("", long[:15], "m", 1, ""), 0},
		"one of 17 bytes":     {takes("", long[:16], "m", 1, ""), 16},
		"a media type":        {takes("", "", "m"+long, 1, ""), 160},
		"references":          {takes("", "", "m", 101, ""), 400}, // 101 of 4 bytes take 416 bytes, one takes 16
		"references, rounded": {takes("", "", "m", 5, ""), 16},
		"a step":              {takes("", "", "m", 4, ""), 0},
	} {
		if row.got-least != row.more {
			t.Errorf("%s: %d bytes more, want %d", name, row.got-least, row.more)
		}
	}
	// One that is here already: the map, the subject and one referrer.
	if one := takes("", "", "m", 1, blobs[0]); one-least < 300 || one-least > 400 {
		t.Errorf("a subject takes %d bytes", one-least)
	}
}

// TestReferrersTakeMemory: the first of a repo takes more than the first of a subject, and that more than others.
func TestReferrersTakeMemory(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error {
		tx.Link(digestOf("blob", 1), 1)
		tx.Link(digestOf("blob", 2), 1)
		return tx.PutManifest(storage.Manifest{Digest: digestOf("m", 9), MediaType: "m"}) // the first of its type
	})
	var steps []int64
	for i, subject := range []int{0, 1, 1, 2} { // 0: none
		before := x.Load().Bytes
		m := storage.Manifest{Digest: digestOf("m", i), MediaType: "m"}
		if subject > 0 {
			m.Subject = digestOf("blob", subject)
		}
		storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.PutManifest(m) })
		steps = append(steps, x.Load().Bytes-before)
	}
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error {
		var err error
		for _, i := range []int{0, 1, 2, 3, 9} {
			err = errors.Join(err, tx.DeleteManifest(digestOf("m", i)))
		}
		return errors.Join(err, tx.Unlink(digestOf("blob", 1)), tx.Unlink(digestOf("blob", 2)))
	})
	none, first, other, second := steps[0], steps[1], steps[2], steps[3]
	if first <= second || second <= other || other <= none || storage.MemoryOfFacts(x) != 0 {
		t.Errorf("the first takes %d bytes, one of another subject %d, the next of the same %d, without a subject %d; "+
			"%d are left", first, second, other, none, storage.MemoryOfFacts(x))
	}
}

// TestAMediaTypeIsKeptOnce, for all manifests that have it.
func TestAMediaTypeIsKeptOnce(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	storagetest.Update(t, x, "r", put(9, "v")) // the first of the repository
	var took []int64
	for i := range 2 {
		before := x.Load().Bytes
		m := storage.Manifest{Digest: digestOf("m", i), MediaType: strings.Repeat("m", 240)}
		storagetest.Update(t, x, "r", func(tx *storage.Tx) error { return tx.PutManifest(m) })
		took = append(took, x.Load().Bytes-before)
	}
	if took[0]-took[1] < 240 {
		t.Errorf("the first manifest of a media type takes %d bytes, the second %d", took[0], took[1])
	}
}
