package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
	"trow/manifests/e2e/workstation"
)

// startWorkstation starts a workstation with the images of the tutorial.
func startWorkstation(t *testing.T) *workstation.Workstation {
	t.Helper()
	w := startDocker(t)
	if err := w.Images(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// startDocker starts a workstation that resolves the registry's name to the node, and does not trust its CA yet.
func startDocker(t *testing.T) *workstation.Workstation {
	t.Helper()
	dir, err := os.MkdirTemp("", "workstation-")
	if err != nil {
		t.Fatal(err)
	}
	w, err := workstation.Start(t.Context(), dir, cluster.NodeIP+" trow.kube-public")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Stop(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return w
}

// ca returns the CA certificates that the cluster publishes.
func ca(t *testing.T, c *cluster.Cluster) []byte {
	t.Helper()
	return []byte(c.Kubectl(t, "--namespace=kube-public", "get", "configmap", "trow-ca",
		`--output=jsonpath={.data.ca\.crt}`))
}

// TestTutorial runs the whole tutorial, with its commands: install, push with docker, see a denial, run the
// application, and get its page.
func TestTutorial(t *testing.T) {
	c := start(t)
	step := func(format string, args ...any) { t.Logf("$ "+format, args...) }
	armed(t, c)
	namespace(t, c, "tutorial")

	w := startWorkstation(t)
	docker := func(args ...string) string {
		t.Helper()
		start := time.Now()
		out, err := w.Docker(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		step("docker %s   # %.1fs: %s", strings.Join(args, " "), time.Since(start).Seconds(), lines[len(lines)-1])
		return out
	}
	docker("build", "-t", "k8s-php:1.0.0", "../example")
	docker("tag", "k8s-php:1.0.0", host+"/k8s-php:1.0.0")
	docker("tag", "nginx:1.21.0", host+"/nginx:1.21.0")
	out, err := w.Docker(t.Context(), "push", host+"/k8s-php:1.0.0")
	if err == nil || !strings.Contains(err.Error(), "x509") {
		t.Errorf("docker does not verify the registry's certificate: %s %v", out, err)
	}
	if err := w.Trust(host, ca(t, c)); err != nil {
		t.Fatal(err)
	}
	docker("push", host+"/k8s-php:1.0.0")

	kubectl := func(args ...string) (string, error) {
		out, err := c.TryKubectl(append([]string{"--namespace=tutorial"}, args...)...)
		step("kubectl %s\n%s", strings.Join(args, " "), out)
		return out, err
	}
	// The file of the pod names images of Docker Hub.
	const remoteNginx = "Remote image docker.io/nginx" + notIn
	out, err = kubectl("apply", "-f", "../example/configmap.yaml", "-f", "../example/pod.yaml")
	if err == nil || !strings.Contains(out, denied+"Remote image docker.io/k8s-php"+notIn+"; "+remoteNginx) {
		t.Error("the pod with images of Docker Hub is not denied")
	}
	// The sentence of the tutorial comes from a controller.
	out, _ = kubectl("create", "deployment", "proxy", "--image=docker.io/nginx")
	if !strings.Contains(out, "Warning: "+remoteNginx) {
		t.Error("no warning when the Deployment is created")
	}
	sentence := "Error creating: " + denied + remoteNginx
	cluster.Eventually(t, time.Minute, sentence, func() error {
		out, err := c.TryKubectl("--namespace=tutorial", "describe", "replicaset")
		if err != nil || !strings.Contains(out, sentence) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})

	// Now with the images of this registry, of which the second is not pushed yet.
	text, err := os.ReadFile("../example/pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	local := filepath.Join(t.TempDir(), "pod.yaml")
	localText := strings.ReplaceAll(string(text), "image: ", "image: "+host+"/")
	if err := os.WriteFile(local, []byte(localText), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err = kubectl("apply", "-f", local)
	if err == nil || !strings.Contains(out, "Local image "+host+"/nginx:1.21.0"+notIn) {
		t.Error("an image that was not pushed is not denied")
	}
	docker("push", host+"/nginx:1.21.0")
	start := time.Now()
	if _, err := kubectl("apply", "-f", "../example/configmap.yaml", "-f", local); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, 2*time.Minute, "pod k8s-nginx-php runs", func() error {
		return podReady(c, "tutorial", "k8s-nginx-php")
	})
	t.Logf("from apply of the pod to Running: %.1fs", time.Since(start).Seconds())
	if _, err := kubectl("expose", "pod", "k8s-nginx-php", "--type=NodePort", "--port=80"); err != nil {
		t.Fatal(err)
	}
	port, err := kubectl("get", "service", "k8s-nginx-php", "--output=jsonpath={.spec.ports[0].nodePort}")
	if err != nil {
		t.Fatal(err)
	}
	kubectl("get", "all")
	var page string
	cluster.Eventually(t, time.Minute, "wget "+cluster.NodeIP+":"+port, func() error {
		resp, err := http.Get("http://" + cluster.NodeIP + ":" + port + "/")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if page = string(b); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s, %v", resp.Status, b, err)
		}
		return nil
	})
	t.Log(page)
	if !strings.Contains(page, "says that 6 times 7 is 42") {
		t.Error("this is not the page of the application")
	}
}

// TestLogin checks that the manifest of --login closes the registry, and that its login and a pull secret give access.
func TestLogin(t *testing.T) {
	c := start(t)
	armed(t, c)
	namespace(t, c, "login")
	c.Apply(t, rendered(t, c, "--login"))
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "statefulset/trow", "--timeout=60s")
	first := c.Kubectl(t, "--namespace=kube-public", "get", "secret", "trow-login", "--output=jsonpath={.data}")
	c.Apply(t, rendered(t, c, "--login"))
	if again := c.Kubectl(t, "--namespace=kube-public", "get", "secret", "trow-login",
		"--output=jsonpath={.data}"); again !=
		first {
		t.Error("applying the manifest again changes the login")
	}
	t.Cleanup(func() {
		c.Apply(t, manifest(t))
		c.Kubectl(t, "--namespace=kube-public", "delete", "secret", "trow-login")
		c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "statefulset/trow", "--timeout=60s")
	})
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "statefulset/trow", "--timeout=60s")
	cluster.Eventually(t, time.Minute, "the registry answers", func() error { return registryReady(c) })

	w := startWorkstation(t)
	if err := w.Trust(host, ca(t, c)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Docker(t.Context(), "tag", "nginx:1.21.0", host+"/closed:1"); err != nil {
		t.Fatal(err)
	}
	if out, err := w.Docker(t.Context(), "push", host+"/closed:1"); err == nil {
		t.Errorf("pushed without a login: %s", out)
	}
	if out, err := w.Docker(t.Context(), "login", "--username=trow", "--password=wrong", host); err == nil {
		t.Errorf("logged in with a wrong password: %s", out)
	}
	password := c.Kubectl(t, "--namespace=kube-public", "get", "secret", "trow-login",
		"--output=go-template={{.data.password|base64decode}}")
	for _, args := range [][]string{
		{"login", "--username=trow", "--password=" + password, host}, {"push", host + "/closed:1"}} {
		if out, err := w.Docker(t.Context(), args...); err != nil {
			t.Fatalf("docker %s: %v: %s", args[0], err, out)
		}
	}
	c.Apply(t, pod("login", "stranger", containers(host+"/closed:1")))
	c.Apply(t, pullSecret(t, c, "login"))
	c.Apply(t, pod("login", "friend", "  imagePullSecrets: [{name: regcred}]\n"+containers(host+"/closed:1")))
	cluster.Eventually(t, time.Minute, "the pod with the Secret runs", func() error {
		return podReady(c, "login", "friend")
	})
	// The kubelet of these tests uses trow credential-provider.
	cluster.Eventually(t, time.Minute, "the pod without it runs, with its ServiceAccount", func() error {
		return podReady(c, "login", "stranger")
	})
	client, err := registryClient(c)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Get("https://" + cluster.NodeIP + ":31000/v2/closed/manifests/1")
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a pull without a login: %s", resp.Status)
	}
	// After an image was deleted, no pod can start with it, and old pods with it can be deleted.
	c.Kubectl(t, "--namespace=login", "patch", "pod", "friend", "--type=merge",
		"--patch", `{"metadata":{"finalizers":["example.org/hold"]}}`)
	c.Kubectl(t, "--namespace=login", "delete", "pod", "stranger", "--now")
	remove(t, c, "closed", "1", "trow", password)
	out, err := c.TryKubectl("--namespace=login", "run", "late", "--image="+host+"/closed:1")
	if err == nil || !strings.Contains(out, "Local image "+host+"/closed:1"+notIn) {
		t.Errorf("a deleted image: %s", out)
	}
	c.Kubectl(t, "--namespace=login", "delete", "pod", "friend", "--wait=false")
	c.Kubectl(t, "--namespace=login", "patch", "pod", "friend", "--type=json",
		"--patch", `[{"op":"remove","path":"/metadata/finalizers"}]`)
	c.Kubectl(t, "--namespace=login", "wait", "--for=delete", "pod/friend", "--timeout=60s")
}

// remove deletes a tag from the registry.
func remove(t *testing.T, c *cluster.Cluster, name, tag, user, password string) {
	t.Helper()
	client, err := registryClient(c)
	if err != nil {
		t.Fatal(err)
	}
	url := "https://" + cluster.NodeIP + ":31000/v2/" + name + "/manifests/" + tag
	req, err := http.NewRequest(http.MethodDelete, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(user, password)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("DELETE %s:%s: %s", name, tag, resp.Status)
	}
}
