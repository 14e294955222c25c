package disk

import (
	"os"

	"trow/storage"
)

// UploadsGrow implements [storage.Grows].
func (b *Blobs) UploadsGrow() {}

// Follow implements [storage.Growing]. It opens the file again, so that a read does not wait for the lock of the
// upload, which Commit holds during its fsync, and the file stays readable after it was renamed or removed. Errors:
// ErrClosed; those of the file system.
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
