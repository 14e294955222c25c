package registry

import (
	"context"
	"iter"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/registry/namespace"
	"trow/storage"
)

// This file walks through what repositories hold: those of other registries, below f/, and the contents of one.

// upstreamRepos yields the repositories below f/, those of other registries, until ctx is done.
func upstreamRepos(ctx context.Context, x *storage.Index) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, repo := range x.Names() {
			if namespace.Within(repo) && (ctx.Err() != nil || !yield(repo)) {
				return
			}
		}
	}
}

// upstreamHoldings yields what those repositories below f/ hold for which wanted reports true. An error, that of ctx or
// of storage.Index.Holdings, is the last pair.
func upstreamHoldings(ctx context.Context, x *storage.Index, wanted func(repo string) bool) iter.Seq2[storage.Holdings,
	error] {
	return func(yield func(storage.Holdings, error) bool) {
		for repo := range upstreamRepos(ctx, x) {
			if !wanted(repo) {
				continue
			}
			h, _, err := x.Holdings(ctx, repo)
			if !yield(h, err) || err != nil {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(storage.Holdings{}, err)
		}
	}
}

// heldRepo is what one repository holds, with the relations between its contents.
type heldRepo struct {
	repo      string
	manifests map[digest.Digest]*storage.HeldManifest
	blobs     map[digest.Digest]int64
	isChild   map[digest.Digest]bool            // of an index that is held
	referrers map[digest.Digest][]digest.Digest // by subject: those of the manifest, and its companions
}

func newHeldRepo(h storage.Holdings) *heldRepo {
	r := &heldRepo{repo: h.Repo, manifests: map[digest.Digest]*storage.HeldManifest{},
		blobs: map[digest.Digest]int64{}, isChild: map[digest.Digest]bool{},
		referrers: map[digest.Digest][]digest.Digest{}}
	for _, b := range h.Blobs {
		r.blobs[b.Digest] = b.Size
	}
	tags := map[string]digest.Digest{} // under which companions are kept
	for i := range h.Manifests {
		m := &h.Manifests[i]
		r.manifests[m.Digest] = m
		tags[fallbackTag(m.Digest)] = m.Digest
	}
	for _, m := range r.manifests {
		for _, ref := range m.Refs {
			if r.manifests[ref] != nil {
				r.isChild[ref] = true
			}
		}
		if r.manifests[m.Subject] != nil {
			r.referrers[m.Subject] = append(r.referrers[m.Subject], m.Digest)
		}
		for _, tag := range m.Tags {
			name := tag.Name
			for _, end := range companions[1:] {
				name = strings.TrimSuffix(name, end)
			}
			if of, ok := tags[name]; ok && of != m.Digest {
				r.referrers[of] = append(r.referrers[of], m.Digest)
			}
		}
	}
	return r
}

// children returns those manifests that an index consists of and the repository holds.
func (r *heldRepo) children(d digest.Digest) (all []digest.Digest) {
	if m := r.manifests[d]; m != nil {
		for _, ref := range m.Refs {
			if r.manifests[ref] != nil {
				all = append(all, ref)
			}
		}
	}
	return all
}

// reach returns the held contents that manifests consist of, these included, with their sizes; with referrers, also
// what refers to the manifests.
func (r *heldRepo) reach(roots []digest.Digest, referrers bool) map[digest.Digest]int64 {
	all := map[digest.Digest]int64{}
	var walk func(d digest.Digest)
	walk = func(d digest.Digest) {
		if _, seen := all[d]; seen {
			return
		}
		m := r.manifests[d]
		if m == nil {
			if size, held := r.blobs[d]; held {
				all[d] = size
			}
			return
		}
		all[d] = m.Size
		for _, ref := range m.Refs {
			walk(ref)
		}
		if referrers {
			for _, ref := range r.referrers[d] {
				walk(ref)
			}
		}
	}
	for _, d := range roots {
		walk(d)
	}
	return all
}

// bytes returns how much of an image is held, each content once, without its referrers.
func (r *heldRepo) bytes(d digest.Digest) (n int64) {
	for _, size := range r.reach([]digest.Digest{d}, false) {
		n += size
	}
	return n
}
