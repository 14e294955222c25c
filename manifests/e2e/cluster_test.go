package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
	"trow/manifests/e2e/engines"
	"trow/manifests/e2e/workstation"
)

func TestMain(m *testing.M) {
	os.Exit(cluster.Main(m.Run, workstation.Prepare, engines.Prepare))
}

// shared is the cluster of all tests, because starting one takes as long as most tests.
var shared = sync.OnceValues(func() (*cluster.Cluster, error) {
	options := cluster.Options{APIServerArgs: []string{"--feature-gates=ImageVolume=true"}}
	return cluster.Start(context.Background(), options)
})

// start returns the cluster, with Trow if an earlier test has installed it. A failing test logs the state of the
// cluster. The cluster ends with the tests.
func start(t *testing.T) *cluster.Cluster {
	t.Helper()
	c, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	c.ShowOnFailure(t)
	return c
}

// manifest returns the manifest that users apply.
func manifest(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../trow.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// install applies the manifest and waits until the registry is ready. It may be installed already.
func install(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	start := time.Now()
	c.Apply(t, manifest(t))
	t.Logf("applied after %.1fs", time.Since(start).Seconds())
	cluster.Eventually(t, 2*time.Minute, "pod trow-0 is ready", func() error {
		return podReady(c, "kube-public", "trow-0")
	})
	cluster.Eventually(t, time.Minute, "the registry answers at the node port", func() error {
		return registryReady(c)
	})
	t.Logf("from apply to ready: %.1fs", time.Since(start).Seconds())
}

// podReady returns nil when a pod is ready.
func podReady(c *cluster.Cluster, namespace, name string) error {
	out, err := c.TryKubectl("--namespace", namespace, "get", "pod", name,
		`--output=jsonpath={.status.conditions[?(@.type=="Ready")].status} `+
			`{.status.phase} {.status.containerStatuses[*].state}`)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if !strings.HasPrefix(out, "True ") {
		return fmt.Errorf("pod %s/%s is not ready: %s", namespace, name, out)
	}
	return nil
}

// registryClient returns a client that trusts the CA that Trow publishes, and uses a new connection for each request.
func registryClient(c *cluster.Cluster) (*http.Client, error) {
	ca, err := c.TryKubectl("--namespace=kube-public", "get", "configmap", "trow-ca",
		`--output=jsonpath={.data.ca\.crt}`)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, ca)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(ca)) {
		return nil, errors.New("ConfigMap trow-ca: no certificate yet")
	}
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "trow.kube-public"}}}, nil
}

// registryReady returns nil when the registry is ready, and can be reached at the node port.
func registryReady(c *cluster.Cluster) error { return readyAt(c, cluster.NodeIP+":31000") }

// readyAt returns nil when the registry is ready, and can be reached at host:port.
func readyAt(c *cluster.Cluster, address string) error {
	client, err := registryClient(c)
	if err != nil {
		return err
	}
	resp, err := client.Get("https://" + address + "/readyz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), "ok") {
		return fmt.Errorf("/readyz: %s: %s", resp.Status, body)
	}
	return nil
}

// TestApply checks that applying the manifest installs a registry, and that applying it again changes nothing.
func TestApply(t *testing.T) {
	c := start(t)
	install(t, c)
	unchanged(t, c, manifest(t))
}
