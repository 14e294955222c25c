package manifests_test

import (
	"bufio"
	"bytes"
	"flag"
	"io"
	"os"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	kyaml "sigs.k8s.io/yaml"

	"trow/manifests"
)

var update = flag.Bool("update", false, "write trow.yaml anew")

// release is the version whose image trow.yaml names.
const release = "0.1.0"

func render(t *testing.T, change func(*manifests.Options)) []byte {
	t.Helper()
	o := manifests.Defaults(release)
	if change != nil {
		change(&o)
	}
	text, err := manifests.Render(o)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// objects decodes a manifest strictly: a field that Kubernetes does not know is an error. Keys are kind/name.
func objects(t *testing.T, text []byte) map[string]metav1.Object {
	t.Helper()
	all := map[string]metav1.Object{}
	r := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
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
			t.Fatalf("%v:\n%s", err, doc)
		}
		into, ok := map[string]metav1.Object{
			"v1/Namespace":        &corev1.Namespace{},
			"v1/ServiceAccount":   &corev1.ServiceAccount{},
			"v1/Secret":           &corev1.Secret{},
			"v1/ConfigMap":        &corev1.ConfigMap{},
			"v1/Service":          &corev1.Service{},
			"apps/v1/StatefulSet": &appsv1.StatefulSet{},
		}[kind.APIVersion+"/"+kind.Kind]
		if !ok {
			t.Fatalf("%s %s is not expected here", kind.APIVersion, kind.Kind)
		}
		if err := kyaml.UnmarshalStrict(doc, into); err != nil {
			t.Fatalf("%s: %v\n%s", kind.Kind, err, doc)
		}
		all[kind.Kind+"/"+into.GetName()] = into
	}
}

func TestTheFileIsWhatTheDefaultsMake(t *testing.T) {
	text := render(t, nil)
	if *update {
		if err := os.WriteFile("trow.yaml", text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile("trow.yaml")
	if err != nil || !bytes.Equal(file, text) {
		t.Errorf("trow.yaml is not what the defaults make (%v); go test ./manifests -update", err)
	}
}

func TestTheManifestIsWhatTheServerExpects(t *testing.T) {
	all := objects(t, render(t, nil))
	service, set := all["Service/trow"].(*corev1.Service), all["StatefulSet/trow"].(*appsv1.StatefulSet)
	if service.Namespace != "kube-public" || service.Spec.Ports[0].NodePort != 31000 || service.Spec.Ports[0].Port != 443 {
		t.Errorf("the address is not trow.kube-public:31000: %+v", service.Spec.Ports)
	}
	pod := set.Spec.Template.Spec
	c := pod.Containers[0]
	if service.Spec.Ports[0].TargetPort.StrVal != c.Ports[0].Name || c.Ports[0].ContainerPort != 8443 {
		t.Error("the Service does not lead to the port that the server listens on")
	}
	for _, selector := range []map[string]string{service.Spec.Selector, set.Spec.Selector.MatchLabels} {
		for key, value := range selector {
			if set.Spec.Template.Labels[key] != value {
				t.Errorf("the pod lacks label %s=%s", key, value)
			}
		}
	}
	if *pod.EnableServiceLinks || !*pod.SecurityContext.RunAsNonRoot || !*c.SecurityContext.ReadOnlyRootFilesystem || *pod.AutomountServiceAccountToken ||
		*c.SecurityContext.AllowPrivilegeEscalation || c.SecurityContext.Capabilities.Drop[0] != "ALL" ||
		pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Error("the pod may do more than it needs")
	}
	if set.Spec.VolumeClaimTemplates[0].Name != c.VolumeMounts[0].Name || c.VolumeMounts[0].MountPath != "/data" {
		t.Error("the volume is not where the data is")
	}
	if _, ok := all["Namespace/kube-public"]; ok {
		t.Error("kube-public is made, and would be deleted with the file")
	}
	for key, o := range all {
		if o.GetNamespace() != "kube-public" || o.GetLabels()["app.kubernetes.io/name"] != "trow" {
			t.Errorf("%s is in %s, labels %v", key, o.GetNamespace(), o.GetLabels())
		}
	}
}

func TestOptions(t *testing.T) {
	all := objects(t, render(t, func(o *manifests.Options) {
		o.Namespace, o.NodePort, o.Image, o.Storage = "registry", 30500, "example.com/trow:1", manifests.StorageEmpty
	}))
	set := all["StatefulSet/trow"].(*appsv1.StatefulSet)
	if all["Namespace/registry"] == nil || set.Namespace != "registry" || all["Service/trow"].(*corev1.Service).Spec.Ports[0].NodePort != 30500 {
		t.Error("another namespace or port is not heeded")
	}
	if set.Spec.Template.Spec.Containers[0].Image != "example.com/trow:1" || len(set.Spec.VolumeClaimTemplates) != 0 ||
		set.Spec.Template.Spec.Volumes[1].EmptyDir == nil {
		t.Error("another image or storage is not heeded")
	}
	settings := all["ConfigMap/trow"].(*corev1.ConfigMap).Data["trow.yaml"]
	for _, name := range []string{`"trow.registry:30500"`, `"127.0.0.1:30500"`, `"[::1]:30500"`, `"trow.registry.svc"`} {
		if !strings.Contains(settings, name) {
			t.Errorf("the settings lack %s:\n%s", name, settings)
		}
	}
	if hosting := all["ConfigMap/local-registry-hosting"]; hosting.GetNamespace() != "kube-public" {
		t.Errorf("tools look for it in kube-public, and it is in %s", hosting.GetNamespace())
	}
	all = objects(t, render(t, func(o *manifests.Options) { o.StorageClass, o.Size = "fast", "1Ti" }))
	claim := all["StatefulSet/trow"].(*appsv1.StatefulSet).Spec.VolumeClaimTemplates[0].Spec
	if *claim.StorageClassName != "fast" || claim.Resources.Requests.Storage().String() != "1Ti" {
		t.Errorf("the claim is %+v", claim)
	}
}

func TestALoginClosesIt(t *testing.T) {
	login := func(o *manifests.Options) { o.Login = true }
	all, again := objects(t, render(t, login)), objects(t, render(t, login))
	secret, pull := all["Secret/trow-login"].(*corev1.Secret), all["Secret/trow-pull"].(*corev1.Secret)
	password := secret.StringData["password"]
	if len(password) < 20 || password == again["Secret/trow-login"].(*corev1.Secret).StringData["password"] {
		t.Errorf("the password %q is short or the same each time", password)
	}
	if !strings.Contains(pull.StringData[corev1.DockerConfigJsonKey], password) || !strings.Contains(pull.StringData[corev1.DockerConfigJsonKey], "trow.kube-public:31000") {
		t.Errorf("the pull secret is %v", pull.StringData)
	}
	env := all["StatefulSet/trow"].(*appsv1.StatefulSet).Spec.Template.Spec.Containers[0].Env
	if len(env) != 2 || env[0].Name != "TROW_USER" || env[1].Name != "TROW_PASSWORD" || env[1].ValueFrom.SecretKeyRef.Name != secret.Name {
		t.Errorf("the server is told %v", env)
	}
	if bytes.Contains(render(t, nil), []byte("Secret")) {
		t.Error("there is a Secret, and nobody asked for a login")
	}
}

func TestOptionsThatCannotBeMeant(t *testing.T) {
	for flag, change := range map[string]func(*manifests.Options){
		"namespace:":     func(o *manifests.Options) { o.Namespace = "a\nb: c" },
		"host:":          func(o *manifests.Options) { o.Host = "a b" },
		"node-port:":     func(o *manifests.Options) { o.NodePort = 0 },
		"image:":         func(o *manifests.Options) { o.Image = "x: y" },
		"storage:":       func(o *manifests.Options) { o.Storage = "disk" },
		"storage-class:": func(o *manifests.Options) { o.StorageClass = "A B" },
		"size:":          func(o *manifests.Options) { o.Size = "20 Gi" },
	} {
		o := manifests.Defaults(release)
		change(&o)
		if _, err := manifests.Render(o); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s got %v", flag, err)
		}
	}
	o := manifests.Defaults(release)
	o.Host = "trow"
	if _, err := manifests.Render(o); err == nil {
		t.Error("a host without a dot is taken")
	}
	o = manifests.Defaults(release)
	o.Storage, o.StorageClass = manifests.StorageEmpty, "fast"
	if _, err := manifests.Render(o); err == nil {
		t.Error("a StorageClass for an emptyDir is taken")
	}
}
