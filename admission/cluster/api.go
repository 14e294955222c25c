package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/manifests/kube"
)

const (
	// secretFor is how long a Secret that was read counts: a changed login is used soon, and a burst of pulls is one
	// request.
	secretFor = time.Minute
	// apiTime bounds a request of API: pulls wait for it.
	apiTime = 10 * time.Second
)

// API is what the cache of other registries needs of the cluster: logins in Secrets, and which addresses are
// those of nodes and pods. The server has no rights for either by default: an error says how to give them. It connects
// when it is used. It is safe for concurrent use.
type API struct {
	o Options

	mu      sync.Mutex // guards all below; held during requests, so that a burst is one request
	secrets map[string]secretRead
}

// secretRead is what was read of a Secret.
type secretRead struct {
	at     time.Time
	config []byte
}

// API returns the API of the cluster in which this process runs. The client of o, if it has one, is used.
func (o *Options) API() *API { return &API{o: *o, secrets: map[string]secretRead{}} }

// errOutside: there is no cluster.
var errOutside = errors.New("this server does not run in a cluster; put the login into a file, and name it in " +
	"docker-config or password-file")

// Secret returns the .dockerconfigjson of a Secret of that type. Errors: this process does not run in a cluster; it may
// not read the Secret, with the command that lets it; those of the API.
func (u *API) Secret(ctx context.Context, namespace, name string) ([]byte, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s, ok := u.secrets[namespace+"/"+name]; ok && time.Since(s.at) < secretFor {
		return s.config, nil
	}
	if u.o.Client == nil && !kube.Inside() {
		return nil, errOutside
	}
	if err := u.o.connect("secret"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, apiTime)
	defer cancel()
	secret, err := u.o.Client.Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsForbidden(err):
		return nil, fmt.Errorf("this server may not read it; run: kubectl -n %[1]s create role trow-read-%[2]s "+
			"--verb=get --resource=secrets --resource-name=%[2]s && "+
			"kubectl -n %[1]s create rolebinding trow-read-%[2]s --role=trow-read-%[2]s --serviceaccount=%[3]s:%[4]s",
			namespace, name, u.o.Namespace, kube.Name)
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("there is no such Secret; create it with kubectl -n %s create secret docker-registry %s",
			namespace, name)
	case err != nil:
		return nil, err
	case secret.Type != corev1.SecretTypeDockerConfigJson:
		return nil, fmt.Errorf("it has the type %.100q; want %s, as of kubectl create secret docker-registry",
			secret.Type, corev1.SecretTypeDockerConfigJson)
	}
	config := secret.Data[corev1.DockerConfigJsonKey]
	u.secrets[namespace+"/"+name] = secretRead{time.Now(), config}
	return config, nil
}

// Networks returns the addresses of all nodes, and the ranges of the addresses of their pods; none outside of a
// cluster. Errors: this process may not list the nodes, with the command that lets it; those of the API.
func (u *API) Networks(ctx context.Context) ([]netip.Prefix, error) {
	if u.o.Client == nil && !kube.Inside() {
		return nil, nil
	}
	u.mu.Lock()
	err := u.o.connect("upstreams")
	u.mu.Unlock()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, apiTime)
	defer cancel()
	nodes, err := u.o.Client.Nodes.List(ctx, metav1.ListOptions{})
	if apierrors.IsForbidden(err) {
		return nil, fmt.Errorf("this server may not list the nodes; run: kubectl create clusterrole trow-nodes "+
			"--verb=list --resource=nodes && kubectl create clusterrolebinding trow-nodes --clusterrole=trow-nodes "+
			"--serviceaccount=%s:%s; or name their networks in upstream-internal", u.o.Namespace, kube.Name)
	}
	if err != nil {
		return nil, err
	}
	var all []netip.Prefix
	for _, n := range nodes.Items {
		for _, cidr := range append(slices.Clone(n.Spec.PodCIDRs), n.Spec.PodCIDR) {
			if p, err := netip.ParsePrefix(cidr); err == nil {
				all = append(all, p.Masked())
			}
		}
		for _, a := range n.Status.Addresses {
			if addr, err := netip.ParseAddr(a.Address); err == nil { // others are host names
				all = append(all, netip.PrefixFrom(addr, addr.BitLen()))
			}
		}
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all), nil
}
