package storage_test

import (
	"testing"

	"trow/storage"
)

// TestConditionsOfOneCommitAgree: of two different ones for the same fact at most one holds.
func TestConditionsOfOneCommitAgree(t *testing.T) {
	for _, row := range []struct {
		repo, name string
		value      []byte
		want       bool
	}{
		{"a", "fact", []byte("x"), true},
		{"a", "fact", []byte("y"), false},
		{"a", "fact", nil, false},
		{"a", "another", []byte("y"), true},
		{"b", "fact", []byte("y"), true},
	} {
		if got := storage.Agree("a", "fact", []byte("x"), row.repo, row.name, row.value); got != row.want {
			t.Errorf("%s %s = %q: %v", row.repo, row.name, row.value, got)
		}
	}
}
