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

// watchFor bounds a watch. The list after it makes up for any change that the watch has missed.
const watchFor = 5 * time.Minute

// follow takes over the bundle of the ConfigMap whenever it changes, until ctx is done.
func (n *Node) follow(ctx context.Context) {
	wait := n.times.backoff
	for failed := ""; ctx.Err() == nil; {
		listed, err := n.followOnce(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failed = ""
		case err.Error() != failed: // each error once, until it is over
			failed = err.Error()
			n.notify(APIFailed, err, "cannot follow ConfigMap %s", kube.ConfigMapName)
		}
		if listed {
			wait = n.times.backoff
		}
		if !sleep(ctx, wait+rand.N(wait/2+1)) { // the nodes must not ask all at the same time
			return
		}
		if !listed {
			wait = min(2*wait, n.times.maxBackoff)
		}
	}
}

// followOnce reads the ConfigMap and follows it until the watch ends. listed reports whether it could be read. The
// field selector is required: RBAC allows to list and watch this one object only.
func (n *Node) followOnce(ctx context.Context) (listed bool, err error) {
	configMaps := n.o.Client.ConfigMaps(n.o.Namespace)
	timeout := int64(watchFor / time.Second)
	options := metav1.ListOptions{TimeoutSeconds: &timeout,
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, kube.ConfigMapName).String()}
	list, err := configMaps.List(ctx, options)
	if err != nil {
		return false, err
	}
	for i := range list.Items {
		n.useBundle(ctx, &list.Items[i])
	}
	options.ResourceVersion = list.ResourceVersion
	w, err := configMaps.Watch(ctx, options)
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
			case is && e.Type != watch.Deleted: // a deleted ConfigMap may come back: keep the bundle
				n.useBundle(ctx, m)
			}
		}
	}
}

// useBundle puts the bundle of a ConfigMap into use. The server has not filled in an empty one yet.
func (n *Node) useBundle(ctx context.Context, m *corev1.ConfigMap) {
	text := m.Data[kube.CAKey]
	if m.Name != kube.ConfigMapName || text == "" {
		return
	}
	bundle, pool, err := parseBundle(text)
	if err != nil {
		n.report(ctx, BadBundle, err, "%s of ConfigMap %s is invalid", kube.CAKey, kube.ConfigMapName)
		return
	}
	if old := n.bundle.Load(); old != nil && bytes.Equal(*old, bundle) {
		return
	}
	n.upstream.use(n.transport(pool))
	n.bundle.Store(&bundle)
	n.notify(Trusts, nil, "trusting the CA certificates of ConfigMap %s", kube.ConfigMapName)
	signal(n.changed)
	signal(n.trusts)
	n.mirror.trusts()
}

// parseBundle parses one or more certificates, and returns them without the text between them. Errors: a block that is
// not a valid certificate; no certificate.
func parseBundle(text string) ([]byte, *x509.CertPool, error) {
	var out []byte
	pool := x509.NewCertPool()
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, nil, fmt.Errorf("PEM block %.40s is not a certificate", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, err
		}
		pool.AddCert(cert)
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
	}
	if len(out) == 0 {
		return nil, nil, errors.New("no certificate in PEM")
	}
	return out, pool, nil
}

// identify finds out the UID of the DaemonSet of this process.
func (n *Node) identify(ctx context.Context) {
	for wait := n.times.backoff; ; wait = min(2*wait, n.times.maxBackoff) {
		if n.learnUID(ctx) || !sleep(ctx, wait) {
			return
		}
	}
}

// learnUID reports whether the UID of the DaemonSet is known. It asks if it is not.
func (n *Node) learnUID(ctx context.Context) bool {
	if n.uid.Load() != nil {
		return true
	}
	d, err := n.o.Client.DaemonSets(n.o.Namespace).Get(ctx, n.o.DaemonSet, metav1.GetOptions{})
	if err == nil {
		n.uid.Store(&d.UID)
	}
	return err == nil
}

// leave removes the files if Trow is being uninstalled: invariant 10.
func (n *Node) leave() {
	gone, why := n.uninstalled()
	if !gone {
		n.notify(Kept, nil, "keeping the node's files: %s", why)
		return
	}
	n.removeFiles()
}

// uninstalled reports whether the DaemonSet is deleted or being deleted, and how this is known. Deleting the manifest
// deletes the rights of this process as well, so that a refusal is an answer.
func (n *Node) uninstalled() (bool, string) {
	ctx, cancel := context.WithTimeout(context.Background(), n.times.ask)
	defer cancel()
	d, err := n.o.Client.DaemonSets(n.o.Namespace).Get(ctx, n.o.DaemonSet, metav1.GetOptions{})
	switch uid := n.uid.Load(); {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return true, err.Error()
	case err != nil:
		return false, fmt.Sprintf("cannot find out whether DaemonSet %s was deleted: %v", n.o.DaemonSet, err)
	case d.DeletionTimestamp != nil:
		return true, "the DaemonSet is being deleted"
	case uid != nil && d.UID != *uid:
		return true, "another DaemonSet has its name"
	}
	return false, fmt.Sprintf("DaemonSet %s exists", n.o.DaemonSet)
}

// sleep waits for d. It reports false, early, if ctx is done.
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
