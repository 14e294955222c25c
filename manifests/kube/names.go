package kube

import (
	"net"
	"slices"
	"strconv"
	"strings"
)

// Names of the objects that the manifest creates, the server fills in, and nodes and commands read. The manifest's
// template spells them out, so that it can be read by itself; a test compares the two.
const (
	// Name is the name of the Service, the StatefulSet, the ClusterRole and the webhook configuration.
	Name = "trow"
	// SecretName is the Secret with the CA and the server certificate.
	SecretName = "trow-tls"
	// LoginSecretName is the Secret with the login of LoginUser, who may do everything; UserKey and PasswordKey are its
	// keys.
	LoginSecretName = "trow-login"
	LoginUser       = "trow"
	UserKey         = "user"
	PasswordKey     = "password"
	// EtcdName is the StatefulSet, the headless Service and the Secret of the members of trow manifest --with-etcd, and
	// the common name of their certificate. EtcdClientSecretName is the Secret with the registry's certificate for
	// them.
	EtcdName             = "trow-etcd"
	EtcdClientSecretName = "trow-etcd-client"
	// SettingsSecretName is the Secret in which replicas keep their last good configuration files.
	SettingsSecretName = "trow-settings"
	// ConfigMapName is the ConfigMap with the bundle: the CA certificates that clients trust. CAKey is its key.
	ConfigMapName = "trow-ca"
	CAKey         = "ca.crt"
	// DaemonSetName is the DaemonSet of trow node.
	DaemonSetName = "trow-node"
	// ComponentLabel with the value WebhookComponent marks the webhook configuration of the manifest. Earlier manifests
	// had none: the server created the configuration, without this label.
	ComponentLabel   = "app.kubernetes.io/component"
	WebhookComponent = "webhook"
	// EtcdComponent is that label of the members of EtcdName.
	EtcdComponent = "etcd"
	// ServicePort is the port of the Service.
	ServicePort = 443
)

// Reasons of the Events of DaemonSet trow-node that say whether the runtimes of a node find the registry by its name.
// Nodes create them, and the server reads them.
const (
	ReasonNodeReady  = "NodeReady"
	ReasonConfigPath = "ConfigPathMissing"
	ReasonForeign    = "ForeignFile"
	ReasonFileFailed = "FileFailed"
)

// The defaults of the manifest.
const (
	// DefaultNamespace exists in each cluster, and no user can delete it.
	DefaultNamespace = "kube-public"
	// DefaultNodePort is the registry's port on each node.
	DefaultNodePort = 31000
	// Audience is the audience for which ServiceAccount tokens must be issued: the API server issues tokens for one
	// audience, so that a token for another service is of no use here, and one for here is of no use elsewhere.
	Audience = "trow"
)

// Names of the webhook.
const (
	// WebhookName is the webhook that judges pods. The API server puts it in front of each denial.
	WebhookName = "validator.trow.io"
	// WorkloadsName is the webhook that judges objects with pod templates. It only warns, unless a setting says
	// otherwise, and its absence never blocks a request.
	WorkloadsName = "workloads.trow.io"
	// ProbeName is the webhook with which the server finds out whether the API server reaches it: it is called for
	// updates of ConfigMap [ConfigMapName] that have the annotation ProbeAnnotation, and its absence never blocks one.
	ProbeName       = "probe.trow.io"
	ProbeAnnotation = "trow.io/probe" // package admission spells it out, in a struct tag
	// WebhookPath is the path of the Service to which the API server sends reviews.
	WebhookPath = "/validate"
)

// LocalPort returns the port on loopback where trow node listens by default, beside the node port. It is below 30000,
// where node ports begin in most clusters: kube-proxy may intercept a node port on loopback, whichever Service has it.
// Different node ports between 30000 and 32767 have different local ports.
func LocalPort(nodePort int) int {
	const first = 30000
	switch {
	case nodePort >= first:
		return first - 10000 + nodePort%10000
	case nodePort+1 == first:
		return nodePort - 1
	}
	return nodePort + 1
}

// MirrorPort returns the port on loopback where trow node listens by default for images of other registries. It is
// below 30000 as well, and different for different local ports of LocalPort.
func MirrorPort(localPort int) int {
	const apart = 3000 // node ports have a range of 2768
	if localPort+apart > 65535 {
		return localPort - apart
	}
	return localPort + apart
}

// DefaultHost is the registry's name in image names, without the port.
func DefaultHost(namespace string) string { return Name + "." + namespace }

// ServiceHost is the name of the Service in the cluster's DNS; the server certificate is valid for it.
func ServiceHost(namespace string) string { return Name + "." + namespace + ".svc" }

// NamespaceOf returns the namespace of a host that is a Service of the cluster, NAME.NAMESPACE.svc, or a pod behind
// one, POD.NAME.NAMESPACE.svc, with or without the cluster's domain; of any other host it returns "".
func NamespaceOf(host string) string {
	labels := strings.Split(strings.ToLower(host), ".")
	if i := slices.Index(labels, "svc"); i >= 2 {
		return labels[i-1]
	}
	return ""
}

// DefaultServers are the host:port pairs under which nodes reach the registry of the default manifest.
func DefaultServers() []string {
	port := strconv.Itoa(DefaultNodePort)
	return []string{net.JoinHostPort(DefaultHost(DefaultNamespace), port), net.JoinHostPort("127.0.0.1", port)}
}

// RegistryNames returns the host:port pairs by which image names refer to the registry on a node: host and the
// Service's short names, all with the node port.
func RegistryNames(host, namespace string, nodePort int) []string {
	return withPort(nodePort, host, DefaultHost(namespace), Name)
}

// LoopbackNames returns the host:port pairs of loopback on a node, which are the registry only as long as trow node or
// the node port is what listens there: a pod with hostNetwork can be the first. An IPv6 address is in brackets.
func LoopbackNames(nodePort int) []string { return withPort(nodePort, loopback...) }

// LocalNames returns the host:port pairs that are the registry by default, for a server that listens on port: the names
// of the default manifest and, outside a cluster, those of this machine. Inside, loopback is not one of them: on a node
// any program may listen there.
func LocalNames(port int, inCluster bool) []string {
	names := RegistryNames(DefaultHost(DefaultNamespace), DefaultNamespace, DefaultNodePort)
	if inCluster {
		return names
	}
	names = append(names, LoopbackNames(DefaultNodePort)...)
	if port != DefaultNodePort {
		names = append(names, LoopbackNames(port)...)
	}
	return names
}

// CertificateNames returns the names by which clients reach a server in its usual places: on this machine, and as the
// Service of the default manifest.
func CertificateNames() []string {
	service := ServiceHost(DefaultNamespace)
	return append(slices.Clone(loopback), Name, DefaultHost(DefaultNamespace), service, service+".cluster.local")
}

// loopback are the names and addresses of this machine.
var loopback = []string{"localhost", "127.0.0.1", "::1"}

// withPort returns host:port for each host, each once.
func withPort(port int, hosts ...string) []string {
	var names []string
	for _, h := range hosts {
		if name := net.JoinHostPort(h, strconv.Itoa(port)); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
