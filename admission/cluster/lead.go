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

// One of several replicas, the leader, publishes the bundle, arms the webhook, keeps it in order, and so lets a new CA
// sign; the others observe what it has done. Otherwise replicas with different settings, as during a rollout, would
// overwrite each other's configuration. The leader is the replica that holds the Lease with the Deployment's name, and
// not a leader in the registry's journal: what it writes is in the API server, so it must be able to lead as long as
// that answers, even if the journal does not.
//
// A Lease is no fence: a leader that was stopped for a while may go on after another one has taken over. Invariant 6
// prevents that it does harm, and that a bundle is compared with the Secret after the object to which it is written was
// read; see [Cluster.current].
//
// Package leaderelection of client-go does the same, but needs the clientset, which kube.Client replaces.

const (
	// leaseTime is how long a Lease must stay unchanged before another process takes it. Each process measures that
	// with its own clock, and does not compare the times in the Lease: clocks differ.
	leaseTime = 15 * time.Second
	// leaderTimeout bounds one pass of a leader, so that it ends before another process takes over: a pass begins at
	// most half of Poll (2.5 s) after the last renewal.
	leaderTimeout = 10 * time.Second
	// releaseTimeout bounds the last requests of a leader that ends.
	releaseTimeout = 5 * time.Second
)

// noteLeader is the key of the note that says which replica is the leader.
const noteLeader = "leader"

// term is what this process knows of the Lease. Only Run's goroutine uses it.
type term struct {
	leads   bool      // this process held it when it last looked
	renewed time.Time // when this process last took or renewed it
	version string    // the resourceVersion of the Lease that another process holds
	since   time.Time // when this process first saw that version
}

// replicated reports whether this process is one of several replicas.
func (c *Cluster) replicated() bool { return c.o.Deployment != "" }

// lead reports whether this process is the leader; without replicas it always is. It takes the Lease if that is free or
// has expired, and renews it. If the Lease does not exist or may not be read, no replica leads, which is reported as a
// risk. Errors: those of the API.
func (c *Cluster) lead(ctx context.Context) (bool, error) {
	now := time.Now()
	if !c.replicated() || c.term.leads && now.Sub(c.term.renewed) < c.o.Poll/2 {
		return true, nil // renewed recently: a watch may start passes in quick succession
	}
	lease, err := c.o.Client.Leases(c.o.Namespace).Get(ctx, c.o.Deployment, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		c.follower("") // no other replica can hold it either
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
	// The API server refuses the update if another process has changed the Lease since it was read, so one of them
	// wins.
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

// remindOfLease creates an Event if there is no Lease.
func (c *Cluster) remindOfLease(ctx context.Context) {
	c.mu.Lock()
	text := c.risks[riskLease]
	c.mu.Unlock()
	if text != "" {
		c.remindOf(ctx, "LeaseMissing", text)
	}
}

// claim returns a copy of a Lease with this process as the holder, renewed now.
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

// follower notes that this process does not lead; holder is the leader, empty if it is not known. What this process has
// found out as the leader is forgotten, because it may no longer be true.
func (c *Cluster) follower(holder string) {
	if c.term.leads {
		c.drift.written, c.probe, c.searchedAt, c.provisionersAt = intent{}, prober{}, time.Time{}, time.Time{}
		c.mu.Lock()
		clear(c.risks)
		clear(c.notes)
		c.published = nil // only the leader, which publishes the bundle, lets a new CA sign
		c.mu.Unlock()
	}
	c.term.leads = false
	c.setFollows(true)
	if holder != "" {
		c.note(noteLeader, "replica "+holder+" keeps it in order")
	}
}

// observe notes the mode in which the leader has armed the webhook, which it records in the configuration. If another
// client has changed the entries since, the recorded mode counts: replicas go on denying until the leader, or the next
// one, repairs them. Errors: those of the API.
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

// release gives up the Lease when this process ends, so that another replica takes it in its next pass. Errors are
// ignored: then the Lease is taken after leaseTime.
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

// current reports whether bundle is that of the Secret now. The caller calls it after it has read the object to which
// the bundle is to be written, and before it writes: a process that has written a newer bundle there has saved it in
// the Secret before that, so either current sees the newer one, or the update of the object is refused as a conflict.
// Without this, a process that was cut off for a while could replace a new bundle with its old one. Errors: those of
// Refresh.
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

// subject returns the object of Events: the pod of this process, or the Deployment of the replicas, because RBAC cannot
// limit the right to read pods to those of a Deployment, whose names are generated.
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
