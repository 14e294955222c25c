package kube

import (
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// namespaceFile holds the namespace of the pod. The kubelet mounts it beside the ServiceAccount's token.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// Inside reports whether this process runs in a pod of a cluster.
func Inside() bool { return os.Getenv("KUBERNETES_SERVICE_HOST") != "" }

// Program returns how people run the commands of the server: with kubectl in its pod if this process runs in one, else
// trow.
func Program() string {
	namespace, err := os.ReadFile(namespaceFile)
	if err != nil || !Inside() {
		return "trow"
	}
	host, _ := os.Hostname() // the pod's name
	return "kubectl -n " + strings.TrimSpace(string(namespace)) + " exec " + podOf(host) + " -- /trow"
}

// podOf returns what kubectl exec takes for a pod of the manifest: the only pod by its name, and of the pods of
// Deployment [Name], whose names change, any.
func podOf(host string) string {
	if n, ok := strings.CutPrefix(host, Name+"-"); ok && n != "0" {
		return "deploy/" + Name
	}
	return Name + "-0"
}

// InCluster connects with the ServiceAccount of the pod that this process runs in, and returns the pod's namespace.
// Error: the process does not run in a pod, or the pod has no token.
func InCluster() (*Client, string, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, "", err
	}
	// No rate limit in the client: it would delay pulls that wait for a token review. cluster.Reviewer has its own.
	config.QPS = -1
	namespace, err := os.ReadFile(namespaceFile)
	if err != nil {
		return nil, "", err
	}
	client, err := New(config)
	return client, strings.TrimSpace(string(namespace)), err
}

// FromKubeconfig connects as kubectl does: with this kubeconfig (empty: KUBECONFIG, then ~/.kube/config) and this
// context of it (empty: the current one). Errors: those of reading and understanding the file.
func FromKubeconfig(kubeconfig, context string) (*Client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: context}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides).ClientConfig()
	if err != nil {
		return nil, err
	}
	return New(config)
}
