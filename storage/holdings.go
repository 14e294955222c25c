package storage

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// Holdings is all that a repo holds, as of one moment: for retention, for an export, for a listing. It is sorted:
// manifests and blobs by digest, tags by name.
type Holdings struct {
	Repo      string         `json:"repository"`
	Manifests []HeldManifest `json:"manifests"`
	Blobs     []HeldBlob     `json:"blobs"` // layers and configs, not manifests
}

// HeldManifest is a manifest of a repo.
type HeldManifest struct {
	Digest    digest.Digest   `json:"digest"`
	MediaType string          `json:"mediaType"` // as pushed
	Size      int64           `json:"size"`      // bytes
	Time      int64           `json:"time"`      // when it was pushed, Unix seconds
	Subject   digest.Digest   `json:"subject,omitempty"`
	Refs      []digest.Digest `json:"refs,omitempty"` // blobs and manifests that it consists of
	Tags      []HeldTag       `json:"tags,omitempty"`
	Cached    bool            `json:"cached,omitempty"` // see Manifest.Cached
}

// HeldTag is a tag of a manifest.
type HeldTag struct {
	Name string `json:"name"`
	Time int64  `json:"time"` // since when it names this manifest, Unix seconds
	// Order says which of two tags of a repo was set later: the one with the greater Order. It is about the time in
	// Unix nanoseconds, but follows the journal where the clock was set back. It is 0 for tags that earlier versions
	// set: their order within a second is not known.
	Order int64 `json:"order,omitempty"`
}

// Position is where the tag is in the order in which the tags of a repo were set, also for a tag without an Order. Tags
// of the same group (see [TagsInOrder]) have positions that say nothing about their order.
func (t HeldTag) Position() int64 {
	if t.Order != 0 {
		return t.Order
	}
	return momentOf(t.Time).nanos()
}

// TagsInOrder returns tags of one repo in the order in which they were set, the oldest first, in groups: the order
// within a group is not known. It sorts tags.
func TagsInOrder(tags []HeldTag) (groups [][]HeldTag) {
	slices.SortFunc(tags, func(a, b HeldTag) int {
		return cmp.Or(cmp.Compare(a.Position(), b.Position()), cmp.Compare(a.Name, b.Name))
	})
	second := func(t HeldTag) int64 { return t.Position() / int64(time.Second) }
	vague := map[int64]bool{} // the seconds of tags without an order: any tag of the second may be older or newer
	for _, t := range tags {
		if t.Order == 0 {
			vague[second(t)] = true
		}
	}
	for i, t := range tags {
		if last := len(groups) - 1; i > 0 && vague[second(t)] && second(t) == second(tags[i-1]) {
			groups[last] = append(groups[last], t)
		} else {
			groups = append(groups, []HeldTag{t})
		}
	}
	return groups
}

// HeldBlob is a blob of a repo.
type HeldBlob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"` // bytes
	Time   int64         `json:"time"` // when it was linked, Unix seconds
}

// Holdings returns what a repo holds; found reports whether the repo exists. Errors: as Resolve.
func (x *Index) Holdings(ctx context.Context, repo string) (h Holdings, found bool, err error) {
	if _, err := x.confirm(ctx); err != nil {
		return Holdings{}, false, err
	}
	for tries := 0; ; tries++ {
		var whole bool
		if h, found, whole = x.holdings(repo, tries < looks); whole {
			break
		}
	}
	if !found {
		return h, false, nil
	}
	slices.SortFunc(h.Manifests, func(a, b HeldManifest) int { return cmp.Compare(a.Digest, b.Digest) })
	slices.SortFunc(h.Blobs, func(a, b HeldBlob) int { return cmp.Compare(a.Digest, b.Digest) })
	for _, m := range h.Manifests {
		slices.SortFunc(m.Tags, func(a, b HeldTag) int { return cmp.Compare(a.Name, b.Name) })
	}
	return h, true, nil
}

// looks is how often Holdings tries again, because the repo has changed meanwhile, before it keeps the lock.
const looks = 5

// holdings returns what a repo holds, in no order. With yields, it lets others have the lock again and again; whole is
// false if the repo has changed meanwhile, so that what was found is not of one moment.
func (x *Index) holdings(repo string, yields bool) (h Holdings, found, whole bool) {
	h = Holdings{Repo: repo, Manifests: []HeldManifest{}, Blobs: []HeldBlob{}}
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.state
	r := s.repos[repo]
	if r == nil {
		return h, false, true
	}
	seen := r.changed
	whole = true
	pause := func() {
		if yields {
			x.yield()
			whole = whole && x.state == s && s.repos[repo] == r && r.changed == seen
		}
	}
	for i := range r.entries.Walk(yieldEvery/4, pause) { // a manifest takes longer than a link
		if !whole {
			return h, true, false
		}
		e := s.entries.At(i)
		if e.manifest != 0 {
			h.Manifests = append(h.Manifests, s.heldManifest(e))
		}
		if e.linked {
			size := s.contents.At(e.content).size
			h.Blobs = append(h.Blobs, HeldBlob{s.digest(e.content), size, int64(e.since)})
		}
	}
	return h, true, whole
}

func (s *state) heldManifest(e *entry) HeldManifest {
	m := s.manifests.At(e.manifest)
	held := HeldManifest{Digest: s.digest(e.content), MediaType: m.mediaType, Size: s.contents.At(e.content).size,
		Time: int64(m.time), Cached: m.cached}
	if m.subject != 0 {
		held.Subject = s.digest(m.subject)
	}
	for _, ref := range m.refs {
		held.Refs = append(held.Refs, s.digest(s.entries.At(ref).content))
	}
	s.tagsOf(m, func(t *tag) { held.Tags = append(held.Tags, HeldTag{t.name, int64(t.time), t.order}) })
	return held
}
