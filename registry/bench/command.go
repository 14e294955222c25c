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
)

// flags are those of the command that are not options as they stand.
type flags struct {
	options                 Options
	list, clean, compare    bool
	caFile, passwordFile    string
	jsonFile, static, scale string
}

// Command is trow bench. It writes to the command's output; what happens meanwhile goes to its error output. Errors:
// those of [Run] and of the files.
func Command() *cobra.Command {
	c := flags{options: Default(), scale: "small"}
	cmd := &cobra.Command{
		Use:   "bench URL",
		Short: "Load a registry and measure it, to size a cluster",
		Long: "bench fills a registry (this or any other OCI registry) with content and measures how many pulls, pushes, lists and\n" +
			"verdicts it does in a second, how long each takes, and with --pid what they cost it. It puts full load on the server:\n" +
			"do not point it at one that others need.\n\n" +
			"All that it makes is in the repository --repository and below. --clean deletes the manifests again; it leaves the\n" +
			"blobs to the server's collector, names of repositories where the server keeps those, and manifests without a tag\n" +
			"that a run has left which was stopped while it deleted.\n\n" +
			"The exit code is 1 if a scenario had errors alone.",
		Example: "  trow bench https://trow.kube-public:31000 --cacert ca.crt --user admin --password-file password\n" +
			"  trow bench http://127.0.0.1:5000 --pid $(pidof registry) --scenarios manifest-get-tag,blob-get-64MiB --json a.json\n" +
			"  trow bench --compare a.json b.json",
		RunE: func(cmd *cobra.Command, args []string) error { return c.run(cmd, args) },
	}
	c.addFlags(cmd)
	return cmd
}

func (c *flags) addFlags(cmd *cobra.Command) {
	f, o := cmd.Flags(), &c.options
	f.StringSliceVar(&o.Scenarios, "scenarios", nil, "what to measure (default: all that the server can do)")
	f.BoolVar(&c.list, "list", false, "print the scenarios, and do nothing")
	f.IntSliceVar(&o.Connections, "connections", o.Connections, "how many operations at once, each over a connection of its own")
	f.DurationVar(&o.Duration, "duration", o.Duration, "of each scenario with each number of connections, after a warm-up of a fifth of it")
	f.StringVar(&o.Protocol, "protocol", o.Protocol, "http/1.1 or h2")
	f.StringVar(&c.caFile, "cacert", "", "CA certificate (PEM) of the server")
	f.BoolVar(&o.Insecure, "insecure", false, "do not check the server's certificate")
	f.StringVarP(&o.User, "user", "u", "", "log in as this user")
	f.StringVar(&c.passwordFile, "password-file", "", "file with the user's password")
	f.IntVar(&o.PID, "pid", 0, "process of the server on this machine (Linux): its CPU time and memory are told, with its children's")
	f.StringVar(&c.jsonFile, "json", "", "write the results as JSON to this file (- for standard output), instead of a table")
	f.BoolVar(&o.PopulateOnly, "populate-only", false, "bring the content in, and measure nothing")
	f.BoolVar(&o.NoPopulate, "no-populate", false, "rely on the content being there")
	f.Uint64Var(&o.Seed, "seed", o.Seed, "what the content follows from")
	f.StringVar(&c.scale, "scale", c.scale, "how much there is to list: small (100 tags, 50 repositories) or full (10,000 and 5,000)")
	f.StringVar(&o.Repository, "repository", o.Repository, "repository that everything is in and below")
	f.StringVar(&c.static, "static", "", "write the content as files below this directory, for a server of files, and do nothing else")
	f.BoolVar(&c.clean, "clean", false, "delete what earlier runs have made, and do nothing else")
	f.BoolVar(&c.compare, "compare", false, "compare the first of the JSON files given with each other one, and do nothing else")
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
		return errors.New("bench needs the address of one server, such as https://localhost:8443")
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
	c.options.Tell = func(text string) { fmt.Fprintln(errOut, text) }
	scale, ok := Scales[c.scale]
	if !ok {
		return fmt.Errorf("scale: %.20q is none of small, full", c.scale)
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

// measure runs, and writes what was measured even if it ended early.
func (c *flags) measure(ctx context.Context, out io.Writer) error {
	report, err := Run(ctx, c.options)
	if report == nil || c.options.PopulateOnly || len(report.Results)+len(report.Skipped) == 0 {
		return err
	}
	if err := c.write(report, out); err != nil {
		return err
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

// compareFiles compares reports; their names are those of the files.
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
