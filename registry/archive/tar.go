package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"github.com/opencontainers/go-digest"
)

// uncompressed is a tar stream that may have been compressed with gzip.
func uncompressed(in io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(in, 1<<20)
	head, _ := b.Peek(4)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return nil, errors.New("the archive is compressed with zstd; pipe it through zstd -d, and import from -")
	}
	return b, nil
}

// eachFile calls do with the regular files of a tar stream.
func eachFile(in io.Reader, do func(name string, size int64, in io.Reader) error) error {
	t := tar.NewReader(in)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the archive is no tar, or ends early: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := do(path.Clean(h.Name), h.Size, t); err != nil {
			return err
		}
	}
}

// stream is an import of a tar, which is read once: what may be a manifest is kept in a file, the rest is pushed as it
// comes, to the repository of the first item that needs it. So the items can be pushed in their order, each as soon as
// the first blob of a later one shows that it must be there; those for which that was too early follow at the end.
type stream struct {
	*importer
	spool *spool
	items []streamed
	first map[digest.Digest]int  // of content: the first item that needs it
	roots map[digest.Digest]bool // the manifests of the items, whatever they look like
	next  int                    // the first item that has not been pushed
	late  []digest.Digest        // blobs that came before it was known whose they are
	twice bool                   // the archive can be read again, for those
}

type streamed struct {
	repo string
	item
	done bool
}

var errLate = errors.New("the blobs of this archive come before it is known whose they are; " +
	"import it from a file instead of a pipe, or name a repository with --as")

// tar imports a tar stream. again, if there is one, begins it anew.
func (i *importer) tar(ctx context.Context, in io.Reader, again func() (io.Reader, error)) error {
	spool, err := newSpool(i.o.Temp)
	if err != nil {
		return err
	}
	defer spool.file.Close()
	s := &stream{importer: i, spool: spool, twice: again != nil}
	if err := s.read(ctx, in); err != nil {
		return err
	}
	if s.items == nil {
		return errors.New("the archive is no OCI image layout: it has no " + indexFile)
	}
	if needed := func(d digest.Digest) bool { _, ok := s.first[d]; return ok }; slices.ContainsFunc(s.late, needed) {
		if again == nil {
			return errLate
		}
		if in, err = again(); err == nil {
			err = s.readLate(ctx, in)
		}
		if err != nil {
			return err
		}
	}
	return s.rest(ctx)
}

func (s *stream) read(ctx context.Context, in io.Reader) error {
	in, err := uncompressed(in)
	if err != nil {
		return err
	}
	return eachFile(in, func(name string, size int64, in io.Reader) error {
		if name == indexFile {
			return s.index(in)
		}
		d, ok := digestOf(name)
		if !ok {
			return nil
		}
		b := bufio.NewReaderSize(in, 16)
		head, _ := b.Peek(1)
		if size <= maxManifest && (s.roots[d] || bytes.HasPrefix(head, []byte("{"))) {
			return s.keep(d, size, b)
		}
		return s.blob(ctx, d, size, b)
	})
}

// readLate pushes the blobs that came too early the first time.
func (s *stream) readLate(ctx context.Context, in io.Reader) error {
	in, err := uncompressed(in)
	if err != nil {
		return err
	}
	late := map[digest.Digest]bool{}
	for _, d := range s.late {
		late[d] = true
	}
	return eachFile(in, func(name string, size int64, in io.Reader) error {
		d, ok := digestOf(name)
		n, needed := s.first[d]
		if !ok || !late[d] || !needed {
			return nil
		}
		if s.roots[d] && size <= maxManifest {
			return s.keep(d, size, in)
		}
		return s.push(ctx, s.items[n].repo, d, size, in)
	})
}

// index takes up the items. What an earlier index said counts no more.
func (s *stream) index(in io.Reader) error {
	all, err := readIndex(in)
	if err != nil {
		return err
	}
	repos, err := s.sort(all)
	if err != nil {
		return err
	}
	if s.items == nil && s.o.Form != nil {
		s.o.Form("the tar of an OCI image layout")
	}
	done := map[string]bool{}
	for _, it := range s.items[:s.next] {
		if it.done {
			done[it.name(it.repo)] = true
		}
	}
	s.items, s.next, s.first, s.roots = []streamed{}, 0, map[digest.Digest]int{}, map[digest.Digest]bool{}
	for _, r := range repos {
		for _, it := range r.items {
			if s.options.matches(r.repo) {
				s.items = append(s.items, streamed{r.repo, it, done[it.name(r.repo)]})
				s.roots[it.desc.Digest] = true
				s.claim(it.desc.Digest, len(s.items)-1)
			}
		}
	}
	s.expect(repos)
	return nil
}

// claim notes which item needs content first, and what that content needs, as far as it has come.
func (s *stream) claim(d digest.Digest, n int) {
	if _, ok := s.first[d]; ok {
		return
	}
	s.first[d] = n
	if body, ok := s.spool.read(d); ok {
		s.claimParts(body, n)
	}
}

func (s *stream) claimParts(body []byte, n int) {
	var c content
	if json.Unmarshal(body, &c) != nil {
		return
	}
	for _, part := range append(c.blobs(), c.Manifests...) {
		s.claim(part.Digest, n)
	}
}

// keep puts what may be a manifest into the spool.
func (s *stream) keep(d digest.Digest, size int64, in io.Reader) error {
	body := make([]byte, size)
	if _, err := io.ReadFull(in, body); err != nil {
		return fmt.Errorf("the archive ends early: %w", err)
	}
	if err := s.spool.write(d, body); err != nil {
		return err
	}
	if n, ok := s.first[d]; ok {
		s.claimParts(body, n)
	}
	return nil
}

// blob pushes a blob as it comes.
func (s *stream) blob(ctx context.Context, d digest.Digest, size int64, in io.Reader) error {
	n, known := s.first[d]
	switch {
	case known:
		if err := s.before(ctx, n); err != nil {
			return err
		}
		return s.push(ctx, s.items[n].repo, d, size, in)
	case s.as != "" && s.options.matches(s.as):
		return s.push(ctx, s.as, d, size, in)
	case s.items == nil && !s.twice:
		return errLate
	}
	s.late = append(s.late, d) // or nobody needs it: it belongs to what was not asked for, or to what went away
	return nil
}

// push pushes a blob. What is damaged becomes a problem of the items that lack it.
func (s *stream) push(ctx context.Context, repo string, d digest.Digest, size int64, in io.Reader) error {
	read := false
	err := s.importer.blob(ctx, repo, d, func() (io.ReadCloser, int64, error) {
		if read {
			return nil, 0, errors.New("the registry is too busy; import again later, it goes on where it was stopped")
		}
		read = true
		return io.NopCloser(in), size, nil
	})
	var p problem
	if errors.As(err, &p) {
		return nil
	}
	return err
}

// before pushes the items before the nth.
func (s *stream) before(ctx context.Context, n int) error {
	for ; s.next < n; s.next++ {
		it := &s.items[s.next]
		if it.done {
			continue
		}
		err := s.importer.item(ctx, s.spool, it.repo, it.item)
		var p problem
		if err != nil && !errors.As(err, &p) {
			return err
		}
		if it.done = err == nil; it.done {
			s.add(func(p *Progress) { p.Items++ })
		}
	}
	return nil
}

// rest pushes the items that are left, of which what lacks something now will lack it for ever.
func (s *stream) rest(ctx context.Context) error {
	for _, it := range s.items {
		if it.done {
			continue
		}
		if err := s.repository(ctx, s.spool, incoming{it.repo, []item{it.item}}); err != nil {
			return err
		}
	}
	return nil
}

// spool keeps small content in a file that nobody else sees.
type spool struct {
	file *os.File
	at   map[digest.Digest]*io.SectionReader
	end  int64
}

func newSpool(dir string) (*spool, error) {
	f, err := os.CreateTemp(dir, ".import-*")
	if err != nil {
		return nil, fmt.Errorf("no file for the manifests of the archive: %w", err)
	}
	return &spool{file: f, at: map[digest.Digest]*io.SectionReader{}}, os.Remove(f.Name())
}

func (s *spool) write(d digest.Digest, body []byte) error {
	if _, err := s.file.WriteAt(body, s.end); err != nil {
		return fmt.Errorf("no space for the manifests of the archive: %w", err)
	}
	s.at[d] = io.NewSectionReader(s.file, s.end, int64(len(body)))
	s.end += int64(len(body))
	return nil
}

func (s *spool) read(d digest.Digest) ([]byte, bool) {
	at, ok := s.at[d]
	if !ok {
		return nil, false
	}
	body := make([]byte, at.Size())
	_, err := at.ReadAt(body, 0)
	return body, err == nil
}

// open implements source.
func (s *spool) open(_ string, d digest.Digest) (io.ReadCloser, int64, error) {
	at, ok := s.at[d]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return io.NopCloser(io.NewSectionReader(at, 0, at.Size())), at.Size(), nil
}
