package commands

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"trow/registry"
	"trow/registry/maintenance"
	"trow/registry/size"
)

func (p Program) rebuildCommand() *cobra.Command {
	into := "recovered"
	cmd := &cobra.Command{
		Use:   "rebuild",
		Short: "Repair a data directory whose journal is damaged, while no server uses it",
		Long: "rebuild moves a damaged journal aside and replaces it with the backup that the server makes every hour. It\n" +
			"puts manifests that no repository holds into the repository --into, by digest: their names are not stored\n" +
			"anywhere else. It deletes nothing. If the journal is intact, rebuild keeps it and only looks for such manifests.",
		Args: cobra.NoArgs,
	}
	dataDir := p.DataDir(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		dir, err := dataDir()
		if err != nil {
			return err
		}
		r, err := maintenance.Rebuild(cmd.Context(), dir, maintenance.RebuildOptions{
			Into: into, Parse: registry.RecoverManifest,
			Progress: func(blobs int) { fmt.Fprintf(cmd.ErrOrStderr(), "Checked %s\n", count(blobs, "blob", "")) }})
		if err != nil {
			return err
		}
		printRebuilt(cmd.OutOrStdout(), r, into)
		return nil
	}
	cmd.Flags().StringVar(&into, "into", into, "repository for manifests that no repository holds")
	return cmd
}

func printRebuilt(w io.Writer, r *maintenance.Rebuilt, into string) {
	switch {
	case r.Damage == "":
		fmt.Fprintln(w, "The journal is intact.")
	case r.Backup.IsZero():
		fmt.Fprintf(w, "%s\nMoved it to %s. There was no backup: the names of repositories and tags are lost.\n",
			r.Damage, r.Aside)
	default:
		fmt.Fprintf(w, "%s\nMoved it to %s. Restored the backup of %s: later changes of tags are lost.\n",
			r.Damage, r.Aside, r.Backup.UTC().Format(time.RFC3339))
	}
	fmt.Fprintf(w, "The journal lists %s, %s, %s.\n", count(r.Restored.Repos, "repository", ""),
		count(r.Restored.Manifests, "manifest", ""), count(r.Restored.Tags, "tag", ""))
	for _, m := range r.Found {
		fmt.Fprintf(w, "found    %s@%s (%s)\n", into, m.Digest, m.MediaType)
	}
	if n := len(r.Found); n > 0 {
		fmt.Fprintf(w, "Found %s that no repository held; put into %s. Tag or delete what is there.\n",
			count(n, "manifest", ""), into)
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
