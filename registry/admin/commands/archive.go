package commands

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"trow/registry/archive"
	"trow/registry/client"
	"trow/registry/glob"
	"trow/registry/size"
)

func (p Program) exportCommand() *cobra.Command {
	var repositories []string
	var base string
	var prune bool
	cmd := &cobra.Command{
		Use:   "export DIRECTORY|-",
		Short: "Copy the registry into a directory, or as a tar to standard output, while the server runs",
		Long: `export makes an archive for trow import. It is an OCI image layout, so skopeo and other tools read it
too. Into a directory, export copies only what is not there yet; an interrupted export continues when you
run it again. With - it writes a tar stream: trow export - | zstd > backup.tar.zst`,
		Args: cobra.ExactArgs(1),
	}
	t := p.target(cmd)
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		from, options, err := server(cmd, t, repositories)
		if err != nil {
			return err
		}
		o := archive.ExportOptions{Options: options, Prune: prune}
		if base != "" {
			if o.Have, err = archive.Have(base); err != nil {
				return fmt.Errorf("--base: %w", err)
			}
		}
		return export(cmd, from.Client, args[0], o)
	})
	f := cmd.Flags()
	f.StringSliceVar(&repositories, "repository", nil, repositoryUsage)
	f.StringVar(&base, "base", "", "leave out the blobs that this earlier archive (directory or tar) has")
	f.BoolVar(&prune, "prune", false, "delete from the directory what the registry no longer holds")
	return cmd
}

const repositoryUsage = "only these repositories; * matches within a path element, ** across them; may be repeated"

// export exports into a directory, or to standard output if to is "-".
func export(cmd *cobra.Command, from *client.Client, to string, o archive.ExportOptions) error {
	var done archive.Progress
	var err error
	if to != "-" {
		done, err = archive.Export(cmd.Context(), from, to, o)
	} else if o.Prune {
		return errors.New("--prune: not supported for a tar stream, which contains only what the registry holds")
	} else if f, ok := cmd.OutOrStdout().(*os.File); ok && isTerminal(f) {
		return errors.New("standard output is a terminal; redirect the tar stream to a file or a pipe")
	} else {
		done, err = archive.ExportTar(cmd.Context(), from, cmd.OutOrStdout(), o)
	}
	printCopied(cmd.ErrOrStderr(), "Exported", done, err)
	return err
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (p Program) importCommand() *cobra.Command {
	var repositories []string
	var as string
	var keepTags bool
	cmd := &cobra.Command{
		Use:   "import DIRECTORY|FILE|-",
		Short: "Copy an archive, or the data directory of another registry, into the running server",
		Long: `import reads archives of trow export, any OCI image layout (a directory, tar or tar.gz; - is standard
input), files of docker save and podman save, and the data directories of Distribution (registry:2,
registry:3) and zot. It detects the form. It copies only what the server does not have yet; an interrupted
import continues when you run it again.`,
		Args: cobra.ExactArgs(1),
	}
	t := p.target(cmd)
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		server, options, err := server(cmd, t, repositories)
		if err != nil {
			return err
		}
		to := server.Client
		o := archive.ImportOptions{Options: options, As: as, KeepTags: keepTags, Temp: server.dir,
			Form: func(name string) { fmt.Fprintf(cmd.ErrOrStderr(), "Importing %s.\n", name) }}
		var done archive.Progress
		if args[0] == "-" {
			done, err = archive.ImportTar(cmd.Context(), to, cmd.InOrStdin(), o)
		} else {
			done, err = archive.Import(cmd.Context(), to, args[0], o)
		}
		printCopied(cmd.ErrOrStderr(), "Imported", done, err)
		return err
	})
	f := cmd.Flags()
	f.StringSliceVar(&repositories, "repository", nil, repositoryUsage)
	f.StringVar(&as, "as", "", "for a layout that names no repositories: repository, or repository:tag, to import into")
	f.BoolVar(&keepTags, "keep-tags", false, "do not move tags that already exist")
	return cmd
}

// server returns what export and import have in common: the running server, which repositories to copy, and where to
// print problems and progress.
func server(cmd *cobra.Command, t *target, repositories []string) (e *endpoint, o archive.Options, err error) {
	if len(repositories) > 0 {
		names, err := glob.Compile(repositories...)
		if err != nil {
			return nil, o, fmt.Errorf("repository: %w", err)
		}
		o.Match = names.Match
	}
	w := cmd.ErrOrStderr()
	o.Problem = func(text string) { fmt.Fprintln(w, text) }
	o.Note = o.Problem
	o.Progress = func(now archive.Progress) {
		fmt.Fprintf(w, "%d of %s, copied %s\n",
			now.Items, count(now.TotalItems, "manifest or tag", "manifests and tags"), size.Format(now.Bytes))
	}
	e, err = t.open(cmd)
	return e, o, err
}

func printCopied(w io.Writer, verb string, done archive.Progress, err error) {
	if err != nil && done == (archive.Progress{}) {
		return // the copy did not start; the error says why
	}
	fmt.Fprintf(w, "%s %s and %s, %s; %d already there.\n", verb,
		count(done.Manifests, "manifest", ""), count(done.Blobs, "blob", ""), size.Format(done.Bytes), done.Present)
	if done.Gone > 0 {
		fmt.Fprintf(w, "%s deleted meanwhile.\n", count(done.Gone, "manifest or tag was", "manifests and tags were"))
	}
	if done.Kept > 0 {
		fmt.Fprintf(w, "Kept %s that exist here for another manifest.\n", count(done.Kept, "tag", ""))
	}
}
