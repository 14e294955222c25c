package storagetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// OpenIndex opens an Index that is closed when the test ends.
func OpenIndex(t testing.TB, j storage.Journal) *storage.Index {
	t.Helper()
	return OpenIndexWith(t, j, storage.IndexOptions{})
}

// OpenIndexWith is OpenIndex with options.
func OpenIndexWith(t testing.TB, j storage.Journal, o storage.IndexOptions) *storage.Index {
	t.Helper()
	x, err := storage.OpenIndex(t.Context(), j, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Close)
	return x
}

// Update changes a repo; an error fails the test.
func Update(t testing.TB, x *storage.Index, repo string, fn func(tx *storage.Tx) error) {
	t.Helper()
	if err := x.Update(t.Context(), repo, fn); err != nil {
		t.Fatal(err)
	}
}

// WantTags checks all tags of a repo.
func WantTags(t *testing.T, x *storage.Index, repo string, want ...string) {
	t.Helper()
	got, _, err := x.Tags(t.Context(), repo, "", -1)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Tags(%s): %v, %v; want %v", repo, got, err, want)
	}
}

// Random returns n bytes that no compression makes shorter, and that differ from those of another seed.
func Random(n int, seed byte) []byte {
	b := make([]byte, n)
	state := sha256.Sum256([]byte{seed})
	for i := 0; i < n; i += len(state) {
		copy(b[i:], state[:])
		state = sha256.Sum256(state[:])
	}
	return b
}

// Push uploads data, one Write per line.
func Push(ctx context.Context, b storage.Blobs, data []byte) (digest.Digest, error) {
	u, err := b.Create(ctx, repo, digest.SHA256)
	if err != nil {
		return "", err
	}
	defer u.Close(ctx)
	for piece := range bytes.Lines(data) {
		if _, err := u.Write(piece); err != nil {
			return "", err
		}
	}
	d := digest.FromBytes(data)
	return d, u.Commit(ctx, d)
}

// Read reads a blob.
func Read(ctx context.Context, b storage.Blobs, d digest.Digest) ([]byte, error) {
	r, err := b.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// FailedCalls lets each call of a push fail, before and after its effect, and tests that the failure is reported and
// that the next push succeeds. open returns an empty engine.
func FailedCalls(t *testing.T, open func(t *testing.T) storage.Blobs) {
	const last = 6 // the calls of a push: Create, three Writes, Commit, Close
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprint("after the effect: ", after), func(t *testing.T) {
			b, failed := open(t), 0
			for n := 1; ; n++ {
				data := fmt.Appendf(nil, "one\ntwo\n%d\n", n)
				fault := &Fault{N: n, After: after}
				_, err := Push(t.Context(), FailBlobs{Blobs: b, Fault: fault}, data)
				if err == nil && !fault.Fired() {
					break
				}
				if failed++; err == nil && n != last { // by then, Close has nothing to do
					t.Errorf("call %d failed, and the push succeeded", n)
				}
				commit := last - 1
				if _, serr := b.Stat(t.Context(), digest.FromBytes(data)); serr == nil && err != nil &&
					!(after && n == commit) {
					t.Errorf("call %d failed, and the blob exists", n)
				}
				if _, err := Push(t.Context(), b, data); err != nil {
					t.Errorf("a push after a failed call %d: %v", n, err)
				}
				if _, err := b.Stat(t.Context(), digest.FromBytes(data)); err != nil {
					t.Errorf("after a failed call %d: %v", n, err)
				}
			}
			if failed != last {
				t.Errorf("%d calls failed, want %d", failed, last)
			}
		})
	}
}
