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

// sitDown starts a workstation that knows the registry by name, on a node's address, and does not trust it yet.
func sitDown(t *testing.T) *workstation.Workstation {
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
	if err := w.Images(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// ca is what the cluster says is to be trusted.
func ca(t *testing.T, c *cluster.Cluster) []byte {
	t.Helper()
	return []byte(c.Kubectl(t, "--namespace=kube-public", "get", "configmap", "trow-ca", `--output=jsonpath={.data.ca\.crt}`))
}

// TestTutorial: a developer's whole way, with the commands as they are written: install, push with docker, be denied,
// run, and see the page that PHP made.
func TestTutorial(t *testing.T) {
	c := start(t)
	step := func(format string, args ...any) { t.Logf("$ "+format, args...) }
	armed(t, c)
	namespace(t, c, "tutorial")

	w := sitDown(t)
	docker := func(args ...string) string {
		t.Helper()
		begin := time.Now()
		out, err := w.Docker(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		step("docker %s   # %.1fs: %s", strings.Join(args, " "), time.Since(begin).Seconds(), lines[len(lines)-1])
		return out
	}
	docker("build", "-t", "k8s-php:1.0.0", "../example")
	docker("tag", "k8s-php:1.0.0", host+"/k8s-php:1.0.0")
	docker("tag", "nginx:1.21.0", host+"/nginx:1.21.0")
	if out, err := w.Docker(t.Context(), "push", host+"/k8s-php:1.0.0"); err == nil || !strings.Contains(err.Error(), "x509") {
		t.Errorf("docker does not check the registry's certificate: %s %v", out, err)
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
	// As the pod is written it names Docker Hub's images.
	out, err := kubectl("apply", "-f", "../example/configmap.yaml", "-f", "../example/pod.yaml")
	if err == nil || !strings.Contains(out, denied+"Remote image docker.io/k8s-php"+notIn+"; Remote image docker.io/nginx"+notIn) {
		t.Error("the pod with Docker Hub's images is not denied")
	}
	// The sentence of the tutorial is that of a controller.
	if out, _ := kubectl("create", "deployment", "proxy", "--image=docker.io/nginx"); !strings.Contains(out, "Warning: Remote image docker.io/nginx"+notIn) {
		t.Error("nobody is warned when the Deployment is applied")
	}
	sentence := "Error creating: " + denied + "Remote image docker.io/nginx" + notIn
	cluster.Eventually(t, time.Minute, sentence, func() error {
		if out, err := c.TryKubectl("--namespace=tutorial", "describe", "replicaset"); err != nil || !strings.Contains(out, sentence) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})

	// The images of this registry: the second is not pushed yet.
	text, err := os.ReadFile("../example/pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	local := filepath.Join(t.TempDir(), "pod.yaml")
	if err := os.WriteFile(local, []byte(strings.ReplaceAll(string(text), "image: ", "image: "+host+"/")), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := kubectl("apply", "-f", local); err == nil || !strings.Contains(out, "Local image "+host+"/nginx:1.21.0"+notIn) {
		t.Error("an image that was not pushed is not denied")
	}
	docker("push", host+"/nginx:1.21.0")
	begin := time.Now()
	if _, err := kubectl("apply", "-f", "../example/configmap.yaml", "-f", local); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, 2*time.Minute, "pod k8s-nginx-php runs", func() error { return podReady(c, "tutorial", "k8s-nginx-php") })
	t.Logf("from apply of the pod to Running: %.1fs", time.Since(begin).Seconds())
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
		t.Error("this is not the page that PHP makes")
	}
}

// TestLogin: the manifest that is made with --login closes the registry, and its two Secrets open it again.
func TestLogin(t *testing.T) {
	c := start(t)
	armed(t, c)
	namespace(t, c, "login")
	c.Apply(t, rendered(t, c, "--login"))
	t.Cleanup(func() {
		c.Apply(t, manifest(t))
		c.Kubectl(t, "--namespace=kube-public", "delete", "secret", "trow-login", "trow-pull")
		c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "statefulset/trow", "--timeout=60s")
	})
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "statefulset/trow", "--timeout=60s")
	cluster.Eventually(t, time.Minute, "the registry answers", func() error { return registryReady(c) })

	w := sitDown(t)
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
	password := c.Kubectl(t, "--namespace=kube-public", "get", "secret", "trow-login", "--output=go-template={{.data.password|base64decode}}")
	for _, args := range [][]string{{"login", "--username=trow", "--password=" + password, host}, {"push", host + "/closed:1"}} {
		if out, err := w.Docker(t.Context(), args...); err != nil {
			t.Fatalf("docker %s: %v: %s", args[0], err, out)
		}
	}
	c.Apply(t, pod("login", "stranger", containers(host+"/closed:1")))
	secret := c.Kubectl(t, "--namespace=kube-public", "get", "secret", "trow-pull", `--output=go-template={{index .data ".dockerconfigjson"}}`)
	c.Apply(t, "apiVersion: v1\nkind: Secret\nmetadata: {name: trow-pull, namespace: login}\ntype: kubernetes.io/dockerconfigjson\ndata: {.dockerconfigjson: "+secret+"}\n")
	c.Apply(t, pod("login", "friend", "  imagePullSecrets: [{name: trow-pull}]\n"+containers(host+"/closed:1")))
	cluster.Eventually(t, time.Minute, "the pod with the Secret runs", func() error { return podReady(c, "login", "friend") })
	// The kubelet of these tests has trow credential-provider.
	cluster.Eventually(t, time.Minute, "the pod without it runs by its ServiceAccount", func() error { return podReady(c, "login", "stranger") })
	client, err := registryClient(c)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Get("https://" + cluster.NodeIP + ":31000/v2/closed/manifests/1")
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a pull of nobody: %s", resp.Status)
	}
	// An image that was deleted keeps no pod alive, and lets no other start.
	c.Kubectl(t, "--namespace=login", "patch", "pod", "friend", "--type=merge", "--patch", `{"metadata":{"finalizers":["example.org/hold"]}}`)
	c.Kubectl(t, "--namespace=login", "delete", "pod", "stranger", "--now")
	remove(t, c, "closed", "1", "trow", password)
	if out, err := c.TryKubectl("--namespace=login", "run", "late", "--image="+host+"/closed:1"); err == nil || !strings.Contains(out, "Local image "+host+"/closed:1"+notIn) {
		t.Errorf("a deleted image: %s", out)
	}
	c.Kubectl(t, "--namespace=login", "delete", "pod", "friend", "--wait=false")
	c.Kubectl(t, "--namespace=login", "patch", "pod", "friend", "--type=json", "--patch", `[{"op":"remove","path":"/metadata/finalizers"}]`)
	c.Kubectl(t, "--namespace=login", "wait", "--for=delete", "pod/friend", "--timeout=60s")
}

// remove deletes a tag from the registry.
func remove(t *testing.T, c *cluster.Cluster, name, tag, user, password string) {
	t.Helper()
	client, err := registryClient(c)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodDelete, "https://"+cluster.NodeIP+":31000/v2/"+name+"/manifests/"+tag, nil)
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
