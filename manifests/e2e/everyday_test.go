package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// dnsPod is CoreDNS, which answers for the Services of this cluster as the DNS of others does.
const dnsPod = `apiVersion: v1
kind: ServiceAccount
metadata: {name: dns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: dns}
rules:
  - {apiGroups: [""], resources: [namespaces, services], verbs: [list, watch]}
  - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: dns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: dns}
subjects: [{kind: ServiceAccount, name: dns, namespace: kube-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: dns, namespace: kube-system}
data: {Corefile: ".:53 {\n  ready\n  errors\n  kubernetes cluster.local\n}\n"}
---
apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system}
spec:
  serviceAccountName: dns
  containers:
    - name: dns
      image: registry.test/dns:1
      args: [-conf, /etc/dns/Corefile]
      securityContext: {runAsUser: 0}
      readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}
      volumeMounts: [{name: corefile, mountPath: /etc/dns}]
  volumes: [{name: corefile, configMap: {name: dns}}]
`

// insidePod is a pod with the program of [probeSource] and the CA of the registry. The namespace is exempt from the
// webhook. Its dnsConfig is what the kubelet of a cluster with DNS gives to each pod.
const insidePod = `apiVersion: v1
kind: Pod
metadata: {name: inside, namespace: kube-public}
spec:
  dnsPolicy: None
  dnsConfig:
    nameservers: [%q]
    searches: [kube-public.svc.cluster.local, svc.cluster.local, cluster.local]
    options: [{name: ndots, value: "5"}]
  containers:
    - name: probe
      image: registry.test/inside:1
      args: [serve]
      env: [{name: SSL_CERT_FILE, value: /ca/ca.crt}]
      volumeMounts: [{name: ca, mountPath: /ca}]
  volumes: [{name: ca, configMap: {name: trow-ca}}]
`

// startDNS starts a pod with CoreDNS, and returns its address.
func startDNS(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "dns")
	if err := cluster.BuildModule(t.Context(), program, "dns"); err != nil {
		t.Fatal(err)
	}
	err := c.AddImage("registry.test/dns:1", cluster.Image{Entrypoint: []string{"/dns"}, User: "0",
		Files: []cluster.File{{Name: "dns", Mode: 0o755, Source: program}}})
	if err != nil {
		t.Fatal(err)
	}
	c.Apply(t, dnsPod)
	t.Cleanup(func() {
		_, _ = c.TryKubectl("--namespace=kube-system", "delete", "--now", "pod/dns", "configmap/dns",
			"serviceaccount/dns")
		_, _ = c.TryKubectl("delete", "clusterrole/dns", "clusterrolebinding/dns")
	})
	cluster.Eventually(t, time.Minute, "the DNS is ready", func() error { return podReady(c, "kube-system", "dns") })
	return c.Kubectl(t, "--namespace=kube-system", "get", "pod", "dns", "--output=jsonpath={.status.podIP}")
}

// TestTheAddressInsideAPod checks that a program in a pod reaches the registry by the DNS of the cluster, at the
// address that nodes and workstations use, and at that of ConfigMap local-registry-hosting, with the CA of ConfigMap
// trow-ca.
func TestTheAddressInsideAPod(t *testing.T) {
	c := start(t)
	armed(t, c)
	push(t, c, "inside", "1", app(t, "inside", 0))
	addProbe(t, c, "registry.test/inside:1")
	c.Apply(t, fmt.Sprintf(insidePod, startDNS(t, c)))
	t.Cleanup(func() { c.Kubectl(t, "--namespace=kube-public", "delete", "pod", "inside", "--now") })
	cluster.Eventually(t, time.Minute, "the pod is ready", func() error { return podReady(c, "kube-public", "inside") })
	for _, address := range []string{host, "trow.kube-public.svc:443"} {
		cluster.Eventually(t, 20*time.Second, address+" is the registry", func() error {
			out, err := c.TryKubectl("--namespace=kube-public", "exec", "inside", "--", "/probe", "get",
				"https://"+address+"/v2/inside/tags/list")
			if err != nil || !strings.Contains(out, `"tags":["1"]`) {
				return fmt.Errorf("%q, %v", out, err)
			}
			return nil
		})
	}
}

// TestPushesThroughAPortForward checks that docker pushes many images through one kubectl port-forward, without a CA:
// a connection that ends with a reset would end the port-forward.
func TestPushesThroughAPortForward(t *testing.T) {
	c := start(t)
	armed(t, c)
	w := startDocker(t)
	_, port, err := net.SplitHostPort(c.PortForward(t, "kube-public", "svc/trow", 443))
	if err != nil {
		t.Fatal(err)
	}
	const pushes = 20
	pushed := 0
	for i := range pushes {
		archive := filepath.Join(t.TempDir(), "files.tar")
		var b bytes.Buffer
		files := tar.NewWriter(&b)
		content := bytes.Repeat([]byte{byte(i)}, 1<<20)
		if err := files.WriteHeader(&tar.Header{Name: fmt.Sprintf("f%d", i), Mode: 0o644, Size: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		if _, err := files.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := files.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(archive, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("127.0.0.1:%s/forwarded:%d", port, i)
		if _, err := w.Docker(t.Context(), "import", archive, name); err != nil {
			t.Fatal(err)
		}
		if out, err := w.Docker(t.Context(), "push", name); err != nil {
			t.Errorf("push %d: %v: %s", i, err, out)
			continue
		}
		pushed++
		image := fmt.Sprintf("%s/forwarded:%d", host, i)
		if out, err := c.TryKubectl("run", "x", "--image="+image, "--dry-run=server"); err != nil {
			t.Errorf("push %d: the image may not run: %s", i, out)
		}
	}
	t.Logf("%d of %d pushes", pushed, pushes)
}

// TestRemoveInThePod checks that the administrator of the cluster removes an image with the command in the pod,
// without a login, and that no pod can start with it any more.
func TestRemoveInThePod(t *testing.T) {
	c := start(t)
	armed(t, c)
	push(t, c, "removed", "1", app(t, "removed", 0))
	push(t, c, "removed", "2", app(t, "stays", 0))
	const image = host + "/removed:1"
	if out, err := c.TryKubectl("run", "x", "--image="+image, "--dry-run=server"); err != nil {
		t.Fatalf("before: %s", out)
	}
	rm := func(args ...string) (string, error) {
		return c.TryKubectl(append([]string{"--namespace=kube-public", "exec", "trow-0", "--", "/trow", "rm"},
			args...)...)
	}
	out, err := rm("removed:1", "--manifest", "--dry-run")
	if err != nil || !strings.Contains(out, "remove  tag       1") {
		t.Errorf("trow rm --dry-run: %v: %s", err, out)
	}
	if out, err = rm("removed:1", "--manifest", "--yes"); err != nil {
		t.Fatalf("trow rm: %v: %s", err, out)
	}
	t.Logf("trow rm: %s", out)
	out, err = c.TryKubectl("run", "x", "--image="+image, "--dry-run=server")
	if err == nil || !strings.Contains(out, "Local image "+image+notIn) {
		t.Errorf("a removed image: %s", out)
	}
	if out, err = c.TryKubectl("run", "x", "--image="+host+"/removed:2", "--dry-run=server"); err != nil {
		t.Errorf("the other image: %s", out)
	}
	if out, err = rm("removed:1", "--yes"); err == nil {
		t.Errorf("removed twice: %s", out)
	}
}
