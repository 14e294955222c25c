package commands

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"trow/registry"
	"trow/registry/admin"
	"trow/registry/size"
)

func (p Program) cachedCommand() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:   "cached [HOST|IMAGE]",
		Short: "List the images of other registries that are here, the last used ones first",
		Long: `cached lists the images that the cache has fetched, or that were imported for other registries:
those of a HOST, or those with the name IMAGE, which without a tag stands for all of its tags and
what is below it.

SIZE is what is here of an image, with its signatures; images share layers, so the sum is less. HELD
is the platforms of an index that are here as a whole (without linux/); all, for an
image of one platform; or partly. "but foreign" is without layers that clients get from elsewhere
(urls), so may-run: held denies it. USED is the hour of the last pull, or of the last pod that may
run it. STATE is cached; kept, if keep: of its upstream names it, and then it is evicted last; or
imported, and then it is never evicted.` + exitCodes,
		Example: "  trow cached\n  trow cached quay.io\n  trow cached nginx -o json",
		Args:    cobra.MaximumNArgs(1),
	}
	t := p.target(cmd)
	o.addFlags(cmd, "names")
	cmd.ValidArgsFunction = completeCached(t, 1)
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		e, err := t.open(cmd)
		if err != nil {
			return err
		}
		q := url.Values{}
		for _, arg := range args {
			q = placeOrImage(arg)
		}
		all, total, err := listCached(cmd.Context(), e.admin, q)
		if err != nil {
			return err
		}
		return printCached(cmd, o, all, total)
	})
	return cmd
}

// placeOrImage returns the parameters of a job for a text: a host, a repository, or an image with a tag or a digest.
func placeOrImage(text string) url.Values {
	last := text[strings.LastIndexByte(text, '/')+1:]
	name, _, colon := strings.Cut(last, ":")
	host := last == text && (strings.Contains(name, ".") || name == "localhost") // quay.io:8443 is no image
	if strings.Contains(text, "@") || colon && !host {
		return url.Values{"image": {text}}
	}
	return url.Values{"below": {text}}
}

// listCached returns the images of other registries that are here, the most recently used first. Those whose last use
// is not known come last, and imported ones after cached ones.
func listCached(ctx context.Context, c *admin.Client, q url.Values) (all []registry.HeldImage, total registry.HeldTotal,
	err error) {
	all = []registry.HeldImage{}
	err = c.Run(ctx, "cached", q, progress(func(i registry.HeldImage) { all = append(all, i) }), &total)
	slices.SortFunc(all, func(a, b registry.HeldImage) int {
		return cmp.Or(cmp.Compare(b.Used, a.Used), cmp.Compare(a.State, b.State), cmp.Compare(a.Host, b.Host),
			cmp.Compare(a.Name, b.Name), slices.Compare(a.Tags, b.Tags), cmp.Compare(a.Digest, b.Digest))
	})
	return all, total, err
}

func printCached(cmd *cobra.Command, o output, all []registry.HeldImage, total registry.HeldTotal) error {
	out := cmd.OutOrStdout()
	switch {
	case o.json():
		return printJSON(out, map[string]any{"images": all, "total": total})
	case o.quiet:
		var names []string
		for _, i := range all {
			names = append(names, i.Names()...)
		}
		return printLines(out, names)
	}
	list := table{head: []string{"IMAGE", "SIZE", "HELD", "USED", "STATE"}, right: " SIZE "}
	for _, i := range all {
		for _, name := range i.Names() {
			list.add(name, size.Format(i.Bytes), held(i), moment(i.Used), i.State)
		}
	}
	if len(list.rows) > 0 {
		if err := list.print(out, ""); err != nil {
			return err
		}
		fmt.Fprintln(out)
	}
	fmt.Fprintf(out, "%s, %s", count(total.Images, "image", ""), size.Format(total.Bytes))
	if total.Imported > 0 {
		fmt.Fprintf(out, ", of which %s were imported", size.Format(total.Imported))
	}
	if total.Limit > 0 {
		fmt.Fprintf(out, "; the cache has %s of %s", size.Format(total.Used), size.Format(total.Limit))
	}
	fmt.Fprintln(out, ".")
	return nil
}

// held returns a word for how much of an image is here, or its platforms.
func held(i registry.HeldImage) (text string) {
	text = "all"
	switch {
	case !i.Whole:
		return "partly"
	case len(i.Platforms) > 0:
		text = strings.ReplaceAll(","+strings.Join(i.Platforms, ","), ",linux/", ",")[1:]
	}
	if i.Foreign {
		text += " but foreign"
	}
	return text
}

// completeCached completes the images of other registries that are here, in the first n arguments.
func completeCached(t *target, n int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= n {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		e, err := t.open(cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, _, _ := listCached(ctx, e.admin, nil) // an error leaves what was listed until then
		var names []string
		for _, i := range all {
			for _, name := range i.Names() {
				if strings.HasPrefix(name, typed) {
					names = append(names, name)
				}
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}
