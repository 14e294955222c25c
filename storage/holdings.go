package storage

import (
	"cmp"
	"context"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Holdings is all that a repo holds, as of one moment: for retention, for an export, for whoever asks. It is
// sorted: manifests and blobs by digest, tags by name.
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
}

// HeldTag is a name of a manifest.
type HeldTag struct {
	Name string `json:"name"`
	Time int64  `json:"time"` // since when it names this manifest, Unix seconds
}

// HeldBlob is a blob of a repo.
type HeldBlob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"` // bytes
	Time   int64         `json:"time"` // when it was linked, Unix seconds
}

// Holdings lists what a repo holds; found tells whether it exists. Errors: as Resolve.
func (x *Index) Holdings(ctx context.Context, repo string) (h Holdings, found bool, err error) {
	if _, err := x.confirm(ctx); err != nil {
		return Holdings{}, false, err
	}
	h = Holdings{Repo: repo, Manifests: []HeldManifest{}, Blobs: []HeldBlob{}}
	x.mu.RLock()
	r := x.state.repos[repo]
	if r == nil {
		x.mu.RUnlock()
		return h, false, nil
	}
	for i := range r.holds.all() {
		held := x.state.holds.at(i)
		if held.manifest != 0 {
			h.Manifests = append(h.Manifests, x.state.heldManifest(held))
		}
		if held.linked {
			h.Blobs = append(h.Blobs, HeldBlob{x.state.digest(held.content), x.state.contents.at(held.content).size, int64(held.since)})
		}
	}
	x.mu.RUnlock()
	slices.SortFunc(h.Manifests, func(a, b HeldManifest) int { return cmp.Compare(a.Digest, b.Digest) })
	slices.SortFunc(h.Blobs, func(a, b HeldBlob) int { return cmp.Compare(a.Digest, b.Digest) })
	for _, m := range h.Manifests {
		slices.SortFunc(m.Tags, func(a, b HeldTag) int { return cmp.Compare(a.Name, b.Name) })
	}
	return h, true, nil
}

func (s *state) heldManifest(h *hold) HeldManifest {
	m := s.manifests.at(h.manifest)
	held := HeldManifest{Digest: s.digest(h.content), MediaType: m.mediaType, Size: s.contents.at(h.content).size, Time: int64(m.time)}
	if m.subject != 0 {
		held.Subject = s.digest(m.subject)
	}
	for _, ref := range m.refs {
		held.Refs = append(held.Refs, s.digest(s.holds.at(ref).content))
	}
	s.tagsOf(m, func(t *tag) { held.Tags = append(held.Tags, HeldTag{t.name, int64(t.time)}) })
	return held
}

func (s *state) digest(content id) digest.Digest { return s.keyOf(content).digest() }
