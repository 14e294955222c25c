package cluster_test

import (
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"trow/admission/cluster"
)

type validating = admissionregistrationv1.ValidatingWebhook

// gate is a webhook of another program for new pods, whose Service is in this namespace. It fails closed by default.
func gate(namespace string, change func(*validating)) *admissionregistrationv1.ValidatingWebhookConfiguration {
	w := validating{Name: "validate." + namespace + ".svc", ClientConfig: admissionregistrationv1.WebhookClientConfig{
		Service: &admissionregistrationv1.ServiceReference{Namespace: namespace, Name: "svc"}},
		Rules: []admissionregistrationv1.RuleWithOperations{
			{Operations: []admissionregistrationv1.OperationType{"CREATE"},
				Rule: admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"},
					Resources: []string{"pods"}}}}}
	if change != nil {
		change(&w)
	}
	return &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: namespace},
		Webhooks: []validating{w}}
}

// mutating is such a webhook of the other kind.
func mutating(namespace string) *admissionregistrationv1.MutatingWebhookConfiguration {
	v := gate(namespace, nil).Webhooks[0]
	return &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: namespace},
		Webhooks: []admissionregistrationv1.MutatingWebhook{
			{Name: v.Name, ClientConfig: v.ClientConfig, Rules: v.Rules}}}
}

func open(w *validating) { w.FailurePolicy = ptr.To(admissionregistrationv1.Ignore) }

func wide(w *validating) { w.Rules[0].Scope = ptr.To(admissionregistrationv1.ClusterScope) }

func labelled(w *validating) {
	w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"inject": "yes"}}
}

func resource(name string) func(*validating) {
	return func(w *validating) { w.Rules[0].Resources[0] = name }
}

func group(name string) func(*validating) {
	return func(w *validating) { w.Rules[0].APIGroups[0] = name }
}

func operation(o admissionregistrationv1.OperationType) func(*validating) {
	return func(w *validating) { w.Rules[0].Operations[0] = o }
}

func everything(w *validating) {
	w.Rules[0] = admissionregistrationv1.RuleWithOperations{Operations: []admissionregistrationv1.OperationType{"*"},
		Rule: admissionregistrationv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"},
			Resources: []string{"*/*"}}}
}

// in makes a webhook judge the namespaces with a label alone.
func in(key, value string) func(*validating) {
	return func(w *validating) {
		w.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
	}
}

// TestProvisionersAreARisk and hold nothing back: which Deployment makes nodes cannot be known.
func TestProvisionersAreARisk(t *testing.T) {
	deployment := func(namespace, class string) *appsv1.Deployment {
		return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "karpenter"},
			Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{
				Spec: corev1.PodSpec{PriorityClassName: class}}}}
	}
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, deployment("karpenter", "system-cluster-critical"),
			deployment("kube-system", "system-cluster-critical"), deployment("web", ""))
		w.start(t)
		if got := w.logged(t); got != "risk, armed" {
			t.Errorf("%q", got)
		}
		ok, line := w.c.Check()
		if !ok || !strings.Contains(line, "karpenter/karpenter") ||
			!strings.HasSuffix(line, "consider for the setting exempt-namespaces: karpenter") {
			t.Errorf("%v %q", ok, line)
		}
		w.AppsV1().Deployments("karpenter").Delete(t.Context(), "karpenter", metav1.DeleteOptions{})
		time.Sleep(20 * time.Minute)
		if _, line := w.c.Check(); strings.Contains(line, "risk") {
			t.Errorf("%q", line)
		}
	})
}
