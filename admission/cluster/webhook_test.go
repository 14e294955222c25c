package cluster_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	typed "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"trow/admission/cluster"
	"trow/manifests/kube/kubetest"
)

// limited makes the clientset refuse what the manifest's ClusterRole does not allow: to create and to delete webhook
// configurations.
func (w *world) limited() {
	w.PrependReactor("*", "validatingwebhookconfigurations",
		func(a clienttesting.Action) (bool, runtime.Object, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.admin || a.GetVerb() != "create" && a.GetVerb() != "delete" {
				return false, nil, nil
			}
			return true, nil, apierrors.NewForbidden(a.GetResource().GroupResource(), "trow", errors.New(a.GetVerb()))
		})
}

// configurations returns the webhook configurations, with the rights of an administrator.
func (w *world) configurations() typed.ValidatingWebhookConfigurationInterface {
	w.set(func() { w.admin = true })
	return w.AdmissionregistrationV1().ValidatingWebhookConfigurations()
}

// remove deletes the webhook configuration, as an administrator does.
func (w *world) remove(t *testing.T) {
	t.Helper()
	if err := w.configurations().Delete(t.Context(), "trow", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.set(func() { w.admin = false })
}

// empty is the configuration as the manifest has it.
func empty() *admissionregistrationv1.ValidatingWebhookConfiguration {
	return &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "trow",
		Labels: map[string]string{"app.kubernetes.io/name": "trow", "app.kubernetes.io/component": "webhook"}}}
}

// earlier is a configuration as servers created it when the manifest had none: owned by the ClusterRole.
func earlier() *admissionregistrationv1.ValidatingWebhookConfiguration {
	return &admissionregistrationv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "trow", UID: "uid", OwnerReferences: []metav1.OwnerReference{role},
			Labels:      map[string]string{"app.kubernetes.io/name": "trow"},
			Annotations: map[string]string{"trow.io/webhook": "enforce"}},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{{Name: "validator.trow.io",
			FailurePolicy: ptr.To(admissionregistrationv1.Fail)}}}
}

// applied is the configuration after the manifest was applied to it.
func applied(v *admissionregistrationv1.ValidatingWebhookConfiguration,
) *admissionregistrationv1.ValidatingWebhookConfiguration {
	v.Labels["app.kubernetes.io/component"] = "webhook"
	return v
}

// TestTheServerMakesNoConfiguration checks that the server creates no webhook configuration of any name. Therefore it
// does not need the right to, and a thief of its token cannot read what is written to the cluster.
func TestTheServerMakesNoConfiguration(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.start(t)
		w.logged(t)
		w.remove(t)
		started := time.Now()
		if got := w.logged(t); got != "missing" || w.configuration(t) != nil {
			t.Errorf("deleted by hand: %q, %+v", got, w.configuration(t))
		}
		ok, line := w.c.Check()
		if ok || !strings.HasPrefix(line, "webhook off ") || !strings.Contains(line, "kubectl apply -f trow.yaml") ||
			metrics(t, w.c) != "trow_webhook_enforcing 0" {
			t.Errorf("readiness says %v %q, the metric %s", ok, line, metrics(t, w.c))
		}
		time.Sleep(time.Until(started.Add(150 * time.Minute)))
		events := w.events(t)
		if len(events) != 3 {
			t.Fatalf("%d Events within two and a half hours", len(events))
		}
		e := events[0]
		if e.Type != corev1.EventTypeWarning || e.Reason != "WebhookMissing" || e.InvolvedObject.Name != "trow-0" ||
			e.InvolvedObject.UID != "pod-uid" || !strings.Contains(e.Message, "kubectl apply -f trow.yaml") ||
			len(e.Message) > 1024 {
			t.Errorf("%+v", e)
		}
		again := metav1.ObjectMeta{Name: "trow"} // the object alone, as the message says
		w.configurations().Create(t.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{
			ObjectMeta: again},
			metav1.CreateOptions{})
		if got := w.logged(t); got != "armed" || !w.armed(t) {
			t.Errorf("created again: %q", got)
		}
	})
}

func (w *world) events(t *testing.T) []corev1.Event {
	t.Helper()
	list, err := w.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// TestAnUninstallationReportsNoEvent: kubectl delete -f deletes the configuration, and then the rights.
func TestAnUninstallationReportsNoEvent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.start(t)
		w.logged(t)
		w.remove(t)
		synctest.Wait()
		w.RbacV1().ClusterRoles().Delete(t.Context(), "trow", metav1.DeleteOptions{})
		time.Sleep(time.Minute)
		if events := w.events(t); len(events) != 0 {
			t.Errorf("%+v", events)
		}
	})
}

// TestAnUpgradeAdoptsTheConfiguration, and never opens it. Where only the image was upgraded, the role stays the owner:
// otherwise deleting the earlier manifest would leave the webhook, and no pod would start.
func TestAnUpgradeAdoptsTheConfiguration(t *testing.T) {
	for name, tt := range map[string]struct {
		have   *admissionregistrationv1.ValidatingWebhookConfiguration
		owners int
	}{
		"the manifest": {applied(earlier()), 0},
		"the image":    {earlier(), 1},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, cluster.Enforce, tt.have, critical("elsewhere")) // which a new webhook would wait for
				pod, _ := w.CoreV1().Pods(ns).Get(t.Context(), "trow-0", metav1.GetOptions{})
				pod.Status.Conditions[0].Status = corev1.ConditionFalse
				w.CoreV1().Pods(ns).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
				watch, err := w.configurations().Watch(t.Context(), metav1.ListOptions{})
				if err != nil {
					t.Fatal(err)
				}
				w.set(func() { w.admin = false })
				w.start(t)
				if got := w.logged(t); got != "armed, risk" || w.c.State().Mode != cluster.Enforce {
					t.Errorf("%q, %+v", got, w.c.State())
				}
				watch.Stop()
				for event := range watch.ResultChan() {
					v := event.Object.(*admissionregistrationv1.ValidatingWebhookConfiguration)
					if len(v.Webhooks) == 0 || *v.Webhooks[0].FailurePolicy != admissionregistrationv1.Fail {
						t.Errorf("in between: %+v", v)
					}
				}
				v := w.configuration(t)
				if len(v.OwnerReferences) != tt.owners || v.UID != "uid" || len(v.Webhooks) != 3 {
					t.Errorf("%+v", v)
				}
			})
		})
	}
}

// TestWhatOthersAddStays: labels, annotations, owners and finalizers of other controllers, in each state.
func TestWhatOthersAddStays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		v := applied(earlier())
		v.Labels["team"], v.Annotations["kubectl.kubernetes.io/last-applied-configuration"] = "a", "{}"
		v.Finalizers = []string{"example.org/hold"}
		v.OwnerReferences = append(v.OwnerReferences,
			metav1.OwnerReference{APIVersion: "v1", Kind: "Namespace", Name: "trow",
				UID: "other"})
		w := newWorld(t, cluster.Enforce, v)
		w.start(t)
		kept := func(when string) {
			t.Helper()
			w.logged(t)
			got := w.configuration(t)
			if got.Labels["team"] != "a" ||
				got.Annotations["kubectl.kubernetes.io/last-applied-configuration"] != "{}" ||
				!equality.Semantic.DeepEqual(got.Finalizers, v.Finalizers) ||
				!equality.Semantic.DeepEqual(got.OwnerReferences, v.OwnerReferences[1:]) {
				t.Errorf("%s: %+v", when, got.ObjectMeta)
			}
		}
		kept("armed")
		if found, err := cluster.Disarm(t.Context(), kubetest.Client(w.Clientset)); !found || err != nil {
			t.Fatalf("%v, %v", found, err)
		}
		kept("disarmed")
		if err := cluster.Arm(t.Context(), kubetest.Client(w.Clientset)); err != nil {
			t.Fatal(err)
		}
		kept("armed again")
	})
}

// TestAnEmptiedConfigurationIsFilledAtOnce, although the pod does not count as ready in the meantime.
func TestAnEmptiedConfigurationIsFilledAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.start(t)
		w.logged(t)
		pod, _ := w.CoreV1().Pods(ns).Get(t.Context(), "trow-0", metav1.GetOptions{})
		pod.Status.Conditions[0].Status = corev1.ConditionFalse
		w.Tracker().Update(corev1.SchemeGroupVersion.WithResource("pods"), pod, ns)
		v := w.configuration(t)
		v.Webhooks = nil
		w.AdmissionregistrationV1().ValidatingWebhookConfigurations().Update(t.Context(), v, metav1.UpdateOptions{})
		if got := w.logged(t); got != "restored" || !w.armed(t) {
			t.Errorf("%q, armed %v", got, w.armed(t))
		}
	})
}

func TestDisarmAndArm(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.start(t)
		w.logged(t)
		found, err := cluster.Disarm(t.Context(), kubetest.Client(w.Clientset))
		if !found || err != nil {
			t.Fatalf("Disarm: %v, %v", found, err)
		}
		note := func() string { return w.configuration(t).Annotations["trow.io/webhook"] }
		if got := w.logged(t); got != "disarmed" || w.armed(t) || note() != "off" ||
			!strings.Contains(w.c.State().Why, "trow arm") {
			t.Errorf("after disarm: %q, %+v, %q", got, w.c.State(), note())
		}
		if found, err := cluster.Disarm(t.Context(), kubetest.Client(w.Clientset)); found || err != nil {
			t.Errorf("Disarm again: %v, %v", found, err)
		}
		if err := cluster.Arm(t.Context(), kubetest.Client(w.Clientset)); err != nil {
			t.Fatal(err)
		}
		if got := w.logged(t); got != "armed" || !w.armed(t) || note() != "enforce" {
			t.Errorf("after arm: %q, %q", got, note())
		}
		w.remove(t)
		err = cluster.Arm(t.Context(), kubetest.Client(w.Clientset))
		if err == nil || !strings.Contains(err.Error(), "kubectl apply -f trow.yaml") {
			t.Errorf("Arm without the configuration: %v", err)
		}
		w.RbacV1().ClusterRoles().Delete(t.Context(), "trow", metav1.DeleteOptions{})
		if got := w.logged(t); !strings.HasSuffix(got, "failed") || w.configuration(t) != nil {
			t.Errorf("after the manifest was deleted: %q, armed %v", got, w.configuration(t) != nil)
		}
		if found, err := cluster.Disarm(t.Context(), kubetest.Client(w.Clientset)); found || err != nil {
			t.Errorf("Disarm without the manifest: %v, %v", found, err)
		}
		err = cluster.Arm(t.Context(), kubetest.Client(w.Clientset))
		if err == nil || !strings.Contains(err.Error(), "apply the manifest") {
			t.Errorf("Arm without the manifest: %v", err)
		}
	})
}

// TestArmingSearchesForDeadlocks also if the last search was less than a minute ago: filling an empty configuration
// arms it.
func TestArmingSearchesForDeadlocks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.start(t)
		w.logged(t)
		if _, err := cluster.Disarm(t.Context(), kubetest.Client(w.Clientset)); err != nil {
			t.Fatal(err)
		}
		w.logged(t)
		w.AppsV1().DaemonSets("calico-system").Create(t.Context(), critical("calico-system"), metav1.CreateOptions{})
		if err := cluster.Arm(t.Context(), kubetest.Client(w.Clientset)); err != nil {
			t.Fatal(err)
		}
		if got := w.logged(t); got != "held back" || w.c.State().Mode != cluster.Audit {
			t.Errorf("%q, %+v", got, w.c.State())
		}
	})
}
