package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"trow/manifests/kube"
)

const (
	// clusterCritical is the priority class of what a cluster needs, if not each node: what makes nodes, among others.
	clusterCritical = "system-cluster-critical"
	// provisionersEvery is the time between two searches for these: each lists all Deployments of the cluster.
	provisionersEvery = 15 * time.Minute
)

// gate is a webhook of another program, of either kind.
type gate struct {
	name      string // of configuration and webhook
	policy    *admissionregistrationv1.FailurePolicyType
	service   *admissionregistrationv1.ServiceReference
	rules     []admissionregistrationv1.RuleWithOperations
	namespace *metav1.LabelSelector
	object    *metav1.LabelSelector
}

// gates returns the webhooks of others without whose approval this pod does not start: they and this registry could
// wait for each other. A webhook that the API server reaches by URL is taken for one outside the cluster, and what
// matchConditions exclude is not known here, so they count as matching.
func (c *Cluster) gates(ctx context.Context, pod *corev1.Pod) (needs, error) {
	found := needs{}
	if pod == nil {
		return found, nil
	}
	all, err := c.allGates(ctx)
	if err != nil {
		return nil, c.without(err, "webhook configurations")
	}
	if len(all) == 0 {
		return found, nil
	}
	var home *corev1.Namespace // nil: not known
	if n, err := c.o.Client.Namespaces.Get(ctx, c.o.Namespace, metav1.GetOptions{}); err == nil {
		home = n
	} else if !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err) {
		return nil, err
	}
	pods := []map[string]string{pod.Labels}
	if len(c.members()) > 0 { // without them this pod does not start either
		pods = append(pods, map[string]string{"app.kubernetes.io/name": kube.Name,
			kube.ComponentLabel: kube.EtcdComponent})
	}
	for _, g := range all {
		if g.service != nil && g.closed() && g.judgesPods() &&
			selects(g.namespace, namespaceLabels(c.o.Namespace, home)) &&
			slices.ContainsFunc(pods, func(labels map[string]string) bool { return selects(g.object, labels) }) {
			found[g.service.Namespace] = fmt.Sprintf("%s (Service %s/%s)", g.name, g.service.Namespace, g.service.Name)
		}
	}
	return found, nil
}

// allGates returns the webhooks of all configurations except ours.
func (c *Cluster) allGates(ctx context.Context) (all []gate, err error) {
	err = pages(func(o metav1.ListOptions) (string, error) {
		list, err := c.o.Client.WebhookConfigurations.List(ctx, o)
		if err != nil {
			return "", err
		}
		for _, v := range list.Items {
			for _, w := range v.Webhooks {
				if v.Name != kube.Name {
					all = append(all, gate{"ValidatingWebhookConfiguration " + v.Name + " " + w.Name, w.FailurePolicy,
						w.ClientConfig.Service, w.Rules, w.NamespaceSelector, w.ObjectSelector})
				}
			}
		}
		return list.Continue, nil
	})
	if err != nil {
		return nil, err
	}
	err = pages(func(o metav1.ListOptions) (string, error) {
		list, err := c.o.Client.MutatingWebhookConfigurations.List(ctx, o)
		if err != nil {
			return "", err
		}
		for _, m := range list.Items {
			for _, w := range m.Webhooks {
				all = append(all, gate{"MutatingWebhookConfiguration " + m.Name + " " + w.Name, w.FailurePolicy,
					w.ClientConfig.Service, w.Rules, w.NamespaceSelector, w.ObjectSelector})
			}
		}
		return list.Continue, nil
	})
	return all, err
}

// closed reports whether the API server refuses what it cannot have reviewed; that is the default.
func (g *gate) closed() bool { return g.policy == nil || *g.policy == admissionregistrationv1.Fail }

// judgesPods reports whether the rules cover the creation of pods.
func (g *gate) judgesPods() bool {
	any := func(list []string, want ...string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return slices.Contains(want, s) })
	}
	return slices.ContainsFunc(g.rules, func(r admissionregistrationv1.RuleWithOperations) bool {
		create := slices.Contains(r.Operations, admissionregistrationv1.Create) ||
			slices.Contains(r.Operations, admissionregistrationv1.OperationAll)
		namespaced := r.Scope == nil || *r.Scope != admissionregistrationv1.ClusterScope
		return create && namespaced && any(r.APIGroups, "", "*") && any(r.APIVersions, "v1", "*") &&
			any(r.Resources, "pods", "*", "*/*")
	})
}

// searchProvisioners reports as a risk what may make the nodes of the cluster: a registry that waits for a node while
// this waits for a verdict does not come back by itself. Which Deployment does so cannot be known, so it holds nothing
// back.
func (c *Cluster) searchProvisioners(ctx context.Context) error {
	now := time.Now()
	if now.Before(c.provisionersAt.Add(provisionersEvery)) {
		return nil
	}
	exempt := c.exempt()
	var names, namespaces []string
	err := pages(func(o metav1.ListOptions) (string, error) {
		list, err := c.o.Client.Deployments(metav1.NamespaceAll).List(ctx, o)
		if err != nil {
			return "", err
		}
		for _, d := range list.Items {
			if d.Spec.Template.Spec.PriorityClassName == clusterCritical && !slices.Contains(exempt, d.Namespace) {
				names, namespaces = append(names, d.Namespace+"/"+d.Name), append(namespaces, d.Namespace)
			}
		}
		return list.Continue, nil
	})
	if err != nil {
		return c.without(err, "Deployments")
	}
	c.provisionersAt = now
	if len(names) == 0 {
		c.report(riskProvisioner, "")
		return nil
	}
	slices.Sort(names)
	slices.Sort(namespaces)
	c.report(riskProvisioner, fmt.Sprintf("pods of %s could not start while the registry is down; if one of them "+
		"makes nodes and the registry waits for a node, neither starts; consider for the setting exempt-namespaces: %s",
		few(names), few(slices.Compact(namespaces))))
	return nil
}

// few joins names, the first ones of many.
func few(names []string) string {
	const most = 10
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// without notes a missing right, and goes on without it: otherwise a server whose image alone was upgraded would no
// longer keep the webhook in order. It returns other errors.
func (c *Cluster) without(err error, what string) error {
	if !apierrors.IsForbidden(err) {
		return err
	}
	c.lacking = append(c.lacking, what)
	return nil
}

// reportRights reports the rights that a search missed.
func (c *Cluster) reportRights() {
	text := ""
	if len(c.lacking) > 0 {
		text = fmt.Sprintf("the server may not list %s, so it does not see all that could lock the cluster; apply the "+
			"manifest of this version", strings.Join(c.lacking, ", "))
	}
	c.lacking = nil
	c.report(riskRights, text)
}

// selects reports whether a label selector covers labels. nil covers all, and so does one that cannot be understood: it
// is safer to take a webhook for one that judges this pod.
func selects(selector *metav1.LabelSelector, have map[string]string) bool {
	if selector == nil {
		return true
	}
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err != nil || s.Matches(labels.Set(have))
}

// namespaceLabels returns the labels of a namespace; of one that is not known, those that the API server sets on all.
func namespaceLabels(name string, n *corev1.Namespace) map[string]string {
	if n == nil {
		return map[string]string{corev1.LabelMetadataName: name}
	}
	return n.Labels
}
