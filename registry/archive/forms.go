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

// form is a directory in one of the forms that can be imported.
type form interface {
	source
	name() string              // for people
	list() ([]incoming, error) // all items
}

// detectForm returns the form of a directory.
func (i *importer) detectForm(root *os.Root) (form, error) {
	const distributionDir = "docker/registry/v2"
	exists := func(name string) bool { _, err := root.Stat(name); return err == nil }
	switch {
	case exists("journal.db"):
		return nil, errors.New("this is a data directory of Trow; start a server on it, and export from that")
	case exists(indexFile):
		return &layouts{root: root, importer: i, form: "an OCI image layout", dirs: map[string]string{"": "."}}, nil
	case exists(layoutFile):
		return nil, errors.New("this archive has no index.json: its export did not finish; run it again")
	case exists(distributionDir):
		return &distribution{root: root, base: distributionDir}, nil
	case exists(dockerFile):
		return newSaved(i, directoryMembers{root}), nil
	case exists("repositories") && exists("blobs"):
		return &distribution{root: root, base: "."}, nil
	case hasOldDocker(root):
		return nil, errDockerOld
	}
	l := &layouts{root: root, form: "a data directory of zot", dirs: map[string]string{}}
	if err := l.find("."); err != nil {
		return nil, err
	}
	if len(l.dirs) == 0 {
		return nil, errors.New("not an archive: want an OCI image layout, or a data directory of Distribution or zot")
	}
	return l, nil
}

// hasOldDocker reports whether a directory has the files of isOldDocker.
func hasOldDocker(root *os.Root) bool {
	if info, err := root.Stat("repositories"); err == nil {
		return info.Mode().IsRegular()
	}
	found, err := fs.Glob(root.FS(), "*/layer.tar")
	return err == nil && len(found) > 0
}

// open opens a regular file. It looks at the file first, because opening a named pipe would block. A file that cannot
// be read is a problem: other files may be readable.
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

// file is a file whose read errors are problems.
type file struct{ f *os.File }

func (f file) Close() error { return f.f.Close() }

func (f file) Read(p []byte) (int, error) {
	n, err := f.f.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = problem{err}
	}
	return n, err
}

// layouts is one OCI image layout, or a tree of them: a data directory of zot has one for each repository.
type layouts struct {
	root *os.Root
	form string
	dirs map[string]string // directories by repository; "" is the one directory of all repositories

	importer *importer // of a single layout: groups its items by repository; nil: a tree
}

func (l *layouts) name() string { return l.form }

// find adds the layouts in and below a directory. The names of zot's own directories start with . or _, which those of
// repositories cannot.
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
			return l.importer.group(index)
		}
		in := incoming{repo: repo}
		for _, entry := range index.Manifests {
			desc := v1.Descriptor{MediaType: entry.MediaType, Digest: entry.Digest, Size: entry.Size}
			in.items = append(in.items, item{desc: desc, tag: entry.Annotations[v1.AnnotationRefName]})
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

// open opens a blob in the layout of its repository, or else in another one: zot can keep one copy of a blob for all
// repositories, and then the others have an empty file or none.
func (l *layouts) open(repo string, d digest.Digest) (io.ReadCloser, int64, error) {
	if dir, ok := l.dirs[""]; ok {
		return open(l.root, path.Join(dir, blobPath(d)))
	}
	f, size, err := l.openFilled(l.dirs[repo], d)
	for _, dir := range append([]string{"_blobstore"}, l.sorted()...) {
		if !missing(err) {
			break
		}
		f, size, err = l.openFilled(dir, d)
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

// openFilled opens a blob. An empty file is fs.ErrNotExist, unless the digest is that of no bytes.
func (l *layouts) openFilled(dir string, d digest.Digest) (io.ReadCloser, int64, error) {
	f, size, err := open(l.root, path.Join(dir, blobPath(d)))
	if err == nil && size == 0 && d != d.Algorithm().FromBytes(nil) {
		return nil, 0, errors.Join(fs.ErrNotExist, f.Close())
	}
	return f, size, err
}

// distribution is a data directory of Distribution (its "filesystem" driver), which other registries use as well.
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
	for _, alg := range algorithms {
		err := s.eachName(path.Join(dir, "revisions", alg.String()), func(hex string) {
			if d, ok := s.link(path.Join(dir, "revisions", alg.String(), hex, "link")); ok {
				in.items = append(in.items, item{desc: v1.Descriptor{Digest: d}})
			}
		})
		if err != nil {
			return in, err
		}
	}
	var tags []timedTag
	err := s.eachName(path.Join(dir, "tags"), func(tag string) {
		name := path.Join(dir, "tags", tag, "current", "link")
		d, _ := s.link(name) // a crash leaves empty link files, or none: without a digest the tag becomes a problem
		at := int64(0)
		if info, err := s.root.Stat(name); err == nil {
			at = info.ModTime().UnixNano()
		}
		tags = append(tags, timedTag{item{desc: v1.Descriptor{Digest: d}, tag: tag}, at})
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

// eachName calls do with the names in a directory, which need not exist.
func (s *distribution) eachName(dir string, do func(name string)) error {
	entries, err := fs.ReadDir(s.root.FS(), dir)
	if err != nil && !missing(err) {
		return err
	}
	for _, entry := range entries {
		do(entry.Name())
	}
	return nil
}

// link reads the digest in a link file.
func (s *distribution) link(name string) (digest.Digest, bool) {
	f, _, err := open(s.root, name)
	if err != nil {
		return "", false // the revision was deleted
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 200))
	if err != nil {
		return "", false
	}
	d, err := storage.ParseDigest(strings.TrimSpace(string(text)))
	return d, err == nil
}
