// Package settingstest reads the settings of one package as a server reads them all, for that package's tests.
package settingstest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"trow/registry/settings"
)

// Options is a pointer to the settings of a package.
type Options[T any] interface {
	*T
	AddFlags(*pflag.FlagSet)
	Validate() error
}

// Load reads and validates settings from the text of a configuration file, if it is not empty, and arguments. The error
// is that of the file or of the validation; arguments that are no flags fail the test.
func Load[T any, P Options[T]](t *testing.T, file string, args ...string) (T, error) {
	t.Helper()
	var o, given T
	all, command := pflag.NewFlagSet("all", pflag.ContinueOnError), pflag.NewFlagSet("command", pflag.ContinueOnError)
	P(&o).AddFlags(all)
	P(&given).AddFlags(command) // as a command of the program has them
	settings.AddConfigFlag(command)
	if file != "" {
		path := filepath.Join(t.TempDir(), "trow.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config="+path)
	}
	if err := command.Parse(args); err != nil {
		t.Fatal(err)
	}
	if err := settings.Load(all, command); err != nil {
		return o, err
	}
	return o, P(&o).Validate()
}

// Reject fails the test unless each of the files, which are the keys, is refused with an error that has the text.
func Reject[T any, P Options[T]](t *testing.T, files map[string]string) {
	t.Helper()
	for file, want := range files {
		if _, err := Load[T, P](t, file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
}
