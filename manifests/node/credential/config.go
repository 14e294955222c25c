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

// ConfigOptions say what a node is told. [Defaults] has those of the manifest.
type ConfigOptions struct {
	Names    []string // of the registry in image names, host[:port]
	Audience string   // the server's setting token-audience
	Program  string   // where this program is put on the nodes; its name there is the provider's
	File     string   // where the configuration is put
}

// Defaults returns the options for trow.yaml.
func Defaults() ConfigOptions {
	return ConfigOptions{
		Names:    kube.RegistryNames(kube.DefaultHost(kube.DefaultNamespace), kube.DefaultNamespace, kube.DefaultNodePort),
		Audience: kube.Audience,
		Program:  "/usr/local/lib/trow/trow",
		File:     "/etc/kubernetes/trow-credential-provider.yaml",
	}
}

const steps = `# How pods pull with their ServiceAccounts alone. On each node, with Kubernetes 1.34 or later:
#
#   1. Put the program trow, as root's and executable, to
#        %[1]s
#      It is in the image: id=$(docker create TROW-IMAGE) && docker cp $id:/trow . && docker rm $id
#   2. Put this text to
#        %[2]s
#   3. Add two flags to the kubelet's, and restart it:
#        --image-credential-provider-config=%[2]s
#        --image-credential-provider-bin-dir=%[3]s
#      If it has them already, put the program into that directory and the provider below into that file.
#
# The server's setting token-audience has to be %[4]s, and nodes need to be allowed to ask for such tokens: the
# manifest of trow manifest --login has both.
`

// Config is the kubelet's configuration for the provider, in YAML, with the steps to install it as comments. Errors:
// every option that cannot be meant, by the name of its flag.
func Config(o ConfigOptions) ([]byte, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	text, err := yaml.Marshal(kubelet.CredentialProviderConfig{
		TypeMeta: metav1.TypeMeta{APIVersion: "kubelet.config.k8s.io/v1", Kind: "CredentialProviderConfig"},
		Providers: []kubelet.CredentialProvider{{
			Name: path.Base(o.Program), Args: []string{"credential-provider"}, APIVersion: apiVersion,
			MatchImages: o.Names, DefaultCacheDuration: &metav1.Duration{Duration: cacheLife},
			TokenAttributes: &kubelet.ServiceAccountTokenAttributes{
				ServiceAccountTokenAudience: o.Audience,
				CacheType:                   kubelet.TokenServiceAccountTokenCacheType, // the token itself is the password
				RequireServiceAccount:       ptr.To(true),
			},
		}},
	})
	if err != nil {
		return nil, err
	}
	return append(fmt.Appendf(nil, steps, o.Program, o.File, path.Dir(o.Program), o.Audience), text...), nil
}

var (
	// plainPath is an absolute one that neither YAML's comments nor a shell can take for something else.
	plainPath = regexp.MustCompile(`^(/[a-zA-Z0-9._-]+)+$`)
	// plainWord is an audience; those of Kubernetes are often URLs.
	plainWord = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._:/-]*$`)
	// address is an IPv6 address or a name, with a port or without.
	address = regexp.MustCompile(`^(\[[0-9a-fA-F:]+\]|[a-zA-Z0-9.-]+)(:[0-9]{1,5})?$`)
)

// check finds what cannot be meant.
func (o *ConfigOptions) check() error {
	var errs []error
	if len(o.Names) == 0 {
		errs = append(errs, errors.New("names: none is given, and so no image would match"))
	}
	for _, name := range o.Names {
		if !address.MatchString(name) {
			errs = append(errs, fmt.Errorf("names: %.80q is no host[:port]; a pattern would give tokens to others", name))
		}
	}
	if !plainWord.MatchString(o.Audience) {
		errs = append(errs, fmt.Errorf("audience: %.80q is none", o.Audience))
	}
	for _, p := range []struct{ flag, path string }{{"program", o.Program}, {"file", o.File}} {
		if !plainPath.MatchString(p.path) || path.Clean(p.path) != p.path {
			errs = append(errs, fmt.Errorf("%s: %.80q is no path from / on", p.flag, p.path))
		}
	}
	if msgs := validation.IsDNS1123Subdomain(path.Base(o.Program)); len(msgs) > 0 {
		errs = append(errs, fmt.Errorf("program: %.80q: %s", path.Base(o.Program), strings.Join(msgs, "; ")))
	}
	return errors.Join(errs...)
}
