package storage

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A copy of the facts lies beside the bytes, and has all facts that trow rebuild needs if the journal is lost. It is
// one object, written whole or not at all, from the full state of one revision. The histories of tags, which are not in
// the full state, are read after it, so they may have later targets.

// Keeper is implemented by Placed Blobs that keep copies of the facts beside the bytes.
type Keeper interface {
	// Copies lists the copies, in no order.
	Copies(ctx context.Context) ([]Copy, error)
	// WriteCopy makes a copy of what write writes, all of it or nothing. Errors: write's; ErrReadOnly, ErrFull.
	WriteCopy(ctx context.Context, name string, write func(io.Writer) error) error
	// OpenCopy opens a copy for reading. Errors: ErrNotFound.
	OpenCopy(ctx context.Context, name string) (io.ReadCloser, error)
	// OpenObject opens an object of a Placed engine whose digest is not known. Errors: ErrNotFound.
	OpenObject(ctx context.Context, place string) (io.ReadCloser, error)
	// RemoveCopies removes copies. It is no error if one does not exist.
	RemoveCopies(ctx context.Context, names ...string) error
}

// Snapshots is implemented by a Journal whose Watch keeps commits waiting while it delivers the full state.
type Snapshots interface {
	// Snapshot calls apply with the full state, as Watch does. Most commits do not wait for it. As some may, apply
	// should not take longer than it takes to write to a disk.
	Snapshot(ctx context.Context, apply func(Update) error) error
}

// Copy is a copy of the facts, by what its name says.
type Copy struct {
	Name     string
	Time     time.Time // in whole seconds
	Revision Revision  // of the journal; it may have some later facts as well
}

// copyTime is the form of the time in a name; names sort by it.
const copyTime = "20060102T150405Z"

func nameOfCopy(t time.Time, rev Revision) string {
	return fmt.Sprintf("%s-%d", t.UTC().Format(copyTime), rev)
}

// NewCopy names a copy.
func NewCopy(t time.Time, rev Revision) Copy {
	return Copy{nameOfCopy(t, rev), t.Truncate(time.Second), rev}
}

// ParseCopy reads the name of a copy.
func ParseCopy(name string) (c Copy, ok bool) {
	at, number, _ := strings.Cut(name, "-")
	t, _ := time.Parse(copyTime, at)
	rev, _ := strconv.ParseUint(number, 10, 64)
	c = Copy{name, t, Revision(rev)}
	// What cannot be parsed becomes another time or number, which has another name.
	return c, nameOfCopy(t, c.Revision) == name
}

// CopiesOf lists the copies of a Keeper, the newest first.
func CopiesOf(ctx context.Context, k Keeper) ([]Copy, error) {
	all, err := k.Copies(ctx)
	slices.SortFunc(all, func(a, b Copy) int { return strings.Compare(b.Name, a.Name) })
	return all, err
}

// CopyHeader is what a copy says of itself.
type CopyHeader struct {
	Identity string    `json:"identity"` // of the journal and the bytes
	Revision Revision  `json:"revision"` // as Copy.Revision
	Time     time.Time `json:"time"`     // when it was begun
}

// copyMagic begins a copy. The number is the version of the form.
const copyMagic = "trow facts 1\n"

// maxCopied bounds one text of a copy, in bytes, so that a damaged length is not taken for one. No engine takes so long
// a value.
const maxCopied = 16 << 20

// errSynced ends a Watch that has delivered the full state.
var errSynced = errors.New("the full state was delivered")

// WriteFacts writes a copy of a journal's facts to w and returns its revision. It leaves out facts that are of no use
// with another journal or later, and the records for which omit returns true. It holds the names of the repos in
// memory, and what the journal delivers at once. Errors: those of the journal and of w; after one, what w has is not a
// copy.
func WriteFacts(ctx context.Context, w io.Writer, j Journal, h CopyHeader, omit func(record string) bool) (
	rev Revision, err error,
) {
	c := newCopyWriter(w)
	text, err := json.Marshal(h)
	if err != nil {
		return 0, err
	}
	c.text(string(text))
	var repos []string // whose histories follow; the full state has the facts of a repo in a row
	apply := func(u Update) error {
		for _, b := range u.Batches {
			if n := len(repos); b.Repo != storeRepo && (n == 0 || repos[n-1] != b.Repo) {
				repos = append(repos, strings.Clone(b.Repo))
			}
			c.facts(b.Repo, b.Facts, omit)
		}
		if rev = u.Revision; u.Synced && c.err == nil {
			return errSynced
		}
		return c.err
	}
	if s, ok := j.(Snapshots); ok {
		err = s.Snapshot(ctx, apply)
	} else {
		err = j.Watch(ctx, apply)
	}
	if !errors.Is(err, errSynced) {
		return 0, errors.Join(err, c.err)
	}
	for _, repo := range repos {
		past, err := j.History(ctx, repo, "")
		if err != nil {
			return 0, fmt.Errorf("history of %q: %w", repo, err)
		}
		if c.facts(repo, past, omit); c.err != nil {
			return 0, c.err
		}
	}
	return rev, c.end()
}

// kept reports whether a copy has a fact. Unlike a migration, a copy has the places of contents, as the objects are the
// same; it does not have the records of the processes.
func kept(repo string, f Fact, omit func(record string) bool) bool {
	if repo != storeRepo || f.Kind == kindPlace {
		return true
	}
	if f.Kind != kindRecord {
		return Portable(repo, f)
	}
	// An object two generations behind it that the copy does not name was not named later either; see Nameable.
	if f.Name == generationRecord {
		return true
	}
	return Portable(repo, f) && !strings.HasPrefix(f.Name, replicaRecord) && !omit(f.Name)
}

// copyWriter writes the form of a copy. Its first error stays.
type copyWriter struct {
	w     *bufio.Writer
	sum   hash.Hash
	count uint64
	buf   []byte
	err   error
}

func newCopyWriter(w io.Writer) *copyWriter {
	c := &copyWriter{sum: sha256.New()}
	c.w = bufio.NewWriterSize(io.MultiWriter(w, c.sum), 64<<10)
	c.write([]byte(copyMagic))
	return c
}

func (c *copyWriter) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
}

func (c *copyWriter) number(n uint64) {
	c.buf = binary.AppendUvarint(c.buf[:0], n)
	c.write(c.buf)
}

func (c *copyWriter) text(s string) {
	if len(s) > maxCopied && c.err == nil {
		c.err = fmt.Errorf("copy of the facts: a text of %d bytes is more than the %d that there can be",
			len(s), maxCopied)
	}
	c.number(uint64(len(s)))
	if c.err == nil {
		_, c.err = c.w.WriteString(s)
	}
}

// facts writes the facts of a repo that a copy has.
func (c *copyWriter) facts(repo string, facts []Fact, omit func(string) bool) {
	n := 0
	for _, f := range facts {
		if kept(repo, f, omit) {
			n++
		}
	}
	if n == 0 {
		return
	}
	c.number(uint64(n))
	c.text(repo)
	for _, f := range facts {
		if !kept(repo, f, omit) {
			continue
		}
		c.number(uint64(f.Kind))
		c.text(f.Name)
		c.text(string(f.Value))
		c.count++
	}
}

// end writes what shows that the copy is whole: that no facts follow, their number, and the SHA-256 of all before it.
func (c *copyWriter) end() error {
	c.number(0)
	c.number(c.count)
	if c.err == nil {
		c.err = c.w.Flush() // before Sum, which covers only what was flushed
	}
	if c.err == nil {
		c.write(c.sum.Sum(nil))
	}
	if c.err == nil {
		c.err = c.w.Flush()
	}
	return c.err
}

// ErrCopy: a copy of the facts is not whole, or of a later version.
var ErrCopy = errors.New("the copy of the facts cannot be used")

// ReadFacts reads a copy and calls apply, unless it is nil, with the facts of each repo, at most 4096 at a time. apply
// must not keep the slice. The copy is known to be whole only when ReadFacts has returned without an error. Errors:
// [ErrCopy]; apply's; those of r.
func ReadFacts(r io.Reader, apply func(repo string, facts []Fact) error) (h CopyHeader, err error) {
	c := &copyReader{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
	magic := make([]byte, len(copyMagic))
	if c.fill(magic); c.err == nil && string(magic) != copyMagic {
		return h, fmt.Errorf("%w: it begins with %.20q, and version 1 with %q; of another version of Trow?",
			ErrCopy, magic,
			copyMagic)
	}
	if text := c.text(); c.err == nil && json.Unmarshal([]byte(text), &h) != nil {
		return h, fmt.Errorf("%w: its header is %.80q", ErrCopy, text)
	}
	count := uint64(0)
	for n := c.number(); n > 0 && c.err == nil; n = c.number() {
		repo := c.text()
		var facts []Fact // not made for n facts: a damaged n could be any number
		for ; n > 0 && c.err == nil; n-- {
			kind := c.number()
			f := Fact{Kind: Kind(kind), Name: c.text(), Value: []byte(c.text())}
			if kind > 255 {
				return h, fmt.Errorf("%w: a fact of kind %d", ErrCopy, kind)
			}
			count++
			if facts = append(facts, f); len(facts) == 1<<12 && apply != nil && c.err == nil {
				if err := apply(repo, facts); err != nil {
					return h, err
				}
				facts = facts[:0]
			} else if apply == nil {
				facts = facts[:0]
			}
		}
		if c.err == nil && apply != nil && len(facts) > 0 {
			if err := apply(repo, facts); err != nil {
				return h, err
			}
		}
	}
	if written := c.number(); c.err == nil && written != count {
		return h, fmt.Errorf("%w: it has %d facts of %d", ErrCopy, count, written)
	}
	want, got := c.sum.Sum(nil), make([]byte, sha256.Size) // before fill, which adds to the sum
	if c.fill(got); c.err == nil && !slices.Equal(want, got) {
		return h, fmt.Errorf("%w: its checksum is wrong", ErrCopy)
	}
	return h, c.err
}

// copyReader reads the form of a copy. Its first error stays, and what is read after it is empty.
type copyReader struct {
	r   *bufio.Reader
	sum hash.Hash
	err error
}

func (c *copyReader) fail(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: it is cut off", ErrCopy)
	}
	c.err = err
}

func (c *copyReader) fill(b []byte) {
	if c.err != nil {
		return
	}
	if _, err := io.ReadFull(c.r, b); err != nil {
		c.fail(err)
		return
	}
	c.sum.Write(b)
}

func (c *copyReader) number() (n uint64) {
	var b [1]byte
	for shift := 0; c.err == nil; shift += 7 {
		if c.fill(b[:]); c.err != nil {
			return 0
		}
		if shift > 63 || shift == 63 && b[0]&0x7f > 1 {
			c.err = fmt.Errorf("%w: a number of more than 64 bits", ErrCopy)
			return 0
		}
		n |= uint64(b[0]&0x7f) << shift
		if b[0] < 0x80 {
			return n
		}
	}
	return 0
}

func (c *copyReader) text() string {
	n := c.number()
	if n > maxCopied && c.err == nil {
		c.err = fmt.Errorf("%w: a text of %d bytes", ErrCopy, n)
	}
	if c.err != nil {
		return ""
	}
	b := make([]byte, n)
	c.fill(b)
	return string(b)
}
