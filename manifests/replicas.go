package manifests

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"trow/manifests/kube"
	"trow/storage/etcd"
	"trow/storage/s3"
)

// DefaultEtcdImage is the image of the etcd that --with-etcd runs: the release that this version was tested with
// (.ci/engines/etcd), from where the etcd project publishes its releases.
const DefaultEtcdImage = "gcr.io/etcd-development/etcd:v3.6.16"

const (
	// etcdMembers is the number of members of --with-etcd: of three, one may be down.
	etcdMembers = 3
	// shutdownDelay is how long a replica goes on serving after SIGTERM: until the Endpoints, kube-proxy of each node
	// and the load balancers in front of them have dropped it, which takes seconds.
	shutdownDelay = 10 * time.Second
	// gracePeriod is how long the kubelet waits until it kills a replica: the delay, then what the server gives
	// requests (25 s), cut handlers (3 s) and closed connections (2 s), and a reserve.
	gracePeriod = 60 * time.Second
)

//go:embed etcd.yaml.tmpl
var etcdSource string

// Shared are the options for facts and bytes outside of a volume, which several replicas can serve.
type Shared struct {
	Replicas    int // pods of the registry; more than one needs Etcd or WithEtcd, and S3
	MaxReplicas int // a HorizontalPodAutoscaler makes between Replicas and this many; 0: none

	// the journal: etcd://HOST:PORT[,HOST:PORT…]/PREFIX or etcds://; empty: in the data directory
	Etcd               string
	EtcdCASecret       string // Secret with ca.crt, the CA of etcd
	EtcdTLSSecret      string // Secret with ca.crt, tls.crt and tls.key: the CA, and the certificate to show to etcd
	EtcdUser           string // user of etcd
	EtcdPasswordSecret string // Secret with password, of that user

	WithEtcd  bool   // the manifest has an etcd of three members
	EtcdImage string // of WithEtcd

	S3         string // the blobs: s3://BUCKET/PREFIX?endpoint=…; empty: in the data directory
	S3Secret   string // Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
	S3CASecret string // Secret with ca.crt, the CA of the S3 service
}

// addFlags registers the options as flags.
func (o *Shared) addFlags(f *pflag.FlagSet) {
	f.IntVar(&o.Replicas, "replicas", o.Replicas, "pods of the registry; more than one needs --s3, and --etcd or "+
		"--with-etcd")
	f.IntVar(&o.MaxReplicas, "max-replicas", o.MaxReplicas,
		"let a HorizontalPodAutoscaler make up to this many, by their CPU time; 0: none")
	f.StringVar(&o.Etcd, "etcd", o.Etcd, "your etcd, for the facts: etcd://HOST:PORT[,HOST:PORT…]/PREFIX, or "+
		"etcds:// for TLS")
	f.StringVar(&o.EtcdCASecret, "etcd-ca-secret", o.EtcdCASecret, "existing Secret with the CA of your etcd: ca.crt")
	f.StringVar(&o.EtcdTLSSecret, "etcd-tls-secret", o.EtcdTLSSecret,
		"existing Secret with the CA of your etcd and the certificate to show to it: ca.crt, tls.crt, tls.key")
	f.StringVar(&o.EtcdUser, "etcd-user", o.EtcdUser, "user of your etcd")
	f.StringVar(&o.EtcdPasswordSecret, "etcd-password-secret", o.EtcdPasswordSecret,
		"existing Secret with the password of that user: password")
	f.BoolVar(&o.WithEtcd, "with-etcd", o.WithEtcd,
		"run an etcd of three members as well; --etcd-secrets prints its certificates")
	f.StringVar(&o.EtcdImage, "etcd-image", o.EtcdImage, "image of --with-etcd")
	f.StringVar(&o.S3, "s3", o.S3, "your S3 bucket, for the blobs: s3://BUCKET/PREFIX?endpoint=https://HOST")
	f.StringVar(&o.S3Secret, "s3-secret", o.S3Secret,
		"existing Secret with the credentials of S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY")
	f.StringVar(&o.S3CASecret, "s3-ca-secret", o.S3CASecret, "existing Secret with the CA of your S3 service: ca.crt")
}

// Deployment reports whether a Deployment creates the pods of the registry: with the journal in etcd they keep nothing.
func (o *Options) Deployment() bool { return o.Etcd != "" || o.WithEtcd }

// Component returns the label of the pods of the registry, by which the Service and policies select them. Replicas have
// another label than the pod with a volume, which is another registry: if one manifest is applied over the other, the
// old pods stay, and the Service must not send requests to them.
func (o *Options) Component() string {
	if o.Deployment() {
		return "replica"
	}
	return "registry"
}

// Claims returns the PersistentVolumeClaims of the pods, as a YAML list; empty if there are none.
func (o *Options) Claims() string {
	switch {
	case o.WithEtcd:
		var all []string
		for _, m := range o.Members() {
			all = append(all, "data-"+m.Name)
		}
		return "[" + strings.Join(all, ", ") + "]"
	case o.Deployment():
		return ""
	}
	return "[data-" + kube.Name + "-0]"
}

// Pod is what kubectl exec takes for a pod of the registry.
func (o *Options) Pod() string {
	if o.Deployment() {
		return "deploy/" + kube.Name
	}
	return kube.Name + "-0"
}

// ServerSecrets returns the Secrets that the pods of the registry mount, with the names of the volumes, in a fixed
// order.
func (o *Options) ServerSecrets() (all []struct{ Name, Secret string }) {
	tls := o.EtcdTLSSecret
	if o.WithEtcd {
		tls = kube.EtcdClientSecretName
	}
	for _, s := range []struct{ Name, Secret string }{
		{"etcd-ca", o.EtcdCASecret}, {"etcd-tls", tls}, {"etcd-password", o.EtcdPasswordSecret},
		{"s3-ca", o.S3CASecret},
	} {
		if s.Secret != "" {
			all = append(all, s)
		}
	}
	return all
}

// EngineSettings returns the lines of the settings for journal and blobs.
func (o *Options) EngineSettings() (lines []string) {
	add := func(key, value string) {
		if value != "" {
			lines = append(lines, key+": "+quoted(value))
		}
	}
	mounted := map[string]string{}
	for _, s := range o.ServerSecrets() {
		mounted[s.Name] = "/etc/trow-" + s.Name + "/"
	}
	file := func(volume, key string) string {
		if dir := mounted[volume]; dir != "" {
			return dir + key
		}
		return ""
	}
	add("journal", o.journal())
	add("journal-ca-file", file("etcd-ca", "ca.crt")+file("etcd-tls", "ca.crt")) // one of the two
	add("journal-cert-file", file("etcd-tls", "tls.crt"))
	add("journal-key-file", file("etcd-tls", "tls.key"))
	add("journal-user", o.EtcdUser)
	add("journal-password-file", file("etcd-password", "password"))
	add("blobs", o.S3)
	add("blobs-ca-file", file("s3-ca", "ca.crt"))
	if o.Deployment() {
		add("deployment", kube.Name)
		add("shutdown-delay", shutdownDelay.String())
	}
	return lines
}

// quoted returns a string of JSON, which is YAML, with & as it is: people compare it with what they have given.
func quoted(text string) string {
	b, err := json.Marshal(text)
	if err != nil {
		panic(err) // impossible: strings can be encoded
	}
	return strings.NewReplacer(`\u0026`, "&", `\u003c`, "<", `\u003e`, ">").Replace(string(b))
}

// journal returns the setting of that name.
func (o *Options) journal() string {
	if !o.WithEtcd {
		return o.Etcd
	}
	var hosts []string
	for _, m := range o.Members() {
		hosts = append(hosts, m.Host+":2379")
	}
	return "etcds://" + strings.Join(hosts, ",") + "/trow"
}

// member is a member of --with-etcd.
type member struct{ Name, Host string }

// Members are the members of --with-etcd.
func (o *Options) Members() []member { return members(o.Namespace) }

func members(namespace string) (all []member) {
	for i := range etcdMembers {
		name := fmt.Sprintf("%s-%d", kube.EtcdName, i)
		all = append(all, member{name, name + "." + kube.EtcdName + "." + namespace + ".svc"})
	}
	return all
}

// InitialCluster is the option of that name of each member.
func (o *Options) InitialCluster() string {
	var all []string
	for _, m := range o.Members() {
		all = append(all, m.Name+"=https://"+m.Host+":2380")
	}
	return strings.Join(all, ",")
}

// GracePeriod is how many seconds the kubelet waits for a replica that was asked to stop.
func (*Options) GracePeriod() int { return int(gracePeriod / time.Second) }

// validateShared reports each invalid option of facts and bytes: combinations first, then values.
func (o *Options) validateShared(wrong func(flag, format string, args ...any)) {
	switch {
	case o.Replicas < 1:
		wrong("replicas", "%d is too few; want at least 1", o.Replicas)
	case o.Replicas > 1 && !o.Deployment():
		wrong("replicas", "%d replicas need a journal that they share; add --etcd etcds://HOST:PORT/PREFIX, or "+
			"--with-etcd",
			o.Replicas)
	}
	if o.MaxReplicas != 0 && (o.MaxReplicas < o.Replicas || !o.Deployment()) {
		wrong("max-replicas", "%d: want at least --replicas, with --etcd or --with-etcd", o.MaxReplicas)
	}
	if o.Deployment() && o.S3 == "" {
		wrong("s3", "with the journal in etcd, several processes may serve, and no volume holds the blobs of all of "+
			"them; add --s3 's3://BUCKET/PREFIX?endpoint=https://HOST'")
	}
	if o.WithEtcd && (o.Etcd != "" || o.EtcdCASecret+o.EtcdTLSSecret+o.EtcdUser+o.EtcdPasswordSecret != "") {
		wrong("with-etcd", "conflicts with --etcd and its Secrets and user, which are about an etcd of yours; leave "+
			"one out")
	}
	if o.WithEtcd && o.Storage != StoragePVC {
		wrong("storage", "the members of --with-etcd need volumes: what the journal loses, no replica has; leave "+
			"--storage out")
	}
	if o.Etcd != "" && (o.StorageClass != "" || o.Storage != StoragePVC) {
		wrong("storage", "with --etcd and --s3 the pods have no volume to keep; leave --storage and --storage-class "+
			"out")
	}
	secure := o.Etcd != "" && o.validateEtcd(wrong)
	if (o.EtcdCASecret != "" || o.EtcdTLSSecret != "") && !secure && !o.WithEtcd {
		wrong("etcd-ca-secret, etcd-tls-secret", "certificates need --etcd etcds://…, which is TLS")
	}
	if o.EtcdCASecret != "" && o.EtcdTLSSecret != "" {
		wrong("etcd-ca-secret", "conflicts with --etcd-tls-secret, whose Secret has ca.crt as well; leave one out")
	}
	if (o.EtcdUser != "") != (o.EtcdPasswordSecret != "") || o.EtcdUser != "" && o.Etcd == "" {
		wrong("etcd-user", "want --etcd, --etcd-user and --etcd-password-secret together")
	}
	o.validateS3(wrong)
	for flag, name := range map[string]string{"etcd-ca-secret": o.EtcdCASecret, "etcd-tls-secret": o.EtcdTLSSecret,
		"etcd-password-secret": o.EtcdPasswordSecret, "s3-secret": o.S3Secret, "s3-ca-secret": o.S3CASecret} {
		if name != "" && len(validation.IsDNS1123Subdomain(name)) > 0 {
			wrong(flag, "%.80q is not a valid name of a Secret", name)
		}
	}
	if !validImage(o.EtcdImage) {
		wrong("etcd-image", "%.80q is not a valid image reference", o.EtcdImage)
	}
}

// validateEtcd checks the URL of etcd, and reports whether it is one of TLS.
func (o *Options) validateEtcd(wrong func(flag, format string, args ...any)) (secure bool) {
	parsed, err := etcd.ParseURL(o.Etcd)
	if err != nil {
		wrong("etcd", "%v", err)
		return strings.HasPrefix(o.Etcd, "etcds://") // not a second error about the Secrets
	}
	for _, e := range parsed.Endpoints {
		if host, _, err := net.SplitHostPort(e); err == nil {
			o.mustStartFirst("etcd", host, wrong)
		}
	}
	return parsed.TLS
}

// validateS3 checks the options of the blobs.
func (o *Options) validateS3(wrong func(flag, format string, args ...any)) {
	if o.S3 == "" {
		if o.S3Secret != "" || o.S3CASecret != "" {
			wrong("s3-secret, s3-ca-secret", "want --s3 as well")
		}
		return
	}
	parsed, err := s3.ParseURL(o.S3)
	if err != nil {
		wrong("s3", "%v", err)
		return
	}
	if u, err := url.Parse(parsed.Endpoint); err == nil {
		o.mustStartFirst("s3", u.Hostname(), wrong)
	}
}

// mustStartFirst reports a service in a namespace of the cluster whose pods the webhook reviews. The server answers no
// review before it has read the journal once, so after a power cut both would wait for each other.
func (o *Options) mustStartFirst(flag, host string, wrong func(flag, format string, args ...any)) {
	n := kube.NamespaceOf(host)
	if n == "" || o.Webhook != "enforce" {
		return
	}
	if n != o.Namespace && n != "kube-system" && !slices.Contains(o.ExemptNamespaces, n) {
		wrong(flag, "%.80s is in namespace %.80s, whose pods could not start while the registry is down, and the "+
			"registry not without them; add --exempt-namespaces %.80s", host, n, n)
	}
}
