package node

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"

	"trow/manifests/kube"
)

// watchFor bounds a watch: then it is listed anew, whatever was lost.
const watchFor = 5 * time.Minute

// follow keeps the bundle as the ConfigMap has it, until ctx is done.
func (n *Node) follow(ctx context.Context) {
	wait := n.times.backoff
	for failed := ""; ctx.Err() == nil; {
		listed, err := n.followOnce(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failed = ""
		case err.Error() != failed: // once, until it is over or another
			failed = err.Error()
			n.tell(APIFailed, err, "following ConfigMap %s", kube.ConfigMapName)
		}
		if listed {
			wait = n.times.backoff
		}
		if !sleep(ctx, wait+rand.N(wait/2+1)) { // not all nodes at once
			return
		}
		if !listed {
			wait = min(2*wait, n.times.backoffs)
		}
	}
}

// followOnce reads the ConfigMap and follows it until the watch ends. It returns whether it could be read. Only this
// one object may be listed and watched.
func (n *Node) followOnce(ctx context.Context) (listed bool, err error) {
	maps := n.o.Client.ConfigMaps(n.o.Namespace)
	timeout := int64(watchFor / time.Second)
	options := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, kube.ConfigMapName).String(), TimeoutSeconds: &timeout}
	list, err := maps.List(ctx, options)
	if err != nil {
		return false, err
	}
	for i := range list.Items {
		n.take(ctx, &list.Items[i])
	}
	options.ResourceVersion = list.ResourceVersion
	w, err := maps.Watch(ctx, options)
	if err != nil {
		return true, err
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return true, nil
		case e, ok := <-w.ResultChan():
			switch m, is := e.Object.(*corev1.ConfigMap); {
			case !ok:
				return true, nil
			case e.Type == watch.Error:
				return true, apierrors.FromObject(e.Object)
			case is && e.Type != watch.Deleted: // one that is gone may come back: the bundle stays
				n.take(ctx, m)
			}
		}
	}
}

// take makes the ConfigMap's bundle ours. An empty one has not been filled in yet.
func (n *Node) take(ctx context.Context, m *corev1.ConfigMap) {
	text := m.Data[kube.CAKey]
	if m.Name != kube.ConfigMapName || text == "" {
		return
	}
	bundle, pool, err := parseBundle(text)
	if err != nil {
		n.report(ctx, BadBundle, err, "%s of ConfigMap %s cannot be used", kube.CAKey, kube.ConfigMapName)
		return
	}
	if old := n.bundle.Load(); old != nil && bytes.Equal(*old, bundle) {
		return
	}
	n.upstream.trust(n.transport(pool))
	n.bundle.Store(&bundle)
	n.tell(Trusts, nil, "the bundle of ConfigMap %s is in use", kube.ConfigMapName)
	select {
	case n.changed <- struct{}{}:
	default: // it is going to look
	}
}

// parseBundle reads one or more certificates and returns them without whatever stood between them. Errors: what is
// no certificate.
func parseBundle(text string) ([]byte, *x509.CertPool, error) {
	var out []byte
	pool := x509.NewCertPool()
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, nil, fmt.Errorf("it holds a %.40s where a certificate belongs", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, err
		}
		pool.AddCert(cert)
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
	}
	if len(out) == 0 {
		return nil, nil, errors.New("it holds no certificate in PEM")
	}
	return out, pool, nil
}

// identify learns which DaemonSet this process belongs to.
func (n *Node) identify(ctx context.Context) {
	for wait := n.times.backoff; ; wait = min(2*wait, n.times.backoffs) {
		if n.learn(ctx) || !sleep(ctx, wait) {
			return
		}
	}
}

// learn reports whether it is known which DaemonSet this process is of; it asks if it is not.
func (n *Node) learn(ctx context.Context) bool {
	if n.uid.Load() != nil {
		return true
	}
	d, err := n.o.Client.DaemonSets(n.o.Namespace).Get(ctx, n.o.DaemonSet, metav1.GetOptions{})
	if err == nil {
		n.uid.Store(&d.UID)
	}
	return err == nil
}

// leave takes the files away if this is an uninstallation.
func (n *Node) leave() {
	gone, why := n.uninstalled()
	if !gone {
		n.tell(Kept, nil, "the node's files stay: %s", why)
		return
	}
	n.removeFiles()
}

// uninstalled reports whether the DaemonSet is gone or going, and why that is believed. Its rights go along with it:
// a refusal is an answer.
func (n *Node) uninstalled() (bool, string) {
	ctx, cancel := context.WithTimeout(context.Background(), n.times.ask)
	defer cancel()
	d, err := n.o.Client.DaemonSets(n.o.Namespace).Get(ctx, n.o.DaemonSet, metav1.GetOptions{})
	switch uid := n.uid.Load(); {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return true, err.Error()
	case err != nil:
		return false, fmt.Sprintf("the API server does not say whether DaemonSet %s is gone: %v", n.o.DaemonSet, err)
	case d.DeletionTimestamp != nil:
		return true, "it is being deleted"
	case uid != nil && d.UID != *uid:
		return true, "another has its name"
	}
	return false, fmt.Sprintf("DaemonSet %s is there", n.o.DaemonSet)
}

// sleep waits, and reports whether ctx is not done.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
