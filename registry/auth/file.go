package auth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// tempPrefix marks what a save has not finished. A crash leaves such files behind; openDir removes them.
const tempPrefix = ".tmp-"

// openDir makes the directory, for its owner alone, and removes what a crash left in it.
func openDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(path, tempPrefix+"*"))
	for _, f := range left {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}

// save makes b the content of a file that its owner alone can read, durably: after a crash at any point the name holds
// the old or the new.
func save(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*") // with mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// readFile reads a regular file of at most so many bytes.
func readFile(path string, most int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%s: not a file of at most %d bytes", path, most)
	}
	return os.ReadFile(path)
}

const (
	// pollEvery is how often a file that may change is looked at, as the certificates are.
	pollEvery = 5 * time.Second
	// maxFile bounds files that people write: 1 MiB is the htpasswd lines of 10,000 users.
	maxFile = 1 << 20
)

// Follow calls apply whenever a file's content has changed since seen, and tell with what came of it, nil for success,
// until ctx ends. It compares the content, so it does not matter how the file was replaced: written over, renamed, or
// the symbolic link to its directory swapped, as Kubernetes does. It acts when two looks in a row found the same, so
// that it does not read half of what is being written. An error is told once.
func Follow(ctx context.Context, path string, seen []byte, apply func(content []byte) error, tell func(error)) {
	last, acted := string(seen), string(seen)
	t := time.NewTicker(pollEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		b, err := readFile(path, maxFile)
		now := string(b)
		if err != nil {
			now = err.Error() // so that the same error twice is the same
		}
		settled := now == last
		last = now
		if now == acted || !settled {
			continue
		}
		acted = now
		if err == nil {
			err = apply(b)
		}
		tell(err)
	}
}
