package cluster_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"

	"trow/admission/cluster"
)

// forbid makes the API server refuse what the server has no right for.
func (w *world) forbid(verb, resource string) {
	w.Clientset.PrependReactor(verb, resource, func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "hub", fmt.Errorf("no"))
	})
}

// TestALoginInASecret is read once for a burst of pulls, and each reason why it cannot be names the remedy.
func TestALoginInASecret(t *testing.T) {
	config := []byte(`{"auths":{}}`)
	hub := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "hub"},
		Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: config}}
	opaque := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "opaque"}, Type: "Opaque",
		Data: map[string][]byte{"password": []byte("s3cret")}}
	w := newWorld(t, cluster.Enforce, hub, opaque)
	api := w.options.API()
	w.Clientset.ClearActions()
	for range 5 {
		if got, err := api.Secret(t.Context(), "team", "hub"); err != nil || string(got) != string(config) {
			t.Fatalf("%s, %v", got, err)
		}
	}
	if n := len(w.Clientset.Actions()); n != 1 {
		t.Errorf("%d requests for five pulls", n)
	}
	for name, want := range map[string]string{
		"opaque": "it has the type \"Opaque\"; want kubernetes.io/dockerconfigjson",
		"none":   "kubectl -n team create secret docker-registry none"} {
		if _, err := api.Secret(t.Context(), "team", name); err == nil || !strings.Contains(err.Error(), want) ||
			strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.forbid("get", "secrets")
	_, err := api.Secret(t.Context(), "team", "other")
	for _, want := range []string{"kubectl -n team create role trow-read-other --verb=get --resource=secrets " +
		"--resource-name=other", "--role=trow-read-other --serviceaccount=" + ns + ":trow"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %s", err, want)
		}
	}
	if _, err := new(cluster.Options).API().Secret(t.Context(), "team", "hub"); err == nil ||
		!strings.Contains(err.Error(), "docker-config") {
		t.Errorf("outside of a cluster: %v", err)
	}
}

// TestNetworksOfTheCluster are those of nodes and pods.
func TestNetworksOfTheCluster(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"},
		Spec: corev1.NodeSpec{PodCIDR: "203.0.113.0/24", PodCIDRs: []string{"203.0.113.0/24", "2001:db8:1::/64", "x"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n"},
			{Type: corev1.NodeInternalIP, Address: "198.51.100.7"},
			{Type: corev1.NodeExternalIP, Address: "2001:db8::7"}}}}
	w := newWorld(t, cluster.Enforce, node)
	api := w.options.API()
	all, err := api.Networks(t.Context())
	var want []netip.Prefix
	for _, p := range []string{"198.51.100.7/32", "203.0.113.0/24", "2001:db8::7/128", "2001:db8:1::/64"} {
		want = append(want, netip.MustParsePrefix(p))
	}
	if err != nil || !slices.Equal(all, want) {
		t.Errorf("%v, %v; want %v", all, err, want)
	}
	w.forbid("list", "nodes")
	if _, err := api.Networks(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "kubectl create clusterrole trow-nodes --verb=list --resource=nodes") ||
		!strings.Contains(err.Error(), "upstream-internal") {
		t.Errorf("%v", err)
	}
	if all, err := new(cluster.Options).API().Networks(t.Context()); all != nil || err != nil {
		t.Errorf("outside of a cluster: %v, %v", all, err)
	}
}
