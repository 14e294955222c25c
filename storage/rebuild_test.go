package storage_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// TestARebuildThatIsCutShort: until it has been run to its end, nobody takes what it has made so far for all there is.
func TestARebuildThatIsCutShort(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	blobs, err := storage.OpenDisk(dir, storage.DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var held []digest.Digest
	for _, content := range []string{"manifest 1", "manifest 2"} {
		d, err := pushBlob(ctx, blobs, []byte(content))
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, d)
	}
	if err := os.WriteFile(journalIn(dir), []byte("no journal"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "owner"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	short, cut := context.WithCancel(ctx)
	parse := func(content []byte) (storage.Manifest, bool) {
		cut()
		return storage.Manifest{MediaType: "t"}, strings.HasPrefix(string(content), "manifest")
	}
	if _, err := storage.Rebuild(short, dir, storage.RebuildOptions{Into: "recovered", Parse: parse}); !errors.Is(err, context.Canceled) {
		t.Fatalf("the first: %v", err)
	}
	if _, err := storage.OpenBolt(dir); !errors.Is(err, storage.ErrDamaged) || !strings.Contains(err.Error(), "run trow rebuild --data-dir "+dir+" again") {
		t.Fatalf("what is not finished opens: %v", err)
	}
	if _, err := storage.Rebuild(ctx, dir, storage.RebuildOptions{Into: "recovered", Parse: parse}); err != nil {
		t.Fatalf("the second: %v", err)
	}
	journal, err := storage.OpenBolt(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	index, err := storage.OpenIndex(ctx, journal, storage.IndexOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer index.Close()
	for _, d := range held {
		if _, found, err := index.Resolve(ctx, "recovered", d.String()); !found || err != nil {
			t.Errorf("%s is not there: %v", d, err)
		}
	}
}
