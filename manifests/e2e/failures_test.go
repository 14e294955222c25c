package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// TestTheWebhookIsDown checks that no pod starts without a review, and that pods start once the webhook is back.
func TestTheWebhookIsDown(t *testing.T) {
	c := start(t)
	armed(t, c)
	namespace(t, c, "down")
	push(t, c, "down", "1", app(t, "down", 0))
	c.Kubectl(t, "--namespace=kube-public", "scale", "statefulset/trow", "--replicas=0")
	c.Kubectl(t, "--namespace=kube-public", "wait", "--for=delete", "pod/trow-0", "--timeout=60s")
	out, err := c.TryKubectl("--namespace=down", "run", "x", "--image="+host+"/down:1")
	if err == nil || !strings.Contains(out, `failed calling webhook "validator.trow.io"`) {
		t.Errorf("without the webhook: %s", out)
	}
	t.Logf("without the webhook: %s", out)
	out = c.Kubectl(t, "--namespace=down", "create", "deployment", "x", "--image="+host+"/down:1")
	if strings.Contains(out, "rror") {
		t.Errorf("a workload cannot be created without the webhook: %s", out)
	}
	out, err = c.TryKubectl("--namespace=kube-system", "run", "x", "--image=docker.io/nginx", "--dry-run=server")
	if err != nil {
		t.Errorf("kube-system is blocked: %s", out)
	}
	c.Kubectl(t, "--namespace=kube-public", "scale", "statefulset/trow", "--replicas=1")
	cluster.Eventually(t, time.Minute, "the registry answers", func() error { return registryReady(c) })
	cluster.Eventually(t, 2*time.Minute, "the Deployment runs", func() error {
		return available(c, "down", "deployment/x")
	})
}

// available returns nil when the one replica of a workload is available.
func available(c *cluster.Cluster, ns, what string) error {
	out, err := c.TryKubectl("--namespace", ns, "get", what, "--output=jsonpath={.status.availableReplicas}")
	if err != nil || out != "1" {
		return fmt.Errorf("%s: %q, %v", what, out, err)
	}
	return nil
}

// TestAPowerCut kills everything at the same time, with failurePolicy Fail, and checks that it comes back unaided.
func TestAPowerCut(t *testing.T) {
	c := start(t)
	armed(t, c)
	namespace(t, c, "power")
	push(t, c, "power", "1", app(t, "power", 0))
	c.Kubectl(t, "--namespace=power", "create", "deployment", "x", "--image="+host+"/power:1")
	deployment := func() error { return available(c, "power", "deployment/x") }
	cluster.Eventually(t, 90*time.Second, "the Deployment runs", deployment)
	if err := c.RestartAll(context.Background()); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	cluster.Eventually(t, 3*time.Minute, "the registry answers", func() error { return registryReady(c) })
	cluster.Eventually(t, time.Minute, "the webhook answers", func() error {
		out, err := c.TryKubectl("--namespace=power", "run", "x", "--image=docker.io/nginx", "--dry-run=server")
		if err == nil || !strings.Contains(out, "Remote image docker.io/nginx"+notIn) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	cluster.Eventually(t, 3*time.Minute, "a new pod runs", func() error {
		c.TryKubectl("--namespace=power", "run", "new", "--image="+host+"/power:1")
		return podReady(c, "power", "new")
	})
	cluster.Eventually(t, 3*time.Minute, "the Deployment runs", deployment)
	t.Logf("from power to normal: %.1fs", time.Since(start).Seconds())
}

// TestNoDeadlock checks that the webhook does not enforce while a DaemonSet that nodes need is in a namespace that is
// not exempt, and that the setting that it names helps.
func TestNoDeadlock(t *testing.T) {
	c := start(t)
	armed(t, c)
	namespace(t, c, "csi-system")
	c.Apply(t, `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: csi-node, namespace: csi-system}
spec:
  selector: {matchLabels: {app: csi-node}}
  template:
    metadata: {labels: {app: csi-node}}
    spec:
      priorityClassName: system-node-critical
      containers: [{name: driver, image: example.org/csi}]
`)
	trow(t, c, "disarm")
	if out := webhooks(t, c); out != "" {
		t.Errorf("after disarm: %s", out)
	}
	trow(t, c, "arm")
	cluster.Eventually(t, time.Minute, "it is held back", func() error { return mode(c, "audit") })
	why := c.Kubectl(t, "get", "validatingwebhookconfiguration", "trow",
		`--output=jsonpath={.metadata.annotations.trow\.io/held-back}`)
	if !strings.Contains(why, "csi-system") || !strings.Contains(why, "exempt-namespaces") {
		t.Errorf("it does not say what to do: %q", why)
	}
	t.Logf("held back: %s", why)
	out, err := c.TryKubectl("run", "x", "--image=docker.io/nginx", "--dry-run=server")
	if err != nil || !strings.Contains(out, "Warning: Remote image docker.io/nginx"+notIn) {
		t.Errorf("in audit mode: %v: %s", err, out)
	}
	configure(t, c, "exempt-namespaces: [csi-system]")
	t.Cleanup(func() { configure(t, c, "") })
	c.Kubectl(t, "--namespace=kube-public", "rollout", "restart", "statefulset/trow")
	cluster.Eventually(t, 2*time.Minute, "it enforces with the namespace exempt", func() error {
		return mode(c, "enforce")
	})
}

// trow runs a command of the program under test, with the administrator's kubeconfig.
func trow(t *testing.T, c *cluster.Cluster, args ...string) string {
	t.Helper()
	out, err := c.Run(append([]string{c.TrowBinary()}, args...)...)
	if err != nil {
		t.Fatalf("trow %s: %v: %s", strings.Join(args, " "), err, out)
	}
	t.Logf("trow %s: %s", strings.Join(args, " "), strings.TrimSpace(out))
	return out
}

// TestThePodIsKilledDuringAPush checks that a second attempt of the client succeeds, and that the image runs.
func TestThePodIsKilledDuringAPush(t *testing.T) {
	c := start(t)
	armed(t, c)
	namespace(t, c, "killed")
	img := app(t, "killed", 200<<20)
	killed := make(chan string, 1)
	go func() {
		time.Sleep(150 * time.Millisecond)
		out, _ := c.TryKubectl("--namespace=kube-public", "delete", "pod", "trow-0", "--grace-period=0", "--force")
		killed <- out
	}()
	attempts := 0
	cluster.Eventually(t, 2*time.Minute, "the push", func() error {
		attempts++
		_, err := tryPush(t, c, "killed", "1", img)
		return err
	})
	t.Logf("%d attempts; %s", attempts, <-killed)
	running(t, c, "killed", "x", host+"/killed:1")
}

// TestTheCAIsRotated checks that pushes, reviews and pulls work throughout a rotation.
func TestTheCAIsRotated(t *testing.T) {
	c := start(t)
	armed(t, c)
	namespace(t, c, "rotated")
	settings(t, c, "ca-overlap: 10s\n")
	bundle := func() string { return string(ca(t, c)) }
	before := bundle()
	trow(t, c, "rotate-ca")
	start, pulls := time.Now(), 0
	for steps := ""; !strings.HasSuffix(steps, "both, new, "); pulls++ {
		if time.Since(start) > 4*time.Minute {
			t.Fatalf("the rotation does not end: %s", steps)
		}
		name := fmt.Sprintf("p%d", pulls)
		push(t, c, "rotated", name, app(t, name, 0))
		running(t, c, "rotated", name, host+"/rotated:"+name)
		c.Kubectl(t, "--namespace=rotated", "delete", "pod", name, "--wait=false") // a node runs 110 pods at most
		now, step := bundle(), ""
		switch both := strings.Count(now, "BEGIN") == 2; {
		case both:
			step = "both, "
		case now == before:
			step = "old, "
		default:
			step = "new, "
		}
		if !strings.HasSuffix(steps, step) {
			steps += step
			t.Logf("after %.1fs: %s", time.Since(start).Seconds(), steps)
		}
	}
	t.Logf("%d pushes and pulls during the rotation", pulls)
}

// nodeFiles is the directory that trow node writes to on this machine.
const nodeFiles = "/etc/containerd/certs.d/trow.kube-public:31000"

// TestUninstall checks that an upgrade keeps the node's files, and that deleting the manifest removes everything but
// the images.
func TestUninstall(t *testing.T) {
	c := start(t)
	armed(t, c)
	exist := func() error {
		_, err := os.Stat(nodeFiles + "/hosts.toml")
		return err
	}
	cluster.Eventually(t, time.Minute, "the node's files exist", exist)
	push(t, c, "kept", "1", app(t, "kept", 0))
	c.Kubectl(t, "--namespace=kube-public", "rollout", "restart", "daemonset/trow-node")
	for start := time.Now(); time.Since(start) < 15*time.Second; time.Sleep(20 * time.Millisecond) {
		if err := exist(); err != nil {
			t.Fatalf("an upgrade removes the node's files: %v", err)
		}
	}
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "daemonset/trow-node", "--timeout=60s")
	out := c.Kubectl(t, "delete", "--filename=../trow.yaml", "--timeout=90s") // exit code 0: each object was there
	if first, _, _ := strings.Cut(out, "\n"); !strings.Contains(first, "validatingwebhookconfiguration") {
		t.Errorf("the webhook is not removed first: %s", out)
	}
	cluster.Eventually(t, time.Minute, "the node's files are removed", func() error {
		if _, err := os.Stat(nodeFiles); err == nil {
			return fmt.Errorf("%s still exists", nodeFiles)
		}
		return nil
	})
	if out, err := c.TryKubectl("run", "x", "--image=docker.io/nginx", "--dry-run=server"); err != nil {
		t.Errorf("pods are still denied: %s", out)
	}
	// kubectl waits for the StatefulSet, and not for its pod, which the garbage collector deletes.
	cluster.Eventually(t, 40*time.Second, "nothing but the volume is left", func() error {
		left := strings.TrimSpace(c.Kubectl(t, "get", "all,secrets,configmaps,serviceaccounts,persistentvolumeclaims,"+
			"validatingwebhookconfigurations,roles,rolebindings,clusterroles,clusterrolebindings,networkpolicies,"+
			"resourcequotas", "--all-namespaces", "--output=name", "--selector=app.kubernetes.io/name=trow"))
		if left != "persistentvolumeclaim/data-trow-0" && left != "" {
			return fmt.Errorf("left behind: %s", left)
		}
		return nil
	})
	armed(t, c)
	if out, err := c.TryKubectl("run", "x", "--image="+host+"/kept:1", "--dry-run=server"); err != nil {
		t.Errorf("the images are lost: %s", out)
	}
}

// TestTheVolumeIsFull checks that pods still start and are reviewed, that pushes fail with a clear error, that trow gc
// works, and that pushes succeed once there is space.
func TestTheVolumeIsFull(t *testing.T) {
	c := start(t)
	armed(t, c)
	namespace(t, c, "full")
	push(t, c, "full", "1", app(t, "full", 0))
	t.Run("full", func(t *testing.T) {
		settings(t, c, "reserve: 1Ei\n")
		_, err := tryPush(t, c, "full", "2", app(t, "full2", 0))
		if err == nil || !strings.Contains(err.Error(), "507") {
			t.Errorf("a push to a full volume: %v", err)
		}
		running(t, c, "full", "still", host+"/full:1")
		out, err := c.TryKubectl("--namespace=full", "run", "x", "--image=docker.io/nginx", "--dry-run=server")
		if err == nil || !strings.Contains(out, "Remote image docker.io/nginx"+notIn) {
			t.Errorf("a verdict: %s", out)
		}
		out = c.Kubectl(t, "--namespace=kube-public", "exec", "trow-0", "--", "/trow", "gc", "--dry-run")
		if !strings.Contains(out, "Would free") {
			t.Errorf("trow gc in the pod: %s", out)
		}
	})
	push(t, c, "full", "2", app(t, "full2", 0))
}
