package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// maxColumns is how wide a line may be; a tab counts as tabWidth.
const (
	maxColumns = 120
	tabWidth   = 4
)

// TestLinesFitAScreen: no line of code, of a script or of the text of a README is wider than maxColumns, in the tests
// and the modules of .ci as well. Tables and blocks of code in a README are as wide as what they show.
func TestLinesFitAScreen(t *testing.T) {
	checked := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == ".git" || d.Name() == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		// The scripts of .ci have no ending.
		script := strings.HasPrefix(path, ".ci") && filepath.Ext(d.Name()) == ""
		if !script && !slices.Contains([]string{".go", ".bash", ".md"}, filepath.Ext(path)) || !d.Type().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		checked++
		for n, line := range strings.Split(string(text), "\n") {
			if width := columns(line); width > maxColumns && !(filepath.Ext(path) == ".md" && isTableOrCode(line)) {
				t.Errorf("%s:%d has %d columns; want at most %d", path, n+1, width, maxColumns)
			}
		}
		return nil
	})
	if err != nil || checked < 100 {
		t.Fatalf("%d files: %v", checked, err)
	}
}

// columns returns how wide a line is.
func columns(line string) int {
	return utf8.RuneCountInString(line) + (tabWidth-1)*strings.Count(line, "\t")
}

// isTableOrCode reports whether a line of Markdown is a row of a table, or of a block of code: those are indented.
func isTableOrCode(line string) bool {
	return strings.HasPrefix(strings.TrimLeft(line, " "), "|") || strings.HasPrefix(line, "    ")
}
