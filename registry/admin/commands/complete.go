package commands

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// completionTime bounds what a shell waits for.
const completionTime = 2 * time.Second

// errEnough ends a list of names.
var errEnough = errors.New("enough")

// completeReference completes the repositories of the command's server, and behind a colon the tags of one, in the
// first n arguments. What cannot be listed in time is not completed.
func completeReference(t *target, n int, tags bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		name, _, tagged := strings.Cut(typed[strings.LastIndexByte(typed, '/')+1:], ":")
		if name == "" {
			tagged = false
		}
		if !tagged || !tags {
			return t.completeNames(ctx, cmd, typed),
				cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		}
		return t.completeTags(ctx, cmd, typed), cobra.ShellCompDirectiveNoFileComp
	}
}

func (t *target) completeNames(ctx context.Context, cmd *cobra.Command, typed string) (names []string) {
	e, err := t.open(cmd)
	if err != nil {
		return nil
	}
	const most = 200
	_ = e.Repositories(ctx, func(page []string) error {
		for _, name := range page {
			if strings.HasPrefix(name, typed) {
				names = append(names, name)
			}
		}
		if len(names) >= most {
			return errEnough
		}
		return nil
	})
	return names
}

func (t *target) completeTags(ctx context.Context, cmd *cobra.Command, typed string) (names []string) {
	before := typed[:strings.LastIndexByte(typed, ':')]
	r, err := parseReference(before)
	if err != nil {
		return nil
	}
	e, err := t.find(cmd, &r)
	if err != nil {
		return nil
	}
	_ = e.HeldTags(ctx, r.repo, func(page []string) error {
		for _, tag := range page {
			if name := before + ":" + tag; strings.HasPrefix(name, typed) {
				names = append(names, name)
			}
		}
		return nil
	})
	return names
}
