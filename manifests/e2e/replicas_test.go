package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
	"trow/manifests/e2e/engines"
)

// TestTheAPIServerTakesTheManifestsOfReplicas as they are: each object passes its validation and its admission plugins,
// also in a namespace whose pods must be restricted. Nothing is created.
func TestTheAPIServerTakesTheManifestsOfReplicas(t *testing.T) {
	c := start(t)
	const bucket = "--s3=s3://images/trow?endpoint=https://s3.example.org&region=eu-west-1"
	for name, flags := range map[string][]string{
		"with an etcd": {"--replicas=3", "--max-replicas=9", "--with-etcd", bucket, "--s3-secret=s3", "--login"},
		"an etcd of yours": {"--replicas=3", "--etcd=etcds://etcd.example.org:2379/trow",
			"--etcd-tls-secret=e", bucket},
		"S3 alone":     {bucket, "--s3-ca-secret=ca"},
		"certificates": {"--etcd-secrets"},
	} {
		file := filepath.Join(t.TempDir(), "trow.yaml")
		text := trow(t, c, append([]string{"manifest"}, flags...)...)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out := c.Kubectl(t, "apply", "--dry-run=server", "--validate=strict", "--filename", file)
		t.Logf("%s:\n%s", name, out)
	}
}

// replica is a pod of the registry.
type replica struct {
	name, uid, ip string
	ready, ending bool
	restarts      int
}

// replicas returns the pods of the registry.
func replicas(c *cluster.Cluster) ([]replica, error) {
	var pods struct {
		Items []struct {
			Metadata struct{ Name, UID, DeletionTimestamp string }
			Status   struct {
				PodIP             string
				Conditions        []struct{ Type, Status string }
				ContainerStatuses []struct{ RestartCount int }
			}
		}
	}
	err := c.Get(context.Background(), "/api/v1/namespaces/kube-public/pods?labelSelector="+
		"app.kubernetes.io/component=replica", &pods)
	var all []replica
	for _, p := range pods.Items {
		r := replica{name: p.Metadata.Name, uid: p.Metadata.UID, ip: p.Status.PodIP,
			ending: p.Metadata.DeletionTimestamp != ""}
		for _, cond := range p.Status.Conditions {
			r.ready = r.ready || cond.Type == "Ready" && cond.Status == "True"
		}
		for _, s := range p.Status.ContainerStatuses {
			r.restarts += s.RestartCount
		}
		all = append(all, r)
	}
	return all, err
}

// standing waits until there are three replicas that are ready, beside those that end, and returns them.
func standing(t *testing.T, c *cluster.Cluster) (all []replica) {
	t.Helper()
	cluster.Eventually(t, 3*time.Minute, "three replicas are ready", func() (err error) {
		if all, err = replicas(c); err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(r replica) bool { return r.ending })
		if len(all) != 3 || slices.ContainsFunc(all, func(r replica) bool { return !r.ready }) {
			return fmt.Errorf("%+v", all)
		}
		return nil
	})
	return all
}

// settled waits until there are three replicas that are ready, and no other, and returns them.
func settled(t *testing.T, c *cluster.Cluster) []replica {
	t.Helper()
	cluster.Eventually(t, time.Minute, "no replica ends", func() error {
		all, err := replicas(c)
		if err != nil || slices.ContainsFunc(all, func(r replica) bool { return r.ending }) {
			return fmt.Errorf("%+v, %w", all, err)
		}
		return nil
	})
	return standing(t, c)
}

// endpoint reports whether the Service leads to a pod now.
func endpoint(c *cluster.Cluster, ip string) (bool, error) {
	var list struct {
		Items []struct {
			Endpoints []struct {
				Addresses  []string
				Conditions struct{ Ready *bool }
			}
		}
	}
	err := c.Get(context.Background(), "/apis/discovery.k8s.io/v1/namespaces/kube-public/endpointslices?labelSelector="+
		"kubernetes.io/service-name=trow", &list)
	for _, s := range list.Items {
		for _, e := range s.Endpoints {
			if e.Addresses[0] == ip && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				return true, err
			}
		}
	}
	return false, err
}

// leader returns the name of the replica that keeps the webhook in order.
func leader(c *cluster.Cluster) (string, error) {
	var lease struct {
		Spec struct{ HolderIdentity string }
	}
	err := c.Get(context.Background(), "/apis/coordination.k8s.io/v1/namespaces/kube-public/leases/trow", &lease)
	return lease.Spec.HolderIdentity, err
}

// startEngines starts an etcd and an S3 service beside the cluster, with the Secrets that the pods need, and returns
// the options of trow manifest for three replicas. All is removed when the test ends.
func startEngines(t *testing.T, c *cluster.Cluster) (*engines.Engines, []string) {
	t.Helper()
	ca, cert, key := c.Certificate("engines")
	e, err := engines.Start(t.Context(), engines.Options{Dir: t.TempDir(), Address: cluster.NodeIP, CA: ca, Cert: cert,
		Key: key})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Stop(); err != nil {
			t.Error(err)
		}
	})
	for _, args := range [][]string{
		{"trow-s3", "--from-literal=AWS_ACCESS_KEY_ID=" + engines.AccessKey,
			"--from-literal=AWS_SECRET_ACCESS_KEY=" + engines.SecretKey},
		{"trow-s3-ca", "--from-file=ca.crt=" + ca},
		{"trow-etcd-client", "--from-file=ca.crt=" + ca, "--from-file=tls.crt=" + cert, "--from-file=tls.key=" + key},
	} {
		c.Kubectl(t, append([]string{"--namespace=kube-public", "create", "secret", "generic"}, args...)...)
		t.Cleanup(func() { c.Kubectl(t, "--namespace=kube-public", "delete", "secret", args[0]) })
	}
	return e, []string{"--replicas=3", "--etcd=etcds://" + e.Etcd + "/trow", "--etcd-tls-secret=trow-etcd-client",
		"--s3=s3://" + engines.Bucket + "/trow?endpoint=https://" + e.S3 + "&region=us-east-1&path-style=true",
		"--s3-secret=trow-s3", "--s3-ca-secret=trow-s3-ca"}
}

// startReplicas installs three replicas with the manifest of trow manifest --replicas, in the place of the usual one,
// and waits until the webhook enforces. All is removed when the test ends.
func startReplicas(t *testing.T, c *cluster.Cluster) *engines.Engines {
	t.Helper()
	uninstall(t, c, manifest(t))
	e, options := startEngines(t, c)
	t.Cleanup(func() { uninstall(t, c, rendered(t, c, options...)) })
	begin := time.Now()
	shape(t, c, options...)
	settled(t, c)
	fails(t, c, begin)
	cluster.Eventually(t, time.Minute, "the registry answers at the node port", func() error {
		return registryReady(c)
	})
	for _, r := range settled(t, c) {
		cluster.Eventually(t, 20*time.Second, r.name+" names the leader", func() error { return namesLeader(c, r) })
	}
	return e
}

// namesLeader returns nil when a replica says which one keeps the webhook in order.
func namesLeader(c *cluster.Cluster, r replica) error {
	name, err := leader(c)
	if err != nil {
		return err
	}
	want := "replica " + name + " keeps it in order"
	if r.name == name {
		want = "this replica keeps it in order"
	}
	client, err := registryClient(c)
	if err != nil {
		return err
	}
	resp, err := client.Get("https://" + r.ip + ":8443/readyz?verbose")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || name == "" || !strings.Contains(string(body), want) {
		return fmt.Errorf("want %q: %s, %w", want, body, err)
	}
	return nil
}

// TestReplicas checks that verdicts and pulls go on while replicas are replaced, are lost, or miss their etcd.
func TestReplicas(t *testing.T) {
	c := start(t)
	e := startReplicas(t, c)
	namespace(t, c, "rolled")
	u := newUser(t, c)
	l := startLoad(t, u.kinds())
	time.Sleep(2 * time.Second)
	for _, part := range []struct {
		name string
		f    func(*testing.T, *cluster.Cluster, *engines.Engines, *user, *load)
	}{
		{"rolled", rolled}, {"evicted", evicted}, {"deleted", deleted}, {"killed", killed},
		{"without etcd", withoutEtcd}, {"the leader is lost", leaderLost},
	} {
		t.Run(part.name, func(t *testing.T) { part.f(t, c, e, u, l) })
	}
	if n := u.wrong.Load(); n != 0 {
		t.Errorf("%d pods were allowed that must be denied", n)
	}
}

func rolled(t *testing.T, c *cluster.Cluster, _ *engines.Engines, _ *user, l *load) {
	begin := time.Now()
	c.Kubectl(t, "--namespace=kube-public", "rollout", "restart", "deployment/trow")
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "deployment/trow", "--timeout=180s")
	standing(t, c)
	none(t, "rolled", begin, l.since(t, begin, "rolled"))
}

// evicted asks for all replicas to be evicted at the same time, as drains of their nodes do, until each is.
func evicted(t *testing.T, c *cluster.Cluster, _ *engines.Engines, _ *user, l *load) {
	begin, refused := time.Now(), atomic.Int64{}
	var drains sync.WaitGroup
	for _, r := range standing(t, c) {
		drains.Go(func() {
			for time.Since(begin) < 2*time.Minute {
				status, answer, err := c.Ask(t.Context(), http.MethodPost,
					"/api/v1/namespaces/kube-public/pods/"+r.name+"/eviction",
					fmt.Sprintf(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":%q}}`, r.name))
				switch {
				case err == nil && status == http.StatusCreated:
					t.Logf("%s is evicted after %.1fs", r.name, time.Since(begin).Seconds())
					return
				case err != nil || status != http.StatusTooManyRequests:
					t.Errorf("%s: %d: %s, %v", r.name, status, answer, err)
					return
				}
				refused.Add(1)
				time.Sleep(500 * time.Millisecond)
			}
			t.Errorf("%s is not evicted", r.name)
		})
	}
	drains.Wait()
	standing(t, c)
	if refused.Load() == 0 {
		t.Error("the PodDisruptionBudget has refused nothing")
	}
	none(t, "evicted", begin, l.since(t, begin, "evicted"))
}

// deleted deletes two of the replicas at the same time. All that were replaced until then have ended at its end.
func deleted(t *testing.T, c *cluster.Cluster, _ *engines.Engines, _ *user, l *load) {
	all := standing(t, c)
	begin := time.Now()
	c.Kubectl(t, "--namespace=kube-public", "delete", "pod", all[0].name, all[1].name, "--wait=false")
	settled(t, c)
	none(t, "deleted", begin, l.since(t, begin, "deleted"))
}

// gone waits until the Service does not lead to an address any more.
func gone(t *testing.T, c *cluster.Cluster, ip string) time.Time {
	t.Helper()
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(20 * time.Millisecond) {
		if there, err := endpoint(c, ip); err == nil && !there {
			return time.Now()
		}
	}
	t.Fatalf("%s is an endpoint for a minute", ip)
	return time.Time{}
}

// kill kills the process of a replica.
func kill(t *testing.T, r replica) time.Time {
	t.Helper()
	pid, err := cluster.PodProcess(r.uid, "trow")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	return begin
}

// pending is a Deployment whose pods are created, with an image of this registry, and never run.
const pending = `apiVersion: apps/v1
kind: Deployment
metadata: {name: pending, namespace: rolled}
spec:
  replicas: 20
  selector: {matchLabels: {app: pending}}
  template:
    metadata: {labels: {app: pending}}
    spec: {nodeSelector: {no: node}, containers: [{name: c, image: %q}]}
`

// killed kills two replicas, which the kubelet starts again, one after the other. A controller that creates pods in the
// meantime gets all of them.
func killed(t *testing.T, c *cluster.Cluster, _ *engines.Engines, u *user, l *load) {
	for _, r := range settled(t, c)[:2] {
		begin := kill(t, r)
		c.Apply(t, fmt.Sprintf(pending, u.image+":1"))
		end := gone(t, c, r.ip)
		cluster.Eventually(t, 30*time.Second, "all pods of the Deployment are created", func() error {
			out, err := c.TryKubectl("--namespace=rolled", "get", "deployment", "pending",
				"--output=jsonpath={.status.replicas}")
			if err != nil || out != "20" {
				return fmt.Errorf("%q, %v", out, err)
			}
			return nil
		})
		t.Logf("all pods of the Deployment are created %.1fs after the kill", time.Since(begin).Seconds())
		c.Kubectl(t, "--namespace=rolled", "delete", "deployment", "pending")
		settled(t, c)
		time.Sleep(again) // the second attempts
		bounded(t, "killed", begin, end, l.since(t, begin, "killed"))
	}
}

// settling is how long the API server and kube-proxy, which follow the endpoints and write their rules once a second,
// may lead to an address that is no endpoint any more, on a busy machine.
const settling = 3 * time.Second

// bounded checks that no request has failed that began after the endpoints were updated, and no creation of a pod that
// was tried again once.
func bounded(t *testing.T, what string, begin, end time.Time, failed []attempt) {
	t.Helper()
	last := time.Duration(0)
	for _, a := range failed {
		after := a.begin.Sub(begin)
		t.Logf("%s: %s failed at %.2fs, after %.2fs: %v", what, a.kind, after.Seconds(), a.end.Sub(a.begin).Seconds(),
			a.err)
		if last = max(last, after); a.begin.After(end.Add(settling)) {
			t.Errorf("%s: %s failed %.2fs after the kill: %v", what, a.kind, after.Seconds(), a.err)
		}
		if a.second != nil && strings.HasPrefix(a.kind, "verdict") {
			t.Errorf("%s: %s failed twice: %v; %v", what, a.kind, a.err, a.second)
		}
	}
	t.Logf("%s: the endpoints are updated after %.2fs; the last request that has failed began after %.2fs",
		what, end.Sub(begin).Seconds(), last.Seconds())
}

// withoutEtcd stops etcd for longer than readiness probes may fail, which is 15 s. What is known is served and decided;
// what is not is not allowed.
func withoutEtcd(t *testing.T, c *cluster.Cluster, e *engines.Engines, u *user, l *load) {
	before := settled(t, c)
	begin := time.Now()
	if err := e.SignalEtcd(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := sync.OnceFunc(func() {
		if err := e.SignalEtcd(syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	defer resume()
	for time.Since(begin) < 17*time.Second {
		now, err := replicas(c)
		if err != nil || !slices.Equal(now, before) {
			t.Fatalf("after %.1fs: %+v, %v; before: %+v", time.Since(begin).Seconds(), now, err, before)
		}
		time.Sleep(200 * time.Millisecond)
	}
	var failed []attempt
	for _, a := range l.since(t, begin, "without etcd") {
		if a.kind != unknown {
			failed = append(failed, a)
		} else if !strings.Contains(a.err.Error(), "cannot decide right now") {
			t.Errorf("%s: %v", a.kind, a.err)
		}
	}
	none(t, "without etcd", begin, failed)
	if u.stale.Load() == 0 {
		t.Error("no answer says that it may be stale")
	}
	resume()
	back := time.Now()
	cluster.Eventually(t, 30*time.Second, "what is not known is decided again", func() error {
		return u.kinds()[unknown](t.Context())
	})
	time.Sleep(2 * time.Second)
	failed = slices.DeleteFunc(l.since(t, back, "with etcd again"), func(a attempt) bool { return a.kind == unknown })
	none(t, "with etcd again", back, failed)
}

// failurePolicy returns that of the webhook for pods.
func failurePolicy(c *cluster.Cluster) (string, error) {
	var v struct {
		Webhooks []struct{ FailurePolicy string }
	}
	err := c.Get(context.Background(), "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/trow", &v)
	if err != nil || len(v.Webhooks) == 0 {
		return "", fmt.Errorf("%d webhooks, %w", len(v.Webhooks), err)
	}
	return v.Webhooks[0].FailurePolicy, nil
}

// ignore lets pods start without a review, as another client of the API server might, and returns when it did.
func ignore(t *testing.T, c *cluster.Cluster) time.Time {
	t.Helper()
	c.Kubectl(t, "patch", "validatingwebhookconfiguration", "trow", "--type=json",
		`--patch=[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Ignore"}]`)
	return time.Now()
}

// fails waits until no pod starts without a review.
func fails(t *testing.T, c *cluster.Cluster, begin time.Time) {
	t.Helper()
	cluster.Eventually(t, time.Minute, "the webhook fails closed", func() error {
		if p, err := failurePolicy(c); err != nil || p != "Fail" {
			return fmt.Errorf("failurePolicy %q, %w", p, err)
		}
		return nil
	})
	t.Logf("the webhook fails closed after %.1fs", time.Since(begin).Seconds())
}

// leaderLost kills the replica that keeps the webhook in order, for good. Another one takes over, and the others deny
// in the meantime, whatever becomes of the configuration.
func leaderLost(t *testing.T, c *cluster.Cluster, _ *engines.Engines, _ *user, l *load) {
	var lost replica
	name, err := leader(c)
	for _, r := range settled(t, c) {
		if r.name == name {
			lost = r
		}
	}
	if lost.name == "" {
		t.Fatalf("leader %q, %v", name, err)
	}
	begin := kill(t, lost)
	c.Kubectl(t, "--namespace=kube-public", "delete", "pod", name, "--grace-period=0", "--force")
	end := gone(t, c, lost.ip)
	time.Sleep(settling) // with failurePolicy Ignore, a call that fails would let a pod start
	ignore(t, c)
	cluster.Eventually(t, time.Minute, "another one leads", func() error {
		if now, err := leader(c); err != nil || now == name || now == "" {
			return fmt.Errorf("%q, %w", now, err)
		}
		return nil
	})
	t.Logf("another one leads %.1fs after the kill", time.Since(begin).Seconds())
	fails(t, c, begin)
	settled(t, c)
	bounded(t, "the leader is lost", begin, end, l.since(t, begin, "the leader is lost"))
}
