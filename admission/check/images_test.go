package check

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"trow/manifests/kube/kubetest"
)

// TestImagesOfManifests: of pods, workloads, lists and custom resources, in files, directories and standard input.
func TestImagesOfManifests(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	write("a.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers: [{name: a, image: one}, {name: b, image: two}]
  initContainers: [{name: c, image: one}]
  ephemeralContainers: [{name: d, image: three}]
  volumes: [{name: v, image: {reference: four}}, {name: w, emptyDir: {}}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: c}
spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: a, image: five}]}}}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: m}
`)
	write("b.json", `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"argoproj.io/v1alpha1","kind":"Rollout",
"metadata":{"name":"r"},"spec":{"baseImage":"x","template":{"spec":{"containers":[{"name":"a","image":"six"}]}}}}]}`)
	in := strings.NewReader(`{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"p"},` +
		`"spec":{"containers":[{"name":"a","image":"seven"}]}}]}`)
	var notes []string
	images, err := Cluster{}.Images(in, []string{dir, "-"}, func(text string) { notes = append(notes, text) })
	if err != nil || !slices.Equal(images, []string{"one", "two", "three", "four", "five", "six", "seven"}) {
		t.Errorf("%v, %v", images, err)
	}
	if len(notes) != 1 || !strings.Contains(notes[0], "spec.baseImage may name images") {
		t.Errorf("%v", notes)
	}
	for _, row := range []struct{ text, want string }{
		{"kind: Pod", "apiVersion"},
		{"", "no pod in"},
		{"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: x}}", "Pod/a"},
		{"kind: Pod\n---\nkind: Pod", "and 1 more"},
	} {
		_, err := Cluster{}.Images(nil, []string{write("bad.yaml", row.text)}, func(string) {})
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q: %v", row.text, err)
		}
	}
}

// TestImagesOfACluster: of pods in all namespaces, and the platforms of the nodes if they may be listed.
func TestImagesOfACluster(t *testing.T) {
	pod := func(namespace string, images ...string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "p"}}
		for _, image := range images {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Image: image})
		}
		p.Spec.Volumes = []corev1.Volume{{}, {VolumeSource: corev1.VolumeSource{
			Image: &corev1.ImageVolumeSource{Reference: "volume"}}}}
		return p
	}
	node := func(name, arch string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: corev1.NodeStatus{
			NodeInfo: corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: arch}}}
	}
	set := fake.NewClientset(pod("a", "one", "two"), pod("b", "two", "three"), node("x", "arm64"), node("y", "amd64"),
		node("z", "arm64"))
	images, platforms, err := running(t.Context(), kubetest.Client(set))
	if slices.Sort(images); err != nil || !slices.Equal(images, []string{"one", "three", "two", "volume"}) ||
		!slices.Equal(platforms, []string{"linux/amd64", "linux/arm64"}) {
		t.Errorf("%v, %v, %v", images, platforms, err)
	}
	forbid := func(resource string) {
		set.PrependReactor("list", resource, func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", nil)
		})
	}
	forbid("nodes")
	if images, platforms, err := running(t.Context(), kubetest.Client(set)); len(images) != 4 || platforms != nil ||
		err != nil {
		t.Errorf("without the right to list nodes: %v, %v, %v", images, platforms, err)
	}
	forbid("pods")
	if _, _, err := running(t.Context(), kubetest.Client(set)); err == nil ||
		!strings.Contains(err.Error(), "kubectl get pods -A") {
		t.Errorf("without the right to list pods: %v", err)
	}
	if _, _, err := running(t.Context(), kubetest.Client(fake.NewClientset())); err == nil {
		t.Error("without pods")
	}
	if _, _, err := (Cluster{}).Running(t.Context(), filepath.Join(t.TempDir(), "none"), ""); err == nil ||
		!strings.Contains(err.Error(), "--kubeconfig") {
		t.Errorf("without a kubeconfig: %v", err)
	}
}
