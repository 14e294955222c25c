package maintenance

import (
	"context"
	"testing"

	"trow/storage/bolt"
	"trow/storage/disk"
)

// SetWritable makes the file system answer whether it can be written to, for one test.
func SetWritable(t *testing.T, answer func() error) {
	old := stillWritable
	stillWritable = func(*disk.Blobs) error { return answer() }
	t.Cleanup(func() { stillWritable = old })
}

// WatchWritable is one look at whether the directory can be written to.
func WatchWritable(d *Data) { d.watchWritable(context.Background()) }

// SetOpenJournal makes Open open the journal by another function, for one test.
func SetOpenJournal(t *testing.T, open func(dir string) (*bolt.Journal, error)) {
	old := openJournal
	openJournal = open
	t.Cleanup(func() { openJournal = old })
}
