package archive

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/storage"
)

// form is a directory with manifests and blobs.
type form interface {
	source
	name() string
	list() ([]incoming, error)
}

// recognize finds out what lies in a directory.
func (i *importer) recognize(root *os.Root) (form, error) {
	const distributionDir = "docker/registry/v2"
	there := func(name string) bool { _, err := root.Stat(name); return err == nil }
	switch {
	case there("journal.db"):
		return nil, errors.New("this is the data directory of a Trow; start a server on it and export from that")
	case there(indexFile):
		return &layouts{root: root, importer: i, form: "an OCI image layout", dirs: map[string]string{"": "."}}, nil
	case there(layoutFile):
		return nil, errors.New("this archive has no index.json: its export was stopped; run it again")
	case there(distributionDir):
		return &distribution{root: root, base: distributionDir}, nil
	case there("repositories") && there("blobs"):
		return &distribution{root: root, base: "."}, nil
	}
	l := &layouts{root: root, form: "a data directory of zot", dirs: map[string]string{}}
	if err := l.find("."); err != nil {
		return nil, err
	}
	if len(l.dirs) == 0 {
		return nil, errors.New("this is no archive: neither an OCI image layout, nor a data directory of Distribution or of zot")
	}
	return l, nil
}

// open opens a regular file. Anything else, a named pipe for one, would keep us waiting. What cannot be read is a
// problem, for the next file may be well.
func open(root *os.Root, name string) (io.ReadCloser, int64, error) {
	info, err := root.Stat(name)
	if missing(err) {
		return nil, 0, err
	}
	if err != nil {
		return nil, 0, problem{err}
	}
	if !info.Mode().IsRegular() {
		return nil, 0, problemf("%s is not a regular file", name)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, 0, problem{err}
	}
	return file{f}, info.Size(), nil
}

// file is a file whose errors are problems.
type file struct{ f *os.File }

func (f file) Close() error { return f.f.Close() }

func (f file) Read(p []byte) (int, error) {
	n, err := f.f.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = problem{err}
	}
	return n, err
}

// layouts is one OCI image layout, or a tree of them: zot's data directory has one for each repository.
type layouts struct {
	root *os.Root
	form string
	dirs map[string]string // repository to directory; "" stands for all repositories

	importer *importer // of a single layout: knows which repository its items belong to
}

func (l *layouts) name() string { return l.form }

// find takes up the layouts in a directory. zot's own directories begin with . or _, as no repository does.
func (l *layouts) find(dir string) error {
	entries, err := fs.ReadDir(l.root.FS(), dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := path.Join(dir, entry.Name())
		if !entry.IsDir() || strings.HasPrefix(entry.Name(), ".") || strings.HasPrefix(entry.Name(), "_") {
			continue
		}
		if _, err := l.root.Stat(name + "/" + indexFile); err == nil {
			l.dirs[name] = name
		}
		if entry.Name() == blobsDir && l.dirs[dir] != "" {
			continue
		}
		if err := l.find(name); err != nil {
			return err
		}
	}
	return nil
}

func (l *layouts) list() (all []incoming, err error) {
	for repo, dir := range l.dirs {
		index, err := l.index(dir)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		if l.importer != nil {
			return l.importer.sort(index)
		}
		in := incoming{repo: repo}
		for _, entry := range index.Manifests {
			desc := v1.Descriptor{MediaType: entry.MediaType, Digest: entry.Digest, Size: entry.Size}
			in.items = append(in.items, item{desc, entry.Annotations[v1.AnnotationRefName]})
		}
		all = append(all, in)
	}
	slices.SortFunc(all, func(a, b incoming) int { return cmp.Compare(a.repo, b.repo) })
	return all, nil
}

func (l *layouts) index(dir string) (v1.Index, error) {
	f, _, err := open(l.root, path.Join(dir, indexFile))
	if err != nil {
		return v1.Index{}, err
	}
	defer f.Close()
	return readIndex(f)
}

// open looks into the repository's own layout, and then into the others: where zot keeps only one copy of a blob, the
// other repositories have an empty file or none.
func (l *layouts) open(repo string, d digest.Digest) (io.ReadCloser, int64, error) {
	if dir, ok := l.dirs[""]; ok {
		return open(l.root, path.Join(dir, blobPath(d)))
	}
	f, size, err := l.filled(l.dirs[repo], d)
	for _, dir := range append([]string{"_blobstore"}, l.sorted()...) {
		if !missing(err) {
			break
		}
		f, size, err = l.filled(dir, d)
	}
	return f, size, err
}

func (l *layouts) sorted() (dirs []string) {
	for _, dir := range l.dirs {
		dirs = append(dirs, dir)
	}
	slices.Sort(dirs)
	return dirs
}

// filled opens a blob that is not an empty stand-in for one.
func (l *layouts) filled(dir string, d digest.Digest) (io.ReadCloser, int64, error) {
	f, size, err := open(l.root, path.Join(dir, blobPath(d)))
	if err == nil && size == 0 && d != d.Algorithm().FromBytes(nil) {
		return nil, 0, errors.Join(fs.ErrNotExist, f.Close())
	}
	return f, size, err
}

// distribution is the data directory of Distribution, which others have taken over (its "filesystem" driver).
type distribution struct {
	root *os.Root
	base string
}

func (s *distribution) name() string { return "a data directory of Distribution" }

func (s *distribution) open(_ string, d digest.Digest) (io.ReadCloser, int64, error) {
	return open(s.root, path.Join(s.base, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data"))
}

func (s *distribution) list() (all []incoming, err error) {
	var walk func(repo string) error
	walk = func(repo string) error {
		entries, err := fs.ReadDir(s.root.FS(), path.Join(s.base, "repositories", repo))
		if err != nil {
			return err
		}
		for _, entry := range entries {
			switch {
			case entry.Name() == "_manifests":
				in, err := s.repository(repo)
				if err != nil {
					return fmt.Errorf("repository %s: %w", repo, err)
				}
				all = append(all, in)
			case entry.IsDir() && !strings.HasPrefix(entry.Name(), "_"):
				if err := walk(path.Join(repo, entry.Name())); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return all, walk(".")
}

// repository lists a repository's revisions, and then its tags in the order in which they were set.
func (s *distribution) repository(repo string) (incoming, error) {
	in := incoming{repo: repo}
	dir := path.Join(s.base, "repositories", repo, "_manifests")
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		err := s.each(path.Join(dir, "revisions", alg.String()), func(hex string) {
			if d, ok := s.link(path.Join(dir, "revisions", alg.String(), hex, "link")); ok {
				in.items = append(in.items, item{desc: v1.Descriptor{Digest: d}})
			}
		})
		if err != nil {
			return in, err
		}
	}
	var tags []timedTag
	err := s.each(path.Join(dir, "tags"), func(tag string) {
		name := path.Join(dir, "tags", tag, "current", "link")
		d, _ := s.link(name) // an empty link file, which a crash leaves, becomes a problem that has the tag's name
		if info, err := s.root.Stat(name); err == nil {
			tags = append(tags, timedTag{item{v1.Descriptor{Digest: d}, tag}, info.ModTime().UnixNano()})
		}
	})
	slices.SortStableFunc(tags, func(a, b timedTag) int { return cmp.Compare(a.time, b.time) })
	for _, t := range tags {
		in.items = append(in.items, t.item)
	}
	return in, err
}

type timedTag struct {
	item
	time int64
}

// each calls do with the names in a directory, of which there need be none.
func (s *distribution) each(dir string, do func(name string)) error {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if err != nil && !missing(err) {
		return err
	}
	for _, entry := range entries {
		do(entry.Name())
	}
	return nil
}

// link reads a link file: a digest.
func (s *distribution) link(name string) (digest.Digest, bool) {
	f, _, err := open(s.root, name)
	if err != nil {
		return "", false // deleted
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 200))
	if err != nil {
		return "", false
	}
	d, err := storage.ParseDigest(strings.TrimSpace(string(text)))
	return d, err == nil
}
