package bolt_test

import (
	"testing"

	bbolt "go.etcd.io/bbolt"

	"trow/storage"
	"trow/storage/storagetest"
)

// TestTheFormatFollowsTheHistory: an earlier program opens data without a history, and refuses data with one, because
// it would move tags without recording it.
func TestTheFormatFollowsTheHistory(t *testing.T) {
	dir := t.TempDir()
	j := openBolt(t, dir)
	if _, err := j.Commit(t.Context(), storage.Batch{Repo: "r", Facts: []storage.Fact{
		{Kind: storage.KindTag, Name: "a", Value: []byte("1")},
	}}); err != nil {
		t.Fatal(err)
	}
	j.Close()
	wantFormat(t, dir, 1)
	dir = t.TempDir()
	j = openBolt(t, dir)
	x := storagetest.OpenIndex(t, j)
	storagetest.Update(t, x, "r", put(1, "v"))
	x.Close()
	j.Close()
	wantFormat(t, dir, 2)
}

func wantFormat(t *testing.T, dir string, want byte) {
	t.Helper()
	db, err := bbolt.Open(journalIn(dir), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		if got := tx.Bucket([]byte("meta")).Get([]byte("format")); len(got) != 8 || got[7] != want {
			t.Errorf("the format is %v, want %d", got, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
