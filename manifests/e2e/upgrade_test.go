package e2e

import (
	"fmt"
	"net/http"
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

// loginOfBefore is the Secret of an earlier manifest of --login, which had the password.
const loginOfBefore = `apiVersion: v1
kind: Secret
metadata: {name: trow-login, namespace: kube-public, labels: {app.kubernetes.io/name: trow}}
stringData: {user: trow, password: of-before}
`

// TestTheLoginOfBefore checks that the password of an earlier manifest survives one that does not have it.
func TestTheLoginOfBefore(t *testing.T) {
	c := start(t)
	armed(t, c)
	c.Apply(t, loginOfBefore)
	t.Cleanup(func() {
		c.Apply(t, manifest(t))
		c.Kubectl(t, "--namespace=kube-public", "delete", "secret", "trow-login")
		c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "statefulset/trow", "--timeout=60s")
	})
	text := rendered(t, c, "--login")
	for range 2 {
		c.Apply(t, text)
		c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "statefulset/trow", "--timeout=60s")
		if password := c.Kubectl(t, "--namespace=kube-public", "get", "secret", "trow-login",
			"--output=go-template={{.data.password|base64decode}}"); password != "of-before" {
			t.Fatalf("the password is now %q", password)
		}
	}
	unchanged(t, c, text)
	client, err := registryClient(c)
	if err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]int{"of-before": http.StatusOK, "wrong": http.StatusUnauthorized} {
		cluster.Eventually(t, 20*time.Second, "the login "+password, func() error {
			req, err := http.NewRequest(http.MethodGet, "https://"+cluster.NodeIP+":31000/v2/", nil)
			if err != nil {
				return err
			}
			req.SetBasicAuth("trow", password)
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			if resp.Body.Close(); resp.StatusCode != want {
				return fmt.Errorf("%s", resp.Status)
			}
			return nil
		})
	}
}
