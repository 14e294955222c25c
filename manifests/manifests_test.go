package manifests_test

import (
	"bufio"
	"bytes"
	"io"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	kyaml "sigs.k8s.io/yaml"

	"trow/manifests"
)

// objects decodes the manifest strictly: a field that Kubernetes does not know is an error.
func objects(t *testing.T) (all []any) {
	t.Helper()
	r := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifests.Trow)))
	for {
		doc, err := r.Read()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		var kind metav1.TypeMeta
		if err := kyaml.Unmarshal(doc, &kind); err != nil {
			t.Fatal(err)
		}
		into := map[string]any{
			"v1/ServiceAccount":   &corev1.ServiceAccount{},
			"v1/Service":          &corev1.Service{},
			"apps/v1/StatefulSet": &appsv1.StatefulSet{},
		}[kind.APIVersion+"/"+kind.Kind]
		if into == nil {
			t.Fatalf("%s %s is not expected here", kind.APIVersion, kind.Kind)
		}
		if err := kyaml.UnmarshalStrict(doc, into); err != nil {
			t.Fatalf("%s: %v", kind.Kind, err)
		}
		all = append(all, into)
	}
}

func TestTheManifestIsWhatTheServerExpects(t *testing.T) {
	var service *corev1.Service
	var set *appsv1.StatefulSet
	for _, o := range objects(t) {
		switch o := o.(type) {
		case *corev1.Service:
			service = o
		case *appsv1.StatefulSet:
			set = o
		}
	}
	if service == nil || set == nil {
		t.Fatal("a Service or the StatefulSet is missing")
	}
	if service.Name != "trow" || service.Namespace != "kube-public" || service.Spec.Ports[0].NodePort != 31000 {
		t.Errorf("the address is not trow.kube-public:31000: %s.%s:%d", service.Name, service.Namespace, service.Spec.Ports[0].NodePort)
	}
	pod := set.Spec.Template.Spec
	c := pod.Containers[0]
	if service.Spec.Ports[0].TargetPort.StrVal != c.Ports[0].Name || c.Ports[0].ContainerPort != 8443 {
		t.Error("the Service does not lead to the port that the server listens on")
	}
	for key, value := range service.Spec.Selector {
		if set.Spec.Template.Labels[key] != value {
			t.Error("the Service does not select the pod")
		}
	}
	if *pod.EnableServiceLinks || !*pod.SecurityContext.RunAsNonRoot || !*c.SecurityContext.ReadOnlyRootFilesystem ||
		*c.SecurityContext.AllowPrivilegeEscalation || c.SecurityContext.Capabilities.Drop[0] != "ALL" {
		t.Error("the pod may do more than it needs")
	}
	if set.Spec.VolumeClaimTemplates[0].Name != c.VolumeMounts[0].Name || c.VolumeMounts[0].MountPath != "/data" {
		t.Error("the volume is not where the data is")
	}
}
