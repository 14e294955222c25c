package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/rs/zerolog"
	"github.com/spf13/pflag"
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
	typed "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	clienttesting "k8s.io/client-go/testing"

	"trow/admission/cluster"
	"trow/manifests/kube/kubetest"
)

const ns = "kube-public"

// world is a cluster in which the manifest was applied, and one server.
type world struct {
	*fake.Clientset
	options cluster.Options
	c       *cluster.Cluster

	mu        sync.Mutex // guards the rest
	ca        string
	ready     bool
	log       bytes.Buffer
	rotations int
	admin     bool // whether requests have the rights of an administrator
	cut       bool // whether the API server does not reach the webhook
	probed    int  // probes that the API server has had
}

// Write implements io.Writer for the log.
func (w *world) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.Write(b)
}

// newWorld has the objects of the manifest, a ready pod with a claim, and the objects that are given.
func newWorld(t *testing.T, mode cluster.Mode, more ...runtime.Object) *world {
	t.Helper()
	configuration := func(o runtime.Object) bool {
		v, ok := o.(*admissionregistrationv1.ValidatingWebhookConfiguration)
		return ok && v.Name == "trow"
	}
	if !slices.ContainsFunc(more, configuration) {
		more = append(more, empty())
	}
	objects := append(more,
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "trow", UID: "role-uid"}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow-tls"}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow-ca"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow-0", UID: "pod-uid"},
			Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-trow-0"}}}}},
			Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
				{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}},
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "data-trow-0"},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv"}},
		&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				CSI: &corev1.CSIPersistentVolumeSource{Driver: "disk.csi.test"}}}})
	w := &world{Clientset: fake.NewClientset(objects...), ca: "CA 1", ready: true}
	w.optimistic()
	w.limited()
	w.dryRuns()
	w.options = cluster.Options{Webhook: string(mode), Client: kubetest.Client(w.Clientset), Namespace: ns,
		Pod:  "trow-0",
		Poll: time.Second, Log: zerolog.New(w),
		CA:    func() []byte { w.mu.Lock(); defer w.mu.Unlock(); return []byte(w.ca) },
		Ready: func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.ready },
		Rotate: func(context.Context) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.rotations++
			w.ca = "CA 2"
			return nil
		},
	}
	return w
}

// optimistic makes the clientset give each object a resourceVersion, and refuse an update with another one, as the API
// server does. The clientset alone ignores it.
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
			resource := schema.GroupResource{Resource: a.GetResource().Resource}
			return true, nil, apierrors.NewConflict(resource, object.GetName(), errors.New("changed"))
		}
		last++
		object.SetResourceVersion(strconv.Itoa(last))
		versions[key] = object.GetResourceVersion()
		return false, nil, nil
	})
}

// start runs the server within a synctest bubble.
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

// logged lets some passes run and returns the events logged since the last call.
func (w *world) logged(t *testing.T) string {
	t.Helper()
	time.Sleep(2500 * time.Millisecond)
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	var events []string
	for line := range strings.Lines(w.log.String()) {
		var e struct{ Level, Event, Mode, Why, Error, Message string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		level := "info"
		switch e.Event {
		case "held back", "risk", "restored", "missing":
			level = "warn"
		case "failed":
			level = "error"
		}
		if e.Message != "webhook" || e.Level != level || e.Mode == "" || (e.Error != "") != (e.Event == "failed") ||
			(e.Why != "") != (w.c.State().Why != "" || e.Event == "risk" || e.Event == "restored") &&
				e.Event != "failed" {
			t.Errorf("logged %s", line)
		}
		events = append(events, e.Event)
	}
	w.log.Reset()
	return strings.Join(events, ", ")
}

func (w *world) configuration(t *testing.T) *admissionregistrationv1.ValidatingWebhookConfiguration {
	t.Helper()
	v, err := w.AdmissionregistrationV1().ValidatingWebhookConfigurations().
		Get(t.Context(), "trow", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// armed reports whether the webhook configuration has webhooks.
func (w *world) armed(t *testing.T) bool {
	t.Helper()
	v := w.configuration(t)
	return v != nil && len(v.Webhooks) > 0
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// bubble runs a test with a fake clock.
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
			if got := w.logged(t); got != "" || w.armed(t) || w.c.State().Why == "" {
				t.Fatalf("step %d: %q, armed %v, state %+v", i, got, w.armed(t), w.c.State())
			}
			w.set(func() { w.ready = true })
		}
		pod, _ = w.CoreV1().Pods(ns).Get(t.Context(), "trow-0", metav1.GetOptions{})
		pod.Status.Conditions[0].Status = corev1.ConditionTrue
		w.Tracker().Update(corev1.SchemeGroupVersion.WithResource("pods"), pod, ns)
		if got := w.logged(t); got != "armed" || (w.c.State() != cluster.State{Mode: cluster.Enforce}) {
			t.Fatalf("ready: %q, %+v", got, w.c.State())
		}
		v := w.configuration(t)
		if len(v.OwnerReferences) != 0 {
			t.Errorf("owned by %+v", v.OwnerReferences)
		}
		pods, workloads := v.Webhooks[0], v.Webhooks[1]
		if pods.Name != "validator.trow.io" || *pods.FailurePolicy != admissionregistrationv1.Fail ||
			*pods.TimeoutSeconds != 5 || *pods.SideEffects != admissionregistrationv1.SideEffectClassNoneOnDryRun ||
			string(pods.ClientConfig.CABundle) != "CA 1" ||
			*pods.ClientConfig.Service.Path != "/validate" || pods.ClientConfig.Service.Namespace != ns {
			t.Errorf("%+v", pods)
		}
		for _, part := range []string{"'system:nodes' in request.userInfo.groups", "startsWith('system:node:')",
			"has(object.metadata.annotations) && 'kubernetes.io/config.mirror' in object.metadata.annotations"} {
			if c := pods.MatchConditions[1]; c.Name != "not-by-nodes" || !strings.Contains(c.Expression, part) {
				t.Errorf("%s exempts more than mirror pods of nodes: %s lacks %s", c.Name, c.Expression, part)
			}
		}
		got := pods.NamespaceSelector.MatchExpressions[0].Values
		if !slices.Equal(got, []string{"kube-public", "kube-system"}) {
			t.Errorf("exempt: %v", got)
		}
		if *workloads.FailurePolicy != admissionregistrationv1.Ignore || workloads.Name != "workloads.trow.io" ||
			*workloads.SideEffects != admissionregistrationv1.SideEffectClassNone {
			t.Errorf("%+v", workloads)
		}
		if got := w.logged(t); got != "" {
			t.Errorf("then %q", got)
		}
		written := 0
		for _, a := range w.Actions() {
			if a.GetVerb() == "update" && a.GetResource().Resource == "validatingwebhookconfigurations" {
				written++
			}
		}
		if written != 2 { // with Ignore, and with Fail once the API server has shown that it reaches the webhook
			t.Errorf("a configuration that is as it should be is written again: %d times", written)
		}
	})
}

// role is the ClusterRole of the manifest as an owner.
var role = metav1.OwnerReference{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRole", Name: "trow",
	UID: "role-uid"}

func TestDriftIsCorrected(t *testing.T) {
	api := func(w *world) typed.ValidatingWebhookConfigurationInterface {
		return w.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	}
	for name, drift := range map[string]func(*testing.T, *world){
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
		"owned": func(t *testing.T, w *world) {
			v := w.configuration(t)
			v.OwnerReferences = []metav1.OwnerReference{role}
			api(w).Update(t.Context(), v, metav1.UpdateOptions{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, cluster.Enforce)
				w.options.Poll = time.Hour // so that only the watch can notice
				w.start(t)
				time.Sleep(2 * time.Hour)
				if got := w.logged(t); got != "armed" {
					t.Fatalf("logged %q", got)
				}
				want := w.configuration(t)
				drift(t, w)
				if got := w.logged(t); got != "restored" {
					t.Errorf("logged %q", got)
				}
				got := w.configuration(t)
				if got == nil || !equality.Semantic.DeepEqual(got.Webhooks, want.Webhooks) ||
					len(got.OwnerReferences) != 0 {
					t.Error("the configuration is not as it was")
				}
			})
		})
	}
}

func TestANewBundleIsPublished(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.start(t)
		w.logged(t)
		if err := cluster.RotateCA(t.Context(), kubetest.Client(w.Clientset), ns); err != nil {
			t.Fatal(err)
		}
		if got := w.logged(t); got != "published" || w.rotations != 1 {
			t.Errorf("logged %q, %d rotations", got, w.rotations)
		}
		m, _ := w.CoreV1().ConfigMaps(ns).Get(t.Context(), "trow-ca", metav1.GetOptions{})
		s, _ := w.CoreV1().Secrets(ns).Get(t.Context(), "trow-tls", metav1.GetOptions{})
		inWebhook := string(w.configuration(t).Webhooks[0].ClientConfig.CABundle)
		if m.Data["ca.crt"] != "CA 2" || inWebhook != "CA 2" {
			t.Errorf("the ConfigMap has %v, the configuration %q", m.Data, inWebhook)
		}
		if !w.c.Published([]byte("CA 2")) || w.c.Published([]byte("CA 1")) {
			t.Error("Published is wrong")
		}
		if len(s.Annotations) != 0 {
			t.Errorf("the annotation with the request stays: %v", s.Annotations)
		}
	})
}

func TestModesThatDenyNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Audit, critical("elsewhere"))
		w.start(t)
		if got := w.logged(t); got != "armed" || w.c.State().Mode != cluster.Audit || w.c.Denies() ||
			*w.configuration(t).Webhooks[0].FailurePolicy != admissionregistrationv1.Ignore {
			t.Errorf("audit: %q, %+v", got, w.c.State())
		}
	})
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Off, earlier())
		w.start(t)
		off := cluster.State{Mode: cluster.Off}
		if got := w.logged(t); got != "disarmed" || w.configuration(t) == nil || w.armed(t) || w.c.State() != off {
			t.Errorf("off: %q, %+v", got, w.c.State())
		}
		w.remove(t) // the manifest of webhook: off has none
		if got := w.logged(t); got != "" || w.c.State() != off {
			t.Errorf("off, without a configuration: %q, %+v", got, w.c.State())
		}
		if m, _ := w.CoreV1().ConfigMaps(ns).Get(t.Context(), "trow-ca",
			metav1.GetOptions{}); m.Data["ca.crt"] != "CA 1" {
			t.Error("without a webhook the CA is not published")
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

// csi is the DaemonSet of a volume driver, which registers with the kubelet in a directory of the node.
func csi(namespace string, args ...string) *appsv1.DaemonSet {
	return daemonSet(namespace, "csi-node", corev1.PodSpec{
		Volumes: []corev1.Volume{{Name: "registration", VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: "/var/lib/kubelet/plugins_registry/"}}}},
		Containers: []corev1.Container{{Name: "registrar", Args: args}}})
}

// TestTheClusterIsNotDeadlocked checks that what the registry needs in order to start can start without it.
func TestTheClusterIsNotDeadlocked(t *testing.T) {
	ours := "--kubelet-registration-path=/var/lib/kubelet/plugins/disk.csi.test/csi.sock"
	other := "--kubelet-registration-path=/var/lib/kubelet/plugins/file.csi.test/csi.sock"
	sets := func(all ...runtime.Object) []runtime.Object { return all }
	exempt := func(all ...string) []string { return all }
	for name, tt := range map[string]struct {
		sets   []runtime.Object
		exempt []string
		why    string // empty: it enforces
	}{
		"no DaemonSets":                  {},
		"network in an exempt namespace": {sets: sets(critical("kube-system"), critical(ns))},
		"network elsewhere":              {sets: sets(critical("calico-system")), why: "calico-system"},
		"network elsewhere, exempt":      {sets: sets(critical("calico-system")), exempt: exempt("calico-system")},
		"the volume's driver":            {sets: sets(csi("longhorn-system", ours)), why: "longhorn-system"},
		"the volume's driver, exempt": {sets: sets(csi("longhorn-system", ours)),
			exempt: exempt("longhorn-system")},
		"another volume's driver": {sets: sets(csi("disks", ours), csi("files", other)),
			exempt: exempt("disks")},
		"drivers that do not name themselves": {sets: sets(csi("files", other)), why: "files"},
		"a DaemonSet that is not needed":      {sets: sets(daemonSet("logs", "logs", corev1.PodSpec{}))},
		"two, of which one is not exempt": {sets: sets(critical("a"), critical("b")), exempt: exempt("a"),
			why: "exempt-namespaces: b"},
		"a webhook that judges our pod": {sets: sets(gate("kyverno", nil)),
			why: "be approved by ValidatingWebhookConfiguration kyverno validate.kyverno.svc (Service kyverno/svc), " +
				"whose pods could not start while the registry is down; add to the setting exempt-namespaces: kyverno"},
		"one that changes our pod": {sets: sets(mutating("istio-system")),
			why: "exempt-namespaces: istio-system"},
		"one in an exempt namespace": {sets: sets(gate("a", nil), mutating("b")), exempt: exempt("a", "b")},
		"one in kube-system":         {sets: sets(gate("kube-system", nil))},
		"one that fails open":        {sets: sets(gate("a", open))},
		"one outside the cluster": {sets: sets(gate("a", func(w *validating) {
			w.ClientConfig.Service = nil
		}))},
		"one for other kinds":             {sets: sets(gate("a", resource("secrets")))},
		"one for what pods have":          {sets: sets(gate("a", resource("pods/exec")))},
		"one for other groups":            {sets: sets(gate("a", group("apps")))},
		"one for deletions":               {sets: sets(gate("a", operation("DELETE")))},
		"one for what has no namespace":   {sets: sets(gate("a", wide))},
		"one for all":                     {sets: sets(gate("a", everything)), why: "exempt-namespaces: a"},
		"one that excludes our namespace": {sets: sets(home(), gate("a", in("kubernetes.io/metadata.name", "x")))},
		"one for our namespace": {sets: sets(home(), gate("a", in("kubernetes.io/metadata.name", ns))),
			why: "exempt-namespaces: a"},
		"one that asks for our pod's label": {sets: sets(gate("a", labelled))},
		"both": {sets: sets(critical("b"), gate("a", nil)),
			why: "exempt-namespaces: a, b"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, cluster.Enforce, tt.sets...)
				w.options.ExemptNamespaces = tt.exempt
				w.start(t)
				got, state := w.logged(t), w.c.State()
				switch {
				case tt.why == "" && (got != "armed" || state != cluster.State{Mode: cluster.Enforce}):
					t.Errorf("%q, %+v", got, state)
				case tt.why != "" && (got != "held back" || state.Mode != cluster.Audit ||
					!strings.Contains(state.Why, tt.why) ||
					!strings.Contains(state.Why, "exempt-namespaces")):
					t.Errorf("%q, %+v", got, state)
				case tt.why != "" && w.configuration(t).Annotations["trow.io/held-back"] != state.Why:
					t.Errorf("the configuration does not say why: %v", w.configuration(t).Annotations)
				}
			})
		})
	}
}

// TestEnforceModeIsKept, because otherwise a user who may create a DaemonSet could disarm the webhook.
func TestEnforceModeIsKept(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.start(t)
		w.logged(t)
		w.AppsV1().DaemonSets("evil").Create(t.Context(), critical("evil"), metav1.CreateOptions{})
		time.Sleep(2 * time.Minute)
		if got := w.logged(t); got != "risk" || w.c.State().Mode != cluster.Enforce {
			t.Errorf("%q, %+v", got, w.c.State())
		}
		w.start(t) // as after a restart
		if got := w.logged(t); w.c.State().Mode != cluster.Enforce || got != "armed, risk" {
			t.Errorf("after a restart: %q, %+v", got, w.c.State())
		}
	})
}

// TestItEnforcesOnceNothingHoldsItBack, without a restart.
func TestItEnforcesOnceNothingHoldsItBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, critical("calico-system"))
		w.start(t)
		w.logged(t)
		w.AppsV1().DaemonSets("calico-system").Delete(t.Context(), "network", metav1.DeleteOptions{})
		time.Sleep(2 * time.Minute)
		if got := w.logged(t); got != "armed" ||
			*w.configuration(t).Webhooks[0].FailurePolicy != admissionregistrationv1.Fail {
			t.Errorf("%q, %+v", got, w.c.State())
		}
		if note := w.configuration(t).Annotations["trow.io/held-back"]; note != "" {
			t.Errorf("the configuration still says %q", note)
		}
	})
}

func TestAnErrorIsLoggedOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		fails := true
		w.PrependReactor("get", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return fails, nil, errors.New("the API server is broken")
		})
		w.start(t)
		time.Sleep(time.Minute)
		if got := w.logged(t); got != "failed" {
			t.Errorf("logged %q", got)
		}
		w.set(func() { fails = false })
		if got := w.logged(t); got != "armed" {
			t.Errorf("then %q", got)
		}
	})
}

func TestASecretIsSavedOnlyOverItsVersion(t *testing.T) {
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
		resource := schema.GroupResource{Resource: "secrets"}
		return true, nil, apierrors.NewConflict(resource, "trow-tls", errors.New("changed"))
	})
	saved, err := s.Save(ctx, map[string][]byte{"a": []byte("2")}, version)
	if saved || err != nil || string(files["a"]) != "1" {
		t.Errorf("a save that loses a race: %v, %v, %s", saved, err, files)
	}
	_, _, err = cluster.NewSecret(kubetest.Client(w.Clientset), "elsewhere").Load(ctx)
	if err == nil || !strings.Contains(err.Error(), "elsewhere/trow-tls") {
		t.Errorf("without a Secret: %v", err)
	}
}

func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string // part of the error; empty: no error
	}{
		{nil, ""},
		{[]string{"--webhook=off"}, ""},
		{[]string{"--webhook=audit", "--exempt-namespaces=a,b", "--token-audience=trow", "--access-review"}, ""},
		{[]string{"--webhook=on"}, `webhook: "on": want one of off, audit, enforce`},
		{[]string{"--exempt-namespaces=a"}, "exempt-namespaces requires webhook"},
		{[]string{"--webhook=enforce", "--exempt-namespaces=A"}, `exempt-namespaces: "A"`},
		{[]string{"--token-audience= trow"}, `token-audience: " trow"`},
		{[]string{"--token-audience=" + strings.Repeat("a", 257)}, "token-audience:"},
		{[]string{"--access-review"}, "access-review requires token-audience"},
		{[]string{"--webhook=audit", "--no-tls"}, "webhook conflicts with no-tls: the API server calls webhooks"},
		{[]string{"--no-tls"}, ""},
		{[]string{"--deployment=trow"}, "deployment requires webhook"},
		{[]string{"--webhook=audit", "--deployment=A b"}, `deployment: "A b" is not a valid name`},
		{[]string{"--webhook=audit", "--deployment=trow"}, ""},
		{[]string{"--login-secret=trow-login", "--user=u"}, "login-secret: conflicts with user"},
		{[]string{"--user=u"}, ""},
	} {
		var o cluster.Options
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		o.AddFlags(fs)
		fs.BoolVar(&o.NoTLS, "no-tls", false, "") // of package tls, as the program passes it in
		fs.StringVar(&o.User, "user", "", "")     // of registry/auth, likewise
		if err := fs.Parse(tt.args); err != nil {
			t.Fatal(err)
		}
		err := o.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%v: %v, want %q", tt.args, err, tt.want)
		}
	}
}

func TestOutsideACluster(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	c, reviewer, err := cluster.Open(cluster.Options{})
	if c != nil || reviewer != nil || err != nil || c.Store() != nil || !c.Published(nil) {
		t.Errorf("without the settings: %v, %v, %v", c, reviewer, err)
	}
	if ok, text := c.Check(); !ok || text != "" {
		t.Errorf("a line about no webhook: %q", text)
	}
	_, _, err = cluster.Open(cluster.Options{Webhook: "audit"})
	if err == nil || !strings.HasPrefix(err.Error(), "webhook: ") {
		t.Errorf("the webhook: %v", err)
	}
	_, _, err = cluster.Open(cluster.Options{TokenAudience: "trow"})
	if err == nil || !strings.HasPrefix(err.Error(), "token-audience: ") {
		t.Errorf("the audience: %v", err)
	}
	if err := c.Run(t.Context()); err != nil || !c.Denies() {
		t.Errorf("no cluster: %v, denies %v", err, c.Denies())
	}
	if got := metrics(t, c); got != "" {
		t.Errorf("metrics without a cluster: %s", got)
	}
}

func gather(t *testing.T, c *cluster.Cluster) []*dto.MetricFamily {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// metrics returns the metrics of a Cluster whose names start with a prefix, by default the one that says whether it
// enforces, as name and value.
func metrics(t *testing.T, c *cluster.Cluster, prefix ...string) (text string) {
	t.Helper()
	for _, f := range gather(t, c) {
		if strings.HasPrefix(f.GetName(), append(prefix, "trow_webhook_enforcing")[0]) {
			text += fmt.Sprintf("%s %g", f.GetName(), f.GetMetric()[0].GetGauge().GetValue())
		}
	}
	return text
}

func TestTheStateForPeopleAndMonitoring(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, critical("calico-system"))
		check := func(ok, denies bool, text, metric string) {
			t.Helper()
			gotOK, got := w.c.Check()
			if gotOK != ok || !strings.HasPrefix(got, text) || w.c.Denies() != denies || metrics(t, w.c) != metric {
				t.Errorf("%v %q, denies %v, %s; want %v %q, %v, %s", gotOK, got, w.c.Denies(), metrics(t, w.c),
					ok, text, denies, metric)
			}
		}
		w.start(t)
		check(false, true, "webhook off not ready yet", "trow_webhook_enforcing 0")
		w.logged(t)
		check(false, false, "webhook audit nodes or the registry's volume need DaemonSet calico-system/network",
			"trow_webhook_enforcing 0")
		w.AppsV1().DaemonSets("calico-system").Delete(t.Context(), "network", metav1.DeleteOptions{})
		time.Sleep(2 * time.Minute)
		w.logged(t)
		check(true, true, "webhook enforce", "trow_webhook_enforcing 1")
	})
}
