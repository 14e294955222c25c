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
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/storage"
	"trow/storage/files"
)

// verifier reads exactly the content of a digest: other bytes, or another number of them, are a problem.
type verifier struct {
	in   io.Reader
	left int64
	sum  digest.Verifier
}

func verify(in io.Reader, d digest.Digest, size int64) *verifier {
	return &verifier{in: in, left: size, sum: d.Verifier()}
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.left == 0 {
		return 0, v.finish()
	}
	n, err := v.in.Read(p[:min(int64(len(p)), v.left)])
	v.left -= int64(n)
	_, _ = v.sum.Write(p[:n]) // a hash returns no error
	// A registry that cannot read the rest of some content cuts its answer off; other content may be readable. One that
	// is gone fails the next request.
	if (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) && v.left > 0 {
		return n, problemf("the content is %d bytes shorter than recorded", v.left)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	return n, nil
}

// finish returns io.EOF if all content has been read and matches its digest.
func (v *verifier) finish() error {
	if n, _ := v.in.Read(make([]byte, 1)); n > 0 {
		return problemf("the content is longer than recorded")
	}
	if !v.sum.Verified() {
		return problemf("the content is damaged: it does not match its digest")
	}
	return io.EOF
}

// directory is an archive in a directory.
type directory struct {
	root *os.Root
	mode fs.FileMode // of new files
}

var layoutVersion = []byte(`{"imageLayoutVersion":"` + v1.ImageLayoutVersion + `"}`)

// openDirectory opens the archive in a directory, and creates both if needed.
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

// prepare makes the directory a layout without blobs, if it is not one yet.
func (w *directory) prepare(dir string) error {
	if _, err := w.root.Stat(layoutFile); errors.Is(err, fs.ErrNotExist) {
		entries, err := fs.ReadDir(w.root.FS(), ".")
		if err != nil {
			return err
		}
		if len(entries) > 0 {
			return fmt.Errorf("%s is not empty and holds no archive; use a new or an empty directory", dir)
		}
	} else if err != nil {
		return err
	}
	if err := w.checkOwner(dir); err != nil {
		return err
	}
	for _, alg := range algorithms {
		name := blobsDir + "/" + alg.String()
		if err := w.root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		// An export that was killed leaves temporary files, which can be as large as blobs.
		if err := files.Sweep(w.root, name); err != nil {
			return err
		}
	}
	info, err := w.root.Stat(blobsDir)
	if err != nil {
		return err
	}
	// Files are as readable as the directory: so the umask with which that was created holds for them too.
	w.mode = info.Mode().Perm() & 0o666
	return files.Write(w.root, layoutFile, layoutVersion, w.mode)
}

// checkOwner returns an error if another program made the layout, whose index an export would replace.
func (w *directory) checkOwner(dir string) error {
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
			return fmt.Errorf("%s holds a layout of another program; use a new or an empty directory", dir)
		}
	}
	return nil
}

func (w *directory) concurrency() int { return parallel }

// has compares the size alone: to read all content would make each export as slow as the first. A file gets its name
// only after its content was verified.
func (w *directory) has(d digest.Digest, size int64) bool {
	info, err := w.root.Lstat(blobPath(d))
	return err == nil && info.Mode().IsRegular() && info.Size() == size
}

// write leaves the fsync of the directory to end: one for all blobs.
func (w *directory) write(_ context.Context, d digest.Digest, size int64, from io.Reader) error {
	return files.Replace(w.root, blobPath(d), w.mode, func(f io.Writer) error {
		_, err := io.Copy(f, verify(from, d, size))
		return err
	})
}

func (w *directory) begin(v1.Index) error { return nil }

// end writes the index. The names of all blobs must be durable before the index that names them: also those of an
// earlier export that was cut short.
func (w *directory) end(all v1.Index, _ bool) error {
	for _, alg := range algorithms {
		if err := files.SyncDirIn(w.root, blobsDir+"/"+alg.String()); err != nil {
			return err
		}
	}
	if err := files.SyncDirIn(w.root, blobsDir); err != nil {
		return err
	}
	return files.WriteFrom(w.root, indexFile, w.mode, func(f io.Writer) error { return json.NewEncoder(f).Encode(all) })
}

func (w *directory) prune(keep map[digest.Digest]struct{}) error {
	for _, alg := range algorithms {
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

// tarWriter is an archive as a tar stream.
type tarWriter struct{ *tar.Writer }

func newTarWriter(out io.Writer) *tarWriter { return &tarWriter{tar.NewWriter(out)} }

func (w *tarWriter) concurrency() int                       { return 1 }
func (w *tarWriter) has(digest.Digest, int64) bool          { return false }
func (w *tarWriter) prune(map[digest.Digest]struct{}) error { return nil }

func (w *tarWriter) begin(all v1.Index) error {
	if err := w.writeFile(layoutFile, layoutVersion); err != nil {
		return err
	}
	return w.writeIndex(all)
}

func (w *tarWriter) end(all v1.Index, changed bool) error {
	if changed {
		if err := w.writeIndex(all); err != nil { // the later one of two index.json wins
			return err
		}
	}
	return w.Close()
}

func (w *tarWriter) writeIndex(all v1.Index) error {
	body, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return w.writeFile(indexFile, body)
}

func (w *tarWriter) writeFile(name string, body []byte) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// write writes content to a stream, which cannot be undone. If the content is too short, the stream cannot continue:
// that error is not a problem. Damaged content of the right size stays in the stream, but the index does not name it.
func (w *tarWriter) write(_ context.Context, d digest.Digest, size int64, from io.Reader) error {
	err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: blobPath(d), Mode: 0o644, Size: size})
	if err != nil {
		return err
	}
	in := verify(from, d, size)
	if _, err = io.Copy(w, in); err != nil && in.left > 0 {
		return fmt.Errorf("the tar stream cannot continue; export again: %v", err) // %v, so that it is not a problem
	}
	return err
}

// Have returns a function that reports whether an archive (a directory or a tar file) has some content, for an export
// that leaves that out.
func Have(name string) (func(digest.Digest) bool, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		root, err := os.OpenRoot(name) // open until the process ends
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
		if d, ok := parseBlobPath(name); ok {
			all[d] = struct{}{}
		}
		return nil
	})
	return func(d digest.Digest) bool { _, ok := all[d]; return ok }, err
}

// parseBlobPath is the inverse of blobPath.
func parseBlobPath(name string) (digest.Digest, bool) {
	alg, hex, ok := strings.Cut(strings.TrimPrefix(name, blobsDir+"/"), "/")
	d, err := storage.ParseDigest(alg + ":" + hex)
	return d, ok && err == nil && strings.HasPrefix(name, blobsDir+"/")
}
