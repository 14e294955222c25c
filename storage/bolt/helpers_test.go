package bolt_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/storagetest"
	"trow/storage/storagetest/enginetest"
)

var (
	openBolt  = enginetest.Bolt
	openDisk  = enginetest.Disk
	openFiles = enginetest.OpenFiles
	wantTags  = storagetest.WantTags
)

func TestJournal(t *testing.T) { storagetest.Journal(t, enginetest.BoltPlace) }

// put records a manifest with a tag.
func put(i int, tag string) func(tx *storage.Tx) error {
	m := storage.Manifest{Digest: digest.FromString(fmt.Sprint("m", i)), MediaType: "application/a", Size: int64(i)}
	return func(tx *storage.Tx) error { return errors.Join(tx.PutManifest(m), tx.SetTag(tag, m.Digest)) }
}
