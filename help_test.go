package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"trow/registry/admin/commands"
)

// TestHelp: the help of every command is as in testdata/help, where UPDATE=1 writes it anew, and fits a terminal.
func TestHelp(t *testing.T) {
	root := newRoot()
	commands.Arrange(root)
	seen := map[string]bool{}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		args := strings.Fields(cmd.CommandPath())[1:]
		code, out, errOut := command(t, "", append(args, "--help")...)
		if code != 0 || errOut != "" {
			t.Errorf("%s: code %d: %s", cmd.CommandPath(), code, errOut)
		}
		for line := range strings.SplitSeq(out, "\n") {
			if utf8.RuneCountInString(line) > 80 {
				t.Errorf("%s: %d characters: %s", cmd.CommandPath(), utf8.RuneCountInString(line), line)
			}
		}
		file := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".txt"
		seen[file] = true
		path := filepath.Join("testdata", "help", file)
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(path, []byte(out), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(path); err != nil || out != string(want) {
			t.Errorf("%s: %v: printed\n%s\nwant\n%s", path, err, out, want)
		}
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(root)
	files, err := os.ReadDir(filepath.Join("testdata", "help"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !seen[f.Name()] {
			t.Errorf("testdata/help/%s is of no command", f.Name())
		}
	}
}
