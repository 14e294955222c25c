package bolt_test

import (
	"fmt"
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

// TestTheFormatFollowsWhatIsRecorded: it rises with the first fact that needs it, and never falls, or an earlier
// version would open what it does not understand; and a journal of the newest format is opened again.
func TestTheFormatFollowsWhatIsRecorded(t *testing.T) {
	dir := t.TempDir()
	for i, row := range []struct {
		kind  storage.Kind
		value string
		want  byte
	}{
		{storage.KindHistory, "", 1}, // nothing to delete
		{storage.KindDeparted, "", 1},
		{storage.KindHistory, "1", 2},
		{storage.KindTag, "1", 2},
		{storage.KindDeparted, "1", 3},
		{storage.KindHistory, "2", 3},
		{storage.KindTag, "2", 3},
		{storage.KindDeparted, "", 3},
	} {
		j := openBolt(t, dir)
		f := storage.Fact{Kind: row.kind, Name: "a"}
		if row.value != "" {
			f.Value = []byte(row.value)
		}
		b := storage.Batch{Repo: fmt.Sprint("r", i), Facts: []storage.Fact{f}}
		if _, err := j.Commit(t.Context(), b); err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		j.Close()
		wantFormat(t, dir, row.want)
	}
	if newest := storage.KindDeparted.Format(); newest != storage.Format {
		t.Errorf("the newest format is %d, and this test knows those up to %d", storage.Format, newest)
	}
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
