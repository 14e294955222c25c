package disk_test

import (
	"errors"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/disk"
)

// TestAnUploadIsReadWhileItGrows, and after it has ended, also by those who follow one that is dropped.
func TestAnUploadIsReadWhileItGrows(t *testing.T) {
	b, err := disk.Open(t.TempDir(), disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func(storage.Upload) error{
		"committed": func(u storage.Upload) error { return u.Commit(t.Context(), digest.FromString("0123456789")) },
		"cancelled": func(u storage.Upload) error { return u.Cancel(t.Context()) },
		"closed":    func(u storage.Upload) error { return u.Close(t.Context()) },
	} {
		u, err := b.Create(t.Context(), "a", digest.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		f, err := u.(storage.Growing).Follow()
		if err != nil {
			t.Fatal(err)
		}
		read := func(at int64, want string, wantErr error) {
			t.Helper()
			p := make([]byte, 5)
			if n, err := f.ReadAt(p, at); string(p[:n]) != want || !errors.Is(err, wantErr) {
				t.Errorf("%s: %q, %v", name, p[:n], err)
			}
		}
		read(0, "", io.EOF)
		for _, part := range []string{"01234", "56789"} {
			if _, err := u.Write([]byte(part)); err != nil {
				t.Fatal(err)
			}
			read(int64(u.Size())-5, part, nil)
			read(u.Size()-2, part[3:], io.EOF)
		}
		if err := end(u); err != nil {
			t.Fatal(err)
		}
		read(5, "56789", nil)
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if _, err := u.(storage.Growing).Follow(); !errors.Is(err, storage.ErrClosed) {
			t.Errorf("%s: followed after its end: %v", name, err)
		}
	}
}
