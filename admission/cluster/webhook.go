package cluster

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/utils/ptr"
)

// What the configuration says.
const (
	// WebhookName is what the API server calls the webhook in front of its sentences.
	WebhookName = "validator.trow.io"
	// WorkloadsName is the entry for objects that pods are made from. It only warns, unless asked otherwise, and
	// never stops anything by its absence.
	WorkloadsName = "workloads.trow.io"

	// Path and Port are where the API server calls, at the Service.
	Path = "/validate"
	Port = 443

	// timeout is what the API server waits for a verdict, in seconds. It takes a fraction of a millisecond.
	timeout = 5
)

// arm makes the configuration, or takes it away, or leaves it as it is.
func (c *Cluster) arm(ctx context.Context, bundle []byte) error {
	have, err := c.Client.WebhookConfigurations.Get(ctx, Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		have, err = nil, nil
	}
	if err != nil {
		return err
	}
	role, err := c.Client.ClusterRoles.Get(ctx, Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return errors.New("the ClusterRole that is to own it is missing; apply the manifest again (trow manifest)")
	case err != nil:
		return err
	case role.DeletionTimestamp != nil:
		return nil // the manifest is being deleted
	case role.Annotations[modeAnnotation] == string(Off):
		return c.disarm(ctx, have, "trow disarm was run; trow arm takes that back")
	case c.Mode == Off:
		return c.disarm(ctx, have, "")
	}
	if ready, err := c.ready(ctx, have); !ready || err != nil {
		return err
	}
	return c.write(ctx, have, role, bundle)
}

// disarm takes the configuration away.
func (c *Cluster) disarm(ctx context.Context, have *admissionregistrationv1.ValidatingWebhookConfiguration, why string) error {
	if have != nil {
		err := c.Client.WebhookConfigurations.Delete(ctx, Name,
			metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &have.UID}})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	c.set(Disarmed, Off, why)
	return nil
}

// ready tells whether the API server would find somebody to ask: invariant 1. Where there is a configuration it
// asks already.
func (c *Cluster) ready(ctx context.Context, have *admissionregistrationv1.ValidatingWebhookConfiguration) (bool, error) {
	if !c.Ready() {
		return false, nil
	}
	if have != nil || c.Pod == "" {
		return true, nil
	}
	pod, err := c.Client.Pods(c.Namespace).Get(ctx, c.Pod, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(pod.Status.Conditions, func(p corev1.PodCondition) bool {
		return p.Type == corev1.PodReady && p.Status == corev1.ConditionTrue
	}), nil
}

// write brings the configuration into the form that it should have.
func (c *Cluster) write(ctx context.Context, have *admissionregistrationv1.ValidatingWebhookConfiguration, role *rbacv1.ClusterRole, bundle []byte) error {
	mode, why, err := c.decide(ctx, have)
	if err != nil {
		return err
	}
	want := c.want(have, role, bundle, mode, why)
	api := c.Client.WebhookConfigurations
	before := c.State()
	switch {
	case have == nil:
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
	case !equality.Semantic.DeepEqual(have, want):
		_, err = api.Update(ctx, want, metav1.UpdateOptions{})
	default:
		c.arrived(mode, why)
		return nil
	}
	if apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) {
		return nil // somebody else writes it too; the next round looks at what came out
	}
	if err != nil {
		return err
	}
	if before.Mode == mode && c.Published(bundle) {
		c.notify(Restored, "")
	}
	c.arrived(mode, why)
	return nil
}

func (c *Cluster) arrived(mode Mode, why string) {
	if mode != c.Mode {
		c.set(HeldBack, mode, why)
		return
	}
	c.set(Armed, mode, "")
	if why != c.risk {
		if c.risk = why; why != "" {
			c.notify(Risk, why)
		}
	}
}

// decide says how to arm, and what speaks against it: invariant 2.
func (c *Cluster) decide(ctx context.Context, have *admissionregistrationv1.ValidatingWebhookConfiguration) (Mode, string, error) {
	if c.Mode != Enforce {
		return c.Mode, "", nil
	}
	why, err := c.deadlock(ctx, have == nil)
	if err != nil || why == "" || enforces(have) {
		return Enforce, why, err
	}
	return Audit, why, nil
}

// enforces tells whether a configuration has the API server refuse pods that it cannot ask about.
func enforces(have *admissionregistrationv1.ValidatingWebhookConfiguration) bool {
	return have != nil && slices.ContainsFunc(have.Webhooks, func(w admissionregistrationv1.ValidatingWebhook) bool {
		return w.Name == WebhookName && w.FailurePolicy != nil && *w.FailurePolicy == admissionregistrationv1.Fail
	})
}

// want is the configuration as it should be. What others have added to its metadata stays.
func (c *Cluster) want(have *admissionregistrationv1.ValidatingWebhookConfiguration, role *rbacv1.ClusterRole, bundle []byte, mode Mode, why string) *admissionregistrationv1.ValidatingWebhookConfiguration {
	want := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: Name}}
	if have != nil {
		want = have.DeepCopy()
	}
	want.Labels = with(want.Labels, "app.kubernetes.io/name", Name)
	want.Annotations = with(want.Annotations, modeAnnotation, string(mode))
	want.Annotations = with(want.Annotations, whyAnnotation, why)
	if mode == Enforce {
		delete(want.Annotations, whyAnnotation)
	}
	want.OwnerReferences = []metav1.OwnerReference{{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRole", Name: role.Name, UID: role.UID}}
	want.Webhooks = c.webhooks(bundle, mode)
	return want
}

// with is m with a key, or without it if the value is empty.
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

// imagesChanged keeps updates away that touch no image: most of them, and those of old pods whose images have
// been deleted since, which must still lose their finalizers. An empty field of the request is not there at all, and
// to read it would be an error, which refuses the request.
const imagesChanged = `request.operation != 'UPDATE' || has(request.subResource) && request.subResource == 'ephemeralcontainers' || ` +
	`object.spec.containers.map(c, c.image) != oldObject.spec.containers.map(c, c.image) || ` +
	`(has(object.spec.initContainers) ? object.spec.initContainers.map(c, c.image) : []) != ` +
	`(has(oldObject.spec.initContainers) ? oldObject.spec.initContainers.map(c, c.image) : [])`

// notByNodes keeps mirror pods away: the kubelet has started those before it tells of them, and may make no
// others.
const notByNodes = `!(has(request.userInfo.groups) && 'system:nodes' in request.userInfo.groups)`

// webhooks are the entries. Every field is set, those with defaults too, so that what the API server keeps is
// equal to them.
func (c *Cluster) webhooks(bundle []byte, mode Mode) []admissionregistrationv1.ValidatingWebhook {
	entry := func(name string, policy admissionregistrationv1.FailurePolicyType, rules []admissionregistrationv1.RuleWithOperations, conditions []admissionregistrationv1.MatchCondition) admissionregistrationv1.ValidatingWebhook {
		return admissionregistrationv1.ValidatingWebhook{
			Name: name,
			ClientConfig: admissionregistrationv1.WebhookClientConfig{
				Service: &admissionregistrationv1.ServiceReference{
					Namespace: c.Namespace, Name: Name, Path: ptr.To(Path), Port: ptr.To[int32](Port)},
				CABundle: bundle,
			},
			Rules:         rules,
			FailurePolicy: &policy,
			MatchPolicy:   ptr.To(admissionregistrationv1.Equivalent),
			// This label is set by the API server, so nobody can opt out by labelling a namespace.
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
		entry(WebhookName, policy, []admissionregistrationv1.RuleWithOperations{
			rule("", "v1", []string{"pods"}, create, update),
			rule("", "v1", []string{"pods/ephemeralcontainers"}, update),
		}, []admissionregistrationv1.MatchCondition{
			{Name: "images-changed", Expression: imagesChanged},
			{Name: "not-by-nodes", Expression: notByNodes},
		}),
		entry(WorkloadsName, admissionregistrationv1.Ignore, []admissionregistrationv1.RuleWithOperations{
			rule("apps", "v1", []string{"deployments", "statefulsets", "daemonsets", "replicasets"}, create, update),
			rule("batch", "v1", []string{"jobs", "cronjobs"}, create, update),
			rule("", "v1", []string{"replicationcontrollers", "podtemplates"}, create, update),
		}, nil),
	}
}

func rule(group, version string, resources []string, ops ...admissionregistrationv1.OperationType) admissionregistrationv1.RuleWithOperations {
	return admissionregistrationv1.RuleWithOperations{Operations: ops, Rule: admissionregistrationv1.Rule{
		APIGroups: []string{group}, APIVersions: []string{version}, Resources: resources,
		Scope: ptr.To(admissionregistrationv1.NamespacedScope)}}
}

// exempt are the namespaces that are not asked about.
func (c *Cluster) exempt() []string {
	list := append([]string{metav1.NamespaceSystem, c.Namespace}, c.Exempt...)
	slices.Sort(list)
	return slices.Compact(list)
}

// watch says so on changed when somebody has touched the configuration. What it misses, the next round sees.
func (c *Cluster) watch(ctx context.Context, changed chan<- struct{}) {
	for ctx.Err() == nil {
		c.watchOnce(ctx, changed)
		select {
		case <-ctx.Done():
		case <-time.After(c.Poll):
		}
	}
}

func (c *Cluster) watchOnce(ctx context.Context, changed chan<- struct{}) {
	w, err := c.Client.WebhookConfigurations.Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, Name).String()})
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
		default: // it will look anyway
		}
	}
}
