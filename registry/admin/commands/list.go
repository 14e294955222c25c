package commands

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"time"

	"trow/registry/size"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"trow/registry/admin"
	"trow/registry/auth"
	"trow/registry/inventory"
	"trow/storage"
)

// exitCodes is the end of the help of the commands for every day.
const exitCodes = "\n\nExit code: 0 on success, 2 on an error."

// explained makes run's errors name their remedy.
func explained(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error { return explain(cmd.Context(), run(cmd, args)) }
}

// repositoryArgument reads an argument that names a repository alone.
func repositoryArgument(text string) (reference, error) {
	r, err := parseReference(text)
	if err == nil && (r.tag != "" || r.digest != "") {
		err = fmt.Errorf("%.150q names a manifest; want a repository alone%s", text, registryHint(text))
	}
	return r, err
}

// registryHint is the end of an error about a repository whose name may be meant as the HOST[:PORT] of a registry.
func registryHint(text string) string {
	host, port, _ := strings.Cut(text, ":")
	if strings.ContainsAny(text, "/@") || !auth.ValidHost(text) || port == "" && !strings.Contains(host, ".") {
		return ""
	}
	return fmt.Sprintf("; a registry is named by https://%.80s", text)
}

// registryURL matches a registry without a repository, which trow ls and trow du take.
var registryURL = regexp.MustCompile(`^https?://[^/]+/?$`)

// ofRegistry makes an argument that names a registry alone the server of the command, and returns the arguments that
// remain.
func (t *target) ofRegistry(args []string) ([]string, error) {
	if len(args) != 1 || !registryURL.MatchString(args[0]) {
		return args, nil
	}
	if t.server != "" {
		return nil, errors.New("server: the argument names a registry already; omit one of them")
	}
	t.server = args[0]
	return nil, nil
}

func (p Program) lsCommand() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:   "ls [REPOSITORY|https://HOST]",
		Short: "List the repositories of a registry, or the manifests of one",
		Long: `ls lists repositories, or the manifests and tags of a repository. Untagged manifests are in the list
where the server's administration may be asked: on its socket, or with a login that has admin.

` + referenceUsage + exitCodes,
		Example: "  trow ls\n  trow ls https://trow.example:31000\n" +
			"  trow ls team/app --server https://trow.example:31000\n" +
			"  trow ls docker.io/library/alpine -o json",
		Args: cobra.MaximumNArgs(1),
	}
	t := p.target(cmd)
	o.addFlags(cmd, "names")
	cmd.ValidArgsFunction = completeReference(t, 1, false)
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		args, err := t.ofRegistry(args)
		if err != nil {
			return err
		}
		if len(args) == 0 {
			return listRepositories(cmd, t, o)
		}
		return listManifests(cmd, t, o, args[0])
	})
	return cmd
}

// listRepositories lists what the server holds, with counts if its administration may be asked, else by name.
func listRepositories(cmd *cobra.Command, t *target, o output) error {
	e, err := t.open(cmd)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	usages, names := []inventory.Usage{}, []string{}
	var sum inventory.Sum
	counted := !o.quiet
	if counted {
		err := inventory.Read(cmd.Context(), e.admin, nil, func(h storage.Holdings) error { sum.Add(h); return nil })
		if counted = err == nil; !counted && !admin.Unavailable(err) {
			return err
		}
	}
	if counted {
		usages, _ = sum.Result()
	} else {
		err := e.Repositories(cmd.Context(), func(page []string) error { names = append(names, page...); return nil })
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%s does not list its repositories (%w); name one", e.URL(), err)
		}
		if err != nil {
			return err
		}
		slices.Sort(names)
	}
	switch {
	case o.quiet:
		return printLines(out, names)
	case o.json() && counted:
		return printJSON(out, usages)
	case o.json():
		for _, name := range names {
			usages = append(usages, inventory.Usage{Repository: name})
		}
		return printNames(out, usages)
	case !counted:
		return printLines(out, append([]string{"REPOSITORY"}, names...))
	}
	list := table{head: []string{"REPOSITORY", "TAGS", "MANIFESTS", "SIZE", "UPDATED"}, right: " TAGS MANIFESTS SIZE "}
	for _, u := range usages {
		list.add(u.Repository, fmt.Sprint(u.Tags), fmt.Sprint(u.Manifests), size.Format(u.Bytes), moment(u.Updated))
	}
	return list.print(out, "")
}

// printNames prints repositories of which only the names are known.
func printNames(w io.Writer, all []inventory.Usage) error {
	type named struct {
		Repository string `json:"repository"`
	}
	names := []named{}
	for _, u := range all {
		names = append(names, named{u.Repository})
	}
	return printJSON(w, names)
}

// moment is a Unix time as tables have it; 0: not known.
func moment(unix int64) string {
	if unix == 0 {
		return "-"
	}
	return time.Unix(unix, 0).UTC().Format("2006-01-02 15:04")
}

// listed is a manifest in a list.
type listed struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Tags      []string      `json:"tags"`
	Bytes     int64         `json:"bytes"` // with everything that it consists of
	Pushed    int64         `json:"pushed,omitempty"`
	Subject   digest.Digest `json:"subject,omitempty"`
}

// holdings returns what a repository holds.
func holdings(cmd *cobra.Command, e *endpoint, from inventory.Registry, repo string) (
	h storage.Holdings, whole bool, err error) {
	found := false
	whole, err = from.Each(cmd.Context(), []string{repo}, func(held storage.Holdings) error {
		h, found = held, true
		return nil
	})
	if err == nil && !found {
		err = e.noRepository(repo)
	}
	return h, whole, err
}

// noRepository says that a registry has no such repository, and how to find out which it has.
func (e *endpoint) noRepository(repo string) error {
	list := "trow ls"
	if e.dir == "" {
		list += " " + e.URL()
	}
	return fmt.Errorf("repository %s not found; %s lists the repositories%s", e.name+repo, list,
		registryHint(e.name+repo))
}

func listManifests(cmd *cobra.Command, t *target, o output, name string) error {
	r, err := repositoryArgument(name)
	if err != nil {
		return err
	}
	e, err := t.find(cmd, &r)
	if err != nil {
		return err
	}
	h, _, err := holdings(cmd, e, e.listing(cmd), r.repo)
	if err != nil {
		return err
	}
	all, sizes := []listed{}, inventory.Sizes(h)
	for _, m := range h.Manifests {
		l := listed{Digest: m.Digest, MediaType: m.MediaType, Tags: []string{}, Bytes: sizes(m.Digest), Pushed: m.Time,
			Subject: m.Subject}
		for _, tag := range m.Tags {
			l.Tags = append(l.Tags, tag.Name)
		}
		all = append(all, l)
	}
	// Tagged ones first, by tag: these are what people look for.
	slices.SortFunc(all, func(a, b listed) int {
		return cmp.Or(cmp.Compare(min(1, len(b.Tags)), min(1, len(a.Tags))), slices.Compare(a.Tags, b.Tags),
			cmp.Compare(a.Digest, b.Digest))
	})
	out := cmd.OutOrStdout()
	switch {
	case o.json():
		return printJSON(out, all)
	case o.quiet:
		var names []string
		for _, l := range all {
			for _, tag := range l.Tags {
				names = append(names, e.name+r.repo+":"+tag)
			}
			if len(l.Tags) == 0 {
				names = append(names, e.name+r.repo+"@"+l.Digest.String())
			}
		}
		return printLines(out, names)
	}
	list := table{head: []string{"TAG", "DIGEST", "TYPE", "SIZE", "PUSHED"}, right: " SIZE "}
	for _, l := range all {
		for _, tag := range append(l.Tags, make([]string, max(0, 1-len(l.Tags)))...) {
			list.add(cmp.Or(tag, "-"), short(l.Digest), typeOf(l.MediaType, l.Subject), size.Format(l.Bytes),
				moment(l.Pushed))
		}
	}
	return list.print(out, "")
}

// typeOf says in a word what a manifest is.
func typeOf(mediaType string, subject digest.Digest) string {
	switch {
	case subject != "":
		return "referrer"
	case isIndex(mediaType):
		return "index"
	}
	return "image"
}

func (p Program) tagsCommand() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:   "tags REPOSITORY",
		Short: "List the tags of a repository, and what they name",
		Long: `tags lists the tags of a repository in the order of their names.

` + referenceUsage + exitCodes,
		Example: "  trow tags team/app\n  trow tags -q docker.io/library/alpine",
		Args:    cobra.ExactArgs(1),
	}
	t := p.target(cmd)
	o.addFlags(cmd, "names")
	cmd.ValidArgsFunction = completeReference(t, 1, false)
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		r, err := repositoryArgument(args[0])
		if err != nil {
			return err
		}
		e, err := t.find(cmd, &r)
		if err != nil {
			return err
		}
		if o.quiet { // a request for each page, where the digests would need one for each tag
			return listTags(cmd, e, r.repo)
		}
		h, _, err := holdings(cmd, e, e.listing(cmd), r.repo)
		if err != nil {
			return err
		}
		return printTags(cmd.OutOrStdout(), h, o)
	})
	return cmd
}

func listTags(cmd *cobra.Command, e *endpoint, repo string) error {
	err := e.HeldTags(cmd.Context(), repo, func(page []string) error { return printLines(cmd.OutOrStdout(), page) })
	if errors.Is(err, fs.ErrNotExist) {
		return e.noRepository(repo)
	}
	return err
}

// listedTag is a tag in a list.
type listedTag struct {
	Tag       string        `json:"tag"`
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Bytes     int64         `json:"bytes"` // of the manifest with everything that it consists of
	Set       int64         `json:"set,omitempty"`
}

func printTags(w io.Writer, h storage.Holdings, o output) error {
	all, sizes := []listedTag{}, inventory.Sizes(h)
	for _, m := range h.Manifests {
		for _, tag := range m.Tags {
			all = append(all, listedTag{tag.Name, m.Digest, m.MediaType, sizes(m.Digest), tag.Time})
		}
	}
	slices.SortFunc(all, func(a, b listedTag) int { return cmp.Compare(a.Tag, b.Tag) })
	if o.json() {
		return printJSON(w, all)
	}
	list := table{head: []string{"TAG", "DIGEST", "TYPE", "SIZE", "SET"}, right: " SIZE "}
	for _, tag := range all {
		list.add(tag.Tag, short(tag.Digest), typeOf(tag.MediaType, ""), size.Format(tag.Bytes), moment(tag.Set))
	}
	return list.print(w, "")
}

func (p Program) duCommand() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:   "du [REPOSITORY...|https://HOST]",
		Short: "Report what takes how much space",
		Long: "du adds up blobs and manifests by repository, the largest first. OWN is what no other repository " +
			"holds, so\n" +
			"what becomes free with the repository; content that several hold is stored once, and counted once in " +
			"the total.\n" +
			"UNUSED is what no manifest refers to, which trow gc frees after gc-grace. With names, du adds up these " +
			"alone:\n" +
			"OWN is then what none of the others named holds. Without a login that has admin, du follows the tags, " +
			"and\n" +
			"misses what is not tagged.\n\n" + referenceUsage + exitCodes,
		Example: "  trow du\n  trow du https://trow.example:31000\n  trow du team/app team/web -o json",
	}
	t := p.target(cmd)
	o.addFlags(cmd, "")
	cmd.ValidArgsFunction = completeReference(t, 1000, false)
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		args, err := t.ofRegistry(args)
		if err != nil {
			return err
		}
		var repos []string
		var r reference
		for i, arg := range args {
			next, err := repositoryArgument(arg)
			if err != nil {
				return err
			}
			if i > 0 && next.url != r.url {
				return errors.New("du adds up one registry; run it for each")
			}
			r = next
			repos = append(repos, r.repo)
		}
		e, err := t.find(cmd, &r)
		if err != nil {
			return err
		}
		var sum inventory.Sum
		missing := slices.Clone(repos)
		whole, err := e.listing(cmd).Each(cmd.Context(), repos, func(h storage.Holdings) error {
			missing = slices.DeleteFunc(missing, func(name string) bool { return name == h.Repo })
			sum.Add(h)
			return nil
		})
		if err == nil && len(missing) > 0 {
			err = e.noRepository(missing[0])
		}
		if err != nil {
			return err
		}
		usages, total := sum.Result()
		slices.SortStableFunc(usages, func(a, b inventory.Usage) int { return cmp.Compare(b.Bytes, a.Bytes) })
		return printUsage(cmd, o, usages, total, whole)
	})
	return cmd
}

func printUsage(cmd *cobra.Command, o output, usages []inventory.Usage, total inventory.Total, whole bool) error {
	out := cmd.OutOrStdout()
	if o.json() {
		return printJSON(out, map[string]any{"repositories": usages, "total": total})
	}
	list := table{head: []string{"REPOSITORY", "TAGS", "MANIFESTS", "SIZE", "OWN", "UNUSED"},
		right: " TAGS MANIFESTS SIZE OWN UNUSED "}
	for _, u := range usages {
		list.add(u.Repository, fmt.Sprint(u.Tags), fmt.Sprint(u.Manifests), size.Format(u.Bytes),
			size.Format(u.Own), size.Format(u.Unused))
	}
	if err := list.print(out, ""); err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s in %s, of which several hold %s, counted once.\n", size.Format(total.Bytes),
		count(total.Repositories, "repository", ""), size.Format(total.Shared))
	if !whole {
		fmt.Fprintln(cmd.ErrOrStderr(), "Only what tags lead to is counted: "+
			"the registry lists the rest to a Trow administrator.")
	}
	return nil
}
