package storage_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// model is what the Index should know, kept in the simplest way.
type model map[string]*modelRepo

type modelRepo struct {
	links     map[digest.Digest]int64
	manifests map[digest.Digest]storage.Manifest
	tags      map[string]digest.Digest
}

func (r *modelRepo) clone() *modelRepo {
	if r == nil {
		return &modelRepo{map[digest.Digest]int64{}, map[digest.Digest]storage.Manifest{}, map[string]digest.Digest{}}
	}
	return &modelRepo{maps.Clone(r.links), maps.Clone(r.manifests), maps.Clone(r.tags)}
}

func (r *modelRepo) bytes() (n int64) {
	for _, size := range r.links {
		n += size
	}
	for d, m := range r.manifests {
		if _, twice := r.links[d]; !twice {
			n += m.Size
		}
	}
	return n
}

func (r *modelRepo) tagsOf(d digest.Digest) []string {
	tags := []string{}
	for name, at := range r.tags {
		if at == d {
			tags = append(tags, name)
		}
	}
	slices.Sort(tags)
	return tags
}

// universe is the content that the random operations choose from. It is fixed, because a digest stands for one content.
type universe struct {
	repos, tags []string
	types       []string
	blobs       []digest.Digest
	manifests   []storage.Manifest
}

func digestOf(kind string, i int) digest.Digest {
	if i%4 == 3 {
		return digest.SHA512.FromString(fmt.Sprint(kind, i))
	}
	return digest.FromString(fmt.Sprint(kind, i))
}

func newUniverse(r *rand.Rand) *universe {
	u := &universe{types: []string{"application/a", "application/b"}}
	for i := range 5 {
		u.repos = append(u.repos, fmt.Sprint("repo/", i))
	}
	for i := range 6 {
		u.tags = append(u.tags, fmt.Sprint("v", i))
	}
	for i := range 8 {
		u.blobs = append(u.blobs, digestOf("blob", i))
	}
	for i := range 9 {
		m := storage.Manifest{Digest: digestOf("manifest", i), Size: int64(1000 + i)}
		for range r.IntN(5) {
			m.Refs = append(m.Refs, u.blobs[r.IntN(len(u.blobs))]) // perhaps one of them twice
		}
		if i > 4 {
			m.Refs = append(m.Refs, u.manifests[r.IntN(i)].Digest)
		}
		if i%2 == 1 {
			m.Subject = digestOf("manifest", r.IntN(i+2)-1) // perhaps one that does not exist
			if m.Subject == m.Digest {
				m.Subject = digestOf("manifest", 99)
			}
		}
		u.manifests = append(u.manifests, m)
	}
	return u
}

func (u *universe) digests() []digest.Digest {
	all := slices.Clone(u.blobs)
	for _, m := range u.manifests {
		all = append(all, m.Digest)
	}
	return append(all, digestOf("manifest", 99), digestOf("manifest", -1))
}

var errAbort = errors.New("abort")

// step does one random operation on both and compares the results. It runs in the committer.
func (u *universe) step(t *testing.T, r *rand.Rand, tx *storage.Tx, m *modelRepo) {
	tag := u.tags[r.IntN(len(u.tags))]
	blob := u.blobs[r.IntN(len(u.blobs))]
	man := u.manifests[r.IntN(len(u.manifests))]
	man.MediaType = u.types[r.IntN(2)]
	same := func(what string, err error, want bool) {
		if want != (err == nil) || err != nil && !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s: %v, want success: %v", what, err, want)
		}
	}
	_, isManifest := m.manifests[man.Digest]
	switch r.IntN(8) {
	case 0:
		tx.Link(blob, int64(len(blob)))
		m.links[blob] = int64(len(blob))
	case 1:
		_, ok := m.links[blob]
		same("Unlink", tx.Unlink(blob), ok)
		delete(m.links, blob)
	case 2, 3:
		same("PutManifest", tx.PutManifest(man), true)
		m.manifests[man.Digest] = man
	case 4:
		same("DeleteManifest", tx.DeleteManifest(man.Digest), isManifest)
		delete(m.manifests, man.Digest)
		maps.DeleteFunc(m.tags, func(_ string, d digest.Digest) bool { return d == man.Digest })
	case 5, 6:
		same("SetTag", tx.SetTag(tag, man.Digest), isManifest)
		if isManifest {
			m.tags[tag] = man.Digest
		}
	case 7:
		_, ok := m.tags[tag]
		same("DeleteTag", tx.DeleteTag(tag), ok)
		delete(m.tags, tag)
	}
	u.look(t, tx, m, r)
}

// look compares a Tx's view with the model's.
func (u *universe) look(t *testing.T, tx *storage.Tx, m *modelRepo, r *rand.Rand) {
	d := u.digests()[r.IntN(len(u.digests()))]
	if _, ok := m.links[d]; tx.Linked(d) != ok {
		t.Errorf("Linked(%s): %v, want %v", d, !ok, ok)
	}
	want, ok := m.manifests[d]
	got, found := tx.Manifest(d)
	if found != ok || ok && (got.Digest() != d || got.MediaType != want.MediaType || got.Size != want.Size) {
		t.Errorf("Manifest(%s): %+v, %v; want %+v, %v", d, got, found, want, ok)
	}
	if got := tx.TagsOf(d); !slices.Equal(slices.Sorted(slices.Values(got)), m.tagsOf(d)) {
		t.Errorf("TagsOf(%s): %v, want %v", d, got, m.tagsOf(d))
	}
	tag := u.tags[r.IntN(len(u.tags))]
	if got, found := tx.Tag(tag); got.Digest() != m.tags[tag] || found != (m.tags[tag] != "") {
		t.Errorf("Tag(%s): %s, %v; want %s", tag, got.Digest(), found, m.tags[tag])
	}
	by, found := tx.ReferredBy(d)
	refers := func(by storage.Manifest) bool { return slices.Contains(by.Refs, d) }
	referred := slices.ContainsFunc(slices.Collect(maps.Values(m.manifests)), refers)
	if found && !refers(m.manifests[by]) || !found && referred {
		t.Errorf("ReferredBy(%s): %s, %v", d, by, found)
	}
}

// wantIndex compares every reading method of an Index with the model.
func (u *universe) wantIndex(t *testing.T, x *storage.Index, all model) {
	t.Helper()
	ctx := t.Context()
	var catalog []string
	stats, named, present := storage.Stats{}, map[digest.Digest]bool{}, map[digest.Digest]bool{}
	for _, repo := range u.repos {
		m := all[repo].clone()
		stats.Links += len(m.links)
		stats.Manifests += len(m.manifests)
		stats.Tags += len(m.tags)
		if len(m.links)+len(m.manifests) > 0 {
			stats.Repos++
		}
		if len(m.manifests) > 0 {
			catalog = append(catalog, repo)
		}
		for d := range m.links {
			named[d], present[d] = true, true
		}
		for d, man := range m.manifests {
			named[d], present[d] = true, true
			if man.Subject != "" {
				named[man.Subject] = true
			}
			for _, ref := range man.Refs {
				named[ref] = true
			}
		}
		u.wantRepo(t, x, repo, m)
	}
	stats.Contents = len(named)
	u.wantPresent(t, x, present)
	waits := false
	for _, q := range x.Quotas() {
		var want int64
		for _, repo := range u.repos {
			if q.Match(repo) {
				want += all[repo].clone().bytes()
			}
		}
		if waits = waits || q.Waiting > 0; q.Used-q.Waiting != want {
			t.Errorf("quota %s: %d used, of which %d wait, want %d", q.Name, q.Used, q.Waiting, want)
		}
	}
	got := x.Stats()
	if waits && got.Contents > stats.Contents { // what waits is named, too
		got.Contents = stats.Contents
	}
	if got != stats {
		t.Errorf("Stats: %+v, want %+v", got, stats)
	}
	if got, err := x.Repos(ctx, "", -1); err != nil || !slices.Equal(got, catalog) {
		t.Errorf("Repos: %v, %v; want %v", got, err, catalog)
	}
	for _, d := range u.digests() {
		var want []string
		for _, repo := range u.repos {
			if _, ok := all[repo].clone().links[d]; ok {
				want = append(want, repo)
			}
		}
		if got := slices.Sorted(slices.Values(x.Holders(d, 99))); !slices.Equal(got, want) {
			t.Errorf("Holders(%s): %v, want %v", d, got, want)
		}
	}
}

// wantPresent checks which bytes the collector would keep, if those of every digest were there.
func (u *universe) wantPresent(t *testing.T, x *storage.Index, present map[digest.Digest]bool) {
	t.Helper()
	all := map[digest.Digest]bool{}
	for _, d := range u.digests() {
		all[d] = true
	}
	c := &storage.Collector{Blobs: listing{digests: all}, Index: x, Grace: time.Hour}
	if done, err := c.Run(t.Context(), true, nil); err != nil || done.Deleted != len(all)-len(present) {
		t.Errorf("the collector would delete %d of %d, %v; %d are present", done.Deleted, len(all), err, len(present))
	}
}

// listing lists blobs that have no bytes.
type listing struct {
	storage.Blobs
	digests map[digest.Digest]bool
}

func (l listing) All(context.Context) iter.Seq2[storage.BlobInfo, error] {
	return func(yield func(storage.BlobInfo, error) bool) {
		for d := range l.digests {
			if !yield(storage.BlobInfo{Digest: d}, nil) {
				return
			}
		}
	}
}

func (u *universe) wantRepo(t *testing.T, x *storage.Index, repo string, m *modelRepo) {
	t.Helper()
	ctx := t.Context()
	names := slices.Sorted(maps.Keys(m.tags))
	if got := x.Bytes(repo); got != m.bytes() {
		t.Errorf("Bytes(%s): %d, want %d", repo, got, m.bytes())
	}
	got, found, err := x.Tags(ctx, repo, "", -1)
	if err != nil || found != (len(m.links)+len(m.manifests) > 0) || !slices.Equal(got, names) {
		t.Errorf("Tags(%s): %v, %v, %v; want %v", repo, got, found, err, names)
	}
	for _, tag := range u.tags {
		d, ok, err := x.Resolve(ctx, repo, tag)
		want := m.manifests[m.tags[tag]]
		if err != nil || ok != (want.Digest != "") || d.Digest() != want.Digest || d.MediaType != want.MediaType ||
			d.Size != want.Size {
			t.Errorf("Resolve(%s, %s): %+v, %v, %v; want %+v", repo, tag, d, ok, err, want)
		}
	}
	for _, d := range u.digests() {
		want, ok := m.manifests[d]
		got, found, err := x.Resolve(ctx, repo, string(d))
		if err != nil || found != ok || got.Digest() != want.Digest || got.MediaType != want.MediaType {
			t.Errorf("Resolve(%s, %s): %+v, %v, %v; want %+v", repo, d, got, found, err, want)
		}
		size, ok := m.links[d]
		if got, found, err := x.Blob(ctx, repo, d); err != nil || found != ok || got != size {
			t.Errorf("Blob(%s, %s): %d, %v, %v; want %d, %v", repo, d, got, found, err, size, ok)
		}
		var referrers []digest.Digest
		for _, man := range m.manifests {
			if man.Subject == d {
				referrers = append(referrers, man.Digest)
			}
		}
		slices.Sort(referrers) // the textual order is the binary one
		for i := -1; i < len(referrers); i++ {
			after := digest.Digest("")
			if i >= 0 {
				after = referrers[i]
			}
			list, err := x.Referrers(ctx, repo, d, after, -1)
			var got []digest.Digest
			for _, desc := range list {
				if got = append(got, desc.Digest()); desc.MediaType != m.manifests[desc.Digest()].MediaType {
					t.Errorf("Referrers(%s, %s): media type %s", repo, d, desc.MediaType)
				}
			}
			if err != nil || !slices.Equal(got, referrers[i+1:]) {
				t.Errorf("Referrers(%s, %s, after %q): %v, %v; want %v", repo, d, after, got, err, referrers[i+1:])
			}
		}
	}
}

func TestIndexAgreesWithTheModel(t *testing.T) {
	for name, place := range journals {
		t.Run(name, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			u := newUniverse(rand.New(rand.NewPCG(seed, 0)))
			open := place(t)
			x := storagetest.OpenIndex(t, open())
			x.SetQuotas(modelQuotas)
			all := model{} // only the committer touches it while updates run
			updates := 1500
			if name == "bolt" {
				updates = 300
			}
			for round := range uint64(3) {
				var wg sync.WaitGroup
				for g := range uint64(8) {
					r := rand.New(rand.NewPCG(seed, 1+round*100+g))
					wg.Go(func() { u.work(t, r, x, all, updates/8) })
				}
				wg.Wait()
				u.wantIndex(t, x, all)
				u.thin(t, rand.New(rand.NewPCG(seed, 50+round)), x, all)
				before := storage.MemoryOfFacts(x)
				x.Close()
				x = storagetest.OpenIndex(t, open())
				x.SetQuotas(modelQuotas)
				if got := storage.MemoryOfFacts(x); got != before {
					t.Errorf("an estimate of %d bytes, before the restart %d", got, before)
				}
				u.wantIndex(t, x, all)
			}
			for repo := range all { // delete everything: nothing must remain
				err := x.Update(t.Context(), repo, func(tx *storage.Tx) (err error) {
					for d := range all[repo].manifests {
						err = errors.Join(err, tx.DeleteManifest(d))
					}
					for d := range all[repo].links {
						err = errors.Join(err, tx.Unlink(d))
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
			u.wantIndex(t, x, model{})
			if _, err := (&storage.Collector{Blobs: memory.NewBlobs(), Index: x}).
				Run(t.Context(), false, nil); err != nil {
				t.Error(err)
			}
			for _, q := range x.Quotas() {
				if q.Used != 0 || q.Waiting != 0 {
					t.Errorf("after a collection: %+v", q)
				}
			}
			u.wantIndex(t, x, model{})
			if n := storage.MemoryOfFacts(x); n != 0 {
				t.Errorf("an estimate of %d bytes for nothing", n)
			}
			u.wantIndex(t, storagetest.OpenIndex(t, open()), model{})
		})
	}
}

// thin deletes most of everything, repo by repo: what no fact names any more is forgotten.
func (u *universe) thin(t *testing.T, r *rand.Rand, x *storage.Index, all model) {
	t.Helper()
	for _, repo := range u.repos {
		err := x.Update(t.Context(), repo, func(tx *storage.Tx) (err error) {
			m := all[repo].clone()
			for _, man := range u.manifests {
				if _, ok := m.manifests[man.Digest]; ok && r.IntN(5) > 0 {
					err = errors.Join(err, tx.DeleteManifest(man.Digest))
					delete(m.manifests, man.Digest)
					maps.DeleteFunc(m.tags, func(_ string, d digest.Digest) bool { return d == man.Digest })
				}
			}
			for _, d := range u.blobs {
				if _, ok := m.links[d]; ok && r.IntN(5) > 0 {
					err = errors.Join(err, tx.Unlink(d))
					delete(m.links, d)
				}
			}
			all[repo] = m
			return err
		})
		if err != nil {
			t.Error(err)
		}
		u.wantIndex(t, x, all)
	}
}

// work makes random updates. Some fail or panic half way.
func (u *universe) work(t *testing.T, r *rand.Rand, x *storage.Index, all model, updates int) {
	for range updates {
		repo, end := u.repos[r.IntN(len(u.repos))], r.IntN(20)
		err := x.Update(context.Background(), repo, func(tx *storage.Tx) error {
			m := all[repo].clone()
			for range 1 + r.IntN(6) {
				u.step(t, r, tx, m)
			}
			switch end {
			case 0:
				return errAbort
			case 1:
				panic("half way")
			}
			all[repo] = m
			return nil
		})
		if end == 0 && !errors.Is(err, errAbort) || end == 1 && err == nil || end > 1 && err != nil {
			t.Errorf("Update with end %d: %v", end, err)
		}
	}
}
