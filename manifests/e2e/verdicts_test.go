package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

const (
	denied = `admission webhook "validator.trow.io" denied the request: `
	notIn  = " disallowed as not contained in this registry and not in allow list"
)

// armed applies the manifest and waits until the webhook enforces.
func armed(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	start := time.Now()
	install(t, c)
	cluster.Eventually(t, time.Minute, "the webhook enforces", func() error { return mode(c, "enforce") })
	t.Logf("from apply to armed: %.1fs", time.Since(start).Seconds())
}

// mode returns nil when the webhook is armed in that mode.
func mode(c *cluster.Cluster, want string) error {
	out, err := c.TryKubectl("get", "validatingwebhookconfiguration", "trow",
		`--output=jsonpath={.metadata.annotations.trow\.io/webhook}`)
	if err != nil || out != want {
		return fmt.Errorf("mode %q, %v", out, err)
	}
	return nil
}

// configure puts settings into ConfigMap trow, which overrides what the manifest sets.
func configure(t *testing.T, c *cluster.Cluster, lines string) {
	t.Helper()
	c.Apply(t, fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: trow, namespace: kube-public}\n"+
		"data: {trow.yaml: %q}\n", lines))
}

// settings sets settings of the server, and restarts it. They are removed when the test ends.
func settings(t *testing.T, c *cluster.Cluster, lines string) {
	t.Helper()
	set := func(text string) {
		configure(t, c, text)
		restart(t, c)
	}
	set(lines)
	t.Cleanup(func() { set("") })
}

// restart restarts the server, and waits until it answers with the settings that it has now.
func restart(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	c.Kubectl(t, "--namespace=kube-public", "rollout", "restart", "statefulset/trow")
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "statefulset/trow", "--timeout=120s")
	cluster.Eventually(t, time.Minute, "the registry answers", func() error { return registryReady(c) })
	// The API server may still use a connection to the old pod.
	cluster.Eventually(t, time.Minute, "the webhook answers", func() error {
		out, err := c.TryKubectl("run", "x", "--image=docker.io/nginx", "--dry-run=server")
		if err == nil || !strings.Contains(out, "Remote image docker.io/nginx"+notIn) {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// apply applies another manifest and restarts the server. That of users is applied again when the test ends.
func apply(t *testing.T, c *cluster.Cluster, text string) {
	t.Helper()
	c.Apply(t, text)
	restart(t, c)
	t.Cleanup(func() {
		c.Apply(t, manifest(t))
		restart(t, c)
	})
}

// namespace creates a namespace, which is deleted when the test ends.
func namespace(t *testing.T, c *cluster.Cluster, name string) {
	t.Helper()
	c.Kubectl(t, "create", "namespace", name)
	cluster.Eventually(t, time.Minute, "namespace "+name+" is usable", func() error {
		out, err := c.TryKubectl("--namespace", name, "get", "serviceaccount", "default")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	t.Cleanup(func() { c.TryKubectl("delete", "namespace", name, "--timeout=90s") })
}

// pod returns the YAML of a pod. spec is indented by two spaces.
func pod(ns, name, spec string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s}\n"+
		"spec:\n  terminationGracePeriodSeconds: 1\n%s\n", name, ns, spec)
}

// containers returns the YAML of containers with these images.
func containers(images ...string) string {
	text := "  containers:\n"
	for i, image := range images {
		text += fmt.Sprintf("    - {name: c%d, image: %q}\n", i, image)
	}
	return text
}

// refused applies objects, which must be denied with this sentence.
func refused(t *testing.T, c *cluster.Cluster, what, yaml, sentence string) {
	t.Helper()
	out, err := c.TryApply(yaml)
	if err == nil || !strings.Contains(out, denied) || !strings.Contains(out, sentence) {
		t.Errorf("%s: got %q, want %q", what, out, denied+sentence)
		return
	}
	t.Logf("%s: %s", what, strings.TrimSpace(out))
}

// TestVerdicts checks what may run, and what users see when it may not, with a real API server.
func TestVerdicts(t *testing.T) {
	c := start(t)
	armed(t, c)
	settings(t, c, "disallow-local-images: [app:denied]\n")
	namespace(t, c, "verdicts")
	img := app(t, "verdicts", 0)
	digest := push(t, c, "app", "1", img)
	push(t, c, "app", "denied", app(t, "denied", 0))
	good := host + "/app:1"

	const remoteNginx = "Remote image docker.io/nginx" + notIn
	unknown := "@sha256:" + strings.Repeat("0", 64)
	for what, tt := range map[string]struct{ spec, sentence string }{
		"a remote image":             {containers("nginx:1.21.0"), remoteNginx},
		"the second of two":          {containers(good, "docker.io/library/nginx"), remoteNginx},
		"a local image never pushed": {containers(host + "/app:2"), "Local image " + host + "/app:2" + notIn},
		"an unknown digest": {containers(host + "/app" + unknown),
			"Local image " + host + "/app" + unknown + notIn},
		"a tag, but unknown digest": {containers(good + unknown), "Local image " + good + unknown + notIn},
		"on the deny list": {containers(host + "/app:denied"),
			"Local image " + host + "/app:denied on deny list"},
		"an image ID":              {containers(digest), ""},
		"loopback":                 {containers("127.0.0.1:31000/app:1"), "Remote image 127.0.0.1:31000/app" + notIn},
		"a digest of another repo": {containers(host + "/b@" + digest), "Local image " + host + "/b@" + digest + notIn},
		"an init container": {"  initContainers: [{name: i, image: busybox}]\n" + containers(good),
			"Remote image docker.io/busybox" + notIn},
		"an image volume": {containers(good) + "  volumes: [{name: v, image: {reference: docker.io/nginx}}]\n",
			remoteNginx},
	} {
		refused(t, c, what, pod("verdicts", "x", tt.spec), tt.sentence)
	}
	out, err := c.TryKubectl("--namespace=verdicts", "run", "x", "--image="+host+"/app:2")
	if err == nil || !strings.Contains(out, "Warning: push it: docker push "+host+"/app:2") {
		t.Errorf("no warning how to push the image: %s", out)
	}
	t.Logf("kubectl run: %s", out)
	for what, image := range map[string]string{
		"by tag": good, "by digest": host + "/app@" + digest, "by tag and digest": good + "@" + digest,
		"by unknown tag and digest": host + "/app:other@" + digest,
	} {
		out, err := c.TryKubectl("--namespace=verdicts", "run", "x", "--image="+image, "--dry-run=server")
		if err != nil {
			t.Errorf("%s: %s", what, out)
		}
	}
	out, err = c.TryKubectl("--namespace=verdicts", "run", "x", "--image=nginx", "--dry-run=server")
	if err == nil || !strings.Contains(out, remoteNginx) {
		t.Errorf("a dry run: %s", out)
	}
	out, err = c.TryKubectl("--namespace=kube-system", "run", "x", "--image=docker.io/nginx", "--dry-run=server")
	if err != nil {
		t.Errorf("kube-system is not exempt: %s", out)
	}
}

// TestWorkloads checks that kubectl apply warns at once, and that the controller's Event has the sentence of the
// tutorial.
func TestWorkloads(t *testing.T) {
	c := start(t)
	armed(t, c)
	namespace(t, c, "workloads")
	out := c.Kubectl(t, "--namespace=workloads", "create", "deployment", "proxy", "--image=docker.io/nginx")
	if !strings.Contains(out, "Warning: Remote image docker.io/nginx"+notIn) {
		t.Errorf("no warning: %s", out)
	}
	t.Logf("kubectl create deployment: %s", out)
	cluster.Eventually(t, time.Minute, "the ReplicaSet says why", func() error {
		events := c.Events(t, "workloads")
		if !strings.Contains(events, "Error creating: "+denied+"Remote image docker.io/nginx"+notIn) {
			return fmt.Errorf("Events: %s", events)
		}
		return nil
	})
	cron := "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: c, namespace: workloads}\n" +
		"spec:\n  schedule: '0 0 1 1 *'\n" +
		"  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: " +
		"docker.io/nginx}]}}}}\n"
	if out := c.Apply(t, cron); !strings.Contains(out, "Warning: Remote image docker.io/nginx") {
		t.Errorf("no warning for a CronJob: %s", out)
	}
}

// running applies a pod and waits until it runs.
func running(t *testing.T, c *cluster.Cluster, ns, name, image string) {
	t.Helper()
	start := time.Now()
	c.Apply(t, pod(ns, name, containers(image)))
	cluster.Eventually(t, 90*time.Second, "pod "+name+" ("+image+") runs", func() error {
		return podReady(c, ns, name)
	})
	t.Logf("from apply to Running: %.1fs", time.Since(start).Seconds())
}

// TestRunningPods checks which changes of running pods are allowed.
func TestRunningPods(t *testing.T) {
	c := start(t)
	armed(t, c)
	namespace(t, c, "running")
	push(t, c, "running", "1", app(t, "running", 0))
	push(t, c, "running", "gone", app(t, "gone", 0))
	running(t, c, "running", "one", host+"/running:1")
	running(t, c, "running", "gone", host+"/running:gone")

	out, err := c.TryKubectl("--namespace=running", "set", "image", "pod/one", "c0=docker.io/nginx")
	if err == nil || !strings.Contains(out, denied+"Remote image docker.io/nginx"+notIn) {
		t.Errorf("kubectl set image: %s", out)
	}
	out, err = c.TryKubectl("--namespace=running", "set", "image", "pod/one", "c0="+host+"/running:gone")
	if err != nil {
		t.Errorf("kubectl set image, to a local image: %s", out)
	}
	out, err = c.TryKubectl("--namespace=running", "debug", "one", "--image=docker.io/busybox", "--attach=false")
	if err == nil || !strings.Contains(out, "Remote image docker.io/busybox"+notIn) {
		t.Errorf("kubectl debug: %s", out)
	}
	out, err = c.TryKubectl("--namespace=running", "debug", "one", "--image="+host+"/running:1", "--attach=false")
	if err != nil {
		t.Errorf("kubectl debug, with a local image: %s", out)
	}

	// A pod whose image is no longer allowed can still get labels, and lose its finalizers.
	c.Kubectl(t, "--namespace=running", "patch", "pod", "gone", "--type=merge",
		"--patch", `{"metadata":{"finalizers":["example.org/hold"]}}`)
	settings(t, c, "disallow-local-images: [running:gone]\n")
	if out, err := c.TryKubectl("--namespace=running", "run", "x", "--image="+host+"/running:gone"); err == nil {
		t.Errorf("an image on the deny list may still run: %s", out)
	}
	c.Kubectl(t, "--namespace=running", "label", "pod", "gone", "a=b")
	c.Kubectl(t, "--namespace=running", "delete", "pod", "gone", "--wait=false")
	c.Kubectl(t, "--namespace=running", "patch", "pod", "gone", "--type=json",
		"--patch", `[{"op":"remove","path":"/metadata/finalizers"}]`)
	cluster.Eventually(t, time.Minute, "the pod is deleted", func() error {
		if out, err := c.TryKubectl("--namespace=running", "get", "pod", "gone"); err == nil {
			return fmt.Errorf("it still exists: %s", out)
		}
		return nil
	})
}
