package cluster

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/utils/ptr"

	"trow/manifests/kube"
)

// timeout is how long the API server waits for a verdict, in seconds. A verdict takes a fraction of a millisecond; the
// rest is for a server that has just restarted.
const timeout = 5

// Short names of the types of the webhook configuration.
type (
	configuration     = admissionregistrationv1.ValidatingWebhookConfiguration
	validatingWebhook = admissionregistrationv1.ValidatingWebhook
)

// arm fills the configuration, empties it, or leaves it as it is. It never creates or deletes it: the right to create
// cannot be limited to a name, and a configuration of any name sees what it asks for of each object in the cluster.
func (c *Cluster) arm(ctx context.Context, bundle []byte) error {
	// The configuration is read before the role. Disarm writes them in the other order, so a pass that has not seen its
	// note has an old configuration, whose update is a conflict, or one that Disarm is yet to empty.
	have, err := c.o.Client.WebhookConfigurations.Get(ctx, kube.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		have, err = nil, nil
	}
	if err != nil {
		return err
	}
	if have != nil {
		c.missedAt = time.Time{}
	}
	role, err := c.o.Client.ClusterRoles.Get(ctx, kube.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("ClusterRole %s: %w", kube.Name, errMissing)
	case err != nil:
		return err
	case role.Annotations[modeAnnotation] == string(Off):
		return c.disarm(ctx, have, "trow disarm was run; trow arm undoes it")
	case c.o.mode() == Off:
		return c.disarm(ctx, have, "")
	case have == nil:
		c.miss(ctx)
		return nil
	}
	if ready, err := c.ready(ctx, have); !ready || err != nil {
		return err
	}
	return c.write(ctx, have, bundle)
}

// disarm empties the configuration, if there is one.
func (c *Cluster) disarm(ctx context.Context, have *configuration, why string) error {
	if have != nil {
		if saved, err := c.save(ctx, have, c.want(have, nil, Off, "")); !saved || err != nil {
			return err
		}
	}
	c.set(disarmed, Off, why)
	return nil
}

// ready reports whether the API server would get answers: invariant 1. Where the configuration has our webhook, the API
// server sends reviews already, so the pod's own readiness is not waited for; nor where this process had armed it, so
// that a configuration that another client has emptied is filled at once.
func (c *Cluster) ready(ctx context.Context, have *configuration) (bool, error) {
	if !c.o.Ready() {
		return false, nil
	}
	if filled(have) || c.State().Mode != Off || c.o.Pod == "" {
		return true, nil
	}
	pod, err := c.o.Client.Pods(c.o.Namespace).Get(ctx, c.o.Pod, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(pod.Status.Conditions, func(p corev1.PodCondition) bool {
		return p.Type == corev1.PodReady && p.Status == corev1.ConditionTrue
	}), nil
}

// write fills the configuration.
func (c *Cluster) write(ctx context.Context, have *configuration, bundle []byte) error {
	mode, why, err := c.decide(ctx, have)
	if err != nil {
		return err
	}
	want := c.want(have, bundle, mode, why)
	before := c.State()
	changed := !equality.Semantic.DeepEqual(have, want)
	if saved, err := c.save(ctx, have, want); !saved || err != nil {
		return err
	}
	// Neither the mode nor the bundle has changed, so another client must have changed the configuration.
	if changed && before.Mode == mode && c.Published(bundle) {
		c.log(restored, "")
	}
	c.record(mode, why)
	return nil
}

// save updates the configuration if it is not as it should be, and reports whether it is now. It is not if another
// client has written or deleted it since it was read; the next pass looks at the result. Errors: those of the API.
func (c *Cluster) save(ctx context.Context, have, want *configuration) (bool, error) {
	if equality.Semantic.DeepEqual(have, want) {
		return true, nil
	}
	saved, err := written(c.o.Client.WebhookConfigurations.Update(ctx, want, metav1.UpdateOptions{}))
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return saved, err
}

// record notes the mode in force, and logs it if it is new.
func (c *Cluster) record(mode Mode, why string) {
	if mode != c.o.mode() {
		c.set(heldBack, mode, why)
		return
	}
	c.set(armed, mode, "")
	if why != c.lastRisk {
		if c.lastRisk = why; why != "" {
			c.log(risk, why)
		}
	}
}

// decide returns the mode to arm in, and what is wrong with failurePolicy Fail: invariant 2.
func (c *Cluster) decide(ctx context.Context, have *configuration) (Mode, string, error) {
	if c.o.mode() != Enforce {
		return c.o.mode(), "", nil
	}
	why, err := c.deadlock(ctx, !filled(have))
	if err != nil || why == "" || enforces(have) {
		return Enforce, why, err
	}
	return Audit, why, nil
}

// filled reports whether a configuration has our webhook.
func filled(have *configuration) bool { return has(have, func(validatingWebhook) bool { return true }) }

// enforces reports whether a configuration makes the API server refuse pods that it cannot have reviewed.
func enforces(have *configuration) bool {
	return has(have, func(w validatingWebhook) bool {
		return w.FailurePolicy != nil && *w.FailurePolicy == admissionregistrationv1.Fail
	})
}

// has reports whether a configuration has our webhook, and the condition holds for it.
func has(have *configuration, condition func(validatingWebhook) bool) bool {
	return slices.ContainsFunc(have.Webhooks, func(w validatingWebhook) bool {
		return w.Name == kube.WebhookName && condition(w)
	})
}

// want returns the configuration as it should be. What other clients have added to its metadata stays.
func (c *Cluster) want(have *configuration, bundle []byte, mode Mode, why string) *configuration {
	want := have.DeepCopy()
	want.Labels = with(want.Labels, "app.kubernetes.io/name", kube.Name)
	want.Annotations = with(want.Annotations, modeAnnotation, string(mode))
	want.Annotations = with(want.Annotations, whyAnnotation, why)
	if mode == Enforce {
		delete(want.Annotations, whyAnnotation)
	}
	want.OwnerReferences = owners(have)
	want.Webhooks = nil
	if mode != Off {
		want.Webhooks = c.webhooks(bundle, mode)
	}
	return want
}

// owners returns the owners of a configuration without our ClusterRole: invariant 3. Servers of earlier versions made
// the role the owner of the configurations that they created. Where the manifest applied last does not have the
// configuration, because only the image was upgraded, the role stays the owner: otherwise deleting that manifest would
// leave failurePolicy Fail without a server, and no pod would start.
func owners(have *configuration) []metav1.OwnerReference {
	if have.Labels[kube.ComponentLabel] != kube.WebhookComponent {
		return have.OwnerReferences
	}
	return slices.DeleteFunc(slices.Clone(have.OwnerReferences), func(o metav1.OwnerReference) bool {
		return strings.HasPrefix(o.APIVersion, rbacv1.GroupName+"/") && o.Kind == "ClusterRole" && o.Name == kube.Name
	})
}

// with returns a copy of m with a key, or without it if the value is empty.
func with(m map[string]string, key, value string) map[string]string {
	m = maps.Clone(m)
	if value == "" {
		delete(m, key)
		return m
	}
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

// imagesChanged excludes updates that change no image. Most updates do not, and a pod whose image was deleted from the
// registry must still lose its finalizers. An empty field of the request is absent, and reading an absent field is an
// error that refuses the request; hence has().
const imagesChanged = `request.operation != 'UPDATE' || ` +
	`has(request.subResource) && request.subResource == 'ephemeralcontainers' || ` +
	`object.spec.containers.map(c, c.image) != oldObject.spec.containers.map(c, c.image) || ` +
	`(has(object.spec.initContainers) ? object.spec.initContainers.map(c, c.image) : []) != ` +
	`(has(oldObject.spec.initContainers) ? oldObject.spec.initContainers.map(c, c.image) : [])`

// notByNodes excludes mirror pods, which the kubelet of a node creates in the API after it has started them: what they
// run cannot be prevented any more. Any other pod that the identity of a node creates is reviewed; whether it may
// create one is up to the plugin NodeRestriction, which a cluster may not have. Both the annotation and the identity
// are needed, because any user can write the annotation.
const notByNodes = `!(has(request.userInfo.username) && request.userInfo.username.startsWith('system:node:') && ` +
	`has(request.userInfo.groups) && 'system:nodes' in request.userInfo.groups && ` +
	`has(object.metadata.annotations) && 'kubernetes.io/config.mirror' in object.metadata.annotations)`

// webhooks returns the entries of the configuration. They have every field set, even those with defaults, so that they
// equal what the API server stores; otherwise each pass would write them again.
func (c *Cluster) webhooks(bundle []byte, mode Mode) []admissionregistrationv1.ValidatingWebhook {
	entry := func(name string, policy admissionregistrationv1.FailurePolicyType,
		rules []admissionregistrationv1.RuleWithOperations,
		conditions []admissionregistrationv1.MatchCondition) admissionregistrationv1.ValidatingWebhook {
		return admissionregistrationv1.ValidatingWebhook{
			Name: name,
			ClientConfig: admissionregistrationv1.WebhookClientConfig{
				Service: &admissionregistrationv1.ServiceReference{
					Namespace: c.o.Namespace, Name: kube.Name, Path: ptr.To(kube.WebhookPath),
					Port: ptr.To[int32](kube.ServicePort)},
				CABundle: bundle,
			},
			Rules:         rules,
			FailurePolicy: &policy,
			MatchPolicy:   ptr.To(admissionregistrationv1.Equivalent),
			// The API server sets this label, so no user can opt out by labelling a namespace.
			NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
				Key: corev1.LabelMetadataName, Operator: metav1.LabelSelectorOpNotIn, Values: c.exempt()}}},
			ObjectSelector:          &metav1.LabelSelector{},
			SideEffects:             ptr.To(admissionregistrationv1.SideEffectClassNone),
			TimeoutSeconds:          ptr.To[int32](timeout),
			AdmissionReviewVersions: []string{"v1"},
			MatchConditions:         conditions,
		}
	}
	policy := admissionregistrationv1.Fail
	if mode != Enforce {
		policy = admissionregistrationv1.Ignore
	}
	create, update := admissionregistrationv1.Create, admissionregistrationv1.Update
	return []admissionregistrationv1.ValidatingWebhook{
		entry(kube.WebhookName, policy, []admissionregistrationv1.RuleWithOperations{
			rule("", "v1", []string{"pods"}, create, update),
			rule("", "v1", []string{"pods/ephemeralcontainers"}, update),
		}, []admissionregistrationv1.MatchCondition{
			{Name: "images-changed", Expression: imagesChanged},
			{Name: "not-by-nodes", Expression: notByNodes},
		}),
		entry(kube.WorkloadsName, admissionregistrationv1.Ignore, []admissionregistrationv1.RuleWithOperations{
			rule("apps", "v1", []string{"deployments", "statefulsets", "daemonsets", "replicasets"}, create, update),
			rule("batch", "v1", []string{"jobs", "cronjobs"}, create, update),
			rule("", "v1", []string{"replicationcontrollers", "podtemplates"}, create, update),
		}, nil),
	}
}

func rule(group, version string, resources []string,
	ops ...admissionregistrationv1.OperationType) admissionregistrationv1.RuleWithOperations {
	return admissionregistrationv1.RuleWithOperations{Operations: ops, Rule: admissionregistrationv1.Rule{
		APIGroups: []string{group}, APIVersions: []string{version}, Resources: resources,
		Scope: ptr.To(admissionregistrationv1.NamespacedScope)}}
}

// exempt returns the namespaces whose pods are not reviewed, sorted.
func (c *Cluster) exempt() []string {
	list := append([]string{metav1.NamespaceSystem, c.o.Namespace}, c.o.ExemptNamespaces...)
	slices.Sort(list)
	return slices.Compact(list)
}

// watch signals on changed when any client has changed the configuration. A pass every Poll finds what it misses.
func (c *Cluster) watch(ctx context.Context, changed chan<- struct{}) {
	for ctx.Err() == nil {
		c.watchOnce(ctx, changed)
		select {
		case <-ctx.Done():
		case <-time.After(c.o.Poll):
		}
	}
}

// watchOnce watches until the watch ends.
func (c *Cluster) watchOnce(ctx context.Context, changed chan<- struct{}) {
	w, err := c.o.Client.WebhookConfigurations.Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, kube.Name).String()})
	if err != nil {
		return
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case _, open := <-w.ResultChan():
			if !open {
				return
			}
		}
		select {
		case changed <- struct{}{}:
		default: // a signal is pending already
		}
	}
}
