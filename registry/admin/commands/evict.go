package commands

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"trow/registry"
	"trow/registry/settings"
	"trow/registry/size"
)

// evictedAtOnce is how many images one request names: the headers of a request are bounded.
const evictedAtOnce = 100

// evicted is the outcome of an eviction for programs.
type evicted struct {
	registry.EvictTotal
	Images []registry.EvictedImage `json:"images"`
}

func (p Program) evictCommand() *cobra.Command {
	var o output
	var dryRun bool
	var allOf string
	var older settings.Duration
	cmd := &cobra.Command{
		Use:   "evict IMAGE...|--all-of HOST|--older-than AGE",
		Short: "Evict images of other registries from the cache, and free their space at once",
		Long: `evict removes images that the cache has fetched, with all of their tags, platforms and signatures,
and deletes at once the bytes that nothing else needs. A node that pulls one afterwards gets it from
its registry again. IMAGE is named as in a pod, or as trow cached prints it. --older-than evicts
the images that were last used (USED of trow cached) at least that long ago, except those that keep: of an upstream
names; with --all-of, only those of that host.

Images that a client is reading stay, and so do imported ones, which trow rm deletes.

Exit code: 0 if all that was named is evicted, 1 if some of it stays or is not here, 2 on an error.`,
		Example: "  trow evict nginx:1.27 --dry-run\n  trow evict --all-of quay.io\n  trow evict --older-than 30d",
	}
	t := p.target(cmd)
	o.addFlags(cmd, "")
	f := cmd.Flags()
	f.BoolVar(&dryRun, "dry-run", false, "only say what would be evicted")
	f.StringVar(&allOf, "all-of", "", "all images of HOST[:PORT], or below HOST[:PORT]/REPOSITORY")
	f.Var(&older, "older-than", "what was not used for this time, such as 30d")
	f.Lookup("older-than").DefValue = "" // without it, no age counts
	cmd.ValidArgsFunction = completeCached(t, 1000)
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		q := dryRunQuery(dryRun)
		switch {
		case len(args) > 0 && (allOf != "" || f.Changed("older-than")):
			return errors.New("images exclude --all-of and --older-than; omit one of them")
		case len(args) == 0 && allOf == "" && !f.Changed("older-than"):
			return fmt.Errorf("nothing is selected; want: %s", cmd.UseLine())
		case f.Changed("older-than"):
			q.Set("before", time.Now().Add(-time.Duration(older)).UTC().Format(time.RFC3339))
		}
		if allOf != "" {
			q.Set("below", allOf)
		}
		e, err := t.open(cmd)
		if err != nil {
			return err
		}
		done := evicted{Images: []registry.EvictedImage{}}
		for step := range slices.Chunk(append(args, make([]string, max(0, 1-len(args)))...), evictedAtOnce) {
			if len(args) > 0 {
				q["image"] = step
			}
			var one registry.EvictTotal
			err := e.admin.Run(cmd.Context(), "evict", q, progress(func(i registry.EvictedImage) {
				done.Images = append(done.Images, i)
			}), &one)
			if err != nil {
				return err
			}
			done.add(one)
		}
		if o.json() {
			err = printJSON(cmd.OutOrStdout(), done)
		} else {
			err = printEvicted(cmd, done, dryRun)
		}
		if err == nil && (done.Stay > 0 || done.Reading > 0 || len(done.Absent) > 0) {
			return ErrKept
		}
		return err
	})
	return cmd
}

// add adds the outcome of one request.
func (e *evicted) add(one registry.EvictTotal) {
	e.Evicted += one.Evicted
	e.Stay += one.Stay
	e.Freed += one.Freed
	e.Reading += one.Reading
	e.Absent = append(e.Absent, one.Absent...)
}

func printEvicted(cmd *cobra.Command, done evicted, dryRun bool) error {
	out := cmd.OutOrStdout()
	list := table{head: []string{"", "IMAGE", "SIZE", "USED"}, right: " SIZE "}
	for _, i := range done.Images {
		what := "evict"
		if i.Why != "" {
			what = "keep"
		}
		for _, name := range i.Names() {
			list.add(what, name, size.Format(i.Bytes), moment(i.Used))
		}
	}
	if len(list.rows) > 0 {
		if err := list.print(out, ""); err != nil {
			return err
		}
	}
	for _, i := range done.Images {
		if i.Why != "" {
			fmt.Fprintf(out, "%s stays: %s\n", printable(i.Names()[0]), printable(i.Why))
		}
	}
	for _, name := range done.Absent {
		fmt.Fprintf(out, "%s is not here; trow cached lists what is\n", printable(name))
	}
	if done.Reading > 0 {
		fmt.Fprintf(out, "%s began to be read meanwhile, and stay; evict again\n",
			count(done.Reading, "blob or manifest", "blobs and manifests"))
	}
	verb := "Evicted"
	if dryRun {
		verb = "Would evict"
	}
	_, err := fmt.Fprintf(out, "%s %s; %s freed.\n", verb, count(done.Evicted, "image", ""), size.Format(done.Freed))
	return err
}
