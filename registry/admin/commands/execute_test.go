package commands_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/spf13/cobra"

	"trow/registry/admin/commands"
)

// TestExitCodes: an answer that is no differs from a command that failed, and only the latter prints its error.
func TestExitCodes(t *testing.T) {
	errNo := errors.New("no")
	for name, row := range map[string]struct {
		err     error
		code    int
		printed string
	}{
		"success":                  {nil, 0, ""},
		"an answer of the program": {fmt.Errorf("x: %w", errNo), 1, ""},
		"a denial":                 {commands.ErrDenied, 1, ""},
		"damage":                   {commands.ErrDamaged, 1, ""},
		"nothing removed":          {commands.ErrKept, 1, ""},
		"an error":                 {errors.New("two\n\tlines"), 2, "trow: two lines\n"},
	} {
		var out bytes.Buffer
		root := &cobra.Command{Use: "trow"}
		root.AddCommand(&cobra.Command{Use: "x", RunE: func(*cobra.Command, []string) error { return row.err }})
		root.SetArgs([]string{"x"})
		root.SetOut(&out)
		root.SetErr(&out)
		if code := commands.Execute(t.Context(), root, errNo); code != row.code || out.String() != row.printed {
			t.Errorf("%s: exit code %d and %q, want %d and %q", name, code, out.String(), row.code, row.printed)
		}
	}
}
