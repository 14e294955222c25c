package registry_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestContentAndListsAreReadInOneFile keeps handlers from reading the Index and the blobs themselves: what read.go
// checks, such as known damage, would be checked on some paths only.
func TestContentAndListsAreReadInOneFile(t *testing.T) {
	reads := regexp.MustCompile(`options\.(Index\.(Resolve|Blob|Tags|Repos|Referrers)|Blobs\.Open)\(`)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := reads.FindAllString(string(text), -1)
		switch {
		case file == "read.go":
			if len(found) < 6 || strings.Contains(string(text), `"net/http"`) {
				t.Errorf("read.go reads %q; want each kind, and no HTTP", found)
			}
		case len(found) > 0 && !strings.HasSuffix(file, "_test.go"):
			t.Errorf("%s reads %q; use the functions of read.go", file, found)
		}
	}
}
