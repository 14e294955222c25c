package cluster_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"trow/admission/cluster"
)

// configMaps is the resource that probes update.
var configMaps = schema.GroupResource{Resource: "configmaps"}

// dryRuns makes the clientset answer updates of ConfigMaps that are dry runs as the API server does: it calls the
// webhook if the configuration says so, and returns its denial. The clientset alone would store them.
func (w *world) dryRuns() {
	w.PrependReactor("update", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
		u := a.(clienttesting.UpdateActionImpl)
		if len(u.UpdateOptions.DryRun) == 0 {
			return false, nil, nil
		}
		resource := admissionregistrationv1.SchemeGroupVersion.WithResource("validatingwebhookconfigurations")
		object, err := w.Tracker().Get(resource, "", "trow")
		if err != nil {
			return true, u.GetObject(), nil
		}
		w.mu.Lock()
		cut := w.cut
		w.probed++
		w.mu.Unlock()
		for _, h := range object.(*admissionregistrationv1.ValidatingWebhookConfiguration).Webhooks {
			if h.Name != "probe.trow.io" || cut {
				continue
			}
			if denial := w.c.AnswerProbe(u.GetObject().(*corev1.ConfigMap).Annotations["trow.io/probe"]); denial != "" {
				return true, nil, denied(denial)
			}
		}
		return true, u.GetObject(), nil
	})
}

// denied is the denial of a webhook as the API server passes it on.
func denied(text string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: 403,
		Reason:  metav1.StatusReasonForbidden,
		Message: `admission webhook "probe.trow.io" denied the request: ` + text}}
}

// policy returns the failurePolicy in force.
func (w *world) policy(t *testing.T) admissionregistrationv1.FailurePolicyType {
	t.Helper()
	v := w.configuration(t)
	if v == nil || len(v.Webhooks) == 0 {
		return ""
	}
	return *v.Webhooks[0].FailurePolicy
}

// TestItEnforcesOnceTheAPIServerReachesIt, and not before: with Fail and no way to the webhook no pod would start.
func TestItEnforcesOnceTheAPIServerReachesIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.cut = true
		w.start(t)
		if got := w.logged(t); got != "" || w.policy(t) != admissionregistrationv1.Ignore || w.c.Denies() {
			t.Fatalf("at first: %q, %s, denies %v", got, w.policy(t), w.c.Denies())
		}
		time.Sleep(20 * time.Second)
		if got := w.logged(t); got != "held back" || w.policy(t) != admissionregistrationv1.Ignore {
			t.Errorf("later: %q, %s", got, w.policy(t))
		}
		ok, line := w.c.Check()
		note := w.configuration(t).Annotations["trow.io/held-back"]
		for _, want := range []string{"8443", "private GKE", "EKS", "NetworkPolicy", "NO_PROXY", "no review arrived"} {
			if ok || !strings.Contains(line, want) || !strings.Contains(note, want) {
				t.Errorf("without %q: %v %q, %q", want, ok, line, note)
			}
		}
		events := w.events(t)
		if len(events) != 1 || events[0].Reason != "WebhookUnproven" || len(events[0].Message) > 1024 {
			t.Errorf("Events: %+v", events)
		}
		w.set(func() { w.probed = 0 })
		time.Sleep(10 * time.Minute)
		w.set(func() {
			if w.probed < 9 || w.probed > 15 {
				t.Errorf("%d probes in ten minutes", w.probed)
			}
			w.cut = false
		})
		time.Sleep(time.Minute)
		if got := w.logged(t); got != "armed" || w.policy(t) != admissionregistrationv1.Fail {
			t.Errorf("reached: %q, %s", got, w.policy(t))
		}
		if ok, line := w.c.Check(); !ok || line != "webhook enforce; reached by the API server" {
			t.Errorf("%v %q", ok, line)
		}
		w.set(func() { w.cut, w.probed = true, 0 })
		time.Sleep(time.Hour)
		if got := w.logged(t); got != "" || w.policy(t) != admissionregistrationv1.Fail || w.probed != 0 {
			t.Errorf("cut later: %q, %s, %d probes", got, w.policy(t), w.probed)
		}
	})
}

// TestWhatProves is the API server's answer alone.
func TestWhatProves(t *testing.T) {
	sentence := ""
	for name, answer := range map[string]func(w *world, value string) error{
		"a review that arrives, without an answer": func(w *world, value string) error {
			sentence = w.c.AnswerProbe(value)
			return nil
		},
		"a review by another client":  func(w *world, _ string) error { w.c.AnswerProbe("made up"); return nil },
		"an empty value":              func(w *world, _ string) error { return wrap(w.c.AnswerProbe("")) },
		"a denial by another webhook": func(*world, string) error { return denied("no") },
		"a denial by RBAC": func(*world, string) error {
			return apierrors.NewForbidden(configMaps, "trow-ca", nil)
		},
		"the sentence in an error of another": func(*world, string) error { return errors.New(sentence) },
		"an error that repeats the value": func(_ *world, v string) error {
			return apierrors.NewBadRequest("bad " + v)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, cluster.Enforce)
				values := map[string]bool{}
				w.PrependReactor("update", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
					u := a.(clienttesting.UpdateActionImpl)
					if len(u.UpdateOptions.DryRun) == 0 {
						return false, nil, nil
					}
					value := u.GetObject().(*corev1.ConfigMap).Annotations["trow.io/probe"]
					if len(value) < 26 || values[value] {
						t.Errorf("the value %q is short or old", value)
					}
					values[value] = true
					return true, u.GetObject(), answer(w, value)
				})
				w.start(t)
				time.Sleep(time.Minute)
				w.set(func() {
					for value := range values {
						if strings.Contains(w.log.String(), value) {
							t.Errorf("the value is in the log: %s", w.log.String())
						}
					}
				})
				if got := w.logged(t); got != "held back" || w.policy(t) != admissionregistrationv1.Ignore {
					t.Errorf("%q, %s", got, w.policy(t))
				}
				for value := range values {
					if w.c.AnswerProbe(value) != "" || strings.Contains(w.c.State().Why, value) {
						t.Error("a value is used after its probe, or shown")
					}
				}
			})
		})
	}
}

func wrap(text string) error {
	if text == "" {
		return nil
	}
	return denied(text)
}

// TestTheProofIsOfOneAPIServer if there are several.
func TestTheProofIsOfOneAPIServer(t *testing.T) {
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}, {Addresses: []string{"10.0.0.2"}},
			{Addresses: []string{"10.0.0.3"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}}}}
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, slice)
		w.start(t)
		w.logged(t)
		if ok, line := w.c.Check(); !ok || !strings.Contains(line, "one of 2 API servers") {
			t.Errorf("%v %q", ok, line)
		}
	})
}

// TestWhatEnforcesIsNotDemoted by an upgrade or a restart, but it is said that the API server does not reach it.
func TestWhatEnforcesIsNotDemoted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, earlier())
		w.cut = true
		w.start(t)
		time.Sleep(20 * time.Second)
		if got := w.logged(t); got != "armed, risk" || w.policy(t) != admissionregistrationv1.Fail {
			t.Errorf("%q, %s", got, w.policy(t))
		}
		if ok, line := w.c.Check(); ok || !strings.Contains(line, "risk: the API server has not shown") {
			t.Errorf("%v %q", ok, line)
		}
		w.set(func() { w.cut = false })
		time.Sleep(2 * time.Minute)
		if ok, line := w.c.Check(); !ok || strings.Contains(line, "risk") {
			t.Errorf("reached: %v %q", ok, line)
		}
	})
}

// TestTheMetrics are all there, whatever the state.
func TestTheMetrics(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, critical("evil"), earlier())
		w.start(t)
		w.logged(t)
		want := "trow_nodes_unable 0, trow_webhook_enforcing 1, trow_webhook_proven 1, trow_webhook_restored_total " +
			"0, trow_webhook_risk contested 0, trow_webhook_risk deadlock 1, " +
			"trow_webhook_risk lease 0, trow_webhook_risk namespace 0, trow_webhook_risk provisioner 0, " +
			"trow_webhook_risk rights 0, trow_webhook_risk unproven 0"
		if got := allMetrics(t, w.c); got != want {
			t.Errorf("%s", got)
		}
	})
}

func allMetrics(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	var list []string
	for _, f := range gather(t, c) {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			list = append(list, fmt.Sprintf("%s %g", name, m.GetGauge().GetValue()+m.GetCounter().GetValue()))
		}
	}
	return strings.Join(list, ", ")
}

// TestTheSideEffectsOfAnEarlierVersion: its entry said that verdicts have none. The upgrade replaces that once, and it
// is no change of another client.
func TestTheSideEffectsOfAnEarlierVersion(t *testing.T) {
	var was *admissionregistrationv1.ValidatingWebhookConfiguration
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.start(t)
		w.logged(t)
		was = w.configuration(t)
	})
	was.ResourceVersion = "" // of the first world
	for i := range was.Webhooks {
		was.Webhooks[i].SideEffects = ptr.To(admissionregistrationv1.SideEffectClassNone)
	}
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, was)
		w.start(t)
		if got := w.logged(t); got != "armed" {
			t.Errorf("logged %q", got)
		}
		for i, want := range []admissionregistrationv1.SideEffectClass{"NoneOnDryRun", "None", "None"} {
			if got := w.configuration(t).Webhooks[i]; *got.SideEffects != want {
				t.Errorf("%s: %s, want %s", got.Name, *got.SideEffects, want)
			}
		}
		if w.policy(t) != admissionregistrationv1.Fail {
			t.Errorf("%s", w.policy(t))
		}
		if time.Sleep(time.Hour); w.logged(t) != "" {
			t.Error("it is written again")
		}
	})
}
