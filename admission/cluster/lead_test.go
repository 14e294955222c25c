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
	// the manifest grants no right
	r.PrependReactor("*", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "pods"}, "trow",
			errors.New(a.GetVerb()))
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

// TestAReplicaDeniesWhatTheLeaderDenies, also while nobody leads and another client has taken the teeth out of the
// configuration. It warns where the leader warns.
func TestAReplicaDeniesWhatTheLeaderDenies(t *testing.T) {
	for what, tt := range map[string]struct {
		mode   cluster.Mode
		denies bool
	}{"enforce": {cluster.Enforce, true}, "audit": {cluster.Audit, false}} {
		t.Run(what, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newReplicas(t, "")
				stop := r.run(t, "trow-a", func(o *cluster.Options) { o.Webhook = string(tt.mode) })
				time.Sleep(10 * time.Second)
				synctest.Wait()
				stop()
				lease, err := r.CoordinationV1().Leases(ns).Get(t.Context(), "trow", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				lease.Spec.HolderIdentity = ptr.To("trow-gone")
				if _, err := r.CoordinationV1().Leases(ns).
					Update(t.Context(), lease, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
				defer r.run(t, "trow-b", nil)()
				time.Sleep(time.Second)
				v := r.configuration(t)
				v.Webhooks[0].FailurePolicy = ptr.To(admissionregistrationv1.Ignore)
				if _, err := r.configurations().Update(t.Context(), v, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second)
				synctest.Wait()
				if got := r.holder(t); got != "trow-gone" || r.all["trow-b"].Denies() != tt.denies {
					t.Errorf("%s leads; the other one denies: %v, want %v", got, !tt.denies, tt.denies)
				}
			})
		})
	}
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
		for _, value := range []string{"", ".", "x", "x.", "x." + strings.Repeat("0", 64),
			strings.Repeat("x", 1<<20) + ".y"} {
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
		"no key": func(o *cluster.Options) {
			o.Key = func(string) ([]byte, error) { return nil, errors.New("none") }
		},
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
