package tls

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
)

// fixedDir is a [Store] on a read-only directory. A new leaf stays in memory: clients trust the CA that has
// signed it. A new CA does not, because clients that had come to trust it would meet another one after a restart.
type fixedDir struct {
	Dir

	mu   sync.Mutex // guards leaf
	leaf []byte     // nil: that of the directory
}

var errFixedCA = errors.New("the CA cannot be changed, because the data directory is read-only; restart the server " +
	"where it can write to it")

// openStore returns the store of a server that keeps the pairs in a directory of its own.
func openStore(path string, readOnly bool) (Store, error) {
	if !readOnly {
		return OpenDir(path)
	}
	d := &fixedDir{Dir: Dir(path)}
	pairs, err := d.read()
	switch {
	case err != nil:
		return nil, fmt.Errorf("certificates: %w", err)
	case pairs[caFile] == nil:
		return nil, fmt.Errorf("certificates: %s contains no CA, and the server cannot make one, because the data "+
			"directory is read-only; start the server once where it can write to it, or set no-tls", path)
	}
	return d, nil
}

// Load implements [Store].
func (d *fixedDir) Load(context.Context) (map[string][]byte, string, error) {
	pairs, err := d.read()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && d.leaf != nil {
		pairs[leafFile] = d.leaf
	}
	return pairs, "", err
}

// Save implements [Store].
func (d *fixedDir) Save(_ context.Context, pairs map[string][]byte, _ string) (bool, error) {
	kept, err := d.read()
	if err != nil {
		return false, err
	}
	if !bytes.Equal(kept[caFile], pairs[caFile]) {
		return false, errFixedCA
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leaf = bytes.Clone(pairs[leafFile])
	return true, nil
}
