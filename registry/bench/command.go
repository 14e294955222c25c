package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// flags are the command's flags that are not settings of [Options].
type flags struct {
	options                 Options
	list, clean, compare    bool
	caFile, passwordFile    string
	jsonFile, static, scale string
}

// Command returns trow bench. Results go to the command's output, progress to its error output. Errors: those of
// [Run] and of the files.
func Command() *cobra.Command {
	c := flags{options: Default(), scale: "small"}
	cmd := &cobra.Command{
		Use:   "bench URL",
		Short: "Load a registry and measure it, to size a cluster",
		Long: `bench fills a registry (Trow or any other OCI registry) with content and measures pulls, pushes, lists
and verdicts per second, their latency, and with --pid what they cost the server. It puts full load on the server: do
not use it on a registry that others need.

Everything that bench creates is in the repository --repository and below. --clean deletes the manifests again. It
leaves blobs to the server's garbage collection, the names of repositories if the server keeps them, and manifests
without a tag if an earlier run was stopped while it deleted them.

The exit code is 1 if all operations of a scenario failed.`,
		Example: "  trow bench https://trow.kube-public:31000 --cacert ca.crt --user admin \\\n" +
			"    --password-file password\n" +
			"  trow bench http://127.0.0.1:5000 --pid $(pidof registry) \\\n" +
			"    --scenarios manifest-get-tag --json a.json\n" +
			"  trow bench --compare a.json b.json",
		RunE: func(cmd *cobra.Command, args []string) error { return c.run(cmd, args) },
	}
	c.options.AddFlags(cmd.Flags())
	c.addFlags(cmd.Flags())
	return cmd
}

// AddFlags adds a flag for each setting. The present values are the defaults.
func (o *Options) AddFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&o.Scenarios, "scenarios", nil, "scenarios to measure (default: all that the server supports)")
	f.IntSliceVar(&o.Connections, "connections", o.Connections,
		"numbers of operations at once; each operation has its own connection")
	f.DurationVar(&o.Duration, "duration", o.Duration,
		"duration of each scenario with each number of connections, after a warm-up of a fifth of it")
	f.StringVar(&o.Protocol, "protocol", o.Protocol, "http/1.1 or h2")
	f.BoolVar(&o.Insecure, "insecure", false, "do not verify the server's certificate")
	f.StringVarP(&o.User, "user", "u", "", "user to log in as")
	f.IntVar(&o.PID, "pid", 0,
		"process ID of a server on this machine (Linux); reports CPU time and memory of it and its children")
	f.BoolVar(&o.PopulateOnly, "populate-only", false, "push the content and measure nothing")
	f.BoolVar(&o.NoPopulate, "no-populate", false, "do not push the content; it must be there")
	f.Uint64Var(&o.Seed, "seed", o.Seed, "seed that the content is derived from")
	f.StringVar(&o.Repository, "repository", o.Repository, "repository for everything that is created, in it and below")
}

func (c *flags) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&c.list, "list", false, "list the scenarios and exit")
	f.StringVar(&c.caFile, "cacert", "", "file with the CA certificate of the server (PEM)")
	f.StringVar(&c.passwordFile, "password-file", "", "file with the user's password")
	f.StringVar(&c.jsonFile, "json", "",
		"write the results as JSON to this file (- for standard output), instead of a table")
	f.StringVar(&c.scale, "scale", c.scale,
		"number of tags and repositories: small (100 tags, 50 repositories) or full (10,000 and 5,000)")
	f.StringVar(&c.static, "static", "", "write the content below this directory, for a static file server, and exit")
	f.BoolVar(&c.clean, "clean", false, "delete what earlier runs created and exit")
	f.BoolVar(&c.compare, "compare", false, "compare the first of the given JSON files with each of the others and "+
		"exit")
}

func (c *flags) run(cmd *cobra.Command, args []string) error {
	out := cmd.OutOrStdout()
	switch {
	case c.list:
		return List(out)
	case c.compare:
		return compareFiles(out, args)
	}
	if err := c.complete(cmd); err != nil {
		return err
	}
	if c.static != "" {
		return WriteStatic(c.static, c.options)
	}
	if len(args) != 1 {
		return errors.New("want the address of one server, for example https://localhost:8443")
	}
	c.options.URL = args[0]
	if c.clean {
		n, err := Clean(cmd.Context(), c.options)
		fmt.Fprintf(out, "Deleted %d manifests.\n", n)
		return err
	}
	return c.measure(cmd.Context(), out)
}

// complete reads the files that flags name.
func (c *flags) complete(cmd *cobra.Command) (err error) {
	errOut := cmd.ErrOrStderr()
	c.options.Progress = func(text string) { fmt.Fprintln(errOut, text) }
	scale, ok := Scales[c.scale]
	if !ok {
		return fmt.Errorf("scale: %.20q: want one of small, full", c.scale)
	}
	c.options.Scale = scale
	if c.caFile != "" {
		if c.options.CA, err = os.ReadFile(c.caFile); err != nil {
			return fmt.Errorf("cacert: %w", err)
		}
	}
	if c.passwordFile != "" {
		b, err := os.ReadFile(c.passwordFile)
		if err != nil {
			return fmt.Errorf("password-file: %w", err)
		}
		c.options.Password = strings.TrimRight(string(b), "\r\n")
	}
	return nil
}

// measure runs the scenarios. It writes what was measured even if the run ended early.
func (c *flags) measure(ctx context.Context, out io.Writer) error {
	report, err := Run(ctx, c.options)
	if report == nil || c.options.PopulateOnly || len(report.Results)+len(report.Skipped) == 0 {
		return err
	}
	if writeErr := c.write(report, out); writeErr != nil {
		return writeErr
	}
	return err
}

func (c *flags) write(r *Report, out io.Writer) error {
	switch c.jsonFile {
	case "":
		return r.WriteTable(out)
	case "-":
		return r.WriteJSON(out)
	}
	f, err := os.Create(c.jsonFile)
	if err != nil {
		return fmt.Errorf("json: %w", err)
	}
	return errors.Join(r.WriteJSON(f), f.Close())
}

// compareFiles compares reports, named by their files.
func compareFiles(out io.Writer, paths []string) error {
	var names []string
	var reports []*Report
	for _, path := range paths {
		r, err := ReadReport(path)
		if err != nil {
			return err
		}
		names, reports = append(names, strings.TrimSuffix(filepath.Base(path), ".json")), append(reports, r)
	}
	return Compare(out, names, reports)
}
