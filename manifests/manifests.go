// Package manifests makes the Kubernetes manifest that installs Trow on a cluster.
//
// # Words
//
//   - manifest: the YAML of all objects, in the order in which they have to be applied. trow.yaml in this folder is the
//     manifest of the default options.
//   - host: the name of the registry on nodes and workstations, without a port.
//
// # Invariants
//
//  1. The same options make the same bytes, so that applying a new manifest changes only what has to change. A test
//     compares trow.yaml with the defaults.
//  2. No option of a user gets into the YAML unchecked.
//
// # What it does not do
//
// It does not connect to a cluster. Of the settings of the server it knows only those that it sets.
package manifests

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"text/template"

	"github.com/distribution/reference"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"trow/manifests/kube"
)

//go:embed trow.yaml.tmpl
var source string

// parsed returns the template of trow.yaml, with etcd.yaml. The delimiters are not the default ones, {{ and }}, which
// occur in flow mappings of YAML.
var parsed = sync.OnceValue(func() *template.Template {
	t := template.Must(template.New("trow.yaml").Delims("[[", "]]").Option("missingkey=error").
		Funcs(template.FuncMap{"str": str}).Parse(source))
	template.Must(t.New("etcd.yaml").Parse(strings.TrimSuffix(etcdSource, "\n")))
	return t
})

// Values of Options.Storage.
const (
	StoragePVC   = "pvc"   // a persistent volume, which stays when the manifest is deleted
	StorageEmpty = "empty" // an emptyDir, which is deleted with the pod
)

// Options are the options of the manifest. [Defaults] has those of trow.yaml.
type Options struct {
	Namespace    string // created unless it is kube-public, which exists in each cluster
	Host         string // empty: trow.<namespace>
	NodePort     int    // 30000 to 32767, unless the cluster has another range
	LocalPort    int    // on loopback, where trow node listens; 0: see kube.LocalPort
	Image        string // as nodes pull it; not from this registry
	PullSecret   string // a Secret in Namespace with which nodes pull Image; empty: none
	Storage      string // StoragePVC or StorageEmpty
	StorageClass string // empty: the cluster's default
	Size         string // of the volume, as in 20Gi
	Login        bool   // the server makes up a password; without a login, only ServiceAccounts may pull
	AccessReview bool   // with Login: RBAC decides what ServiceAccounts may do; otherwise they may pull

	Shared // facts in etcd and bytes in S3, for several replicas

	// LoopbackNames makes the webhook take images of 127.0.0.1 with the node port for those of this registry. They need
	// no configuration of the runtime, and come from whatever listens there first, such as a pod with hostNetwork.
	LoopbackNames bool

	Webhook          string   // off, audit or enforce
	ExemptNamespaces []string // beside kube-system and Namespace

	Node     bool     // with the DaemonSet that configures the nodes' container runtimes
	Runtimes []string // of the nodes: containerd (k3s and RKE2 included), docker, crio; their directories are mounted
	NodeDir  []string // directories of the nodes that the DaemonSet may write to instead; nil: those of Runtimes

	// Mirrors are the registries whose images nodes pull through this one, or node.MirrorAll. They need DaemonSet
	// trow-node, which listens on MirrorPort; 0: see kube.MirrorPort.
	Mirrors    []string
	MirrorPort int
	DaemonJSON bool // the DaemonSet may write Docker's configuration file; see node.Options

	Hosting       bool   // with the ConfigMap in kube-public that names the cluster's registry to tools (KEP-1755)
	PriorityClass string // of all pods; empty: the classes of Kubernetes for pods that a cluster or a node needs
}

// Defaults returns the options of trow.yaml. version is the tag of the image.
func Defaults(version string) Options {
	return Options{Namespace: kube.DefaultNamespace, NodePort: kube.DefaultNodePort, Image: "trow:" + version,
		Storage: StoragePVC, Size: "20Gi", Webhook: "enforce", Node: true,
		Runtimes: []string{RuntimeContainerd}, Hosting: true, Shared: Shared{Replicas: 1, EtcdImage: DefaultEtcdImage}}
}

// values is the data of the template.
type values struct {
	Options
	Names, TLSNames, Exempt string // YAML lists
	Mounts                  []mount
	NodeDirs                string   // for people: what the DaemonSet may write to
	User                    string   // who may do everything
	Servers                 []string // host:port pairs that pods pull from, for their pull secret
	ServerClass, NodeClass  string   // priority classes
	SystemClasses           string   // those that only some namespaces may use, a YAML list; empty: none
	Digest                  string   // of the settings in the manifest
}

// Audience is the audience for which ServiceAccount tokens must be issued.
func (Options) Audience() string { return kube.Audience }

// Render returns the manifest. Errors: each invalid option, by the name of its flag.
func Render(o Options) ([]byte, error) {
	if o.Host == "" {
		o.Host = kube.DefaultHost(o.Namespace)
	}
	if o.LocalPort == 0 {
		o.LocalPort = kube.LocalPort(o.NodePort)
	}
	if o.MirrorPort == 0 {
		o.MirrorPort = kube.MirrorPort(o.LocalPort)
	}
	if err := o.validate(); err != nil {
		return nil, err
	}
	v := values{Options: o, Names: list(o.names()), TLSNames: list(o.tlsNames()),
		Exempt: list(o.ExemptNamespaces), Mounts: o.mounts(), User: kube.LoginUser}
	v.NodeDirs = written(v.Mounts)
	for _, host := range []string{o.Host, "127.0.0.1"} { // both are in image names, see the README
		v.Servers = append(v.Servers, fmt.Sprintf("%s:%d", host, o.NodePort))
	}
	v.classes()
	text, err := execute(v)
	if err == nil {
		// The digest is an annotation of the server's pods: the server reads most settings when it starts, so a change
		// of those has to replace the pod. Without that, applying the manifest of --login would leave the registry
		// open.
		v.Digest = digest(text)
		text, err = execute(v)
	}
	return text, err
}

func execute(v values) ([]byte, error) {
	var buf bytes.Buffer
	err := parsed().Execute(&buf, &v) // some methods are those of pointers
	return buf.Bytes(), err
}

// digest returns a digest of the ConfigMap with the settings in a manifest.
func digest(text []byte) string {
	_, after, _ := bytes.Cut(text, []byte("\n  name: trow-base\n"))
	object, _, _ := bytes.Cut(after, []byte("\n---\n"))
	return fmt.Sprintf("%x", sha256.Sum256(object))[:16]
}

// names returns the local names.
func (o *Options) names() []string {
	names := kube.RegistryNames(o.Host, o.Namespace, o.NodePort)
	if o.LoopbackNames {
		names = append(names, kube.LoopbackNames(o.NodePort)...)
	}
	return names
}

// tlsNames returns the names by which the API server and pods reach the Service.
func (o *Options) tlsNames() []string {
	service := kube.ServiceHost(o.Namespace)
	return []string{o.Host, service, service + ".cluster.local"}
}

// str returns a YAML string: in quotes where YAML would take the text for something else, as a namespace 123 or true.
func str(text string) string {
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err == nil && v == any(text) {
		return text
	}
	return strings.Trim(list([]string{text}), "[]")
}

// list returns a YAML list on one line.
func list(items []string) string {
	b, err := json.Marshal(append([]string{}, items...)) // JSON is YAML, with each string quoted; never null
	if err != nil {
		panic(err) // impossible: strings can be encoded
	}
	return strings.ReplaceAll(string(b), ",", ", ")
}

// classes sets the priority classes. The system's may be used in kube-system, and elsewhere in some clusters only where
// a quota covers them.
func (v *values) classes() {
	v.ServerClass, v.NodeClass = "system-cluster-critical", "system-node-critical"
	if v.PriorityClass != "" {
		v.ServerClass, v.NodeClass = v.PriorityClass, v.PriorityClass
	}
	used := []string{v.ServerClass}
	if v.Node {
		used = append(used, v.NodeClass)
	}
	used = slices.DeleteFunc(slices.Compact(used), func(c string) bool { return !strings.HasPrefix(c, "system-") })
	if len(used) > 0 {
		v.SystemClasses = list(used)
	}
}

// imageChars has the characters of image references, none of which has a meaning in YAML.
var imageChars = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$`)

func validImage(text string) bool {
	_, err := reference.ParseNormalizedNamed(text)
	return err == nil && imageChars.MatchString(text)
}

// nodePorts are ports on which the parts of Kubernetes listen on loopback of a node: etcd, the API server, the kubelet,
// kube-proxy, the controller manager and the scheduler.
var nodePorts = []int{2379, 2380, 6443, 10248, 10249, 10250, 10256, 10257, 10259}

// nodeDir matches paths except /, which would mount the whole node, with the volumes of all pods.
var nodeDir = regexp.MustCompile(`^(/[a-zA-Z0-9._-]+)+$`)

// validate reports each invalid option.
func (o *Options) validate() error {
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
		wrong("host", "%.80q: some clients take a name without a dot for one of Docker Hub; use a name with a dot",
			o.Host)
	}
	if o.NodePort < 1 || o.NodePort > 65535 {
		wrong("node-port", "%d is not a valid port; want 1 to 65535; node ports usually are 30000 to 32767", o.NodePort)
	} else if slices.Contains(nodePorts, o.NodePort) {
		wrong("node-port", "%d is a port of Kubernetes on each node; choose another", o.NodePort)
	} else if o.LocalPort == o.NodePort {
		wrong("local-port", "%d is the node port; kube-proxy may intercept that one on loopback, so choose another "+
			"below 30000", o.LocalPort)
	}
	if o.LocalPort < 1 || o.LocalPort > 65535 {
		wrong("local-port", "%d is not a valid port; want 1 to 65535, and usually below 30000", o.LocalPort)
	} else if slices.Contains(nodePorts, o.LocalPort) {
		wrong("local-port", "%d is a port of Kubernetes on each node; choose another", o.LocalPort)
	}
	if o.PullSecret != "" && len(validation.IsDNS1123Subdomain(o.PullSecret)) > 0 {
		wrong("pull-secret", "%.80q is not a valid name of a Secret", o.PullSecret)
	}
	if o.PriorityClass != "" && len(validation.IsDNS1123Subdomain(o.PriorityClass)) > 0 {
		wrong("priority-class", "%.80q is not a valid name of a PriorityClass", o.PriorityClass)
	}
	o.validateShared(wrong)
	if !validImage(o.Image) {
		wrong("image", "%.80q is not a valid image reference", o.Image)
	}
	if o.Storage != StoragePVC && o.Storage != StorageEmpty {
		wrong("storage", "%.80q: want pvc or empty", o.Storage)
	}
	if o.StorageClass != "" && (o.Storage != StoragePVC || len(validation.IsDNS1123Subdomain(o.StorageClass)) > 0) {
		wrong("storage-class", "%.80q: want the name of a StorageClass, with --storage pvc", o.StorageClass)
	}
	if q, err := resource.ParseQuantity(o.Size); err != nil || q.Sign() <= 0 || q.String() != o.Size {
		wrong("size", "%.80q is not a valid size of a volume, such as 20Gi", o.Size)
	}
	if o.AccessReview && !o.Login {
		wrong("access-review", "requires --login: without a login any client may push")
	}
	if !slices.Contains([]string{"off", "audit", "enforce"}, o.Webhook) {
		wrong("webhook", "%.80q: want one of off, audit, enforce", o.Webhook)
	}
	for _, n := range o.ExemptNamespaces {
		if msg := validation.IsDNS1123Label(n); len(msg) > 0 {
			wrong("exempt-namespaces", "%.80q: %s", n, msg[0])
		}
	}
	o.validateMirrors(wrong)
	for _, r := range o.Runtimes {
		if _, ok := runtimeMounts[r]; !ok {
			wrong("runtimes", "%.80q: want one of %s", r, strings.Join(slices.Sorted(maps.Keys(runtimeMounts)), ", "))
		}
	}
	for _, dir := range o.NodeDir {
		if dir == secrets || strings.HasPrefix(dir, secrets+"/") {
			wrong("node-dir", "%s has the keys of the cluster, and no configuration of a runtime; leave it out", dir)
		}
		if dir == "/proc" || strings.HasPrefix(dir, "/proc/") {
			wrong("node-dir", "%s leads to the whole node, through /proc/1/root; leave it out", dir)
		}
		if !nodeDir.MatchString(dir) || path.Clean(dir) != dir {
			wrong("node-dir", "%.80q: want an absolute path of a directory of the node, not /", dir)
		}
	}
	return errors.Join(errs...)
}
