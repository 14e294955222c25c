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
)

// The tests of this file are about the cluster itself: whether it has what the other tests need.

// probeSource is a program for pods: it serves its host name, gets a page, or writes a file.
const probeSource = `package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("usage: serve, get URL or write FILE TEXT")
	}
	switch os.Args[1] {
	case "serve":
		name, _ := os.Hostname()
		fmt.Println("serving as", name)
		log.Fatal(http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "I am ", name)
		})))
	case "get":
		resp, err := (&http.Client{Timeout: 5 * time.Second}).Get(os.Args[2])
		if err != nil {
			log.Fatal(err)
		}
		io.Copy(os.Stdout, resp.Body)
	case "write":
		if err := os.WriteFile(os.Args[2], []byte(os.Args[3]), 0o644); err != nil {
			log.Fatal(err)
		}
	}
}
`

// probePods are two pods with that program, and a Service for the first, in a namespace that is exempt from any policy.
const probePods = `apiVersion: v1
kind: Pod
metadata: {name: %[1]s-server, namespace: kube-system, labels: {app: %[1]s}}
spec:
  containers:
    - {name: probe, image: %[2]s, args: [serve], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s-client, namespace: kube-system}
spec:
  containers:
    - name: probe
      image: %[2]s
      args: [serve]
      securityContext: {runAsUser: 0}
      volumeMounts: [{name: etc, mountPath: /host/etc}]
  volumes: [{name: etc, hostPath: {path: /etc}}]
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s, namespace: kube-system}
spec: {selector: {app: %[1]s}, ports: [{port: 80, targetPort: 8080}]}
`

// addProbe gives the node an image with the program.
func addProbe(t *testing.T, c *cluster.Cluster, image string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "probe")
	if err := cluster.BuildProgram(t.Context(), program, probeSource); err != nil {
		t.Fatal(err)
	}
	err := c.AddImage(image, cluster.Image{Entrypoint: []string{"/probe"}, User: "65532",
		Files: []cluster.File{{Name: "probe", Mode: 0o755, Source: program}}})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPods checks that pods run, that the API server reaches them in each way, and that they reach Services and see the
// node's /etc.
func TestPods(t *testing.T) {
	c := start(t)
	addProbe(t, c, "registry.test/probe:1")
	c.Apply(t, fmt.Sprintf(probePods, "pods", "registry.test/probe:1"))
	t.Cleanup(func() {
		_, _ = c.TryKubectl("--namespace=kube-system", "delete", "--now", "pod/pods-server", "pod/pods-client",
			"service/pods")
	})
	for _, name := range []string{"pods-server", "pods-client"} {
		cluster.Eventually(t, time.Minute, name+" is ready", func() error { return podReady(c, "kube-system", name) })
	}
	const want = "I am pods-server"

	out := c.Kubectl(t, "--namespace=kube-system", "logs", "pods-server")
	if !strings.Contains(out, "serving as pods-server") {
		t.Errorf("logs: %q", out)
	}
	address := c.PortForward(t, "kube-system", "pod/pods-server", 8080)
	resp, err := http.Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != want {
		t.Errorf("port-forward: %q, %v", body, err)
	}
	ip := c.Kubectl(t, "--namespace=kube-system", "get", "service", "pods", "--output=jsonpath={.spec.clusterIP}")
	cluster.Eventually(t, 20*time.Second, "a pod reaches a Service", func() error {
		out, err := c.TryKubectl("--namespace=kube-system", "exec", "pods-client", "--", "/probe", "get", "http://"+ip)
		if err != nil || out != want {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
	// Through the Service to itself: the bridge has to send packets back to the port they came from.
	cluster.Eventually(t, 20*time.Second, "a pod reaches itself through a Service", func() error {
		out, err := c.TryKubectl("--namespace=kube-system", "exec", "pods-server", "--", "/probe", "get", "http://"+ip)
		if err != nil || out != want {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})

	file := "/etc/containerd/certs.d/written-by-a-pod"
	c.Kubectl(t, "--namespace=kube-system", "exec", "pods-client", "--", "/probe", "write", "/host"+file, want)
	t.Cleanup(func() { _ = os.Remove(file) })
	if b, err := os.ReadFile(file); err != nil || string(b) != want {
		t.Errorf("%s on the node: %q, %v", file, b, err)
	}
	if out := c.Events(t, "kube-system"); !strings.Contains(out, "pods-server") {
		t.Errorf("no Events about the pods: %s", out)
	}
}

// TestStopComponent checks that pods keep running while a component is stopped, and that it can be started again.
func TestStopComponent(t *testing.T) {
	c := start(t)
	install(t, c)
	for _, name := range []string{"kubelet", "containerd", "kube-proxy", "kube-apiserver"} {
		if err := c.StopComponent(name); err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Timeout: 5 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}}
		if resp, err := client.Get("http://" + cluster.NodeIP + ":31000/"); err != nil {
			t.Errorf("without %s: %v", name, err)
		} else {
			resp.Body.Close()
		}
		if err := c.StartComponent(name); err != nil {
			t.Fatal(err)
		}
	}
	cluster.Eventually(t, time.Minute, "the registry answers", func() error { return registryReady(c) })
}
