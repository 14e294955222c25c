// Package keep has the commands that keep a registry in order: gc, retention, scrub, rebuild, export and import.
//
// # Words
//
//   - collect, scrub, rebuild: as in package storage; archive as in package archive.
//   - job: as in package admin: work of the running server, of which it reports on the way.
//
// # Invariants
//
// All of them but rebuild ask the running server, which goes on serving; rebuild is for a data directory without one.
//
// # What it does not do
//
// It does nothing to a store by itself, and reads no settings: the program says where the server is.
package keep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"trow/registry"
	"trow/registry/admin"
	"trow/registry/archive"
	"trow/registry/glob"
	"trow/registry/maintenance"
	"trow/registry/retention"
	"trow/storage"
)

// Program is what the commands need of the program that they are part of.
type Program struct {
	In       io.Reader
	Out, Err io.Writer
	// DataDir adds the flags that say which server is meant, and returns what finds its data directory when the command
	// runs.
	DataDir func(cmd *cobra.Command) func() (string, error)
}

// Commands are gc, retention, scrub, rebuild, export and import.
func (p Program) Commands() []*cobra.Command {
	return []*cobra.Command{p.gcCommand(), p.retentionCommand(), p.scrubCommand(), p.rebuildCommand(), p.exportCommand(), p.importCommand()}
}

// Retained is the outcome of a retention.
type Retained struct {
	Removed int  `json:"removed"`
	Rules   bool `json:"rules"` // whether there are any
}

// Found is the outcome of a scrub.
type Found struct {
	storage.Scrubbed
	Damages map[digest.Digest]storage.Damage `json:"damages"`
}

// onServer makes a command that talks to the server of a data directory.
func (p Program) onServer(cmd *cobra.Command, do func(context.Context, *admin.Client) error) *cobra.Command {
	cmd.Args = cobra.NoArgs
	where := p.DataDir(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		dir, err := where()
		if err != nil {
			return err
		}
		return do(cmd.Context(), admin.NewClient(dir))
	}
	return cmd
}

// progress calls show with what a job reports.
func progress[T any](show func(T)) func(json.RawMessage) error {
	return func(b json.RawMessage) error {
		var v T
		if err := json.Unmarshal(b, &v); err != nil {
			return err
		}
		show(v)
		return nil
	}
}

func (p Program) gcCommand() *cobra.Command {
	var dry, now bool
	var grace string
	cmd := p.onServer(&cobra.Command{
		Use:   "gc",
		Short: "Free the space of what nothing needs any more, while the server runs",
		Long: "gc takes away blobs that no manifest of their repository needs, and bytes that no repository holds. The server does\n" +
			"so by itself each gc-interval; this does it now. Pushes and pulls go on meanwhile. Manifests and tags stay: delete\n" +
			"those that are not needed first.",
	}, func(ctx context.Context, c *admin.Client) error {
		q := url.Values{}
		if dry {
			q.Set("dry-run", "")
		}
		if grace != "" {
			q.Set("grace", grace)
		}
		var done storage.Collected
		err := c.Run(ctx, "gc", q, progress(func(so storage.Collected) {
			fmt.Fprintf(p.Err, "%d repositories and %d blobs looked at, %s to free\n", so.Repos, so.Blobs, Size(so.Freed))
		}), &done)
		if err != nil {
			return err
		}
		p.tellCollected(done, dry)
		return nil
	})
	f := cmd.Flags()
	f.BoolVar(&dry, "dry-run", false, "only tell what would be freed")
	f.BoolVar(&now, "now", false, "collect now (the default)")
	f.StringVar(&grace, "grace", "", "instead of gc-grace; a push under way whose blobs go has to begin again")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "now")
	return cmd
}

func (p Program) tellCollected(done storage.Collected, dry bool) {
	verb := "Freed"
	if dry {
		verb = "Would free"
	}
	fmt.Fprintf(p.Out, "%s %s: %d of %d blobs, after unlinking %d from %d repositories.\n",
		verb, Size(done.Freed), done.Deleted, done.Blobs, done.Unlinked, done.Repos)
	if done.Waiting {
		fmt.Fprintln(p.Out, "Nothing was unlinked: the server has started less than the grace ago, and a client may rely on blobs that it was told of before.")
	}
}

// Size writes a number of bytes for people.
func Size(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/(1<<10), 0
	for v >= 1<<10 {
		v, unit = v/(1<<10), unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[unit])
}

func (p Program) retentionCommand() *cobra.Command {
	var dry bool
	cmd := p.onServer(&cobra.Command{
		Use:   "retention",
		Short: "Remove the tags and manifests that have had their time by the setting retention, and tell why",
		Long: "retention applies the rules of the server's setting retention. The server does so by itself before each collection;\n" +
			"this does it now, or tells what would go. Their space is freed by the collection that follows: trow gc.",
	}, func(ctx context.Context, c *admin.Client) error {
		q := url.Values{}
		if dry {
			q.Set("dry-run", "")
		}
		var done Retained
		err := c.Run(ctx, "retention", q, progress(func(r retention.Removal) {
			name := r.Repo + "@" + r.Digest.String()
			if r.Tag != "" {
				name = r.Repo + ":" + r.Tag
			}
			fmt.Fprintf(p.Out, "%s: %s\n", name, r.Why)
		}), &done)
		switch {
		case err != nil:
			return err
		case !done.Rules:
			fmt.Fprintln(p.Out, "There are no rules: the setting retention is empty, and everything is kept.")
		case dry:
			fmt.Fprintf(p.Out, "%d would go.\n", done.Removed)
		default:
			fmt.Fprintf(p.Out, "%d are gone.\n", done.Removed)
		}
		return nil
	})
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only tell what would go, and why")
	return cmd
}

// ErrDamaged ends a scrub that found damage.
var ErrDamaged = errors.New("damaged content was found")

func (p Program) scrubCommand() *cobra.Command {
	var rate string
	cmd := p.onServer(&cobra.Command{
		Use:   "scrub",
		Short: "Read all content, compare it with its digests, and quarantine what is damaged: exit code 1 if anything is",
	}, func(ctx context.Context, c *admin.Client) error {
		q := url.Values{}
		if rate != "" {
			q.Set("rate", rate)
		}
		var done Found
		err := c.Run(ctx, "scrub", q, progress(func(so storage.Scrubbed) {
			fmt.Fprintf(p.Err, "%d of %d contents, %s\n", so.Blobs, so.Contents, Size(so.Bytes))
		}), &done)
		if err != nil {
			return err
		}
		fmt.Fprintf(p.Out, "Read %d contents, %s: %d damaged, %d whole again, %d could not be read.\n",
			done.Blobs, Size(done.Bytes), done.Damaged, done.Healed, done.Failed)
		for _, d := range slices.Sorted(maps.Keys(done.Damages)) {
			fmt.Fprintf(p.Out, "damaged  %s: %s\n", d, done.Damages[d].Reason)
		}
		if len(done.Damages) > 0 {
			fmt.Fprintln(p.Out, "Push images that consist of these again: that heals them.")
			return ErrDamaged
		}
		return nil
	})
	cmd.Flags().StringVar(&rate, "rate", "", "bytes per second, such as 16Mi (default: as fast as it goes)")
	return cmd
}

func (p Program) exportCommand() *cobra.Command {
	var repositories []string
	var base string
	var prune bool
	cmd := &cobra.Command{
		Use:   "export DIRECTORY|-",
		Short: "Copy everything into a directory, or as a tar to standard output, while the server runs",
		Long: "export makes an archive that import reads, in the form of an OCI image layout, so that skopeo and others read it as\n" +
			"well. Into a directory it copies what is not there yet, and what was stopped goes on when it is run again. With - it\n" +
			"writes a tar stream: trow export - | zstd > backup.tar.zst",
		Args: cobra.ExactArgs(1),
	}
	where := p.DataDir(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		from, options, _, err := p.archive(where, repositories)
		if err != nil {
			return err
		}
		o := archive.ExportOptions{Options: options, Prune: prune}
		if base != "" {
			if o.Have, err = archive.Have(base); err != nil {
				return fmt.Errorf("--base: %w", err)
			}
		}
		var done archive.Progress
		if args[0] != "-" {
			done, err = archive.Export(cmd.Context(), from, args[0], o)
		} else if prune {
			return errors.New("--prune is for a directory; a tar stream has only what the registry holds")
		} else if f, ok := p.Out.(*os.File); ok && isTerminal(f) {
			return errors.New("a terminal cannot show a tar; send it into a file or a pipe")
		} else {
			done, err = archive.ExportTar(cmd.Context(), from, p.Out, o)
		}
		p.tellCopied("Exported", done)
		return err
	}
	f := cmd.Flags()
	f.StringSliceVar(&repositories, "repository", nil, "only repositories of this name, with * and **; may be given more than once")
	f.StringVar(&base, "base", "", "leave out the blobs that this earlier archive (directory or tar) has")
	f.BoolVar(&prune, "prune", false, "take out of the directory what the registry does not hold any more")
	return cmd
}

func (p Program) importCommand() *cobra.Command {
	var repositories []string
	var as string
	var keep bool
	cmd := &cobra.Command{
		Use:   "import DIRECTORY|FILE|-",
		Short: "Copy an archive, or another registry's data directory, into the running server",
		Long: "import reads what export has written, any OCI image layout (as a directory, a tar, a tar.gz; - is standard input), and\n" +
			"the data directories of Distribution (registry:2, registry:3) and of zot; it finds out which it is. What the server\n" +
			"has already is not copied; run again, an import goes on where it was stopped.",
		Args: cobra.ExactArgs(1),
	}
	where := p.DataDir(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		to, options, dir, err := p.archive(where, repositories)
		if err != nil {
			return err
		}
		o := archive.ImportOptions{Options: options, As: as, KeepTags: keep, Temp: dir,
			Form: func(name string) { fmt.Fprintf(p.Err, "This is %s.\n", name) }}
		var done archive.Progress
		if args[0] == "-" {
			done, err = archive.ImportTar(cmd.Context(), to, p.In, o)
		} else {
			done, err = archive.Import(cmd.Context(), to, args[0], o)
		}
		p.tellCopied("Imported", done)
		return err
	}
	f := cmd.Flags()
	f.StringSliceVar(&repositories, "repository", nil, "only repositories of this name, with * and **; may be given more than once")
	f.StringVar(&as, "as", "", "where a layout that names no repositories goes: repository, or repository:tag")
	f.BoolVar(&keep, "keep-tags", false, "leave tags that exist here as they are")
	return cmd
}

// archive is what export and import have in common: the server, which repositories, what is told on the way.
func (p Program) archive(where func() (string, error), repositories []string) (r archive.Registry, o archive.Options, dir string, err error) {
	if dir, err = where(); err != nil {
		return r, o, "", err
	}
	if len(repositories) > 0 {
		names, err := glob.Compile(repositories...)
		if err != nil {
			return r, o, "", fmt.Errorf("repository: %w", err)
		}
		o.Match = names.Match
	}
	o.Problem = func(text string) { fmt.Fprintln(p.Err, text) }
	o.Progress = func(so archive.Progress) {
		fmt.Fprintf(p.Err, "%d of %d manifests and tags, %s copied\n", so.Items, so.TotalItems, Size(so.Bytes))
	}
	return archive.Registry{HTTP: &admin.NewClient(dir).HTTP, URL: admin.URL}, o, dir, nil
}

func (p Program) tellCopied(verb string, done archive.Progress) {
	if done == (archive.Progress{}) {
		return // it did not begin; the error says why
	}
	fmt.Fprintf(p.Err, "%s %d manifests and %d blobs, %s; %d were there already.\n", verb, done.Manifests, done.Blobs, Size(done.Bytes), done.Present)
	if done.Gone > 0 {
		fmt.Fprintf(p.Err, "%d manifests and tags were deleted meanwhile.\n", done.Gone)
	}
	if done.Kept > 0 {
		fmt.Fprintf(p.Err, "%d tags name something else here, and were left as they are.\n", done.Kept)
	}
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (p Program) rebuildCommand() *cobra.Command {
	into := "recovered"
	cmd := &cobra.Command{
		Use:   "rebuild",
		Short: "Repair a data directory whose journal is damaged, while no server runs on it",
		Long: "rebuild puts a damaged journal aside and takes the copy that the server keeps beside it (an hour old at most) in its\n" +
			"place. Manifests among the blobs that no repository holds then are put into the repository --into, by digest: what\n" +
			"they were called is not written anywhere else. Nothing is deleted. On a whole journal it does the same without the copy.",
		Args: cobra.NoArgs,
	}
	where := p.DataDir(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		dir, err := where()
		if err != nil {
			return err
		}
		r, err := maintenance.Rebuild(cmd.Context(), dir, maintenance.RebuildOptions{Into: into, Parse: registry.RecoverManifest,
			Progress: func(blobs int) { fmt.Fprintf(p.Err, "%d blobs looked at\n", blobs) }})
		if err != nil {
			return err
		}
		p.tellRebuilt(r, into)
		return nil
	}
	cmd.Flags().StringVar(&into, "into", into, "repository for manifests that no repository holds")
	return cmd
}

func (p Program) tellRebuilt(r *maintenance.Rebuilt, into string) {
	switch {
	case r.Damage == "":
		fmt.Fprintln(p.Out, "The journal is whole.")
	case r.Backup.IsZero():
		fmt.Fprintf(p.Out, "%s\nIt is now %s. There was no copy of it: names of repositories and tags are lost.\n", r.Damage, r.Aside)
	default:
		fmt.Fprintf(p.Out, "%s\nIt is now %s. Its copy of %s has taken its place: tags that were set, moved or deleted since are as they were then.\n",
			r.Damage, r.Aside, r.Backup.UTC().Format(time.RFC3339))
	}
	fmt.Fprintf(p.Out, "It knows %d repositories, %d manifests, %d tags.\n", r.Restored.Repos, r.Restored.Manifests, r.Restored.Tags)
	for _, m := range r.Found {
		fmt.Fprintf(p.Out, "found    %s@%s (%s)\n", into, m.Digest, m.MediaType)
	}
	if len(r.Found) > 0 {
		fmt.Fprintf(p.Out, "%d manifests belonged to no repository; their repositories and tags are not known. Tag or delete them in %s.\n", len(r.Found), into)
	}
	for _, d := range r.Missing {
		fmt.Fprintf(p.Out, "missing  %s\n", d)
	}
	if len(r.Missing) > 0 {
		fmt.Fprintf(p.Out, "%d contents have no bytes: push images that consist of them again.\n", len(r.Missing))
	}
	if r.Unclaimed > 0 {
		fmt.Fprintf(p.Out, "%d blobs (%s) belong to nothing that is known: the next collection frees them; to keep them, serve with --gc-interval=0.\n",
			r.Unclaimed, Size(r.UnclaimedBytes))
	}
}
