package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/client"
	"trow/registry/inventory"
	"trow/registry/mirror"
	"trow/registry/platform"
	"trow/storage"
)

// Image is an image to export, which the registry holds or can fetch.
type Image struct {
	Repo   string        // here
	Host   string        // of its own registry, as images name it; empty: this one
	Name   string        // of its repository there
	Tag    string        // empty: it is named by its digest
	Digest digest.Digest // what Tag names
}

// ExportImages is [Export] of some images alone, with the signatures and other referrers that the registry holds of
// them. Of an index it exports the manifests for the platforms or, if platforms is nil, all that the registry holds.
func ExportImages(ctx context.Context, from *client.Client, dir string, images []Image, platforms []mirror.Platform,
	o ExportOptions) (Progress, error) {
	var w *directory
	defer func() {
		if w != nil {
			w.root.Close()
		}
	}()
	return exportImages(ctx, from, images, platforms, o, func() (_ writer, err error) {
		w, err = openDirectory(dir)
		return w, err
	})
}

// ExportImagesTar is [ExportImages] to a tar stream.
func ExportImagesTar(ctx context.Context, from *client.Client, out io.Writer, images []Image,
	platforms []mirror.Platform, o ExportOptions) (Progress, error) {
	return exportImages(ctx, from, images, platforms, o, func() (writer, error) { return newTarWriter(out), nil })
}

func exportImages(ctx context.Context, from *client.Client, images []Image, platforms []mirror.Platform,
	o ExportOptions, open func() (writer, error)) (Progress, error) {
	e := &imageExporter{exporter: newExporter(from, o), platforms: platforms,
		repos: map[string]map[digest.Digest]*heldManifest{}, listed: map[string]bool{}}
	e.asked = true
	list := func(ctx context.Context) error {
		for _, i := range images {
			err := e.image(ctx, i)
			if missing(err) {
				err = problemf("the registry does not hold it: %w", err)
			}
			if isProblem(err) {
				e.add(func(p *Progress) { p.TotalItems++ })
			}
			if err := e.report(item{desc: v1.Descriptor{Digest: i.Digest}, tag: i.Tag, host: i.Host}.name(i.Name),
				err); err != nil {
				return err
			}
		}
		return nil
	}
	return e.end("exported", e.run(ctx, list, open, o.Prune))
}

// imageExporter exports images that are named one by one. It reads their manifests, instead of a list of what the
// registry holds: a cache may evict what was listed, and fetches again what is read.
type imageExporter struct {
	*exporter
	platforms []mirror.Platform
	repos     map[string]map[digest.Digest]*heldManifest // the manifests that were read, by repository here
	listed    map[string]bool                            // names of items
}

// image adds the items of an image: itself, and then its referrers.
func (e *imageExporter) image(ctx context.Context, i Image) error {
	held := e.repos[i.Repo]
	if held == nil {
		held = map[digest.Digest]*heldManifest{}
		e.repos[i.Repo] = held
	}
	if _, err := e.manifest(ctx, i.Repo, i.Digest.String(), true); err != nil {
		return err
	}
	e.item(i, i.Tag, i.Digest)
	return e.referrers(ctx, i, i.Digest, map[digest.Digest]bool{})
}

// item adds an item, unless another image has added it.
func (e *imageExporter) item(i Image, tag string, d digest.Digest) {
	m := e.repos[i.Repo][d]
	o := &outgoing{item: item{desc: v1.Descriptor{MediaType: m.MediaType, Digest: d, Size: m.Size}, tag: tag,
		host: i.Host}, repo: i.Repo, name: i.Name, manifests: e.repos[i.Repo]}
	if name := o.named(); !e.listed[name] {
		e.listed[name] = true
		e.items = append(e.items, o)
	}
}

// manifest reads a manifest and, of an index, those of the platforms. selected says whether the platforms choose among
// the manifests of an index: they do not for what refers to an image, such as its signatures. It returns the manifest's
// digest.
func (e *imageExporter) manifest(ctx context.Context, repo, ref string, selected bool) (d digest.Digest, err error) {
	held := e.repos[repo]
	if _, known := held[digest.Digest(ref)]; known {
		return digest.Digest(ref), nil
	}
	m, desc, err := inventory.Fetch(ctx, e.from.Client, repo, ref)
	if bad := (*inventory.UnreadableError)(nil); errors.As(err, &bad) {
		return "", problem{err}
	} else if err != nil {
		return "", err
	}
	h := &heldManifest{HeldManifest: storage.HeldManifest{Digest: desc.Digest, MediaType: desc.MediaType,
		Size: desc.Size}}
	held[desc.Digest] = h
	defer func() {
		if err != nil { // an item must not have a part of it
		}
	}()
	for _, b := range m.NotManifests() {
		if isForeign(b) {
			here, err := e.from.hasBlob(client.OnlyHeld(ctx), repo, b.Digest)
			if err != nil {
				return "", err
			}
			if !here {
				continue // clients get it from elsewhere
			}
		}
		e.sizes[b.Digest] = b.Size
		h.blobs = append(h.blobs, b.Digest)
	}
	var others []string
	for _, c := range m.Manifests {
		if selected && c.Platform != nil && !platform.Wanted(e.platforms, *c.Platform) {
			others = append(others, platformOf(c))
			continue
		}
		_, err := e.manifest(ctx, repo, c.Digest.String(), selected)
		if missing(err) && (!selected || e.platforms == nil || c.Platform == nil) {
			e.note(fmt.Sprintf("%s@%s: not here, and so not exported: %s", repo, desc.Digest, platformOf(c)))
			continue
		}
		if err != nil {
			return "", err
		}
		h.children = append(h.children, c.Digest)
	}
	if len(h.children) == 0 && len(others) > 0 {
		delete(held, desc.Digest)
		return "", problemf("it is not for the wanted platforms; it has %s", strings.Join(others, ", "))
	}
	return desc.Digest, nil
}

// referrers adds what the registry holds that refers to a manifest, and to those of an index, and what cosign keeps
// under tags of its own.
func (e *imageExporter) referrers(ctx context.Context, i Image, subject digest.Digest,
	done map[digest.Digest]bool) error {
	if done[subject] {
		return nil
	}
	done[subject] = true
	ctx = client.OnlyHeld(ctx) // what the upstream has was fetched before, as far as it can be
	m := e.repos[i.Repo][subject]
	var found []digest.Digest
	err := e.from.Referrers(ctx, i.Repo, v1.Descriptor{MediaType: m.MediaType, Digest: m.Digest, Size: m.Size},
		func(page []v1.Descriptor) error {
			for _, r := range page {
				found = append(found, r.Digest)
			}
			return nil
		})
	if err != nil && !missing(err) {
		return fmt.Errorf("referrers of %s: %w", subject, err)
	}
	next := append([]digest.Digest(nil), m.children...)
	add := func(ref, tag string) error {
		d, err := e.manifest(ctx, i.Repo, ref, false)
		if missing(err) {
			return nil
		}
		if err == nil {
			e.item(i, tag, d)
			next = append(next, d)
		}
		return err
	}
	for _, d := range found {
		if err := add(d.String(), ""); err != nil {
			return fmt.Errorf("referrer %s: %w", d, err)
		}
	}
	for _, tag := range companionTags(subject) {
		if err := add(tag, tag); err != nil {
			return fmt.Errorf("%s: %w", tag, err)
		}
	}
	for _, d := range next {
		if err := e.referrers(ctx, i, d, done); err != nil {
			return err
		}
	}
	return nil
}
