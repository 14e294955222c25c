package cluster

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestABuildThatFailsSaysWhy: the error has what the compiler reports.
func TestABuildThatFailsSaysWhy(t *testing.T) {
	err := BuildProgram(t.Context(), filepath.Join(t.TempDir(), "x"), "package main\n\nfunc main() { missing() }\n")
	if err == nil || !strings.Contains(err.Error(), "undefined: missing") {
		t.Errorf("got %v", err)
	}
}
