package archive

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"trow/registry/client"
	"trow/storage"
)

// ExportOptions say what goes into an archive.
type ExportOptions struct {
	Options
	// Have reports whether an earlier archive has a blob, which is then left out: see [Have]. Manifests are never left
	// out.
	Have func(d digest.Digest) bool
	// Prune deletes from a directory what the registry no longer holds.
	Prune bool
}

// Export copies a running registry into a directory, which it creates if needed. If the directory holds an archive,
// only new content is copied. Errors: the directory holds other files; those of the file system and of the registry;
// that there were problems, after everything else was copied.
func Export(ctx context.Context, from *client.Client, dir string, o ExportOptions) (Progress, error) {
	var w *directory
	defer func() {
		if w != nil {
			w.root.Close()
		}
	}()
	return export(ctx, from, o, func() (_ writer, err error) {
		w, err = openDirectory(dir)
		return w, err
	})
}

// ExportTar is [Export] to a tar stream, which always gets everything.
func ExportTar(ctx context.Context, from *client.Client, out io.Writer, o ExportOptions) (Progress, error) {
	return export(ctx, from, o, func() (writer, error) { return newTarWriter(out), nil })
}

// writer writes an archive.
type writer interface {
	// has reports whether the archive has some content already.
	has(d digest.Digest, size int64) bool
	// write copies content. As many goroutines call it at once as concurrency returns.
	write(ctx context.Context, d digest.Digest, size int64, from io.Reader) error
	concurrency() int
	// begin and end get the items, before and after the content is written. changed reports whether items are missing
	// at the end because they could not be copied.
	begin(all v1.Index) error
	end(all v1.Index, changed bool) error
	// prune deletes all content but keep.
	prune(keep map[digest.Digest]struct{}) error
}

// heldManifest is a manifest in one repository.
type heldManifest struct {
	storage.HeldManifest
	blobs    []digest.Digest // of Refs, those that the repository holds as blobs
	children []digest.Digest // of Refs, those that it holds as manifests
}

// outgoing is an item to export, with the manifests of its repository, among which are its children.
type outgoing struct {
	item
	repo      string // here
	name      string // of the repository in the archive; empty: repo
	manifests map[digest.Digest]*heldManifest
	lost      bool // it could not be copied
}

// named returns the item's name in the archive.
func (i *outgoing) named() string { return i.item.name(cmp.Or(i.name, i.repo)) }

type exporter struct {
	counter
	from  remote
	to    writer
	have  func(digest.Digest) bool
	sizes map[digest.Digest]int64 // of blobs; its keys are also the one copy of each digest's text in memory
	items []*outgoing
	keep  map[digest.Digest]struct{} // the content of the archive; guarded by counter.mu
	asked bool                       // the items were asked for one by one, so each must be there
}

func export(ctx context.Context, from *client.Client, o ExportOptions, open func() (writer, error)) (Progress, error) {
	e := newExporter(from, o)
	return e.end("exported", e.run(ctx, e.listAll, open, o.Prune))
}

func newExporter(from *client.Client, o ExportOptions) *exporter {
	e := &exporter{counter: counter{options: o.Options}, from: remote{from}, have: o.Have,
		sizes: map[digest.Digest]int64{}, keep: map[digest.Digest]struct{}{}}
	if e.have == nil {
		e.have = func(digest.Digest) bool { return false }
	}
	return e
}

// listAll lists what the registry holds.
func (e *exporter) listAll(ctx context.Context) error {
	return e.from.repositories(ctx, func(h storage.Holdings) error {
		if e.options.matches(h.Repo) {
			e.list(h)
		}
		return nil
	})
}

func (e *exporter) run(ctx context.Context, list func(context.Context) error, open func() (writer, error),
	prune bool) error {
	if err := list(ctx); err != nil {
		return err
	}
	// Of an empty registry, an empty archive is right; an empty answer to a question is a typing error.
	if len(e.items) == 0 && (e.options.Match != nil || e.asked) {
		return e.errEmpty("exported")
	}
	// Only now: an export from a server that does not answer leaves no directory behind.
	var err error
	if e.to, err = open(); err != nil {
		return err
	}
	e.add(func(p *Progress) { p.TotalItems += len(e.items) })
	if err := e.to.begin(e.index()); err != nil {
		return err
	}
	for _, i := range e.items {
		if err := e.report(i.named(), e.copyItem(ctx, i)); err != nil {
			return err
		}
		e.add(func(p *Progress) { p.Items++ })
	}
	// Prune comes last: until the new index is durable, the old one may still name what prune deletes.
	if err := e.to.end(e.index(), e.now.Gone+e.now.Problems > 0); err != nil || !prune {
		return err
	}
	return e.to.prune(e.keep)
}

// list adds the items of a repository: every tag, and every untagged manifest that is not a child of an index, in the
// order of their times.
func (e *exporter) list(h storage.Holdings) {
	blobs := map[digest.Digest]digest.Digest{}
	for _, b := range h.Blobs {
		e.sizes[b.Digest] = b.Size
		blobs[b.Digest] = b.Digest
	}
	manifests, isChild := map[digest.Digest]*heldManifest{}, map[digest.Digest]bool{}
	for _, m := range h.Manifests {
		manifests[m.Digest] = &heldManifest{HeldManifest: m}
	}
	for _, m := range manifests {
		for _, ref := range m.Refs {
			if child := manifests[ref]; child != nil {
				m.children = append(m.children, child.Digest)
				isChild[ref] = true
			} else if b, ok := blobs[ref]; ok {
				m.blobs = append(m.blobs, b)
			}
		}
		m.Refs = nil // each is a string of its own; blobs and children share theirs
	}
	type timed struct {
		*outgoing
		time int64 // Unix nanoseconds, as [storage.HeldTag.Position]
	}
	var all []timed
	for _, m := range h.Manifests {
		desc := v1.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}
		for _, tag := range m.Tags {
			all = append(all, timed{&outgoing{item: item{desc: desc, tag: tag.Name}, repo: h.Repo,
				manifests: manifests}, tag.Position()})
		}
		if len(m.Tags) == 0 && !isChild[m.Digest] {
			all = append(all, timed{&outgoing{item: item{desc: desc}, repo: h.Repo, manifests: manifests},
				m.Time * int64(time.Second)})
		}
	}
	slices.SortFunc(all, func(a, b timed) int {
		return cmp.Or(cmp.Compare(a.time, b.time), cmp.Compare(a.tag, b.tag), cmp.Compare(a.desc.Digest, b.desc.Digest))
	})
	for _, t := range all {
		e.items = append(e.items, t.outgoing)
	}
}

// index returns index.json, without the items that could not be copied.
func (e *exporter) index() v1.Index {
	all := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{}}
	for _, i := range e.items {
		if i.lost {
			continue
		}
		desc := i.desc
		desc.Annotations = map[string]string{AnnotationRepository: cmp.Or(i.name, i.repo)}
		if i.host != "" {
			desc.Annotations[AnnotationNamespace] = i.host
		}
		if i.tag != "" {
			desc.Annotations[v1.AnnotationRefName] = i.named()
		}
		all.Manifests = append(all.Manifests, desc)
	}
	return all
}

// parts returns the digests of everything that an item consists of: its manifests, from the top, and their blobs.
func (i *outgoing) parts() (manifests, blobs []digest.Digest) {
	manifests = []digest.Digest{i.desc.Digest}
	seen := map[digest.Digest]bool{i.desc.Digest: true}
	addNew := func(to []digest.Digest, all []digest.Digest) []digest.Digest {
		for _, d := range all {
			if !seen[d] {
				seen[d] = true
				to = append(to, d)
			}
		}
		return to
	}
	for n := 0; n < len(manifests); n++ { // manifests grows in the loop
		m := i.manifests[manifests[n]]
		manifests = addNew(manifests, m.children)
		blobs = addNew(blobs, m.blobs)
	}
	return manifests, blobs
}

// copyItem copies everything that an item consists of. The manifests come first, because the import of a tar learns
// from them which item needs a blob.
func (e *exporter) copyItem(ctx context.Context, i *outgoing) error {
	manifests, blobs := i.parts()
	for _, d := range manifests {
		if err := e.copy(ctx, i.repo, manifestKind, d, i.manifests[d].Size); err != nil {
			return e.lost(ctx, i, err)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(e.to.concurrency())
	for _, d := range blobs {
		g.Go(func() error { return e.copy(gctx, i.repo, blobKind, d, e.sizes[d]) })
	}
	if err := g.Wait(); err != nil {
		return e.lost(ctx, i, err)
	}
	return nil
}

// lost leaves out an item that could not be copied. If it was deleted meanwhile, that is not a problem.
func (e *exporter) lost(ctx context.Context, i *outgoing, err error) error {
	if i.lost = missing(err) || isProblem(err); !missing(err) {
		return err
	}
	held, herr := e.from.holds(ctx, i.repo, i.desc.Digest)
	if herr != nil {
		return herr
	}
	if !held && e.asked {
		return problemf("it was deleted, or evicted from the cache, during the export; run it again: %w", err)
	}
	if !held {
		e.add(func(p *Progress) { p.Gone++ })
		return nil
	}
	return problemf("the registry lacks a part of it; run trow scrub to look for damage: %w", err)
}

// copy copies one blob or manifest, unless the archive has it.
func (e *exporter) copy(ctx context.Context, repo string, k kind, d digest.Digest, size int64) error {
	e.mu.Lock()
	_, copied := e.keep[d]
	e.mu.Unlock()
	if copied {
		return nil
	}
	if e.to.has(d, size) || k == blobKind && e.have(d) {
		e.add(func(p *Progress) { p.Present++; e.keep[d] = struct{}{} })
		return nil
	}
	in, err := e.from.get(ctx, repo, k, d, size)
	if err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	defer in.Close()
	if err := e.to.write(ctx, d, size, in); err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	e.add(func(p *Progress) {
		e.keep[d] = struct{}{}
		p.Bytes += size
		if k == blobKind {
			p.Blobs++
		} else {
			p.Manifests++
		}
	})
	return nil
}
