package commands

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Execute gives the program root its help (see [Arrange]), runs it, and returns its exit code: 0 for success; 1 if the
// command worked and its answer is no, which is one of negative or an error of this package that says so; and 2 for
// another error, which Execute prints as one line.
func Execute(ctx context.Context, root *cobra.Command, negative ...error) int {
	Arrange(root)
	root.SilenceErrors, root.SilenceUsage = true, true
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case slices.ContainsFunc(append(negative, ErrDenied, ErrDamaged, ErrKept), func(e error) bool {
		return errors.Is(err, e)
	}):
		return 1
	}
	fmt.Fprintln(root.ErrOrStderr(), "trow:", strings.Join(strings.Fields(err.Error()), " "))
	return 2
}
