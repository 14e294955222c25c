package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"trow/admission/cluster"
)

// replicas are a world with a Deployment in place of the pod, in which any number of servers run.
type replicas struct {
	*world

	all    map[string]*cluster.Cluster
	writes []string // the namespaces that each write of the configuration exempts, under world.mu
	ended  sync.WaitGroup
}

func newReplicas(t *testing.T, holder string, more ...runtime.Object) *replicas {
	t.Helper()
	r := &replicas{all: map[string]*cluster.Cluster{}}
	r.world = newWorld(t, cluster.Enforce, append(more,
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow"},
			Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder}},
		&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow", UID: "deployment-uid"},
			Status: appsv1.DeploymentStatus{ReadyReplicas: 1}})...)
	r.PrependReactor("*", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) { // the manifest grants no right
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "trow", errors.New(a.GetVerb()))
	})
	r.PrependReactor("update", "validatingwebhookconfigurations",
		func(a clienttesting.Action) (bool, runtime.Object, error) {
			v := a.(clienttesting.UpdateAction).GetObject().(*admissionregistrationv1.ValidatingWebhookConfiguration)
			r.set(func() { r.writes = append(r.writes, exempt(v)) })
			return false, nil, nil
		})
	r.options.Poll, r.options.Deployment = 5*time.Second, "trow"
	r.options.Refresh = func(context.Context) error { return nil }
	r.options.Key = func(purpose string) ([]byte, error) { return []byte("key of all for " + purpose), nil }
	t.Cleanup(r.ended.Wait)
	return r
}

// exempt returns the namespaces that a configuration exempts.
func exempt(v *admissionregistrationv1.ValidatingWebhookConfiguration) string {
	if len(v.Webhooks) == 0 {
		return "none"
	}
	return strings.Join(v.Webhooks[0].NamespaceSelector.MatchExpressions[0].Values, " ")
}

// run starts a replica with settings of its own, and returns what ends it.
func (r *replicas) run(t *testing.T, pod string, change func(*cluster.Options)) (stop func()) {
	t.Helper()
	o := r.options
	o.Pod, o.ExemptNamespaces = pod, []string{"of-" + pod}
	if change != nil {
		change(&o)
	}
	c := cluster.New(o)
	r.all[pod] = c
	if r.c == nil { // the one that gets the reviews; it is not changed while others run
		r.c = c
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	r.ended.Go(func() {
		defer close(done)
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	return func() { cancel(); <-done }
}

func (r *replicas) holder(t *testing.T) string {
	t.Helper()
	lease, err := r.CoordinationV1().Leases(ns).Get(t.Context(), "trow", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ptr.Deref(lease.Spec.HolderIdentity, "")
}

// TestOneOfTheReplicasKeepsTheWebhookInOrder, also with different settings, as during a rollout: the others do not
// write it in turn, and know the mode. When it ends, another one takes over at its next look.
func TestOneOfTheReplicasKeepsTheWebhookInOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newReplicas(t, "")
		stop := map[string]func(){}
		for _, pod := range []string{"trow-a", "trow-b", "trow-c"} {
			stop[pod] = r.run(t, pod, nil)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		leader := r.holder(t)
		r.set(func() {
			if len(r.writes) == 0 || len(r.writes) > 3 || slices.ContainsFunc(r.writes, func(w string) bool {
				return !strings.Contains(w, "of-"+leader)
			}) {
				t.Errorf("%s leads, and the writes are %q", leader, r.writes)
			}
			r.writes = nil
		})
		for pod, c := range r.all {
			line := "replica " + leader + " keeps it in order"
			if pod == leader {
				line = "this replica keeps it in order"
			}
			if got := allMetrics(t, c); strings.Contains(got, "trow_webhook_proven") != (pod == leader) ||
				!strings.Contains(got, "trow_webhook_enforcing 1") {
				t.Errorf("%s: %s", pod, got)
			}
			if ok, text := c.Check(); !ok || !c.Denies() || !strings.Contains(text, line) {
				t.Errorf("%s: %v %q", pod, ok, text)
			}
		}
		for pod, c := range r.all {
			if published := c.Published([]byte("CA 1")); published != (pod == leader) {
				t.Errorf("%s lets a new CA sign: %v", pod, published)
			}
		}
		stop[leader]()
		time.Sleep(6 * time.Second)
		synctest.Wait()
		next := r.holder(t)
		r.set(func() {
			if next == leader || next == "" || len(r.writes) != 1 || !strings.Contains(r.writes[0], "of-"+next) {
				t.Errorf("after %s %q leads, and the writes are %q", leader, next, r.writes)
			}
		})
		for _, s := range stop {
			s()
		}
		if got := r.holder(t); got != "" {
			t.Errorf("in the end %q holds the Lease", got)
		}
	})
}

// TestALeaderThatIsGoneIsReplaced, and not before its Lease has ended.
func TestALeaderThatIsGoneIsReplaced(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newReplicas(t, "trow-gone")
		defer r.run(t, "trow-b", nil)()
		time.Sleep(14 * time.Second)
		synctest.Wait()
		if got := r.holder(t); got != "trow-gone" || r.armed(t) {
			t.Fatalf("%s leads, armed %v", got, r.armed(t))
		}
		time.Sleep(8 * time.Second)
		synctest.Wait()
		if got := r.holder(t); got != "trow-b" || !r.armed(t) {
			t.Errorf("later %s leads, armed %v", got, r.armed(t))
		}
	})
}

// TestALeaderThatLosesItsLeaseStops: another process has taken it, as after a pause of this one.
func TestALeaderThatLosesItsLeaseStops(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newReplicas(t, "")
		defer r.run(t, "trow-a", nil)()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		for renewed := range 4 { // the other one renews it
			lease, err := r.CoordinationV1().Leases(ns).Get(t.Context(), "trow", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			lease.Spec.HolderIdentity, lease.Spec.LeaseTransitions = ptr.To("trow-b"), ptr.To(int32(renewed))
			if _, err := r.CoordinationV1().Leases(ns).Update(t.Context(), lease, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
		}
		v := r.configuration(t)
		v.Webhooks[0].TimeoutSeconds = ptr.To[int32](1)
		if _, err := r.configurations().Update(t.Context(), v, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if got := r.holder(t); got != "trow-b" || *r.configuration(t).Webhooks[0].TimeoutSeconds != 1 ||
			r.all["trow-a"].Published([]byte("CA 1")) || !r.all["trow-a"].Denies() {
			t.Errorf("%s leads, and the other one has put the configuration back, or forgotten its mode", got)
		}
	})
}

// TestTheLeaseIsDeleted by hand: the replicas cannot create it, so readiness, a metric and an Event say what to do, and
// once it is there again, one of them leads.
func TestTheLeaseIsDeleted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newReplicas(t, "")
		for _, pod := range []string{"trow-a", "trow-b"} {
			defer r.run(t, pod, nil)()
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		leases := coordinationv1.SchemeGroupVersion.WithResource("leases")
		if err := r.Tracker().Delete(leases, ns, "trow"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		for pod, c := range r.all {
			ok, line := c.Check()
			if ok || !strings.Contains(line, "risk: no replica keeps the webhook in order") ||
				c.Published([]byte("CA 1")) || strings.Contains(line, "this replica") || c.State().Mode != cluster.Enforce ||
				!strings.Contains(allMetrics(t, c), "lease 1") {
				t.Errorf("%s: %v %s, %+v", pod, ok, line, c.State())
			}
		}
		events := r.events(t)
		if len(events) != 2 || events[0].Reason != "LeaseMissing" || events[0].InvolvedObject.Kind != "Deployment" {
			t.Errorf("Events %+v", events)
		}
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow"}}
		if _, err := r.CoordinationV1().Leases(ns).Create(t.Context(), lease, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		for pod, c := range r.all {
			if ok, line := c.Check(); !ok || strings.Contains(line, "risk") || r.holder(t) == "" {
				t.Errorf("%s: %v %s", pod, ok, line)
			}
		}
	})
}

// TestReplicasWithoutALease from the beginning say why the webhook is off.
func TestReplicasWithoutALease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newReplicas(t, "")
		if err := r.Tracker().Delete(coordinationv1.SchemeGroupVersion.WithResource("leases"), ns, "trow"); err != nil {
			t.Fatal(err)
		}
		defer r.run(t, "trow-a", nil)()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		ok, line := r.c.Check()
		if ok || r.armed(t) || !strings.Contains(line, "risk: no replica keeps the webhook in order") {
			t.Errorf("%v %s", ok, line)
		}
	})
}

// TestAReplicaAnswersTheProbesOfTheOthers: the Service leads the API server to any of them.
func TestAReplicaAnswersTheProbesOfTheOthers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newReplicas(t, "trow-a")
		r.c = cluster.New(r.options) // it has sent no probe
		defer r.run(t, "trow-a", nil)()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if r.policy(t) != admissionregistrationv1.Fail {
			_, line := r.all["trow-a"].Check()
			t.Fatalf("the policy is %s: %s", r.policy(t), line)
		}
		for _, value := range []string{"", ".", "x", "x.", "x." + strings.Repeat("0", 64), strings.Repeat("x", 1<<20) + ".y"} {
			if r.c.AnswerProbe(value) != "" {
				t.Errorf("it denies %.40q", value)
			}
		}
	})
}

// TestReplicasWithOtherKeysAreNotBelieved, nor are signatures without replicas.
func TestReplicasWithOtherKeysAreNotBelieved(t *testing.T) {
	for what, change := range map[string]func(*cluster.Options){
		"another key": func(o *cluster.Options) {
			o.Key = func(string) ([]byte, error) { return []byte("another"), nil }
		},
		"no key":      func(o *cluster.Options) { o.Key = func(string) ([]byte, error) { return nil, errors.New("none") } },
		"no replicas": func(o *cluster.Options) { o.Deployment = "" },
	} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newReplicas(t, "trow-a")
				o := r.options
				change(&o)
				r.c = cluster.New(o)
				defer r.run(t, "trow-a", nil)()
				time.Sleep(30 * time.Second)
				synctest.Wait()
				if r.policy(t) != admissionregistrationv1.Ignore {
					t.Errorf("the policy is %s", r.policy(t))
				}
			})
		})
	}
}

// TestAnOldBundleDoesNotReplaceANewOne: a replica that was cut off reads the Secret before it writes.
func TestAnOldBundleDoesNotReplaceANewOne(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newReplicas(t, "trow-a")
		r.ca = "CA 2"
		stop := r.run(t, "trow-a", nil)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		stop()
		r.set(func() { r.writes = nil })
		read := false // whether the other one has read the Secret
		own := func() []byte {
			r.mu.Lock()
			defer r.mu.Unlock()
			return []byte(map[bool]string{false: "CA 1", true: "CA 2"}[read])
		}
		var seen []string
		r.PrependReactor("update", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
			if m := a.(clienttesting.UpdateActionImpl); len(m.UpdateOptions.DryRun) == 0 {
				seen = append(seen, fmt.Sprint(m.GetObject().(*corev1.ConfigMap).Data))
			}
			return false, nil, nil
		})
		defer r.run(t, "trow-b", func(o *cluster.Options) {
			o.CA = own
			o.Refresh = func(context.Context) error { r.set(func() { read = true }); return nil }
		})()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if r.holder(t) != "trow-b" || len(seen) != 0 {
			t.Errorf("%s leads, and has written %q", r.holder(t), seen)
		}
		if got := string(r.configuration(t).Webhooks[0].ClientConfig.CABundle); got != "CA 2" {
			t.Errorf("the webhook trusts %s", got)
		}
	})
}

// TestTheWebhookIsArmedOnceAReplicaIsReady, whichever it is, and Events are about the Deployment.
func TestTheWebhookIsArmedOnceAReplicaIsReady(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newReplicas(t, "")
		resource := appsv1.SchemeGroupVersion.WithResource("deployments")
		ready := func(n int32) {
			t.Helper()
			d, err := r.AppsV1().Deployments(ns).Get(t.Context(), "trow", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			d.Status.ReadyReplicas = n
			if err := r.Tracker().Update(resource, d, ns); err != nil {
				t.Fatal(err)
			}
		}
		ready(0)
		r.set(func() { r.cut = true })
		defer r.run(t, "trow-a", nil)()
		time.Sleep(time.Minute)
		synctest.Wait()
		if r.armed(t) {
			t.Error("it is armed although no replica is ready")
		}
		ready(1)
		time.Sleep(time.Minute)
		synctest.Wait()
		events := r.events(t)
		if !r.armed(t) || len(events) != 1 || events[0].InvolvedObject.Kind != "Deployment" ||
			events[0].InvolvedObject.UID != "deployment-uid" || events[0].ReportingInstance != "trow-a" {
			t.Errorf("armed %v, Events %+v", r.armed(t), events)
		}
	})
}

// TestWhatTheEnginesNeedCanStart without the registry, which waits for them: the volumes of the manifest's etcd, what
// must approve its pods, and services of the cluster.
func TestWhatTheEnginesNeedCanStart(t *testing.T) {
	ours := []string{"trow-etcd-0.trow-etcd." + ns + ".svc", "trow-etcd-1.trow-etcd." + ns + ".svc", "s3.example.org"}
	driver := csi("longhorn-system", "--kubelet-registration-path=/var/lib/kubelet/plugins/disk.csi.test/csi.sock")
	forEtcd := gate("kyverno", func(w *validating) {
		w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app.kubernetes.io/component": "etcd"}}
	})
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "data-trow-etcd-1"},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}}
	both := []runtime.Object{driver, claim}
	for name, tt := range map[string]struct {
		engines   []string
		objects   []runtime.Object
		exempt    []string
		forbidden bool   // to read the claims
		why       string // empty: it enforces
		risk      string
	}{
		"nothing needs anything":          {engines: ours},
		"the driver of a member's volume": {engines: ours, objects: both, why: "longhorn-system"},
		"an exempt driver":                {engines: ours, objects: both, exempt: []string{"longhorn-system"}},
		"a driver of others":              {engines: ours, objects: both[:1]},
		"the driver, with an etcd elsewhere": {engines: []string{"trow-etcd-1.trow-etcd.db.svc"}, objects: both,
			exempt: []string{"db"}},
		"a webhook for members": {engines: ours, objects: []runtime.Object{forEtcd},
			why: "exempt-namespaces: kyverno"},
		"a webhook for members that are not": {engines: []string{"etcd.example.org"},
			objects: []runtime.Object{forEtcd}},
		"an etcd in another namespace": {engines: []string{"e-0.e.db.svc.cluster.local"},
			why: "needs e-0.e.db.svc.cluster.local in order to start, whose pods could not start while the registry " +
				"is down; add to the setting exempt-namespaces: db"},
		"an etcd in an exempt namespace": {engines: []string{"etcd.db.svc"}, exempt: []string{"db"}},
		"an image of now, a manifest of before": {engines: ours, objects: both, forbidden: true,
			risk: "may not list the volumes of trow-etcd,"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newReplicas(t, "", tt.objects...)
				if tt.forbidden {
					r.PrependReactor("get", "persistentvolumeclaims",
						func(clienttesting.Action) (bool, runtime.Object, error) {
							return true, nil, apierrors.NewForbidden(schema.GroupResource{}, "data", errors.New("no"))
						})
				}
				defer r.run(t, "trow-a", func(o *cluster.Options) {
					o.Engines, o.ExemptNamespaces = tt.engines, tt.exempt
				})()
				time.Sleep(30 * time.Second)
				synctest.Wait()
				state := r.all["trow-a"].State()
				_, line := r.all["trow-a"].Check()
				if state.Mode != map[bool]cluster.Mode{true: cluster.Enforce, false: cluster.Audit}[tt.why == ""] ||
					!strings.Contains(state.Why, tt.why) || !strings.Contains(line, tt.risk) ||
					tt.risk == "" && strings.Contains(line, "risk:") {
					t.Errorf("%+v: %s", state, line)
				}
			})
		})
	}
}
