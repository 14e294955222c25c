package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// closed applies the manifest with these options, one of them --login, and waits until the server has restarted.
func closed(t *testing.T, c *cluster.Cluster, options ...string) {
	t.Helper()
	text := rendered(t, c, options...)
	t.Cleanup(func() { uninstall(t, c, text) })
	c.Apply(t, text)
	restart(t, c)
}

// account returns the YAML of a ServiceAccount, and of a pod with it and this image.
func account(ns, name, image, more string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s, namespace: %s}\n---\n", name, ns) +
		pod(ns, name, fmt.Sprintf("  serviceAccountName: %s\n%s", name, more)+containers(image))
}

// pullSecret returns the YAML of a pull secret for a namespace, made as the manifest says. It can be made again. Its
// robot is revoked when the test ends: where there is one, clients are asked for a login.
func pullSecret(t *testing.T, c *cluster.Cluster, ns string) string {
	t.Helper()
	t.Cleanup(func() {
		c.Kubectl(t, "--namespace=kube-public", "exec", "trow-0", "--", "/trow", "token", "revoke", "pull-"+ns)
	})
	return c.Output(t, "--namespace=kube-public", "exec", "trow-0", "--", "/trow", "pull-secret", "--replace",
		"--namespace="+ns, "--server="+host, "--server=127.0.0.1:31000")
}

// client sends requests to the registry with ServiceAccount tokens, from outside the cluster.
type client struct {
	t    *testing.T
	c    *cluster.Cluster
	http *http.Client
}

func newClient(t *testing.T, c *cluster.Cluster) *client {
	t.Helper()
	hc, err := registryClient(c)
	if err != nil {
		t.Fatal(err)
	}
	return &client{t, c, hc}
}

// status gets a manifest with a token of this ServiceAccount (empty: none) for this audience (empty: the API server),
// and returns the HTTP status.
func (w *client) status(account, audience, manifest string) int {
	w.t.Helper()
	args := []string{"--namespace=identities", "create", "token", account, "--duration=10m"}
	if audience != "" {
		args = append(args, "--audience="+audience)
	}
	url := "https://" + cluster.NodeIP + ":31000/v2/" + manifest
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	if account != "" {
		req.SetBasicAuth("any-name", strings.TrimSpace(w.c.Kubectl(w.t, args...)))
	}
	resp, err := w.http.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestServiceAccounts checks that pods pull from a closed registry, with a pull secret or with nothing but their
// ServiceAccount, for which the kubelet requests tokens.
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

	closed(t, c, "--login", "--loopback-names")
	c.Apply(t, account("identities", "account", image+"account", "")+"---\n"+
		account("identities", "loopback", "127.0.0.1:31000/team/app:loopback", ""))
	ready("account")
	ready("loopback")
	w := newClient(t, c)
	for what, tt := range map[string]struct {
		account, audience, manifest string
		want                        int
	}{
		"no token":                     {"", "", "team/app/manifests/right", http.StatusUnauthorized},
		"a token for our audience":     {"account", "trow", "team/app/manifests/right", http.StatusOK},
		"a token for the API server":   {"account", "", "team/app/manifests/right", http.StatusUnauthorized},
		"a token for another audience": {"account", "elsewhere", "team/app/manifests/right", http.StatusUnauthorized},
		"of an account without a pod":  {"default", "trow", "team/app/manifests/right", http.StatusOK},
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
`+pullSecret(t, c, "identities")+"---\n"+account("identities", "right", image+"right", "")+
		"---\n"+account("identities", "none", image+"none", "")+
		"---\n"+account("identities", "secret", image+"secret", "  imagePullSecrets: [{name: regcred}]\n"))
	ready("right")
	ready("secret")
	var description string
	cluster.Eventually(t, time.Minute, "an account without the right is refused", func() error {
		description = c.Kubectl(t, "--namespace=identities", "describe", "pod", "none")
		// The first attempt may come before the node knows the CA of this installation.
		if !strings.Contains(description, image+"none: not found") {
			return fmt.Errorf("the Events do not say what is wrong: %s", description)
		}
		return nil
	})
	_, events, _ := strings.Cut(description, "Events:")
	t.Log(events)
	for manifest, want := range map[string]int{
		"team/app/manifests/right": http.StatusOK, "other/app/manifests/right": http.StatusNotFound} {
		if got := w.status("right", "trow", manifest); got != want {
			t.Errorf("%s: %d, want %d", manifest, got, want)
		}
	}
}
