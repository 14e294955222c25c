package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"

	"trow/manifests/kube"
)

// The configuration belongs to no namespace, so it would outlive the server if the server's namespace is deleted
// (kubectl delete namespace), and no pod would start. Therefore the server empties it as soon as the deletion begins,
// and a second time at its own end. It has to be quick: the deletion takes the server's ServiceAccount as well.

const (
	// farewellTries bounds how often the emptying is tried at once; other clients may change the configuration
	// meanwhile.
	farewellTries = 5
	// farewellTimeout bounds the second try, when the process ends.
	farewellTimeout = 5 * time.Second
)

// watchNamespace disarms once the namespace is being deleted.
func (c *Cluster) watchNamespace(ctx context.Context) {
	c.follow(ctx, func() (watch.Interface, error) {
		w, err := c.o.Client.Namespaces.Watch(ctx, named(c.o.Namespace))
		switch {
		case apierrors.IsForbidden(err):
			c.report(riskNamespace, "the server may not watch its namespace, so the webhook would stay if that is "+
				"deleted; apply the manifest of this version")
		case err == nil:
			c.report(riskNamespace, "")
		}
		return w, err
	}, func(e watch.Event) {
		if n, ok := e.Object.(*corev1.Namespace); ok && e.Type != watch.Error && (n.DeletionTimestamp != nil ||
			e.Type == watch.Deleted) {
			c.leave(ctx)
		}
	})
}

// leave empties the configuration for good: this process does not fill it again.
func (c *Cluster) leave(ctx context.Context) {
	// The mark comes first: a pass that does not see it has read the configuration before, so its write is a conflict.
	first := !c.leaving.Swap(true)
	err := c.empty(ctx)
	switch {
	case err == nil:
		c.note(noteProven, "")
		c.set(disarmed, Off, "namespace "+c.o.Namespace+" is being deleted")
	case first && ctx.Err() == nil:
		c.line(c.o.Log.Error().Err(fmt.Errorf("namespace %s is being deleted, and the webhook cannot be removed; if "+
			"pods are refused, run kubectl delete validatingwebhookconfiguration %s: %w", c.o.Namespace, kube.Name,
			err)), failed, "")
	}
}

// empty empties the configuration, if there is one. Errors: those of the API; other clients change it all the time.
func (c *Cluster) empty(ctx context.Context) error {
	for range farewellTries {
		have, err := c.o.Client.WebhookConfigurations.Get(ctx, kube.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if saved, err := c.save(ctx, have, c.want(have, nil, Off, "")); saved || err != nil {
			return err
		}
	}
	return errors.New("other clients change the configuration all the time")
}

// farewell is the second try, when the process ends: the first may have failed.
func (c *Cluster) farewell(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, farewellTimeout)
	defer cancel()
	if c.leaving.Load() || c.ending(ctx) {
		c.leave(ctx)
	}
}

// ending reports whether the namespace is being deleted, as far as the server may see that.
func (c *Cluster) ending(ctx context.Context) bool {
	n, err := c.o.Client.Namespaces.Get(ctx, c.o.Namespace, metav1.GetOptions{})
	return err == nil && n.DeletionTimestamp != nil
}

// named selects the object of this name: the right to watch can then be limited to it.
func named(name string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()}
}

// follow calls visit for each event of a watch, and starts the watch again when it has ended, until ctx is done.
func (c *Cluster) follow(ctx context.Context, start func() (watch.Interface, error), visit func(watch.Event)) {
	for ctx.Err() == nil {
		if w, err := start(); err == nil {
			each(ctx, w, visit)
		}
		select {
		case <-ctx.Done():
		case <-time.After(c.o.Poll):
		}
	}
}

// each calls visit for each event until the watch ends.
func each(ctx context.Context, w watch.Interface, visit func(watch.Event)) {
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e, open := <-w.ResultChan():
			if !open {
				return
			}
			visit(e)
		}
	}
}
