package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/manifests/kube"
)

// absent says that the configuration does not exist, and what to do.
const absent = "ValidatingWebhookConfiguration " + kube.Name + " does not exist, and the server has no right to " +
	"create it; apply the manifest of this version: kubectl apply -f trow.yaml, or the object alone: " +
	"echo '{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: " +
	kube.Name + "}}' | kubectl apply -f -"

const (
	eventMissing = "WebhookMissing"
	// eventDelay is how long the configuration is missing before an Event says so. kubectl delete -f trow.yaml deletes
	// it first, and the rights and the pod of this process a moment later: that is no reason for an Event.
	eventDelay = 4 * time.Second
)

// miss notes that the configuration does not exist: it logs that, and creates an Event if it lasts. It is not an error
// of the pass: where no API server sends reviews, all clients of the webhook have the bundle.
func (c *Cluster) miss(ctx context.Context) {
	c.set(missing, Off, absent)
	c.drift.written = intent{} // one that is created later is filled, not put back
	if c.missedAt.IsZero() {
		c.missedAt = time.Now()
		delete(c.reminded, eventMissing)
	}
	if time.Since(c.missedAt) >= eventDelay {
		c.remindOf(ctx, eventMissing, absent)
	}
}

// warn creates an Event about the pod of this process or its Deployment, which kubectl describe shows. An Event about
// the configuration itself, which has no namespace, would need the right to create Events in namespace default. message
// has at most 1,024 bytes.
func (c *Cluster) warn(ctx context.Context, reason, action, message string, at time.Time) error {
	subject, err := c.subject(ctx)
	if err != nil {
		return err
	}
	_, err = c.o.Client.Events(c.o.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.o.Namespace,
			Name: fmt.Sprintf("%.200s.%x%08x", c.o.Pod, at.UnixNano(), rand.Uint32())},
		InvolvedObject:      subject,
		Type:                corev1.EventTypeWarning,
		Reason:              reason,
		Message:             message,
		Source:              corev1.EventSource{Component: kube.Name},
		FirstTimestamp:      metav1.NewTime(at),
		LastTimestamp:       metav1.NewTime(at),
		Count:               1,
		EventTime:           metav1.NewMicroTime(at),
		Action:              action,
		ReportingController: kube.Name,
		ReportingInstance:   fmt.Sprintf("%.128s", c.o.Pod),
	}, metav1.CreateOptions{})
	return err
}
