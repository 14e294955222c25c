package commands

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"trow/registry/auth"
)

// secret describes the Secret to print.
type secret struct {
	name, namespace string
	servers         []string
}

func (s *secret) addFlags(cmd *cobra.Command, servers []string) {
	f := cmd.Flags()
	f.StringSliceVar(&s.servers, "server", servers,
		"HOST[:PORT] as in image names; may be repeated; one that is a URL, "+
			"https://HOST, also names the server that creates the robot, with the login of docker login")
	f.StringVar(&s.namespace, "namespace", "default", "namespace of the Secret")
	f.StringVar(&s.name, "name", "regcred", "name of the Secret")
}

func (p Program) pullSecretCommand() *cobra.Command {
	var o order
	var s secret
	var robot, user, file string
	cmd := &cobra.Command{
		Use:   "pull-secret",
		Short: "Print a Secret with which pods pull images (imagePullSecrets)",
		Long: "pull-secret creates a robot that may pull, and prints a Secret with its token:\n" +
			"  trow pull-secret --namespace team-a --repository 'team-a/**' |\n" +
			"    kubectl apply -f -\n" +
			"With --replace it can be run again: the robot gets a new token, and the token\n" +
			"before stops working.\n" +
			"With --user it creates no robot; the Secret has the password of that user,\n" +
			"who must not be one who may administer the registry: the server is asked.",
		Args: cobra.NoArgs,
	}
	t := &target{dataDir: p.DataDir(cmd)}
	t.addCA(cmd)
	cmd.RunE = explained(func(cmd *cobra.Command, _ []string) error {
		t.server = s.takeURL()
		// Validate first: a robot that was created for a Secret that cannot be printed would be of no use.
		if err := s.validate(); err != nil {
			return err
		}
		if slices.Contains(o.actions, string(auth.Admin)) {
			return errors.New("actions: admin: everybody who can read the Secret could administer the registry; " +
				"leave it out, or make a token for one program with trow token create")
		}
		if user != "" {
			password, err := readPassword(cmd.InOrStdin(), file)
			if err != nil {
				return err
			}
			if err := auth.CheckPassword(password); err != nil {
				return fmt.Errorf("password-file: %w; or omit --user, which creates a robot", err)
			}
			if err := t.checkNoAdministrator(cmd, user); err != nil {
				return err
			}
			return s.print(cmd.OutOrStdout(), user, password)
		}
		e, err := t.open(cmd)
		if err != nil {
			return err
		}
		name := cmp.Or(robot, "pull-"+s.namespace)
		done, err := o.create(cmd, e.admin, name)
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "The Secret has the token of robot %s, %s.\n", name, validity(done.Expires))
		return s.print(cmd.OutOrStdout(), name, done.Secret)
	})
	o.addFlags(cmd, []string{"**"}, []string{"pull"}, "never")
	s.addFlags(cmd, p.Servers)
	f := cmd.Flags()
	f.StringVar(&robot, "robot", "", "name of the robot (default: pull-NAMESPACE)")
	f.StringVar(&user, "user", "", "use the password of this user instead of creating a robot")
	f.StringVar(&file, "password-file", "", "with --user: file with the password; - for standard input")
	cmd.MarkFlagsMutuallyExclusive("robot", "user")
	cmd.MarkFlagsMutuallyExclusive("replace", "user")
	cmd.MarkFlagsRequiredTogether("user", "password-file")
	return cmd
}

// checkNoAdministrator refuses a user who may administer the registry: everybody who can read the Secret could do it.
// So it refuses a user as well whom no server knows, or about whom none can be asked.
func (t *target) checkNoAdministrator(cmd *cobra.Command, user string) error {
	const instead = "omit --user and --password-file: then the Secret gets a robot that may only pull"
	var answer auth.Explanation
	e, err := t.open(cmd)
	if err == nil {
		err = runQuietly(cmd.Context(), e.admin, auth.JobExplain,
			url.Values{"action": {string(auth.Admin)}, "as": {user}}, &answer)
	}
	switch {
	case err != nil:
		return fmt.Errorf("user: cannot find out whether %s may administer the registry, and a pull secret must not: "+
			"%w; name the server with --data-dir or --server https://HOST, or %s", user, err, instead)
	case answer.Allowed:
		return fmt.Errorf("user: %s may administer the registry (%s), and so could everybody who can read the "+
			"Secret; %s",
			user, answer.Why, instead)
	}
	return nil
}

// takeURL returns the first server that is a URL, and leaves its host: image names have no scheme.
func (s *secret) takeURL() (first string) {
	s.servers = slices.Clone(s.servers)
	for i, server := range s.servers {
		if _, host, ok := strings.Cut(server, "://"); ok {
			first, s.servers[i] = cmp.Or(first, server), strings.TrimSuffix(host, "/")
		}
	}
	return first
}

// validate reports what Kubernetes would not accept in the Secret.
func (s *secret) validate() error {
	if msg := validation.IsDNS1123Subdomain(s.name); len(msg) > 0 {
		return fmt.Errorf("name: %.80q: %s", s.name, msg[0])
	}
	if msg := validation.IsDNS1123Label(s.namespace); len(msg) > 0 {
		return fmt.Errorf("namespace: %.80q: %s", s.namespace, msg[0])
	}
	if len(s.servers) == 0 {
		return errors.New("server: empty; want the HOST[:PORT] that images are pulled from")
	}
	for _, host := range s.servers {
		if !auth.ValidHost(host) {
			return fmt.Errorf("server: %.80q is not a valid HOST[:PORT]", host)
		}
	}
	return nil
}

// readPassword reads a password as the server does: without the line break at its end.
func readPassword(in io.Reader, file string) (string, error) {
	const max = 64 << 10 // bytes; a larger file was named by mistake
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("password-file: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, max+1))
	if err != nil {
		return "", fmt.Errorf("password-file: %w", err)
	}
	if len(b) > max {
		return "", fmt.Errorf("password-file: %s has more than %d bytes", file, max)
	}
	password := strings.TrimRight(string(b), "\r\n")
	if password == "" {
		return "", fmt.Errorf("password-file: %s is empty", file)
	}
	return password, nil
}

// print prints the Secret, of type kubernetes.io/dockerconfigjson.
func (s *secret) print(w io.Writer, user, password string) error {
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
	_, err = w.Write(text)
	return err
}
