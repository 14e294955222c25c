package auth_test

import (
	"errors"
	"strings"
	"testing"

	"trow/registry/auth"
)

// TestPasswordsThatBcryptCuts are refused for users of the htpasswd file: others would be accepted in their place.
func TestPasswordsThatBcryptCuts(t *testing.T) {
	long := strings.Repeat("x", 71)
	file := t.TempDir() + "/htpasswd"
	write(t, file, line(t, "alice", long+"y", 4), line(t, "bob", "b", 4))
	owner := strings.Repeat("o", 100)
	g := guard(t, auth.Options{User: "owner", Password: owner, Htpasswd: file})
	for _, row := range []struct{ user, password, want string }{
		{"alice", long + "y", ""},
		{"alice", long + "y and more", "72 bytes"},
		{"bob", "b", ""},
		{"bob", "b\x00b", "NUL"},
		{"mallory", long + "y and more", "72 bytes"}, // does not reveal who is a user
		{"owner", owner, ""},
		{"owner", owner + "x", "72 bytes"},
	} {
		_, err := g.Identify(withLogin(row.user, row.password))
		if row.want == "" && err != nil || row.want != "" && (!errors.Is(err, auth.ErrUnauthorized) ||
			!strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s %.80q: %v", row.user, row.password, err)
		}
	}
}
