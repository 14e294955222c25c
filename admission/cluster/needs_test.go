package cluster_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"

	"trow/admission/cluster"
)

// TestWhatTheEnginesNeedCanStart without the registry, which waits for them: the volumes of the manifest's etcd, what
// must approve its pods, and services of the cluster.
func TestWhatTheEnginesNeedCanStart(t *testing.T) {
	ours := []string{"trow-etcd-0.trow-etcd." + ns + ".svc", "trow-etcd-1.trow-etcd." + ns + ".svc", "s3.example.org"}
	driver := csi("longhorn-system", "--kubelet-registration-path=/var/lib/kubelet/plugins/disk.csi.test/csi.sock")
	forEtcd := gate("kyverno", func(w *validating) {
		w.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app.kubernetes.io/component": "etcd"}}
	})
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "data-trow-etcd-1"},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}}
	both := []runtime.Object{driver, claim}
	for name, tt := range map[string]struct {
		engines   []string
		objects   []runtime.Object
		exempt    []string
		forbidden bool   // to read the claims
		why       string // empty: it enforces
		risk      string
	}{
		"nothing needs anything":          {engines: ours},
		"the driver of a member's volume": {engines: ours, objects: both, why: "longhorn-system"},
		"an exempt driver":                {engines: ours, objects: both, exempt: []string{"longhorn-system"}},
		"a driver of others":              {engines: ours, objects: both[:1]},
		"the driver, with an etcd elsewhere": {engines: []string{"trow-etcd-1.trow-etcd.db.svc"}, objects: both,
			exempt: []string{"db"}},
		"a webhook for members": {engines: ours, objects: []runtime.Object{forEtcd},
			why: "exempt-namespaces: kyverno"},
		"a webhook for members that are not": {engines: []string{"etcd.example.org"},
			objects: []runtime.Object{forEtcd}},
		"an etcd in another namespace": {engines: []string{"e-0.e.db.svc.cluster.local"},
			why: "needs e-0.e.db.svc.cluster.local in order to start, whose pods could not start while the registry " +
				"is down; add to the setting exempt-namespaces: db"},
		"an etcd in an exempt namespace": {engines: []string{"etcd.db.svc"}, exempt: []string{"db"}},
		"an image of now, a manifest of before": {engines: ours, objects: both, forbidden: true,
			risk: "may not list the volumes of trow-etcd,"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newReplicas(t, "", tt.objects...)
				if tt.forbidden {
					r.PrependReactor("get", "persistentvolumeclaims",
						func(clienttesting.Action) (bool, runtime.Object, error) {
							return true, nil, apierrors.NewForbidden(schema.GroupResource{}, "data", errors.New("no"))
						})
				}
				defer r.run(t, "trow-a", func(o *cluster.Options) {
					o.Engines, o.ExemptNamespaces = tt.engines, tt.exempt
				})()
				time.Sleep(30 * time.Second)
				synctest.Wait()
				state := r.all["trow-a"].State()
				_, line := r.all["trow-a"].Check()
				if state.Mode != map[bool]cluster.Mode{true: cluster.Enforce, false: cluster.Audit}[tt.why == ""] ||
					!strings.Contains(state.Why, tt.why) || !strings.Contains(line, tt.risk) ||
					tt.risk == "" && strings.Contains(line, "risk:") {
					t.Errorf("%+v: %s", state, line)
				}
			})
		})
	}
}
