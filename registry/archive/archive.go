// Package archive exports a running registry into an archive, and imports archives and the data directories of other
// registries into a running registry: for backups, and for migrations. It also copies images from one running registry
// to another.
//
// # Words
//
//   - archive: an OCI image layout (image spec, "OCI Image Layout Specification") that also records which repository
//     each manifest belongs to, which a layout does not. It is a directory, or the tar of one.
//   - item: a manifest of a repository, with the tag that names it, or without.
//   - problem: an error that keeps one item from being copied. The other items are copied all the same.
//   - form: what kind of archive it is: ours, a plain layout, the data directory of Distribution or of zot.
//
// # The archive
//
// Each entry of index.json is an item, with the annotation [AnnotationRepository] and, for a tag, the image spec's
// org.opencontainers.image.ref.name with the value repository:tag, so that skopeo and similar tools find it. An image
// of another registry has the name that it has there, with [AnnotationNamespace], and host/repository:tag: what it is
// called below f/ is a setting of each registry, so an import leaves that to the destination. The items
// of a repository are in the order in which they were pushed, tags in that in which they were set. Children of an index
// have no entry of their own. In a tar, index.json comes first, then for each item its manifests and then its blobs, so
// that an import needs neither a second pass nor much disk space. If content disappeared during the export, a second
// index.json follows; as always in a tar, the later file wins.
//
// # Invariants
//
//   - Bytes enter an archive only if they match their digest, and index.json names only items that are complete.
//   - Whenever an export stops, a directory holds the complete archive of this export or of the previous one. The next
//     export does not copy again what is there.
//   - An import pushes blobs before manifests, children before an index, and a tag when everything that it needs is
//     there. Run again, it continues where it stopped.
//   - The tags of a repository are set in the order in which they were set where they come from, the oldest first:
//     retention keeps the newest. Where that order is not known, it is that of the names.
//   - No text in an archive leads to a file outside of it, or to a URL outside of /v2/.
//   - Memory grows with the number of manifests and blobs, never with their size.
//
// # What it does not do
//
// It does not export blobs that no manifest refers to. It keeps the order of times, not the times: after an import all
// content is new. It does not import Docker's schema 1 manifests, nor what docker save of Docker before 1.10 wrote.
package archive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/client"
	"trow/registry/namespace"
)

// Annotations of the entries of index.json.
const (
	// AnnotationRepository names an item's repository.
	AnnotationRepository = "io.trow.repository"
	// AnnotationNamespace is the host of the registry, as images name it, in which that is its name; without it, the
	// item is one of the registry that was exported.
	AnnotationNamespace = "io.trow.namespace"
)

// The names in a layout (image spec, "OCI Image Layout Specification").
const (
	layoutFile = v1.ImageLayoutFile
	indexFile  = v1.ImageIndexFile
	blobsDir   = v1.ImageBlobsDir
)

// algorithms are the digest algorithms whose content a layout may hold; each has a directory below blobsDir.
var algorithms = []digest.Algorithm{digest.SHA256, digest.SHA512}

const (
	// maxManifest is the largest content that may be a manifest: the limit of the registry.
	maxManifest = 4 << 20
	// maxIndex bounds index.json. A million tags take 400 MiB.
	maxIndex = 1 << 30
	// parallel is the number of simultaneous copies. More do not help: the disk or the network is the limit.
	parallel = 4
)

// Progress is how far a copy has come. Totals that are not known yet are 0.
type Progress struct {
	Items, TotalItems int
	Manifests, Blobs  int   // copied
	Bytes             int64 // copied
	Read              int64 // by a copy between registries, also of blobs under way
	Present           int   // manifests and blobs that did not have to be copied
	Gone              int   // items that were deleted during the export
	Kept              int   // tags that were not moved, because of KeepTags
	Problems          int
}

// Options are what an export and an import have in common. Every field is optional.
type Options struct {
	Match    func(repo string) bool // selects repositories; nil: all
	Progress func(Progress)         // called about once a second
	Problem  func(text string)      // called with each problem
	Note     func(text string)      // called with what is left out of an item and is not a problem
}

func (o *Options) matches(repo string) bool { return o.Match == nil || o.Match(repo) }

// A problem is an error that concerns one item alone.
type problem struct{ error }

func (p problem) Unwrap() error { return p.error }

func problemf(format string, args ...any) error { return problem{fmt.Errorf(format, args...)} }

func isProblem(err error) bool {
	var p problem
	return errors.As(err, &p)
}

// counter counts what is copied and reports it. It is safe for concurrent use.
type counter struct {
	options      Options
	mu           sync.Mutex // guards the fields below
	now          Progress
	lastReported time.Time
}

// add changes the counts.
func (c *counter) add(change func(*Progress)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.now)
	if c.lastReported.IsZero() {
		c.lastReported = time.Now()
	}
	if c.options.Progress != nil && time.Since(c.lastReported) >= time.Second {
		c.lastReported = time.Now()
		c.options.Progress(c.now)
	}
}

// report reports a problem and returns nil, so that the copy continues. It returns any other error.
func (c *counter) report(where string, err error) error {
	if err == nil || !isProblem(err) {
		return err
	}
	c.add(func(n *Progress) { n.Problems++ })
	if c.options.Problem != nil {
		c.options.Problem(where + ": " + err.Error())
	}
	return nil
}

// note reports what is left out of an item, which is not a problem.
func (c *counter) note(text string) {
	c.mu.Lock() // an import has several items at once
	defer c.mu.Unlock()
	if c.options.Note != nil {
		c.options.Note(text)
	}
}

// errEmpty says that there was nothing to copy, where somebody expected something.
func (c *counter) errEmpty(what string) error {
	if c.options.Match != nil {
		return fmt.Errorf("nothing was %s: no selected repository has a manifest or tag", what)
	}
	return fmt.Errorf("nothing was %s: the source has no manifest or tag", what)
}

// end returns the outcome of a copy. Errors: err; that there were problems.
func (c *counter) end(verb string, err error) (Progress, error) {
	if err == nil && c.now.Problems > 0 {
		err = fmt.Errorf("%d of %d manifests and tags could not be %s", c.now.Problems, c.now.TotalItems, verb)
	}
	return c.now, err
}

// item is a manifest of a repository.
type item struct {
	desc v1.Descriptor // without annotations
	tag  string        // empty: named by its digest alone
	host string        // of another registry, in which the repository is; empty: it is one of this registry
}

// place returns the repository with its host, if it is one of another registry.
func (i item) place(repo string) string {
	if i.host == "" {
		return repo
	}
	return i.host + "/" + repo
}

func (i item) name(repo string) string {
	if i.tag == "" {
		return i.place(repo) + "@" + i.desc.Digest.String()
	}
	return i.place(repo) + ":" + i.tag
}

// at returns the context for requests about the item to a registry that is to hold it. What a registry that has an
// upstream for the repository answers says nothing about what it holds, unless it is asked for that alone.
func (i item) at(ctx context.Context, repo string) context.Context {
	if i.host != "" {
		return client.OnlyHeld(client.ForNamespace(ctx, i.host))
	}
	if namespace.Within(repo) {
		return client.OnlyHeld(ctx)
	}
	return ctx
}

// blobPath returns the path of content in a layout.
func blobPath(d digest.Digest) string {
	return blobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// missing reports whether err says that an archive or a registry does not have some content.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
