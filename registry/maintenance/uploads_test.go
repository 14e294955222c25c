package maintenance_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"trow/registry/maintenance"
)

// TestTheKeyOfUploadIDsOutlivesARestart, and a damaged key is replaced, so that the server starts.
func TestTheKeyOfUploadIDsOutlivesARestart(t *testing.T) {
	var log bytes.Buffer
	o := options(t, &log)
	path := filepath.Join(o.DataDir, "upload.key")
	key := func() []byte {
		t.Helper()
		data, err := maintenance.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		defer data.Close()
		return data.UploadKey()
	}
	first := key()
	if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o600 || fi.Size() != 32 {
		t.Errorf("%v, %v", fi, err)
	}
	if again := key(); !bytes.Equal(first, again) || len(first) != 32 || log.Len() != 0 {
		t.Errorf("the key is %x, and then %x; the log: %s", first, again, &log)
	}
	for _, damage := range []string{"", "short", strings.Repeat("long", 20)} {
		log.Reset()
		if err := os.WriteFile(path, []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		fresh := key()
		if len(fresh) != 32 || bytes.Equal(fresh, first) || !strings.Contains(log.String(), "upload.key: it is damaged") {
			t.Errorf("%q: the key is %x; the log: %s", damage, fresh, &log)
		}
		if again := key(); !bytes.Equal(fresh, again) {
			t.Errorf("%q: the key was not replaced", damage)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil { // it cannot be replaced
		t.Fatal(err)
	}
	if k := key(); len(k) != 32 || !strings.Contains(log.String(), "cannot be kept") {
		t.Errorf("without a place the key is %x; the log: %s", k, &log)
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
