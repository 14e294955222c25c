package s3_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"trow/storage"
	"trow/storage/storagetest"
)

// TestACopyIsWholeOrNotThere: of one request or of parts, whatever fails on the way.
func TestACopyIsWholeOrNotThere(t *testing.T) {
	const name = "20261128T204416Z-7"
	gone := errors.New("the journal has gone")
	for _, row := range []struct {
		what  string
		size  int
		fails string // the request that the service refuses
		err   error  // of what writes, at the end
		there bool
	}{
		{"nothing", 0, "", nil, true},
		{"small", 1000, "", nil, true},
		{"one part", 5 * mib, "", nil, true},
		{"parts", 12 * mib, "", nil, true},
		{"small, refused", 1000, "PutObject", nil, false},
		{"no multipart upload", 12 * mib, "CreateMultipartUpload", nil, false},
		{"a part is refused", 12 * mib, "UploadPart", nil, false},
		{"not completed", 12 * mib, "CompleteMultipartUpload", nil, false},
		{"small, cut off", 1000, "", gone, false},
		{"parts, cut off", 12 * mib, "", gone, false},
	} {
		f, r := newFake(t), storagetest.NewRecords()
		b, data := open(t, options(f, r)), storagetest.Random(row.size, 1)
		f.on(func(op string, _ *http.Request) fault {
			if op == row.fails {
				return fault{status: 403, code: "AccessDenied"}
			}
			return fault{}
		})
		err := b.WriteCopy(t.Context(), name, func(w io.Writer) error {
			for rest := data; len(rest) > 0; {
				n, err := w.Write(rest[:min(len(rest), 100_001)])
				if err != nil {
					return err
				}
				rest = rest[n:]
			}
			return row.err
		})
		if (err == nil) != row.there || row.err != nil && !errors.Is(err, row.err) {
			t.Errorf("%s: %v", row.what, err)
		}
		f.on(nil)
		all, err := b.Copies(t.Context())
		if err != nil || len(all) == 1 != row.there || f.openUploads() != 0 {
			t.Errorf("%s: %+v, %v; %d uploads", row.what, all, err, f.openUploads())
		}
		for o := range b.Objects(t.Context()) {
			t.Errorf("%s: it is an object: %+v", row.what, o)
		}
		body, err := b.OpenCopy(t.Context(), name)
		if !row.there {
			if !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("%s: open: %v", row.what, err)
			}
			continue
		}
		wantNil(t, row.what, err)
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes came back of %d: %v", row.what, len(got), len(data), err)
		}
		_ = body.Close()
		wantNil(t, "remove", b.RemoveCopies(t.Context(), name, "20251128T204416Z-7"))
		if all, err := b.Copies(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("%s: after the removal: %+v, %v", row.what, all, err)
		}
	}
}

// TestACopyOfADeadProcessIsSwept after a day.
func TestACopyOfADeadProcessIsSwept(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	b := open(t, options(f, r))
	f.mu.Lock()
	for id, began := range map[string]time.Duration{"old": 25 * time.Hour, "new": time.Hour} {
		f.uploads[id] = &multipart{key: "team/trow/facts/20261128T204416Z-7", began: time.Now().Add(-began)}
	}
	f.mu.Unlock()
	if _, err := b.Expire(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.uploads) != 1 || f.uploads["new"] == nil {
		t.Errorf("%d multipart uploads", len(f.uploads))
	}
}
