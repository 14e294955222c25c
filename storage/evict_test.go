package storage_test

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/disk"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// cachedManifest is a manifest as the cache records it.
func cachedManifest(name string, refs ...digest.Digest) storage.Manifest {
	return storage.Manifest{Digest: digest.FromString(name), MediaType: "application/a", Size: 1, Refs: refs,
		Cached: true}
}

// pushedManifest is a manifest as a client pushes it.
func pushedManifest(name string, refs ...digest.Digest) storage.Manifest {
	m := cachedManifest(name, refs...)
	m.Cached = false
	return m
}

// TestWhatIsEvicted: what is cached, and nothing that was pushed, whatever comes in the same commit or before.
func TestWhatIsEvicted(t *testing.T) {
	layer, other := digest.FromString("layer"), digest.FromString("other")
	put := func(all ...storage.Manifest) func(tx *storage.Tx) error {
		return func(tx *storage.Tx) (err error) {
			tx.LinkCached(layer, 5)
			for _, m := range all {
				err = errors.Join(err, tx.PutManifest(m), tx.SetTag("tag-"+m.Digest.Encoded()[:8], m.Digest))
			}
			return err
		}
	}
	for _, tt := range []struct {
		name   string
		before []storage.Manifest
		then   []storage.Manifest // in the same commit as the eviction
		evict  digest.Digest
		want   bool
	}{
		{"a layer of a cached manifest", []storage.Manifest{cachedManifest("m", layer)}, nil, layer, true},
		{"a layer of two", []storage.Manifest{cachedManifest("m", layer), cachedManifest("n", layer)}, nil,
			layer, true},
		{"a layer of a pushed one", []storage.Manifest{pushedManifest("m", layer)}, nil, layer, false},
		{"a layer of both", []storage.Manifest{cachedManifest("m", layer), pushedManifest("n", layer)}, nil,
			layer, false},
		{"a layer of none", []storage.Manifest{cachedManifest("m", other)}, nil, layer, true},
		{"a child of a cached index", []storage.Manifest{cachedManifest("m"),
			cachedManifest("n", digest.FromString("m"))}, nil,
			digest.FromString("m"), true},
		{"a child of a pushed index", []storage.Manifest{cachedManifest("m"),
			pushedManifest("n", digest.FromString("m"))}, nil,
			digest.FromString("m"), false},
		{"a layer of a pushed one of this commit", []storage.Manifest{cachedManifest("m", layer)},
			[]storage.Manifest{pushedManifest("n", layer)}, layer, false},
		{"a layer of a cached one of this commit", nil, []storage.Manifest{cachedManifest("n", layer)}, layer, true},
		{"a layer of one that is pushed now", []storage.Manifest{cachedManifest("m", layer)},
			[]storage.Manifest{pushedManifest("m", layer)}, layer, false},
		{"a manifest", []storage.Manifest{cachedManifest("m", layer)}, nil, digest.FromString("m"), true},
		{"a pushed manifest", []storage.Manifest{pushedManifest("m", layer)}, nil, digest.FromString("m"), false},
		{"a manifest that was cached and pushed", []storage.Manifest{cachedManifest("m"), pushedManifest("m")}, nil,
			digest.FromString("m"), false},
		{"a manifest that was pushed and cached", []storage.Manifest{pushedManifest("m"), cachedManifest("m")}, nil,
			digest.FromString("m"), false},
		{"a manifest of this commit", nil, []storage.Manifest{pushedManifest("m")}, digest.FromString("m"), false},
		{"a cached manifest of this commit", nil, []storage.Manifest{cachedManifest("m", layer)},
			digest.FromString("m"), true},
		{"a layer beside a pushed one of this commit", []storage.Manifest{cachedManifest("m", layer)},
			[]storage.Manifest{pushedManifest("n", other)}, layer, true},
		{"what is not there", nil, nil, other, true},
	} {
		for _, shared := range []bool{false, true} {
			j := memory.NewJournal()
			j.Is.Shared = shared
			x := storagetest.OpenIndex(t, j)
			for _, m := range tt.before { // each in a commit of its own
				storagetest.Update(t, x, "f/a/b", put(m))
			}
			var got bool
			storagetest.Update(t, x, "f/a/b", func(tx *storage.Tx) error {
				if err := put(tt.then...)(tx); err != nil {
					return err
				}
				got = tx.Evict(tt.evict)
				return nil
			})
			_, found, _ := x.Resolve(t.Context(), "f/a/b", tt.evict.String())
			_, linked, _ := x.Blob(t.Context(), "f/a/b", tt.evict)
			if got != tt.want || got == (found || linked) {
				t.Errorf("%s: evicted: %v; it is held: %v", tt.name, got, found || linked)
			}
			if n := storage.Departed(x, "f/a/b"); n != 0 {
				t.Errorf("%s: %d records of deleted manifests", tt.name, n)
			}
			again := storagetest.OpenIndex(t, j)
			for _, m := range append(tt.before, tt.then...) {
				if a, b := x.Cached("f/a/b", m.Digest), again.Cached("f/a/b", m.Digest); a != b {
					t.Errorf("%s: cached: %v; after a restart: %v", tt.name, a, b)
				}
			}
		}
	}
}

// TestEvictedTagsGo with the manifest, and leave no history.
func TestEvictedTagsGo(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	storagetest.Update(t, x, "f/a/b", func(tx *storage.Tx) error {
		return errors.Join(tx.PutManifest(cachedManifest("m")), tx.PutManifest(cachedManifest("n")),
			tx.SetTag("v", digest.FromString("m")), tx.SetTag("w", digest.FromString("n")))
	})
	if h, _, err := x.Holdings(t.Context(), "f/a/b"); err != nil || !h.Manifests[0].Cached || !h.Manifests[1].Cached {
		t.Errorf("%+v, %v", h, err)
	}
	storagetest.Update(t, x, "f/a/b", func(tx *storage.Tx) error {
		if !tx.Evict(digest.FromString("m")) {
			t.Error("it is not evicted")
		}
		return nil
	})
	storagetest.WantTags(t, x, "f/a/b", "w")
}

// TestDrop deletes the bytes of what no repo holds at once, and nothing else; with each kind of engine.
func TestDrop(t *testing.T) {
	for _, kind := range []string{"disk", "objects"} {
		t.Run(kind, func(t *testing.T) {
			j := memory.NewJournal()
			var x *storage.Index
			var blobs storage.Blobs
			if kind == "disk" {
				x = storagetest.OpenIndex(t, j)
				d, err := disk.Open(t.TempDir(), disk.Options{})
				if err != nil {
					t.Fatal(err)
				}
				blobs = d
			} else {
				j.Is.Shared = true
				x = storagetest.OpenIndexWith(t, j, storage.IndexOptions{Placed: true, Grace: sharedGrace})
				blobs = &memory.Objects{Service: memory.NewService(), Records: x}
			}
			push := func(repo, content string) (d digest.Digest, release func()) {
				t.Helper()
				d = digest.FromString(content)
				u, err := blobs.Create(t.Context(), repo, "sha256")
				if err != nil {
					t.Fatal(err)
				}
				_, err = u.Write([]byte(content))
				release, cerr := x.Commit(t.Context(), u, d)
				if err := errors.Join(err, cerr); err != nil {
					t.Fatal(err)
				}
				return d, release
			}
			_, releaseManifest := push("f/a/b", "m")
			evicted, release := push("f/a/b", "evicted")
			storagetest.Update(t, x, "f/a/b", func(tx *storage.Tx) error {
				tx.LinkCached(evicted, 7)
				return tx.PutManifest(cachedManifest("m", evicted))
			})
			release()
			releaseManifest()
			held, release := push("a", "held")
			if err := hold(t.Context(), x, "a", "held"); err != nil {
				t.Fatal(err)
			}
			release()
			storagetest.Update(t, x, "f/a/b", func(tx *storage.Tx) error { tx.Evict(evicted); return nil })
			c := &storage.Collector{Blobs: blobs, Index: x, Grace: sharedGrace}
			all := []digest.Digest{evicted, held, digest.FromString("never there"), "no digest"}
			done, err := c.Drop(t.Context(), all)
			if err != nil || done.Deleted != 1 || done.Freed != 7 {
				t.Errorf("%+v, %v", done, err)
			}
			if _, err := blobs.Stat(t.Context(), evicted); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("what was evicted: %v", err)
			}
			if _, err := blobs.Stat(t.Context(), held); err != nil {
				t.Errorf("what is held: %v", err)
			}
			if x.Condemned() {
				t.Error("marks are left")
			}
			if kind == "disk" { // bytes that a pusher relies on stay
				pinned, release := push("a", "pinned")
				if done, err := c.Drop(t.Context(), []digest.Digest{pinned}); err != nil || done.Deleted != 0 {
					t.Errorf("what is pinned: %+v, %v", done, err)
				}
				release()
			}
		})
	}
}

// TestDropBesideARun: steps of the two do not meet, so that bytes that are pushed again in between stay.
func TestDropBesideARun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := storagetest.OpenIndex(t, memory.NewJournal())
		blobs := memory.NewBlobs()
		c := &storage.Collector{Blobs: blobs, Index: x}
		d := digest.FromString("again and again")
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 200 {
				_, err := c.Drop(t.Context(), []digest.Digest{d})
				_, rerr := c.Run(t.Context(), false, nil)
				if err := errors.Join(err, rerr); err != nil {
					t.Error(err)
				}
			}
		}()
		go func() {
			for range 200 {
				if _, err := c.Run(t.Context(), false, nil); err != nil {
					t.Error(err)
				}
			}
		}()
		for range 200 {
			u, err := blobs.Create(t.Context(), "a", "sha256")
			if err != nil {
				t.Fatal(err)
			}
			_, werr := u.Write([]byte("again and again"))
			release, cerr := x.Commit(t.Context(), u, d)
			if err := errors.Join(werr, cerr, hold(t.Context(), x, "a", "again and again")); err != nil {
				t.Fatal(err)
			}
			release()
			if _, err := blobs.Stat(t.Context(), d); err != nil {
				t.Fatalf("what is held: %v", err)
			}
			storagetest.Update(t, x, "a", func(tx *storage.Tx) error { return tx.Unlink(d) })
		}
		<-done
		synctest.Wait()
	})
}

// TestWhoseABlobIs: one that was pushed is not evicted, whether it was cached before or is asked for after.
func TestWhoseABlobIs(t *testing.T) {
	d := digest.FromString("blob")
	cached := func(tx *storage.Tx) error { tx.LinkCached(d, 5); return nil }
	pushed := func(tx *storage.Tx) error { tx.Link(d, 5); return nil }
	for name, tt := range map[string]struct {
		steps []func(*storage.Tx) error
		want  bool
	}{
		"cached":                {[]func(*storage.Tx) error{cached, cached}, true},
		"pushed":                {[]func(*storage.Tx) error{pushed}, false},
		"cached, and pushed":    {[]func(*storage.Tx) error{cached, pushed}, false},
		"pushed, and asked for": {[]func(*storage.Tx) error{pushed, cached}, false},
		"in one commit: pushed": {[]func(*storage.Tx) error{
			func(tx *storage.Tx) error { return errors.Join(cached(tx), pushed(tx)) }}, false},
		"in one commit: cached": {[]func(*storage.Tx) error{
			func(tx *storage.Tx) error { return errors.Join(cached(tx), cached(tx)) }}, true},
	} {
		for _, shared := range []bool{false, true} {
			j := memory.NewJournal()
			j.Is.Shared = shared
			x := storagetest.OpenIndex(t, j)
			for _, step := range tt.steps {
				storagetest.Update(t, x, "f/a/b", step)
			}
			again := storagetest.OpenIndex(t, j)
			if got := len(again.CachedContents("f/a/b")) == 1; got != tt.want {
				t.Errorf("%s: after a restart it may be evicted: %v", name, got)
			}
			again.Close()
			if got := len(x.CachedContents("f/a/b")) == 1; got != tt.want {
				t.Errorf("%s: it may be evicted: %v", name, got)
			}
			if got := x.HasPushed("f/a/b"); got == tt.want || x.HasPushed("none") {
				t.Errorf("%s: the repo has what was pushed: %v", name, got)
			}
			storagetest.Update(t, x, "f/a/b", func(tx *storage.Tx) error {
				if got := tx.Evict(d); got != tt.want {
					t.Errorf("%s: evicted: %v", name, got)
				}
				return nil
			})
		}
	}
}

// TestABlobIsPushedAndEvicted in one commit: it stays. And what the same commit deletes keeps nothing.
func TestABlobIsPushedAndEvicted(t *testing.T) {
	blob, m := digest.FromString("blob"), pushedManifest("m", digest.FromString("blob"))
	for name, row := range map[string]struct {
		before, with func(tx *storage.Tx) error
		want         bool
	}{
		"cached": {nil, func(tx *storage.Tx) error { tx.LinkCached(blob, 5); return nil }, true},
		"pushed": {nil, func(tx *storage.Tx) error { tx.Link(blob, 5); return nil }, false},
		"removed": {func(tx *storage.Tx) error { tx.Link(blob, 5); return nil },
			func(tx *storage.Tx) error { return tx.Unlink(blob) }, true},
		"pushed before": {func(tx *storage.Tx) error { tx.Link(blob, 5); return nil }, nil, false},
		"pushed, removed and cached": {func(tx *storage.Tx) error { tx.Link(blob, 5); return nil },
			func(tx *storage.Tx) error {
				err := tx.Unlink(blob)
				tx.LinkCached(blob, 5)
				return err
			}, true},
		"a manifest that is deleted refers to it": {
			func(tx *storage.Tx) error { tx.LinkCached(blob, 5); return tx.PutManifest(m) },
			func(tx *storage.Tx) error { return tx.DeleteManifest(m.Digest) }, true},
	} {
		x := storagetest.OpenIndex(t, memory.NewJournal())
		if row.before != nil {
			storagetest.Update(t, x, "f/a/b", row.before)
		}
		storagetest.Update(t, x, "f/a/b", func(tx *storage.Tx) error {
			if row.with != nil {
				if err := row.with(tx); err != nil {
					return err
				}
			}
			if got := tx.Evict(blob); got != row.want {
				t.Errorf("%s: evicted: %v", name, got)
			}
			return nil
		})
		if _, held, _ := x.Blob(t.Context(), "f/a/b", blob); held == row.want {
			t.Errorf("%s: it is held: %v", name, held)
		}
	}
}

// TestWhatCanBeEvicted is what Evict removes, among contents of all kinds, in whatever order they came.
func TestWhatCanBeEvicted(t *testing.T) {
	blob := func(name string) digest.Digest { return digest.FromString(name) }
	steps := []func(tx *storage.Tx) error{
		func(tx *storage.Tx) error { tx.LinkCached(blob("free"), 1); return nil },
		func(tx *storage.Tx) error { tx.LinkCached(blob("of cached"), 1); return nil },
		func(tx *storage.Tx) error { tx.LinkCached(blob("of pushed"), 1); return nil },
		func(tx *storage.Tx) error { tx.Link(blob("pushed"), 1); return nil },
		func(tx *storage.Tx) error {
			return tx.PutManifest(cachedManifest("cached", blob("of cached"), blob("nowhere")))
		},
		func(tx *storage.Tx) error { return tx.PutManifest(pushedManifest("owner", blob("of pushed"))) },
		func(tx *storage.Tx) error { return tx.PutManifest(cachedManifest("child")) },
		func(tx *storage.Tx) error { return tx.PutManifest(pushedManifest("index", blob("child"))) },
	}
	names := []string{"free", "of cached", "of pushed", "pushed", "cached", "owner", "child", "index", "nowhere"}
	for turn := range steps {
		x := storagetest.OpenIndex(t, memory.NewJournal())
		for i := range steps {
			storagetest.Update(t, x, "f/a/b", steps[(i+turn)%len(steps)])
		}
		got := map[digest.Digest]bool{}
		for _, c := range x.CachedContents("f/a/b") {
			got[c.Digest] = true
		}
		for i, name := range names {
			if want := i == 0 || i == 1 || i == 4; got[blob(name)] != want {
				t.Errorf("turn %d: %q can be evicted: %v", turn, name, !want)
			}
		}
		if len(got) != 3 || !x.HasPushed("f/a/b") {
			t.Errorf("turn %d: %d can be evicted; the repo has what was pushed: %v", turn, len(got),
				x.HasPushed("f/a/b"))
		}
	}
}

// TestDropGoesOn after what it spares, and commits nothing for that.
func TestDropGoesOn(t *testing.T) {
	for _, kind := range []string{"bytes", "objects"} {
		t.Run(kind, func(t *testing.T) {
			j := memory.NewJournal()
			var x *storage.Index
			var blobs storage.Blobs = memory.NewBlobs()
			if kind == "bytes" {
				x = storagetest.OpenIndex(t, j)
			} else {
				j.Is.Shared = true
				x = storagetest.OpenIndexWith(t, j, storage.IndexOptions{Placed: true, Grace: sharedGrace})
				blobs = &memory.Objects{Service: memory.NewService(), Records: x}
			}
			s := &store{T: t, blobs: blobs, index: x}
			held, first, second := s.push("a", []byte("held")), s.push("a", []byte("1")), s.push("a", []byte("2"))
			storagetest.Update(t, x, "a", func(tx *storage.Tx) error {
				return errors.Join(tx.Unlink(first), tx.Unlink(second))
			})
			spared := []digest.Digest{held, "no digest"}
			if kind == "bytes" {
				release, err := s.commit(t.Context(), "a", []byte("pinned"))
				if err != nil {
					t.Fatal(err)
				}
				defer release()
				spared = append(spared, digest.FromString("pinned"))
			}
			c := &storage.Collector{Blobs: blobs, Index: x, Grace: sharedGrace}
			before, _ := j.Head(t.Context())
			for _, d := range spared {
				done, err := c.Drop(t.Context(), []digest.Digest{d})
				if head, _ := j.Head(t.Context()); err != nil || done.Deleted != 0 || head != before {
					t.Errorf("%s: %+v, %v, %d commits", d, done, err, head-before)
				}
			}
			done, err := c.Drop(t.Context(), append(spared, first, second))
			if err != nil || done.Deleted != 2 || x.Condemned() {
				t.Errorf("%+v, %v", done, err)
			}
			for _, d := range spared {
				if d.Validate() == nil && !s.has(d) {
					t.Errorf("%s is gone", d)
				}
			}
			if s.has(first) || s.has(second) {
				t.Error("what nothing holds is there")
			}
		})
	}
}
