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
	"k8s.io/apimachinery/pkg/watch"
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
// settled reports whether the configuration, if there is one, needs no other bundle.
func (c *Cluster) arm(ctx context.Context, bundle []byte) (settled bool, err error) {
	// The configuration is read before the role. Disarm writes them in the other order, so a pass that has not seen its
	// note has an old configuration, whose update is a conflict, or one that Disarm is yet to empty.
	have, err := c.o.Client.WebhookConfigurations.Get(ctx, kube.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		have, err = nil, nil
	}
	if err != nil {
		return false, err
	}
	if have != nil {
		c.missedAt = time.Time{}
	}
	if c.leaving.Load() { // since this pass began
		return false, nil
	}
	role, err := c.o.Client.ClusterRoles.Get(ctx, kube.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, fmt.Errorf("ClusterRole %s: %w", kube.Name, errMissing)
	case err != nil:
		return false, err
	case role.Annotations[modeAnnotation] == string(Off):
		return c.disarm(ctx, have, "trow disarm was run; trow arm undoes it")
	case c.o.mode() == Off:
		return c.disarm(ctx, have, "")
	case have == nil:
		c.miss(ctx)
		return true, nil
	}
	if ready, err := c.ready(ctx, have); !ready || err != nil {
		return true, err
	}
	return c.write(ctx, have, bundle)
}

// disarm empties the configuration, if there is one. After that the API server has to prove again that it reaches the
// webhook: it may have been disarmed because it does not.
func (c *Cluster) disarm(ctx context.Context, have *configuration, why string) (settled bool, err error) {
	c.probe = prober{}
	c.note(noteProven, "")
	if have != nil {
		if saved, err := c.put(ctx, have, c.want(have, nil, Off, ""), intent{mode: Off}); !saved || err != nil {
			return false, err
		}
	}
	c.set(disarmed, Off, why)
	return true, nil
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
	if c.replicated() { // the Service has an endpoint if any replica is ready
		d, err := c.deployment(ctx)
		return err == nil && d.Status.ReadyReplicas > 0, err
	}
	pod, err := c.o.Client.Pods(c.o.Namespace).Get(ctx, c.o.Pod, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(pod.Status.Conditions, func(p corev1.PodCondition) bool {
		return p.Type == corev1.PodReady && p.Status == corev1.ConditionTrue
	}), nil
}

// write fills the configuration, as arm does.
func (c *Cluster) write(ctx context.Context, have *configuration, bundle []byte) (settled bool, err error) {
	if !filled(have) && c.ending(ctx) { // another replica may have emptied it, or the watch has not begun yet
		c.leave(ctx)
		return false, nil
	}
	if !trusts(have, bundle) {
		if current, err := c.current(ctx, bundle); !current || err != nil {
			return false, err
		}
	}
	c.prove(ctx, have, bundle)
	mode, why, err := c.decide(ctx, have)
	if err != nil {
		return false, err
	}
	_, tolerated := merge(have.Webhooks, c.webhooks(bundle, mode))
	c.note(noteTolerated, tolerated)
	saved, err := c.put(ctx, have, c.want(have, bundle, mode, why), intent{mode, why, string(bundle)})
	if !saved || err != nil {
		return false, err
	}
	c.record(ctx, mode, why)
	return true, nil
}

// save updates the configuration if it is not as it should be, and reports whether it is now. It is not if another
// client has written or deleted it since it was read; the next pass looks at the result. Errors: those of the API.
func (c *Cluster) save(ctx context.Context, have, want *configuration) (bool, error) {
	if equality.Semantic.DeepEqual(have, want) {
		return true, nil
	}
	saved, err := written(c.o.Client.WebhookConfigurations.Update(ctx, want,
		metav1.UpdateOptions{FieldManager: fieldManager}))
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return saved, err
}

// record notes the mode in force, and logs it if it is new.
func (c *Cluster) record(ctx context.Context, mode Mode, why string) {
	unproven := c.unproven()
	switch {
	case mode == c.o.mode():
		c.set(armed, mode, "")
		c.report(riskDeadlock, why)
		if mode != Enforce || !c.probe.fails {
			unproven = ""
		}
		if c.report(riskUnproven, unproven); unproven != "" {
			c.remindOf(ctx, eventUnproven, unproven)
		}
	case why == unproven && !c.probe.fails: // for some seconds; that is no reason for a log line
		c.set("", mode, why)
	default:
		c.set(heldBack, mode, why)
		c.report(riskDeadlock, "")
		if c.report(riskUnproven, ""); why == unproven {
			c.remindOf(ctx, eventUnproven, why)
		}
	}
}

// eventUnproven is the reason of the Event that the API server does not reach the webhook.
const eventUnproven = "WebhookUnproven"

// decide returns the mode to arm in, and what is wrong with failurePolicy Fail: invariants 1 and 2. What enforces
// already keeps doing so: pods that must not run would, only because the server was restarted.
func (c *Cluster) decide(ctx context.Context, have *configuration) (Mode, string, error) {
	if c.o.mode() != Enforce {
		return c.o.mode(), "", nil
	}
	why, err := c.deadlock(ctx, !filled(have))
	switch {
	case err != nil:
		return "", "", err
	case enforces(have):
		c.probe.trusted = true
		return Enforce, why, nil
	case why == "" && !c.probe.trusted:
		why = c.unproven()
	}
	if why == "" {
		return Enforce, "", nil
	}
	return Audit, why, nil
}

// filled reports whether a configuration has our webhook.
func filled(have *configuration) bool { return has(have, func(validatingWebhook) bool { return true }) }

// trusts reports whether a configuration has our webhook with this bundle.
func trusts(have *configuration, bundle []byte) bool {
	return has(have, func(w validatingWebhook) bool { return string(w.ClientConfig.CABundle) == string(bundle) })
}

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
	want.Labels = with(want.Labels, enforcerLabel, "true")
	want.Annotations = with(want.Annotations, modeAnnotation, string(mode))
	want.Annotations = with(want.Annotations, whyAnnotation, why)
	if mode == Enforce {
		delete(want.Annotations, whyAnnotation)
	}
	want.OwnerReferences = owners(have)
	want.Webhooks = nil
	if mode != Off {
		want.Webhooks, _ = merge(have.Webhooks, c.webhooks(bundle, mode))
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

// isProbe selects the probes among the updates of ConfigMaps.
const isProbe = `request.name == '` + kube.ConfigMapName + `' && has(object.metadata.annotations) && ` +
	`'` + kube.ProbeAnnotation + `' in object.metadata.annotations`

// webhooks returns the entries of the configuration. They have every field set, even those with defaults, so that they
// equal what the API server stores; otherwise each pass would write them again.
func (c *Cluster) webhooks(bundle []byte, mode Mode) []validatingWebhook {
	policy := admissionregistrationv1.Fail
	if mode != Enforce {
		policy = admissionregistrationv1.Ignore
	}
	create, update := admissionregistrationv1.Create, admissionregistrationv1.Update
	reviewed := requirement(metav1.LabelSelectorOpNotIn, c.exempt()...)
	all := []validatingWebhook{
		c.entry(kube.WebhookName, bundle, policy, reviewed, []admissionregistrationv1.RuleWithOperations{
			rule("", "v1", []string{"pods"}, create, update),
			rule("", "v1", []string{"pods/ephemeralcontainers"}, update),
		}, []admissionregistrationv1.MatchCondition{
			{Name: "images-changed", Expression: imagesChanged},
			{Name: "not-by-nodes", Expression: notByNodes},
		}),
		c.entry(kube.WorkloadsName, bundle, admissionregistrationv1.Ignore, reviewed,
			[]admissionregistrationv1.RuleWithOperations{
				rule("apps", "v1", []string{"deployments", "statefulsets", "daemonsets", "replicasets"},
					create, update),
				rule("batch", "v1", []string{"jobs", "cronjobs"}, create, update),
				rule("", "v1", []string{"replicationcontrollers", "podtemplates"}, create, update),
			}, nil),
	}
	// A verdict on a pod may start the download of its images (may-run: fetch), but not that of a dry run. This is said
	// also where no setting asks for it: settings are read again without a restart.
	all[0].SideEffects = ptr.To(admissionregistrationv1.SideEffectClassNoneOnDryRun)
	if c.o.mode() == Enforce { // the probe has the same Service, path and CA, so that what it proves holds for all
		all = append(all, c.entry(kube.ProbeName, bundle, admissionregistrationv1.Ignore,
			requirement(metav1.LabelSelectorOpIn, c.o.Namespace), []admissionregistrationv1.RuleWithOperations{
				rule("", "v1", []string{"configmaps"}, update),
			}, []admissionregistrationv1.MatchCondition{{Name: "probe", Expression: isProbe}}))
	}
	return all
}

// requirement selects namespaces by their names. The API server sets this label, so no user can opt out by labelling a
// namespace.
func requirement(o metav1.LabelSelectorOperator, names ...string) metav1.LabelSelectorRequirement {
	return metav1.LabelSelectorRequirement{Key: corev1.LabelMetadataName, Operator: o, Values: names}
}

// entry returns one entry of the configuration.
func (c *Cluster) entry(name string, bundle []byte, policy admissionregistrationv1.FailurePolicyType,
	namespaces metav1.LabelSelectorRequirement, rules []admissionregistrationv1.RuleWithOperations,
	conditions []admissionregistrationv1.MatchCondition) validatingWebhook {
	return validatingWebhook{
		Name: name,
		ClientConfig: admissionregistrationv1.WebhookClientConfig{
			Service: &admissionregistrationv1.ServiceReference{
				Namespace: c.o.Namespace, Name: kube.Name, Path: ptr.To(kube.WebhookPath),
				Port: ptr.To[int32](kube.ServicePort)},
			CABundle: bundle,
		},
		Rules:                   rules,
		FailurePolicy:           &policy,
		MatchPolicy:             ptr.To(admissionregistrationv1.Equivalent),
		NamespaceSelector:       &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{namespaces}},
		ObjectSelector:          &metav1.LabelSelector{},
		SideEffects:             ptr.To(admissionregistrationv1.SideEffectClassNone),
		TimeoutSeconds:          ptr.To[int32](timeout),
		AdmissionReviewVersions: []string{"v1"},
		MatchConditions:         conditions,
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
	c.follow(ctx, func() (watch.Interface, error) {
		return c.o.Client.WebhookConfigurations.Watch(ctx, named(kube.Name))
	}, func(watch.Event) {
		select {
		case changed <- struct{}{}:
		default: // a signal is pending already
		}
	})
}
