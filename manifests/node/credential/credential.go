// Package credential is how pods pull with their ServiceAccount alone: a program that the kubelet of a node runs before
// it pulls, and that turns the pod's token into credentials for the registry.
//
// # Words
//
//   - provider: such a program, in the kubelet's words a credential provider plugin (exec). It reads a request from
//     standard input and writes a response to standard output.
//   - token: the ServiceAccount's, which the kubelet has made for the pod and for our audience.
//   - audience: for whom a token is made. That of the configuration has to be the server's setting token-audience, and
//     nodes have to be allowed to ask for it; trow manifest --login has both.
//   - host: the registry in an image's name, host[:port].
//
// # Invariants
//
//  1. The token goes to the host of the image that it was made for, and nowhere else; never into an error.
//  2. The kubelet does not keep the credentials longer than the token is good.
//
// # What it does not do
//
// It asks nobody: the registry has the token reviewed. It reads no files, and puts nothing on a node: what to do there is
// told by --print-config.
package credential

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/golang-jwt/jwt/v5"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	credentialprovider "k8s.io/kubelet/pkg/apis/credentialprovider/v1"
)

const (
	// User is the name beside a token. The registry does not look at it: the token has a name of its own.
	User = "serviceaccount"
	// maxRequest bounds a request: a token, and the annotations of a ServiceAccount, of which Kubernetes takes 256 KiB.
	maxRequest = 1 << 20
	// cacheLife is how long the kubelet keeps credentials; margin, how long before the token's end it stops.
	cacheLife, margin = 5 * time.Minute, 30 * time.Second

	apiVersion   = "credentialprovider.kubelet.k8s.io/v1"
	requestKind  = "CredentialProviderRequest"
	responseKind = "CredentialProviderResponse"
)

// Command is trow credential-provider.
func Command() *cobra.Command {
	o := Defaults()
	printed := false
	cmd := &cobra.Command{
		Use:   "credential-provider",
		Short: "Pull with the pod's ServiceAccount: the kubelet runs this on a node",
		Long: "credential-provider answers the kubelet's question for credentials with the token of the pod's ServiceAccount.\n" +
			"With --print-config it prints how a node is told of it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if printed {
				text, err := Config(o)
				if err != nil {
					return errors.New(strings.Join(strings.Fields(err.Error()), " ")) // commands fail with one line
				}
				_, err = cmd.OutOrStdout().Write(text)
				return err
			}
			return Answer(cmd.InOrStdin(), cmd.OutOrStdout(), time.Now())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&printed, "print-config", false, "print the kubelet's configuration for it, and what else to do on each node")
	f.StringSliceVar(&o.Names, "names", o.Names, "with --print-config: names of the registry in image names, host[:port]")
	f.StringVar(&o.Audience, "audience", o.Audience, "with --print-config: the server's setting token-audience")
	f.StringVar(&o.Program, "program", o.Program, "with --print-config: where this program is put on the nodes")
	f.StringVar(&o.File, "file", o.File, "with --print-config: where the configuration is put")
	return cmd
}

// Answer reads one request and writes the response to it. Errors say what is wrong with the request; the kubelet logs
// them, and pulls without credentials.
func Answer(in io.Reader, out io.Writer, now time.Time) error {
	body, err := io.ReadAll(io.LimitReader(in, maxRequest+1))
	switch {
	case err != nil:
		return fmt.Errorf("the request: %w", err)
	case len(body) > maxRequest:
		return fmt.Errorf("the request has more than %d bytes", maxRequest)
	}
	var r credentialprovider.CredentialProviderRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return errors.New("the request is no JSON of a " + requestKind + "; the kubelet runs this program, --print-config tells how")
	}
	if r.APIVersion != apiVersion || r.Kind != requestKind {
		return fmt.Errorf("the request is %.80q of %.80q, and only %s of %s is understood; the kubelet's configuration says which it sends",
			r.Kind, r.APIVersion, requestKind, apiVersion)
	}
	if r.ServiceAccountToken == "" {
		return errors.New("the kubelet has sent no token of a ServiceAccount: its configuration needs tokenAttributes as " +
			"--print-config prints them, and Kubernetes 1.34 or later")
	}
	host, err := hostOf(r.Image)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(credentialprovider.CredentialProviderResponse{
		TypeMeta:      metav1.TypeMeta{APIVersion: apiVersion, Kind: responseKind},
		CacheKeyType:  credentialprovider.RegistryPluginCacheKeyType,
		CacheDuration: &metav1.Duration{Duration: keep(r.ServiceAccountToken, now)},
		Auth:          map[string]credentialprovider.AuthConfig{host: {Username: User, Password: r.ServiceAccountToken}},
	})
}

// hostOf is the registry of an image. An image that names none is Docker Hub's, which has no use for the token.
func hostOf(image string) (string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", fmt.Errorf("the image %.200q is no image reference", image)
	}
	host := reference.Domain(named)
	if host == "docker.io" {
		return "", fmt.Errorf("the image %.200q is not this registry's: matchImages of the kubelet's configuration are too wide", image)
	}
	return host, nil
}

// keep is how long the kubelet may keep a token: not at all if it does not say when it ends.
func keep(token string, now time.Time) time.Duration {
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err != nil || claims.ExpiresAt == nil {
		return 0
	}
	left := claims.ExpiresAt.Sub(now) - margin
	return max(0, min(left, cacheLife).Truncate(time.Second))
}
