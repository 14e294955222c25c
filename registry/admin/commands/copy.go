package commands

import (
	"errors"
	"fmt"
	"io/fs"

	"trow/registry/size"

	"github.com/spf13/cobra"

	"trow/registry/archive"
)

func (p Program) cpCommand() *cobra.Command {
	var quiet, allTags, noReferrers bool
	cmd := &cobra.Command{
		Use:   "cp SOURCE DESTINATION",
		Short: "Copy an image between two registries, with all platforms and its signatures",
		Long: `cp copies a manifest, all platforms of an index, everything that they consist of, and their referrers,
such as signatures. It copies only what is not there: run it again to continue. Within one registry it copies
no bytes. Without a tag, SOURCE is its tag latest, and DESTINATION gets the tag of SOURCE. Logins are those of
docker login; --user is for --server.

` + referenceUsage + exitCodes,
		Example: "  trow cp docker.io/library/alpine:3.22 base/alpine\n" +
			"  trow cp team/app:1.0 trow.example:31000/team/app\n  trow cp --all-tags old.example/app app",
		Args: cobra.ExactArgs(2),
	}
	t := p.target(cmd)
	t.several = true
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "print only the digest of what was copied")
	f.BoolVarP(&allTags, "all-tags", "a", false, "copy all tags of the repository SOURCE")
	f.BoolVar(&noReferrers, "no-referrers", false, "do not copy signatures and other referrers")
	cmd.ValidArgsFunction = completeReference(t, 2, true)
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		from, err := parseReference(args[0])
		if err != nil {
			return fmt.Errorf("source: %w", err)
		}
		to, err := parseReference(args[1])
		if err != nil {
			return fmt.Errorf("destination: %w", err)
		}
		source, err := t.find(cmd, &from)
		if err != nil {
			return fmt.Errorf("source: %w", err)
		}
		destination, err := t.find(cmd, &to)
		if err != nil {
			return fmt.Errorf("destination: %w", err)
		}
		var all []archive.Copied
		if allTags {
			all, err = everyTag(cmd, source, from, to)
		} else {
			all, err = oneTag(from, to)
		}
		if err != nil {
			return err
		}
		w := cmd.ErrOrStderr()
		d, done, err := archive.Copy(cmd.Context(), source.Client, destination.Client, all, archive.CopyOptions{
			Referrers: !noReferrers, Options: archive.Options{
				Problem: func(text string) { fmt.Fprintln(w, text) },
				Note:    func(text string) { fmt.Fprintln(w, text) },
				Progress: func(now archive.Progress) {
					if !quiet {
						fmt.Fprintf(w, "Read %s; copied %s and %s; %d already there\n", size.Format(now.Read),
							count(now.Blobs, "blob", ""), count(now.Manifests, "manifest", ""), now.Present)
					}
				}}})
		if err != nil {
			return err
		}
		if quiet {
			return printLines(cmd.OutOrStdout(), []string{d.String()})
		}
		printCopied(cmd.OutOrStdout(), "Copied", done, nil)
		fmt.Fprintln(cmd.OutOrStdout(), destination.name+to.repo+"@"+d.String())
		return nil
	})
	return cmd
}

// oneTag is the copy of one image.
func oneTag(from, to reference) ([]archive.Copied, error) {
	if to.digest != "" && to.digest != from.digest {
		return nil, errors.New("destination: it cannot have a digest; that of the source is kept")
	}
	c := archive.Copied{FromRepo: from.repo, From: from.ref(), ToRepo: to.repo, ToTag: to.tag}
	if c.ToTag == "" && from.digest == "" {
		c.ToTag = from.ref()
	}
	return []archive.Copied{c}, nil
}

// everyTag is the copy of all tags of a repository.
func everyTag(cmd *cobra.Command, source *endpoint, from, to reference) (all []archive.Copied, err error) {
	if from.tag != "" || from.digest != "" || to.tag != "" || to.digest != "" {
		return nil, errors.New("all-tags: source and destination must be repositories, without a tag or a digest")
	}
	err = source.Tags(cmd.Context(), from.repo, func(page []string) error {
		for _, tag := range page {
			all = append(all, archive.Copied{FromRepo: from.repo, From: tag, ToRepo: to.repo, ToTag: tag})
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(all) == 0 {
		err = fmt.Errorf("all-tags: repository %s not found, or it has no tags", source.name+from.repo)
	}
	return all, err
}
