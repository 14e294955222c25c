// Package credential lets pods pull with nothing but their ServiceAccount. It is a program that the kubelet of a node
// runs before it pulls an image, and that turns a token of the pod's ServiceAccount into credentials for the registry.
//
// # Words
//
//   - provider: such a program. The kubelet calls it a credential provider plugin (exec). It reads a request from
//     standard input and writes a response to standard output.
//   - token: a token of the ServiceAccount, which the kubelet requests for the pod and for our audience.
//   - audience: the service that a token is for. It must equal the server's setting token-audience, and nodes need the
//     right to request tokens for it; trow manifest --login sets up both.
//   - host: the registry in an image name, host[:port].
//
// # Invariants
//
//  1. The token is sent to the host of the image that it was requested for, and to no other. It is never part of an
//     error.
//  2. The kubelet does not cache the credentials for longer than the token is valid.
//
// # What it does not do
//
// It does not verify the token: the registry has it reviewed. It neither reads nor writes files; --print-config prints
// how to install it on a node.
package credential

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/golang-jwt/jwt/v5"
	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	credentialprovider "k8s.io/kubelet/pkg/apis/credentialprovider/v1"

	"trow/registry/address"
)

const (
	// User is the user name sent with a token. The registry ignores it, because the token has a name of its own.
	User = "serviceaccount"
	// maxRequest bounds a request: a token, and the annotations of a ServiceAccount, up to 256 KiB in Kubernetes.
	maxRequest = 1 << 20
	// cacheLife is how long the kubelet caches credentials; margin is how long before the token expires it stops.
	cacheLife, margin = 5 * time.Minute, 30 * time.Second

	apiVersion   = "credentialprovider.kubelet.k8s.io/v1"
	requestKind  = "CredentialProviderRequest"
	responseKind = "CredentialProviderResponse"
)

// Command returns trow credential-provider.
func Command() *cobra.Command {
	o := Defaults()
	printed := false
	cmd := &cobra.Command{
		Use:   "credential-provider",
		Short: "Pull images with the pod's ServiceAccount (the kubelet of a node runs this)",
		Long: "credential-provider answers the kubelet's requests for credentials with a token of the pod's\n" +
			"ServiceAccount.\n" +
			"With --print-config it prints how to install it on a node.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if printed {
				text, err := Config(o)
				if err != nil {
					return errors.New(strings.Join(strings.Fields(err.Error()), " ")) // a command's error has one line
				}
				_, err = cmd.OutOrStdout().Write(text)
				return err
			}
			var names []string // the configurations of earlier versions set no names
			if cmd.Flags().Changed("names") {
				names = o.Names
			}
			return Answer(cmd.InOrStdin(), cmd.OutOrStdout(), time.Now(), names...)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&printed, "print-config", false,
		"print the kubelet's configuration of this program, and the steps to install it on a node")
	f.StringSliceVar(&o.Names, "names", o.Names, "names of the registry in image names, host[:port]; others get no "+
		"token")
	f.StringVar(&o.Audience, "audience", o.Audience, "with --print-config: the server's setting token-audience")
	f.StringVar(&o.Program, "program", o.Program, "with --print-config: path of this program on the nodes")
	f.StringVar(&o.File, "file", o.File, "with --print-config: path of the configuration on the nodes")
	return cmd
}

// Answer reads a request and writes the response. It refuses images of other hosts than names, if there are any. Errors
// say what is wrong with the request; the kubelet logs them, and pulls without credentials.
func Answer(in io.Reader, out io.Writer, now time.Time, names ...string) error {
	body, err := io.ReadAll(io.LimitReader(in, maxRequest+1))
	switch {
	case err != nil:
		return fmt.Errorf("request: %w", err)
	case len(body) > maxRequest:
		return fmt.Errorf("request: more than %d bytes", maxRequest)
	}
	var r credentialprovider.CredentialProviderRequest
	if err := json.Unmarshal(body, &r); err != nil {
		// Without err, which may repeat a part of the request, and so of the token.
		return errors.New("request: not the JSON of a " + requestKind +
			"; the kubelet runs this program, see --print-config")
	}
	if r.APIVersion != apiVersion || r.Kind != requestKind {
		return fmt.Errorf("request: %.80q of %.80q; want %s of %s, which the kubelet's configuration has to name",
			r.Kind, r.APIVersion, requestKind, apiVersion)
	}
	if r.ServiceAccountToken == "" {
		return errors.New("request: no ServiceAccount token; the kubelet's configuration needs the tokenAttributes " +
			"that --print-config prints, and Kubernetes 1.34 or later")
	}
	host, err := hostOf(r.Image)
	if err != nil {
		return err
	}
	if len(names) > 0 && !slices.ContainsFunc(names, func(n string) bool { return sameHost(n, host) }) {
		return fmt.Errorf("image %.200q: its host gets no token, because it is not one of --names in the kubelet's "+
			"configuration (%s)", r.Image, strings.Join(names, ", "))
	}
	return json.NewEncoder(out).Encode(credentialprovider.CredentialProviderResponse{
		TypeMeta:      metav1.TypeMeta{APIVersion: apiVersion, Kind: responseKind},
		CacheKeyType:  credentialprovider.RegistryPluginCacheKeyType,
		CacheDuration: &metav1.Duration{Duration: cacheFor(r.ServiceAccountToken, now)},
		Auth: map[string]credentialprovider.AuthConfig{
			host: {Username: User, Password: r.ServiceAccountToken}},
	})
}

// sameHost reports whether two names are those of one host, as they are to the webhook.
func sameHost(a, b string) bool {
	x, err := address.Host(a)
	y, berr := address.Host(b)
	return err == nil && berr == nil && x == y
}

// hostOf returns the registry of an image. Docker Hub, the registry of images that name none, must not get the token.
// Errors: the image or its host is not valid, or it is Docker Hub's.
func hostOf(image string) (string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", fmt.Errorf("image %.200q: not a valid image reference", image)
	}
	host := reference.Domain(named)
	canonical, err := address.Host(host)
	switch {
	case host == "": // of evil_x.example/app, which the parser takes for a path without a host
		return "", fmt.Errorf("image %.200q: not a valid image reference", image)
	case err != nil:
		return "", fmt.Errorf("image %.200q: its host is %w", image, err)
	case canonical == address.Hub:
		return "", fmt.Errorf("image %.200q: not of this registry; matchImages in the kubelet's configuration are "+
			"too wide", image)
	}
	return host, nil
}

// cacheFor returns how long the kubelet may cache a token: not at all if the token does not say when it expires.
func cacheFor(token string, now time.Time) time.Duration {
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err != nil || claims.ExpiresAt == nil {
		return 0
	}
	left := claims.ExpiresAt.Sub(now) - margin
	return max(0, min(left, cacheLife).Truncate(time.Second))
}
