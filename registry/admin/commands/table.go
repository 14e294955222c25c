package commands

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// output are the flags of commands that list.
type output struct {
	format format
	quiet  bool
}

// format is a pflag.Value: table or json.
type format string

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }
func (f *format) Set(text string) error {
	if text != "table" && text != "json" {
		return fmt.Errorf("want table or json")
	}
	*f = format(text)
	return nil
}

// addFlags adds --output and, where names is not empty, --quiet, which prints only these.
func (o *output) addFlags(cmd *cobra.Command, names string) {
	o.format = "table"
	cmd.Flags().VarP(&o.format, "output", "o", "table or json")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"},
		cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	if names != "" {
		cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "print only "+names+", one a line")
		cmd.MarkFlagsMutuallyExclusive("output", "quiet")
	}
}

func (o *output) json() bool { return o.format == "json" }

// printJSON prints a result for programs.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printLines prints names, one a line.
func printLines(w io.Writer, all []string) error {
	for _, name := range all {
		if _, err := fmt.Fprintln(w, printable(name)); err != nil {
			return err
		}
	}
	return nil
}

// table is a table for people. It fits the terminal: names that do not fit lose their middle, which --output json and
// --quiet print whole.
type table struct {
	head  []string
	right string // the heads of the columns that are aligned to the right, each between spaces
	rows  [][]string
}

func (t *table) add(row ...string) { t.rows = append(t.rows, row) }

// noTerminal is the width of a table that goes elsewhere.
const noTerminal = 80

func widthOf(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return noTerminal
}

// print prints the table, each line after indent.
func (t *table) print(w io.Writer, indent string) error {
	const gap = 2
	all := append([][]string{t.head}, t.rows...)
	for _, row := range t.rows {
		for i := range row {
			row[i] = printable(row[i])
		}
	}
	widths := make([]int, len(t.head))
	total := len(indent) + gap*(len(t.head)-1)
	for i := range widths {
		for _, row := range all {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
		total += widths[i]
	}
	for over := total - widthOf(w); over > 0; over-- { // a character at a time from the widest
		widest := 0
		for i := range widths {
			if widths[i] > widths[widest] {
				widest = i
			}
		}
		const least = 8 // a name that is cut further cannot be recognized
		if widths[widest] <= least {
			break
		}
		widths[widest]--
	}
	for _, row := range all {
		line := indent
		for i, cell := range row {
			cell = middle(cell, widths[i])
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if strings.Contains(t.right, " "+t.head[i]+" ") {
				cell = pad + cell
			} else {
				cell += pad
			}
			line += cell + strings.Repeat(" ", gap)
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " ")); err != nil {
			return err
		}
	}
	return nil
}

// printable replaces what would control a terminal: names and labels are text of the author of an image.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, text)
}

// middle shortens text to n characters.
func middle(text string, n int) string {
	all := []rune(text)
	if len(all) <= n {
		return text
	}
	head := (n - 1) / 2
	return string(all[:head]) + "…" + string(all[len(all)-(n-1-head):])
}

// short is a digest as tables have it: enough of it to be one.
func short(d digest.Digest) string {
	const digits = 12
	if alg, hex, ok := strings.Cut(d.String(), ":"); ok && len(hex) > digits {
		return alg + ":" + hex[:digits]
	}
	return d.String()
}
