package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// endpoints returns the names of the ready pods to which the Service leads.
func endpoints(t *testing.T, c *cluster.Cluster) []string {
	t.Helper()
	return strings.Fields(c.Kubectl(t, "--namespace=kube-public", "get", "endpointslices",
		"--selector=kubernetes.io/service-name=trow",
		"--output=jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].targetRef.name}"))
}

// TestFromOnePodToReplicasAndBack checks that the Service leads to one of the two registries alone, that images are
// carried over, that another replica takes the webhook over, that a mistake in the settings does not keep a new replica
// from starting, and that the webhook enforces on the way.
func TestFromOnePodToReplicasAndBack(t *testing.T) {
	c := start(t)
	armed(t, c)
	namespace(t, c, "failover")
	push(t, c, "failover/one", "1", app(t, "failover", 0))
	_, options := startEngines(t, c)
	t.Cleanup(func() {
		armed(t, c) // the manifest of one pod
		_, _ = c.TryKubectl("--namespace=kube-public", "delete", "deployment,pdb,lease", "trow", "--ignore-not-found")
		_, _ = c.TryKubectl("--namespace=kube-public", "delete", "secret/trow-settings", "configmap/trow",
			"--ignore-not-found")
		c.Kubectl(t, "--namespace=kube-public", "rollout", "restart", "statefulset/trow")
		c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "statefulset/trow", "--timeout=120s")
	})

	c.Apply(t, rendered(t, c, options...))
	began := time.Now()
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "deployment/trow", "--timeout=180s")
	t.Logf("three replicas after %.1fs", time.Since(began).Seconds())
	cluster.Eventually(t, time.Minute, "the Service leads to the replicas", func() error {
		if got := endpoints(t, c); len(got) != 3 || slices.Contains(got, "trow-0") {
			return fmt.Errorf("%v", got)
		}
		return registryReady(c)
	})
	if err := podReady(c, "kube-public", "trow-0"); err != nil {
		t.Errorf("the pod of before: %v", err)
	}
	if code := statusOf(t, c, "failover/one", "1"); code != http.StatusNotFound {
		t.Errorf("the image of the other registry: %d", code)
	}
	if out, err := c.Run("sh", "-c", "kubectl -n kube-public exec trow-0 -- /trow export - | "+
		"kubectl -n kube-public exec -i deploy/trow -- /trow import -"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.Kubectl(t, "--namespace=kube-public", "delete", "statefulset", "trow", "--timeout=60s")
	running(t, c, "failover", "moved", host+"/failover/one:1")
	enforces := func() error {
		if err := anyImage(c); err == nil {
			return errors.New("any image may run")
		}
		return mode(c, "enforce")
	}
	cluster.Eventually(t, time.Minute, "it enforces", enforces)

	first := leaderOf(t, c)
	if !slices.Contains(endpoints(t, c), first) {
		t.Errorf("%s leads, and is none of %v", first, endpoints(t, c))
	}
	c.Kubectl(t, "--namespace=kube-public", "delete", "pod", first, "--grace-period=0", "--force")
	cluster.Eventually(t, time.Minute, "another replica takes over", func() error {
		if got := leaderOf(t, c); got == first || got == "" {
			return fmt.Errorf("%q leads", got)
		}
		return enforces()
	})
	cluster.Eventually(t, time.Minute, "each replica knows which", func() error {
		return readiness(c, "[+]webhook enforce", "keeps it in order")
	})

	configure(t, c, "alow-prefixes: [x]")
	c.Kubectl(t, "--namespace=kube-public", "rollout", "restart", "deployment/trow")
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "deployment/trow", "--timeout=180s")
	cluster.Eventually(t, time.Minute, "an Event of the Deployment reports the mistake", func() error {
		out := c.Kubectl(t, "--namespace=kube-public", "describe", "deployment", "trow")
		if !strings.Contains(out, "SettingsInvalid") || !strings.Contains(out, "alow-prefixes") {
			return fmt.Errorf("%s", out)
		}
		return enforces()
	})
	c.Kubectl(t, "--namespace=kube-public", "delete", "configmap", "trow")

	c.Apply(t, manifest(t)) // back
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "statefulset/trow", "--timeout=120s")
	cluster.Eventually(t, time.Minute, "the Service leads to the pod", func() error {
		if got := endpoints(t, c); !slices.Equal(got, []string{"trow-0"}) {
			return fmt.Errorf("%v", got)
		}
		return enforces()
	})
	if code := statusOf(t, c, "failover/one", "1"); code != http.StatusOK {
		t.Errorf("its image: %d", code) // its volume was kept
	}
}

// leaderOf is leader.
func leaderOf(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	name, err := leader(c)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// statusOf returns the status of a HEAD of a manifest.
func statusOf(t *testing.T, c *cluster.Cluster, name, tag string) int {
	t.Helper()
	client, err := registryClient(c)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodHead,
		"https://"+cluster.NodeIP+":31000/v2/"+name+"/manifests/"+tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "*/*")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}
