package commands_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage/bolt"
)

func TestRebuild(t *testing.T) {
	dir := t.TempDir()
	journal, err := bolt.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := func(args []string, texts ...string) {
		t.Helper()
		out, errOut, err := run(t, dir, "", append([]string{"rebuild"}, args...)...)
		if err != nil {
			t.Fatalf("%v, %s%s", err, out, errOut)
		}
		for _, text := range texts {
			if !strings.Contains(out, text) {
				t.Errorf("printed %q, want %q in it", out, text)
			}
		}
	}
	if err := journal.Close(); err != nil {
		t.Fatal(err)
	}
	want(nil, "The journal is intact.\nThe journal lists 0 repositories, 0 manifests, 0 tags.\n")

	manifest := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`
	found := writeBlob(t, dir, manifest)
	writeBlob(t, dir, "no manifest")
	if err := os.WriteFile(filepath.Join(dir, "journal.db"), []byte(strings.Repeat("damaged", 5000)),
		0o600); err != nil {
		t.Fatal(err)
	}
	// A dry run works on a copy, and names the original; rebuild does not say to run rebuild.
	out, errOut, err := run(t, dir+"/./", "", "rebuild", "--dry-run")
	if err != nil || !strings.HasPrefix(out, dir+"/journal.db: the journal is damaged: ") ||
		strings.Contains(out, "dry-run") || strings.Contains(out, "run trow rebuild") {
		t.Errorf("a dry run: %v: %s%s", err, out, errOut)
	}
	want([]string{"--into=lost/found", "--recover"}, "\nMoved it to ",
		"There was no backup: the names of repositories and tags are lost.\n",
		"\nfound    lost/found@"+found+" (application/vnd.oci.image.index.v1+json)\n",
		"\nFound 1 manifest that no repository held; put into lost/found.", "\n1 blob (11 B) that no repository uses: ")
	if _, _, err := run(t, dir, "", "rebuild", "now"); err == nil {
		t.Error("rebuild took an argument")
	}
}

// writeBlob puts content where a data directory keeps its blobs.
func writeBlob(t *testing.T, dir, content string) (d string) {
	t.Helper()
	sum := digest.FromString(content)
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", sum.Encoded()), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return sum.String()
}
