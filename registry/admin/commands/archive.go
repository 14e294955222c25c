package commands

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"trow/registry/archive"
	"trow/registry/client"
	"trow/registry/glob"
	"trow/registry/mirror"
	"trow/registry/platform"
	"trow/registry/size"
)

func (p Program) exportCommand() *cobra.Command {
	var repositories []string
	var base, file string
	var prune bool
	i := images{cluster: p.Cluster}
	cmd := &cobra.Command{
		Use:   "export DIRECTORY|-|-o FILE",
		Short: "Copy the registry, or the images of pods, into an archive, while the server runs",
		Long: `export makes an archive for trow import. It is an OCI image layout, so skopeo and other tools read it
too. Into a directory, export copies only what is not there yet; an interrupted export continues when you
run it again. With - it writes a tar stream: trow export - | zstd > backup.tar.zst

With -f or --running it copies exactly the images that these pods need, of this registry and of others, with their
signatures. Images of other registries are first fetched through the upstreams of the server, as with trow warm.
After trow import at a registry without upstreams, pods find them under the same names.`,
		Example: "  trow export backup\n  trow export -f pods.yaml -o images.tar",
	}
	t := p.target(cmd)
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		to, err := exportTo(cmd, args, file)
		if err != nil {
			return err
		}
		if !i.given() && len(i.platforms) > 0 {
			return errors.New("platform: it is for -f and --running; without these, all is exported")
		}
		if i.given() && len(repositories) > 0 {
			return errors.New("repository: it excludes -f and --running, which name images; omit one of them")
		}
		var all []string
		if i.given() {
			if all, err = i.list(cmd, nil); err != nil {
				return err
			}
		}
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
		what := exported{options: o}
		var absent error
		if i.given() {
			if what.images, what.platforms, absent, err = i.collect(cmd, from, all); err != nil {
				return err
			}
		}
		return cmp.Or(what.export(cmd, from.Client, to), absent)
	})
	f := cmd.Flags()
	f.StringVarP(&file, "output", "o", "", "write a tar to this file, which appears when it is complete; - for "+
		"standard output")
	i.addFlags(cmd)
	f.StringSliceVar(&repositories, "repository", nil, repositoryUsage)
	f.StringVar(&base, "base", "", "leave out the blobs that this earlier archive (directory or tar) has")
	f.BoolVar(&prune, "prune", false, "delete from the directory what the registry no longer holds")
	return cmd
}

const repositoryUsage = "only these repositories; * matches within a path element, ** across them; may be repeated"

// destination is where an export goes: one of its fields.
type destination struct {
	dir  string
	file string // a tar; -: standard output
}

// exportTo returns where an export goes.
func exportTo(cmd *cobra.Command, args []string, file string) (to destination, err error) {
	switch {
	case len(args) > 1 || (len(args) == 1) == (file != ""):
		return to, fmt.Errorf("got %s; want: %s", arguments(args), cmd.UseLine())
	case len(args) == 1 && args[0] == "-":
		to.file = "-"
	case len(args) == 1:
		to.dir = args[0]
	default:
		to.file = file
	}
	if info, err := os.Stat(to.file); err == nil && info.IsDir() {
		return to, fmt.Errorf("output: %s is a directory; name a file, or the directory without -o", to.file)
	}
	if to.file != "" { // before images are fetched, which takes time
		if info, err := os.Stat(filepath.Dir(to.file)); err != nil || !info.IsDir() {
			return to, fmt.Errorf("output: %s is not a directory; create it first", filepath.Dir(to.file))
		}
	}
	return to, nil
}

// exported says what an export copies, and how.
type exported struct {
	options   archive.ExportOptions
	images    []archive.Image // nil: the registry
	platforms []mirror.Platform
}

// export copies it to a destination.
func (w exported) export(cmd *cobra.Command, from *client.Client, to destination) error {
	var done archive.Progress
	var err error
	switch out := cmd.OutOrStdout(); {
	case to.dir != "" && w.images != nil:
		done, err = archive.ExportImages(cmd.Context(), from, to.dir, w.images, w.platforms, w.options)
	case to.dir != "":
		done, err = archive.Export(cmd.Context(), from, to.dir, w.options)
	case w.options.Prune:
		return errors.New("--prune: not supported for a tar stream, which contains only what the registry holds")
	case to.file != "-":
		done, err = w.file(cmd, from, to.file)
	default:
		if f, ok := out.(*os.File); ok && isTerminal(f) {
			return errors.New("standard output is a terminal; redirect the tar stream to a file or a pipe")
		}
		done, err = w.tar(cmd, from, out)
	}
	printCopied(cmd.ErrOrStderr(), "Exported", done, err)
	return err
}

func (w exported) tar(cmd *cobra.Command, from *client.Client, out io.Writer) (archive.Progress, error) {
	if w.images != nil {
		return archive.ExportImagesTar(cmd.Context(), from, out, w.images, w.platforms, w.options)
	}
	return archive.ExportTar(cmd.Context(), from, out, w.options)
}

// file writes a tar to a file. The file gets its name only once it is on the disk, so that an export that was cut short
// is not taken for a complete one. A file without some items, which could not be exported, gets its name too: the error
// reports them.
func (w exported) file(cmd *cobra.Command, from *client.Client, name string) (done archive.Progress, err error) {
	unfinished := name + ".unfinished"
	f, err := os.OpenFile(unfinished, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return done, fmt.Errorf("output: %w", err)
	}
	done, err = w.tar(cmd, from, f)
	ended := errors.Join(f.Sync(), f.Close())
	if done.Items == 0 || err != nil && done.Problems == 0 || ended != nil {
		return done, errors.Join(err, ended, os.Remove(unfinished))
	}
	return done, errors.Join(err, os.Rename(unfinished, name))
}

// collect has the server fetch images, and returns them in the form for an export. absent is an error about those that
// could not be fetched, or nil. Errors: no image could be fetched.
func (i *images) collect(cmd *cobra.Command, from *endpoint, all []string) (found []archive.Image,
	platforms []mirror.Platform, absent, err error) {
	done, err := i.warm(cmd, from.admin, all, false)
	if err != nil {
		return nil, nil, nil, err
	}
	seen := map[archive.Image]bool{}
	for _, w := range done {
		image := archive.Image{Repo: w.Repository, Host: w.Host, Name: w.Name, Tag: w.Tag, Digest: w.Digest}
		if w.Error != "" || seen[image] {
			continue
		}
		seen[image] = true
		found = append(found, image)
		if platforms, err = platform.ParseAll(w.Platforms); err != nil { // all images have the same
			return nil, nil, nil, fmt.Errorf("the server's answer: %w", err)
		}
	}
	absent = failed(done, "fetched, and so not exported")
	if len(found) == 0 {
		return nil, nil, nil, absent
	}
	return found, platforms, absent, nil
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
