// Package inventory lists what a registry holds, and says what of it a removal would take and what keeps the rest.
//
// # Words
//
//   - holdings: what one repository holds, see [storage.Holdings].
//   - walk: holdings that are put together from the distribution API, for a registry without administration.
//   - shared: content that several repositories hold. A registry stores it once.
//
// # Invariants
//
//   - Holdings are read one repository at a time: all of them together may not fit into memory.
//   - A removal never takes what a manifest that stays refers to.
//
// # What it does not do
//
// It changes nothing, and it reads no bytes of blobs.
package inventory

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"trow/registry/admin"
	"trow/registry/client"
	"trow/storage"
)

const (
	maxManifest = 4 << 20 // bytes; the limit of the registry
	parallel    = 8       // requests of a walk at once: more than one hides the way to the registry, many are refused
)

// Registry is a registry to list.
type Registry struct {
	Client *client.Client
	Admin  *admin.Client // nil: the registry is walked
	// Referrers makes a walk ask for the referrers of each manifest: a request for each.
	Referrers bool
	// Unreadable is called for a manifest of a repository that a walk cannot read; the walk goes on, and lists it
	// without its parts. It may be called by several goroutines at once. nil: such a manifest ends the walk.
	Unreadable func(repo string, err *UnreadableError)
}

// UnreadableError means that a registry has a manifest that is too large, damaged, or none.
type UnreadableError struct{ Ref, Reason string }

func (e *UnreadableError) Error() string { return "manifest " + e.Ref + ": " + e.Reason }

// Each calls each with the holdings of these repositories, or of all if repos is empty, in the order of their
// names. whole reports whether the registry listed what it holds; a walk finds only what tags lead to. A repository
// that does not exist is left out: registries other than Trow also list repositories that are empty or deleted. Errors:
// those of the registry; UnreadableError; those of each.
func (r Registry) Each(ctx context.Context, repos []string, each func(storage.Holdings) error) (whole bool, err error) {
	if r.Admin != nil {
		err := Read(ctx, r.Admin, repos, each)
		if !admin.Unavailable(err) {
			return true, err
		}
	}
	if len(repos) == 0 {
		err := r.Client.Repositories(ctx, func(page []string) error { repos = append(repos, page...); return nil })
		if err != nil {
			return false, err
		}
	}
	for _, repo := range repos {
		h, err := r.walk(ctx, repo)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = each(h)
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// Read calls each with the holdings that the administration of a server lists: of these repositories, or of all.
// Errors: those of the server, see [admin.Unavailable]; those of each.
func Read(ctx context.Context, from *admin.Client, repos []string, each func(storage.Holdings) error) error {
	body, err := from.Get(ctx, "repositories", url.Values{"repository": repos})
	if err != nil {
		return err
	}
	defer body.Close()
	for in := json.NewDecoder(body); ; {
		var h storage.Holdings
		if err := in.Decode(&h); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("cannot read the list of repositories: %w", err)
		}
		if len(repos) > 0 && !slices.Contains(repos, h.Repo) {
			continue // a server of an earlier version lists all
		}
		if err := each(h); err != nil {
			return err
		}
	}
}

// Parts are the descriptors in a manifest or an index of any type. Package registry reads more and is strict; a copy or
// a listing must get along with what other registries have accepted, and leaves it to the server to refuse a manifest.
type Parts struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        *v1.Descriptor  `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
	Manifests     []v1.Descriptor `json:"manifests"`
	Blobs         []v1.Descriptor `json:"blobs"` // OCI artifact manifests
	Subject       *v1.Descriptor  `json:"subject"`
}

// NotManifests returns the descriptors of the parts that are not manifests.
func (p *Parts) NotManifests() []v1.Descriptor {
	all := append(p.Layers[:len(p.Layers):len(p.Layers)], p.Blobs...)
	if p.Config != nil {
		all = append(all, *p.Config)
	}
	return all
}

// Manifest is what a listing reads of a manifest or an index.
type Manifest struct {
	Parts
	ArtifactType string            `json:"artifactType"`
	Annotations  map[string]string `json:"annotations"`
}

// held returns the blobs that a registry with the manifest holds. Content with URLs of its own need not be there.
func (m *Manifest) held() []v1.Descriptor {
	return slices.DeleteFunc(m.NotManifests(), func(d v1.Descriptor) bool { return len(d.URLs) > 0 })
}

// Fetch reads a manifest and compares it with its digest. ref is a tag or a digest. Errors: those of the registry,
// fs.ErrNotExist among them; UnreadableError, with what the registry says of it in desc.
func Fetch(ctx context.Context, c *client.Client, repo, ref string) (m Manifest, desc v1.Descriptor, err error) {
	desc, body, err := c.Manifest(ctx, repo, ref)
	if err != nil {
		return m, desc, err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	switch {
	case err != nil:
		return m, desc, fmt.Errorf("manifest %s: %w", ref, err)
	case len(text) > maxManifest:
		return m, desc, &UnreadableError{ref, fmt.Sprintf("it has more than %d bytes", maxManifest)}
	}
	if _, err := storage.ParseDigest(desc.Digest.String()); err != nil ||
		desc.Digest.Algorithm().FromBytes(text) != desc.Digest {
		return m, desc, &UnreadableError{ref, "the registry's answer does not match its digest"}
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return Manifest{}, desc, &UnreadableError{ref, "it is not JSON: " + err.Error()}
	}
	desc.Size = int64(len(text))
	return m, desc, nil
}

// walker is one walk of a repository.
type walker struct {
	Registry
	repo string

	mu        sync.Mutex // guards the fields below
	manifests map[digest.Digest]*storage.HeldManifest
	blobs     map[digest.Digest]int64
}

// walk lists what the tags of a repository lead to.
func (r Registry) walk(ctx context.Context, repo string) (storage.Holdings, error) {
	w := &walker{Registry: r, repo: repo, manifests: map[digest.Digest]*storage.HeldManifest{},
		blobs: map[digest.Digest]int64{}}
	h := storage.Holdings{Repo: repo, Manifests: []storage.HeldManifest{}, Blobs: []storage.HeldBlob{}}
	var tags []string
	err := r.Client.HeldTags(ctx, repo, func(page []string) error { tags = append(tags, page...); return nil })
	if err != nil {
		return h, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, tag := range tags {
		g.Go(func() error { return w.visit(gctx, tag, tag) })
	}
	if err := g.Wait(); err != nil {
		return h, err
	}
	for _, m := range w.manifests {
		slices.SortFunc(m.Tags, func(a, b storage.HeldTag) int { return cmp.Compare(a.Name, b.Name) })
		h.Manifests = append(h.Manifests, *m)
	}
	for d, size := range w.blobs {
		h.Blobs = append(h.Blobs, storage.HeldBlob{Digest: d, Size: size})
	}
	slices.SortFunc(h.Manifests, func(a, b storage.HeldManifest) int { return cmp.Compare(a.Digest, b.Digest) })
	slices.SortFunc(h.Blobs, func(a, b storage.HeldBlob) int { return cmp.Compare(a.Digest, b.Digest) })
	return h, nil
}

// visit adds a manifest and what it leads to. tag is empty for one that was named by its digest.
func (w *walker) visit(ctx context.Context, ref, tag string) error {
	m, desc, err := Fetch(ctx, w.Client, w.repo, ref)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted meanwhile, or an index that lacks a platform
	} else if bad, ok := errors.AsType[*UnreadableError](err); ok && w.Unreadable != nil {
		w.Unreadable(w.repo, bad)
	} else if err != nil {
		return err
	}
	var next []digest.Digest
	if !w.add(desc, m, tag) {
		return nil
	}
	for _, child := range m.Manifests {
		next = append(next, child.Digest)
	}
	if w.Registry.Referrers {
		err := w.Client.Referrers(ctx, w.repo, desc, func(page []v1.Descriptor) error {
			for _, d := range page {
				next = append(next, d.Digest)
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, d := range next {
		if w.known(d) {
			continue
		}
		if err := w.visit(ctx, d.String(), ""); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) known(d digest.Digest) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.manifests[d] != nil
}

// add records a manifest, and reports whether it is new.
func (w *walker) add(desc v1.Descriptor, m Manifest, tag string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	held := w.manifests[desc.Digest]
	isNew := held == nil
	if isNew {
		held = &storage.HeldManifest{Digest: desc.Digest, MediaType: desc.MediaType, Size: desc.Size}
		if m.Subject != nil {
			held.Subject = m.Subject.Digest
		}
		refs := map[digest.Digest]bool{}
		for _, part := range m.held() {
			refs[part.Digest], w.blobs[part.Digest] = true, part.Size
		}
		for _, child := range m.Manifests {
			refs[child.Digest] = true
		}
		held.Refs = slices.Sorted(maps.Keys(refs))
		w.manifests[desc.Digest] = held
	}
	if tag != "" {
		held.Tags = append(held.Tags, storage.HeldTag{Name: tag})
	}
	return isNew
}
