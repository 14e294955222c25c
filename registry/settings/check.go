package settings

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"trow/storage/files"
)

// ErrInvalid is the error of trow config check if the files cannot be used. The command has printed why.
var ErrInvalid = errors.New("the configuration files are not valid")

// standardInput stands for the standard input among the files of trow config check.
const standardInput = "-"

// ConfigCommand returns trow config, whose command check reports whether configuration files are valid. load loads the
// settings for the flags of a command.
func ConfigCommand(load func(*cobra.Command) error) *cobra.Command {
	check := &cobra.Command{
		Use:   "check FILE…",
		Short: "Report whether configuration files are valid",
		Long: `check reports whether a server could load its settings from these files; a later file overrides an
earlier one, key by key, as with serve --config. Before changing ConfigMap trow:
  kubectl -n kube-public exec -i trow-0 -- \
    /trow config check /etc/trow-base - < trow.yaml
- is the standard input. It does not open what settings name, such as certificates.
The exit code is 0 if the files are valid, 1 if not, and 2 for other errors, such as a file that does not exist.`,
		Args: cobra.MinimumNArgs(1),
	}
	check.RunE = func(cmd *cobra.Command, paths []string) error {
		c := &configValue{}
		for _, path := range paths {
			if path == standardInput {
				b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), files.MaxSize+1))
				if err != nil || len(b) > files.MaxSize {
					return fmt.Errorf("standard input: want a configuration file of at most %d bytes (%v)",
						files.MaxSize, err)
				}
				c.docs = append(c.docs, document{"(standard input)", string(b)})
				continue
			}
			docs, err := (&configValue{paths: []string{path}}).read()
			if err != nil {
				return err
			}
			c.docs = append(c.docs, docs...)
		}
		c.paths = paths
		*check.Flags().Lookup(configFlag).Value.(*configValue) = *c
		if err := load(cmd); err != nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "not valid:", oneLine(err))
			return ErrInvalid
		}
		fmt.Fprintln(cmd.OutOrStdout(), "valid:", strings.Join(paths, ", "))
		return nil
	}
	AddConfigFlag(check.Flags())
	_ = check.Flags().MarkHidden(configFlag) // the files are arguments
	cmd := &cobra.Command{Use: "config", Short: "Check configuration files before they are used"}
	cmd.AddCommand(check)
	return cmd
}
