package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"trow/manifests/kube"
)

// Options are the settings of a server in a cluster.
type Options struct {
	Webhook          string   // a Mode; empty: the webhook was not registered by this program
	ExemptNamespaces []string // beside kube-system and the server's own
	TokenAudience    string   // accept ServiceAccount tokens of this audience; empty: none
	AccessReview     bool     // whether RBAC decides what ServiceAccounts may do
	LoginSecret      string   // the Secret with the login of the user who may do everything; empty: none
	Deployment       string   // the Deployment of the replicas, and their Lease; empty: there is one pod

	// The rest is set by the program: User and NoTLS, the settings of these names, before Validate. Open sets Client,
	// Namespace and Pod if Client is nil.

	User  string
	NoTLS bool

	Client    *kube.Client
	Namespace string // of the Service, the Secret and the ConfigMap
	Pod       string // of this process, for its readiness and its volumes; empty: Ready alone counts

	CA     func() []byte                   // returns the current bundle
	Ready  func() bool                     // reports whether the server would answer a review
	Rotate func(ctx context.Context) error // starts a rotation of the CA

	// Refresh takes over what other replicas have saved, so that CA returns the bundle of now, and Key returns a secret
	// that all replicas have; see package tls. Optional without Deployment.
	Refresh func(ctx context.Context) error
	Key     func(purpose string) ([]byte, error)

	// Engines are the hosts of the services of journal and blobs, which this process waits for when it starts.
	Engines []string

	// Settings returns why the configuration files are not in use, nil if they are. Optional.
	Settings func() error

	Log zerolog.Logger

	// Poll is the time between two passes. 0 means 5 s. A watch reports changes of the configuration at once.
	Poll time.Duration
}

// AddFlags registers the settings as flags.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	fs.StringVar(&o.Webhook, "webhook", "", "in a pod of the manifest: off, audit (only warn) or enforce; "+
		"the certificates are in Secret "+kube.SecretName+" then; empty: not in a cluster")
	fs.StringSliceVar(&o.ExemptNamespaces, "exempt-namespaces", nil,
		"namespaces whose pods are not reviewed, beside kube-system and the registry's own")
	fs.StringVar(&o.TokenAudience, "token-audience", "",
		"in a cluster: accept ServiceAccount tokens of this audience as logins; empty: none")
	fs.BoolVar(&o.AccessReview, "access-review", false,
		"let RBAC decide what ServiceAccounts may do where no rule decides")
	fs.StringVar(&o.LoginSecret, "login-secret", "",
		"in a pod of the manifest: the Secret with user and password of the "+
			"user who may do everything; the server fills in what it lacks; empty: none")
	fs.StringVar(&o.Deployment, "deployment", "", "in a pod of the manifest of several replicas: their Deployment, "+
		"and the Lease of the one that arms the webhook; empty: there is one pod")
}

// Validate reports the first invalid setting.
func (o *Options) Validate() error {
	switch {
	case o.Webhook != "" && !slices.Contains([]Mode{Off, Audit, Enforce}, o.mode()):
		return fmt.Errorf("webhook: %.80q: want one of off, audit, enforce", o.Webhook)
	case o.Webhook != "" && o.NoTLS:
		return errors.New("webhook conflicts with no-tls: the API server calls webhooks over TLS only; " +
			"remove no-tls, or register the webhook yourself")
	case o.LoginSecret != "" && o.User != "":
		return errors.New("login-secret: conflicts with user, password and password-file; remove one of the two")
	case o.Webhook == "" && o.Deployment != "":
		return errors.New("deployment requires webhook: replicas agree on nothing else in the cluster")
	case o.Deployment != "" && len(validation.IsDNS1123Subdomain(o.Deployment)) > 0:
		return fmt.Errorf("deployment: %.80q is not a valid name of a Deployment; that of the manifest is %s",
			o.Deployment,
			kube.Name)
	case o.Webhook == "" && len(o.ExemptNamespaces) > 0:
		return errors.New("exempt-namespaces requires webhook: without it no webhook is registered")
	case o.TokenAudience != strings.TrimSpace(o.TokenAudience) || len(o.TokenAudience) > 256:
		return fmt.Errorf("token-audience: %.80q is not a valid audience; that of the manifest is %s",
			o.TokenAudience, kube.Audience)
	case o.AccessReview && o.TokenAudience == "":
		return errors.New("access-review requires token-audience: without it no ServiceAccount can log in; add " +
			"token-audience: " + kube.Audience)
	}
	if o.LoginSecret != "" && len(validation.IsDNS1123Subdomain(o.LoginSecret)) > 0 {
		return fmt.Errorf("login-secret: %.80q is not a valid name of a Secret; that of the manifest is %s",
			o.LoginSecret,
			kube.LoginSecretName)
	}
	for _, n := range o.ExemptNamespaces {
		if msg := validation.IsDNS1123Label(n); len(msg) > 0 {
			return fmt.Errorf("exempt-namespaces: %.80q: %s", n, msg[0])
		}
	}
	return nil
}

func (o *Options) mode() Mode { return Mode(o.Webhook) }

// Reviews is what a [Reviewer] does: review tokens, and what their accounts may do.
type Reviews interface {
	Review(ctx context.Context, token string, turn func(context.Context) (done func(ok bool, err error), err error)) (
		user authenticationv1.UserInfo, ok bool, why string, err error)
	Access(ctx context.Context, user authenticationv1.UserInfo, verb, namespace,
		repository string) (bool, string, error)
}

// Open connects to the API server of the cluster that this process runs in, and returns the Cluster, nil if the setting
// webhook is empty, and a Reviewer, nil if the setting token-audience is empty. It sends no request yet. Error: a
// setting needs a cluster, and this process does not run in a pod.
func Open(o Options) (c *Cluster, r Reviews, err error) {
	if o.Webhook != "" {
		if err := o.connect("webhook"); err != nil {
			return nil, nil, err
		}
		c = New(o)
	}
	if o.TokenAudience != "" {
		if err := o.connect("token-audience"); err != nil {
			return nil, nil, err
		}
		r = NewReviewer(o.Client, o.TokenAudience, o.Log)
	}
	return c, r, nil
}

// connect sets Client, Namespace and Pod, if the program has not set a client. key is the setting that needs them.
func (o *Options) connect(key string) (err error) {
	if o.Client != nil {
		return nil
	}
	if o.Client, o.Namespace, err = kube.InCluster(); err != nil {
		return fmt.Errorf("%s: %w; outside a cluster leave this setting empty", key, err)
	}
	o.Pod, err = os.Hostname() // the host name of a pod that is not on the host's network is its name
	return err
}

// Keeper has the certificates; see package tls.
type Keeper interface {
	CA() []byte
	Rotate(ctx context.Context) error
	Refresh(ctx context.Context) error
	Key(purpose string) ([]byte, error)
}

// Use sets CA, Rotate, Refresh and Key to those of a Keeper, which need not exist before they are called.
func (o *Options) Use(keeper func() Keeper) {
	o.CA = func() []byte { return keeper().CA() }
	o.Rotate = func(ctx context.Context) error { return keeper().Rotate(ctx) }
	o.Refresh = func(ctx context.Context) error { return keeper().Refresh(ctx) }
	o.Key = func(purpose string) ([]byte, error) { return keeper().Key(purpose) }
}
