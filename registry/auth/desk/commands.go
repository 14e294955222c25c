package desk

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"trow/registry/admin"
	"trow/registry/auth"
	"trow/registry/settings"
)

// Program is what the commands need of the program that they are part of.
type Program struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
	// Client adds the flags that say which server is meant, and returns what connects to it when the command runs.
	Client func(cmd *cobra.Command) func() (*admin.Client, error)
	// Policy reads the rules of the configuration file of the flag --config, and the name of the user who may do everything.
	Policy func(cmd *cobra.Command) (p *auth.Policy, owner string, err error)
	// Servers are the host[:port] by which nodes reach the registry.
	Servers []string
	// Denied is what ends a can-i that said no.
	Denied error
}

// Commands are token, can-i and pull-secret.
func (p Program) Commands() []*cobra.Command {
	token := &cobra.Command{Use: "token", Short: "Make, list and revoke tokens for machines (robots)"}
	token.AddCommand(p.create(), p.list(), p.revoke())
	return []*cobra.Command{token, p.canI(), p.pullSecret()}
}

// job runs a job that reports nothing on the way.
func job(ctx context.Context, c *admin.Client, name string, q url.Values, done any) error {
	return c.Run(ctx, name, q, func(json.RawMessage) error { return nil }, done)
}

// order is what is wanted of a new robot, as flags say it.
type order struct {
	repositories, actions []string
	expires               string
}

func (o *order) flags(cmd *cobra.Command, repositories, actions []string, expires string) {
	f := cmd.Flags()
	f.StringSliceVar(&o.repositories, "repository", repositories, "repositories it is for, with * and **; may be given more than once")
	f.StringSliceVar(&o.actions, "actions", actions, "what it may do there: pull, push, delete, catalog, admin, metrics")
	f.StringVar(&o.expires, "expires", expires, "when it ends: 90d, 12h, or never")
}

// make asks the server for the robot.
func (o *order) make(ctx context.Context, c *admin.Client, name string) (done created, err error) {
	q := url.Values{"name": {name}, "repository": o.repositories, "action": o.actions}
	if o.expires != "never" {
		var life settings.Duration
		if err := life.UnmarshalText([]byte(o.expires)); err != nil || life == 0 {
			return done, fmt.Errorf("expires: %.40q is no time; write it as 90d or 12h, or never", o.expires)
		}
		q.Set("expires", time.Now().Add(time.Duration(life)).UTC().Format(time.RFC3339))
	}
	return done, job(ctx, c, jobCreate, q, &done)
}

func (p Program) create() *cobra.Command {
	var o order
	cmd := &cobra.Command{
		Use:   "create NAME --repository PATTERN --actions pull,push",
		Short: "Make a token, and print it: it is not told again",
		Long: "create makes a robot with a secret of its own. The secret is a password that goes with any user name:\n" +
			"  trow token create ci --repository 'team-a/**' --actions pull,push | docker login --username ci --password-stdin HOST\n" +
			"It may do what it was made for and nothing else, also where others may do more without a login.",
		Args: cobra.ExactArgs(1),
	}
	client := p.Client(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := client()
		if err != nil {
			return err
		}
		done, err := o.make(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		fmt.Fprintln(p.Out, done.Secret)
		fmt.Fprintf(p.Err, "This is the token of robot %s, good %s. It cannot be shown again.\n", done.Name, until(done.Expires))
		return nil
	}
	o.flags(cmd, nil, []string{"pull"}, "90d")
	_ = cmd.MarkFlagRequired("repository")
	return cmd
}

// until says when something ends.
func until(t time.Time) string {
	if t.IsZero() {
		return "until it is revoked"
	}
	return "until " + t.Format(time.RFC3339)
}

func (p Program) list() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the robots: what they may do, and until when", Args: cobra.NoArgs}
	client := p.Client(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := client()
		if err != nil {
			return err
		}
		var all []auth.Robot
		if err := job(cmd.Context(), c, jobList, nil, &all); err != nil {
			return err
		}
		w := tabwriter.NewWriter(p.Out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tREPOSITORIES\tACTIONS\tCREATED\tGOOD")
		for _, r := range all {
			good := until(r.Expires)
			if !r.Expires.IsZero() && time.Now().After(r.Expires) {
				good = "ended " + r.Expires.Format(time.RFC3339)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Name, strings.Join(r.Repositories, ","), actions(r.Actions), r.Created.Format(time.RFC3339), good)
		}
		return w.Flush()
	}
	return cmd
}

func actions(all []auth.Action) string {
	var texts []string
	for _, a := range all {
		texts = append(texts, string(a))
	}
	return strings.Join(texts, ",")
}

func (p Program) revoke() *cobra.Command {
	cmd := &cobra.Command{Use: "revoke NAME", Short: "End a robot at once", Args: cobra.ExactArgs(1)}
	client := p.Client(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := client()
		if err != nil {
			return err
		}
		var done auth.Robot
		if err := job(cmd.Context(), c, jobRevoke, url.Values{"name": args}, &done); err != nil {
			return err
		}
		fmt.Fprintf(p.Out, "The token of robot %s counts no more.\n", done.Name)
		return nil
	}
	return cmd
}

func (p Program) canI() *cobra.Command {
	var as string
	var groups []string
	cmd := &cobra.Command{
		Use:   "can-i ACTION [REPOSITORY]",
		Short: "Tell whether somebody may do something, and which rule decides: exit code 1 if not",
		Long: "can-i asks the running server, or with --config reads the rules of a configuration file. ACTION is pull, push,\n" +
			"delete, or, without a repository, catalog, admin or metrics. --as is a user, robot:NAME, cert:CN, or system:serviceaccount:NAMESPACE:NAME;\n" +
			"without it somebody without a login is meant.",
		Args: cobra.RangeArgs(1, 2),
	}
	client := p.Client(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		action, repo, err := question(args)
		if err != nil {
			return err
		}
		var answer auth.Explanation
		if file, _ := cmd.Flags().GetString("config"); file != "" {
			answer, err = p.read(cmd, as, groups, repo, action)
		} else if c, cerr := client(); cerr != nil {
			return cerr
		} else {
			q := url.Values{"action": {string(action)}, "repository": {repo}, "as": {as}, "group": groups}
			err = job(cmd.Context(), c, jobCanI, q, &answer)
		}
		if err != nil {
			return err
		}
		if !answer.Allowed {
			fmt.Fprintf(p.Out, "no: %s\n", answer.Why)
			return p.Denied
		}
		fmt.Fprintf(p.Out, "yes: %s\n", answer.Why)
		return nil
	}
	cmd.Flags().Lookup("config").Usage = "configuration file whose rules decide, instead of the server's"
	cmd.Flags().StringVar(&as, "as", "", "who (default: somebody without a login)")
	cmd.Flags().StringSliceVar(&groups, "as-group", nil, "a group of the cluster's that he is in; may be given more than once")
	return cmd
}

// question reads what is asked.
func question(args []string) (a auth.Action, repo string, err error) {
	all, err := auth.ParseActions(args[:1])
	if err != nil {
		return "", "", fmt.Errorf("action: %w", err)
	}
	a = all[0]
	whole := a.Whole()
	switch {
	case whole && len(args) == 2:
		return "", "", fmt.Errorf("%s is about no repository", a)
	case whole:
		return a, "", nil
	case len(args) == 1:
		return "", "", fmt.Errorf("%s needs a repository", a)
	}
	return a, args[1], nil
}

// read decides by a file.
func (p Program) read(cmd *cobra.Command, as string, groups []string, repo string, a auth.Action) (auth.Explanation, error) {
	policy, owner, err := p.Policy(cmd)
	switch {
	case err != nil:
		return auth.Explanation{}, err
	case strings.HasPrefix(as, "robot:"):
		return auth.Explanation{}, errors.New("as: what a robot may do the server knows; ask without --config")
	case as != "" && as == owner:
		return policy.Explain(auth.Owner(as), repo, a), nil
	}
	return policy.Explain(auth.Named(as, groups), repo, a), nil
}

// secret is a Secret to be printed.
type secret struct {
	name, namespace string
	servers         []string
}

func (s *secret) flags(cmd *cobra.Command, servers []string) {
	f := cmd.Flags()
	f.StringSliceVar(&s.servers, "server", servers, "HOST[:PORT] as in the names of images; may be given more than once")
	f.StringVar(&s.namespace, "namespace", "default", "namespace of the Secret")
	f.StringVar(&s.name, "name", "regcred", "name of the Secret")
}

func (p Program) pullSecret() *cobra.Command {
	var o order
	var s secret
	var robot, user, file string
	cmd := &cobra.Command{
		Use:   "pull-secret",
		Short: "Print a Secret with which pods pull (imagePullSecrets)",
		Long: "pull-secret makes a robot that may pull, and prints a Secret with its token:\n" +
			"  trow pull-secret --namespace team-a --repository 'team-a/**' | kubectl apply -f -\n" +
			"With --user it makes no robot, and the Secret has that user's password.",
		Args: cobra.NoArgs,
	}
	client := p.Client(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := s.check(); err != nil {
			return err
		}
		name, password, err := user, "", error(nil)
		if user != "" {
			password, err = p.password(file)
		} else {
			name, password, err = p.robot(cmd.Context(), client, &o, cmp.Or(robot, "pull-"+s.namespace))
		}
		if err != nil {
			return err
		}
		return p.print(s, name, password)
	}
	o.flags(cmd, []string{"**"}, []string{"pull"}, "never")
	s.flags(cmd, p.Servers)
	f := cmd.Flags()
	f.StringVar(&robot, "robot", "", "name of the robot (default: pull-NAMESPACE)")
	f.StringVar(&user, "user", "", "take this user's password instead of making a robot")
	f.StringVar(&file, "password-file", "", "with --user: file with the password; - for standard input")
	cmd.MarkFlagsMutuallyExclusive("robot", "user")
	cmd.MarkFlagsRequiredTogether("user", "password-file")
	return cmd
}

// robot makes a robot for a Secret.
func (p Program) robot(ctx context.Context, client func() (*admin.Client, error), o *order, name string) (user, password string, err error) {
	c, err := client()
	if err != nil {
		return "", "", err
	}
	done, err := o.make(ctx, c, name)
	if err != nil {
		return "", "", err
	}
	fmt.Fprintf(p.Err, "The Secret has the token of robot %s, good %s.\n", name, until(done.Expires))
	return name, done.Secret, nil
}

// check finds what cannot be in a Secret.
func (s *secret) check() error {
	if msg := validation.IsDNS1123Subdomain(s.name); len(msg) > 0 {
		return fmt.Errorf("name: %.80q: %s", s.name, msg[0])
	}
	if msg := validation.IsDNS1123Label(s.namespace); len(msg) > 0 {
		return fmt.Errorf("namespace: %.80q: %s", s.namespace, msg[0])
	}
	if len(s.servers) == 0 {
		return errors.New("server: name one; images are pulled from it")
	}
	for _, host := range s.servers {
		if !auth.ValidHost(host) {
			return fmt.Errorf("server: %.80q is not HOST[:PORT]", host)
		}
	}
	return nil
}

// password reads a password as the server does.
func (p Program) password(file string) (string, error) {
	const most = 64 << 10
	in := p.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("password-file: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, most))
	if err != nil {
		return "", fmt.Errorf("password-file: %w", err)
	}
	password := strings.TrimRight(string(b), "\r\n")
	if password == "" {
		return "", fmt.Errorf("password-file: %s is empty", file)
	}
	return password, nil
}

// print prints a Secret of type kubernetes.io/dockerconfigjson.
func (p Program) print(s secret, user, password string) error {
	auths := map[string]any{}
	for _, host := range s.servers {
		auths[host] = map[string]string{"username": user, "password": password}
	}
	config, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		return err
	}
	text, err := yaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
		"metadata":   map[string]string{"name": s.name, "namespace": s.namespace},
		"stringData": map[string]string{".dockerconfigjson": string(config)},
	})
	if err != nil {
		return err
	}
	_, err = p.Out.Write(text)
	return err
}
