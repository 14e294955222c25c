package manifests_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	kyaml "sigs.k8s.io/yaml"

	"trow/manifests"
	"trow/manifests/kube"
	"trow/manifests/node/credential"
)

var update = flag.Bool("update", false, "write trow.yaml again")

// release is the version of the image in trow.yaml.
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

type webhookConfiguration = admissionregistrationv1.ValidatingWebhookConfiguration

// objects decodes a manifest strictly: an unknown field is an error. The keys are kind/name.
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
			"v1/Namespace":                           &corev1.Namespace{},
			"v1/ServiceAccount":                      &corev1.ServiceAccount{},
			"v1/Secret":                              &corev1.Secret{},
			"v1/ConfigMap":                           &corev1.ConfigMap{},
			"v1/Service":                             &corev1.Service{},
			"v1/ResourceQuota":                       &corev1.ResourceQuota{},
			"networking.k8s.io/v1/NetworkPolicy":     &networkingv1.NetworkPolicy{},
			"apps/v1/StatefulSet":                    &appsv1.StatefulSet{},
			"apps/v1/Deployment":                     &appsv1.Deployment{},
			"policy/v1/PodDisruptionBudget":          &policyv1.PodDisruptionBudget{},
			"coordination.k8s.io/v1/Lease":           &coordinationv1.Lease{},
			"autoscaling/v2/HorizontalPodAutoscaler": &autoscalingv2.HorizontalPodAutoscaler{},
			"apps/v1/DaemonSet":                      &appsv1.DaemonSet{},
			"admissionregistration.k8s.io/v1/ValidatingWebhookConfiguration": &webhookConfiguration{},

			"rbac.authorization.k8s.io/v1/ClusterRole":        &rbacv1.ClusterRole{},
			"rbac.authorization.k8s.io/v1/ClusterRoleBinding": &rbacv1.ClusterRoleBinding{},
			"rbac.authorization.k8s.io/v1/Role":               &rbacv1.Role{},
			"rbac.authorization.k8s.io/v1/RoleBinding":        &rbacv1.RoleBinding{},
		}[kind.APIVersion+"/"+kind.Kind]
		if !ok {
			t.Fatalf("unexpected kind %s %s", kind.APIVersion, kind.Kind)
		}
		// As kubectl does it: as JSON first, where 123 and true are no strings.
		asJSON, err := kyaml.YAMLToJSONStrict(doc)
		if err != nil {
			t.Fatalf("%s: %v\n%s", kind.Kind, err, doc)
		}
		d := json.NewDecoder(bytes.NewReader(asJSON))
		d.DisallowUnknownFields()
		if err := d.Decode(into); err != nil {
			t.Fatalf("%s: %v\n%s", kind.Kind, err, doc)
		}
		all[kind.Kind+"/"+into.GetName()] = into
	}
}

func TestTheFileHasTheDefaults(t *testing.T) {
	text := render(t, nil)
	if *update {
		if err := os.WriteFile("trow.yaml", text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile("trow.yaml")
	if err != nil || !bytes.Equal(file, text) {
		t.Errorf("trow.yaml differs from the manifest of the defaults (%v); run go test ./manifests -update", err)
	}
}

// TestEachFlag compares what each flag changes in the manifest of the defaults with a golden file: the lines that go,
// and those that come.
func TestEachFlag(t *testing.T) {
	var out strings.Builder
	before := lines(string(render(t, nil)))
	for _, flags := range [][]string{{"--namespace=registry"}, {"--host=registry.example.org"}, {"--node-port=30500"},
		{"--local-port=21001"}, {"--image=example.com/trow:1"}, {"--pull-secret=pull"}, {"--storage=empty"},
		{"--storage-class=fast"}, {"--size=1Ti"}, {"--login"}, {"--login", "--access-review"}, {"--webhook=audit"},
		{"--webhook=off"}, {"--exempt-namespaces=a,b"}, {"--no-node"}, {"--runtimes=docker,crio"}, {"--node-dir="},
		{"--node-dir=/etc"}, {"--mirrors=quay.io,localhost:5000"},
		{"--mirrors=all,docker.io", "--runtimes=docker,crio", "--mirror-port=24001"}, {"--hosting=false"},
		{"--mirrors=docker.io", "--runtimes=docker", "--write-daemon-json"},
		{"--priority-class=important"},
		{"--s3=s3://images/trow?region=eu-west-1", "--s3-secret=s3"},
		{"--replicas=3", "--etcd=etcds://etcd.example.org:2379/a",
			"--etcd-tls-secret=etcd", "--s3=s3://images", "--s3-ca-secret=ca"}, {"--replicas=3", "--max-replicas=9",
			"--with-etcd", "--s3=s3://images", "--storage-class=fast", "--pull-secret=pull"}} {
		var text bytes.Buffer
		cmd := manifests.Command(release)
		cmd.SetOut(&text)
		cmd.SetArgs(flags)
		if err := cmd.Execute(); err != nil {
			t.Fatal(err)
		}
		objects(t, text.Bytes())
		after := lines(text.String())
		fmt.Fprintf(&out, "=== trow manifest %s\n", strings.Join(flags, " "))
		for _, side := range []struct {
			sign      string
			have, not []string
		}{{"-", before, after}, {"+", after, before}} {
			count := map[string]int{}
			for _, l := range side.not {
				count[l]++
			}
			for _, l := range side.have {
				if count[l]--; count[l] < 0 {
					fmt.Fprintln(&out, strings.TrimRight(side.sign+" "+l, " "))
				}
			}
		}
	}
	const golden = "testdata/flags.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || string(want) != out.String() {
		t.Errorf("%s differs (%v); if the change is intended, run go test ./manifests -update", golden, err)
	}
}

func lines(text string) []string { return strings.Split(strings.TrimSuffix(text, "\n"), "\n") }

func TestTheServerPart(t *testing.T) {
	all := objects(t, render(t, nil))
	service, set := all["Service/trow"].(*corev1.Service), all["StatefulSet/trow"].(*appsv1.StatefulSet)
	if service.Namespace != "kube-public" || service.Spec.Ports[0].NodePort != 31000 ||
		service.Spec.Ports[0].Port != 443 {
		t.Errorf("the address is not trow.kube-public:31000: %+v", service.Spec.Ports)
	}
	pod := set.Spec.Template.Spec
	c := pod.Containers[0]
	if service.Spec.Ports[0].TargetPort.StrVal != c.Ports[0].Name || c.Ports[0].ContainerPort != 8443 {
		t.Error("the Service does not lead to the port of the server")
	}
	for _, selector := range []map[string]string{service.Spec.Selector, set.Spec.Selector.MatchLabels} {
		for key, value := range selector {
			if set.Spec.Template.Labels[key] != value {
				t.Errorf("the pod lacks label %s=%s", key, value)
			}
		}
	}
	if *pod.EnableServiceLinks || !*pod.SecurityContext.RunAsNonRoot || !*c.SecurityContext.ReadOnlyRootFilesystem ||
		*c.SecurityContext.AllowPrivilegeEscalation || c.SecurityContext.Capabilities.Drop[0] != "ALL" ||
		pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Error("the pod has rights that it does not need")
	}
	if set.Spec.VolumeClaimTemplates[0].Name != c.VolumeMounts[0].Name || c.VolumeMounts[0].MountPath != "/data" {
		t.Error("the volume is not mounted at the data directory")
	}
	if _, ok := all["Namespace/kube-public"]; ok {
		t.Error("the manifest has kube-public, and would delete it")
	}
	for key, o := range all {
		wide := strings.HasPrefix(key, "ClusterRole") || strings.HasPrefix(key, "ValidatingWebhook")
		if o.GetNamespace() != "kube-public" && !wide || o.GetLabels()["app.kubernetes.io/name"] != "trow" {
			t.Errorf("%s is in %s, labels %v", key, o.GetNamespace(), o.GetLabels())
		}
	}
}

// TestTheNamesAreThoseOfTheCode checks that the manifest creates the objects that the code looks for.
func TestTheNamesAreThoseOfTheCode(t *testing.T) {
	all := objects(t, render(t, nil))
	for _, key := range []string{"ValidatingWebhookConfiguration/" + kube.Name, "ClusterRole/" + kube.Name,
		"Service/" + kube.Name, "Secret/" + kube.SecretName,
		"ConfigMap/" + kube.ConfigMapName, "DaemonSet/" + kube.DaemonSetName} {
		if all[key] == nil {
			t.Errorf("%s is missing", key)
		}
	}
	secret := all["Secret/"+kube.SecretName].(*corev1.Secret)
	bundle := all["ConfigMap/"+kube.ConfigMapName].(*corev1.ConfigMap)
	if len(secret.Data) != 0 || len(bundle.Data) != 0 {
		t.Error("the manifest has data that the server fills in: applying it again would remove that data")
	}
	if all["Service/trow"].(*corev1.Service).Spec.Ports[0].Port != kube.ServicePort {
		t.Error("the API server would use another port")
	}
	pod := all["StatefulSet/trow"].GetName() + "-0"
	role := all["Role/trow"].(*rbacv1.Role)
	for resource, name := range map[string]string{"secrets": kube.SecretName, "configmaps": kube.ConfigMapName,
		"pods": pod, "persistentvolumeclaims": "data-" + pod} {
		i := slices.IndexFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return r.Resources[0] == resource })
		if i < 0 || !slices.Equal(role.Rules[i].ResourceNames, []string{name}) {
			t.Errorf("the server's rights on %s are not limited to %s", resource, name)
		}
	}
	// A watch of one object is a watch with a field selector for its name, which the right may be limited to.
	may := map[string]string{}
	for _, r := range all["ClusterRole/trow"].(*rbacv1.ClusterRole).Rules {
		may[r.Resources[0]] += fmt.Sprint(r.ResourceNames, r.Verbs)
	}
	if may["namespaces"] != "[kube-public] [get watch]" {
		t.Errorf("the server cannot see that its namespace is deleted, or more: %s", may["namespaces"])
	}
	wantNarrow(t, all)
}

// wantNarrow reports rights that are not limited to a name, except those that cannot be.
func wantNarrow(t *testing.T, all map[string]metav1.Object) {
	t.Helper()
	for key, o := range all {
		var rules []rbacv1.PolicyRule
		switch o := o.(type) {
		case *rbacv1.Role:
			rules = o.Rules
		case *rbacv1.ClusterRole:
			rules = o.Rules
		}
		for _, r := range rules {
			if key == "Role/trow-node" && slices.Contains(r.Resources, "secrets") {
				t.Error("trow node has rights on Secrets")
			}
			unnamed := []string{"list daemonsets", "get persistentvolumes", "create events", "list deployments",
				"list validatingwebhookconfigurations", "list mutatingwebhookconfigurations"}
			if key == "Role/trow" { // what nodes report; trow node itself may not
				unnamed = append(unnamed, "list events")
			}
			for _, verb := range r.Verbs {
				what := verb + " " + r.Resources[0]
				if len(r.ResourceNames) == 0 && !slices.Contains(unnamed, what) || verb == "*" ||
					len(r.Resources) != 1 {
					t.Errorf("%s: may %s of any name", key, what)
				}
			}
		}
	}
}

// TestTheWebhooksConfiguration checks that the manifest has it, and has it first: then the server needs no right to
// create one of any name, kubectl apply keeps the webhooks that the server fills in, and kubectl delete removes them
// before the server.
func TestTheWebhooksConfiguration(t *testing.T) {
	for what, change := range map[string]func(*manifests.Options){
		"the defaults":      nil,
		"audit":             func(o *manifests.Options) { o.Webhook = "audit" },
		"another namespace": func(o *manifests.Options) { o.Namespace = "registry" },
	} {
		doc, err := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(render(t, change)))).Read()
		if err != nil {
			t.Fatal(err)
		}
		var first map[string]any
		if err := kyaml.Unmarshal(doc, &first); err != nil {
			t.Fatal(err)
		}
		want := map[string]any{"apiVersion": "admissionregistration.k8s.io/v1",
			"kind": "ValidatingWebhookConfiguration",
			"metadata": map[string]any{"name": kube.Name, "labels": map[string]any{"app.kubernetes.io/name": "trow",
				kube.ComponentLabel: kube.WebhookComponent}}} // without webhooks, not even an empty list
		if !equality.Semantic.DeepEqual(first, want) {
			t.Errorf("%s: the first object is %v, want %v", what, first, want)
		}
	}
	all := objects(t, render(t, func(o *manifests.Options) { o.Webhook = "off" }))
	if all["ValidatingWebhookConfiguration/trow"] != nil {
		t.Error("with --webhook off the manifest has it")
	}
	for what, all := range map[string]map[string]metav1.Object{"off": all, "the defaults": objects(t, render(t, nil))} {
		var may []string
		for _, r := range all["ClusterRole/trow"].(*rbacv1.ClusterRole).Rules {
			if slices.Contains(r.Resources, "validatingwebhookconfigurations") {
				may = append(may, r.Verbs...)
			}
		}
		if !slices.Equal(may, []string{"get", "watch", "update", "list"}) { // of a webhook off, to empty what is left
			t.Errorf("%s: the server may %v", what, may)
		}
	}
}

func TestTheNodePart(t *testing.T) {
	all := objects(t, render(t, nil))
	pod := all["DaemonSet/trow-node"].(*appsv1.DaemonSet).Spec.Template.Spec
	c := pod.Containers[0]
	if !pod.HostNetwork || !*pod.EnableServiceLinks || pod.PriorityClassName != "system-node-critical" ||
		pod.Tolerations[0].Operator != corev1.TolerationOpExists {
		t.Errorf("it would not run on each node: %+v", pod)
	}
	if c.Ports[0].HostIP != "127.0.0.1" || c.Ports[0].ContainerPort != 21000 ||
		c.ReadinessProbe.HTTPGet.Host != "127.0.0.1" || !slices.Contains(c.Args, "--port=31000") ||
		!slices.Contains(c.Args,
			"--local-port=21000") ||
		!slices.Contains(c.Args, "--host=trow.kube-public") {
		t.Errorf("it does not listen where it should: %v %+v", c.Args, c.Ports)
	}
	if sc := c.SecurityContext; len(sc.Capabilities.Drop) != 1 || *sc.AllowPrivilegeEscalation ||
		sc.Privileged != nil || !*sc.ReadOnlyRootFilesystem {
		t.Error("it has rights that it does not need")
	}
	all = objects(t, render(t, func(o *manifests.Options) { o.NodeDir = []string{} }))
	listens := all["DaemonSet/trow-node"].(*appsv1.DaemonSet).Spec.Template.Spec
	if sc := listens.Containers[0].SecurityContext; len(listens.Volumes) != 0 || sc.RunAsUser != nil ||
		len(listens.Containers[0].VolumeMounts) != 0 || sc.SELinuxOptions != nil {
		t.Errorf("it may write although it should only listen: %+v", listens)
	}
	const level = "pod-security.kubernetes.io/enforce"
	all = objects(t, render(t, func(o *manifests.Options) { o.Namespace = "registry" }))
	if got := all["Namespace/registry"].GetLabels()[level]; got != "privileged" {
		t.Errorf("the level %s of its namespace does not admit it", got)
	}
	without := objects(t, render(t, func(o *manifests.Options) { o.Namespace, o.Node = "registry", false }))
	for _, kind := range []string{"DaemonSet", "ServiceAccount", "Role", "RoleBinding"} {
		if without[kind+"/trow-node"] != nil {
			t.Errorf("with --no-node the manifest has its %s", kind)
		}
	}
	if got := without["Namespace/registry"].GetLabels()[level]; got != "restricted" {
		t.Errorf("without it the level of the namespace is %s", got)
	}
}

// TestTheNodePartMountsTheDirectoriesOfItsRuntimes, and no directory with secrets of the node: not /etc as a whole,
// with /etc/kubernetes in it. What it only reads is read-only.
func TestTheNodePartMountsTheDirectoriesOfItsRuntimes(t *testing.T) {
	rancher := []string{"/var/lib/rancher/k3s/agent/etc/containerd", "/var/lib/rancher/rke2/agent/etc/containerd"}
	containerd := append([]string{"ro /etc/containerd", "/etc/containerd/certs.d"}, rancher...)
	docker := []string{"/etc/docker/certs.d"}
	crio := []string{"ro /etc/crio", "/etc/containers/certs.d", "/etc/containers/registries.conf.d"}
	for _, c := range []struct {
		flags []string
		want  []string
	}{
		{nil, containerd},
		{[]string{"--runtimes=crio"}, crio},
		{[]string{"--runtimes=docker,containerd,docker"}, slices.Concat(docker, containerd)},
		{[]string{"--runtimes=containerd,docker,crio"}, slices.Concat(containerd, docker, crio)},
		{[]string{"--mirrors=all", "--runtimes=containerd,docker,crio"}, slices.Concat(containerd,
			[]string{"ro /etc/docker"}, docker, []string{"ro /etc/containers"}, crio)},
		{[]string{"--mirrors=all", "--runtimes=docker", "--write-daemon-json"},
			slices.Concat([]string{"/etc/docker"}, docker)},
		{[]string{"--runtimes=docker,crio", "--write-daemon-json"},
			slices.Concat([]string{"/etc/docker"}, docker, crio)},
		{[]string{"--runtimes="}, nil},
		{[]string{"--node-dir="}, nil},
		{[]string{"--node-dir=/etc/containerd,/opt/x", "--runtimes=crio"}, []string{"/etc/containerd", "/opt/x"}},
		{[]string{"--node-dir=/etc,/opt"}, []string{"/etc", "/opt", "hidden ro /etc/kubernetes"}},
	} {
		var out bytes.Buffer
		cmd := manifests.Command(release)
		cmd.SetOut(&out)
		cmd.SetArgs(append([]string{}, c.flags...))
		if err := cmd.Execute(); err != nil {
			t.Fatal(err)
		}
		pod := objects(t, out.Bytes())["DaemonSet/trow-node"].(*appsv1.DaemonSet).Spec.Template.Spec
		var got []string
		for i, v := range pod.Volumes {
			m := pod.Containers[0].VolumeMounts[i]
			dir := strings.TrimPrefix(m.MountPath, "/host")
			text := dir
			if m.ReadOnly {
				text = "ro " + text
			}
			explicit := len(c.flags) > 0 && strings.HasPrefix(c.flags[0], "--node-dir")
			switch {
			case v.HostPath == nil:
				text = "hidden " + text
			case v.HostPath.Path != dir || m.Name != v.Name:
				t.Errorf("%v: %s is mounted at %s", c.flags, v.HostPath.Path, m.MountPath)
			case explicit != (v.HostPath.Type == nil),
				!explicit && *v.HostPath.Type != corev1.HostPathDirectoryOrCreate:
				t.Errorf("%v: %s has type %v", c.flags, dir, v.HostPath.Type)
			}
			got = append(got, text)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: it mounts %q, want %q", c.flags, got, c.want)
		}
	}
}

func TestTheWebhooksSettings(t *testing.T) {
	settings := func(change func(*manifests.Options)) string {
		return objects(t, render(t, change))["ConfigMap/trow-base"].(*corev1.ConfigMap).Data["trow.yaml"]
	}
	has := func(got string, lines ...string) {
		t.Helper()
		for _, line := range lines {
			if !strings.Contains(got, line+"\n") {
				t.Errorf("%s is missing in\n%s", line, got)
			}
		}
	}
	has(settings(nil), "webhook: enforce", "exempt-namespaces: []")
	has(settings(func(o *manifests.Options) {
		o.Webhook, o.ExemptNamespaces = "audit", []string{"longhorn-system", "x"}
	}),
		"webhook: audit", `exempt-namespaces: ["longhorn-system", "x"]`)
	if got := settings(func(o *manifests.Options) { o.Webhook = "off" }); !strings.Contains(got, `webhook: "off"`) {
		t.Errorf("off is not quoted, so YAML reads it as false:\n%s", got)
	}
}

func TestOptions(t *testing.T) {
	all := objects(t, render(t, func(o *manifests.Options) {
		o.Namespace, o.NodePort, o.Image, o.Storage = "registry", 30500, "example.com/trow:1", manifests.StorageEmpty
	}))
	set := all["StatefulSet/trow"].(*appsv1.StatefulSet)
	port := all["Service/trow"].(*corev1.Service).Spec.Ports[0]
	if all["Namespace/registry"] == nil || set.Namespace != "registry" || port.NodePort != 30500 {
		t.Error("the options namespace or node-port are ignored")
	}
	if set.Spec.Template.Spec.Containers[0].Image != "example.com/trow:1" || len(set.Spec.VolumeClaimTemplates) != 0 ||
		set.Spec.Template.Spec.Volumes[2].EmptyDir == nil {
		t.Error("the options image or storage are ignored")
	}
	settings := all["ConfigMap/trow-base"].(*corev1.ConfigMap).Data["trow.yaml"]
	for _, name := range []string{`"trow.registry:30500"`, `"trow:30500"`, `"trow.registry.svc"`} {
		if !strings.Contains(settings, name) {
			t.Errorf("the settings lack %s:\n%s", name, settings)
		}
	}
	if hosting := all["ConfigMap/local-registry-hosting"]; hosting.GetNamespace() != "kube-public" {
		t.Errorf("tools look for local-registry-hosting in kube-public; it is in %s", hosting.GetNamespace())
	}
	all = objects(t, render(t, func(o *manifests.Options) { o.StorageClass, o.Size = "fast", "1Ti" }))
	claim := all["StatefulSet/trow"].(*appsv1.StatefulSet).Spec.VolumeClaimTemplates[0].Spec
	if *claim.StorageClassName != "fast" || claim.Resources.Requests.Storage().String() != "1Ti" {
		t.Errorf("the claim is %+v", claim)
	}
}

// TestLoopbackNamesAreOnRequest: a pod with hostNetwork that listens on 127.0.0.1:31000 first would be the registry.
func TestLoopbackNamesAreOnRequest(t *testing.T) {
	for _, c := range []struct {
		args []string
		want []string
	}{
		{nil, []string{"trow.kube-public:31000", "trow:31000"}},
		{[]string{"--loopback-names", "--node-port=30500"}, []string{"trow.kube-public:30500", "trow:30500",
			"localhost:30500", "127.0.0.1:30500", "[::1]:30500"}},
	} {
		var out bytes.Buffer
		cmd := manifests.Command(release)
		cmd.SetOut(&out)
		cmd.SetArgs(append([]string{}, c.args...))
		if err := cmd.Execute(); err != nil {
			t.Fatal(err)
		}
		var settings struct{ Names []string }
		text := objects(t, out.Bytes())["ConfigMap/trow-base"].(*corev1.ConfigMap).Data["trow.yaml"]
		if err := kyaml.Unmarshal([]byte(text), &settings); err != nil || !slices.Equal(settings.Names, c.want) {
			t.Errorf("%v: the names are %q, %v; want %q", c.args, settings.Names, err, c.want)
		}
	}
}

// TestALogin: the server makes up the password, so that the file is the same each time, has no secret, and applying it
// again changes no password.
func TestALogin(t *testing.T) {
	login := func(o *manifests.Options) { o.Login, o.Host, o.NodePort = true, "registry.example.org", 30500 }
	text := render(t, login)
	if !bytes.Equal(text, render(t, login)) {
		t.Error("it is another file each time")
	}
	all := objects(t, text)
	secret := all["Secret/trow-login"].(*corev1.Secret)
	if secret.Name != kube.LoginSecretName || secret.Data != nil || secret.StringData != nil ||
		all["Secret/trow-pull"] != nil {
		t.Errorf("the file has a login: %+v, %+v", secret, all["Secret/trow-pull"])
	}
	pod := all["StatefulSet/trow"].(*appsv1.StatefulSet).Spec.Template.Spec
	settings := all["ConfigMap/trow-base"].(*corev1.ConfigMap).Data["trow.yaml"]
	if len(pod.Containers[0].Env) != 0 || !strings.Contains(settings, "login-secret: trow-login\n") {
		t.Errorf("the server does not read the Secret: %v\n%s", pod.Containers[0].Env, settings)
	}
	if !strings.Contains(string(text), "exec trow-0 -- /trow pull-secret --replace --namespace NAMESPACE \\\n"+
		"#     --server registry.example.org:30500 --server 127.0.0.1:30500 | kubectl apply -f -\n") {
		t.Errorf("the header does not say how to make a pull secret with both names:\n%.2000s", text)
	}
	rights := func(all map[string]metav1.Object) (may []string) {
		for _, r := range all["Role/trow"].(*rbacv1.Role).Rules {
			if slices.Contains(r.Resources, "secrets") {
				may = append(append(may, r.Verbs...), r.ResourceNames...)
			}
		}
		return may
	}
	if got := rights(all); !slices.Equal(got, []string{"get", "update", "trow-tls", "trow-login"}) {
		t.Errorf("the server may %v", got)
	}
	all = objects(t, render(t, nil))
	if got := rights(all); all["Secret/trow-login"] != nil ||
		!slices.Equal(got, []string{"get", "update", "trow-tls"}) {
		t.Errorf("without --login there is a login, or the server may %v", got)
	}
}

// TestServiceAccounts checks that with a login the server may review tokens and kubelets may request them, and nothing
// more, and that without a login there are no such rights.
func TestServiceAccounts(t *testing.T) {
	parts := func(login, access bool) (asks []string, tokens *rbacv1.ClusterRole, binding *rbacv1.ClusterRoleBinding,
		settings map[string]any) {
		all := objects(t, render(t, func(o *manifests.Options) { o.Login, o.AccessReview = login, access }))
		for _, r := range all["ClusterRole/trow"].(*rbacv1.ClusterRole).Rules {
			if strings.HasPrefix(r.APIGroups[0], "auth") {
				asks = append(asks, fmt.Sprintf("%s %s.%s", r.Verbs, r.Resources, r.APIGroups[0]))
			}
		}
		tokens, _ = all["ClusterRole/trow-tokens"].(*rbacv1.ClusterRole)
		binding, _ = all["ClusterRoleBinding/trow-tokens"].(*rbacv1.ClusterRoleBinding)
		file := all["ConfigMap/trow-base"].(*corev1.ConfigMap).Data["trow.yaml"]
		if err := kyaml.Unmarshal([]byte(file), &settings); err != nil {
			t.Fatal(err)
		}
		return asks, tokens, binding, settings
	}
	const review = "[create] [tokenreviews].authentication.k8s.io"
	const access = "[create] [subjectaccessreviews].authorization.k8s.io"
	for _, row := range []struct {
		login, access bool
		asks          []string
	}{{asks: nil}, {login: true, asks: []string{review}}, {login: true, access: true, asks: []string{review, access}}} {
		asks, tokens, binding, settings := parts(row.login, row.access)
		if !slices.Equal(asks, row.asks) {
			t.Errorf("%+v: the server may %v", row, asks)
		}
		if set, _ := settings["access-review"].(bool); set != row.access {
			t.Errorf("%+v: the settings are %v", row, settings)
		}
		if !row.login {
			if tokens != nil || binding != nil || settings["token-audience"] != nil {
				t.Errorf("%+v: tokens are accepted although there is no login", row)
			}
			continue
		}
		r, who := tokens.Rules, binding.Subjects
		if len(r) != 1 || !slices.Equal(r[0].Verbs, []string{"request-serviceaccounts-token-audience"}) ||
			!slices.Equal(r[0].Resources, []string{kube.Audience}) || binding.RoleRef.Name != tokens.Name ||
			len(who) != 1 || who[0].Kind != "Group" || who[0].Name != "system:nodes" {
			t.Errorf("the rights of kubelets: %+v, %+v", r, binding)
		}
		kubelets := credential.Defaults()
		if settings["token-audience"] != kube.Audience || kubelets.Audience != kube.Audience {
			t.Errorf("audiences of the settings %v, of the code %s, of kubelets %s", settings["token-audience"],
				kube.Audience, kubelets.Audience)
		}
		names := settings["names"].([]any)
		for _, name := range names {
			if !slices.Contains(kubelets.Names, name.(string)) || len(kubelets.Names) > len(names) {
				t.Errorf("names for kubelets are %v, those of the registry %v", kubelets.Names, names)
			}
		}
	}
}

// TestTheSettingsOfTheUser are in an object that the file does not have: applying it again keeps them. An empty one
// in the file would delete what the user has put into it.
func TestTheSettingsOfTheUser(t *testing.T) {
	all := objects(t, render(t, nil))
	if all["ConfigMap/trow"] != nil {
		t.Error("the file has ConfigMap trow")
	}
	pod := all["StatefulSet/trow"].(*appsv1.StatefulSet).Spec.Template.Spec
	c := pod.Containers[0]
	if !slices.Equal(c.Args[:3], []string{"serve", "--config=/etc/trow-base/trow.yaml", "--config=/etc/trow"}) {
		t.Errorf("the server reads %v", c.Args)
	}
	mounts := map[string]string{}
	for _, m := range c.VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	found := 0
	for _, v := range pod.Volumes {
		if v.ConfigMap == nil {
			continue
		}
		found++
		optional := v.ConfigMap.Optional != nil && *v.ConfigMap.Optional
		if mounts[v.Name] != "/etc/"+v.ConfigMap.Name || optional != (v.ConfigMap.Name == "trow") {
			t.Errorf("ConfigMap %s is at %s, optional: %t", v.ConfigMap.Name, mounts[v.Name], optional)
		}
	}
	if found != 2 {
		t.Errorf("%d ConfigMaps", found)
	}
}

// TestOtherSettingsReplaceThePod, which reads them when it starts.
func TestOtherSettingsReplaceThePod(t *testing.T) {
	seen := map[string]string{}
	for what, change := range map[string]func(*manifests.Options){
		"the defaults":   nil,
		"--login":        func(o *manifests.Options) { o.Login = true },
		"--webhook":      func(o *manifests.Options) { o.Webhook = "audit" },
		"--host":         func(o *manifests.Options) { o.Host = "registry.example.org" },
		"--no-hosting":   func(o *manifests.Options) { o.Login, o.AccessReview, o.Hosting = true, true, false },
		"two namespaces": func(o *manifests.Options) { o.ExemptNamespaces = []string{"a", "b"} },
	} {
		of := func(change func(*manifests.Options)) string {
			set := objects(t, render(t, change))["StatefulSet/trow"].(*appsv1.StatefulSet)
			return set.Spec.Template.Annotations["trow.io/base-settings"]
		}
		d := of(change)
		if other, ok := seen[d]; ok || d == "" {
			t.Errorf("%s has the digest %q, as %s", what, d, other)
		}
		seen[d] = what
		if again := of(func(o *manifests.Options) {
			if change != nil {
				change(o)
			}
			o.Size, o.Image, o.PullSecret = "1Ti", "example.com/trow:2", "x"
		}); again != d {
			t.Errorf("%s: %q, although its settings are those of %q", what, again, d)
		}
	}
}

// TestWherePodsRun: on Linux, and not on virtual nodes.
func TestWherePodsRun(t *testing.T) {
	all := objects(t, render(t, func(o *manifests.Options) { o.PullSecret, o.PriorityClass = "pull", "important" }))
	for name, pod := range map[string]corev1.PodSpec{
		"the server": all["StatefulSet/trow"].(*appsv1.StatefulSet).Spec.Template.Spec,
		"trow node":  all["DaemonSet/trow-node"].(*appsv1.DaemonSet).Spec.Template.Spec} {
		if pod.NodeSelector["kubernetes.io/os"] != "linux" {
			t.Errorf("%s runs on %v", name, pod.NodeSelector)
		}
		virtual := map[string]string{}
		required := pod.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		for _, term := range required.NodeSelectorTerms {
			for _, e := range term.MatchExpressions {
				if e.Operator == corev1.NodeSelectorOpNotIn {
					virtual[e.Key] = strings.Join(e.Values, ",")
				}
			}
		}
		if virtual["type"] != "virtual-kubelet" || virtual["eks.amazonaws.com/compute-type"] != "fargate" ||
			len(virtual) != 2 {
			t.Errorf("%s avoids %v", name, virtual)
		}
		if len(pod.ImagePullSecrets) != 1 || pod.ImagePullSecrets[0].Name != "pull" ||
			pod.PriorityClassName != "important" {
			t.Errorf("%s: %v, %s", name, pod.ImagePullSecrets, pod.PriorityClassName)
		}
	}
	if all["ResourceQuota/trow"] != nil {
		t.Error("a class that is not the system's needs no quota")
	}
	for what, row := range map[string]struct {
		change func(*manifests.Options)
		want   []string
	}{
		"the defaults":   {nil, []string{"system-cluster-critical", "system-node-critical"}},
		"--no-node":      {func(o *manifests.Options) { o.Node = false }, []string{"system-cluster-critical"}},
		"another system": {func(o *manifests.Options) { o.PriorityClass = "system-x" }, []string{"system-x"}},
	} {
		quota := objects(t, render(t, row.change))["ResourceQuota/trow"].(*corev1.ResourceQuota)
		e := quota.Spec.ScopeSelector.MatchExpressions[0]
		if !slices.Equal(e.Values, row.want) || e.ScopeName != corev1.ResourceQuotaScopePriorityClass ||
			e.Operator != corev1.ScopeSelectorOpIn || quota.Spec.Hard.Pods().
			Value() != 1e9 || len(quota.Spec.Hard) != 1 {
			t.Errorf("%s: the quota is %+v", what, quota.Spec)
		}
	}
}

// TestTheNetworkPolicyClosesNothing of the server's pod.
func TestTheNetworkPolicyClosesNothing(t *testing.T) {
	all := objects(t, render(t, nil))
	policy := all["NetworkPolicy/trow"].(*networkingv1.NetworkPolicy).Spec
	labels := all["StatefulSet/trow"].(*appsv1.StatefulSet).Spec.Template.Labels
	if !equality.Semantic.DeepEqual(policy.PodSelector.MatchLabels, labels) ||
		!slices.Equal(policy.PolicyTypes, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}) ||
		len(policy.Ingress) != 1 || len(policy.Ingress[0].Ports)+len(policy.Ingress[0].From) != 0 {
		t.Errorf("%+v", policy)
	}
}

// TestThePorts: the Service has the port of image names too, so that they are the same in pods; trow node listens on a
// port that is no node port.
func TestThePorts(t *testing.T) {
	for _, row := range []struct {
		node, local, wantLocal int
		service                []int32
	}{
		{31000, 0, 21000, []int32{443, 31000}},
		{32767, 0, 22767, []int32{443, 32767}},
		{30000, 0, 20000, []int32{443, 30000}},
		{29999, 0, 29998, []int32{443, 29999}},
		{443, 0, 444, []int32{443}},
		{1, 0, 2, []int32{443, 1}},
		{65535, 0, 25535, []int32{443, 65535}},
		{31000, 31001, 31001, []int32{443, 31000}},
	} {
		all := objects(t, render(t, func(o *manifests.Options) { o.NodePort, o.LocalPort = row.node, row.local }))
		ports := all["Service/trow"].(*corev1.Service).Spec.Ports
		var service []int32
		for i, p := range ports {
			service = append(service, p.Port)
			if p.TargetPort.StrVal != "https" || i == 0 && p.NodePort != int32(row.node) || i > 0 && p.NodePort != 0 {
				t.Errorf("%d: port %+v", row.node, p)
			}
		}
		c := all["DaemonSet/trow-node"].(*appsv1.DaemonSet).Spec.Template.Spec.Containers[0]
		if !slices.Equal(service, row.service) || c.Ports[0].HostPort != int32(row.wantLocal) ||
			!slices.Contains(c.Args, fmt.Sprintf("--local-port=%d", row.wantLocal)) {
			t.Errorf("%d: service %v, trow node %v %v", row.node, service, c.Ports, c.Args)
		}
	}
}

func TestWithoutHosting(t *testing.T) {
	all := objects(t, render(t, func(o *manifests.Options) { o.Namespace, o.Hosting = "registry", false }))
	for key, o := range all {
		if o.GetNamespace() == "kube-public" {
			t.Errorf("%s is in kube-public", key)
		}
	}
	if all["Service/trow"] == nil || all["DaemonSet/trow-node"] == nil ||
		all["ConfigMap/local-registry-hosting"] != nil {
		t.Error("it changes something else")
	}
}

func TestInvalidOptions(t *testing.T) {
	for flag, change := range map[string]func(*manifests.Options){
		"namespace:":                  func(o *manifests.Options) { o.Namespace = "a\nb: c" },
		"host:":                       func(o *manifests.Options) { o.Host = "a b" },
		"node-port:":                  func(o *manifests.Options) { o.NodePort = 0 },
		"node-port: 65536":            func(o *manifests.Options) { o.NodePort = 65536 },
		"local-port: 31000":           func(o *manifests.Options) { o.LocalPort = 31000 },
		"local-port: 70000":           func(o *manifests.Options) { o.LocalPort = 70000 },
		"local-port: 10250":           func(o *manifests.Options) { o.LocalPort = 10250 },
		"node-port: 10250":            func(o *manifests.Options) { o.NodePort = 10250 },
		"node-port: 6443":             func(o *manifests.Options) { o.NodePort = 6443 },
		"pull-secret:":                func(o *manifests.Options) { o.PullSecret = "a b" },
		"priority-class:":             func(o *manifests.Options) { o.PriorityClass = "A: b" },
		"image:":                      func(o *manifests.Options) { o.Image = "x: y" },
		"storage:":                    func(o *manifests.Options) { o.Storage = "disk" },
		"storage-class:":              func(o *manifests.Options) { o.StorageClass = "A B" },
		"size:":                       func(o *manifests.Options) { o.Size = "20 Gi" },
		"access-review:":              func(o *manifests.Options) { o.AccessReview = true },
		"webhook:":                    func(o *manifests.Options) { o.Webhook = "on" },
		"exempt-namespaces:":          func(o *manifests.Options) { o.ExemptNamespaces = []string{"a]"} },
		"node-dir:":                   func(o *manifests.Options) { o.NodeDir = []string{"/"} },
		"node-dir: /etc/kub":          func(o *manifests.Options) { o.NodeDir = []string{"/etc/kubernetes/pki"} },
		"node-dir: /proc/1/":          func(o *manifests.Options) { o.NodeDir = []string{"/proc/1/root/etc"} },
		"node-dir: /proc le":          func(o *manifests.Options) { o.NodeDir = []string{"/proc"} },
		"mirrors: \"a b\"":            func(o *manifests.Options) { o.Mirrors = []string{"a b"} },
		"mirrors: trow.kube":          func(o *manifests.Options) { o.Mirrors = []string{"trow.kube-public:31000"} },
		"write-daemon-json: requires": func(o *manifests.Options) { o.DaemonJSON = true },
		"mirrors: requires":           func(o *manifests.Options) { o.Mirrors, o.Node = []string{"all"}, false },
		"mirror-port: 70000":          func(o *manifests.Options) { o.Mirrors, o.MirrorPort = []string{"all"}, 70000 },
		"mirror-port: 21000":          func(o *manifests.Options) { o.Mirrors, o.MirrorPort = []string{"all"}, 21000 },
		"mirror-port: 10250":          func(o *manifests.Options) { o.Mirrors, o.MirrorPort = []string{"all"}, 10250 },
		"runtimes:":                   func(o *manifests.Options) { o.Runtimes = []string{"containerd", "rkt"} },
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
		t.Error("a host without a dot is accepted")
	}
	o = manifests.Defaults(release)
	o.Storage, o.StorageClass = manifests.StorageEmpty, "fast"
	if _, err := manifests.Render(o); err == nil {
		t.Error("a StorageClass for an emptyDir is accepted")
	}
}

// TestNamesThatLookLikeSomethingElse in YAML are strings.
func TestNamesThatLookLikeSomethingElse(t *testing.T) {
	for _, name := range []string{"123", "1e3", "0x10", "true", "null", "yes", "off", "2020-01-01", "infinity"} {
		all := objects(t, render(t, func(o *manifests.Options) {
			o.Namespace, o.PullSecret, o.PriorityClass, o.StorageClass, o.Image = name, name, name, name, name
			o.ExemptNamespaces, o.Login = []string{name}, true
		}))
		set := all["StatefulSet/trow"].(*appsv1.StatefulSet)
		pod := set.Spec.Template.Spec
		if all["Namespace/"+name] == nil || set.Namespace != name || pod.ImagePullSecrets[0].Name != name ||
			pod.PriorityClassName != name || pod.Containers[0].Image != name ||
			*set.Spec.VolumeClaimTemplates[0].Spec.StorageClassName != name {
			t.Errorf("%s: %+v", name, set)
		}
	}
}

func TestTheCommand(t *testing.T) {
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		cmd := manifests.Command(release)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetOut(&out)
		cmd.SetArgs(append([]string{}, args...)) // nil would mean os.Args
		err := cmd.Execute()
		return out.String(), err
	}
	if out, err := run(); err != nil || out != string(render(t, nil)) {
		t.Errorf("the defaults: %v", err)
	}
	out, err := run("--no-node", "--node-port=30500", "--exempt-namespaces=a,b")
	want := render(t, func(o *manifests.Options) {
		o.Node, o.NodePort, o.ExemptNamespaces = false, 30500, []string{"a", "b"}
	})
	more, err2 := run("--hosting=false", "--pull-secret=p", "--priority-class=c", "--local-port=20001", "--login")
	if want := render(t, func(o *manifests.Options) {
		o.Hosting, o.PullSecret, o.PriorityClass, o.LocalPort, o.Login = false, "p", "c", 20001, true
	}); err2 != nil || more != string(want) {
		t.Errorf("with more options: %v", err2)
	}
	if err != nil || out != string(want) {
		t.Errorf("with options: %v", err)
	}
	out, err = run("--storage=disk", "--node-port=0")
	if err == nil || out != "" || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "node-port: ") {
		t.Errorf("invalid options: %v, %s", err, out)
	}
}
