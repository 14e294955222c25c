package local_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"trow/storage"
	"trow/storage/internal/local"
)

func TestUploadIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		id := local.NewUploadID()
		if !local.ValidUploadID(id) || id[14] != '4' || seen[id] {
			t.Errorf("%s is not a new UUID of version 4", id)
		}
		seen[id] = true
	}
	good := "01234567-89ab-4def-8123-456789abcdef"
	for _, id := range []string{"", good + "0", strings.ToUpper(good), strings.Replace(good, "-", "0", 1),
		strings.Replace(good, "4", "/", 1), "../" + good[3:]} {
		if local.ValidUploadID(id) {
			t.Errorf("%q is taken for an upload ID", id)
		}
	}
}

func TestMakeDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 2 {
		if err := local.MakeDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(file, "c")} {
		if err := local.MakeDir(path); err == nil {
			t.Errorf("%s was made below or instead of a file", path)
		}
	}
}

func TestFull(t *testing.T) {
	for err, full := range map[error]bool{syscall.ENOSPC: true, syscall.EDQUOT: true, syscall.EIO: false} {
		if got := local.Full(err); errors.Is(got, storage.ErrFull) != full || !errors.Is(got, err) {
			t.Errorf("%v became %v", err, got)
		}
	}
}

// TestADirectoryOfAnotherUserNamesTheRemedy: the user, and the setting.
func TestADirectoryOfAnotherUserNamesTheRemedy(t *testing.T) {
	err := local.Denied(fmt.Errorf("open: %w", fs.ErrPermission))
	want := fmt.Sprintf("runs as user %d and group %d: ", os.Geteuid(), os.Getegid())
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), want) ||
		!strings.Contains(err.Error(), "--data-dir") {
		t.Error(err)
	}
	if err := local.Denied(syscall.EROFS); !strings.Contains(err.Error(), "--data-dir") {
		t.Error(err)
	}
	if err := local.Denied(syscall.EIO); err != error(syscall.EIO) {
		t.Error(err)
	}
}
