package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// closed applies what trow manifest prints with these options, a login among them, and waits for the server that has
// them.
func closed(t *testing.T, c *cluster.Cluster, options ...string) {
	t.Helper()
	text := rendered(t, c, options...)
	t.Cleanup(func() { uninstall(t, c, text) })
	c.Apply(t, text)
	c.Kubectl(t, "--namespace=kube-public", "rollout", "restart", "statefulset/trow")
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "statefulset/trow", "--timeout=120s")
	cluster.Eventually(t, time.Minute, "the registry answers", func() error { return registryReady(c) })
	cluster.Eventually(t, time.Minute, "the webhook answers", func() error {
		out, err := c.TryKubectl("run", "x", "--image=docker.io/nginx", "--dry-run=server")
		if err == nil || !strings.Contains(out, "Remote image docker.io/nginx"+notIn) {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// account is a ServiceAccount, and a pod of it with that image.
func account(ns, name, image, more string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s, namespace: %s}\n---\n", name, ns) +
		pod(ns, name, fmt.Sprintf("  serviceAccountName: %s\n%s", name, more)+containers(image))
}

// pullSecret is the manifest's, for another namespace.
func pullSecret(t *testing.T, c *cluster.Cluster, ns string) string {
	t.Helper()
	config := c.Kubectl(t, "--namespace=kube-public", "get", "secret", "trow-pull", `--output=jsonpath={.data.\.dockerconfigjson}`)
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: trow-pull, namespace: %s}\n"+
		"type: kubernetes.io/dockerconfigjson\ndata: {.dockerconfigjson: %s}\n", ns, config)
}

// doorman asks the registry from outside.
type doorman struct {
	t      *testing.T
	c      *cluster.Cluster
	client *http.Client
}

func newDoorman(t *testing.T, c *cluster.Cluster) *doorman {
	t.Helper()
	client, err := registryClient(c)
	if err != nil {
		t.Fatal(err)
	}
	return &doorman{t, c, client}
}

// status asks the registry for a manifest with a token of this ServiceAccount for this audience (empty: the API server's).
func (w *doorman) status(account, audience, manifest string) int {
	w.t.Helper()
	args := []string{"--namespace=identities", "create", "token", account, "--duration=10m"}
	if audience != "" {
		args = append(args, "--audience="+audience)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, "https://"+cluster.NodeIP+":31000/v2/"+manifest, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if account != "" {
		req.SetBasicAuth("whoever", strings.TrimSpace(w.c.Kubectl(w.t, args...)))
	}
	resp, err := w.client.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestServiceAccounts: pods pull from a closed registry, with a pull secret and with nothing but their ServiceAccounts,
// which the kubelet has tokens made for.
func TestServiceAccounts(t *testing.T) {
	c := start(t)
	armed(t, c)
	img := app(t, "identities", 0)
	for _, tag := range []string{"secret", "account", "loopback", "right", "none"} { // before it is closed
		push(t, c, "team/app", tag, img)
	}
	push(t, c, "other/app", "right", img)
	namespace(t, c, "identities")
	namespace(t, c, "team")
	image := host + "/team/app:"
	ready := func(name string) {
		t.Helper()
		cluster.Eventually(t, time.Minute, "pod "+name+" runs", func() error { return podReady(c, "identities", name) })
	}

	closed(t, c, "--login")
	c.Apply(t, account("identities", "account", image+"account", "")+"---\n"+
		account("identities", "loopback", "127.0.0.1:31000/team/app:loopback", ""))
	ready("account")
	ready("loopback")
	w := newDoorman(t, c)
	for what, tt := range map[string]struct {
		account, audience, manifest string
		want                        int
	}{
		"nobody":                {"", "", "team/app/manifests/right", http.StatusUnauthorized},
		"a token for us":        {"account", "trow", "team/app/manifests/right", http.StatusOK},
		"for the API server":    {"account", "", "team/app/manifests/right", http.StatusUnauthorized},
		"for somebody else":     {"account", "elsewhere", "team/app/manifests/right", http.StatusUnauthorized},
		"of one that is no pod": {"default", "trow", "team/app/manifests/right", http.StatusOK},
	} {
		if got := w.status(tt.account, tt.audience, tt.manifest); got != tt.want {
			t.Errorf("%s: %d, want %d", what, got, tt.want)
		}
	}

	closed(t, c, "--login", "--access-review")
	c.Apply(t, `apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: pull-app, namespace: team}
rules: [{apiGroups: [trow.io], resources: [repositories], resourceNames: [app], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: pull-app, namespace: team}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: pull-app}
subjects: [{kind: ServiceAccount, name: right, namespace: identities}]
---
`+pullSecret(t, c, "identities")+"---\n"+account("identities", "right", image+"right", "")+"---\n"+account("identities", "none", image+"none", "")+
		"---\n"+account("identities", "secret", image+"secret", "  imagePullSecrets: [{name: trow-pull}]\n"))
	ready("right")
	ready("secret")
	var told string
	cluster.Eventually(t, time.Minute, "an account without the right is refused", func() error {
		told = c.Kubectl(t, "--namespace=identities", "describe", "pod", "none")
		// The first try may come before the node has heard of the CA of this installation.
		if !strings.Contains(told, image+"none: not found") {
			return fmt.Errorf("the events do not say what is wrong: %s", told)
		}
		return nil
	})
	_, events, _ := strings.Cut(told, "Events:")
	t.Log(events)
	for manifest, want := range map[string]int{"team/app/manifests/right": http.StatusOK, "other/app/manifests/right": http.StatusNotFound} {
		if got := w.status("right", "trow", manifest); got != want {
			t.Errorf("%s: %d, want %d", manifest, got, want)
		}
	}
}
