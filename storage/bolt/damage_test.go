package bolt_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/storagetest"
)

// written makes a journal of some dozen pages. It returns its bytes, and what it holds in the end and one commit
// before.
func written(t *testing.T) (file []byte, held, before []storage.Holdings) {
	t.Helper()
	dir := t.TempDir()
	j := openBolt(t, dir)
	x := storagetest.OpenIndex(t, j)
	for i := range 300 {
		storagetest.Update(t, x, fmt.Sprint("repo", i%7), func(tx *storage.Tx) error {
			tx.Link(digest.FromString(fmt.Sprint("layer", i)), int64(i))
			return put(i, fmt.Sprint("t", i))(tx)
		})
	}
	for i := range 50 { // so that there are free pages with older facts
		storagetest.Update(t, x, fmt.Sprint("repo", i%7), func(tx *storage.Tx) error {
			return tx.DeleteTag(fmt.Sprint("t", i))
		})
	}
	before = holdings(t, x)
	storagetest.Update(t, x, "repo0", put(1000, "last"))
	held = holdings(t, x)
	x.Close()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(journalIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	return file, held, before
}

func holdings(t *testing.T, x *storage.Index) (all []storage.Holdings) {
	t.Helper()
	for _, name := range x.Names() {
		h, _, err := x.Holdings(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h)
	}
	return all
}

// load opens a journal of these bytes.
func load(t *testing.T, dir string, file []byte) (held []storage.Holdings, err error) {
	t.Helper()
	for name, content := range map[string][]byte{journalIn(dir): file, filepath.Join(dir, "owner"): nil} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j, err := bolt.Open(dir)
	if err != nil {
		return nil, err
	}
	defer j.Close()
	x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{})
	if err != nil {
		return nil, err
	}
	defer x.Close()
	return holdings(t, x), nil
}

// TestDamageIsReportedAndNeverLoaded damages every page in several ways: either the whole state is loaded, or Open or
// OpenIndex returns ErrDamaged with a remedy; the process does not crash.
func TestDamageIsReportedAndNeverLoaded(t *testing.T) {
	const page = 4096
	whole, want, before := written(t)
	r := rand.New(rand.NewPCG(1, 2))
	changes := map[string]func(file []byte, at int) []byte{
		"zeroed":  func(f []byte, at int) []byte { clear(f[at : at+page]); return f },
		"cut off": func(f []byte, at int) []byte { return f[:at] },
		"half":    func(f []byte, at int) []byte { return f[:at+page/2] },
		"exchanged": func(f []byte, at int) []byte {
			copy(f[at:at+page], whole[r.IntN(len(whole)/page)*page:])
			return f
		},
		"a bit": func(f []byte, at int) []byte {
			f[at+r.IntN(page)] ^= 1 << r.IntN(8)
			return f
		},
		"garbage": func(f []byte, at int) []byte {
			for i := range page {
				f[at+i] = byte(r.Uint32())
			}
			return f
		},
	}
	damaged := 0
	for name, change := range changes {
		for at := 0; at+page <= len(whole); at += page {
			held, err := load(t, t.TempDir(), change(append([]byte(nil), whole...), at))
			switch {
			case err == nil && at < 2*page && reflect.DeepEqual(held, before): // the other one of the two heads
			case err == nil && !reflect.DeepEqual(held, want):
				t.Errorf("page %d %s: only a part was loaded", at/page, name)
			case name == "a bit" && err != nil && strings.Contains(err.Error(), "use the newer version"):
				// a bit of the format's number
			case err != nil && !errors.Is(err, storage.ErrDamaged):
				t.Errorf("page %d %s: %v", at/page, name, err)
			case err != nil && !strings.Contains(err.Error(), "trow rebuild --data-dir"):
				t.Errorf("page %d %s: the error names no remedy: %v", at/page, name, err)
			case err != nil:
				damaged++
			}
		}
	}
	t.Logf("%d pages; %d of %d changed files are damaged", len(whole)/page, damaged, len(changes)*len(whole)/page)
	if damaged < 50 {
		t.Errorf("only %d files were found damaged", damaged)
	}
}

// TestTheJournalIsLostUnderARunningServer: reads continue, writes fail, and the process can end. The file is cut, which
// for a memory map is the same as a disk that cannot read (SIGBUS); device_test.go has a disk that really cannot.
func TestTheJournalIsLostUnderARunningServer(t *testing.T) {
	dir := t.TempDir()
	whole, want, _ := written(t)
	if err := os.WriteFile(journalIn(dir), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	j := openBolt(t, dir)
	x := storagetest.OpenIndex(t, j)
	if err := os.Truncate(journalIn(dir), 4096); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		ended := make(chan error, 1)
		go func() {
			ended <- x.Update(t.Context(), "repo0", func(tx *storage.Tx) error {
				tx.Link(digest.FromString("new"), 1)
				return nil
			})
		}()
		select {
		case err := <-ended:
			if err == nil || !strings.Contains(err.Error(), "a page of it cannot be read") {
				t.Errorf("a commit to a journal that is gone: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("the commit hangs")
		}
	}
	if got := holdings(t, x); !reflect.DeepEqual(got, want) {
		t.Error("reads do not continue as before")
	}
	_ = j.Backup() // must not replace a good backup
	x.Close()
	done := make(chan struct{})
	go func() { j.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("Close hangs")
	}
	if _, err := bolt.Open(dir); !errors.Is(err, storage.ErrDamaged) { // and the lock is free
		t.Errorf("opened again: %v", err)
	}
}

func TestBackup(t *testing.T) {
	dir := t.TempDir()
	j := openBolt(t, dir)
	x := storagetest.OpenIndex(t, j)
	storagetest.Update(t, x, "a", put(1, "v"))
	backup := filepath.Join(dir, "journal.backup")
	modified := func() time.Time {
		t.Helper()
		time.Sleep(20 * time.Millisecond) // the time of a file is coarse
		if err := j.Backup(); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(backup)
		if err != nil {
			t.Fatal(err)
		}
		return fi.ModTime()
	}
	first := modified()
	if !modified().Equal(first) {
		t.Error("the backup was written although nothing had changed")
	}
	storagetest.Update(t, x, "a", put(2, "w"))
	if modified().Equal(first) {
		t.Error("the backup was not written although something had changed")
	}
	file, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	held, err := load(t, t.TempDir(), file)
	if want := holdings(t, x); err != nil || !reflect.DeepEqual(held, want) {
		t.Errorf("the backup holds %v, %v; want %v", held, err, want)
	}
}
