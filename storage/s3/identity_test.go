package s3_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"trow/storage"
	"trow/storage/storagetest"
)

// TestIdentity: it lies beside the objects, every process sees it, and it is no object.
func TestIdentity(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	x, y := open(t, options(f, r)), open(t, options(f, r))
	if id, err := x.Identity(t.Context()); id != "" || err != nil {
		t.Errorf("a new place: %q, %v", id, err)
	}
	for _, id := range []string{"ONE", "ANOTHER"} {
		wantNil(t, "set", x.SetIdentity(t.Context(), id))
		if got, err := y.Identity(t.Context()); got != id || err != nil {
			t.Errorf("%q, %v, want %q", got, err, id)
		}
	}
	for o, err := range x.Objects(t.Context()) {
		t.Errorf("an object: %+v, %v", o, err)
	}
	o := options(f, r)
	o.ReadOnly = true
	if err := open(t, o).SetIdentity(t.Context(), "THIRD"); !errors.Is(err, storage.ErrReadOnly) {
		t.Errorf("read-only: %v", err)
	}
}

// TestAnsweringSaysWhyRequestsFail at once.
func TestAnsweringSaysWhyRequestsFail(t *testing.T) {
	f, r := newFake(t), storagetest.NewRecords()
	b := open(t, options(f, r))
	if err := b.Answering(); err != nil {
		t.Error(err)
	}
	f.on(func(string, *http.Request) fault { return fault{status: 500, code: "InternalError"} })
	for range 5 {
		if _, err := b.Identity(t.Context()); !errors.Is(err, storage.ErrUnavailable) {
			t.Errorf("a service that is down: %v", err)
		}
	}
	if err := b.Answering(); err == nil || !strings.Contains(err.Error(), "20 requests in a row have failed") ||
		!strings.Contains(err.Error(), "S3 bucket bucket at") {
		t.Errorf("down: %v", err)
	}
}
