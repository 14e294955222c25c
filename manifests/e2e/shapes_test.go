package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// rendered returns the output of trow manifest with these options.
func rendered(t *testing.T, c *cluster.Cluster, options ...string) string {
	t.Helper()
	text, err := c.Run(append([]string{c.TrowBinary(), "manifest"}, options...)...)
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return text
}

// shape applies the manifest with these options, which must cause no warning, and change nothing when it is applied
// again.
func shape(t *testing.T, c *cluster.Cluster, options ...string) {
	t.Helper()
	text := rendered(t, c, options...)
	if out := c.Apply(t, text); strings.Contains(out, "Warning") {
		t.Errorf("trow manifest %s: %s", strings.Join(options, " "), out)
	}
	unchanged(t, c, text)
}

// unchanged applies a manifest that was applied before, which must change nothing.
func unchanged(t *testing.T, c *cluster.Cluster, text string) {
	t.Helper()
	for line := range strings.Lines(c.Apply(t, text)) {
		// kubectl sends the selector of a budget each time (patchStrategy replace); the API server changes nothing.
		if !strings.HasSuffix(strings.TrimSpace(line), " unchanged") &&
			!strings.HasPrefix(line, "poddisruptionbudget.") {
			t.Errorf("applying the manifest again: %s", line)
		}
	}
}

// uninstall deletes the objects of a manifest, and waits for its pods as well.
func uninstall(t *testing.T, c *cluster.Cluster, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trow.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c.Kubectl(t, "delete", "--filename", file, "--ignore-not-found", "--cascade=foreground",
		"--timeout=90s")
}

// TestAnotherNamespace checks the Pod Security level of the manifest's namespace: restricted is enough for the server,
// and trow node needs privileged.
func TestAnotherNamespace(t *testing.T) {
	c := start(t)
	uninstall(t, c, manifest(t))
	options := []string{"--namespace=registry", "--node-port=30500", "--storage=empty", "--exempt-namespaces=one,two"}
	t.Cleanup(func() { uninstall(t, c, rendered(t, c, options...)) })
	shape(t, c, append(options, "--no-node", "--webhook=audit")...)
	cluster.Eventually(t, 2*time.Minute, "the server is ready in a restricted namespace", func() error {
		return podReady(c, "registry", "trow-0")
	})
	cluster.Eventually(t, time.Minute, "the webhook warns", func() error { return mode(c, "audit") })
	out, err := c.TryKubectl("run", "x", "--image=docker.io/nginx", "--dry-run=server")
	if err != nil || !strings.Contains(out, "Warning: Remote image docker.io/nginx"+notIn) {
		t.Errorf("in audit mode: %v: %s", err, out)
	}
	shape(t, c, options...)
	c.Kubectl(t, "--namespace=registry", "rollout", "restart", "statefulset/trow")
	cluster.Eventually(t, time.Minute, "the webhook enforces", func() error { return mode(c, "enforce") })
	cluster.Eventually(t, time.Minute, "trow node is ready", func() error {
		out, err := c.TryKubectl("--namespace=registry", "get", "daemonset", "trow-node",
			"--output=jsonpath={.status.numberReady}")
		if err != nil || out != "1" {
			return fmt.Errorf("%q, %v", out, err)
		}
		_, err = os.Stat("/etc/containerd/certs.d/trow.registry:30500/hosts.toml")
		return err
	})
	exempt := c.Kubectl(t, "get", "validatingwebhookconfiguration", "trow",
		"--output=jsonpath={.webhooks[0].namespaceSelector.matchExpressions[0].values}")
	if exempt != `["kube-system","one","registry","two"]` {
		t.Errorf("exempt: %s", exempt)
	}
}

// TestTheManifestOfBefore checks that the image works with the manifest of before the settings of users had a ConfigMap
// of their own, and that an upgrade keeps what a user has changed there: settings, images, and the loopback names which
// that one lists.
func TestTheManifestOfBefore(t *testing.T) {
	c := start(t)
	namespace(t, c, "before")
	text, err := os.ReadFile("testdata/earlier.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const mine = "allow-prefixes: [registry.k8s.io/pause]"
	earlier := strings.Replace(string(text), "# allow-prefixes: [quay.io/team]", mine, 1)
	if earlier == string(text) {
		t.Fatal("the earlier manifest has no such comment")
	}
	uninstall(t, c, manifest(t))
	t.Cleanup(func() {
		armed(t, c)
		c.Kubectl(t, "--namespace=kube-public", "delete", "configmap", "trow")
		restart(t, c)
	})
	c.Apply(t, earlier)
	for _, what := range []string{"statefulset/trow", "daemonset/trow-node"} {
		c.Kubectl(t, "--namespace=kube-public", "rollout", "status", what, "--timeout=60s")
	}
	restart(t, c)
	push(t, c, "before", "1", app(t, "before", 0))
	running(t, c, "before", "named", host+"/before:1")
	running(t, c, "before", "loopback", "127.0.0.1:31000/before:1")
	settings := func() string {
		return c.Kubectl(t, "--namespace=kube-public", "get", "configmap", "trow", "--output=jsonpath={.data}")
	}
	before := settings()

	c.Apply(t, manifest(t))
	for _, what := range []string{"statefulset/trow", "daemonset/trow-node"} {
		c.Kubectl(t, "--namespace=kube-public", "rollout", "status", what, "--timeout=120s")
	}
	cluster.Eventually(t, time.Minute, "the webhook refuses", func() error {
		out, err := c.TryKubectl("run", "x", "--image=docker.io/nginx", "--dry-run=server")
		if err == nil || !strings.Contains(out, "Remote image docker.io/nginx"+notIn) {
			return fmt.Errorf("%w: %s", err, out)
		}
		return mode(c, "enforce")
	})
	if after := settings(); after != before || !strings.Contains(after, mine) {
		t.Errorf("the settings after the upgrade: %s", after)
	}
	for _, image := range []string{host + "/before:1", "127.0.0.1:31000/before:1", "registry.k8s.io/pause:3.10"} {
		if out, err := c.TryKubectl("run", "x", "--image="+image, "--dry-run=server"); err != nil {
			t.Errorf("after the upgrade, %s: %s", image, out)
		}
	}
	push(t, c, "before", "2", app(t, "after", 0))
	running(t, c, "before", "named-after", host+"/before:2")
	running(t, c, "before", "loopback-after", "127.0.0.1:31000/before:2")
	unchanged(t, c, manifest(t))
}

// TestDrift checks that changes of the webhook's configuration by other clients are undone.
func TestDrift(t *testing.T) {
	c := start(t)
	armed(t, c)
	refusesAgain := func(what string) {
		t.Helper()
		cluster.Eventually(t, 20*time.Second, what+": it is corrected", func() error {
			policy, err := c.TryKubectl("get", "validatingwebhookconfiguration", "trow",
				"--output=jsonpath={.webhooks[*].failurePolicy}")
			if err != nil || policy != "Fail Ignore Ignore" {
				return fmt.Errorf("%q, %v", policy, err)
			}
			out, err := c.TryKubectl("run", "x", "--image=docker.io/nginx", "--dry-run=server")
			if err == nil {
				return fmt.Errorf("a remote image is not denied: %s", out)
			}
			return nil
		})
	}
	c.Kubectl(t, "patch", "validatingwebhookconfiguration", "trow", "--type=json", "--patch",
		`[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Ignore"}]`)
	refusesAgain("opened")
	c.Kubectl(t, "patch", "validatingwebhookconfiguration", "trow", "--type=json", "--patch",
		`[{"op":"remove","path":"/webhooks"}]`)
	refusesAgain("emptied")
	version := func() string {
		return c.Kubectl(t, "get", "validatingwebhookconfiguration", "trow",
			"--output=jsonpath={.metadata.resourceVersion}")
	}
	before := version()
	time.Sleep(12 * time.Second) // two passes
	if after := version(); after != before {
		t.Errorf("a correct configuration is written again: version %s, then %s", before, after)
	}
}
