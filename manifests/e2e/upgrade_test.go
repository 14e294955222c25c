package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// TestSettingsSurvive an upgrade, which applies the manifest again, and a mistake in them does not stop the server, on
// which all pods wait.
func TestSettingsSurvive(t *testing.T) {
	c := start(t)
	armed(t, c)
	settings(t, c, "allow-prefixes: [registry.k8s.io/pause]\ndeny-k8s-images: true")
	c.Apply(t, manifest(t))
	if out := c.Kubectl(t, "--namespace=kube-public", "get", "configmap", "trow",
		`--output=jsonpath={.data.trow\.yaml}`); !strings.Contains(
		out, "registry.k8s.io/pause") {
		t.Fatalf("applying the manifest again changes the settings: %s", out)
	}
	configure(t, c, "alow-prefixes: [x]")
	c.Kubectl(t, "--namespace=kube-public", "rollout", "restart", "statefulset/trow")
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "statefulset/trow", "--timeout=120s")
	cluster.Eventually(t, time.Minute, "an Event reports the mistake", func() error {
		if out := c.Events(t, "kube-public"); !strings.Contains(out, "SettingsInvalid") || !strings.Contains(out,
			"alow-prefixes") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	cluster.Eventually(t, time.Minute, "the last good settings are in use", func() error {
		out, err := c.TryKubectl("run", "x", "--image=registry.k8s.io/pause:3.10", "--dry-run=server")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}
