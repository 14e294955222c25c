package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"trow/admission/cluster"
	"trow/manifests"
)

// rights are those of the server in a manifest: "namespace verb group/resource name", each with whether it was used.
// The namespace of a ClusterRole is *, and so is a name that the right is not limited to.
type rights map[string]bool

// rightsOf reads Role and ClusterRole trow.
func rightsOf(t *testing.T, manifest []byte) rights {
	t.Helper()
	all := rights{}
	for _, doc := range bytes.Split(manifest, []byte("\n---\n")) {
		var role rbacv1.Role // a ClusterRole has the same fields
		if err := yaml.Unmarshal(doc, &role); err != nil || !strings.HasSuffix(role.Kind, "Role") ||
			role.Name != "trow" {
			continue
		}
		namespace := role.Namespace
		if role.Kind == "ClusterRole" {
			namespace = "*"
		}
		for _, r := range role.Rules {
			names := r.ResourceNames
			if len(names) == 0 {
				names = []string{"*"}
			}
			for _, name := range names {
				for _, verb := range r.Verbs {
					all[fmt.Sprintf("%s %s %s/%s %s", namespace, verb, r.APIGroups[0], r.Resources[0], name)] = false
				}
			}
		}
	}
	return all
}

// use reports whether a request is granted, and notes by which right.
func (r rights) use(a clienttesting.Action) bool {
	name := ""
	switch a := a.(type) {
	case clienttesting.UpdateAction: // and creations, which are granted without a name
		if o, err := meta.Accessor(a.GetObject()); err == nil && a.GetVerb() == "update" {
			name = o.GetName()
		}
	case clienttesting.WatchAction:
		name, _ = a.GetWatchRestrictions().Fields.RequiresExactMatch("metadata.name")
	case clienttesting.GetAction:
		name = a.GetName()
	}
	for _, namespace := range []string{"*", a.GetNamespace()} {
		for _, n := range []string{name, "*"} {
			of := a.GetResource()
			right := fmt.Sprintf("%s %s %s/%s %s", namespace, a.GetVerb(), of.Group, of.Resource, n)
			if _, ok := r[right]; ok {
				r[right] = true
				return true
			}
		}
	}
	return false
}

// TestTheRightsAreThoseOfTheManifest: what a server does from its start to the end of its namespace is granted, and
// nothing is granted that it does not do.
func TestTheRightsAreThoseOfTheManifest(t *testing.T) {
	const bucket = "s3://images/trow?endpoint=https://s3.example.org"
	for what, change := range map[string]func(*manifests.Options){
		"one pod":          func(*manifests.Options) {},
		"one pod, a login": func(o *manifests.Options) { o.Login = true },
		"replicas": func(o *manifests.Options) {
			o.Replicas, o.Etcd, o.S3 = 3, "etcds://e.org:2379/t", bucket
		},
		"replicas and etcd":   func(o *manifests.Options) { o.WithEtcd, o.S3, o.Login = true, bucket, true },
		"one replica and S3":  func(o *manifests.Options) { o.WithEtcd, o.S3 = true, bucket },
		"a pod and S3":        func(o *manifests.Options) { o.S3 = bucket },
		"another that audits": func(o *manifests.Options) { o.Webhook = "audit" },
	} {
		t.Run(what, func(t *testing.T) {
			o := manifests.Defaults("0.1.0")
			change(&o)
			text, err := manifests.Render(o)
			if err != nil {
				t.Fatal(err)
			}
			may := rightsOf(t, text)
			bubble(t, func(t *testing.T) { liveOf(t, o, may) })
			for right, used := range may {
				// These are used by [cluster.Reviewer]; audit needs no proof.
				if !used && !strings.Contains(right, "reviews") &&
					(o.Webhook != "audit" || !strings.Contains(right, "endpointslices") &&
						!strings.Contains(right, " list ") &&
						!strings.Contains(right, "persistentvolume")) {
					t.Errorf("it may %s, and does not need it", right)
				}
			}
		})
	}
}

// liveOf runs a server of a manifest, with these rights alone, from its start to the end of its namespace.
func liveOf(t *testing.T, o manifests.Options, may rights) {
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }
	objects := []runtime.Object{home(), &corev1.Secret{ObjectMeta: named("trow-login")},
		&corev1.Secret{ObjectMeta: named("trow-settings")}, &coordinationv1.Lease{ObjectMeta: named("trow")},
		&appsv1.Deployment{ObjectMeta: named("trow"), Status: appsv1.DeploymentStatus{ReadyReplicas: 1}},
		&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}}}
	for _, m := range o.Members() {
		objects = append(objects, &corev1.PersistentVolumeClaim{ObjectMeta: named("data-" + m.Name),
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}})
	}
	w := newWorld(t, cluster.Mode(o.Webhook), objects...)
	w.PrependReactor("*", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if may.use(a) {
			return false, nil, nil
		}
		t.Errorf("it has no right to %s %s %+v", a.GetVerb(), a.GetResource().Resource, a)
		return true, nil, apierrors.NewForbidden(a.GetResource().GroupResource(), "x", errors.New(a.GetVerb()))
	})
	w.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !may.use(a) {
			t.Errorf("it has no right to watch %s: %+v", a.GetResource().Resource, a)
		}
		return false, nil, nil
	})
	w.options.Settings = func() error { return errors.New("a mistake") }
	if o.Deployment() {
		w.options.Deployment, w.options.Pod = "trow", "trow-a"
		w.options.Refresh = func(context.Context) error { return nil }
		w.options.Key = func(string) ([]byte, error) { return []byte("key"), nil }
		if o.WithEtcd {
			for _, m := range o.Members() {
				w.options.Engines = append(w.options.Engines, m.Host)
			}
		}
		shelf := cluster.NewShelf(w.options)
		if _, err := shelf.Load(); err != nil {
			t.Error(err)
		}
		if err := shelf.Save([]byte("good")); err != nil {
			t.Error(err)
		}
	}
	if o.Login {
		w.options.LoginSecret = "trow-login"
		var user, password string
		if err := w.options.Login(t.Context(), &user, &password); err != nil {
			t.Error(err)
		}
	}
	w.set(func() { w.cut = true }) // and an Event says so
	w.start(t)
	time.Sleep(time.Minute)
	w.set(func() { w.cut = false })
	secrets := corev1.SchemeGroupVersion.WithResource("secrets")
	object, err := w.Tracker().Get(secrets, ns, "trow-tls")
	if err != nil {
		t.Fatal(err)
	}
	secret := object.(*corev1.Secret)
	secret.Annotations = map[string]string{"trow.io/rotate-ca": "now"}
	if err := w.Tracker().Update(secrets, secret, ns); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	if s := w.c.State(); s.Mode != cluster.Mode(o.Webhook) || s.Why != "" {
		t.Errorf("%+v", s)
	}
	w.terminate(t)
	time.Sleep(time.Minute)
	synctest.Wait()
	if s := w.c.State(); s.Mode != cluster.Off {
		t.Errorf("in the end %+v", s)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if text := w.log.String(); strings.Contains(text, `"level":"error"`) {
		t.Errorf("the log is %s", text)
	}
}
