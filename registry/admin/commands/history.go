package commands

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"trow/registry/client"
)

// listedTarget is what a tag names, or named before, in a list.
type listedTarget struct {
	Digest digest.Digest `json:"digest"`
	Set    int64         `json:"set"`
	By     string        `json:"by,omitempty"`
}

func (p Program) historyCommand() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:   "history REPOSITORY[:TAG]",
		Short: "Show what a tag names and named before, since when, and who set it",
		Long: `history shows what a tag names, in the first line, and what it named before, the newest first. Without a
tag it shows the tag latest. BY is the login that set the tag: a user, robot:NAME, cert:NAME, a ServiceAccount,
(anonymous) without a login, or (socket) for commands on the server's machine. It is - where that is not
known, and for clients that may not push to the repository. A registry of Trow keeps the last 50 targets of
a tag until the tag is deleted. A manifest that a tag named before may have been deleted since.

` + referenceUsage + exitCodes,
		Example: "  trow history team/app:1.0\n" +
			"  trow cp team/app@$(trow history -q team/app:1.0 | sed -n 2p) team/app:1.0",
		Args: cobra.ExactArgs(1),
	}
	t := p.target(cmd)
	o.addFlags(cmd, "digests")
	cmd.ValidArgsFunction = completeReference(t, 1, true)
	cmd.RunE = explained(func(cmd *cobra.Command, args []string) error {
		r, err := parseReference(args[0])
		if err == nil && r.digest != "" {
			err = fmt.Errorf("%.150q names a digest, which never names anything else; want REPOSITORY[:TAG]", args[0])
		}
		if err != nil {
			return err
		}
		e, err := t.find(cmd, &r)
		if err != nil {
			return err
		}
		targets, err := history(cmd, e, r)
		if err != nil {
			return err
		}
		return printHistory(cmd, o, targets)
	})
	return cmd
}

// history asks the registry. Registries that have no such path refuse the request in many ways: if the tag is there all
// the same, that is the reason.
func history(cmd *cobra.Command, e *endpoint, r reference) ([]client.Target, error) {
	targets, err := e.History(cmd.Context(), r.repo, r.ref())
	if err == nil || cmd.Context().Err() != nil {
		return targets, err
	}
	if refused, ok := errors.AsType[*client.Error](err); ok && (refused.Status >= 500 || refused.Status < 400) {
		return nil, err
	}
	switch _, rerr := e.Resolve(cmd.Context(), r.repo, r.ref()); {
	case errors.Is(rerr, fs.ErrNotExist):
		return nil, fmt.Errorf("%s:%s not found; trow tags %[1]s lists the tags", e.name+r.repo, r.ref())
	case rerr == nil:
		return nil, fmt.Errorf("%s keeps no history of tags: it is not a Trow server, or one of an older version (%w)",
			e.URL(), err)
	}
	return nil, err
}

func printHistory(cmd *cobra.Command, o output, targets []client.Target) error {
	out := cmd.OutOrStdout()
	all, digests := []listedTarget{}, []string{}
	list := table{head: []string{"DIGEST", "SET", "BY"}}
	for _, t := range targets {
		all = append(all, listedTarget{t.Digest, t.Date.Unix(), t.By})
		digests = append(digests, t.Digest.String())
		list.add(short(t.Digest), moment(t.Date.Unix()), cmp.Or(t.By, "-"))
	}
	switch {
	case o.json():
		return printJSON(out, all)
	case o.quiet:
		return printLines(out, digests)
	}
	return list.print(out, "")
}
