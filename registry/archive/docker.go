package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// dockerFile is what all archives of docker save since Docker 1.10 have. Those of Docker 25 and later, and of other
// tools, are OCI image layouts as well.
const dockerFile = "manifest.json"

// maxDockerFile bounds it, in bytes. An image takes some hundred for each layer.
const maxDockerFile = 64 << 20

var (
	errDockerPipe = errors.New("this is an archive of docker save before Docker 25, or of podman save; " +
		"import it from a file instead of a pipe, because its layers have to be read twice")
	errDockerCompressed = errors.New("this is an archive of docker save before Docker 25, or of podman save, and it " +
		"is compressed; decompress it first: gunzip FILE")
	errDockerOld = errors.New("this is an archive of docker save before Docker 1.10; " +
		"load it with Docker (docker load -i FILE), and push the image with docker push")
)

// isOldDocker reports whether a file is one that archives of Docker before 1.10 have, and others only beside
// dockerFile.
func isOldDocker(name string) bool { return name == "repositories" || path.Base(name) == "layer.tar" }

// members are the files of an archive, by their paths.
type members interface {
	// open opens a file. Errors: fs.ErrNotExist; problems.
	open(name string) (io.ReadCloser, int64, error)
}

// saved is an archive of docker save before Docker 25, of podman save and of many build tools: a manifest.json names
// configs and layers by their paths. It has no manifests of images, so those are made here; their layers stay as they
// are, usually uncompressed.
type saved struct {
	importer  *importer
	members   members
	manifests map[digest.Digest][]byte
	paths     map[digest.Digest]string
	layers    map[string]v1.Descriptor // by path
}

func newSaved(i *importer, m members) *saved {
	return &saved{importer: i, members: m, manifests: map[digest.Digest][]byte{}, paths: map[digest.Digest]string{},
		layers: map[string]v1.Descriptor{}}
}

func (s *saved) name() string { return "an archive of docker save" }

// savedImage is an element of manifest.json.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// list reads all layers, whose digests are not in the archive. An image that cannot be read is a problem of its own.
func (s *saved) list() ([]incoming, error) {
	text, err := s.small(dockerFile, maxDockerFile)
	if err != nil {
		return nil, err
	}
	var images []savedImage
	if err := json.Unmarshal(text, &images); err != nil {
		return nil, fmt.Errorf("%s is not valid: %w", dockerFile, err)
	}
	i := s.importer
	if i.as == "" {
		return nil, errAs
	}
	in := incoming{repo: i.as}
	for n, image := range images {
		var tags []string
		for _, name := range image.RepoTags {
			tags = append(tags, name[strings.LastIndexByte(name, ':')+1:])
		}
		switch {
		case i.tag != "" && len(images) > 1:
			return nil, fmt.Errorf("as: a tag needs an archive with one image, and this one has %d", len(images))
		case i.tag != "":
			tags = []string{i.tag}
		case len(tags) == 0:
			tags = []string{""}
		}
		desc, err := s.add(image)
		if err := i.report(fmt.Sprintf("image %d of %s", n+1, dockerFile), err); err != nil {
			return nil, err
		}
		for _, tag := range tags {
			if err == nil {
				in.items = append(in.items, item{desc: desc, tag: tag})
			}
		}
	}
	return []incoming{in}, nil
}

// add makes the manifest of an image.
func (s *saved) add(image savedImage) (v1.Descriptor, error) {
	config, err := s.small(image.Config, maxManifest)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("config %.150q: %w", image.Config, err)
	}
	var c v1.Image
	if err := json.Unmarshal(config, &c); err != nil {
		return v1.Descriptor{}, problemf("config %.150q is not that of an image: %v", image.Config, err)
	}
	if len(c.RootFS.DiffIDs) != len(image.Layers) {
		return v1.Descriptor{}, problemf("its config has %d layers, and %s names %d", len(c.RootFS.DiffIDs), dockerFile,
			len(image.Layers))
	}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(config),
			Size: int64(len(config))}, Layers: []v1.Descriptor{}}
	s.paths[m.Config.Digest] = image.Config
	for n, name := range image.Layers {
		layer, err := s.layer(name)
		if missing(err) {
			err = errNotInArchive
		}
		if err != nil {
			return v1.Descriptor{}, fmt.Errorf("layer %.150q: %w", name, err)
		}
		// The config has the digest of what is uncompressed.
		if layer.MediaType == v1.MediaTypeImageLayer && layer.Digest != c.RootFS.DiffIDs[n] {
			return v1.Descriptor{}, problemf("layer %.150q is damaged: the config says %.80q, and it is %s", name,
				c.RootFS.DiffIDs[n], layer.Digest)
		}
		m.Layers = append(m.Layers, layer)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := digest.FromBytes(body)
	s.manifests[d] = body
	return v1.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(body))}, nil
}

// layer reads a layer and returns its descriptor. Several images, and empty layers, share files.
func (s *saved) layer(name string) (v1.Descriptor, error) {
	if desc, ok := s.layers[name]; ok {
		return desc, nil
	}
	in, _, err := s.members.open(name)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer in.Close()
	var head [4]byte
	n, err := io.ReadFull(in, head[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return v1.Descriptor{}, err
	}
	h := digest.SHA256.Digester()
	h.Hash().Write(head[:n]) // a hash has no errors
	size, err := io.Copy(h.Hash(), in)
	if err != nil {
		return v1.Descriptor{}, err
	}
	desc := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: h.Digest(), Size: size + int64(n)}
	switch {
	case bytes.HasPrefix(head[:n], gzipMagic):
		desc.MediaType = v1.MediaTypeImageLayerGzip
	case bytes.HasPrefix(head[:n], zstdMagic):
		desc.MediaType = v1.MediaTypeImageLayerZstd
	}
	s.layers[name], s.paths[desc.Digest] = desc, name
	return desc, nil
}

// small reads a file of at most so many bytes.
func (s *saved) small(name string, most int64) ([]byte, error) {
	in, size, err := s.members.open(name)
	if missing(err) {
		return nil, errNotInArchive
	}
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if size > most {
		return nil, problemf("%.150q has %d bytes; want at most %d", name, size, most)
	}
	return io.ReadAll(io.LimitReader(in, most))
}

// open implements source.
func (s *saved) open(_ string, d digest.Digest) (io.ReadCloser, int64, error) {
	if body, ok := s.manifests[d]; ok {
		return io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	}
	name, ok := s.paths[d]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return s.members.open(name)
}

// directoryMembers are the files in a directory. Links that leave it are errors of os.Root.
type directoryMembers struct{ root *os.Root }

func (m directoryMembers) open(name string) (io.ReadCloser, int64, error) { return open(m.root, name) }

// tarMembers are the files in a tar file. Nothing is written anywhere, so names and links can lead nowhere else.
type tarMembers struct {
	file  io.ReaderAt
	at    map[string]span
	links map[string]string
}

// span is where a file is in a tar file.
type span struct{ offset, size int64 }

// readMembers reads the headers of a tar file.
func readMembers(f *os.File) (*tarMembers, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	m := &tarMembers{f, map[string]span{}, map[string]string{}}
	t := tar.NewReader(f)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return m, nil
		}
		if err != nil {
			return nil, fmt.Errorf("the archive is not a tar file, or it is cut off: %w", err)
		}
		name := path.Clean(h.Name)
		if !fs.ValidPath(name) {
			continue
		}
		delete(m.links, name)
		delete(m.at, name) // a later file replaces an earlier one
		switch h.Typeflag {
		case tar.TypeReg:
			offset, err := f.Seek(0, io.SeekCurrent) // the reader reads no further than the header
			if err != nil {
				return nil, err
			}
			m.at[name] = span{offset, h.Size}
		case tar.TypeLink:
			m.links[name] = path.Clean(h.Linkname)
		case tar.TypeSymlink: // Docker 1.10 to 24 and podman link layers that are the same
			m.links[name] = path.Join(path.Dir(name), h.Linkname)
		}
	}
}

func (m *tarMembers) open(name string) (io.ReadCloser, int64, error) {
	const most = 16 // links may form a circle
	name = path.Clean(name)
	for range most {
		to, ok := m.links[name]
		if !ok {
			break
		}
		name = to
	}
	at, ok := m.at[name]
	if !ok {
		return nil, 0, fs.ErrNotExist
	}
	return io.NopCloser(io.NewSectionReader(m.file, at.offset, at.size)), at.size, nil
}
