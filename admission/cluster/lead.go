package cluster

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"trow/manifests/kube"
)

// Of several replicas one, the leader, publishes the bundle, arms the webhook, keeps it in order, and with that lets a
// new CA sign; the others only see what it has done. Otherwise replicas with different settings, as during a rollout,
// would write the configuration in turn. The leader is who holds the Lease of the Deployment's name, and not who leads
// something in the registry's journal: what it writes is in the API server, and can be kept in order as long as that
// answers, even when the journal does not.
//
// The Lease saves no one from an earlier leader that has stopped for a while and goes on: invariant 6 does, and that a
// bundle is compared with the Secret after the object was read into which it is written; see [Cluster.current].
//
// Package leaderelection of client-go does the same with the clientset, which kube.Client replaces.

const (
	// leaseTime is how long a Lease must stay the same until another process takes it. Each process measures it by its
	// own clock.
	leaseTime = 15 * time.Second
	// leaderTimeout bounds one pass of a leader, so that it ends before another process takes over.
	leaderTimeout = 10 * time.Second
	// releaseTimeout bounds the last request of a leader that ends.
	releaseTimeout = 5 * time.Second
)

// noteLeader says which replica keeps the webhook in order.
const noteLeader = "leader"

// term is what Run knows of the Lease.
type term struct {
	leads   bool      // at the last look, this process held it
	renewed time.Time // when this process last took or renewed it
	version string    // of the Lease of another process
	since   time.Time // when that version was seen first
}

// replicated reports whether this process is one of several replicas.
func (c *Cluster) replicated() bool { return c.o.Deployment != "" }

// lead reports whether this process is the one that writes: always, without replicas. It takes the Lease if it is
// free, and renews it. Without the Lease none does, which is a risk that people are told of. Errors: those of the API.
func (c *Cluster) lead(ctx context.Context) (bool, error) {
	now := time.Now()
	if !c.replicated() || c.term.leads && now.Sub(c.term.renewed) < c.o.Poll/2 {
		return true, nil // passes may follow each other closely, and need not renew it each time
	}
	lease, err := c.o.Client.Leases(c.o.Namespace).Get(ctx, c.o.Deployment, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		c.follower("") // any other replica is no better off
		c.note(noteLeader, "")
		c.report(riskLease, fmt.Sprintf("no replica keeps the webhook in order: Lease %s/%s does not exist, or may "+
			"not be read, and the server has no right to create it; apply the manifest again (trow manifest)",
			c.o.Namespace, c.o.Deployment))
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lease %s/%s: %w", c.o.Namespace, c.o.Deployment, err)
	}
	c.report(riskLease, "")
	holder := ptr.Deref(lease.Spec.HolderIdentity, "")
	if holder != c.o.Pod {
		if lease.ResourceVersion != c.term.version || c.term.since.IsZero() {
			c.term.version, c.term.since = lease.ResourceVersion, now
		}
		if holder != "" && now.Sub(c.term.since) < leaseTime {
			c.follower(holder)
			return false, nil
		}
	}
	// The update is refused if another process has changed the Lease since.
	held, err := written(c.o.Client.Leases(c.o.Namespace).Update(ctx, c.claim(lease, now), metav1.UpdateOptions{}))
	if err != nil {
		return false, fmt.Errorf("lease %s/%s: %w", c.o.Namespace, c.o.Deployment, err)
	}
	if !held {
		c.follower("")
		return false, nil
	}
	if !c.term.leads {
		c.note(noteLeader, "this replica keeps it in order")
	}
	c.setFollows(false)
	c.term = term{leads: true, renewed: now}
	return true, nil
}

// remindOfLease creates an Event if there is no Lease to hold.
func (c *Cluster) remindOfLease(ctx context.Context) {
	c.mu.Lock()
	text := c.risks[riskLease]
	c.mu.Unlock()
	if text != "" {
		c.remindOf(ctx, "LeaseMissing", text)
	}
}

// claim returns a Lease as this process holds it.
func (c *Cluster) claim(lease *coordinationv1.Lease, now time.Time) *coordinationv1.Lease {
	lease = lease.DeepCopy()
	s, at := &lease.Spec, metav1.NewMicroTime(now)
	if ptr.Deref(s.HolderIdentity, "") != c.o.Pod {
		s.HolderIdentity, s.AcquireTime = ptr.To(c.o.Pod), &at
		s.LeaseTransitions = ptr.To(ptr.Deref(s.LeaseTransitions, 0) + 1)
	}
	s.RenewTime, s.LeaseDurationSeconds = &at, ptr.To(int32(leaseTime/time.Second))
	return lease
}

func (c *Cluster) setFollows(follows bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.follows = follows
}

// follower notes that another process leads, holder if it is known. What this process has found out as the leader may
// no longer be so.
func (c *Cluster) follower(holder string) {
	if c.term.leads {
		c.drift.written, c.probe, c.searchedAt, c.provisionersAt = intent{}, prober{}, time.Time{}, time.Time{}
		c.mu.Lock()
		clear(c.risks)
		clear(c.notes)
		c.published = nil // so that this process lets no new CA sign
		c.mu.Unlock()
	}
	c.term.leads = false
	c.setFollows(true)
	if holder != "" {
		c.note(noteLeader, "replica "+holder+" keeps it in order")
	}
}

// observe notes in which mode the leader has armed the webhook, as it says in the configuration. What another client
// has made of the entries since is no reason to deny less until the leader, or its successor, puts them back.
func (c *Cluster) observe(ctx context.Context) error {
	have, err := c.o.Client.WebhookConfigurations.Get(ctx, kube.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		c.set("", Off, absent)
		return nil
	case err != nil:
		return fmt.Errorf("webhook configuration: %w", err)
	}
	why := have.Annotations[whyAnnotation]
	switch {
	case enforces(have), filled(have) && have.Annotations[modeAnnotation] == string(Enforce):
		c.set("", Enforce, "")
	case filled(have):
		c.set("", Audit, why)
	case c.o.mode() == Off:
		c.set("", Off, "")
	default:
		c.set("", Off, "the replica that keeps it in order has not armed it")
	}
	return nil
}

// release gives the Lease up when this process ends, so that another one takes it at its next look. An error has no
// effect but that it takes longer.
func (c *Cluster) release(ctx context.Context) {
	if !c.replicated() || !c.term.leads {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	lease, err := c.o.Client.Leases(c.o.Namespace).Get(ctx, c.o.Deployment, metav1.GetOptions{})
	if err != nil || ptr.Deref(lease.Spec.HolderIdentity, "") != c.o.Pod {
		return
	}
	lease.Spec.HolderIdentity = nil
	_, _ = c.o.Client.Leases(c.o.Namespace).Update(ctx, lease, metav1.UpdateOptions{})
}

// current reports whether bundle is that of the Secret now. It must be called after the object was read into which the
// bundle is to be written, and before it is: a process that has written a newer bundle there has put it into the Secret
// before, so that a process that was cut off for a while does not put its old bundle in the place of the new one.
func (c *Cluster) current(ctx context.Context, bundle []byte) (bool, error) {
	if c.o.Refresh == nil {
		return true, nil
	}
	if err := c.o.Refresh(ctx); err != nil {
		return false, err
	}
	return string(c.o.CA()) == string(bundle), nil
}

// deployment returns the Deployment of the replicas. Errors: those of the API.
func (c *Cluster) deployment(ctx context.Context) (*appsv1.Deployment, error) {
	d, err := c.o.Client.Deployments(c.o.Namespace).Get(ctx, c.o.Deployment, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		err = errMissing
	}
	if err != nil {
		return nil, fmt.Errorf("deployment %s/%s: %w", c.o.Namespace, c.o.Deployment, err)
	}
	return d, nil
}

// subject returns what Events are about: the pod of this process, or the Deployment of the replicas, because the right
// to read pods cannot be limited to those whose names a Deployment makes up.
func (c *Cluster) subject(ctx context.Context) (corev1.ObjectReference, error) {
	if c.replicated() {
		d, err := c.deployment(ctx)
		if err != nil {
			return corev1.ObjectReference{}, err
		}
		return corev1.ObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Namespace: d.Namespace, Name: d.Name,
			UID: d.UID}, nil
	}
	pod, err := c.o.Client.Pods(c.o.Namespace).Get(ctx, c.o.Pod, metav1.GetOptions{})
	if err != nil {
		return corev1.ObjectReference{}, err
	}
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name,
		UID: pod.UID}, nil
}
