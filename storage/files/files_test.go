package files_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"trow/storage/files"
)

func open(t *testing.T) (*os.Root, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "own")
	root, err := files.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestWriteReplacesTheWholeFile(t *testing.T) {
	root, dir := open(t)
	for _, content := range []string{"a longer first content", "short"} {
		if err := files.Write(root, "f", []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		if b, err := files.Read(filepath.Join(dir, "f"), 100); err != nil || string(b) != content {
			t.Fatalf("read %q, %v; want %q", b, err, content)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "f"))
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Fatalf("mode %v, %v; want 0640", info.Mode(), err)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Fatalf("left behind: %v", got)
	}
}

func TestAFailedWriteLeavesTheOldContentAlone(t *testing.T) {
	root, dir := open(t)
	if err := files.Write(root, "f", []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	err := files.WriteFrom(root, "f", 0o600, func(w io.Writer) error {
		io.WriteString(w, "half of the new cont")
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatalf("error %v, want %v", err, broken)
	}
	if b, _ := files.ReadIn(root, "f", 100); string(b) != "old" {
		t.Fatalf("content %q, want the old one", b)
	}
	if got := names(t, dir); len(got) != 1 {
		t.Fatalf("left behind: %v", got)
	}
}

// TestADirectoryIsOpenedToBeSynced and closed again.
func TestADirectoryIsOpenedToBeSynced(t *testing.T) {
	root, dir := open(t)
	before := names(t, "/proc/self/fd")
	if err := errors.Join(files.SyncDirIn(root, "."), files.SyncDir(dir)); err != nil {
		t.Error(err)
	}
	if after := names(t, "/proc/self/fd"); len(after) != len(before) {
		t.Errorf("%d files are open, %d were before", len(after), len(before))
	}
	for _, err := range []error{files.SyncDirIn(root, "none"), files.SyncDir(filepath.Join(dir, "none"))} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a directory that is not there: %v", err)
		}
	}
}

func TestOpenDirRemovesWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".trow-tmp-x", ".tmp-123", "kept", ".hidden"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root, err := files.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if got := strings.Join(names(t, dir), " "); got != ".hidden kept" {
		t.Fatalf("left: %s", got)
	}
}

func TestSweepRemovesOnlyOurTemporaryFiles(t *testing.T) {
	root, dir := open(t)
	for _, name := range []string{".trow-tmp-x", ".tmp-of-another-program"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := files.Sweep(root, "."); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names(t, dir), " "); got != ".tmp-of-another-program" {
		t.Fatalf("left: %s", got)
	}
}

func TestNoNameLeadsOutOfTheRoot(t *testing.T) {
	root, dir := open(t)
	if err := os.Symlink(filepath.Dir(dir), filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../f", "out/f"} {
		if err := files.Write(root, name, []byte("x"), 0o600); err == nil {
			t.Errorf("%s was written", name)
		}
	}
}

func TestReadRefusesWhatIsNoSmallFile(t *testing.T) {
	dir := t.TempDir()
	large, fifo := filepath.Join(dir, "large"), filepath.Join(dir, "fifo")
	if err := os.WriteFile(large, make([]byte, 101), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{large: "more than 100 bytes", fifo: "not a regular file",
		dir: "not a regular file"} {
		if _, err := files.Read(path, 100); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if b, err := files.Read(large, 101); err != nil || len(b) != 101 {
		t.Errorf("a file of exactly the limit: %d bytes, %v", len(b), err)
	}
	if _, err := files.Read(filepath.Join(dir, "none"), 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// TestFollow uses the fake clock of synctest; the files are real.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	write := func(content string) {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex // guards applied and reported
		var applied []string
		var reported []error
		refused := errors.New("refused")
		done := make(chan struct{})
		go func() {
			defer close(done)
			files.Follow(ctx, path, []byte("first"), func(b []byte) error {
				mu.Lock()
				defer mu.Unlock()
				applied = append(applied, string(b))
				if string(b) == "bad" {
					return refused
				}
				return nil
			}, func(err error) { mu.Lock(); defer mu.Unlock(); reported = append(reported, err) })
		}()
		polls := func(n int) { time.Sleep(time.Duration(n) * files.PollInterval); synctest.Wait() }
		nothing := func(why string) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if len(applied) != 0 {
				t.Fatalf("applied %s: %q", why, applied)
			}
		}

		polls(3)
		nothing("without a change")
		write("half")
		polls(1)
		write("half and half")
		polls(1)
		nothing("what was seen once")
		polls(3)
		write("bad")
		polls(4)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		polls(4)
		write("half and half")
		polls(4)
		cancel()
		<-done
		slices.Sort(applied)
		if got, want := strings.Join(slices.Compact(applied), ","), "bad,half and half"; got != want {
			t.Errorf("applied %s, want %s", got, want)
		}
		if len(reported) != 4 || reported[0] != nil || !errors.Is(reported[1], refused) ||
			!errors.Is(reported[2], fs.ErrNotExist) || reported[3] != nil {
			t.Errorf("reported %v", reported)
		}
	})
}

// TestFollowRepeatsWhatHasFailed: what the content names may appear later.
func TestFollowRepeatsWhatHasFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var outcomes []string
		applied := 0
		ctx, cancel := context.WithTimeout(t.Context(), 20*files.PollInterval)
		defer cancel()
		files.Follow(ctx, path, []byte("first"), func(b []byte) error {
			if applied++; string(b) != "second" {
				t.Errorf("applied %q", b)
			}
			switch {
			case applied < 4:
				return errors.New("no such file")
			case applied < 6:
				return errors.New("it is empty")
			}
			return nil
		}, func(err error) { outcomes = append(outcomes, fmt.Sprint(err)) })
		if got := strings.Join(outcomes, ", "); applied != 6 || got != "no such file, it is empty, <nil>" {
			t.Errorf("applied %d times: %s", applied, got)
		}
	})
}

// TestAFollowerReportsTheFirstFileThatCannotBeRead, also behind a path that is empty.
func TestAFollowerReportsTheFirstFileThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	paths := []string{"", there, filepath.Join(dir, "first"), filepath.Join(dir, "second"), there}
	f := files.NewFollower(paths, make([][]byte, len(paths)))
	for i := range 2 {
		_, changed, err := f.Poll()
		if changed != (i == 1) || changed && (!errors.Is(err, fs.ErrNotExist) ||
			!strings.Contains(err.Error(), "first")) {
			t.Errorf("poll %d: %v, %v", i, changed, err)
		}
	}
}

func TestAFollowerOfAPair(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	write := func(path, content string) {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(cert, "c1")
	write(key, "k1")
	f := files.NewFollower([]string{cert, key, ""}, [][]byte{[]byte("c1"), []byte("k1"), nil})
	poll := func(want bool) [][]byte {
		t.Helper()
		contents, changed, err := f.Poll()
		if err != nil || changed != want {
			t.Fatalf("changed %v, %v; want %v", changed, err, want)
		}
		return contents
	}
	poll(false)
	write(cert, "c2")
	poll(false)
	write(key, "k2") // the pair is not complete before
	poll(false)
	if got := poll(true); string(got[0]) != "c2" || string(got[1]) != "k2" || got[2] != nil {
		t.Fatalf("got %q", got)
	}
	poll(false)
}
