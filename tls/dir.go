package tls

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// dir is where the pairs are kept: bytes in PEM by name. It is the only code that knows it is a directory, so
// that the pairs can be kept elsewhere by another type with a load and a save.
type dir string

// tempPrefix marks what a save has not finished. A crash leaves such files behind; openDir removes them.
const tempPrefix = ".tmp-"

// maxPEM bounds what is read from a file that should hold a pair: a key, a certificate and a chain are about
// 10 KiB. It keeps a path given by mistake (a device, a layer) from filling the memory.
const maxPEM = 1 << 20

// openDir makes the directory if need be, closes it to others, and sweeps it.
func openDir(path string) (dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", err
	}
	tighten(path, 0o700)
	left, err := filepath.Glob(filepath.Join(path, tempPrefix+"*"))
	if err != nil {
		return "", err
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			return "", err
		}
	}
	return dir(path), syncDir(filepath.Dir(path))
}

// tighten takes a mode that others may read away from what holds keys. That it fails is no error: Kubernetes
// gives a volume to a group (fsGroup), and then its owner is somebody else.
func tighten(path string, mode fs.FileMode) {
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&^mode != 0 {
		_ = os.Chmod(path, mode) // see above
	}
}

func (d dir) path(name string) string { return filepath.Join(string(d), name) }

// load returns the bytes of a name. Errors: fs.ErrNotExist if there are none.
func (d dir) load(name string) ([]byte, error) {
	tighten(d.path(name), 0o600)
	s, err := readFile(d.path(name))
	return []byte(s), err
}

// save makes b the bytes of a name, durably: after a crash at any point the name holds the old or the new.
func (d dir) save(name string, b []byte) error {
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
