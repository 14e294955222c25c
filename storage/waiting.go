package storage

import (
	"context"
	"slices"
	"strings"

	"trow/storage/internal/slab"
)

// Content that the last repo lets go is on the disk until it is collected. It counts for the quotas of that repo until
// then, also after a restart: otherwise a client that pushes and deletes in a loop would fill the disk. So the commit
// that lets it go links it in another repo, the waiting repo of the first; clients cannot see it, and its
// links do not make content present: the Collector deletes the bytes, and after that the link.
//
// Why a repo and not a kind of facts of its own: earlier versions refuse a kind that they do not know. They take a
// waiting repo for a repo without manifests, which no client can name, and unlink what it holds after their grace.
//
// Repos that no quota counts have no waiting repo, so that they cost nothing.

// waitingPrefix begins the names of waiting repos. No repository can have such a name.
const waitingPrefix = storeRepo + "/"

func waitingOf(repo string) string { return waitingPrefix + repo }

// ofRegistry reports whether a name is that of a repo that clients can know.
func ofRegistry(name string) bool {
	return name != storeRepo && !strings.HasPrefix(name, waitingPrefix)
}

// waits reports whether the repo's quotas count k already, because it waits to be collected.
func (tx *Tx) waits(k key) bool {
	if v, changed := tx.waiting[factKey{KindLink, string(k)}]; changed {
		return v != nil
	}
	tx.x.mu.RLock()
	defer tx.x.mu.RUnlock()
	return tx.x.state.waitingRepos > 0 && tx.x.state.isWaiting(waitingOf(tx.repo), k)
}

func (s *state) isWaiting(name string, k key) bool {
	r := s.repos[name]
	return r != nil && s.find(r, []byte(k)) != 0
}

// letGo returns the facts of the waiting repo that go with a change: links to what the last repo lets go, and the end
// of links to what the repo holds again.
func (p *plan) letGo(tx *Tx) (facts overlay) {
	x := p.x
	if !ofRegistry(tx.repo) || len(tx.own) == 0 {
		return nil
	}
	x.mu.RLock()
	counted := len(tx.growth.quotas.all) > 0 && len(tx.growth.quotas.ofRepo(tx.repo)) > 0
	idle := !counted && x.state.waitingRepos == 0
	x.mu.RUnlock()
	if idle {
		return nil
	}
	before := *tx
	before.own = nil
	for f := range tx.own {
		if f.kind != KindLink && f.kind != KindManifest {
			continue
		}
		k := key(f.name)
		size, held := before.sizeOf(k)
		_, holds := tx.sizeOf(k)
		var value []byte
		switch {
		case holds && tx.waits(k): // its end
		case counted && held && !holds && !p.heldElsewhere(tx.repo, k):
			value = linkValue(size, tx.now, false)
		default:
			continue
		}
		if facts == nil {
			facts = overlay{}
		}
		facts[factKey{KindLink, string(k)}] = value
	}
	return facts
}

// sizeOf returns the size of a content that the repo holds as a blob or a manifest.
func (tx *Tx) sizeOf(k key) (size int64, held bool) {
	if size, held = tx.linkedSize(k.digest()); held {
		return size, true
	}
	m, held := tx.manifest(k)
	return m.Size, held
}

// heldElsewhere reports whether another repo holds k, with the changes of the same commit.
func (p *plan) heldElsewhere(repo string, k key) bool {
	x := p.x
	x.mu.RLock()
	n := int(x.state.present(k))
	x.mu.RUnlock()
	holds := func(name string, changes overlay) (n int) {
		if _, held := (&Tx{x: x, repo: name, pending: changes}).sizeOf(k); held {
			n = 1
		}
		return n
	}
	n -= holds(repo, nil)
	for name, r := range p.repos {
		changes := r.changes
		_, link := changes[factKey{KindLink, string(k)}]
		_, manifest := changes[factKey{KindManifest, string(k)}]
		if name != repo && ofRegistry(name) && (link || manifest) {
			n += holds(name, changes) - holds(name, nil)
		}
	}
	return n > 0
}

// countWaiting records that a waiting repo links a content, or with a negative sign that it no longer does.
func (s *state) countWaiting(r *repo, c slab.ID, sign int32) {
	if sign > 0 {
		if s.waiting == nil {
			s.waiting = map[slab.ID][]*repo{}
		}
		s.waiting[c] = append(s.waiting[c], r)
		s.memory += memWaiting
		return
	}
	s.memory -= memWaiting
	if repos := slices.DeleteFunc(s.waiting[c], func(o *repo) bool { return o == r }); len(repos) > 0 {
		s.waiting[c] = repos
	} else if delete(s.waiting, c); len(s.waiting) == 0 {
		s.waiting = nil // a map keeps what it took when it was largest
	}
}

// waiters lists which waiting repos link these contents, by repo. It does not look at other repos, nor at what else
// they link: a collection calls it for each step, and there may be 100,000 of both.
func (x *Index) waiters(keys []key) map[string][]key {
	all := map[string][]key{}
	x.mu.RLock()
	defer x.mu.RUnlock()
	for _, k := range keys {
		for _, r := range x.state.waiting[x.state.lookup([]byte(k))] {
			all[r.name] = append(all[r.name], k)
		}
	}
	return all
}

// allWaiting lists what waits.
func (x *Index) allWaiting() (all []key) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	for c := range yielding(x, s.waiting) {
		all = append(all, s.keyOf(c).key())
	}
	return all
}

// collected records that contents no longer wait: either their bytes are deleted or about to be, and they are still
// condemned, so that they cannot have been pushed again meanwhile; or a repo holds them.
func (x *Index) collected(ctx context.Context, keys []key) error {
	for step := range slices.Chunk(keys, unlinkStep) {
		for name, keys := range x.waiters(step) {
			err := InSteps(keys, func(keys []key) error {
				return x.Update(ctx, name, func(tx *Tx) error {
					for _, k := range keys {
						tx.set(KindLink, string(k), nil)
					}
					return nil
				})
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
