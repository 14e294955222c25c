//go:build faults

package bolt_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// device is a disk with a file system on it: a loop device over a file. When the file is cut, the blocks beyond its end
// can no longer be read, and the kernel reports it as for any broken disk: read returns EIO, and a look at a page of a
// memory map is a fault (SIGBUS). It needs root, losetup and mkfs.ext4.
type device struct {
	t     *testing.T
	image string
	dir   string // where it is mounted
}

const deviceBlock = 4096

func blobFile(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded())
}

func newDevice(t *testing.T) *device {
	t.Helper()
	top := t.TempDir()
	d := &device{t: t, image: filepath.Join(top, "image"), dir: filepath.Join(top, "mounted")}
	err := errors.Join(os.WriteFile(d.image, nil, 0o600), os.Truncate(d.image, 64<<20), os.Mkdir(d.dir, 0o700))
	if err != nil {
		t.Fatal(err)
	}
	d.run("mkfs.ext4", "-q", "-b", strconv.Itoa(deviceBlock), "-O", "^has_journal", d.image)
	loop := d.run("losetup", "--find", "--show", d.image)
	t.Cleanup(func() { d.run("losetup", "--detach", loop) })
	if err := syscall.Mount(loop, d.dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Detached: calls that were started on it may never end.
		if err := syscall.Unmount(d.dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *device) run(name string, args ...string) string {
	d.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s: %v: %s", name, err, out)
	}
	return strings.TrimSpace(string(out))
}

// block returns the number on the device of the n-th block of a file.
func (d *device) block(path string, n int) int64 {
	d.t.Helper()
	const fibmap = 1 // linux/fs.h
	f, err := os.Open(path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	at := int32(n)
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), fibmap, uintptr(unsafe.Pointer(&at)))
	if errno != 0 || at == 0 {
		d.t.Fatalf("%s: block %d is at %d: %v", path, n, at, errno)
	}
	return int64(at)
}

// breaks makes all blocks from a block on unreadable.
func (d *device) breaks(from int64) {
	d.t.Helper()
	syscall.Sync()
	if err := os.Truncate(d.image, from*deviceBlock); err != nil {
		d.t.Fatal(err)
	}
}

// forget makes the kernel drop what it has of a file in memory, including what this process has mapped.
func (d *device) forget(path string) {
	d.t.Helper()
	const pageOut = 21 // MADV_PAGEOUT
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		d.t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		if !strings.HasSuffix(strings.TrimSpace(line), path) {
			continue
		}
		if _, err := fmt.Sscanf(line, "%x-%x ", &from, &to); err != nil {
			d.t.Fatal(err)
		}
		if _, _, errno := syscall.Syscall(syscall.SYS_MADVISE, from, to-from, pageOut); errno != 0 {
			d.t.Fatal(errno)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	const dontNeed = 4 // POSIX_FADV_DONTNEED
	if _, _, errno := syscall.Syscall6(syscall.SYS_FADVISE64, f.Fd(), 0, 0, dontNeed, 0, 0); errno != 0 {
		d.t.Fatal(errno)
	}
}

// TestADiskBreaksUnderTheJournal: pages of the journal can no longer be read, which is a fault of bbolt's memory map.
// The process does not crash, reads continue from memory, writes fail with the reason, and the next start reports the
// damage.
func TestADiskBreaksUnderTheJournal(t *testing.T) {
	d := newDevice(t)
	whole, want, _ := written(t)
	if err := os.WriteFile(journalIn(d.dir), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	j := openBolt(t, d.dir)
	x := storagetest.OpenIndex(t, j)
	d.breaks(d.block(journalIn(d.dir), 2)) // all but the heads
	d.forget(journalIn(d.dir))
	if _, err := os.ReadFile(journalIn(d.dir)); !errors.Is(err, syscall.EIO) {
		t.Fatalf("the disk is not broken: %v", err)
	}
	for range 2 {
		err := within(t, func() error { return x.Update(t.Context(), "repo0", put(2000, "new")) })
		if !errors.Is(err, storage.ErrDamaged) {
			t.Errorf("a commit to a broken disk: %v", err)
		}
	}
	if got := holdings(t, x); !reflect.DeepEqual(got, want) {
		t.Error("reads do not continue as before")
	}
	_ = j.Backup() // it must fail
	if _, err := os.Stat(filepath.Join(d.dir, "journal.backup")); err == nil {
		t.Error("a backup was made of a file that cannot be read")
	}
	x.Close()
	_ = within(t, j.Close) // an error is right
	d.forget(journalIn(d.dir))
	if _, err := bolt.Open(d.dir); !errors.Is(err, storage.ErrDamaged) ||
		!strings.Contains(err.Error(), "a page of it cannot be read") ||
		!strings.Contains(err.Error(), "trow rebuild") {
		t.Errorf("the next start: %v", err)
	}
}

// within fails the test if do hangs.
func within(t *testing.T, do func() error) error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- do() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("it hangs")
		return nil
	}
}

// TestADiskBreaksUnderABlob: the damage is found, the blob is quarantined, and the next push, which gets other blocks,
// heals it.
func TestADiskBreaksUnderABlob(t *testing.T) {
	d := newDevice(t)
	b := openDisk(t, d.dir)
	x := storagetest.OpenIndex(t, memory.NewJournal())
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<14)
	at, err := storagetest.Push(t.Context(), b, content)
	if err != nil {
		t.Fatal(err)
	}
	storagetest.Update(t, x, "r", func(tx *storage.Tx) error { tx.Link(at, int64(len(content))); return nil })
	d.breaks(d.block(blobFile(d.dir, at), 10))
	d.forget(blobFile(d.dir, at))
	s := storage.Scrubber{Blobs: b, Index: x}
	found, err := s.Check(t.Context(), at)
	if err != nil || found == nil || !strings.Contains(found.Reason, "cannot be read") || !x.Quarantined(at) {
		t.Errorf("a blob that cannot be read: %+v, %v", found, err)
	}
	if err := os.Truncate(d.image, 64<<20); err != nil { // the disk replaces the broken blocks
		t.Fatal(err)
	}
	u, err := b.Create(t.Context(), "r", digest.SHA256)
	if err == nil {
		_, err = u.Write(content)
	}
	if err != nil {
		t.Fatal(err)
	}
	release, err := x.Commit(t.Context(), u, at)
	if err != nil {
		t.Fatal(err)
	}
	release()
	if found, err := s.Check(t.Context(), at); found != nil || err != nil || x.Quarantined(at) {
		t.Errorf("after the push: %+v, %v", found, err)
	}
}
