package commands

import (
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// groups are the headings of trow --help, with the commands below each.
var groups = []struct {
	id, title string
	commands  []string
}{
	{"run", "Run:", []string{"serve", "check", "config", "settings", "bench", "version"}},
	{"content", "See and change what a registry holds:",
		[]string{"ls", "tags", "inspect", "history", "cp", "rm", "du"}},
	{"cache", "The cache of other registries:", []string{"warm", "cached", "evict"}},
	{"operate", "Operate a server:",
		[]string{"gc", "retention", "scrub", "export", "import", "migrate", "rebuild", "token", "can-i",
			"pull-secret"}},
	{"cluster", "Clusters and nodes:",
		[]string{"manifest", "node", "credential-provider", "arm", "disarm", "rotate-ca"}},
}

// helpWidth is the width of help texts, in characters.
const helpWidth = 80

// addTemplates adds what the templates of the help use. The templates of cobra are those of the process.
var addTemplates = sync.OnceFunc(func() {
	cobra.AddTemplateFunc("trowWrap", wrap)
	cobra.AddTemplateFunc("trowFlags", flags80)
	cobra.AddTemplateFunc("trowShort", short80)
})

// Arrange gives a program its help: commands in groups, texts that fit a terminal, and errors about commands, arguments
// and flags that name the one that was meant. Call it when all commands are there.
func Arrange(root *cobra.Command) {
	root.Long = root.Short + "\n\nExit code: 0 on success, 1 if the answer is no (" +
		"an image that may not run, damage that was found, nothing that was removed), 2 on an error."
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	explainUsage(root)
	for _, g := range groups {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, name := range g.commands {
			if cmd, _, err := root.Find([]string{name}); err == nil && cmd != root {
				cmd.GroupID = g.id
			}
		}
	}
	addTemplates()
	usage := root.UsageTemplate()
	for _, flags := range []string{".LocalFlags", ".InheritedFlags"} {
		usage = strings.ReplaceAll(usage, "{{"+flags+".FlagUsages | trimTrailingWhitespaces}}",
			"{{trowFlags "+flags+" | trimTrailingWhitespaces}}")
	}
	usage = strings.ReplaceAll(usage, "{{rpad .Name .NamePadding }} {{.Short}}",
		"{{rpad .Name .NamePadding }} {{trowShort .Short .NamePadding}}")
	usage = strings.ReplaceAll(usage, "{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}")
	root.SetUsageTemplate(usage)
	root.SetHelpTemplate(`{{with (or .Long .Short)}}{{trowWrap . | trimTrailingWhitespaces}}

{{end}}{{if or .Runnable .HasSubCommands}}{{.UsageString}}{{end}}`)
}

// short80 fills what a list of commands says of one, beside names of this width.
func short80(text string, names int) string {
	indent := "  " + strings.Repeat(" ", names) + " "
	return strings.ReplaceAll(strings.TrimSpace(fill(text, helpWidth-len(indent))), "\n", "\n"+indent)
}

// flags80 describes flags. pflag makes room for the longest name and type beside every flag: so what a type says in
// parentheses goes behind the text, and =true|false stays only at switches that are on by default.
func flags80(all *pflag.FlagSet) string {
	shown := pflag.NewFlagSet("", pflag.ContinueOnError)
	shown.SortFlags = all.SortFlags
	all.VisitAll(func(f *pflag.Flag) {
		named := *f
		if typ, form, long := strings.Cut(f.Value.Type(), " ("); long {
			named.Value = typed{f.Value, typ}
			named.Usage += " (" + form
		} else if typ == "bool" && f.DefValue == "false" {
			named.Value, named.NoOptDefVal = typed{f.Value, ""}, ""
		}
		shown.AddFlag(&named)
	})
	return shown.FlagUsagesWrapped(helpWidth)
}

// typed is a value with a type of another name.
type typed struct {
	pflag.Value
	name string
}

func (t typed) Type() string { return t.name }

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
