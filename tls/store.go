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
)

// Store keeps the pairs: bytes in PEM by name ("ca.pem", "leaf.pem"). Safe for concurrent use.
type Store interface {
	// Load returns all that is kept, and its version. Nothing kept is an empty map and no error.
	Load(ctx context.Context) (files map[string][]byte, version string, err error)
	// Save keeps these files in place of those of that version, durably. false without an error: the version
	// has passed, nothing was saved, and the caller loads again. A store that has no other writer may have one
	// version for ever.
	Save(ctx context.Context, files map[string][]byte, version string) (bool, error)
	// String says where this is, for people who have to go there.
	String() string
}

// Dir is a [Store] in a directory, mode 0700, with files of mode 0600. It has no versions: the caller sees to it
// that one process at a time uses the directory.
type Dir string

// tempPrefix marks what a save has not finished. A crash leaves such files behind; OpenDir removes them.
const tempPrefix = ".tmp-"

// maxPEM bounds what is read from a file that should hold a pair: a key, a certificate and a chain are about
// 10 KiB. It keeps a path given by mistake (a device, a layer) from filling the memory.
const maxPEM = 1 << 20

// OpenDir makes the directory if need be, closes it to others, and removes what a crash left behind. Errors:
// whatever the file system reports.
func OpenDir(path string) (Dir, error) {
	left, err := sweep(path)
	if err != nil {
		return "", fmt.Errorf("certificates: %w", err)
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			return "", fmt.Errorf("certificates: %w", err)
		}
	}
	return Dir(path), syncDir(filepath.Dir(path))
}

// sweep makes the directory and lists what a crash left in it.
func sweep(path string) ([]string, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	tighten(path, 0o700)
	return filepath.Glob(filepath.Join(path, tempPrefix+"*"))
}

// tighten takes a mode that others may read away from what holds keys. That it fails is no error: Kubernetes
// gives a volume to a group (fsGroup), and then its owner is somebody else.
func tighten(path string, mode fs.FileMode) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&^mode != 0 {
		_ = os.Chmod(path, mode) // see above
	}
}

func (d Dir) String() string { return string(d) }

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

// Load reads the files.
func (d Dir) Load(context.Context) (map[string][]byte, string, error) {
	files := map[string][]byte{}
	for _, name := range []string{caFile, leafFile} {
		tighten(d.path(name), 0o600)
		s, err := readFile(d.path(name))
		switch {
		case err == nil:
			files[name] = []byte(s)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, "", err
		}
	}
	return files, "", nil
}

// Save writes the files, in the order of their names, so that the CA is there before a leaf of it.
func (d Dir) Save(_ context.Context, files map[string][]byte, _ string) (bool, error) {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if old, err := readFile(d.path(name)); err == nil && old == string(files[name]) {
			continue
		}
		if err := d.save(name, files[name]); err != nil {
			return false, err
		}
	}
	return true, nil
}

// save makes b the bytes of a name, durably: after a crash at any point the name holds the old or the new.
func (d Dir) save(name string, b []byte) error {
	f, err := os.CreateTemp(string(d), tempPrefix+"*") // with mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), d.path(name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(string(d))
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// readFile reads a file of at most maxPEM bytes.
func readFile(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxPEM {
		return "", fmt.Errorf("%s: not a file of at most %d bytes", path, maxPEM)
	}
	b, err := os.ReadFile(path)
	return string(b), err
}
