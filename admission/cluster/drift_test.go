package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"trow/admission/cluster"
)

// written returns how often the server has written the configuration since the last call.
func (w *world) written() (n int) {
	for _, a := range w.Actions() {
		u, ok := a.(clienttesting.UpdateActionImpl)
		if ok && a.GetResource().Resource == "validatingwebhookconfigurations" &&
			u.UpdateOptions.FieldManager == "trow" {
			n++
		}
	}
	w.ClearActions()
	return n
}

// rewrite makes another controller change each configuration that is written, in the way of f.
func (w *world) rewrite(f func(*admissionregistrationv1.ValidatingWebhookConfiguration)) {
	w.PrependReactor("update", "validatingwebhookconfigurations",
		func(a clienttesting.Action) (bool, runtime.Object, error) {
			f(a.(clienttesting.UpdateAction).GetObject().(*admissionregistrationv1.ValidatingWebhookConfiguration))
			return false, nil, nil
		})
}

func narrow(v *admissionregistrationv1.ValidatingWebhookConfiguration, e ...metav1.LabelSelectorRequirement) {
	for i := range v.Webhooks {
		s := v.Webhooks[i].NamespaceSelector
		if !strings.Contains(fmt.Sprint(s.MatchExpressions), e[0].Key) {
			s.MatchExpressions = append(s.MatchExpressions, e...)
		}
	}
}

// react starts another controller, which changes the configuration in the way of f whenever it is written.
func (w *world) react(t *testing.T, manager string, f func(*admissionregistrationv1.ValidatingWebhookConfiguration)) {
	t.Helper()
	api := w.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	watch, err := api.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watch.Stop)
	go func() {
		for range watch.ResultChan() {
			v, err := api.Get(context.Background(), "trow", metav1.GetOptions{})
			if err != nil {
				continue
			}
			changed := v.DeepCopy()
			if f(changed); !equality.Semantic.DeepEqual(v, changed) {
				api.Update(context.Background(), changed, metav1.UpdateOptions{FieldManager: manager})
			}
		}
	}()
}

// TestTwoControllersDoNotFight without end: what the other one changes is put back five times a minute.
func TestTwoControllersDoNotFight(t *testing.T) {
	for name, tt := range map[string]struct {
		fight func(*testing.T, *world, func(*admissionregistrationv1.ValidatingWebhookConfiguration))
		by    string
	}{
		"another controller": {func(t *testing.T, w *world,
			f func(*admissionregistrationv1.ValidatingWebhookConfiguration)) {
			w.react(t, "gardener", f)
		}, `by "gardener"`},
		"a mutating policy": {func(_ *testing.T, w *world,
			f func(*admissionregistrationv1.ValidatingWebhookConfiguration)) {
			w.rewrite(f)
		}, "as a mutating policy"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, cluster.Enforce, home())
				w.start(t)
				w.logged(t)
				if n := w.written(); n != 2 {
					t.Errorf("%d writes to arm", n)
				}
				fights := true
				tt.fight(t, w, func(v *admissionregistrationv1.ValidatingWebhookConfiguration) {
					w.mu.Lock()
					defer w.mu.Unlock()
					if fights {
						narrow(v, metav1.LabelSelectorRequirement{Key: "team", Operator: metav1.LabelSelectorOpExists})
					}
				})
				v := w.configuration(t)
				v.Webhooks[0].TimeoutSeconds = ptr.To[int32](1)
				w.AdmissionregistrationV1().ValidatingWebhookConfigurations().Update(t.Context(), v,
					metav1.UpdateOptions{FieldManager: "trow"}) // as if this server had, so that it names nobody
				time.Sleep(10 * time.Minute)
				if n := w.written(); n < 10 || n > 56 {
					t.Errorf("%d writes in ten minutes", n)
				}
				ok, line := w.c.Check()
				if ok || !strings.Contains(line, "risk: another client keeps changing") ||
					!strings.Contains(line, tt.by) ||
					!strings.Contains(line, "validator.trow.io namespaceSelector") ||
					metrics(t, w.c) != "trow_webhook_enforcing 0" || !w.c.Denies() ||
					!strings.Contains(allMetrics(t, w.c), "contested 1") {
					t.Errorf("%v %q, %s, denies %v", ok, line, allMetrics(t, w.c), w.c.Denies())
				}
				if e := w.events(t); len(e) != 1 || e[0].Reason != "WebhookContested" ||
					!strings.Contains(e[0].Message, tt.by) {
					t.Errorf("%+v", e)
				}
				w.set(func() { fights = false })
				time.Sleep(3 * time.Minute)
				if ok, line := w.c.Check(); !ok || strings.Contains(line, "risk") ||
					w.policy(t) != admissionregistrationv1.Fail ||
					len(w.configuration(t).Webhooks[0].NamespaceSelector.MatchExpressions) != 1 {
					t.Errorf("after the fight: %v %q", ok, line)
				}
			})
		})
	}
}

// aks are the expressions that the admissions enforcer of AKS adds, as clusters of 2020 and of today have them.
var aks = map[string][]metav1.LabelSelectorRequirement{
	"of 2020": {{Key: "control-plane", Operator: metav1.LabelSelectorOpDoesNotExist}},
	"of today": {
		{Key: "control-plane", Operator: metav1.LabelSelectorOpDoesNotExist},
		{Key: "control-plane", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"true"}},
		{Key: "kubernetes.azure.com/managedby", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"aks"}},
	},
}

// TestAKSIsLeftAlone: its admissions enforcer adds expressions to each webhook, unless a label asks it not to. It may
// change what is written on its way in, or be another client of the API server.
func TestAKSIsLeftAlone(t *testing.T) {
	for when, expressions := range aks {
		for how, enforce := range map[string]func(*testing.T, *world, func(
			*admissionregistrationv1.ValidatingWebhookConfiguration)){
			"on the way in": func(_ *testing.T, w *world,
				f func(*admissionregistrationv1.ValidatingWebhookConfiguration)) {
				w.rewrite(f)
			},
			"afterwards": func(t *testing.T, w *world,
				f func(*admissionregistrationv1.ValidatingWebhookConfiguration)) {
				w.react(t, "admissionsenforcer", f)
			},
		} {
			t.Run(when+" "+how, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					w := newWorld(t, cluster.Enforce, home())
					enforce(t, w, func(v *admissionregistrationv1.ValidatingWebhookConfiguration) {
						narrow(v, expressions...)
					})
					w.start(t)
					time.Sleep(10 * time.Minute)
					if got := w.logged(t); got != "armed" {
						t.Errorf("%q", got)
					}
					if n := w.written(); n > 3 {
						t.Errorf("%d writes", n)
					}
					v := w.configuration(t)
					for _, h := range v.Webhooks {
						if len(h.NamespaceSelector.MatchExpressions) != len(expressions)+1 {
							t.Errorf("%s: %+v", h.Name, h.NamespaceSelector)
						}
					}
					if v.Labels["admissions.enforcer/disabled"] != "true" ||
						w.policy(t) != admissionregistrationv1.Fail {
						t.Errorf("%+v", v)
					}
					if ok, line := w.c.Check(); !ok || !strings.Contains(line, "control-plane DoesNotExist") {
						t.Errorf("%v %q", ok, line)
					}
				})
			})
		}
	}
}

// TestWhatLooksLikeAKSIsPutBack: an expression, or a value of one, that AKS does not add.
func TestWhatLooksLikeAKSIsPutBack(t *testing.T) {
	not := func(key string, values ...string) metav1.LabelSelectorRequirement {
		return metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpNotIn, Values: values}
	}
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, home())
		w.start(t)
		w.logged(t)
		for i, change := range []func(*validating){
			func(h *validating) {
				h.NamespaceSelector.MatchExpressions = append(h.NamespaceSelector.MatchExpressions,
					metav1.LabelSelectorRequirement{Key: "control-plane", Operator: metav1.LabelSelectorOpExists})
			},
			func(h *validating) {
				h.NamespaceSelector.MatchExpressions = append(h.NamespaceSelector.MatchExpressions,
					not("control-plane", "false"))
			},
			func(h *validating) {
				h.NamespaceSelector.MatchExpressions = append(h.NamespaceSelector.MatchExpressions,
					not("kubernetes.azure.com/managedby", "aks", "me"))
			},
			func(h *validating) { h.NamespaceSelector.MatchLabels = map[string]string{"team": "a"} },
			func(h *validating) {
				h.ObjectSelector.MatchExpressions = []metav1.LabelSelectorRequirement{not("control-plane", "true")}
			},
			func(h *validating) {
				h.MatchConditions = append(h.MatchConditions,
					admissionregistrationv1.MatchCondition{Name: "no", Expression: "false"})
			},
			func(h *validating) { h.NamespaceSelector = nil },
			open,
		} {
			time.Sleep(time.Minute) // changes a minute apart are no fight
			before := w.configuration(t)
			v := before.DeepCopy()
			change(&v.Webhooks[0])
			w.AdmissionregistrationV1().ValidatingWebhookConfigurations().Update(t.Context(), v, metav1.UpdateOptions{})
			synctest.Wait()
			if after := w.configuration(t); !equality.Semantic.DeepEqual(after.Webhooks, before.Webhooks) {
				t.Errorf("change %d: %+v", i, after.Webhooks[0])
			}
		}
	})
}

// TestGardenerIsLeftAlone: its care of webhooks changes those that could judge what a cluster needs in order to start
// (pkg/gardenlet/operation/botanist/matchers): pods in kube-system, by the labels of that namespace, and those that
// take longer than 15 s. It leaves alone those that ignore failures, and has no interest in other resources of ours.
func TestGardenerIsLeftAlone(t *testing.T) {
	kubeSystem := labels.Set{"kubernetes.io/metadata.name": "kube-system", "gardener.cloud/purpose": "kube-system",
		"role": "kube-system", "shoot.gardener.cloud/no-cleanup": "true"}
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, home())
		w.start(t)
		w.logged(t)
		for _, h := range w.configuration(t).Webhooks {
			s, err := metav1.LabelSelectorAsSelector(h.NamespaceSelector)
			if err != nil {
				t.Fatal(err)
			}
			if *h.FailurePolicy == admissionregistrationv1.Fail && s.Matches(kubeSystem) || *h.TimeoutSeconds > 15 {
				t.Errorf("Gardener would change %+v", h)
			}
		}
	})
}

// TestEntriesOfOthersStay, in any order; those of another version of this program do not.
func TestEntriesOfOthersStay(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, home())
		w.start(t)
		w.logged(t)
		v := w.configuration(t)
		other, later := v.Webhooks[1], v.Webhooks[1]
		other.Name, later.Name = "other.example.org", "later.trow.io"
		v.Webhooks = append([]admissionregistrationv1.ValidatingWebhook{other, later}, v.Webhooks...)
		v.Annotations["note"], v.Labels["team"] = "a", "b"
		w.AdmissionregistrationV1().ValidatingWebhookConfigurations().Update(t.Context(), v, metav1.UpdateOptions{})
		if got := w.logged(t); got != "restored" {
			t.Errorf("%q", got)
		}
		v = w.configuration(t)
		var names []string
		for _, h := range v.Webhooks {
			names = append(names, h.Name)
		}
		if got := strings.Join(names, " "); got != "other.example.org validator.trow.io workloads.trow.io "+
			"probe.trow.io" ||
			v.Annotations["note"] != "a" || v.Labels["team"] != "b" {
			t.Errorf("%s, %+v", got, v.ObjectMeta)
		}
	})
}

// TestAnnotationsOfOthersAreNoReasonToWrite.
func TestAnnotationsOfOthersAreNoReasonToWrite(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, home())
		w.start(t)
		w.logged(t)
		w.written()
		for i := range 100 {
			v := w.configuration(t)
			v.Annotations["seen"] = fmt.Sprint(i)
			w.AdmissionregistrationV1().ValidatingWebhookConfigurations().Update(t.Context(), v, metav1.UpdateOptions{})
			synctest.Wait()
		}
		if n := w.written(); n != 0 {
			t.Errorf("%d writes", n)
		}
	})
}
