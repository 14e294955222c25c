package commands

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"

	"github.com/spf13/cobra"

	"trow/registry/admin"
	"trow/registry/maintenance"
	"trow/registry/retention"
	"trow/registry/size"
	"trow/storage"
)

func (p Program) gcCommand() *cobra.Command {
	var dryRun, now, all bool
	var grace string
	var o output
	cmd := p.onServer(&cobra.Command{
		Use:   "gc",
		Short: "Free the space of unused content, while the server runs",
		Long: `gc deletes blobs that no manifest of their repository refers to, and content that no repository holds.
The server does this automatically every gc-interval; gc does it now. Pushes and pulls continue meanwhile. gc keeps
all manifests and tags: first delete those that you do not need.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string, c *admin.Client) error {
		q := dryRunQuery(dryRun)
		if grace != "" {
			q.Set("grace", grace)
		}
		if all {
			q.Set("all", "")
		}
		var done storage.Collected
		err := c.Run(cmd.Context(), "gc", q, turn(cmd, func(now storage.Collected) {
			fmt.Fprintf(cmd.ErrOrStderr(), "Checked %s and %s; %s to free\n",
				count(now.Repos, "repository", ""), count(now.Blobs, "blob", ""), size.Format(now.Freed))
		}), &done)
		if err != nil {
			return err
		}
		if o.json() {
			return printJSON(cmd.OutOrStdout(), done)
		}
		printCollected(cmd.OutOrStdout(), done, dryRun)
		return nil
	})
	o.addFlags(cmd, "")
	f := cmd.Flags()
	f.BoolVar(&dryRun, "dry-run", false, "only report what would be freed")
	f.StringVar(&grace, "grace", "", "use this instead of gc-grace, such as 10m; "+
		"pushes in progress that lose blobs have to start again")
	f.BoolVar(&all, "all", false, "delete also more content that the journal does not know than a tenth of all, "+
		"at which the server stops, and believe a journal that went back")
	// Scripts of earlier versions use --now. It has always been the default.
	f.BoolVar(&now, "now", false, "collect now (the default)")
	_ = f.MarkHidden("now") // the flag exists
	cmd.MarkFlagsMutuallyExclusive("dry-run", "now")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "all")
	return cmd
}

// turn is progress for a job that one replica at a time does: it also shows for which one the server waits.
func turn[T any](cmd *cobra.Command, show func(T)) func(json.RawMessage) error {
	next := progress(show)
	return func(b json.RawMessage) error {
		var waits maintenance.Waits
		if err := json.Unmarshal(b, &waits); err == nil && waits.For != "" {
			fmt.Fprintf(cmd.ErrOrStderr(), "Waiting for %s, which %s\n", waits.For, waits.Does)
			return nil
		}
		return next(b)
	}
}

// dryRunQuery is the query of a job that can also only report what it would do.
func dryRunQuery(dryRun bool) url.Values {
	q := url.Values{}
	if dryRun {
		q.Set("dry-run", "")
	}
	return q
}

func printCollected(w io.Writer, done storage.Collected, dryRun bool) {
	freed, deleted, unlinked := "Freed", "deleted", "unlinked"
	if dryRun {
		freed, deleted, unlinked = "Would free", "would delete", "would unlink"
	}
	fmt.Fprintf(w, "%s %s: %s %d of %s; %s %d in %s.\n", freed, size.Format(done.Freed),
		deleted, done.Deleted, count(done.Blobs, "blob", ""), unlinked, done.Unlinked,
		count(done.Repos, "repository", ""))
	if done.Waiting {
		fmt.Fprintln(w, "Unlinked nothing: the server has run for less than the grace period, "+
			"and clients may still rely on blobs that it reported to them before it started.")
	}
}

// retained is the outcome of retention for programs.
type retained struct {
	maintenance.Retained
	Removals []retention.Removal `json:"removals"`
}

func (p Program) retentionCommand() *cobra.Command {
	var dryRun bool
	var o output
	cmd := p.onServer(&cobra.Command{
		Use:   "retention",
		Short: "Remove the tags and manifests that the setting retention does not keep, and say why",
		Long: `retention applies the rules of the server's setting retention. The server does this automatically before
each collection; retention does it now, also after an import, where the server's next run would only
report. The next collection frees the space: trow gc.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string, c *admin.Client) error {
		done := retained{Removals: []retention.Removal{}}
		out := cmd.OutOrStdout()
		err := c.Run(cmd.Context(), "retention", dryRunQuery(dryRun), turn(cmd, func(r retention.Removal) {
			if o.json() {
				done.Removals = append(done.Removals, r)
				return
			}
			name := r.Repo + "@" + r.Digest.String()
			if r.Tag != "" {
				name = r.Repo + ":" + r.Tag
			}
			fmt.Fprintf(out, "%s: %s\n", name, r.Why)
		}), &done.Retained)
		if err != nil {
			return err
		}
		if o.json() {
			return printJSON(out, done)
		}
		printRetained(out, done.Retained, dryRun)
		return nil
	})
	o.addFlags(cmd, "")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only report what would be removed, and why")
	return cmd
}

func printRetained(w io.Writer, done maintenance.Retained, dryRun bool) {
	removed := count(done.Removed, "tag or manifest", "tags and manifests")
	switch {
	case !done.Rules:
		fmt.Fprintln(w, "No rules: the setting retention is empty, so everything is kept.")
	case dryRun:
		fmt.Fprintf(w, "Would remove %s.\n", removed)
	default:
		fmt.Fprintf(w, "Removed %s.\n", removed)
	}
}

func (p Program) scrubCommand() *cobra.Command {
	var rate string
	var all, read bool
	var o output
	cmd := p.onServer(&cobra.Command{
		Use:   "scrub",
		Short: "Compare all content with its digests and quarantine damaged content; exit code 1 if there is any",
		Long: `scrub reads all content, compares it with its digests, and quarantines what is damaged or missing until
it is pushed again. The server does this automatically every scrub-interval; scrub does it now. Where the
content is in S3, names and sizes are compared with those that the service lists, and only what differs is
read; --read reads all, and says first how much that is.`,
		Args: cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string, c *admin.Client) error {
		q := url.Values{}
		if rate != "" {
			q.Set("rate", rate)
		}
		if all {
			q.Set("all", "")
		}
		if read {
			q.Set("read", "")
		}
		var done maintenance.Found
		err := c.Run(cmd.Context(), "scrub", q, turn(cmd, func(now storage.Scrubbed) {
			printScrubbing(cmd.ErrOrStderr(), now)
		}), &done)
		if err != nil {
			return err
		}
		if !o.json() {
			return printScrubbed(cmd.OutOrStdout(), done)
		}
		if err := printJSON(cmd.OutOrStdout(), done); err != nil || len(done.Damages) == 0 {
			return err
		}
		return ErrDamaged
	})
	o.addFlags(cmd, "")
	cmd.Flags().BoolVar(&all, "all", false, "go on however much is damaged; else it stops after 100 new findings")
	cmd.Flags().BoolVar(&read, "read", false, "read all content in S3 as well; else its names and sizes are compared")
	cmd.Flags().StringVar(&rate, "rate", "", "bytes per second, such as 16Mi (default: no limit)")
	return cmd
}

// printScrubbing prints the progress of a scrub.
func printScrubbing(w io.Writer, now storage.Scrubbed) {
	all := count(now.Contents, "blob or manifest", "blobs and manifests")
	switch {
	case now.Listed:
		fmt.Fprintf(w, "Compared %d of %s, and read %s\n", now.Blobs, all, size.Format(now.Bytes))
	case now.Blobs == 0 && now.Total > 0:
		fmt.Fprintf(w, "Reading %s, %s\n", all, size.Format(now.Total))
	default:
		fmt.Fprintf(w, "Read %d of %s, %s\n", now.Blobs, all, size.Format(now.Bytes))
	}
}

// printScrubbed prints the outcome of a scrub. Errors: [ErrDamaged] if any damage is known.
func printScrubbed(w io.Writer, done maintenance.Found) error {
	examined := count(done.Blobs, "blob or manifest", "blobs and manifests")
	outcome := fmt.Sprintf("%d damaged, %d healed, %d unreadable", done.Damaged, done.Healed, done.Failed)
	if done.Listed {
		fmt.Fprintf(w, "Compared names and sizes of %s with the list of the service, and read %s: %s.\n"+
			"trow scrub --read reads all of it, %s.\n", examined, size.Format(done.Bytes), outcome,
			size.Format(done.Total))
	} else {
		fmt.Fprintf(w, "Read %s, %s: %s.\n", examined, size.Format(done.Bytes), outcome)
	}
	for _, d := range slices.Sorted(maps.Keys(done.Damages)) {
		fmt.Fprintf(w, "damaged  %s: %s\n", d, done.Damages[d].Reason)
	}
	if len(done.Damages) == 0 {
		return nil
	}
	fmt.Fprintln(w, "To repair them, push the images that contain them again.")
	return ErrDamaged
}
