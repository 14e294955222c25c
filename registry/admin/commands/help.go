package commands

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"trow/registry/settings"
)

// groups are the headings of trow --help, with the commands below each.
var groups = []struct {
	id, title string
	commands  []string
}{
	{"run", "Run:", []string{"serve", "check", "config", "settings", "bench", "version"}},
	{"content", "See and change what a registry holds:", []string{"ls", "tags", "inspect", "history", "cp", "rm", "du"}},
	{"operate", "Operate a server:",
		[]string{"gc", "retention", "scrub", "export", "import", "rebuild", "token", "can-i", "pull-secret"}},
	{"cluster", "Clusters and nodes:",
		[]string{"manifest", "node", "credential-provider", "arm", "disarm", "rotate-ca"}},
}

// helpWidth is the width of help texts, in characters.
const helpWidth = 80

// Arrange gives a program its help: commands in groups, texts that fit a terminal, and errors about flags that name the
// one that was meant. Call it when all commands are there.
func Arrange(root *cobra.Command) {
	for _, g := range groups {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, name := range g.commands {
			if cmd, _, err := root.Find([]string{name}); err == nil && cmd != root {
				cmd.GroupID = g.id
			}
		}
	}
	cobra.AddTemplateFunc("trowWrap", wrap)
	cobra.AddTemplateFunc("trowFlags", func(f *pflag.FlagSet) string { return f.FlagUsagesWrapped(helpWidth) })
	usage := root.UsageTemplate()
	for _, flags := range []string{".LocalFlags", ".InheritedFlags"} {
		usage = strings.ReplaceAll(usage, "{{"+flags+".FlagUsages | trimTrailingWhitespaces}}",
			"{{trowFlags "+flags+" | trimTrailingWhitespaces}}")
	}
	cobra.AddTemplateFunc("trowShort", short80)
	usage = strings.ReplaceAll(usage, "{{rpad .Name .NamePadding }} {{.Short}}",
		"{{rpad .Name .NamePadding }} {{trowShort .Short .NamePadding}}")
	root.SetUsageTemplate(usage)
	root.SetHelpTemplate(`{{with (or .Long .Short)}}{{trowWrap . | trimTrailingWhitespaces}}

{{end}}{{if or .Runnable .HasSubCommands}}{{.UsageString}}{{end}}`)
	root.SetFlagErrorFunc(flagError)
}

// short80 fills what a list of commands says of one, beside names of this width.
func short80(text string, names int) string {
	indent := "  " + strings.Repeat(" ", names) + " "
	return strings.ReplaceAll(strings.TrimSpace(fill(text, helpWidth-len(indent))), "\n", "\n"+indent)
}

// wrap fills a text as wide as the help.
func wrap(text string) string { return fill(text, helpWidth) }

// fill fills the paragraphs of a text. Indented lines are examples and stay as they are.
func fill(text string, width int) string {
	var out, line strings.Builder
	flush := func() {
		if line.Len() > 0 {
			out.WriteString(line.String() + "\n")
			line.Reset()
		}
	}
	for in := range strings.SplitSeq(text, "\n") {
		if in == "" || strings.HasPrefix(in, " ") {
			flush()
			out.WriteString(in + "\n")
			continue
		}
		for word := range strings.FieldsSeq(in) {
			if line.Len() > 0 && utf8.RuneCountInString(line.String())+1+utf8.RuneCountInString(word) > width {
				flush()
			}
			if line.Len() > 0 {
				line.WriteByte(' ')
			}
			line.WriteString(word)
		}
	}
	flush()
	return out.String()
}

// flagError adds the remedy to an error about the flags of a command.
func flagError(cmd *cobra.Command, err error) error {
	unknown, ok := errors.AsType[*pflag.NotExistError](err)
	if !ok {
		return err
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
