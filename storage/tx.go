package storage

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Tx is one change to one repo, as seen by the function given to [Index.Update]. It reads the repo as it will be when
// the changes before it are committed, and it records changes. It is valid until that function returns. Either all of
// its changes are committed, or none.
type Tx struct {
	x       *Index
	repo    string
	pending overlay // the changes of this repo that come earlier in the same commit
	own     overlay
	moved   bool    // own has more than added links, so the change must conflict with others of the repo
	ends    bool    // see Index.endRevision
	store   overlay // what earlier changes of the same commit do to facts about content itself
	waiting overlay // what they do to the waiting repo of this one
	// With a shared journal or Placed Blobs: what the change does to facts about content itself, and on which facts it
	// depends besides the repo's revision.
	ownStore   overlay
	conditions map[factOf][]byte
	read       map[string][]byte // records, as they were committed when the change first read them; see record
	growth     *growth           // what earlier changes of the same commit add to quotas
	added      int64             // bytes that this change adds to the repo
	by         string            // who makes the change; see As
	counted    int64             // of these, what counts already, as committed uploads
	now        int64             // Unix seconds
	clock      int64             // the same moment in Unix nanoseconds
	newest     *int64            // the greatest order of a tag of the repo; the changes of a commit share it
	refused    error             // such as a condemnedError: the change fails, whatever the function returns
	adding     *adding           // what earlier changes of the same commit add to what the Limits bound
	adds       adds              // what this change adds to that
	limited    *LimitError
	forCache   bool // see ForCache
	seals      bool // the change is about the seal, which refuses all others
	copied     bool // see CopyFacts
	view       bool // see Index.View
}

// overlay is a set of facts that are not committed yet, each with its last value; a nil value deletes it.
type overlay map[factKey][]byte

type factKey struct {
	kind Kind
	name string
}

// facts returns the overlay in an order in which a state can apply it: a tag is set after its manifest, and a manifest
// is deleted after its tags were deleted or set to another manifest.
func (o overlay) facts() []Fact {
	out := make([]Fact, 0, len(o))
	for k, v := range o {
		out = append(out, Fact{k.kind, k.name, v})
	}
	slices.SortFunc(out, func(a, b Fact) int {
		return cmp.Or(cmp.Compare(a.phase(), b.phase()), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// phase orders the facts of a batch, see overlay.facts.
func (f Fact) phase() int {
	switch {
	case f.Kind == KindTag && f.Value == nil:
		return 0 // tags that are deleted
	case f.Kind != KindTag && f.Value != nil:
		return 1 // content that is added
	case f.Kind == KindTag:
		return 2 // tags that are set
	}
	return 3 // content that is deleted
}

// fact looks a fact up among the changes of this commit. changed reports whether it is among them.
func (tx *Tx) fact(kind Kind, name string) (value []byte, changed bool) {
	k := factKey{kind, name}
	if v, ok := tx.own[k]; ok {
		return v, true
	}
	v, ok := tx.pending[k]
	return v, ok
}

// factOf is a fact of any repo.
type factOf struct {
	repo string
	factKey
}

// require makes the change depend on a fact being as it is committed now.
func (tx *Tx) require(repo string, kind Kind, name string, value []byte) {
	if tx.conditions == nil {
		tx.conditions = map[factOf][]byte{}
	}
	tx.conditions[factOf{repo, factKey{kind, name}}] = value
}

func (tx *Tx) set(kind Kind, name string, value []byte) {
	tx.moved = true
	tx.put(kind, name, value)
}

// put is set for a fact that does not conflict with other changes of the repo, such as an added link.
func (tx *Tx) put(kind Kind, name string, value []byte) {
	if tx.own == nil {
		tx.own = overlay{}
	}
	tx.own[factKey{kind, name}] = value
}

// changes calls f for every change of a kind in this commit; it may call f twice with the same name.
func (tx *Tx) changes(kind Kind, f func(name string)) {
	for _, o := range []overlay{tx.own, tx.pending} {
		for k := range o {
			if k.kind == kind {
				f(k.name)
			}
		}
	}
}

// Linked reports whether the repo holds d as a blob.
func (tx *Tx) Linked(d digest.Digest) bool {
	_, linked := tx.linkedSize(d)
	return linked
}

// Manifest returns a manifest of the repo by its digest.
func (tx *Tx) Manifest(d digest.Digest) (Descriptor, bool) { return tx.manifest(keyOf(d)) }

func (tx *Tx) manifest(k key) (Descriptor, bool) {
	if v, ok := tx.fact(KindManifest, string(k)); ok {
		m, err := parseManifest(v)
		return Descriptor{MediaType: string(m.mediaType), Size: m.size, sum: sumOf(k)}, v != nil && err == nil
	}
	return tx.x.manifest(tx.repo, string(k.digest()))
}

// ManifestBySHA512 returns a manifest of the repo whose digest is a sha512 that starts with these 64 hex digits: of
// such a digest, the names of tags have no more.
func (tx *Tx) ManifestBySHA512(start string) (digest.Digest, bool) {
	var buf [maxKey]byte
	k := appendKey(buf[:0], "sha256:"+start) // the same form
	if k == nil {
		return "", false
	}
	k[0] = algSHA512
	candidates := tx.x.sha512s(k)
	tx.changes(KindManifest, func(name string) {
		if strings.HasPrefix(name, string(k)) {
			candidates = append(candidates, key(name))
		}
	})
	for _, c := range candidates {
		if _, held := tx.manifest(c); held {
			return c.digest(), true
		}
	}
	return "", false
}

// Tag returns the manifest that a tag names.
func (tx *Tx) Tag(name string) (Descriptor, bool) {
	if !isTag(name) {
		return Descriptor{}, false
	}
	if v, ok := tx.fact(KindTag, name); ok {
		t, err := parseTag(v)
		if v == nil || err != nil {
			return Descriptor{}, false
		}
		return tx.manifest(key(t.digest))
	}
	return tx.x.manifest(tx.repo, name)
}

// isTag reports whether name can be a tag: not empty, and not a digest, which would hide the manifest of that digest.
func isTag(name string) bool { return name != "" && keyOf(digest.Digest(name)) == "" }

// TagsOf lists the tags that name the manifest d, in no order.
func (tx *Tx) TagsOf(d digest.Digest) []string {
	k := keyOf(d)
	// Committed tags may name another manifest now, and changed tags this one: Tag decides on each.
	candidates := tx.x.tagsOf(tx.repo, k)
	tx.changes(KindTag, func(name string) { candidates = append(candidates, name) })
	slices.Sort(candidates)
	return slices.DeleteFunc(slices.Compact(candidates), func(name string) bool {
		at, ok := tx.Tag(name)
		return !ok || at.sum.key() != k
	})
}

// ReferredBy returns a manifest of the repo that refers to d, whether d is present or not.
func (tx *Tx) ReferredBy(d digest.Digest) (m digest.Digest, found bool) {
	k := keyOf(d)
	// Manifests that this commit changes are looked at below, not as they are committed now.
	changed := func(m key) bool { _, ok := tx.fact(KindManifest, string(m)); return ok }
	if m, ok := tx.x.refersTo(tx.repo, k, changed); ok {
		return m.digest(), true
	}
	tx.changes(KindManifest, func(name string) {
		if v, _ := tx.fact(KindManifest, name); v != nil && refersIn(v, k) {
			m, found = key(name).digest(), true
		}
	})
	return m, found
}

// refersIn reports whether a manifest's value has k among its references.
func refersIn(v []byte, k key) (found bool) {
	m, err := parseManifest(v)
	if err != nil {
		return false
	}
	_ = m.eachRef(func(ref []byte) { found = found || string(ref) == string(k) }) // a value of our own: it is valid
	return found
}

// Link records that the repo holds the blob d of size bytes. The bytes must be durable already. It panics if d is
// malformed, because such a fact would make the journal unreadable.
func (tx *Tx) Link(d digest.Digest, size int64) { tx.link(d, size, false) }

// LinkCached is Link for a blob that came from the repo's upstream; see Evict. One that was pushed stays so.
func (tx *Tx) LinkCached(d digest.Digest, size int64) { tx.link(d, size, true) }

func (tx *Tx) link(d digest.Digest, size int64, cached bool) {
	if keyOf(d) == "" {
		panic(fmt.Sprintf("link to a malformed digest %.150q", d))
	}
	recorded, linked := tx.linkedSize(d)
	was := linked && tx.cachedLink(keyOf(d))
	cached = cached && (was || !linked)
	first := false
	switch {
	case linked && recorded == size && was == cached && !tx.stale(d):
		return
	case linked && recorded == size: // it was cached and is pushed now; or its age is recorded anew, see Lease
	case linked: // a rebuild may have taken the size from a manifest, when the bytes were missing
		tx.added += size - recorded
	default:
		tx.startNaming(keyOf(d))
		tx.askLink(keyOf(d))
		if tx.x.shared && tx.own == nil {
			// The link must not exist when the batch, which is Detached, is committed: a process whose state does not
			// show the link yet must not set it while the Collector of another process removes it because of its age.
			tx.require(tx.repo, KindLink, string(keyOf(d)), nil)
			first = true
		}
		if _, held := tx.Manifest(d); !held && !tx.waits(keyOf(d)) { // a content counts once per repo
			tx.add(keyOf(d), size)
		}
	}
	if value := linkValue(size, tx.now, cached); first {
		tx.put(KindLink, string(keyOf(d)), value)
	} else {
		tx.set(KindLink, string(keyOf(d)), value)
	}
}

// add counts a content that the repo did not hold.
func (tx *Tx) add(k key, size int64) {
	tx.added += size
	tx.counted += tx.x.options.Uploads.pending(tx.repo, k)
}

// linkedSize returns the recorded size of a blob that the repo holds.
func (tx *Tx) linkedSize(d digest.Digest) (size int64, linked bool) {
	if v, ok := tx.fact(KindLink, string(keyOf(d))); ok {
		size, _, _, err := parseLink(v)
		return size, v != nil && err == nil
	}
	return tx.x.linkedSize(tx.repo, string(d))
}

// startNaming is called before the repo starts to hold k. It refuses the change if the bytes of k are being deleted: a
// fact must not outlive its bytes. A caller that has pinned k does not see that (see Update).
func (tx *Tx) startNaming(k key) {
	v, changed := tx.store[factKey{kindCondemned, string(k)}]
	if changed && v != nil || !changed && tx.x.isCondemned(k) {
		tx.refused = condemnedError{k}
		return
	}
	if tx.x.shared && !changed {
		tx.require(storeRepo, kindCondemned, string(k), nil)
	}
	if tx.x.options.Placed && tx.refused == nil {
		tx.refused = tx.place(k)
	}
}

// condemnedError: a change starts to name content whose bytes are being deleted.
type condemnedError struct{ key key }

func (e condemnedError) Error() string {
	return fmt.Sprintf("%s: %v: its bytes are being deleted", e.key.digest(), ErrBusy)
}

func (e condemnedError) Unwrap() error { return ErrBusy }

// Whole reports whether the repo holds d, as a blob or as a manifest, and its bytes are not known to be damaged.
func (tx *Tx) Whole(d digest.Digest) bool {
	held := tx.Linked(d)
	if !held {
		_, held = tx.Manifest(d)
	}
	return held && !tx.x.Quarantined(d)
}

// Unlink records that the repo no longer holds d as a blob. Errors: ErrNotFound.
func (tx *Tx) Unlink(d digest.Digest) error {
	if !tx.Linked(d) {
		return fmt.Errorf("blob %s: %w", d, ErrNotFound)
	}
	tx.set(KindLink, string(keyOf(d)), nil)
	return nil
}

// PutManifest records a manifest. Its bytes must be durable already. If the repo holds the digest as a manifest
// already, its tags stay. What was pushed stays so, and what is cached and is pushed now is cached no more. PutManifest
// sets Time. Errors: ErrDigest for a malformed digest in m.
func (tx *Tx) PutManifest(m Manifest) error {
	named := append([]digest.Digest{m.Digest}, m.Refs...)
	if m.Subject != "" {
		named = append(named, m.Subject)
	}
	for _, d := range named {
		if _, err := ParseDigest(string(d)); err != nil {
			return err
		}
	}
	k := keyOf(m.Digest)
	m.Time = tx.now
	at, held := tx.manifest(k)
	cached := held && tx.cached(k)
	m.Cached = m.Cached && (cached || !held)
	if held && at.MediaType == m.MediaType && cached == m.Cached {
		return nil // the same bytes under the same type: nothing can have changed
	}
	if !held && !tx.Linked(m.Digest) && !tx.waits(k) {
		tx.add(k, m.Size)
	}
	tx.startNaming(k)
	if !held { // under another media type it takes what it took
		tx.askManifest(&m)
	}
	tx.set(KindManifest, string(k), manifestValue(m))
	return nil
}

// DeleteManifest records that the repo no longer holds d as a manifest, and deletes the tags that name it. Errors:
// ErrNotFound.
func (tx *Tx) DeleteManifest(d digest.Digest) error {
	if _, ok := tx.Manifest(d); !ok {
		return fmt.Errorf("manifest %s: %w", d, ErrNotFound)
	}
	for _, name := range tx.TagsOf(d) {
		tx.removeTag(name)
	}
	tx.leave(keyOf(d))
	tx.set(KindManifest, string(keyOf(d)), nil)
	return nil
}

// SetTag makes a tag name the manifest d. Of several tags, the one of the last call is the newest. Errors: ErrNotFound
// unless the repo holds d as a manifest; a name that is empty or a digest is refused.
func (tx *Tx) SetTag(name string, d digest.Digest) error {
	if !isTag(name) {
		return fmt.Errorf("%.150q is not a valid name for a tag", name)
	}
	at, ok := tx.Manifest(d)
	if !ok {
		return fmt.Errorf("manifest %s: %w", d, ErrNotFound)
	}
	old, ok := tx.Tag(name)
	if ok && old.sum == at.sum {
		return nil
	}
	if !ok {
		tx.askTag(name)
	}
	// The order is the clock's, but never less than what the repo has: which tag is newer is the order of the journal,
	// whatever the clock does, and within one commit the order of the calls.
	*tx.newest = max(tx.clock, *tx.newest+1)
	targets := tx.remember(name, at.sum.key(), *tx.newest)
	tx.set(KindTag, name, tagValue(at.sum.key(), tx.now, *tx.newest, targets))
	return nil
}

// DeleteTag deletes a tag. Errors: ErrNotFound.
func (tx *Tx) DeleteTag(name string) error {
	if _, ok := tx.Tag(name); !ok {
		return fmt.Errorf("tag %q: %w", name, ErrNotFound)
	}
	tx.removeTag(name)
	return nil
}

// removeTag deletes a tag and its history, which would be the history of another tag of the same name.
func (tx *Tx) removeTag(name string) {
	tx.forget(name)
	tx.set(KindTag, name, nil)
}
