package commands

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"trow/registry/settings"
)

// others are words under which people look for a command.
var others = map[string][]string{
	"ls":      {"list", "repositories", "repos", "images", "catalog"},
	"tags":    {"tag"},
	"inspect": {"show", "describe", "info", "manifests"},
	"history": {"log"},
	"cp":      {"copy", "sync", "mirror", "push", "pull"},
	"rm":      {"remove", "delete", "del", "rmi", "untag"},
	"du":      {"df", "usage"},
	"warm":    {"prefetch", "preload", "fetch"},
	"cached":  {"cache"},
	"evict":   {"uncache", "expel"},
	"gc":      {"prune", "collect", "garbage-collect"},
	"serve":   {"server", "start", "run"},
	"check":   {"validate", "test", "lint"},
	"token":   {"robot", "login"},
	"create":  {"add", "new"},
	"list":    {"ls"},
	"revoke":  {"rm", "remove", "delete"},
}

// explainUsage makes the errors of a command and those below it name what was meant: a command, a flag, or the form of
// the arguments.
func explainUsage(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(flagError)
	if all := cmd.Commands(); len(all) > 0 {
		// cobra prints its help for a word that is no command of a command, with exit code 0: a script would go on.
		cmd.Args, cmd.SuggestionsMinimumDistance = unknownCommand, 2
		cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		for _, c := range all {
			c.SuggestFor = append(c.SuggestFor, others[c.Name()]...)
			explainUsage(c)
		}
		return
	}
	if cmd.Name() == "help" && cmd.Parent() == cmd.Root() {
		cmd.Args = helpTopic
		return
	}
	valid := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if valid != nil && valid(cmd, args) != nil {
			return fmt.Errorf("got %s; want: %s", arguments(args), cmd.UseLine())
		}
		return flagGroups(cmd)
	}
}

// arguments are a number of arguments, with their text.
func arguments(args []string) string {
	if len(args) == 0 {
		return "no argument"
	}
	const most = 3
	quoted := make([]string, min(len(args), most))
	for i := range quoted {
		quoted[i] = fmt.Sprintf("%.80q", args[i])
	}
	if len(args) > most {
		quoted = append(quoted, "…")
	}
	return fmt.Sprintf("%s (%s)", count(len(args), "argument", ""), strings.Join(quoted, ", "))
}

// unknownCommand refuses an argument of a command that has other commands and nothing else.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if near := slices.Compact(cmd.SuggestionsFor(args[0])); len(near) > 0 { // cobra gives one for each reason
		return fmt.Errorf("unknown command %.80q; did you mean %s %s?", args[0], cmd.CommandPath(),
			strings.Join(near, ", or "))
	}
	return fmt.Errorf("unknown command %.80q; %s --help lists the commands", args[0], cmd.CommandPath())
}

// helpTopic refuses a topic of trow help that is no command: cobra prints the general help, with exit code 0.
func helpTopic(cmd *cobra.Command, args []string) error {
	about, rest, err := cmd.Root().Find(args)
	if err == nil && about.HasSubCommands() {
		return unknownCommand(about, rest)
	}
	return err
}

// The keys under which cobra keeps which flags go together (flag_groups.go), and the values which flags are required.
const (
	exclusive = "cobra_annotation_mutually_exclusive"
	together  = "cobra_annotation_required_if_others_set"
)

// flagGroups reports flags that exclude each other, and those that are missing, before cobra does in its own terms.
func flagGroups(cmd *cobra.Command) (err error) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if slices.Equal(f.Annotations[cobra.BashCompOneRequiredFlag], []string{"true"}) && !f.Changed && err == nil {
			err = fmt.Errorf("--%s is missing; want: %s", f.Name, cmd.UseLine())
		}
		for _, group := range f.Annotations[exclusive] {
			for name := range strings.FieldsSeq(group) {
				if name != f.Name && f.Changed && cmd.Flags().Changed(name) && err == nil {
					err = fmt.Errorf("--%s and --%s exclude each other; omit one of them", f.Name, name)
				}
			}
		}
		for _, group := range f.Annotations[together] {
			for name := range strings.FieldsSeq(group) {
				if f.Changed && !cmd.Flags().Changed(name) && err == nil {
					err = fmt.Errorf("--%s needs --%s as well", f.Name, name)
				}
			}
		}
	})
	return err
}

// flagError adds the remedy to an error about the flags of a command.
func flagError(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	if near := settings.Nearest(unknown.GetSpecifiedName(), names); near != "" {
		return fmt.Errorf("%w; did you mean --%s?", err, near)
	}
	return fmt.Errorf("%w; %s --help lists the flags", err, cmd.CommandPath())
}
