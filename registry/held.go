package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/address"
	"trow/registry/mirror"
	"trow/registry/namespace"
	"trow/registry/platform"
	"trow/storage"
)

// This file lists and evicts the images of other registries for the administration.

// The states of an image of another registry.
const (
	StateCached   = "cached"   // it is evicted when the room is needed
	StateKept     = "kept"     // keep: of its upstream names it: it is evicted last
	StateImported = "imported" // it was imported or pushed: it is never evicted
)

// HeldImage is an image of another registry.
type HeldImage struct {
	Host       string        `json:"host"`
	Name       string        `json:"name"`       // of its repository there
	Repository string        `json:"repository"` // here
	Tags       []string      `json:"tags"`
	Digest     digest.Digest `json:"digest"`
	MediaType  string        `json:"mediaType"`
	Bytes      int64         `json:"bytes"` // of what is here of it, with its signatures
	// Whole says that all parts of the image are here; of an index, all parts of at least one platform, and no other
	// platform only in part.
	Whole bool `json:"whole"`
	// Foreign says that some of its layers are not here and never will be, because clients get them from elsewhere
	// (urls). No verdict takes the image for held.
	Foreign   bool     `json:"foreign,omitempty"`
	Platforms []string `json:"platforms,omitempty"` // of an index: the platforms that are here as a whole
	State     string   `json:"state"`
	Used      int64    `json:"used,omitempty"` // the hour of the last use, Unix seconds; 0: not known
}

// Names returns the names of the image: one for each tag or, without tags, the one with the digest.
func (i *HeldImage) Names() (all []string) {
	for _, tag := range i.Tags {
		all = append(all, i.Host+"/"+i.Name+":"+tag)
	}
	if len(all) == 0 {
		all = append(all, i.Host+"/"+i.Name+"@"+i.Digest.String())
	}
	return all
}

// HeldTotal is what images of other registries take together, each content once.
type HeldTotal struct {
	Images   int   `json:"images"`
	Bytes    int64 `json:"bytes"`           // of these images
	Imported int64 `json:"imported"`        // of that, what is never evicted
	Used     int64 `json:"used,omitempty"`  // by the whole cache
	Limit    int64 `json:"limit,omitempty"` // cache-size
}

// Selection selects images of other registries. The zero Selection selects all.
type Selection struct {
	// Below is a host, or a host with a repository or the beginning of one; empty: all. The names here count as well:
	// those of repositories below f/, and hosts of the setting namespaces.
	Below string
	// Images are names as pods have them. Optional; without them, Below decides alone.
	Images []string
	// Before selects only cached images that were last used before it, and neither those that keep: names nor imported
	// ones. The zero time is no condition.
	Before time.Time
}

// errBelow says what a valid Below is.
var errBelow = errors.New("want HOST[:PORT], or [HOST[:PORT]/]REPOSITORY")

// place is a host, and the beginning of the names of repositories there, as Selection.Below names them.
type place struct {
	host  string   // empty: all
	repos []string // any of these; none: all
}

// below returns the place that a text names. What has no host is at Docker Hub, where the library/ may be missing. The
// names that repositories have here mean those of their registries, as in Find. Errors: the text is not valid.
func (r *Registry) below(text string) (p place, err error) {
	text = strings.TrimSuffix(text, "/")
	if text == "" {
		return p, nil
	}
	host, repo, _ := strings.Cut(text, "/")
	ours := !address.LooksLikeHost(host)
	if ours { // f/quay.io, as trow ls prints it
		host, repo = address.Hub, text
	}
	if p.host, err = namespace.Host(host); err != nil {
		return p, fmt.Errorf("%w; %w", err, errBelow)
	}
	if repo != "" && !namespace.ValidRepo(repo) {
		return p, errBelow
	}
	if of, ok := r.options.Namespaces.Site(p.host); ok {
		p.host = of
	}
	element, under, _ := strings.Cut(strings.TrimPrefix(repo, namespace.Prefix), "/")
	if n, ok := r.options.Namespaces.Upstream(namespace.Join(element, "a/a")); ok && namespace.Within(repo) &&
		(ours || r.names[p.host]) {
		p.host, repo = n.Host, under
	}
	if repo != "" {
		p.repos = []string{repo}
		if folded := namespace.Fold(p.host, repo); folded != repo {
			p.repos = append(p.repos, folded)
		}
	}
	return p, nil
}

// has reports whether a repository is there.
func (p place) has(n namespace.Name) bool {
	return (p.host == "" || n.Host == p.host) && (p.repos == nil ||
		slices.ContainsFunc(p.repos, func(repo string) bool {
			return n.Repo == repo || strings.HasPrefix(n.Repo, repo+"/")
		}))
}

// upstreamRepo is what is held of a repository of another registry, and the images that are listed of it.
type upstreamRepo struct {
	*heldRepo
	name   namespace.Name
	images []*storage.HeldManifest // without those that belong to another image
}

// eachUpstreamRepo calls each with the repositories of other registries that are in a place. Errors: those of the
// index, of ctx and of each.
func (r *Registry) eachUpstreamRepo(ctx context.Context, in place, each func(*upstreamRepo) error) error {
	below := func(repo string) bool {
		n, ok := r.options.Namespaces.Upstream(repo)
		return ok && in.has(n)
	}
	for h, err := range upstreamHoldings(ctx, r.options.Index, below) {
		if err != nil {
			return err
		}
		n, _ := r.options.Namespaces.Upstream(h.Repo)
		if err := each(newUpstreamRepo(h, n)); err != nil {
			return err
		}
	}
	return nil
}

func newUpstreamRepo(h storage.Holdings, n namespace.Name) *upstreamRepo {
	s := &upstreamRepo{heldRepo: newHeldRepo(h), name: n}
	belongs := map[digest.Digest]bool{} // to another image, as a signature does
	for _, all := range s.referrers {
		for _, d := range all {
			belongs[d] = true
		}
	}
	for i := range h.Manifests {
		m := &h.Manifests[i]
		if !belongs[m.Digest] && (len(m.Tags) > 0 || !s.isChild[m.Digest]) {
			s.images = append(s.images, m)
		}
	}
	return s
}

// image describes an image.
func (r *Registry) image(ctx context.Context, s *upstreamRepo, m *storage.HeldManifest) HeldImage {
	i := HeldImage{Host: s.name.Host, Name: s.name.Repo, Repository: s.repo, Tags: []string{}, Digest: m.Digest,
		MediaType: m.MediaType, State: StateCached}
	for _, tag := range m.Tags {
		i.Tags = append(i.Tags, tag.Name)
		if r.keeps(s.name, tag.Name) {
			i.State = StateKept
		}
	}
	if !m.Cached {
		i.State = StateImported
	}
	for d, size := range s.reach([]digest.Digest{m.Digest}, true) {
		i.Bytes += size
		if s.manifests[d] != nil {
			if used := r.options.Cache.Used(d); !used.IsZero() {
				i.Used = max(i.Used, used.Unix())
			}
		}
	}
	r.whole(ctx, s, m, &i)
	return i
}

// keeps reports whether keep: of an upstream names a tag.
func (r *Registry) keeps(n namespace.Name, tag string) bool {
	if r.options.Upstreams == nil {
		return false
	}
	up, there, err := r.options.Upstreams.Find(n.Host, n.Repo)
	return err == nil && up.Keeps(there, tag)
}

// whole fills in how much of an image is here: Whole, Foreign and Platforms.
func (r *Registry) whole(ctx context.Context, s *upstreamRepo, m *storage.HeldManifest, i *HeldImage) {
	if !indexType(m.MediaType) {
		i.Whole, i.Foreign = r.allHere(ctx, s, m)
		return
	}
	names := map[digest.Digest]string{}
	for _, p := range r.partsNow(ctx, m.Digest) {
		if platform.Known(p.Platform) {
			names[p.Digest] = platform.Text(p.Platform)
		}
	}
	complete, partly := 0, false
	for _, d := range s.children(m.Digest) {
		var child HeldImage
		r.whole(ctx, s, s.manifests[d], &child)
		if !child.Whole {
			partly = true
			continue
		}
		complete++
		i.Foreign = i.Foreign || child.Foreign
		if name := names[d]; name != "" && !slices.Contains(i.Platforms, name) {
			i.Platforms = append(i.Platforms, name)
		}
	}
	slices.Sort(i.Platforms)
	i.Whole = complete > 0 && !partly || len(m.Refs) == 0
}

// allHere reports whether a repository holds all parts of an image for one platform, except those that clients get from
// elsewhere, and whether it has any of these.
func (r *Registry) allHere(ctx context.Context, s *upstreamRepo, m *storage.HeldManifest) (whole, foreign bool) {
	if !slices.ContainsFunc(m.Refs, s.lacks) {
		return true, false
	}
	parts := r.partsNow(ctx, m.Digest)
	whole = len(parts) > 0 && !slices.ContainsFunc(parts, func(p mirror.Part) bool { return s.lacks(p.Digest) })
	return whole, whole
}

// partsNow returns the parts of a manifest; none if it cannot be read.
func (r *Registry) partsNow(ctx context.Context, d digest.Digest) []mirror.Part {
	body, err := r.content(ctx, d)
	if err != nil {
		return nil
	}
	return fetchedParts(body)
}

// lacks reports whether a repository does not hold a content.
func (r *heldRepo) lacks(d digest.Digest) bool {
	_, held := r.blobs[d]
	return !held && r.manifests[d] == nil
}

// HeldImages calls each with the selected images of other registries that are here, in no order, and returns what they
// take together. Errors: the selection is not valid; those of the index and of ctx.
func (r *Registry) HeldImages(ctx context.Context, sel Selection, each func(HeldImage)) (total HeldTotal, err error) {
	w, err := r.wanted(sel)
	if err != nil {
		return total, err
	}
	seen, imported := map[digest.Digest]bool{}, map[digest.Digest]bool{}
	err = r.eachUpstreamRepo(ctx, w.place, func(s *upstreamRepo) error {
		for _, m := range s.images {
			if !w.names(s, m) {
				continue
			}
			i := r.image(ctx, s, m)
			if w.late(i) {
				continue
			}
			each(i)
			total.Images++
			for d, size := range s.reach([]digest.Digest{m.Digest}, true) {
				if !seen[d] {
					seen[d] = true
					total.Bytes += size
				}
				if !imported[d] && !m.Cached {
					imported[d] = true
					total.Imported += size
				}
			}
		}
		return nil
	})
	if r.options.Cache != nil {
		stats := r.options.Cache.Stats()
		total.Used, total.Limit = stats.Used, stats.Limit
	}
	return total, err
}

// wanted is a parsed Selection.
type wanted struct {
	place
	images map[string]string // the text that named an image, by the full name of the image
	before time.Time
}

// wanted parses a selection. Errors: a name in it is not valid.
func (r *Registry) wanted(sel Selection) (w wanted, err error) {
	if w.place, err = r.below(sel.Below); err != nil {
		return w, fmt.Errorf("%.150q: %w", sel.Below, err)
	}
	w.before, w.images = sel.Before, map[string]string{}
	for _, text := range sel.Images {
		at, i, err := r.Find(text)
		if err == nil && at.Host == "" {
			err = fmt.Errorf("%s is an image of this registry, and not of another one; trow rm deletes it", i)
		}
		if err != nil {
			return w, err
		}
		w.images[i.String()] = text
	}
	return w, nil
}

// names reports whether an image is among those that are named, if any are.
func (w *wanted) names(s *upstreamRepo, m *storage.HeldManifest) (found bool) {
	if len(w.images) == 0 {
		return true
	}
	if _, found = w.images[s.name.String()+"@"+m.Digest.String()]; found {
		return true
	}
	return slices.ContainsFunc(m.Tags, func(tag storage.HeldTag) bool {
		_, found := w.images[s.name.String()+":"+tag.Name]
		return found
	})
}

// late reports whether an image is left out because of Before.
func (w *wanted) late(i HeldImage) bool {
	return !w.before.IsZero() && (i.State != StateCached || i.Used >= w.before.Unix())
}
