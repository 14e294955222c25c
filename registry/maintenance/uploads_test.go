package maintenance_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"trow/registry/maintenance"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// TestTheKeyOfUploadIDsOutlivesARestart as a record; that of an earlier version is taken from its file, and a damaged
// one is replaced, so that the server starts.
func TestTheKeyOfUploadIDsOutlivesARestart(t *testing.T) {
	var log bytes.Buffer
	o := options(t, &log)
	path := filepath.Join(o.DataDir, "upload.key")
	key := func(o maintenance.Options, record ...string) []byte {
		t.Helper()
		data, index := open(t, o)
		defer data.Close()
		for _, value := range record {
			old, err := index.Record(t.Context(), "upload-key")
			if err == nil {
				err = index.SetRecord(t.Context(), "upload-key", old, []byte(value))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		k, err := data.UploadKey(t.Context())
		if _, there := os.Stat(path); err != nil || len(k) != 32 || there == nil && !o.ReadOnly {
			t.Errorf("%v; the key is %x; there is a file: %v", err, k, there == nil)
		}
		return k
	}
	file := func(content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := strings.Repeat("k", 32)
	file(old)
	if first := key(o); string(first) != old {
		t.Errorf("the key of an earlier version is replaced by %x", first)
	}
	file(strings.Repeat("x", 32)) // a crash, or a copy: it does not count
	if again := key(o); string(again) != old || log.Len() != 0 {
		t.Errorf("the key is %x; the log: %s", again, &log)
	}
	for _, damage := range []string{"short", strings.Repeat("long", 20)} {
		fresh := key(o, damage)
		if string(fresh) == damage || !bytes.Equal(fresh, key(o)) {
			t.Errorf("%q: the key is %x", damage, fresh)
		}
	}
	fresh := options(t, &log)
	path = filepath.Join(fresh.DataDir, "upload.key")
	file("damaged")
	if first := key(fresh); !bytes.Equal(first, key(fresh)) {
		t.Error("after a damaged file the key is not kept")
	}
	fresh.ReadOnly = true
	if first := key(fresh); bytes.Equal(first, key(fresh)) {
		t.Error("read-only, where there are no uploads, the key is that of the record")
	}
}

func TestUploadsPerClient(t *testing.T) {
	for _, row := range [][3]int{{10000, 0, 1000}, {10000, 7, 7}, {100, 0, 16}, {2, 0, 16}} {
		o := maintenance.Options{MaxUploads: row[0], MaxUploadsPerClient: row[1]}
		if n := o.UploadsPerClient(); n != row[2] {
			t.Errorf("max-uploads %d and max-uploads-per-client %d: %d, want %d", row[0], row[1], n, row[2])
		}
	}
}

// TestReplicasHaveOneKeyOfUploadIDs, also if both start for the first time at the same moment.
func TestReplicasHaveOneKeyOfUploadIDs(t *testing.T) {
	for range 20 {
		j := memory.NewJournal()
		j.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 1 << 20}
		var keys [2][]byte
		var wg sync.WaitGroup
		for i := range keys {
			x := storagetest.OpenIndex(t, j)
			wg.Go(func() {
				var err error
				if keys[i], err = maintenance.RecordKey(t.Context(), x, bytes.Repeat([]byte{byte(i)}, 32)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(keys[0]) != 32 || !bytes.Equal(keys[0], keys[1]) {
			t.Errorf("the keys are %x and %x", keys[0], keys[1])
		}
	}
}
