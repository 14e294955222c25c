// Package manifests makes what brings Trow onto a cluster: one Kubernetes manifest.
//
// # Words
//
//   - manifest: the YAML of all objects, in the order in which they are to be applied. trow.yaml in this folder is
//     the one that the default options make.
//   - host: the name by which the registry is known on nodes and workstations, without a port.
//
// # Invariants
//
//  1. The same options make the same bytes, a password aside. A test compares trow.yaml with them.
//  2. Nothing that a user gives gets into the YAML unchecked.
//
// # What it does not do
//
// It does not talk to a cluster, and it does not know the settings of the server but for those it sets.
package manifests

import (
	"bytes"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/distribution/reference"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"trow/manifests/kube"
)

//go:embed trow.yaml.tmpl
var source string

// The delimiters are not those of Go's templates, which YAML flow mappings are full of.
var parsed = template.Must(template.New("trow.yaml").Delims("[[", "]]").Option("missingkey=error").Parse(source))

// Where a volume comes from.
const (
	StoragePVC   = "pvc"   // a volume that outlives the manifest
	StorageEmpty = "empty" // an emptyDir
)

// Options say what the manifest is to be like. [Defaults] has those of trow.yaml.
type Options struct {
	Namespace    string // created unless it is kube-public, which each cluster has and nobody can delete
	Host         string // empty: trow.<namespace>
	NodePort     int    // 30000 to 32767, unless the cluster has another range
	Image        string // as nodes pull it; not from this registry
	Storage      string // StoragePVC or StorageEmpty
	StorageClass string // empty: the cluster's default
	Size         string // of the volume, as in 20Gi
	Login        bool   // makes a user with a random password, and closes the registry to others but ServiceAccounts
	AccessReview bool   // with Login: RBAC decides what ServiceAccounts may do, who may pull otherwise

	Webhook          string   // off, audit or enforce
	ExemptNamespaces []string // beside kube-system and Namespace

	Node    bool     // with the DaemonSet that tells the nodes' runtimes
	NodeDir []string // directories of the nodes in which runtimes keep their configuration
}

// Defaults are the options of trow.yaml. The image is the one of a release.
func Defaults(version string) Options {
	return Options{Namespace: kube.DefaultNamespace, NodePort: kube.DefaultNodePort, Image: "trow:" + version, Storage: StoragePVC, Size: "20Gi",
		Webhook: "enforce", Node: true, NodeDir: []string{"/etc", "/var/lib/rancher"}}
}

// values are what the template is filled with.
type values struct {
	Options
	Names, TLSNames, Exempt      string // YAML lists
	NodeDirs                     string // for people
	User, Password, DockerConfig string
}

// Audience is the audience for which ServiceAccount tokens must be issued.
func (Options) Audience() string { return kube.Audience }

// LocalPort is the port of the loopback interface by which nodes reach the registry, beside the node port.
func (o Options) LocalPort() int { return o.NodePort + 1 }

// Render makes the manifest. Errors: every option that cannot be meant, by the name of its flag.
func Render(o Options) ([]byte, error) {
	if o.Host == "" {
		o.Host = kube.DefaultHost(o.Namespace)
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	v := values{Options: o, Names: list(o.names()), TLSNames: list(o.tlsNames()),
		Exempt: list(o.ExemptNamespaces), NodeDirs: strings.Join(o.NodeDir, " and ")}
	if o.Login {
		v.User, v.Password = "trow", rand.Text()
		v.DockerConfig = dockerConfig(fmt.Sprintf("%s:%d", o.Host, o.NodePort), v.User, v.Password)
	}
	var buf bytes.Buffer
	err := parsed.Execute(&buf, v)
	return buf.Bytes(), err
}

// names returns the local names: those with the node port. On a node, loopback with that port leads to the registry.
func (o *Options) names() []string { return kube.RegistryNames(o.Host, o.Namespace, o.NodePort) }

// tlsNames returns the names by which the API server and pods reach the Service.
func (o *Options) tlsNames() []string {
	service := kube.ServiceHost(o.Namespace)
	return []string{o.Host, service, service + ".cluster.local"}
}

// list is a YAML list on one line.
func list(items []string) string {
	b, err := json.Marshal(append([]string{}, items...)) // JSON is YAML, and quotes what has to be
	if err != nil {
		panic(err) // strings encode
	}
	return strings.ReplaceAll(string(b), ",", ", ")
}

// dockerConfig is the content of a pull secret (kubernetes.io/dockerconfigjson).
func dockerConfig(registry, user, password string) string {
	b, err := json.Marshal(map[string]any{"auths": map[string]any{registry: map[string]string{"username": user, "password": password}}})
	if err != nil {
		panic(err) // strings encode
	}
	return string(b)
}

// imageChars keeps an image from being anything but a plain YAML scalar.
var imageChars = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$`)

// nodeDir is a path that is not /: the whole of it would have every volume of the node in it.
var nodeDir = regexp.MustCompile(`^(/[a-zA-Z0-9._-]+)+$`)

// check finds what cannot be meant.
func (o *Options) check() error {
	var errs []error
	wrong := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf(flag+": "+format, args...))
	}
	if msg := validation.IsDNS1123Label(o.Namespace); len(msg) > 0 {
		wrong("namespace", "%.80q: %s", o.Namespace, msg[0])
	}
	if msg := validation.IsDNS1123Subdomain(o.Host); len(msg) > 0 {
		wrong("host", "%.80q: %s", o.Host, msg[0])
	} else if !strings.Contains(o.Host, ".") {
		wrong("host", "%.80q: a name without a dot and a port is taken for one of Docker Hub's by some; use one with a dot", o.Host)
	}
	if o.NodePort < 1 || o.NodePort > 65534 {
		wrong("node-port", "%d is no port; node ports usually are 30000 to 32767", o.NodePort)
	}
	if _, err := reference.ParseNormalizedNamed(o.Image); err != nil || !imageChars.MatchString(o.Image) {
		wrong("image", "%.80q is no image reference", o.Image)
	}
	if o.Storage != StoragePVC && o.Storage != StorageEmpty {
		wrong("storage", "%.80q is neither pvc nor empty", o.Storage)
	}
	if o.StorageClass != "" && (o.Storage != StoragePVC || len(validation.IsDNS1123Subdomain(o.StorageClass)) > 0) {
		wrong("storage-class", "%.80q: it must be the name of a StorageClass, with --storage pvc", o.StorageClass)
	}
	if q, err := resource.ParseQuantity(o.Size); err != nil || q.Sign() <= 0 || q.String() != o.Size {
		wrong("size", "%.80q is no size of a volume, such as 20Gi", o.Size)
	}
	if o.AccessReview && !o.Login {
		wrong("access-review", "there is nothing to decide about where everybody may push; add --login")
	}
	if !slices.Contains([]string{"off", "audit", "enforce"}, o.Webhook) {
		wrong("webhook", "%.80q is none of off, audit, enforce", o.Webhook)
	}
	for _, n := range o.ExemptNamespaces {
		if msg := validation.IsDNS1123Label(n); len(msg) > 0 {
			wrong("exempt-namespaces", "%.80q: %s", n, msg[0])
		}
	}
	for _, dir := range o.NodeDir {
		if !nodeDir.MatchString(dir) || path.Clean(dir) != dir {
			wrong("node-dir", "%.80q is no directory below / of a node", dir)
		}
	}
	return errors.Join(errs...)
}
