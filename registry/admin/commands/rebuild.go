package commands

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"trow/registry"
	"trow/registry/maintenance"
	"trow/registry/size"
)

func (p Program) rebuildCommand() *cobra.Command {
	o := maintenance.RebuildOptions{Into: "recovered", Parse: registry.RecoverManifest}
	var recovers bool
	cmd := &cobra.Command{
		Use:   "rebuild",
		Short: "Repair a data directory whose journal is damaged, while no server uses it",
		Long: "rebuild moves a damaged journal aside and replaces it with the backup that the server makes every " +
			"hour and\n" +
			"when it stops. If the journal is intact, rebuild keeps it. It deletes nothing.\n\n" +
			"It also looks for manifests that no repository holds: deleted ones that were not collected yet, and " +
			"those that\n" +
			"were pushed after the backup. --recover puts them into the repository --into, by digest: their names " +
			"are not\n" +
			"stored anywhere else. --recover=false leaves them to the next collection. After damage rebuild wants " +
			"one of the\n" +
			"two if it finds any; no server starts before.\n\n" +
			"Where the content is elsewhere (--blobs), rebuild makes the journal that --journal names, which must be " +
			"empty:\n" +
			"from the newest whole copy of the facts beside the content, which a server makes every hour. Manifests " +
			"that are\n" +
			"newer are looked for among the objects of up to 4 MiB; --dry-run says how many bytes would be read. The " +
			"keys\n" +
			"that sign tokens are in no copy: tokens from before are refused, and clients fetch new ones with their " +
			"logins.",
		Args: cobra.NoArgs,
	}
	engines := p.Engines(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		at, err := engines()
		if err != nil {
			return err
		}
		o.Recover, o.Discard = recovers, cmd.Flags().Changed("recover") && !recovers
		o.Progress = func(blobs int) { fmt.Fprintf(cmd.ErrOrStderr(), "Checked %s\n", count(blobs, "blob", "")) }
		o.Reading = func(objects int, bytes int64) {
			fmt.Fprintf(cmd.ErrOrStderr(), "Reading %s (%s) whose digests are not known\n",
				count(objects, "object", ""),
				size.Format(bytes))
		}
		again, show := "trow rebuild --data-dir "+at.DataDir, printRebuilt
		var r *maintenance.Rebuilt
		if at.Blobs == "" {
			r, err = maintenance.Rebuild(cmd.Context(), at.DataDir, o)
		} else {
			again, show = "trow rebuild", printPair
			r, err = maintenance.RebuildPair(cmd.Context(), at, o)
		}
		if r != nil && (err == nil || errors.Is(err, maintenance.ErrUndecided)) {
			show(cmd.OutOrStdout(), r, o)
		}
		if errors.Is(err, maintenance.ErrUndecided) {
			return fmt.Errorf("%w; run %s again with --recover to put them into %s, "+
				"or with --recover=false to leave them to the next collection; no server starts before", err,
				again, o.Into)
		}
		return err
	}
	f := cmd.Flags()
	f.StringVar(&o.Into, "into", o.Into, "with --recover: repository for manifests that no repository holds")
	f.BoolVar(&recovers, "recover", false, "put manifests that no repository holds, also deleted ones, into --into")
	f.BoolVar(&o.DryRun, "dry-run", false, "only report what would be done")
	return cmd
}

func printRebuilt(w io.Writer, r *maintenance.Rebuilt, o maintenance.RebuildOptions) {
	moved, restored := "Moved it to "+r.Aside, "Restored"
	if o.DryRun {
		moved, restored = "Would move it aside", "Would restore"
	}
	switch {
	case r.Damage == "":
		fmt.Fprintln(w, "The journal is intact.")
	case r.Backup.IsZero():
		fmt.Fprintf(w, "%s\n%s. There was no backup: the names of repositories and tags are lost.\n", r.Damage, moved)
	default:
		fmt.Fprintf(w, "%s\n%s. %s the backup of %s: later changes of tags are lost,\n"+
			"and robots that were revoked later are valid again: look at trow token list.\n",
			r.Damage, moved, restored, r.Backup.UTC().Format(time.RFC3339))
	}
	printState(w, r, o)
}

// printPair prints what became of a journal whose content is elsewhere.
func printPair(w io.Writer, r *maintenance.Rebuilt, o maintenance.RebuildOptions) {
	for _, why := range r.Damaged {
		fmt.Fprintf(w, "not used %s\n", why)
	}
	if r.Copy.Name == "" {
		fmt.Fprintln(w, "There is no copy of the facts: the names of repositories and tags are lost.")
	} else {
		fmt.Fprintf(w, "The facts are from the copy %s: later changes of tags are lost,\n"+
			"and robots that were revoked later are valid again: look at trow token list.\n", r.Copy.Name)
	}
	if r.Unread > 0 {
		fmt.Fprintf(w, "Would read %s (%s) whose digests are not known, to find manifests.\n",
			count(r.Unread, "object", ""), size.Format(r.ToRead))
	}
	printState(w, r, o)
}

func printState(w io.Writer, r *maintenance.Rebuilt, o maintenance.RebuildOptions) {
	put := "put into"
	if o.DryRun {
		put = "would be put into"
	}
	fmt.Fprintf(w, "The journal lists %s, %s, %s.\n", count(r.Restored.Repos, "repository", ""),
		count(r.Restored.Manifests, "manifest", ""), count(r.Restored.Tags, "tag", ""))
	for _, m := range r.Found {
		fmt.Fprintf(w, "found    %s@%s (%s)\n", o.Into, m.Digest, m.MediaType)
	}
	switch n := count(len(r.Found), "manifest", ""); {
	case len(r.Found) == 0:
	case o.Recover:
		fmt.Fprintf(w, "Found %s that no repository held; %s %s. Tag or delete what is there.\n", n, put, o.Into)
	case r.Damage == "" && r.Copy.Name == "" && r.Damaged == nil:
		fmt.Fprintf(w, "Found %s that no repository holds: deleted, and not collected yet. "+
			"With --recover they come back, in %s.\n", n, o.Into)
	default:
		fmt.Fprintf(w, "Found %s that no repository holds: deleted, or pushed after the backup. "+
			"With --recover they come back, in %s.\n", n, o.Into)
	}
	for _, d := range r.Missing {
		fmt.Fprintf(w, "missing  %s\n", d)
	}
	if n := len(r.Missing); n > 0 {
		fmt.Fprintf(w, "%s missing: push the images that contain them again.\n",
			count(n, "blob or manifest is", "blobs and manifests are"))
	}
	if r.Unclaimed > 0 {
		fmt.Fprintf(w, "%s (%s) that no repository uses: the next collection frees the space. "+
			"To keep the bytes, run trow serve with --gc-interval=0.\n",
			count(r.Unclaimed, "blob", ""), size.Format(r.UnclaimedBytes))
	}
}
