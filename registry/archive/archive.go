// Package archive copies a running registry into an archive and archives into a running registry: for backups, and
// for those who come from somewhere else.
//
// # Words
//
//   - archive: an OCI image layout (image spec, "OCI Image Layout Specification") with what a registry has and a
//     layout has not: which repository a manifest belongs to. It is a directory, or the tar of one.
//   - item: a manifest of a repository, with the tag that it is known by or without.
//   - problem: what keeps one item from being copied. The others are copied all the same.
//   - form: how an archive lies there: ours, a plain layout, the data directory of Distribution or of zot.
//
// # The archive
//
// Each entry of index.json is an item, with the annotations [AnnotationRepository] and, for a tag, the image spec's
// org.opencontainers.image.ref.name, which is repository:tag, so that skopeo and its like find it. The items of a
// repository lie in the order in which they were pushed. Children of an index are not listed beside it. In a tar,
// index.json comes first, then for each item its manifests and then its blobs, so that an import needs neither a
// second pass nor space; if something went away while it was exported, another index.json follows, and as ever with
// tar the later one counts.
//
// # Invariants
//
//   - Bytes go into an archive only as what their digest says, and index.json names only what is whole.
//   - A directory is whole or of the export before, whenever an export is stopped; what was copied is not copied
//     again.
//   - An import pushes blobs before manifests, children before an index, and a tag when all of it is there. Run again,
//     it goes on where it was stopped.
//   - Nothing that stands in an archive leads to a file outside of it, nor to a URL outside of /v2/.
//   - Memory grows with the number of manifests and blobs, never with their size.
//
// # What it does not do
//
// Blobs that no manifest refers to are not exported. Times are not kept, only their order: ages begin anew with an
// import. Docker's manifests of schema 1 are not imported.
package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// AnnotationRepository names an item's repository in index.json.
const AnnotationRepository = "io.trow.repository"

// The names in a layout (image spec, "OCI Image Layout Specification").
const (
	layoutFile = v1.ImageLayoutFile
	indexFile  = v1.ImageIndexFile
	blobsDir   = v1.ImageBlobsDir
)

const (
	// maxManifest is the size up to which content may be a manifest: what the registry takes.
	maxManifest = 4 << 20
	// maxIndex bounds index.json: a million tags take 400 MiB.
	maxIndex = 1 << 30
	// parallel is how many copies are under way at once.
	parallel = 4
)

// Progress is how far a copy has come. Total numbers that are not known are 0.
type Progress struct {
	Items, TotalItems int
	Manifests, Blobs  int   // copied
	Bytes             int64 // copied
	Present           int   // manifests and blobs that were there already
	Gone              int   // items that were deleted while they were exported
	Kept              int   // tags that were left as they were, as asked
	Problems          int
}

// Options are what an export and an import have in common. Every field is optional.
type Options struct {
	Match    func(repo string) bool // which repositories; nil: all
	Progress func(Progress)         // called about once a second
	Problem  func(text string)      // called with each problem
}

func (o *Options) matches(repo string) bool { return o.Match == nil || o.Match(repo) }

// A problem is an error that concerns one item alone.
type problem struct{ error }

func (p problem) Unwrap() error { return p.error }

func problemf(format string, args ...any) error { return problem{fmt.Errorf(format, args...)} }

// tally counts, and tells about it.
type tally struct {
	options Options
	mu      sync.Mutex
	now     Progress
	told    time.Time
}

// add changes the figures.
func (t *tally) add(change func(*Progress)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.now)
	if t.told.IsZero() {
		t.told = time.Now()
	}
	if t.options.Progress != nil && time.Since(t.told) >= time.Second {
		t.told = time.Now()
		t.options.Progress(t.now)
	}
}

// note tells a problem and takes it for done; any other error is returned.
func (t *tally) note(where string, err error) error {
	var p problem
	if err == nil || !errors.As(err, &p) {
		return err
	}
	t.add(func(n *Progress) { n.Problems++ })
	if t.options.Problem != nil {
		t.options.Problem(where + ": " + err.Error())
	}
	return nil
}

// end is what a copy returns. Errors: err; that there were problems.
func (t *tally) end(verb string, err error) (Progress, error) {
	if err == nil && t.now.Problems > 0 {
		err = fmt.Errorf("%d of %d manifests and tags could not be %s; the rest is", t.now.Problems, t.now.TotalItems, verb)
	}
	return t.now, err
}

// item is a manifest of a repository.
type item struct {
	desc v1.Descriptor // without annotations
	tag  string        // empty: known by its digest
}

func (i item) name(repo string) string {
	if i.tag == "" {
		return repo + "@" + i.desc.Digest.String()
	}
	return repo + ":" + i.tag
}

// blobPath is where a layout has its content.
func blobPath(d digest.Digest) string {
	return blobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// missing tells that an archive has not what it should.
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
