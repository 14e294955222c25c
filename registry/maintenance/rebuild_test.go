package maintenance_test

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry/maintenance"
	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
	"trow/storage/storagetest"
	"trow/storage/storagetest/enginetest"
)

func openData(t *testing.T, dir string) (*disk.Blobs, *bolt.Journal) {
	t.Helper()
	return enginetest.Disk(t, dir), enginetest.Bolt(t, dir)
}

// spoil replaces the journal by something that is not one.
func spoil(t *testing.T, dir string) {
	t.Helper()
	for name, content := range map[string]string{"journal.db": "no journal", "owner": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func parseManifest(content []byte) (m storage.Manifest, parts map[digest.Digest]int64, ok bool) {
	layer := "layer of " + string(content)
	refs := []digest.Digest{digest.FromString(layer), digest.FromString("foreign")}
	parts = map[digest.Digest]int64{refs[0]: int64(len(layer))}
	return storage.Manifest{MediaType: "t", Refs: refs}, parts, strings.HasPrefix(string(content), "manifest")
}

// TestARebuildThatIsCutShort: until a rebuild has been run to its end, no server takes what it has made so far for
// everything.
func TestARebuildThatIsCutShort(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	blobs := enginetest.Disk(t, dir)
	var held []digest.Digest
	for _, content := range []string{"manifest 1", "manifest 2"} {
		d, err := storagetest.Push(ctx, blobs, []byte(content))
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, d)
	}
	spoil(t, dir)
	short, cut := context.WithCancel(ctx)
	o := maintenance.RebuildOptions{
		Into: "recovered", Recover: true,
		Parse: func(content []byte) (storage.Manifest, map[digest.Digest]int64, bool) {
			cut()
			return parseManifest(content)
		},
	}
	if _, err := maintenance.Rebuild(short, dir, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("the first: %v", err)
	}
	want := "run trow rebuild --data-dir " + dir + " again"
	if _, err := bolt.Open(dir); !errors.Is(err, storage.ErrDamaged) || !strings.Contains(err.Error(), want) {
		t.Fatalf("an unfinished journal opens: %v", err)
	}
	if _, err := maintenance.Rebuild(ctx, dir, o); err != nil {
		t.Fatalf("the second: %v", err)
	}
	_, journal := openData(t, dir)
	index := storagetest.OpenIndex(t, journal)
	for _, d := range held {
		if _, found, err := index.Resolve(ctx, "recovered", d.String()); !found || err != nil {
			t.Errorf("%s is not there: %v", d, err)
		}
	}
}

// TestRebuild restores the backup, finds what came after it, and quarantines what is missing; a foreign layer is not.
func TestRebuild(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	blobs, journal := openData(t, dir)
	index := storagetest.OpenIndex(t, journal)
	push := func(repo, content string) digest.Digest {
		t.Helper()
		layer, err := storagetest.Push(ctx, blobs, []byte("layer of "+content))
		if err != nil {
			t.Fatal(err)
		}
		d, err := storagetest.Push(ctx, blobs, []byte(content))
		if err != nil {
			t.Fatal(err)
		}
		m, _, _ := parseManifest([]byte(content))
		m.Digest, m.Size = d, int64(len(content))
		storagetest.Update(t, index, repo, func(tx *storage.Tx) error {
			tx.Link(layer, int64(len("layer of "+content)))
			return errors.Join(tx.PutManifest(m), tx.SetTag("v", d))
		})
		return d
	}
	lost, kept := push("a", "manifest lost"), push("b", "manifest kept")
	if err := journal.Backup(); err != nil {
		t.Fatal(err)
	}
	found, partly := push("c", "manifest found"), push("d", "manifest partly")
	if _, err := storagetest.Push(ctx, blobs, []byte("unclaimed")); err != nil {
		t.Fatal(err)
	}
	lostLayer := digest.FromString("layer of manifest partly")
	for _, d := range []digest.Digest{lost, lostLayer} {
		if err := blobs.Delete(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	index.Close()
	if err := journal.Close(); err != nil {
		t.Fatal(err)
	}
	spoil(t, dir)
	o := maintenance.RebuildOptions{Into: "recovered", Parse: parseManifest, Recover: true}
	r, err := maintenance.Rebuild(ctx, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if r.Damage == "" || r.Aside == "" || r.Backup.IsZero() || r.Restored.Repos != 2 {
		t.Errorf("rebuilt %+v", r)
	}
	if r.Unclaimed != 1 || r.UnclaimedBytes != 9 {
		t.Errorf("%d blobs of %d bytes are unclaimed, want one of 9", r.Unclaimed, r.UnclaimedBytes)
	}
	if len(r.Found) != 2 {
		t.Errorf("found %v, want %s and %s", r.Found, found, partly)
	}
	if len(r.Missing) != 2 || !slices.Contains(r.Missing, lost) || !slices.Contains(r.Missing, lostLayer) {
		t.Errorf("missing %v, want %s and %s, and no foreign layer", r.Missing, lost, lostLayer)
	}
	_, journal = openData(t, dir)
	index = storagetest.OpenIndex(t, journal)
	for repo, d := range map[string]digest.Digest{"b": kept, "recovered": found} {
		if m, ok, err := index.Resolve(ctx, repo, d.String()); !ok || err != nil || m.Damaged() != "" {
			t.Errorf("%s: found %v, damaged %q, %v", repo, ok, m.Damaged(), err)
		}
	}
	if m, _, _ := index.Resolve(ctx, "a", "v"); m.Damaged() != lost {
		t.Errorf("a missing manifest is not quarantined: %q", m.Damaged())
	}
	if m, _, _ := index.Resolve(ctx, "recovered", partly.String()); m.Damaged() != lostLayer {
		t.Errorf("a missing layer is not quarantined: %q", m.Damaged())
	}
}

// contents returns all files below a directory, with their content.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			all[path] = ""
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestDeletedManifestsDoNotComeBackUnasked: a rebuild says how many would, and after damage asks for a decision.
func TestDeletedManifestsDoNotComeBackUnasked(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	blobs, journal := openData(t, dir)
	if err := journal.Close(); err != nil {
		t.Fatal(err)
	}
	deleted, err := storagetest.Push(ctx, blobs, []byte("manifest deleted"))
	if err != nil {
		t.Fatal(err)
	}
	rebuild := func(o maintenance.RebuildOptions) (*maintenance.Rebuilt, error) {
		t.Helper()
		o.Into, o.Parse = "recovered", parseManifest
		return maintenance.Rebuild(ctx, dir, o)
	}
	held := func() bool {
		t.Helper()
		journal, err := bolt.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer journal.Close()
		index := storagetest.OpenIndex(t, journal)
		defer index.Close()
		_, found, err := index.Resolve(ctx, "recovered", deleted.String())
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if r, err := rebuild(maintenance.RebuildOptions{}); err != nil || len(r.Found) != 1 || held() {
		t.Fatalf("an intact journal: %+v, %v", r, err)
	}
	spoil(t, dir)
	before := contents(t, dir)
	r, err := rebuild(maintenance.RebuildOptions{DryRun: true, Recover: true})
	if err != nil || len(r.Found) != 1 || r.Damage == "" || strings.Contains(r.Damage, "dry-run") {
		t.Errorf("a dry run: %+v, %v", r, err)
	}
	if after := contents(t, dir); !maps.Equal(before, after) {
		t.Errorf("a dry run has changed the directory: %d files, then %d", len(before), len(after))
	}
	for range 2 { // also where the first has put the journal aside
		if r, err := rebuild(maintenance.RebuildOptions{}); !errors.Is(err, maintenance.ErrUndecided) ||
			len(r.Found) != 1 {
			t.Fatalf("a damaged journal: %+v, %v", r, err)
		}
		if _, err := bolt.Open(dir); !errors.Is(err, storage.ErrDamaged) {
			t.Fatalf("a server starts before the decision: %v", err)
		}
	}
	if _, err := rebuild(maintenance.RebuildOptions{Discard: true}); err != nil || held() {
		t.Fatalf("--recover=false: %v", err)
	}
	if _, err := rebuild(maintenance.RebuildOptions{Recover: true}); err != nil || !held() {
		t.Fatalf("--recover: %v", err)
	}
}

// TestARebuildMakesNothingInADirectoryWithoutData: it was named by mistake.
func TestARebuildMakesNothingInADirectoryWithoutData(t *testing.T) {
	dir := t.TempDir()
	for _, at := range []string{dir, filepath.Join(dir, "none")} {
		for _, dry := range []bool{true, false} {
			_, err := maintenance.Rebuild(t.Context(), at,
				maintenance.RebuildOptions{Parse: parseManifest, DryRun: dry})
			if err == nil || !strings.Contains(err.Error(), "holds no data of a registry; set --data-dir") {
				t.Errorf("%s: %v", at, err)
			}
		}
	}
	if all := contents(t, dir); len(all) != 1 {
		t.Errorf("it made %v", all)
	}
}
