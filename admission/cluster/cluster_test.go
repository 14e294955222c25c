package cluster_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"trow/admission/cluster"
	"trow/manifests/kube/kubetest"
)

const ns = "kube-public"

// world is a cluster in which the manifest was applied, and one process.
type world struct {
	*fake.Clientset
	options cluster.Options
	c       *cluster.Cluster

	mu     sync.Mutex
	ca     string
	ready  bool
	events []cluster.Event
	asked  int // rotations
}

// newWorld has the objects of the manifest, a ready pod with a claim, and what else is given.
func newWorld(t *testing.T, mode cluster.Mode, more ...runtime.Object) *world {
	t.Helper()
	objects := append(more,
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "trow", UID: "role-uid"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow-tls"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow-ca"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow-0"},
			Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-trow-0"}}}}},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}},
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "data-trow-0"},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}},
		&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "disk.csi.test"}}}})
	w := &world{Clientset: fake.NewClientset(objects...), ca: "CA 1", ready: true}
	w.optimistic()
	w.options = cluster.Options{Client: kubetest.Client(w.Clientset), Namespace: ns, Pod: "trow-0", Mode: mode, Poll: time.Second,
		CA:    func() []byte { w.mu.Lock(); defer w.mu.Unlock(); return []byte(w.ca) },
		Ready: func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.ready },
		Rotate: func(context.Context) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.asked++
			w.ca = "CA 2"
			return nil
		},
		Notify: func(e cluster.Event) { w.mu.Lock(); defer w.mu.Unlock(); w.events = append(w.events, e) },
	}
	return w
}

// optimistic makes the clientset give objects a resourceVersion, and refuse an update with another, as the API
// server does. The clientset alone does not look at it.
func (w *world) optimistic() {
	var mu sync.Mutex
	versions, last := map[string]string{}, 0
	w.PrependReactor("*", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		u, ok := a.(clienttesting.UpdateAction) // a create has the same methods
		if !ok || a.GetVerb() != "update" && a.GetVerb() != "create" {
			return false, nil, nil
		}
		mu.Lock()
		defer mu.Unlock()
		object, err := meta.Accessor(u.GetObject())
		if err != nil {
			return true, nil, err
		}
		key := a.GetResource().Resource + "/" + object.GetName()
		if a.GetVerb() == "update" && object.GetResourceVersion() != versions[key] {
			return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: a.GetResource().Resource}, object.GetName(), errors.New("changed"))
		}
		last++
		object.SetResourceVersion(strconv.Itoa(last))
		versions[key] = object.GetResourceVersion()
		return false, nil, nil
	})
}

// start runs the process within a synctest bubble.
func (w *world) start(t *testing.T) {
	t.Helper()
	w.c = cluster.New(w.options)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- w.c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// told lets some rounds pass and returns the kinds of the events told since.
func (w *world) told() string {
	time.Sleep(2500 * time.Millisecond)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	var kinds []string
	for _, e := range w.events {
		kinds = append(kinds, string(e.Kind))
	}
	w.events = nil
	return strings.Join(kinds, ", ")
}

func (w *world) configuration(t *testing.T) *admissionregistrationv1.ValidatingWebhookConfiguration {
	t.Helper()
	v, err := w.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), "trow", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// bubble runs a test with a clock of its own.
func bubble(t *testing.T, f func(*testing.T)) { synctest.Test(t, f) }

func TestItIsArmedOnceThePodIsReady(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.ready = false
		pod, _ := w.CoreV1().Pods(ns).Get(t.Context(), "trow-0", metav1.GetOptions{})
		pod.Status.Conditions[0].Status = corev1.ConditionFalse
		w.CoreV1().Pods(ns).UpdateStatus(t.Context(), pod, metav1.UpdateOptions{})
		w.start(t)
		for i := range 2 {
			if got := w.told(); got != "" || w.configuration(t) != nil || w.c.State().Why == "" {
				t.Fatalf("step %d: %q, armed %v, state %+v", i, got, w.configuration(t) != nil, w.c.State())
			}
			w.set(func() { w.ready = true })
		}
		pod, _ = w.CoreV1().Pods(ns).Get(t.Context(), "trow-0", metav1.GetOptions{})
		pod.Status.Conditions[0].Status = corev1.ConditionTrue
		w.Tracker().Update(corev1.SchemeGroupVersion.WithResource("pods"), pod, ns)
		if got := w.told(); got != "armed" || (w.c.State() != cluster.State{Mode: cluster.Enforce}) {
			t.Fatalf("ready: %q, %+v", got, w.c.State())
		}
		v := w.configuration(t)
		if len(v.OwnerReferences) != 1 || v.OwnerReferences[0].Kind != "ClusterRole" || v.OwnerReferences[0].UID != "role-uid" {
			t.Errorf("owned by %+v", v.OwnerReferences)
		}
		pods, workloads := v.Webhooks[0], v.Webhooks[1]
		if pods.Name != "validator.trow.io" || *pods.FailurePolicy != admissionregistrationv1.Fail || *pods.TimeoutSeconds != 5 ||
			*pods.SideEffects != admissionregistrationv1.SideEffectClassNone || string(pods.ClientConfig.CABundle) != "CA 1" ||
			*pods.ClientConfig.Service.Path != "/validate" || pods.ClientConfig.Service.Namespace != ns {
			t.Errorf("%+v", pods)
		}
		if got := pods.NamespaceSelector.MatchExpressions[0].Values; !slices.Equal(got, []string{"kube-public", "kube-system"}) {
			t.Errorf("exempt: %v", got)
		}
		if *workloads.FailurePolicy != admissionregistrationv1.Ignore || workloads.Name != "workloads.trow.io" {
			t.Errorf("%+v", workloads)
		}
		if got := w.told(); got != "" {
			t.Errorf("and then %q", got)
		}
		for _, a := range w.Actions() {
			if a.GetVerb() == "update" && a.GetResource().Resource == "validatingwebhookconfigurations" {
				t.Error("what is as it should be is written again")
			}
		}
	})
}

func TestDriftIsPutRight(t *testing.T) {
	api := func(w *world) interface {
		Update(context.Context, *admissionregistrationv1.ValidatingWebhookConfiguration, metav1.UpdateOptions) (*admissionregistrationv1.ValidatingWebhookConfiguration, error)
		Delete(context.Context, string, metav1.DeleteOptions) error
	} {
		return w.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	}
	for name, drift := range map[string]func(*testing.T, *world){
		"deleted": func(t *testing.T, w *world) { api(w).Delete(t.Context(), "trow", metav1.DeleteOptions{}) },
		"opened": func(t *testing.T, w *world) {
			v := w.configuration(t)
			v.Webhooks[0].FailurePolicy = new(admissionregistrationv1.FailurePolicyType)
			*v.Webhooks[0].FailurePolicy = admissionregistrationv1.Ignore
			api(w).Update(t.Context(), v, metav1.UpdateOptions{})
		},
		"emptied": func(t *testing.T, w *world) {
			v := w.configuration(t)
			v.Webhooks = nil
			api(w).Update(t.Context(), v, metav1.UpdateOptions{})
		},
		"disowned": func(t *testing.T, w *world) {
			v := w.configuration(t)
			v.OwnerReferences = nil
			api(w).Update(t.Context(), v, metav1.UpdateOptions{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, cluster.Enforce)
				w.options.Poll = time.Hour // so that it is the watch that sees it
				w.start(t)
				time.Sleep(2 * time.Hour)
				if got := w.told(); got != "armed" {
					t.Fatalf("told %q", got)
				}
				want := w.configuration(t)
				drift(t, w)
				if got := w.told(); got != "restored" {
					t.Errorf("told %q", got)
				}
				got := w.configuration(t)
				if got == nil || !equality.Semantic.DeepEqual(got.Webhooks, want.Webhooks) || len(got.OwnerReferences) != 1 {
					t.Error("not as it was")
				}
			})
		})
	}
}

func TestANewBundleReachesEverybody(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.start(t)
		w.told()
		if err := cluster.RotateCA(t.Context(), kubetest.Client(w.Clientset), ns); err != nil {
			t.Fatal(err)
		}
		if got := w.told(); got != "published" || w.asked != 1 {
			t.Errorf("told %q, %d rotations", got, w.asked)
		}
		m, _ := w.CoreV1().ConfigMaps(ns).Get(t.Context(), "trow-ca", metav1.GetOptions{})
		s, _ := w.CoreV1().Secrets(ns).Get(t.Context(), "trow-tls", metav1.GetOptions{})
		if m.Data["ca.crt"] != "CA 2" || string(w.configuration(t).Webhooks[0].ClientConfig.CABundle) != "CA 2" || !w.c.Published([]byte("CA 2")) || w.c.Published([]byte("CA 1")) {
			t.Errorf("the ConfigMap has %v", m.Data)
		}
		if len(s.Annotations) != 0 {
			t.Errorf("the request stays: %v", s.Annotations)
		}
	})
}

func TestAModeThatDeniesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Audit, critical("elsewhere"))
		w.start(t)
		if got := w.told(); got != "armed" || w.c.State().Mode != cluster.Audit || *w.configuration(t).Webhooks[0].FailurePolicy != admissionregistrationv1.Ignore {
			t.Errorf("audit: %q, %+v", got, w.c.State())
		}
	})
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Off, &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "trow"}})
		w.start(t)
		if got := w.told(); got != "disarmed" || w.configuration(t) != nil || (w.c.State() != cluster.State{Mode: cluster.Off}) {
			t.Errorf("off: %q, %+v", got, w.c.State())
		}
		if m, _ := w.CoreV1().ConfigMaps(ns).Get(t.Context(), "trow-ca", metav1.GetOptions{}); m.Data["ca.crt"] != "CA 1" {
			t.Error("without a webhook nodes are not told the CA")
		}
	})
}

func TestDisarmAndArm(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.start(t)
		w.told()
		found, err := cluster.Disarm(t.Context(), kubetest.Client(w.Clientset))
		if !found || err != nil {
			t.Fatalf("Disarm: %v, %v", found, err)
		}
		if got := w.told(); got != "disarmed" || w.configuration(t) != nil || !strings.Contains(w.c.State().Why, "trow arm") {
			t.Errorf("after disarm: %q, %+v", got, w.c.State())
		}
		if err := cluster.Arm(t.Context(), kubetest.Client(w.Clientset)); err != nil {
			t.Fatal(err)
		}
		if got := w.told(); got != "armed" || w.configuration(t) == nil {
			t.Errorf("after arm: %q", got)
		}
		w.RbacV1().ClusterRoles().Delete(t.Context(), "trow", metav1.DeleteOptions{})
		w.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(t.Context(), "trow", metav1.DeleteOptions{})
		if got := w.told(); got != "failed" || w.configuration(t) != nil {
			t.Errorf("after the manifest was deleted: %q, armed %v", got, w.configuration(t) != nil)
		}
		if found, err := cluster.Disarm(t.Context(), kubetest.Client(w.Clientset)); found || err != nil {
			t.Errorf("Disarm with nothing there: %v, %v", found, err)
		}
		if err := cluster.Arm(t.Context(), kubetest.Client(w.Clientset)); err == nil || !strings.Contains(err.Error(), "apply the manifest") {
			t.Errorf("Arm with nothing there: %v", err)
		}
	})
}

func daemonSet(namespace, name string, spec corev1.PodSpec) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: appsv1.DaemonSetSpec{Template: corev1.PodTemplateSpec{Spec: spec}}}
}

func critical(namespace string) *appsv1.DaemonSet {
	return daemonSet(namespace, "network", corev1.PodSpec{PriorityClassName: "system-node-critical"})
}

// csi is the DaemonSet of a volume driver, which tells the kubelet of itself in a directory of the node.
func csi(namespace string, args ...string) *appsv1.DaemonSet {
	return daemonSet(namespace, "csi-node", corev1.PodSpec{
		Volumes: []corev1.Volume{{Name: "registration", VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: "/var/lib/kubelet/plugins_registry/"}}}},
		Containers: []corev1.Container{{Name: "registrar", Args: args}}})
}

// TestTheClusterIsNotDeadlocked: what this registry needs in order to start must start without it.
func TestTheClusterIsNotDeadlocked(t *testing.T) {
	ours := "--kubelet-registration-path=/var/lib/kubelet/plugins/disk.csi.test/csi.sock"
	other := "--kubelet-registration-path=/var/lib/kubelet/plugins/file.csi.test/csi.sock"
	for name, tt := range map[string]struct {
		sets   []runtime.Object
		exempt []string
		why    string // empty: it enforces
	}{
		"nothing there":                      {},
		"network in an exempt namespace":     {sets: []runtime.Object{critical("kube-system"), critical(ns)}},
		"network elsewhere":                  {sets: []runtime.Object{critical("calico-system")}, why: "calico-system"},
		"network elsewhere, exempt":          {sets: []runtime.Object{critical("calico-system")}, exempt: []string{"calico-system"}},
		"the volume's driver":                {sets: []runtime.Object{csi("longhorn-system", ours)}, why: "longhorn-system"},
		"the volume's driver, exempt":        {sets: []runtime.Object{csi("longhorn-system", ours)}, exempt: []string{"longhorn-system"}},
		"another volume's driver":            {sets: []runtime.Object{csi("disks", ours), csi("files", other)}, exempt: []string{"disks"}},
		"drivers that do not tell names":     {sets: []runtime.Object{csi("files", other)}, why: "files"},
		"a DaemonSet that nobody waits for":  {sets: []runtime.Object{daemonSet("logs", "logs", corev1.PodSpec{})}},
		"two of them, and one is not exempt": {sets: []runtime.Object{critical("a"), critical("b")}, exempt: []string{"a"}, why: "exempt-namespaces: b"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, cluster.Enforce, tt.sets...)
				w.options.Exempt = tt.exempt
				w.start(t)
				got, state := w.told(), w.c.State()
				switch {
				case tt.why == "" && (got != "armed" || state != cluster.State{Mode: cluster.Enforce}):
					t.Errorf("%q, %+v", got, state)
				case tt.why != "" && (got != "held back" || state.Mode != cluster.Audit || !strings.Contains(state.Why, tt.why) || !strings.Contains(state.Why, "exempt-namespaces")):
					t.Errorf("%q, %+v", got, state)
				case tt.why != "" && w.configuration(t).Annotations["trow.io/held-back"] != state.Why:
					t.Errorf("the configuration does not say why: %v", w.configuration(t).Annotations)
				}
			})
		})
	}
}

// TestWhatEnforcesStaysSo: else whoever may make a DaemonSet could disarm the webhook.
func TestWhatEnforcesStaysSo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.start(t)
		w.told()
		w.AppsV1().DaemonSets("evil").Create(t.Context(), critical("evil"), metav1.CreateOptions{})
		time.Sleep(2 * time.Minute)
		if got := w.told(); got != "risk" || w.c.State().Mode != cluster.Enforce {
			t.Errorf("%q, %+v", got, w.c.State())
		}
		w.start(t) // as after a restart
		if got := w.told(); w.c.State().Mode != cluster.Enforce || got != "armed, risk" {
			t.Errorf("after a restart: %q, %+v", got, w.c.State())
		}
	})
}

// TestWhatHeldItBackIsGone: then it enforces, unasked.
func TestWhatHeldItBackIsGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, critical("calico-system"))
		w.start(t)
		w.told()
		w.AppsV1().DaemonSets("calico-system").Delete(t.Context(), "network", metav1.DeleteOptions{})
		time.Sleep(2 * time.Minute)
		if got := w.told(); got != "armed" || *w.configuration(t).Webhooks[0].FailurePolicy != admissionregistrationv1.Fail {
			t.Errorf("%q, %+v", got, w.c.State())
		}
		if note := w.configuration(t).Annotations["trow.io/held-back"]; note != "" {
			t.Errorf("the configuration still says %q", note)
		}
	})
}

func TestAnErrorIsToldOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		fails := true
		w.PrependReactor("get", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return fails, nil, errors.New("the API server is on fire")
		})
		w.start(t)
		time.Sleep(time.Minute)
		if got := w.told(); got != "failed" {
			t.Errorf("told %q", got)
		}
		w.set(func() { fails = false })
		if got := w.told(); got != "armed" {
			t.Errorf("then %q", got)
		}
	})
}

func TestTheSecretIsSharedByItsVersion(t *testing.T) {
	w := newWorld(t, cluster.Enforce)
	s, ctx := cluster.NewSecret(kubetest.Client(w.Clientset), ns), t.Context()
	files, version, err := s.Load(ctx)
	if len(files) != 0 || err != nil {
		t.Fatalf("%v, %v", files, err)
	}
	if saved, err := s.Save(ctx, map[string][]byte{"a": []byte("1")}, version); !saved || err != nil {
		t.Fatalf("the first save: %v, %v", saved, err)
	}
	if saved, err := s.Save(ctx, map[string][]byte{"a": []byte("2")}, version); saved || err != nil {
		t.Errorf("a save on an old version: %v, %v", saved, err)
	}
	files, version, _ = s.Load(ctx)
	w.PrependReactor("update", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, "trow-tls", errors.New("changed"))
	})
	if saved, err := s.Save(ctx, map[string][]byte{"a": []byte("2")}, version); saved || err != nil || string(files["a"]) != "1" {
		t.Errorf("a save that comes second: %v, %v, %s", saved, err, files)
	}
	if _, _, err := cluster.NewSecret(kubetest.Client(w.Clientset), "elsewhere").Load(ctx); err == nil || !strings.Contains(err.Error(), "elsewhere/trow-tls") {
		t.Errorf("without a Secret: %v", err)
	}
}

func TestModes(t *testing.T) {
	for _, s := range []string{"off", "audit", "enforce"} {
		if m, err := cluster.ParseMode(s); string(m) != s || err != nil {
			t.Errorf("%s: %v, %v", s, m, err)
		}
	}
	if _, err := cluster.ParseMode("on"); err == nil {
		t.Error("on is a mode")
	}
}
