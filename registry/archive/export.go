package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

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
	// Have tells what need not go in, because an earlier archive has it: see [Have]. Manifests always go in.
	Have func(d digest.Digest) bool
	// Prune takes out of a directory what the registry does not hold any more.
	Prune bool
}

// Export copies a running registry into a directory, which is made if it is not there. If an archive is there, only
// what is new is copied. Errors: the directory holds other things; those of the file system and of the registry; that
// there were problems, after everything else was copied.
func Export(ctx context.Context, from *client.Client, dir string, o ExportOptions) (Progress, error) {
	w, err := openDirectory(dir)
	if err != nil {
		return Progress{}, err
	}
	defer w.root.Close()
	return export(ctx, from, w, o)
}

// ExportTar is Export as a tar stream, which has everything.
func ExportTar(ctx context.Context, from *client.Client, out io.Writer, o ExportOptions) (Progress, error) {
	return export(ctx, from, newTarWriter(out), o)
}

// writer is an archive in the making.
type writer interface {
	// has tells whether content is there already.
	has(d digest.Digest, size int64) bool
	// write copies content. It is called at once from as many goroutines as concurrency says.
	write(ctx context.Context, d digest.Digest, size int64, from io.Reader) error
	concurrency() int
	// begin and end get the items; those of end are fewer if some could not be copied (changed).
	begin(all v1.Index) error
	end(all v1.Index, changed bool) error
	// prune takes away all but what is kept.
	prune(keep map[digest.Digest]struct{}) error
}

// held is a manifest that the registry holds in one repository.
type held struct {
	storage.HeldManifest
	blobs    []digest.Digest // of Refs, what the repository holds as a blob
	children []digest.Digest // of Refs, what it holds as a manifest
}

// outgoing is an item to export, with the repository's manifests in which it finds its parts.
type outgoing struct {
	item
	repo  string
	parts map[digest.Digest]*held
	lost  bool
}

type exporter struct {
	tally
	from  remote
	to    writer
	have  func(digest.Digest) bool
	sizes map[digest.Digest]int64 // of blobs; also what makes one string of all copies of a digest
	items []*outgoing
	keep  map[digest.Digest]struct{} // what is in the archive
}

func export(ctx context.Context, from *client.Client, to writer, o ExportOptions) (Progress, error) {
	e := &exporter{tally: tally{options: o.Options}, from: remote{from}, to: to, have: o.Have,
		sizes: map[digest.Digest]int64{}, keep: map[digest.Digest]struct{}{}}
	if e.have == nil {
		e.have = func(digest.Digest) bool { return false }
	}
	return e.end("exported", e.run(ctx, o.Prune))
}

func (e *exporter) run(ctx context.Context, prune bool) error {
	err := e.from.repositories(ctx, func(h storage.Holdings) error {
		if e.options.matches(h.Repo) {
			e.list(h)
		}
		return nil
	})
	if err != nil {
		return err
	}
	e.add(func(p *Progress) { p.TotalItems = len(e.items) })
	if err := e.to.begin(e.index()); err != nil {
		return err
	}
	for _, i := range e.items {
		if err := e.note(i.name(i.repo), e.item(ctx, i)); err != nil {
			return err
		}
		e.add(func(p *Progress) { p.Items++ })
	}
	if err := e.to.end(e.index(), e.now.Gone+e.now.Problems > 0); err != nil || !prune {
		return err
	}
	return e.to.prune(e.keep)
}

// list takes up the items of a repository: every tag, and the untagged manifests that no index has as a child, in the
// order of their times.
func (e *exporter) list(h storage.Holdings) {
	blobs := map[digest.Digest]digest.Digest{}
	for _, b := range h.Blobs {
		e.sizes[b.Digest] = b.Size
		blobs[b.Digest] = b.Digest
	}
	parts, isChild := map[digest.Digest]*held{}, map[digest.Digest]bool{}
	for _, m := range h.Manifests {
		parts[m.Digest] = &held{HeldManifest: m}
	}
	for _, m := range parts {
		for _, ref := range m.Refs {
			if child := parts[ref]; child != nil {
				m.children = append(m.children, child.Digest)
				isChild[ref] = true
			} else if b, ok := blobs[ref]; ok {
				m.blobs = append(m.blobs, b)
			}
		}
		m.Refs = nil
	}
	type timed struct {
		*outgoing
		time int64
	}
	var all []timed
	for _, m := range h.Manifests {
		desc := v1.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size}
		for _, tag := range m.Tags {
			all = append(all, timed{&outgoing{item: item{desc, tag.Name}, repo: h.Repo, parts: parts}, tag.Time})
		}
		if len(m.Tags) == 0 && !isChild[m.Digest] {
			all = append(all, timed{&outgoing{item: item{desc, ""}, repo: h.Repo, parts: parts}, m.Time})
		}
	}
	slices.SortFunc(all, func(a, b timed) int {
		return cmp.Or(cmp.Compare(a.time, b.time), cmp.Compare(a.tag, b.tag), cmp.Compare(a.desc.Digest, b.desc.Digest))
	})
	for _, t := range all {
		e.items = append(e.items, t.outgoing)
	}
}

// index is index.json for what has not been lost.
func (e *exporter) index() v1.Index {
	all := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{}}
	for _, i := range e.items {
		if i.lost {
			continue
		}
		desc := i.desc
		desc.Annotations = map[string]string{AnnotationRepository: i.repo}
		if i.tag != "" {
			desc.Annotations[v1.AnnotationRefName] = i.name(i.repo)
		}
		all.Manifests = append(all.Manifests, desc)
	}
	return all
}

// item copies all that an item consists of: its manifests from the top, then the blobs.
func (e *exporter) item(ctx context.Context, i *outgoing) error {
	manifests := []digest.Digest{i.desc.Digest}
	seen := map[digest.Digest]bool{i.desc.Digest: true}
	var blobs []digest.Digest
	for n := 0; n < len(manifests); n++ {
		m := i.parts[manifests[n]]
		for _, child := range m.children {
			if !seen[child] {
				seen[child] = true
				manifests = append(manifests, child)
			}
		}
		for _, b := range m.blobs {
			if !seen[b] {
				seen[b] = true
				blobs = append(blobs, b)
			}
		}
	}
	for _, d := range manifests {
		if err := e.copy(ctx, i.repo, manifestKind, d, i.parts[d].Size); err != nil {
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

// lost leaves an item out that could not be copied. That is no problem if it was deleted meanwhile.
func (e *exporter) lost(ctx context.Context, i *outgoing, err error) error {
	var p problem
	if i.lost = missing(err) || errors.As(err, &p); !missing(err) {
		return err
	}
	now, herr := e.from.manifest(ctx, i.repo, i.desc.Digest.String())
	if herr != nil {
		return herr
	}
	if now == "" {
		e.add(func(p *Progress) { p.Gone++ })
		return nil
	}
	return problemf("the registry lacks a part of it, maybe for damage that trow scrub tells of: %w", err)
}

// copy copies one blob or manifest, unless it is there already.
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
