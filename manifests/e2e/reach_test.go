package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// anyImage returns nil when the API server accepts a pod with an image that is not in the registry.
func anyImage(c *cluster.Cluster) error {
	if out, err := c.TryKubectl("run", "x", "--image=docker.io/nginx", "--dry-run=server"); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// TestItEnforcesOnceItIsReached checks that the webhook stays in audit mode, and pods can be created, while the API
// server does not reach it, and that it enforces once it does.
func TestItEnforcesOnceItIsReached(t *testing.T) {
	c := start(t)
	uninstall(t, c, manifest(t))
	selector := "selector: {app.kubernetes.io/name: trow, app.kubernetes.io/component: registry}\n  ports:"
	cut := strings.Replace(manifest(t), selector, "selector: {app: none}\n  ports:", 1) // a Service without endpoints
	if cut == manifest(t) {
		t.Fatal("the manifest has no such selector")
	}
	c.Apply(t, cut)
	t.Cleanup(func() { armed(t, c) })
	unreached(t, c, "no review arrived, and the API server did not wait for one")
	c.Apply(t, manifest(t))
	reached(t, c)
}

// TestAFirewallKeepsTheAPIServerOut checks the same where packets between control plane and nodes are dropped.
func TestAFirewallKeepsTheAPIServerOut(t *testing.T) {
	c := start(t)
	uninstall(t, c, manifest(t))
	// Only the API server sends this name; the probes of the kubelet come from the same host.
	rule := strings.Fields("OUTPUT --protocol tcp --dport 8443 --match string --algo bm --string " +
		"trow.kube-public.svc --jump DROP")
	iptables := func(action string) error {
		out, err := c.Run(append([]string{"iptables", action}, rule...)...)
		if err != nil {
			return fmt.Errorf("iptables %s: %w: %s", action, err, out)
		}
		return nil
	}
	if err := iptables("--insert"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = iptables("--delete") // if the test has not come that far
		armed(t, c)
	})
	c.Apply(t, manifest(t))
	unreached(t, c, "no review arrived within 5 s, as when packets are dropped")
	cluster.Eventually(t, 20*time.Second, "/readyz?verbose says why", func() error {
		return readiness(c, "[-]webhook audit", unproven)
	})
	if err := iptables("--delete"); err != nil {
		t.Fatal(err)
	}
	reached(t, c)
}

// unproven is how the server begins to say why the webhook is held back.
const unproven = "the API server has not shown that it reaches the webhook"

// unreached waits until the webhook is held back because the API server does not reach it, and checks that an Event
// says why, and that pods can be created.
func unreached(t *testing.T, c *cluster.Cluster, outcome string) {
	t.Helper()
	cluster.Eventually(t, 2*time.Minute, "pod trow-0 is ready", func() error {
		return podReady(c, "kube-public", "trow-0")
	})
	cluster.Eventually(t, time.Minute, "it is held back", func() error {
		why, err := c.TryKubectl("get", "validatingwebhookconfiguration", "trow",
			`--output=jsonpath={.metadata.annotations.trow\.io/held-back}`)
		if err != nil || !strings.Contains(why, unproven) || !strings.Contains(why, outcome) {
			return fmt.Errorf("%q, %v", why, err)
		}
		return mode(c, "audit")
	})
	policies := c.Kubectl(t, "get", "validatingwebhookconfiguration", "trow",
		"--output=jsonpath={.webhooks[*].failurePolicy}")
	if policies != "Ignore Ignore Ignore" {
		t.Errorf("failure policies before the proof: %s", policies)
	}
	if err := anyImage(c); err != nil {
		t.Errorf("in audit mode: %v", err)
	}
	cluster.Eventually(t, 20*time.Second, "an Event of the pod says why", func() error {
		out := c.Kubectl(t, "--namespace=kube-public", "describe", "pod", "trow-0")
		if !strings.Contains(out, "WebhookUnproven") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}

// reached waits until the webhook enforces, and says that the API server reaches it.
func reached(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	cluster.Eventually(t, 2*time.Minute, "it enforces", func() error { return mode(c, "enforce") })
	if err := anyImage(c); err == nil {
		t.Error("it does not enforce")
	}
	cluster.Eventually(t, 20*time.Second, "/readyz?verbose says so", func() error {
		return readiness(c, "[+]webhook enforce", "reached by")
	})
}

// TestTheNamespaceIsDeleted checks that the webhook goes with its namespace: pods start again everywhere.
func TestTheNamespaceIsDeleted(t *testing.T) {
	c := start(t)
	uninstall(t, c, manifest(t))
	options := []string{"--namespace=registry", "--node-port=30500", "--storage=empty", "--no-node"}
	t.Cleanup(func() { uninstall(t, c, rendered(t, c, options...)) })
	shape(t, c, options...)
	cluster.Eventually(t, 3*time.Minute, "it enforces", func() error { return mode(c, "enforce") })
	if err := anyImage(c); err == nil {
		t.Error("it does not enforce")
	}
	c.Kubectl(t, "delete", "namespace", "registry", "--wait=false")
	cluster.Eventually(t, 20*time.Second, "the webhook has gone", func() error {
		if out := webhooks(t, c); out != "" {
			return fmt.Errorf("%s", out)
		}
		return anyImage(c)
	})
	c.Kubectl(t, "wait", "--for=delete", "namespace/registry", "--timeout=120s")
	if out := webhooks(t, c); out != "" {
		t.Errorf("it is back: %s", out)
	}
}

// TestAnotherControllerFights checks that what another client changes all the time is put back a few times a minute,
// and that /readyz?verbose names that client.
func TestAnotherControllerFights(t *testing.T) {
	c := start(t)
	armed(t, c)
	generation := func() (n int) {
		out := c.Kubectl(t, "get", "validatingwebhookconfiguration", "trow", "--output=jsonpath={.metadata.generation}")
		if _, err := fmt.Sscan(out, &n); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		return n
	}
	before, began, fights := generation(), time.Now(), 0
	cluster.Eventually(t, 2*time.Minute, "/readyz?verbose names the other client", func() error {
		fights++ // each value is new, so each patch is one generation
		c.Kubectl(t, "patch", "validatingwebhookconfiguration", "trow", "--type=json",
			"--field-manager=fighter", "--patch",
			fmt.Sprintf(`[{"op":"replace","path":"/webhooks/0/timeoutSeconds","value":%d}]`, 10+fights%2))
		if time.Since(began) < time.Minute {
			return fmt.Errorf("%d patches in %s", fights, time.Since(began))
		}
		return readiness(c, "[-]webhook enforce", "another client keeps changing", "fighter")
	})
	took := time.Since(began)
	written := generation() - before - fights
	t.Logf("%d patches of the other client, and %d writes of the server, in %s", fights, written, took)
	if most := 5 * (1 + int(took/time.Minute)); written < 1 || written > most {
		t.Errorf("%d writes of the server in %s; want 1 to %d", written, took, most)
	}
	cluster.Eventually(t, 3*time.Minute, "it is put back after the fight", func() error {
		return readiness(c, "[+]webhook enforce")
	})
}
