package commands

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"trow/registry/size"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"trow/registry/admin"
	"trow/registry/inventory"
	"trow/storage"
)

// ErrKept ends a removal that removed nothing: something needs what was to be removed, or the user said no.
var ErrKept = errors.New("nothing was removed")

// removing are the flags of rm.
type removing struct {
	output       output
	dryRun, yes  bool
	withManifest bool
}

func (p Program) rmCommand() *cobra.Command {
	var o removing
	cmd := &cobra.Command{
		Use:   "rm REFERENCE",
		Short: "Remove a tag, a manifest or a repository; first say what goes and what stays",
		Long: `rm REPOSITORY:TAG removes the tag alone: the manifest stays and can be pulled by its digest. --manifest
takes the manifest too, unless another tag or an index needs it. rm REPOSITORY@DIGEST removes a manifest with
its tags, and rm REPOSITORY everything in it. With a manifest go its platforms and its referrers, such as
signatures, where nothing else needs them. The next collection frees the space: trow gc.

rm says what goes and asks; --yes does not ask. In a cluster:
  kubectl -n kube-public exec trow-0 -- /trow rm team/app:1.0 --yes

` + referenceUsage + `

Exit code: 0 on success, 1 if nothing was removed, because something needs it or you said no, 2 on an error.`,
		Example: "  trow rm team/app:1.0 --manifest --dry-run\n  trow rm team/app@sha256:… --yes",
		Args:    cobra.ExactArgs(1),
	}
	t := p.target(cmd)
	o.output.addFlags(cmd, "")
	f := cmd.Flags()
	f.BoolVar(&o.dryRun, "dry-run", false, "only say what would be removed")
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&o.withManifest, "manifest", false, "with a tag: also the manifest, unless something else needs it")
	cmd.MarkFlagsMutuallyExclusive("dry-run", "yes")
	cmd.ValidArgsFunction = completeReference(t, 1, true)
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		r, err := parseReference(args[0])
		if err != nil {
			return err
		}
		if o.withManifest && r.tag == "" {
			return errors.New("manifest: it is for REPOSITORY:TAG")
		}
		e, err := t.find(cmd, &r)
		if err != nil {
			return err
		}
		return o.remove(cmd, e, r)
	})
	return cmd
}

func (o *removing) remove(cmd *cobra.Command, e *endpoint, r reference) error {
	plan, err := o.plan(cmd, e, r)
	if err != nil {
		return err
	}
	kept := len(plan.Kept) > 0 && plan.Kept[0].Asked
	out := cmd.OutOrStdout()
	if o.output.json() {
		if err := printJSON(out, plan); err != nil {
			return err
		}
		out = cmd.ErrOrStderr() // so that the result is JSON alone
	} else if err := printPlan(out, plan); err != nil {
		return err
	}
	switch {
	case kept:
		return ErrKept
	case o.dryRun:
		return nil
	case !o.yes:
		yes, err := ask(cmd, "Remove this? [y/N] ")
		if err != nil {
			return err
		}
		if !yes {
			fmt.Fprintln(cmd.ErrOrStderr(), "Nothing was removed.")
			return ErrKept
		}
	}
	for _, m := range plan.Manifests {
		if err := e.Delete(cmd.Context(), r.repo, m.Digest.String(), ""); err != nil &&
			!errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s@%s: %w", r.repo, m.Digest, err)
		}
	}
	if len(plan.Manifests) == 0 && len(plan.Tags) > 0 {
		tag := plan.Tags[0]
		if err := e.Delete(cmd.Context(), r.repo, tag.Tag, tag.Digest); err != nil {
			return fmt.Errorf("%s:%s: %w", r.repo, tag.Tag, err)
		}
	}
	fmt.Fprintf(out, "Removed %s and %s.\n", count(len(plan.Tags), "tag", ""),
		count(len(plan.Manifests), "manifest", ""))
	return nil
}

// plan finds out what goes.
func (o *removing) plan(cmd *cobra.Command, e *endpoint, r reference) (plan inventory.Removal, err error) {
	from := e.inventory()
	from.Referrers = true
	var h storage.Holdings
	if h, _, err = holdings(cmd, e, from, r.repo); err != nil {
		return plan, err
	}
	if r.digest != "" {
		if err := addUntagged(cmd, e, &h, r); err != nil {
			return plan, err
		}
	}
	plan, found := inventory.Plan(h, inventory.Target{Tag: r.tag, Digest: r.digest, WithManifest: o.withManifest})
	if !found {
		return plan, fmt.Errorf("%s not found; trow ls %s lists the tags", e.name+r.text(), e.name+r.repo)
	}
	if e.admin == nil || plan.Bytes == 0 {
		return plan, nil
	}
	// What other repositories hold does not become free. Without administration that is not known.
	err = inventory.Read(cmd.Context(), e.admin, nil, func(h storage.Holdings) error { plan.HeldBy(h); return nil })
	if admin.Unavailable(err) {
		err = nil
	}
	return plan, err
}

// addUntagged adds a manifest that a walk has not found, because no tag leads to it.
func addUntagged(cmd *cobra.Command, e *endpoint, h *storage.Holdings, r reference) error {
	for _, m := range h.Manifests {
		if m.Digest == r.digest {
			return nil
		}
	}
	m, desc, err := inventory.Fetch(cmd.Context(), e.Client, r.repo, r.ref())
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the plan says so
	} else if err != nil {
		return err
	}
	held := storage.HeldManifest{Digest: desc.Digest, MediaType: desc.MediaType, Size: desc.Size}
	for _, d := range m.Manifests {
		held.Refs = append(held.Refs, d.Digest)
	}
	h.Manifests = append(h.Manifests, held)
	return nil
}

// printPlan says what goes and what stays.
func printPlan(w io.Writer, plan inventory.Removal) error {
	list := table{head: []string{"", "WHAT", "NAME", "WHY"}}
	for _, t := range plan.Tags {
		list.add("remove", "tag", t.Tag, "names "+short(t.Digest))
	}
	for _, m := range plan.Manifests {
		why := typeOf(m.MediaType, m.Subject)
		if m.Subject != "" {
			why += " of " + short(m.Subject)
		}
		list.add("remove", "manifest", short(m.Digest), why)
	}
	for _, k := range plan.Kept {
		list.add("keep", "manifest", short(k.Digest), whyKept(k))
	}
	if len(list.rows) > 0 {
		if err := list.print(w, ""); err != nil {
			return err
		}
	}
	if len(plan.Kept) > 0 && plan.Kept[0].Asked {
		fmt.Fprintln(w, "Remove first what needs it.")
	}
	if len(plan.Manifests) > 0 {
		fmt.Fprintf(w, "The next collections free %s.\n", size.Format(plan.Bytes))
	}
	return nil
}

// whyKept says what needs a manifest.
func whyKept(k inventory.Kept) string {
	var by []string
	if len(k.Tags) > 0 {
		by = append(by, "tag "+strings.Join(k.Tags, ", "))
	}
	for _, d := range k.By {
		by = append(by, "index "+short(d))
	}
	if len(by) == 0 {
		return "by its digest; --manifest removes it"
	}
	return "needed by " + strings.Join(by, ", ")
}

// ask asks a question on standard error and reads the answer.
func ask(cmd *cobra.Command, question string) (bool, error) {
	in := cmd.InOrStdin()
	if f, ok := in.(*os.File); ok && !term.IsTerminal(int(f.Fd())) {
		return false, errors.New("standard input is not a terminal, so rm cannot ask; add --yes, " +
			"or --dry-run to see what would go")
	}
	fmt.Fprint(cmd.ErrOrStderr(), question)
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes", nil
}
