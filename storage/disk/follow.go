package disk

import (
	"os"

	"trow/storage"
)

// Follow implements [storage.Growing]. It opens the file anew: a read then takes no lock of the upload, whose Commit
// holds its own for as long as a fsync takes, and the file can be read on after it was renamed or removed.
func (w *writer) Follow() (storage.Follower, error) {
	if err := w.lock(); err != nil {
		return nil, err
	}
	defer w.u.mu.Unlock()
	f, err := os.Open(w.u.path)
	if err != nil {
		return nil, fileError("upload", err)
	}
	return f, nil
}
