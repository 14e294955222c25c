package tls

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"trow/storage/files"
)

// Store keeps the pairs: bytes in PEM by name ("ca.pem", "leaf.pem"). Safe for concurrent use.
type Store interface {
	// Load returns all that is kept, and its version. An empty store is an empty map and no error.
	Load(ctx context.Context) (pairs map[string][]byte, version string, err error)
	// Save durably replaces what is kept, if it still has that version. It returns false without an error if it has
	// another version: then nothing was saved, and the caller loads again. A store that has no other writer may always
	// have the same version.
	Save(ctx context.Context, pairs map[string][]byte, version string) (bool, error)
	// String says where the store is, for people who have to go there.
	String() string
}

// Dir is a [Store] in a directory, mode 0700, with files of mode 0600. It has no versions: the caller makes sure that
// only one process at a time uses the directory.
type Dir string

// OpenDir creates the directory if it does not exist, takes the access of others away, and removes what a crash left
// behind. Errors: those of the file system.
func OpenDir(path string) (Dir, error) {
	root, err := files.OpenDir(path)
	if err != nil {
		return "", fmt.Errorf("certificates: %w", err)
	}
	restrict(path, 0o700)
	// The directory may be new: its name must be durable before there is a CA in it.
	return Dir(path), errors.Join(root.Close(), files.SyncDir(filepath.Dir(path)))
}

// restrict takes the rights beyond mode away from a file that contains keys. It ignores errors: Kubernetes gives a
// volume to a group (fsGroup), and then this process may not be the owner.
func restrict(path string, mode fs.FileMode) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&^mode != 0 {
		_ = os.Chmod(path, mode) // see above
	}
}

func (d Dir) String() string { return string(d) }

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

// Load reads the files.
func (d Dir) Load(context.Context) (map[string][]byte, string, error) {
	for _, name := range []string{caFile, leafFile} {
		restrict(d.path(name), 0o600)
	}
	pairs, err := d.read()
	return pairs, "", err
}

func (d Dir) read() (map[string][]byte, error) {
	pairs := map[string][]byte{}
	for _, name := range []string{caFile, leafFile} {
		b, err := files.Read(d.path(name), files.MaxSize)
		switch {
		case err == nil:
			pairs[name] = b
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return pairs, nil
}

// Save writes the files that have changed.
func (d Dir) Save(ctx context.Context, pairs map[string][]byte, _ string) (bool, error) {
	kept, _, err := d.Load(ctx)
	if err != nil {
		return false, err
	}
	// The root is not kept open: the directory may be replaced, for example by a restored backup.
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return false, err
	}
	defer root.Close()
	// In the order of their names, so that after a crash between the two writes there is the CA and not the leaf: a
	// missing leaf is made again, but a leaf without its CA is useless.
	for _, name := range slices.Sorted(maps.Keys(pairs)) {
		if old, ok := kept[name]; ok && string(old) == string(pairs[name]) {
			continue
		}
		if err := files.Write(root, name, pairs[name], 0o600); err != nil {
			return false, err
		}
	}
	return true, nil
}
