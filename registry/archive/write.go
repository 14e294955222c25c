package archive

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/storage"
)

// verified reads content to its end and no further: a problem if it is not what its digest says.
type verified struct {
	in     io.Reader
	left   int64
	digest digest.Digest
	sum    digest.Verifier
}

func verify(in io.Reader, d digest.Digest, size int64) *verified {
	return &verified{in: in, left: size, digest: d, sum: d.Verifier()}
}

func (v *verified) Read(p []byte) (int, error) {
	if v.left == 0 {
		return 0, v.check()
	}
	n, err := v.in.Read(p[:min(int64(len(p)), v.left)])
	v.left -= int64(n)
	_, _ = v.sum.Write(p[:n])
	if errors.Is(err, io.EOF) && v.left > 0 {
		return n, problemf("it is %d bytes shorter than recorded", v.left)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	return n, nil
}

func (v *verified) check() error {
	if n, _ := v.in.Read(make([]byte, 1)); n > 0 {
		return problemf("it is longer than recorded")
	}
	if !v.sum.Verified() {
		return problemf("its bytes are damaged: they are not what the digest says")
	}
	return io.EOF
}

// directory is an archive in a directory.
type directory struct{ root *os.Root }

var layoutVersion = []byte(`{"imageLayoutVersion":"` + v1.ImageLayoutVersion + `"}`)

// openDirectory makes a directory an archive, or takes up the one that is there.
func openDirectory(dir string) (*directory, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	w := &directory{root: root}
	if err := w.prepare(dir); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return w, nil
}

func (w *directory) prepare(dir string) error {
	if _, err := w.root.Stat(layoutFile); errors.Is(err, fs.ErrNotExist) {
		entries, err := fs.ReadDir(w.root.FS(), ".")
		if err != nil {
			return err
		}
		if len(entries) > 0 {
			return fmt.Errorf("%s has other things in it and no archive; name a new directory or an empty one", dir)
		}
	} else if err != nil {
		return err
	}
	if err := w.own(dir); err != nil {
		return err
	}
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		if err := w.root.MkdirAll(blobsDir+"/"+alg.String(), 0o755); err != nil {
			return err
		}
	}
	return w.replace(layoutFile, func(f *os.File) error {
		_, err := f.Write(layoutVersion)
		return err
	})
}

// own makes sure that no index of somebody else's is replaced.
func (w *directory) own(dir string) error {
	f, _, err := open(w.root, indexFile)
	if missing(err) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	all, err := readIndex(f)
	if err != nil {
		return err
	}
	for _, entry := range all.Manifests {
		if _, ours := entry.Annotations[AnnotationRepository]; !ours {
			return fmt.Errorf("%s is a layout that something else has made; name a new directory or an empty one", dir)
		}
	}
	return nil
}

// replace writes a file so that there is always the old one or the new one, whole.
func (w *directory) replace(name string, write func(*os.File) error) (err error) {
	temp := path.Join(path.Dir(name), ".new-"+path.Base(name))
	f, err := w.root.Create(temp)
	if err != nil {
		return err
	}
	if err = errors.Join(write(f), f.Sync(), f.Close()); err == nil {
		err = w.root.Rename(temp, name)
	}
	if err != nil {
		_ = w.root.Remove(temp) // what remains is the error that counts
	}
	return err
}

func (w *directory) concurrency() int { return parallel }

func (w *directory) has(d digest.Digest, size int64) bool {
	info, err := w.root.Lstat(blobPath(d))
	return err == nil && info.Mode().IsRegular() && info.Size() == size
}

func (w *directory) write(_ context.Context, d digest.Digest, size int64, from io.Reader) error {
	return w.replace(blobPath(d), func(f *os.File) error {
		_, err := io.Copy(f, verify(from, d, size))
		return err
	})
}

func (w *directory) begin(v1.Index) error { return nil }

// end makes the names of the blobs durable before the index that names them, and then that.
func (w *directory) end(all v1.Index, _ bool) error {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		if err := w.sync(blobsDir + "/" + alg.String()); err != nil {
			return err
		}
	}
	if err := w.sync(blobsDir); err != nil {
		return err
	}
	err := w.replace(indexFile, func(f *os.File) error { return json.NewEncoder(f).Encode(all) })
	return errors.Join(err, w.sync("."))
}

func (w *directory) sync(name string) error {
	f, err := w.root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (w *directory) prune(keep map[digest.Digest]struct{}) error {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		dir := blobsDir + "/" + alg.String()
		entries, err := fs.ReadDir(w.root.FS(), dir)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			if _, kept := keep[digest.NewDigestFromEncoded(alg, entry.Name())]; kept {
				continue
			}
			if err := w.root.Remove(dir + "/" + entry.Name()); err != nil {
				return err
			}
		}
	}
	return nil
}

// tarWriter is an archive as a stream.
type tarWriter struct{ *tar.Writer }

func newTarWriter(out io.Writer) *tarWriter { return &tarWriter{tar.NewWriter(out)} }

func (w *tarWriter) concurrency() int                       { return 1 }
func (w *tarWriter) has(digest.Digest, int64) bool          { return false }
func (w *tarWriter) prune(map[digest.Digest]struct{}) error { return nil }

func (w *tarWriter) begin(all v1.Index) error {
	if err := w.file(layoutFile, layoutVersion); err != nil {
		return err
	}
	return w.index(all)
}

func (w *tarWriter) end(all v1.Index, changed bool) error {
	if changed {
		if err := w.index(all); err != nil {
			return err
		}
	}
	return w.Close()
}

func (w *tarWriter) index(all v1.Index) error {
	body, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return w.file(indexFile, body)
}

func (w *tarWriter) file(name string, body []byte) error {
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))}); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// write is what cannot be taken back: content that ends early ends the stream, and damaged content stays in it, named by
// no index that counts.
func (w *tarWriter) write(_ context.Context, d digest.Digest, size int64, from io.Reader) error {
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: blobPath(d), Mode: 0o644, Size: size})
	if err != nil {
		return err
	}
	in := verify(from, d, size)
	if _, err = io.Copy(w, in); err != nil && in.left > 0 {
		return fmt.Errorf("the archive cannot be ended, begin again: %v", err)
	}
	return err
}

// Have tells which content an archive has, for an export that goes on top of it: a directory, or a tar file.
func Have(name string) (func(digest.Digest) bool, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		root, err := os.OpenRoot(name)
		if err != nil {
			return nil, err
		}
		return func(d digest.Digest) bool {
			info, err := root.Lstat(blobPath(d))
			return err == nil && info.Mode().IsRegular()
		}, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in, err := uncompressed(f)
	if err != nil {
		return nil, err
	}
	all := map[digest.Digest]struct{}{}
	err = eachFile(in, func(name string, _ int64, _ io.Reader) error {
		if d, ok := digestOf(name); ok {
			all[d] = struct{}{}
		}
		return nil
	})
	return func(d digest.Digest) bool { _, ok := all[d]; return ok }, err
}

// digestOf reads a blob's path in a layout.
func digestOf(name string) (digest.Digest, bool) {
	alg, hex, ok := strings.Cut(strings.TrimPrefix(name, blobsDir+"/"), "/")
	d, err := storage.ParseDigest(alg + ":" + hex)
	return d, ok && err == nil && strings.HasPrefix(name, blobsDir+"/")
}
