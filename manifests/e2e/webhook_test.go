package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// webhooks returns the names of the webhooks in the configuration.
func webhooks(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	return c.Kubectl(t, "get", "validatingwebhookconfiguration", "trow", "--output=jsonpath={.webhooks[*].name}")
}

// TestDisarmApplyArm checks that applying the manifest neither arms a webhook that was disarmed nor empties one that is
// armed, on the client's side and on the server's.
func TestDisarmApplyArm(t *testing.T) {
	c := start(t)
	armed(t, c)
	nginx := func() (string, error) {
		return c.TryKubectl("run", "x", "--image=docker.io/nginx", "--dry-run=server")
	}
	const all = "validator.trow.io workloads.trow.io probe.trow.io"
	unchanged(t, c, manifest(t))
	if out := webhooks(t, c); out != all {
		t.Errorf("after applying again: %q", out)
	}
	trow(t, c, "disarm")
	unchanged(t, c, manifest(t))
	time.Sleep(11 * time.Second) // two passes
	if out, err := nginx(); err != nil || webhooks(t, c) != "" {
		t.Errorf("disarmed, then applied: %q, %s", webhooks(t, c), out)
	}
	trow(t, c, "arm")
	enforces := func() error {
		if out, err := nginx(); err == nil || !strings.Contains(out, denied) {
			return fmt.Errorf("%s", out)
		}
		return mode(c, "enforce")
	}
	cluster.Eventually(t, time.Minute, "it enforces again", enforces)
	if out, err := c.TryKubectl("apply", "--server-side", "--force-conflicts", "--filename=../trow.yaml"); err != nil {
		t.Errorf("kubectl apply --server-side: %s", out)
	}
	if out := webhooks(t, c); out != all {
		t.Errorf("after applying on the server's side: %q", out)
	}

	// Without the server.
	c.Kubectl(t, "--namespace=kube-public", "scale", "statefulset/trow", "--replicas=0")
	c.Kubectl(t, "--namespace=kube-public", "wait", "--for=delete", "pod/trow-0", "--timeout=60s")
	if out, err := nginx(); err == nil {
		t.Errorf("it fails open: %s", out)
	}
	trow(t, c, "disarm")
	cluster.Eventually(t, 20*time.Second, "all images may run", func() error { _, err := nginx(); return err })
	trow(t, c, "arm")
	armed(t, c)
	cluster.Eventually(t, time.Minute, "it enforces again", enforces)
}

// TestTheRightsOnWebhooks checks what a stolen token of the server cannot do.
func TestTheRightsOnWebhooks(t *testing.T) {
	c := start(t)
	armed(t, c)
	for what, want := range map[string]string{
		"create validatingwebhookconfigurations":      "no",
		"create mutatingwebhookconfigurations":        "no",
		"delete validatingwebhookconfigurations/trow": "no",
		"update validatingwebhookconfigurations/x":    "no",
		"patch validatingwebhookconfigurations/x":     "no",
		"update validatingwebhookconfigurations/trow": "yes",
		"get validatingwebhookconfigurations/trow":    "yes",
		"get validatingwebhookconfigurations/x":       "no",
		"list validatingwebhookconfigurations":        "yes",
		"list mutatingwebhookconfigurations":          "yes",
		"list deployments.apps":                       "yes",
		"update deployments.apps":                     "no",
		"list namespaces":                             "no",
		"watch namespaces/kube-public":                "yes",
		"update namespaces/kube-public":               "no",
	} {
		args := append([]string{"auth", "can-i", "--as=system:serviceaccount:kube-public:trow"},
			strings.Fields(what)...)
		out, _ := c.TryKubectl(args...) // the exit code is 1 for no
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if got := lines[len(lines)-1]; got != want {
			t.Errorf("%s: %s", what, out)
		}
	}
}

// readiness returns nil when /readyz?verbose has these texts.
func readiness(c *cluster.Cluster, want ...string) error {
	client, err := registryClient(c)
	if err != nil {
		return err
	}
	resp, err := client.Get("https://" + cluster.NodeIP + ":31000/readyz?verbose")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	for _, text := range want {
		if err != nil || !strings.Contains(string(body), text) {
			return fmt.Errorf("%s, %v", body, err)
		}
	}
	return nil
}

// TestTheConfigurationIsDeleted checks that readiness and an Event say what to do when the webhook's configuration was
// deleted by hand, and that this helps.
func TestTheConfigurationIsDeleted(t *testing.T) {
	c := start(t)
	armed(t, c)
	c.Kubectl(t, "delete", "validatingwebhookconfiguration", "trow")
	const command = "kubectl apply -f trow.yaml"
	cluster.Eventually(t, 20*time.Second, "/readyz?verbose says what to do", func() error {
		return readiness(c, "[-]webhook off", command)
	})
	cluster.Eventually(t, 20*time.Second, "an Event of the pod says what to do", func() error {
		out := c.Kubectl(t, "--namespace=kube-public", "describe", "pod", "trow-0")
		if !strings.Contains(out, "WebhookMissing") || !strings.Contains(out, command) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if out, err := c.Run(c.TrowBinary(), "arm"); err == nil || !strings.Contains(out, command) {
		t.Errorf("trow arm: %s", out)
	}
	armed(t, c)
	if out, err := c.TryKubectl("run", "x", "--image=docker.io/nginx", "--dry-run=server"); err == nil {
		t.Errorf("after applying the manifest: %s", out)
	}
}

// TestUpgradeOfTheConfiguration checks that a configuration as earlier servers created it is adopted: the manifest of
// before had none, and its ClusterRole was the owner. It enforces throughout.
func TestUpgradeOfTheConfiguration(t *testing.T) {
	c := start(t)
	armed(t, c)
	c.Kubectl(t, "--namespace=kube-public", "scale", "statefulset/trow", "--replicas=0")
	c.Kubectl(t, "--namespace=kube-public", "wait", "--for=delete", "pod/trow-0", "--timeout=60s")
	uid := func(kind string) string {
		return c.Kubectl(t, "get", kind, "trow", "--output=jsonpath={.metadata.uid}")
	}
	var v map[string]any
	text := c.Kubectl(t, "get", "validatingwebhookconfiguration", "trow", "--output=json")
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	v["metadata"] = map[string]any{"name": "trow", "labels": map[string]any{"app.kubernetes.io/name": "trow"},
		"annotations": map[string]any{"trow.io/webhook": "enforce"}, "ownerReferences": []any{map[string]any{
			"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "name": "trow",
			"uid": uid("clusterrole")}}}
	earlier, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "earlier.json")
	if err := os.WriteFile(file, earlier, 0o644); err != nil {
		t.Fatal(err)
	}
	c.Kubectl(t, "delete", "validatingwebhookconfiguration", "trow")
	c.Kubectl(t, "create", "--filename", file)
	cluster.Eventually(t, 20*time.Second, "it fails closed without a server", func() error {
		if out, err := c.TryKubectl("run", "x", "--image=docker.io/nginx", "--dry-run=server"); err == nil {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	before := uid("validatingwebhookconfiguration")

	c.Apply(t, manifest(t)) // with one replica again
	asked := 0
	cluster.Eventually(t, 2*time.Minute, "it is adopted", func() error {
		asked++
		if out, err := c.TryKubectl("run", "x", "--image=docker.io/nginx", "--dry-run=server"); err == nil {
			t.Fatalf("it is open during the upgrade: %s", out)
		}
		owner := c.Kubectl(t, "get", "validatingwebhookconfiguration", "trow",
			"--output=jsonpath={.metadata.ownerReferences}")
		if owner != "" {
			return fmt.Errorf("owned by %s", owner)
		}
		return nil
	})
	t.Logf("denied %d times during the upgrade", asked)
	armed(t, c)
	if out := webhooks(t, c); uid("validatingwebhookconfiguration") != before || out == "" {
		t.Errorf("it is another one, with webhooks %q", out)
	}
	unchanged(t, c, manifest(t))
	c.Kubectl(t, "delete", "--filename=../trow.yaml", "--timeout=90s") // exit code 0
	if out, err := c.TryKubectl("get", "validatingwebhookconfiguration", "trow"); err == nil {
		t.Errorf("left behind: %s", out)
	}
}
