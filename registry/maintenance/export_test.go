package maintenance

import (
	"testing"

	"trow/storage/bolt"
)

// SetOpenJournal makes Open open the journal by another function, for one test.
func SetOpenJournal(t *testing.T, open func(dir string) (*bolt.Journal, error)) {
	old := openJournal
	openJournal = open
	t.Cleanup(func() { openJournal = old })
}

// RecordKey is recordKey.
var RecordKey = recordKey
