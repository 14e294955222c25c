package credential

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	kubelet "k8s.io/kubelet/config/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"trow/manifests/kube"
)

// ConfigOptions say what the configuration of a node has to be. [Defaults] has those for the manifest.
type ConfigOptions struct {
	Names    []string // of the registry in image names, host[:port]
	Audience string   // the server's setting token-audience
	Program  string   // path of this program on the nodes; its base name is the provider's name
	File     string   // path of the configuration on the nodes
}

// Defaults returns the options for trow.yaml.
func Defaults() ConfigOptions {
	return ConfigOptions{
		Names: kube.RegistryNames(kube.DefaultHost(kube.DefaultNamespace), kube.DefaultNamespace,
			kube.DefaultNodePort),
		Audience: kube.Audience,
		Program:  "/usr/local/lib/trow/trow",
		File:     "/etc/kubernetes/trow-credential-provider.yaml",
	}
}

const steps = `# Lets pods pull with nothing but their ServiceAccounts. On each node, with Kubernetes 1.34 or later:
#
#   1. Copy the program trow, owned by root and executable, to
#        %[1]s
#      It is in the image: id=$(docker create TROW-IMAGE) && docker cp $id:/trow . && docker rm $id
#   2. Write this text to
#        %[2]s
#   3. Add two flags to the kubelet, and restart it:
#        --image-credential-provider-config=%[2]s
#        --image-credential-provider-bin-dir=%[3]s
#      If it has these flags already, put the program into that directory, and add the provider below to that file.
#
# The server's setting token-audience must be %[4]s, and nodes need the right to request such tokens; the manifest of
# trow manifest --login sets up both.
`

// Config returns the kubelet's configuration of the provider, in YAML, with the steps to install it as comments.
// Errors: each invalid option, by the name of its flag.
func Config(o ConfigOptions) ([]byte, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	text, err := yaml.Marshal(kubelet.CredentialProviderConfig{
		TypeMeta: metav1.TypeMeta{APIVersion: "kubelet.config.k8s.io/v1", Kind: "CredentialProviderConfig"},
		Providers: []kubelet.CredentialProvider{{
			Name: path.Base(o.Program), APIVersion: apiVersion,
			Args:        []string{"credential-provider", "--names=" + strings.Join(o.Names, ",")},
			MatchImages: o.Names, DefaultCacheDuration: &metav1.Duration{Duration: cacheLife},
			TokenAttributes: &kubelet.ServiceAccountTokenAttributes{
				ServiceAccountTokenAudience: o.Audience,
				// the token itself is the password
				CacheType:             kubelet.TokenServiceAccountTokenCacheType,
				RequireServiceAccount: ptr.To(true),
			},
		}},
	})
	if err != nil {
		return nil, err
	}
	return append(fmt.Appendf(nil, steps, o.Program, o.File, path.Dir(o.Program), o.Audience), text...), nil
}

var (
	// plainPath matches absolute paths that need no quotes in a shell and cannot end a comment of YAML.
	plainPath = regexp.MustCompile(`^(/[a-zA-Z0-9._-]+)+$`)
	// plainWord matches audiences; those of Kubernetes are often URLs.
	plainWord = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._:/-]*$`)
	// plainHost matches a host name or an IP address, with or without a port.
	plainHost = regexp.MustCompile(`^(\[[0-9a-fA-F:]+\]|[a-zA-Z0-9.-]+)(:[0-9]{1,5})?$`)
)

// validate reports each invalid option.
func (o *ConfigOptions) validate() error {
	var errs []error
	if len(o.Names) == 0 {
		errs = append(errs, errors.New("names: empty; no image would match"))
	}
	for _, name := range o.Names {
		if _, err := hostOf(name + "/x"); !plainHost.MatchString(name) || err != nil { // an image there gets no token
			errs = append(errs, fmt.Errorf("names: %.80q: want host[:port] of this registry, as in image names; "+
				"a pattern would send tokens to other hosts", name))
		}
	}
	if !plainWord.MatchString(o.Audience) {
		errs = append(errs, fmt.Errorf("audience: %.80q is not a valid audience", o.Audience))
	}
	for _, p := range []struct{ flag, path string }{{"program", o.Program}, {"file", o.File}} {
		if !plainPath.MatchString(p.path) || path.Clean(p.path) != p.path {
			errs = append(errs, fmt.Errorf("%s: %.80q: want an absolute path", p.flag, p.path))
		}
	}
	if msgs := validation.IsDNS1123Subdomain(path.Base(o.Program)); len(msgs) > 0 {
		errs = append(errs, fmt.Errorf("program: %.80q: %s", path.Base(o.Program), strings.Join(msgs, "; ")))
	}
	return errors.Join(errs...)
}
