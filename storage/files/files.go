// Package files writes small files whole and durably, and notices when files that other programs write have changed.
//
// # Words
//
//   - durable: it survives a power cut. A file is durable after fsync of the file; its name is durable after fsync of
//     the directory.
//   - temporary file: what a write has not finished. A crash may leave one behind; [Sweep] removes it.
//
// # Invariants
//
//  1. After a crash at any point, a name that [Write] replaces holds the old content or the new, whole.
//  2. When [Write] returns nil, the new content is durable.
//  3. Names are resolved below an *os.Root: no symbolic link leads out of it.
//  4. [Follower] returns a content only after it has seen it twice in a row, so that half of a file that is being
//     written is never taken for a new version.
//
// # What it does not do
//
// It does not lock: two writers of one name do not corrupt the file, but the last one wins. It is not for blobs, which
// are too large to be held in memory.
package files

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// TempPrefix begins the names of temporary files. It is ours alone, because Sweep removes such files from directories
// that other programs use as well.
const TempPrefix = ".trow-tmp-"

// olderTempPrefix marked them in earlier versions, in directories of our own alone.
const olderTempPrefix = ".tmp-"

// OpenDir creates the directory for its owner alone if it does not exist, removes what a crash left in it, and opens
// it. The directory must belong to this program alone. The caller closes the Root. Errors: those of the file system.
func OpenDir(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	if err := sweep(root, ".", TempPrefix, olderTempPrefix); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

// Sweep removes the temporary files that a crash left in a directory below root. No write to that directory may be
// under way.
func Sweep(root *os.Root, dir string) error { return sweep(root, dir, TempPrefix) }

func sweep(root *os.Root, dir string, prefixes ...string) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	for _, name := range names {
		for _, prefix := range prefixes {
			if strings.HasPrefix(name, prefix) {
				err = errors.Join(err, root.Remove(path.Join(dir, name)))
			}
		}
	}
	return err
}

// Write replaces the file name below root with content, durably. The directory must exist. mode is the file's, whatever
// the umask is. On an error the old content is still there, and no temporary file is left unless removing it failed
// too.
func Write(root *os.Root, name string, content []byte, mode fs.FileMode) error {
	return WriteFrom(root, name, mode, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
}

// WriteFrom is [Write] for content that write produces piece by piece.
func WriteFrom(root *os.Root, name string, mode fs.FileMode, write func(io.Writer) error) error {
	if err := Replace(root, name, mode, write); err != nil {
		return err
	}
	return SyncDirIn(root, path.Dir(name))
}

// Replace is [WriteFrom] without the fsync of the directory, for callers that write many files into one: after a crash
// the name holds the old content or the new, whole, and it is durable when the caller has called [SyncDirIn].
func Replace(root *os.Root, name string, mode fs.FileMode, write func(io.Writer) error) error {
	temp := path.Join(path.Dir(name), TempPrefix+rand.Text())
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	// The order makes invariants 1 and 2: the bytes are durable before the name points to them, and the name is durable
	// before WriteFrom returns. Chmod comes before fsync, so that it is durable as well.
	err = errors.Join(write(f), f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, root.Remove(temp))
	}
	return nil
}

// SyncDir makes the names in a directory durable: files that were created, renamed or removed before the call stay so
// after a power cut.
func SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// SyncDirIn is [SyncDir] for a directory below root.
func SyncDirIn(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Read reads a regular file of at most max bytes. The limit keeps a path given by mistake (a device, a layer) from
// filling the memory. Errors: those of the file system; an error that names the file if it is larger or not regular.
func Read(name string, max int64) ([]byte, error) {
	f, err := open(os.Stat, os.Open, name)
	if err != nil {
		return nil, err
	}
	return readAll(f, name, max)
}

// ReadIn is [Read] for a file below root.
func ReadIn(root *os.Root, name string, max int64) ([]byte, error) {
	f, err := open(root.Stat, root.Open, name)
	if err != nil {
		return nil, err
	}
	return readAll(f, name, max)
}

// open opens a regular file. It looks at the file before it opens it: to open a FIFO would block.
func open(stat func(string) (fs.FileInfo, error), open func(string) (*os.File, error), name string) (*os.File, error) {
	info, err := stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	return open(name)
}

func readAll(f *os.File, name string, max int64) ([]byte, error) {
	defer f.Close()
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if n > max {
		return nil, fmt.Errorf("%s has more than %d bytes", name, max)
	}
	return b.Bytes(), nil
}
