package archive

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"trow/registry"
	"trow/registry/client"
	"trow/registry/inventory"
	"trow/registry/namespace"
	"trow/registry/ocierror"
	"trow/registry/platform"
	"trow/storage"
)

// ImportOptions say what is imported from an archive, and under which names.
type ImportOptions struct {
	Options
	// As is the destination of the items of a plain layout, which names no repositories: repository, or repository:tag
	// if the layout has exactly one item.
	As string
	// KeepTags does not move tags that exist.
	KeepTags bool
	// Temp is a directory for a temporary file with the manifests of a tar.
	Temp string
	// Form is called with the form of the archive. Optional.
	Form func(name string)
}

// Import copies an archive into a running registry: a directory of any form, or the tar file of a layout, which may be
// compressed with gzip. Errors: it has none of the forms; those of the file system and of the registry; that there were
// problems, after everything else was copied.
func Import(ctx context.Context, to *client.Client, name string, o ImportOptions) (Progress, error) {
	i, err := newImporter(to, o)
	if err != nil {
		return Progress{}, err
	}
	info, err := os.Stat(name)
	if err != nil {
		return Progress{}, err
	}
	if !info.IsDir() {
		f, err := os.Open(name)
		if err != nil {
			return Progress{}, err
		}
		defer f.Close()
		return i.run(ctx, func() error {
			err := i.tar(ctx, f, func() (io.Reader, error) {
				_, err := f.Seek(0, io.SeekStart)
				return f, err
			})
			if errors.Is(err, errDockerPipe) {
				err = i.savedTar(ctx, f)
			}
			return err
		})
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return Progress{}, err
	}
	defer root.Close()
	return i.run(ctx, func() error { return i.directory(ctx, root) })
}

// ImportTar is [Import] from a tar stream.
func ImportTar(ctx context.Context, to *client.Client, in io.Reader, o ImportOptions) (Progress, error) {
	i, err := newImporter(to, o)
	if err != nil {
		return Progress{}, err
	}
	return i.run(ctx, func() error { return i.tar(ctx, in, nil) })
}

// source is where an import reads content. Errors of open: fs.ErrNotExist; problems.
type source interface {
	open(repo string, d digest.Digest) (in io.ReadCloser, size int64, err error)
}

// incoming has the items of a repository in the order in which they are pushed.
type incoming struct {
	repo  string
	host  string // see item
	items []item
}

func (r incoming) place() string { return item{host: r.host}.place(r.repo) }

type importer struct {
	counter
	to      remote
	o       ImportOptions
	as, tag string // the parts of o.As
	// sparse accepts an index of which the archive has only some manifests: when nothing of the archive is still to
	// come.
	sparse bool

	copies    bool   // from another registry, so that the destination may be one without an API for referrers
	mountFrom string // repository of the destination that has the blobs; empty: not known
}

func newImporter(to *client.Client, o ImportOptions) (*importer, error) {
	i := &importer{counter: counter{options: o.Options}, to: remote{to}, o: o}
	i.as, i.tag, _ = strings.Cut(o.As, ":")
	if o.As != "" && !registry.ValidName(i.as) || i.tag != "" && !namespace.ValidTag(i.tag) {
		return nil, fmt.Errorf("as: %.150q is not a valid repository or repository:tag", o.As)
	}
	return i, nil
}

func (i *importer) directory(ctx context.Context, root *os.Root) error {
	f, err := i.detectForm(root)
	if err != nil {
		return err
	}
	return i.form(ctx, f)
}

// savedTar imports the tar file of docker save before Docker 25.
func (i *importer) savedTar(ctx context.Context, f *os.File) error {
	var head [2]byte
	if _, err := f.ReadAt(head[:], 0); err == nil && bytes.Equal(head[:], gzipMagic) {
		return errDockerCompressed
	}
	m, err := readMembers(f)
	if err != nil {
		return err
	}
	return i.form(ctx, newSaved(i, m))
}

func (i *importer) form(ctx context.Context, f form) error {
	if i.o.Form != nil {
		i.o.Form(f.name())
	}
	all, err := f.list()
	if err != nil {
		return err
	}
	if err := i.setTotal(all); err != nil {
		return err
	}
	i.sparse = true
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, r := range all {
		if i.options.matches(r.place()) {
			g.Go(func() error { return i.repository(ctx, f, r) })
		}
	}
	return g.Wait()
}

// setTotal sets the number of items to import. Error: all is empty.
func (i *importer) setTotal(all []incoming) error {
	total := 0
	for _, r := range all {
		if i.options.matches(r.place()) {
			total += len(r.items)
		}
	}
	i.add(func(p *Progress) { p.TotalItems = total })
	if total == 0 {
		return i.errEmpty("imported")
	}
	return nil
}

// repository imports the items of a repository one after the other, so that their order is kept.
func (i *importer) repository(ctx context.Context, from source, r incoming) error {
	for _, it := range r.items {
		if err := i.report(it.name(r.repo), i.item(ctx, from, r.repo, it)); err != nil {
			return err
		}
		i.add(func(p *Progress) { p.Items++ })
	}
	return nil
}

// item pushes an item and everything that it consists of. The tag comes last, so that it never names a manifest that is
// incomplete.
func (i *importer) item(ctx context.Context, from source, repo string, it item) error {
	if err := checkName(repo); err != nil {
		return err
	}
	if it.host != "" {
		if _, err := namespace.Parse(it.host, repo); err != nil {
			return problem{err}
		}
	}
	if it.tag != "" && !namespace.ValidTag(it.tag) {
		return problemf("%.150q is not a valid tag", it.tag)
	}
	if it.desc.Digest == "" {
		return problemf("it has no digest; in a data directory of Distribution, the link of the tag is missing or " +
			"empty")
	}
	ctx = it.at(ctx, repo)
	body, desc, err := i.manifest(ctx, from, repo, it.desc, map[digest.Digest]bool{})
	if err != nil || it.tag == "" {
		return err
	}
	now, err := i.to.manifest(ctx, repo, it.tag)
	switch {
	case err != nil:
		return err
	case now == desc.Digest:
		return nil
	case now != "" && i.o.KeepTags:
		i.add(func(p *Progress) { p.Kept++ })
		return nil
	}
	return pushed(i.to.PushManifest(ctx, repo, it.tag, desc, body))
}

// checkName keeps names of an archive that are not valid out of URLs.
func checkName(repo string) error {
	if !registry.ValidName(repo) {
		return problemf("%.150q is not a valid repository", repo)
	}
	return nil
}

// pushed makes a problem of an error with which the registry refused some content.
func pushed(err error) error {
	if refused(err) {
		return problem{err}
	}
	return err
}

// manifest pushes a manifest after everything that it consists of. done has the children that were pushed already. It
// returns the descriptor with the media type under which the manifest was pushed.
func (i *importer) manifest(ctx context.Context, from source, repo string, desc v1.Descriptor,
	done map[digest.Digest]bool) ([]byte, v1.Descriptor, error) {
	if _, err := storage.ParseDigest(desc.Digest.String()); err != nil {
		return nil, desc, problem{err}
	}
	body, err := readManifest(from, repo, desc.Digest)
	if missing(err) {
		err = i.absent(errNotAtSource)
	}
	if err != nil {
		return nil, desc, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	var c inventory.Parts
	_ = json.Unmarshal(body, &c) // without JSON it has no parts, and the registry decides whether to accept it
	if desc.MediaType, err = mediaType(desc.MediaType, c, body); err != nil {
		return nil, desc, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	if err := i.children(ctx, from, repo, desc.Digest, c.Manifests, done); err != nil {
		return nil, desc, err
	}
	now, err := i.to.manifest(ctx, repo, desc.Digest.String())
	if err != nil {
		return nil, desc, err
	}
	// Then the repository holds its blobs too: the registry accepts no incomplete manifest. But below f/ it may be a
	// cached one, without its blobs, until it is pushed.
	if now != "" && !client.IsOnlyHeld(ctx) {
		i.add(func(p *Progress) { p.Present++ })
		return body, desc, nil
	}
	if err := i.blobs(ctx, from, repo, c.NotManifests()); err != nil {
		return nil, desc, err
	}
	if i.copies && c.Subject != nil {
		desc.Size = int64(len(body)) // a referrer's descriptor may come without one
		err = i.to.PushReferrer(ctx, repo, desc, body)
	} else {
		err = i.to.PushManifest(ctx, repo, "", desc, body)
	}
	if err := pushed(err); err != nil {
		return nil, desc, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	i.add(func(p *Progress) { p.Manifests++; p.Bytes += int64(len(body)) })
	return body, desc, nil
}

// children pushes the manifests of an index. Those that are neither in the archive nor in the registry are left out,
// with a note, if others are there: an image that was saved for one of its platforms keeps its digest and its tag.
func (i *importer) children(ctx context.Context, from source, repo string, index digest.Digest, all []v1.Descriptor,
	done map[digest.Digest]bool) error {
	var absent []string
	var why error
	here := 0
	for _, child := range all {
		if done[child.Digest] {
			here++
			continue
		}
		_, _, err := i.manifest(ctx, from, repo, child, done)
		if errors.Is(err, errNotInArchive) || errors.Is(err, errNotAtSource) {
			now, herr := i.to.manifest(ctx, repo, child.Digest.String())
			if herr != nil {
				return herr
			}
			if now == "" {
				absent, why = append(absent, platformOf(child)), cmp.Or(why, err)
				continue
			}
			err = nil
		}
		if err != nil {
			return err
		}
		done[child.Digest] = true
		here++
	}
	if len(absent) == 0 {
		return nil
	}
	if !i.sparse || here == 0 {
		return why
	}
	where := "in the archive"
	if i.copies {
		where = "at the source"
	}
	name := item{desc: v1.Descriptor{Digest: index}, host: client.NamespaceOf(ctx)}.name(repo)
	i.note(fmt.Sprintf("%s: not %s, and so not here: %s", name, where, strings.Join(absent, ", ")))
	return nil
}

// platformOf names a manifest of an index for people: os/architecture[/variant], or its digest.
func platformOf(d v1.Descriptor) string {
	if platform.Known(d.Platform) {
		return platform.Text(d.Platform)
	}
	return d.Digest.String()
}

// mediaType returns the media type of a manifest: that of its descriptor, or that in the manifest, or what it looks
// like.
func mediaType(known string, c inventory.Parts, body []byte) (string, error) {
	if c.SchemaVersion == 1 {
		return "", problemf("Docker's schema 1 is not supported; pull the image and push it again with a current " +
			"client")
	}
	if known != "" {
		return known, nil
	}
	if c.MediaType != "" {
		return c.MediaType, nil
	}
	if m, ok := registry.ReadManifest(body); ok {
		return m.MediaType, nil
	}
	return "", problemf("it has no media type, and its form is not that of a known one")
}

// readManifest reads a manifest and compares it with its digest. Errors: fs.ErrNotExist among them.
func readManifest(from source, repo string, d digest.Digest) ([]byte, error) {
	in, size, err := from.open(repo, d)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if size > maxManifest {
		return nil, problemf("it has %d bytes; a manifest has at most %d", size, maxManifest)
	}
	var body bytes.Buffer
	if _, err := body.ReadFrom(verify(in, d, size)); err != nil {
		return nil, err
	}
	return body.Bytes(), nil
}

var (
	errNotInArchive = problemf("the archive does not have it")
	errNotAtSource  = problemf("the source does not have it; its registry may have found it damaged, or has only a " +
		"part of the image")
	// A registry with a manifest has what it consists of, while an archive may have manifests of platforms that were
	// not saved.
	errLostAtSource = problemf("the source does not have it, and has the manifest that needs it; its registry may " +
		"have found it damaged")
)

// absent is the error of content that is not where it is read from: atSource if that is a registry.
func (i *importer) absent(atSource error) error {
	if i.copies {
		return atSource
	}
	return errNotInArchive
}

// damaged is the error of content that the source has with other bytes.
func (i *importer) damaged() error {
	if i.copies {
		return problemf("the source sends other bytes, which do not match the digest")
	}
	return problemf("the archive has other bytes, which do not match the digest; make it again")
}

// blobs pushes the blobs of a manifest.
func (i *importer) blobs(ctx context.Context, from source, repo string, all []v1.Descriptor) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	seen := map[digest.Digest]bool{}
	for _, desc := range all {
		if seen[desc.Digest] {
			continue
		}
		seen[desc.Digest] = true
		g.Go(func() error {
			err := i.blob(ctx, repo, desc.Digest, func() (io.ReadCloser, int64, error) {
				return from.open(repo, desc.Digest)
			})
			if missing(err) && isForeign(desc) {
				return nil
			}
			if missing(err) {
				err = i.absent(errLostAtSource)
			}
			if err != nil {
				return fmt.Errorf("blob %s: %w", desc.Digest, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// isForeign reports whether content need not be in a registry (image spec, "Non-Distributable Layers").
func isForeign(d v1.Descriptor) bool {
	return len(d.URLs) > 0 ||
		strings.Contains(d.MediaType, ".nondistributable.") || strings.Contains(d.MediaType, ".foreign.")
}

// blob makes a repository hold a blob. Errors: fs.ErrNotExist if neither the archive nor the registry has it.
func (i *importer) blob(ctx context.Context, repo string, d digest.Digest, open client.Open) error {
	if _, err := storage.ParseDigest(d.String()); err != nil {
		return problem{err}
	}
	if err := checkName(repo); err != nil {
		return err
	}
	held, err := i.to.hasBlob(ctx, repo, d)
	if err != nil {
		return err
	}
	if held {
		i.add(func(p *Progress) { p.Present++ })
		return nil
	}
	sent, err := i.to.PushBlobFrom(ctx, repo, i.mountFrom, d, open)
	if err != nil {
		if missing(err) {
			return err
		}
		if e, ok := errors.AsType[*client.Error](err); ok && e.Code == ocierror.DigestInvalid {
			return i.damaged() // it was sent as it is there, so that to push it again would not help
		}
		return pushed(err)
	}
	i.add(func(p *Progress) { p.Blobs++; p.Bytes += sent })
	return nil
}

// readIndex reads an index.json.
func readIndex(in io.Reader) (v1.Index, error) {
	var all v1.Index
	limited := &io.LimitedReader{R: in, N: maxIndex}
	err := json.NewDecoder(limited).Decode(&all)
	if limited.N <= 0 {
		return all, fmt.Errorf("%s has more than %d bytes", indexFile, maxIndex)
	}
	if err != nil {
		return all, fmt.Errorf("%s is not a valid image index: %w", indexFile, err)
	}
	return all, nil
}

var errAs = errors.New("this layout does not name the repositories of its manifests; " +
	"name one with --as repository, or --as repository:tag")

// group returns the entries of an index by repository. An archive of ours names repository and tag of each; a plain
// layout has only tags, and all of its entries go into one repository.
func (i *importer) group(all v1.Index) ([]incoming, error) {
	var repos []incoming
	at := map[string]int{}
	for _, entry := range all.Manifests {
		it := item{desc: v1.Descriptor{MediaType: entry.MediaType, Digest: entry.Digest, Size: entry.Size}}
		repo, ours := entry.Annotations[AnnotationRepository]
		it.host = entry.Annotations[AnnotationNamespace]
		name := entry.Annotations[v1.AnnotationRefName]
		if ours {
			it.tag = strings.TrimPrefix(name, it.place(repo)+":")
		} else {
			it.host = "" // of another program, which does not know the annotation
			if repo = i.as; repo == "" {
				return nil, errAs
			}
			it.tag = name[strings.LastIndexByte(name, ':')+1:] // some tools write the whole name of the image
		}
		key := it.host + " " + repo // no name has a space
		n, ok := at[key]
		if !ok {
			n, at[key] = len(repos), len(repos)
			repos = append(repos, incoming{repo: repo, host: it.host})
		}
		repos[n].items = append(repos[n].items, it)
	}
	if i.tag != "" {
		if len(all.Manifests) != 1 {
			return nil, fmt.Errorf("as: a tag needs an archive with one manifest, and this one has %d",
				len(all.Manifests))
		}
		repos[0].items[0].tag = i.tag
	}
	if i.as != "" && slices.ContainsFunc(repos, func(r incoming) bool { return r.repo != i.as }) {
		return nil, errors.New("as: this archive names the repositories of its manifests; omit --as")
	}
	return repos, nil
}
