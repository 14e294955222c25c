package commands

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"trow/registry/admin"
	"trow/registry/auth"
	"trow/registry/settings"
)

func (p Program) tokenCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Create, list and revoke tokens for machines (robots)"}
	cmd.AddCommand(p.createCommand(), p.listCommand(), p.revokeCommand())
	return cmd
}

// order describes a new robot, as the flags do.
type order struct {
	repositories, actions []string
	expires               string
	replace               bool
}

func (o *order) addFlags(cmd *cobra.Command, repositories, actions []string, expires string) {
	f := cmd.Flags()
	f.StringSliceVar(&o.repositories, "repository", repositories,
		"repositories that the token is for; * matches within a path element, ** across them; may be repeated")
	f.StringSliceVar(&o.actions, "actions", actions,
		"allowed actions: pull, create (push what is new), push, delete, mirror (push below f/), catalog, admin, "+
			"metrics")
	f.StringVar(&o.expires, "expires", expires, "lifetime: 90d, 12h, or never")
	f.BoolVar(&o.replace, "replace", false, "replace a robot of the same name, whose token stops working")
}

// create asks the server to create the robot, and prints its warning.
func (o *order) create(cmd *cobra.Command, c *admin.Client, name string) (done auth.CreatedRobot, err error) {
	q := url.Values{"name": {name}, "repository": o.repositories, "action": o.actions}
	if o.replace {
		q.Set("replace", "true")
	}
	if o.expires != "never" {
		var life settings.Duration
		if err := life.UnmarshalText([]byte(o.expires)); err != nil || life == 0 {
			return done, fmt.Errorf("expires: %.40q is not a valid duration; want 90d, 12h or never", o.expires)
		}
		q.Set("expires", time.Now().Add(time.Duration(life)).UTC().Format(time.RFC3339))
	}
	err = runQuietly(cmd.Context(), c, auth.JobCreateRobot, q, &done)
	if err == nil && done.Warning != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+done.Warning)
	}
	return done, err
}

func (p Program) createCommand() *cobra.Command {
	var o order
	cmd := p.onServer(&cobra.Command{
		Use:   "create NAME --repository PATTERN --actions pull,push",
		Short: "Create a token and print it; it cannot be shown again",
		Long: `create makes a robot with its own token. The token is a password for any user name:
  trow token create ci --repository 'team-a/**' --actions pull,push |
    docker login --username ci --password-stdin HOST
The robot may do what --repository and --actions say and nothing else, even where clients without a login
may do more.`,
		Args: cobra.ExactArgs(1),
	}, func(cmd *cobra.Command, args []string, c *admin.Client) error {
		done, err := o.create(cmd, c, args[0])
		if err != nil {
			return err
		}
		// The token alone goes to standard output, so that it can be piped into docker login.
		fmt.Fprintln(cmd.OutOrStdout(), done.Secret)
		fmt.Fprintf(cmd.ErrOrStderr(), "Token of robot %s, %s. It cannot be shown again.\n", done.Name,
			validity(done.Expires))
		return nil
	})
	o.addFlags(cmd, nil, []string{"pull"}, "90d")
	_ = cmd.MarkFlagRequired("repository") // the flag exists
	return cmd
}

// validity says how long a token is valid. Zero: it does not expire.
func validity(expires time.Time) string {
	if expires.IsZero() {
		return "valid until revoked"
	}
	return "valid until " + expires.Format(time.RFC3339)
}

func (p Program) listCommand() *cobra.Command {
	var o output
	cmd := p.onServer(&cobra.Command{
		Use:   "list",
		Short: "List the robots, what they may do, and when their tokens expire",
		Args:  cobra.NoArgs,
	}, func(cmd *cobra.Command, _ []string, c *admin.Client) error {
		all := []auth.Robot{}
		if err := runQuietly(cmd.Context(), c, auth.JobListRobots, nil, &all); err != nil {
			return err
		}
		switch out := cmd.OutOrStdout(); {
		case o.json():
			return printJSON(out, all)
		case o.quiet:
			for _, r := range all {
				fmt.Fprintln(out, r.Name)
			}
			return nil
		}
		return printRobots(cmd.OutOrStdout(), all)
	})
	o.addFlags(cmd, "names")
	return cmd
}

func printRobots(out io.Writer, all []auth.Robot) error {
	list := table{head: []string{"NAME", "REPOSITORIES", "ACTIONS", "CREATED", "VALIDITY"}}
	for _, r := range all {
		valid := "until revoked"
		if !r.Expires.IsZero() {
			valid = "until " + moment(r.Expires.Unix())
			if time.Now().After(r.Expires) {
				valid = "expired " + moment(r.Expires.Unix())
			}
		}
		list.add(r.Name, strings.Join(r.Repositories, ","), joinActions(r.Actions), moment(r.Created.Unix()), valid)
	}
	return list.print(out, "")
}

func joinActions(all []auth.Action) string {
	var texts []string
	for _, a := range all {
		texts = append(texts, string(a))
	}
	return strings.Join(texts, ",")
}

func (p Program) revokeCommand() *cobra.Command {
	return p.onServer(&cobra.Command{
		Use:   "revoke NAME",
		Short: "Delete a robot; its token stops working at once",
		Args:  cobra.ExactArgs(1),
	}, func(cmd *cobra.Command, args []string, c *admin.Client) error {
		var done auth.Robot
		if err := runQuietly(cmd.Context(), c, auth.JobRevokeRobot, url.Values{"name": args}, &done); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "Robot %s revoked.\n", done.Name)
		return nil
	})
}
