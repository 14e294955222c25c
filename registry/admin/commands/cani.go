package commands

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"trow/registry/auth"
)

// question is what can-i asks: whether a caller may do something.
type question struct {
	as         string   // the caller; empty: a client without a login
	groups     []string // of the caller
	action     auth.Action
	repository string // empty for actions that concern the whole registry
}

func (p Program) canICommand() *cobra.Command {
	var q question
	cmd := &cobra.Command{
		Use:   "can-i ACTION [REPOSITORY]",
		Short: "Report whether a caller may do something and which rule decides; exit code 1 if not",
		Long: `can-i asks the running server or, with --config, reads the rules of a configuration file. ACTION is pull,
create, push, delete or mirror, or, without a repository, catalog, admin or metrics.
--as is a user, robot:NAME, cert:CN, system:serviceaccount:NAMESPACE:NAME; without it can-i asks about a
client that has no login.`,
		Args: cobra.RangeArgs(1, 2),
	}
	connect := p.connect(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := q.parse(args); err != nil {
			return err
		}
		var answer auth.Explanation
		var err error
		if cmd.Flags().Lookup("config").Value.String() != "" {
			answer, err = p.askFile(cmd, q)
		} else {
			answer, err = askServer(cmd, connect, q)
		}
		if err != nil {
			return err
		}
		if !answer.Allowed {
			fmt.Fprintf(cmd.OutOrStdout(), "no: %s\n", answer.Why)
			return ErrDenied
		}
		fmt.Fprintf(cmd.OutOrStdout(), "yes: %s\n", answer.Why)
		return nil
	}
	f := cmd.Flags()
	f.Lookup("config").Usage = "configuration file whose rules decide, instead of the server's"
	f.StringVar(&q.as, "as", "", "the caller (default: a client without a login)")
	f.StringSliceVar(&q.groups, "as-group", nil, "a Kubernetes group of the caller; may be repeated")
	return cmd
}

// parse reads the arguments of can-i.
func (q *question) parse(args []string) error {
	all, err := auth.ParseActions(args[:1])
	if err != nil {
		return fmt.Errorf("action: %w", err)
	}
	q.action = all[0]
	whole := q.action.Whole()
	switch {
	case whole && len(args) == 2:
		return fmt.Errorf("%s applies to the whole registry; omit the repository", q.action)
	case !whole && len(args) == 1:
		return fmt.Errorf("%s needs a repository", q.action)
	case !whole:
		q.repository = args[1]
	}
	return nil
}

func askServer(cmd *cobra.Command, connect connector, q question) (answer auth.Explanation, err error) {
	c, err := connect()
	if err != nil {
		return answer, err
	}
	return answer, runQuietly(cmd.Context(), c, auth.JobExplain, url.Values{"action": {string(q.action)},
		"repository": {q.repository}, "as": {q.as}, "group": q.groups}, &answer)
}

// askFile decides by the rules of a configuration file.
func (p Program) askFile(cmd *cobra.Command, q question) (auth.Explanation, error) {
	policy, caller, err := p.Policy(cmd)
	if err != nil {
		return auth.Explanation{}, err
	}
	who, err := caller(q.as, q.groups)
	if err != nil {
		return auth.Explanation{}, fmt.Errorf("as: %w", err)
	}
	return policy.Explain(who, q.repository, q.action), nil
}
