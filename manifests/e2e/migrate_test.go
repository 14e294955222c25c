package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// engineTool is a program that a test of replicas runs beside the cluster. bash .ci/run engines and s3 build it in the
// same place.
type engineTool struct {
	name, version string
	build         func(path string) *exec.Cmd
}

// engineTools returns the etcd that Trow's tests run against, and an S3 service.
func engineTools() (etcd, s3 engineTool, err error) {
	const module, versitygw = "../../.ci/engines/etcd", "v1.8.0"
	text, err := os.ReadFile(module + "/go.mod")
	found := regexp.MustCompile(`go\.etcd\.io/etcd/server/v3 (v\S+)`).FindSubmatch(text)
	if err == nil && found == nil {
		err = errors.New(module + "/go.mod does not have etcd")
	}
	if err != nil {
		return engineTool{}, engineTool{}, err
	}
	etcd = engineTool{"etcd", string(found[1]), func(path string) *exec.Cmd {
		cmd := exec.Command("go", "build", "-trimpath", "-o", path, "go.etcd.io/etcd/server/v3")
		cmd.Dir, cmd.Env = module, append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
		return cmd
	}}
	s3 = engineTool{"versitygw", versitygw, func(path string) *exec.Cmd {
		cmd := exec.Command("go", "install", "github.com/versity/versitygw/cmd/versitygw@"+versitygw)
		cmd.Env = append(os.Environ(), "GOBIN="+filepath.Dir(path))
		return cmd
	}}
	return etcd, s3, nil
}

func (p engineTool) path() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "trow-ci/bin", runtime.Version(), p.name+"@"+p.version, p.name), err
}

// prepareEngineTools builds the tools, unless they exist.
func prepareEngineTools(context.Context) error {
	etcd, s3, err := engineTools()
	for _, p := range []engineTool{etcd, s3} {
		if err != nil {
			return err
		}
		var path string
		if path, err = p.path(); err != nil {
			return err
		}
		if _, e := os.Stat(path); e == nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "e2e: building %s %s\n", p.name, p.version)
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			cmd := p.build(path)
			cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
			err = cmd.Run()
		}
	}
	return err
}

// runBeside runs a program until the test ends.
func runBeside(t *testing.T, name string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if b, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s: %.4000s", name, b)
		}
	})
}

// startEngines starts an etcd and an S3 service beside the cluster, and returns the options of trow manifest for
// replicas.
func startEngines(t *testing.T, c *cluster.Cluster) []string {
	t.Helper()
	const etcd, peer, s3 = "http://" + cluster.NodeIP + ":22379", "http://127.0.0.1:22380", cluster.NodeIP + ":22390"
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/s3/images", 0o755); err != nil {
		t.Fatal(err)
	}
	etcdTool, s3Tool, err := engineTools()
	etcdPath, etcdErr := etcdTool.path()
	s3Path, s3Err := s3Tool.path()
	if err := errors.Join(err, etcdErr, s3Err); err != nil {
		t.Fatal(err)
	}
	runBeside(t, etcdPath, "--name=m", "--data-dir="+dir+"/etcd", "--log-level=error",
		"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd, "--listen-peer-urls="+peer,
		"--initial-advertise-peer-urls="+peer, "--initial-cluster=m="+peer, "--auto-compaction-retention=1h")
	runBeside(t, s3Path, "--access=e2e", "--secret=e2e-secret", "--port="+s3, "--quiet", "posix",
		dir+"/s3")
	c.Apply(t, "apiVersion: v1\nkind: Secret\nmetadata: {name: s3, namespace: kube-public}\n"+
		"stringData: {AWS_ACCESS_KEY_ID: e2e, AWS_SECRET_ACCESS_KEY: e2e-secret}\n")
	t.Cleanup(func() { _, _ = c.TryKubectl("--namespace=kube-public", "delete", "secret", "s3") })
	return []string{"--replicas=3", "--etcd=etcd" + strings.TrimPrefix(etcd, "http") + "/trow", "--s3-secret=s3",
		"--s3=s3://images/e2e?endpoint=http://" + s3 + "&region=us-east-1&path-style=true"}
}

// holder returns the holder of Lease trow.
func holder(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	return c.Kubectl(t, "--namespace=kube-public", "get", "lease", "trow", "--output=jsonpath={.spec.holderIdentity}")
}

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
	options := startEngines(t, c)
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

	first := holder(t, c)
	if !slices.Contains(endpoints(t, c), first) {
		t.Errorf("%s leads, and is none of %v", first, endpoints(t, c))
	}
	c.Kubectl(t, "--namespace=kube-public", "delete", "pod", first, "--grace-period=0", "--force")
	cluster.Eventually(t, time.Minute, "another replica takes over", func() error {
		if got := holder(t, c); got == first || got == "" {
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
