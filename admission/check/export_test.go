package check

import (
	"syscall"
	"testing"

	"trow/storage/bolt"
)

// Unwritable makes every data directory one on a read-only volume.
func Unwritable(t *testing.T) {
	openToWrite = func(string) (*bolt.Journal, error) { return nil, syscall.EROFS }
	t.Cleanup(func() { openToWrite = bolt.Open })
}
