package archive

import (
	"trow/registry/inventory"

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

// The first bytes of what is compressed.
var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// uncompressed returns a tar stream that may be compressed with gzip.
func uncompressed(in io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(in, 1<<20)
	head, _ := b.Peek(4)
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		return gzip.NewReader(b)
	case bytes.Equal(head, zstdMagic):
		return nil, errors.New("the archive is compressed with zstd; decompress it: zstd -dc FILE | trow import -")
	}
	return b, nil
}

// eachFile calls do with each regular file of a tar stream.
func eachFile(in io.Reader, do func(name string, size int64, in io.Reader) error) error {
	t := tar.NewReader(in)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the archive is not a tar file, or it is cut off: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := do(path.Clean(h.Name), h.Size, t); err != nil {
			return err
		}
	}
}

// stream is an import of a tar. It reads the tar once: content that may be a manifest goes into a temporary file (the
// spool), and all other content is pushed at once, to the repository of the first item that needs it. Items are pushed
// in their order, each as soon as the first blob of a later item shows that all of its own content must have come.
// Items for which that was too early follow at the end.
type stream struct {
	*importer
	spool *spool
	items []streamed
	first map[digest.Digest]int  // of content: the first item that needs it
	roots map[digest.Digest]bool // the manifests of the items, whatever they look like
	next  int                    // the first item that has not been pushed
	late  map[string]bool        // repositories of which an item before next has not been pushed
	// postponed are blobs that came before it was known which repository needs them.
	postponed []digest.Digest
	twice     bool  // the archive can be read a second time, for the postponed blobs
	docker    bool  // it has a file of docker save
	oldDocker bool  // it has one that is enough for Docker before 1.10
	empty     error // the index has no items
}

// streamed is an item of a stream.
type streamed struct {
	repo string
	item
	done bool // it was pushed
}

var errPostponed = errors.New("in this archive blobs come before the manifests that need them; " +
	"import it from a file instead of a pipe, or name a repository with --as")

// tar imports a tar stream. again, if it is not nil, returns the stream from its start.
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
	if s.items == nil && s.docker {
		return errDockerPipe
	}
	if s.items == nil && s.oldDocker {
		return errDockerOld
	}
	if s.empty != nil {
		return s.empty
	}
	if s.items == nil {
		return errors.New("the archive is not an OCI image layout: it has no " + indexFile)
	}
	needed := func(d digest.Digest) bool { _, ok := s.first[d]; return ok }
	if slices.ContainsFunc(s.postponed, needed) {
		if again == nil {
			return errPostponed
		}
		if in, err = again(); err == nil {
			err = s.readPostponed(ctx, in)
		}
		if err != nil {
			return err
		}
	}
	return s.pushRest(ctx)
}

func (s *stream) read(ctx context.Context, in io.Reader) error {
	in, err := uncompressed(in)
	if err != nil {
		return err
	}
	return eachFile(in, func(name string, size int64, in io.Reader) error {
		if name == indexFile {
			return s.setItems(in)
		}
		s.docker = s.docker || name == dockerFile
		s.oldDocker = s.oldDocker || isOldDocker(name)
		d, ok := parseBlobPath(name)
		if !ok {
			return nil
		}
		b := bufio.NewReaderSize(in, 16)
		head, _ := b.Peek(1)
		if size <= maxManifest && (s.roots[d] || bytes.HasPrefix(head, []byte("{"))) {
			return s.spoolManifest(d, size, b)
		}
		return s.streamBlob(ctx, d, size, b)
	})
}

// readPostponed reads the archive a second time and pushes the blobs that came too early the first time.
func (s *stream) readPostponed(ctx context.Context, in io.Reader) error {
	in, err := uncompressed(in)
	if err != nil {
		return err
	}
	postponed := map[digest.Digest]bool{}
	for _, d := range s.postponed {
		postponed[d] = true
	}
	return eachFile(in, func(name string, size int64, in io.Reader) error {
		d, ok := parseBlobPath(name)
		n, needed := s.first[d]
		if !ok || !postponed[d] || !needed {
			return nil
		}
		if s.roots[d] && size <= maxManifest {
			return s.spoolManifest(d, size, in)
		}
		return s.pushBlob(s.items[n].at(ctx, s.items[n].repo), s.items[n].repo, d, size, in)
	})
}

// setItems reads the items from an index.json. They replace those of an earlier index.json: an export that could not
// copy some items writes a second one.
func (s *stream) setItems(in io.Reader) error {
	all, err := readIndex(in)
	if err != nil {
		return err
	}
	repos, err := s.group(all)
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
	s.late = map[string]bool{}
	for _, r := range repos {
		for _, it := range r.items {
			if s.options.matches(r.place()) {
				s.items = append(s.items, streamed{r.repo, it, done[it.name(r.repo)]})
				s.roots[it.desc.Digest] = true
				s.claim(it.desc.Digest, len(s.items)-1)
			}
		}
	}
	// Not an error yet: a second index.json may follow.
	s.empty = s.setTotal(repos)
	return nil
}

// claim records that the nth item needs some content, and what that content consists of, as far as it has been read.
// The first item that claims it gets it.
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
	var c inventory.Parts
	if json.Unmarshal(body, &c) != nil {
		return
	}
	for _, part := range append(c.NotManifests(), c.Manifests...) {
		s.claim(part.Digest, n)
	}
}

// spoolManifest puts content that may be a manifest into the spool.
func (s *stream) spoolManifest(d digest.Digest, size int64, in io.Reader) error {
	body := make([]byte, size)
	if _, err := io.ReadFull(in, body); err != nil {
		return fmt.Errorf("the archive is cut off: %w", err)
	}
	if err := s.spool.write(d, body); err != nil {
		return err
	}
	if n, ok := s.first[d]; ok {
		s.claimParts(body, n)
	}
	return nil
}

// streamBlob pushes a blob while it is read.
func (s *stream) streamBlob(ctx context.Context, d digest.Digest, size int64, in io.Reader) error {
	n, known := s.first[d]
	switch {
	case known:
		if err := s.pushBefore(ctx, n); err != nil {
			return err
		}
		return s.pushBlob(s.items[n].at(ctx, s.items[n].repo), s.items[n].repo, d, size, in)
	case s.as != "" && s.options.matches(s.as):
		return s.pushBlob(ctx, s.as, d, size, in)
	case s.items == nil && !s.twice:
		return errPostponed
	}
	// If no item needs it in the end, it belongs to a repository that is not imported, or to a deleted item.
	s.postponed = append(s.postponed, d)
	return nil
}

// pushBlob pushes a blob. Damage is not reported here: the items that lack the blob become problems later.
func (s *stream) pushBlob(ctx context.Context, repo string, d digest.Digest, size int64, in io.Reader) error {
	read := false
	err := s.importer.blob(ctx, repo, d, func() (io.ReadCloser, int64, error) {
		if read { // the stream cannot go back
			return nil, 0, errors.New("the registry is too busy; import again later to continue where the import " +
				"stopped")
		}
		read = true
		return io.NopCloser(in), size, nil
	})
	if isProblem(err) {
		return nil
	}
	return err
}

// pushBefore pushes the items before the nth. An item that lacks content is not reported yet: the content may follow.
func (s *stream) pushBefore(ctx context.Context, n int) error {
	for ; s.next < n; s.next++ {
		it := &s.items[s.next]
		if it.done {
			continue
		}
		now := it.item
		if s.late[it.place(it.repo)] {
			now.tag = "" // it is set at the end, after the tags before it: retention goes by the order
		}
		err := s.importer.item(ctx, s.spool, it.repo, now)
		if err != nil && !isProblem(err) {
			return err
		}
		if it.done = err == nil && now.tag == it.tag; it.done {
			s.add(func(p *Progress) { p.Items++ })
		} else {
			s.late[it.place(it.repo)] = true
		}
	}
	return nil
}

// pushRest pushes the items that are left, after the whole tar has been read. What they lack now is missing.
func (s *stream) pushRest(ctx context.Context) error {
	s.importer.sparse = true // not before: what an index lacked might have followed
	for _, it := range s.items {
		if it.done {
			continue
		}
		if err := s.repository(ctx, s.spool, incoming{it.repo, it.host, []item{it.item}}); err != nil {
			return err
		}
	}
	return nil
}

// spool keeps small content in a temporary file.
type spool struct {
	file *os.File
	at   map[digest.Digest]*io.SectionReader
	end  int64
}

// newSpool creates the file in dir and removes its name at once, so that it disappears with the process.
func newSpool(dir string) (*spool, error) {
	f, err := os.CreateTemp(dir, ".import-*")
	if err != nil {
		return nil, fmt.Errorf("cannot create a temporary file for manifests: %w", err)
	}
	return &spool{file: f, at: map[digest.Digest]*io.SectionReader{}}, os.Remove(f.Name())
}

func (s *spool) write(d digest.Digest, body []byte) error {
	if _, err := s.file.WriteAt(body, s.end); err != nil {
		return fmt.Errorf("cannot write the temporary file for manifests: %w", err)
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
