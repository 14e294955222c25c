// Package authtest makes users, and gives Guards their records, for tests.
package authtest

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"trow/registry/auth"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// New makes a Guard with records of its own, in memory.
func New(t testing.TB, o auth.Options) *auth.Guard {
	t.Helper()
	g, err := auth.New(o)
	if err == nil {
		err = g.Load(t.Context(), storagetest.OpenIndex(t, memory.NewJournal()), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// Htpasswd writes a file of users whose passwords are their names, and returns its path.
func Htpasswd(t testing.TB, names ...string) string {
	t.Helper()
	var text string
	for _, name := range names {
		hash, err := bcrypt.GenerateFromPassword([]byte(name), bcrypt.MinCost) // a higher cost takes time
		if err != nil {
			t.Fatal(err)
		}
		text += name + ":" + string(hash) + "\n"
	}
	path := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
