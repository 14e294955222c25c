package manifests_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"
	kyaml "sigs.k8s.io/yaml"

	"trow/manifests"
	"trow/manifests/kube"
	"trow/storage/etcd"
	"trow/storage/s3"
)

const bucket = "s3://images/trow?endpoint=https://s3.example.org&region=eu-west-1"

// three are the options of three replicas with an etcd of the manifest.
func three(o *manifests.Options) { o.Replicas, o.WithEtcd, o.S3, o.S3Secret = 3, true, bucket, "s3" }

// external are those of three replicas with an etcd of the user.
func external(o *manifests.Options) {
	o.Replicas, o.Etcd, o.S3 = 3, "etcds://a.example.org:2379,b.example.org:2379/trow", bucket
}

func settingsOf(t *testing.T, all map[string]metav1.Object) (settings map[string]any) {
	t.Helper()
	text := all["ConfigMap/trow-base"].(*corev1.ConfigMap).Data["trow.yaml"]
	if err := kyaml.UnmarshalStrict([]byte(text), &settings); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	return settings
}

// TestReplicas: a Deployment that can lose a node and be rolled without a gap.
func TestReplicas(t *testing.T) {
	all := objects(t, render(t, three))
	d, _ := all["Deployment/trow"].(*appsv1.Deployment)
	if d == nil || all["StatefulSet/trow"] != nil {
		t.Fatal("there is no Deployment, or another set of pods")
	}
	roll := d.Spec.Strategy.RollingUpdate
	if *d.Spec.Replicas != 3 || roll.MaxUnavailable.IntValue() != 0 || roll.MaxSurge.IntValue() != 1 ||
		// without it, kubectl apply sends a patch each time
		d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType {
		t.Errorf("%d replicas, rolled by %+v", *d.Spec.Replicas, roll)
	}
	labels := d.Spec.Template.Labels
	if !equality.Semantic.DeepEqual(all["Service/trow"].(*corev1.Service).Spec.Selector, labels) ||
		!equality.Semantic.DeepEqual(d.Spec.Selector.MatchLabels, labels) {
		t.Error("the Service does not lead to the pods")
	}
	pod := d.Spec.Template.Spec
	for i, key := range []string{corev1.LabelHostname, corev1.LabelTopologyZone} {
		c := pod.TopologySpreadConstraints[i]
		if c.TopologyKey != key || c.MaxSkew != 1 ||
			!equality.Semantic.DeepEqual(c.LabelSelector.MatchLabels, labels) ||
			!slices.Equal(c.MatchLabelKeys, []string{"pod-template-hash"}) {
			t.Errorf("spread %d: %+v", i, c)
		}
	}
	budget := all["PodDisruptionBudget/trow"].(*policyv1.PodDisruptionBudget).Spec
	if budget.MaxUnavailable.IntValue() != 1 || !equality.Semantic.DeepEqual(budget.Selector.MatchLabels, labels) ||
		ptr.Deref(budget.UnhealthyPodEvictionPolicy, "") != policyv1.AlwaysAllow {
		t.Errorf("the budget is %+v", budget)
	}
	for _, v := range pod.Volumes {
		if v.PersistentVolumeClaim != nil {
			t.Errorf("volume %s is a claim, which one pod alone can have", v.Name)
		}
	}
	settings := settingsOf(t, all)
	delay, err := time.ParseDuration(fmt.Sprint(settings["shutdown-delay"]))
	if grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second; err != nil || delay < 5*time.Second ||
		grace < delay+30*time.Second || pod.Containers[0].Lifecycle != nil { // the image has no shell to sleep in
		t.Errorf("it serves on for %v, %v, and is killed after %v", settings["shutdown-delay"], err, grace)
	}
	if settings["deployment"] != d.Name || all["Lease/"+d.Name] == nil {
		t.Errorf("the replicas do not agree on who arms the webhook: %v", settings["deployment"])
	}
	if s, _ := all["Secret/"+kube.SettingsSecretName].(*corev1.Secret); s == nil || len(s.Data)+len(s.StringData) > 0 {
		t.Errorf("the replicas have no place for their last good settings: %+v", s)
	}
	for name, secret := range map[string]string{"AWS_ACCESS_KEY_ID": "s3", "AWS_SECRET_ACCESS_KEY": "s3"} {
		i := slices.IndexFunc(pod.Containers[0].Env, func(e corev1.EnvVar) bool { return e.Name == name })
		if i < 0 || pod.Containers[0].Env[i].ValueFrom.SecretKeyRef.Name != secret ||
			pod.Containers[0].Env[i].ValueFrom.SecretKeyRef.Key != name {
			t.Errorf("%s: %+v", name, pod.Containers[0].Env)
		}
	}
	if text := string(render(t, three)); strings.Contains(text, "trow-0 ") ||
		!strings.Contains(text, "exec deploy/trow --") {
		t.Error("it speaks of a pod trow-0, which there is not")
	}
}

// TestReplicasAndThePodWithAVolumeAreTwoRegistries: where one manifest is applied over the other, in either direction,
// the Service leads to the pods of the new one alone, and so do the policies and the budget.
func TestReplicasAndThePodWithAVolumeAreTwoRegistries(t *testing.T) {
	one, several := objects(t, render(t, nil)), objects(t, render(t, three))
	pod := one["StatefulSet/trow"].(*appsv1.StatefulSet).Spec.Template.Labels
	replica := several["Deployment/trow"].(*appsv1.Deployment).Spec.Template.Labels
	all := map[string]labels.Selector{}
	policies := func(all map[string]metav1.Object, name string) networkingv1.NetworkPolicySpec {
		return all["NetworkPolicy/"+name].(*networkingv1.NetworkPolicy).Spec
	}
	budget := several["PodDisruptionBudget/trow"].(*policyv1.PodDisruptionBudget).Spec
	for what, m := range map[string]map[string]string{
		"Service of one":       one["Service/trow"].(*corev1.Service).Spec.Selector,
		"NetworkPolicy of one": policies(one, "trow").PodSelector.MatchLabels,
		"Service":              several["Service/trow"].(*corev1.Service).Spec.Selector,
		"NetworkPolicy":        policies(several, "trow").PodSelector.MatchLabels,
		"budget":               budget.Selector.MatchLabels,
		"way to etcd":          policies(several, "trow-etcd").Ingress[0].From[0].PodSelector.MatchLabels,
	} {
		all[what] = labels.SelectorFromSet(m)
	}
	for what, s := range all {
		ofOne := strings.HasSuffix(what, " of one")
		if s.Matches(labels.Set(pod)) != ofOne || s.Matches(labels.Set(replica)) == ofOne {
			t.Errorf("%s: %s, with pod %v and replica %v", what, s, pod, replica)
		}
	}
}

// TestTheRightsOfReplicas: none on pods, whose names a Deployment makes up, and none that is not limited to a name.
func TestTheRightsOfReplicas(t *testing.T) {
	for what, change := range map[string]func(*manifests.Options){"own etcd": three, "another": external} {
		all := objects(t, render(t, change))
		wantNarrow(t, all)
		var may []string
		for _, r := range all["Role/trow"].(*rbacv1.Role).Rules {
			may = append(may, fmt.Sprint(r.Verbs, r.Resources, r.ResourceNames))
		}
		want := []string{"[get update] [secrets] [trow-tls trow-settings]", "[get update] [configmaps] [trow-ca]",
			"[get] [deployments] [trow]", "[get update] [leases] [trow]", "[create list] [events] []"}
		volumes := what == "own etcd" // whose drivers have to start before the registry
		if volumes {
			want = slices.Insert(want, 4,
				"[get] [persistentvolumeclaims] [data-trow-etcd-0 data-trow-etcd-1 data-trow-etcd-2]")
		}
		for i := range may {
			may[i] = strings.ReplaceAll(may[i], "][", "] [")
		}
		if !slices.Equal(may, want) {
			t.Errorf("%s: the server may %q", what, may)
		}
		if slices.ContainsFunc(all["ClusterRole/trow"].(*rbacv1.ClusterRole).Rules, func(r rbacv1.PolicyRule) bool {
			return slices.Contains(r.Resources, "persistentvolumes")
		}) != volumes {
			t.Errorf("%s: the server may read volumes: %v", what, !volumes)
		}
	}
}

// TestWhereFactsAndBytesAre: the settings are what the engines understand, and name files that are mounted.
func TestWhereFactsAndBytesAre(t *testing.T) {
	const tlsDir, caDir = "/etc/trow-etcd-tls/", "/etc/trow-etcd-ca/"
	for what, row := range map[string]struct {
		change  func(*manifests.Options)
		want    map[string]string
		secrets map[string]string // by their directory
	}{
		"own etcd": {three, map[string]string{"journal-ca-file": tlsDir + "ca.crt",
			"journal-cert-file": tlsDir + "tls.crt",
			"journal-key-file":  tlsDir + "tls.key", "blobs": bucket}, map[string]string{tlsDir: "trow-etcd-client"}},
		"a CA": {func(o *manifests.Options) { external(o); o.EtcdCASecret = "ca" },
			map[string]string{"journal-ca-file": caDir + "ca.crt", "blobs": bucket}, map[string]string{caDir: "ca"}},
		"a certificate": {func(o *manifests.Options) { external(o); o.EtcdTLSSecret, o.S3CASecret = "pair", "s3ca" },
			map[string]string{"journal-ca-file": tlsDir + "ca.crt", "journal-cert-file": tlsDir + "tls.crt",
				"journal-key-file": tlsDir + "tls.key", "blobs": bucket, "blobs-ca-file": "/etc/trow-s3-ca/ca.crt"},
			map[string]string{tlsDir: "pair", "/etc/trow-s3-ca/": "s3ca"}},
		"a user": {func(o *manifests.Options) { external(o); o.EtcdUser, o.EtcdPasswordSecret = "trow", "pw" },
			map[string]string{"journal-user": "trow", "journal-password-file": "/etc/trow-etcd-password/password",
				"blobs": bucket}, map[string]string{"/etc/trow-etcd-password/": "pw"}},
		"S3 alone": {func(o *manifests.Options) {
			o.S3, o.S3Secret = bucket, "s3"
		}, map[string]string{"blobs": bucket}, nil},
	} {
		all := objects(t, render(t, row.change))
		settings := settingsOf(t, all)
		for key, value := range settings {
			if _, ok := row.want[key]; !ok && (strings.HasPrefix(key, "journal-") || strings.HasPrefix(key, "blobs")) {
				t.Errorf("%s: %s is %v", what, key, value)
			}
		}
		for key, want := range row.want {
			if settings[key] != want {
				t.Errorf("%s: %s is %v, want %s", what, key, settings[key], want)
			}
		}
		if _, err := s3.ParseURL(fmt.Sprint(settings["blobs"])); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		journal, given := settings["journal"]
		if _, err := etcd.ParseURL(fmt.Sprint(journal)); given && err != nil || given == (what == "S3 alone") {
			t.Errorf("%s: the journal is %v: %v", what, journal, err)
		}
		pod := podOf(all)
		mounted := map[string]string{}
		for _, m := range pod.Containers[0].VolumeMounts {
			i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
			if v := pod.Volumes[max(i, 0)]; i >= 0 && v.Secret != nil {
				mounted[m.MountPath+"/"] = v.Secret.SecretName
				if *v.Secret.DefaultMode != 0o440 || !m.ReadOnly {
					t.Errorf("%s: %s has mode %o", what, m.MountPath, *v.Secret.DefaultMode)
				}
			}
		}
		if fmt.Sprint(mounted) != fmt.Sprint(row.secrets) && len(mounted)+len(row.secrets) > 0 {
			t.Errorf("%s: mounted %v, want %v", what, mounted, row.secrets)
		}
	}
}

func podOf(all map[string]metav1.Object) corev1.PodSpec {
	if d, ok := all["Deployment/trow"].(*appsv1.Deployment); ok {
		return d.Spec.Template.Spec
	}
	return all["StatefulSet/trow"].(*appsv1.StatefulSet).Spec.Template.Spec
}

// TestTheAutoscaler sets the number, and the Deployment does not: applying the file again would set it back.
func TestTheAutoscaler(t *testing.T) {
	all := objects(t, render(t, func(o *manifests.Options) { three(o); o.MaxReplicas = 9 }))
	d := all["Deployment/trow"].(*appsv1.Deployment)
	h := all["HorizontalPodAutoscaler/trow"].(*autoscalingv2.HorizontalPodAutoscaler).Spec
	if d.Spec.Replicas != nil || *h.MinReplicas != 3 || h.MaxReplicas != 9 || h.ScaleTargetRef.Name != d.Name ||
		h.ScaleTargetRef.Kind != "Deployment" || d.Spec.Template.Spec.Containers[0].Resources.Requests.Cpu().IsZero() {
		t.Errorf("%v replicas, %+v", d.Spec.Replicas, h)
	}
	if objects(t, render(t, three))["HorizontalPodAutoscaler/trow"] != nil {
		t.Error("it is there without --max-replicas")
	}
}

// TestTheEtcdOfTheManifest: three members that find each other, keep a quorum when a node is drained, and answer no one
// without a certificate.
func TestTheEtcdOfTheManifest(t *testing.T) {
	all := objects(t, render(t, func(o *manifests.Options) {
		three(o)
		o.Namespace, o.StorageClass = "registry", "fast"
	}))
	set := all["StatefulSet/trow-etcd"].(*appsv1.StatefulSet)
	service := all["Service/trow-etcd"].(*corev1.Service).Spec
	pod, labels := set.Spec.Template.Spec, set.Spec.Template.Labels
	if *set.Spec.Replicas != 3 || set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement ||
		set.Spec.ServiceName != "trow-etcd" || service.ClusterIP != "None" || !service.PublishNotReadyAddresses ||
		!equality.Semantic.DeepEqual(service.Selector, labels) {
		t.Errorf("the members do not find each other: %+v", service)
	}
	budget := all["PodDisruptionBudget/trow-etcd"].(*policyv1.PodDisruptionBudget).Spec
	if budget.MaxUnavailable.IntValue() != 1 || !equality.Semantic.DeepEqual(budget.Selector.MatchLabels, labels) ||
		pod.TopologySpreadConstraints[0].TopologyKey != corev1.LabelHostname ||
		pod.TopologySpreadConstraints[0].WhenUnsatisfiable != corev1.DoNotSchedule {
		t.Error("it may lose the quorum with one node")
	}
	c := pod.Containers[0]
	for _, arg := range []string{"--client-cert-auth", "--peer-client-cert-auth", "--peer-cert-allowed-cn=trow-etcd",
		"--auto-compaction-mode=periodic", "--auto-compaction-retention=1h", "--quota-backend-bytes=8589934592",
		"--initial-cluster=trow-etcd-0=https://trow-etcd-0.trow-etcd.registry.svc:2380," +
			"trow-etcd-1=https://trow-etcd-1.trow-etcd.registry.svc:2380," +
			"trow-etcd-2=https://trow-etcd-2.trow-etcd.registry.svc:2380"} {
		if !slices.Contains(c.Args, arg) {
			t.Errorf("%s is missing in %q", arg, c.Args)
		}
	}
	for _, arg := range c.Args {
		if strings.Contains(arg, "http://") && !strings.HasPrefix(arg, "--listen-metrics-urls=") {
			t.Errorf("%s is not TLS", arg)
		}
	}
	if !*pod.SecurityContext.RunAsNonRoot || *pod.AutomountServiceAccountToken ||
		!*c.SecurityContext.ReadOnlyRootFilesystem ||
		*c.SecurityContext.AllowPrivilegeEscalation || c.SecurityContext.Capabilities.Drop[0] != "ALL" ||
		pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Error("it has rights that it does not need")
	}
	if *set.Spec.VolumeClaimTemplates[0].Spec.StorageClassName != "fast" ||
		c.ReadinessProbe.HTTPGet.Path != "/readyz" || c.LivenessProbe.HTTPGet.Path != "/livez" {
		t.Errorf("its volume or its probes: %+v", c)
	}
	policy := all["NetworkPolicy/trow-etcd"].(*networkingv1.NetworkPolicy).Spec
	if !equality.Semantic.DeepEqual(policy.PodSelector.MatchLabels, labels) {
		t.Errorf("the policy is about %v", policy.PodSelector)
	}
	for _, rule := range policy.Ingress {
		if len(rule.Ports) == 0 || len(rule.From) != 1 ||
			rule.From[0].PodSelector.MatchLabels["app.kubernetes.io/name"] != "trow" {
			t.Errorf("others reach it: %+v", rule)
		}
	}
	registry := all["NetworkPolicy/trow"].(*networkingv1.NetworkPolicy).Spec.PodSelector.MatchLabels
	if equality.Semantic.DeepEqual(registry, labels) {
		t.Error("the policy that closes nothing is about etcd")
	}
	for key := range all {
		if strings.HasPrefix(key, "Secret/trow-etcd") {
			t.Errorf("the manifest has %s", key)
		}
	}
}

// TestTheImageOfEtcdIsTheOneThatWasTested in .ci/engines.
func TestTheImageOfEtcdIsTheOneThatWasTested(t *testing.T) {
	file, err := os.ReadFile("../.ci/engines/etcd/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	tested := regexp.MustCompile(`go\.etcd\.io/etcd/server/v3 (v\S+)`).FindSubmatch(file)
	if tested == nil || !strings.HasSuffix(manifests.DefaultEtcdImage, ":"+string(tested[1])) {
		t.Errorf("the image is %s, tested was %s", manifests.DefaultEtcdImage, tested)
	}
}

// TestTheCertificatesOfEtcd: each side accepts the other, and the members only their own as a member.
func TestTheCertificatesOfEtcd(t *testing.T) {
	run := func() (all map[string]metav1.Object, text string) {
		var out bytes.Buffer
		cmd := manifests.Command(release)
		cmd.SetOut(&out)
		cmd.SetArgs([]string{"--etcd-secrets", "--namespace=registry"})
		if err := cmd.Execute(); err != nil {
			t.Fatal(err)
		}
		return objects(t, out.Bytes()), out.String()
	}
	all, text := run()
	if _, again := run(); again == text || len(all) != 2 {
		t.Errorf("the keys are the same each time, or there are %d objects", len(all))
	}
	pairs, pools := map[string]tls.Certificate{}, map[string]*x509.CertPool{}
	for _, name := range []string{kube.EtcdName, kube.EtcdClientSecretName} {
		s := all["Secret/"+name].(*corev1.Secret)
		pair, err := tls.X509KeyPair(s.Data["tls.crt"], s.Data["tls.key"])
		if err != nil || s.Type != corev1.SecretTypeTLS || s.Namespace != "registry" {
			t.Fatalf("%s: %v, %s in %s", name, err, s.Type, s.Namespace)
		}
		pairs[name], pools[name] = pair, x509.NewCertPool()
		pools[name].AppendCertsFromPEM(s.Data["ca.crt"])
	}
	member, client := pairs[kube.EtcdName], pairs[kube.EtcdClientSecretName]
	if member.Leaf.Subject.CommonName != "trow-etcd" || client.Leaf.Subject.CommonName == "trow-etcd" {
		t.Errorf("the members take %s for one of theirs", client.Leaf.Subject.CommonName)
	}
	for server, as := range map[string]tls.Certificate{"trow-etcd-0.trow-etcd.registry.svc": client,
		"trow-etcd-2.trow-etcd.registry.svc": member, "127.0.0.1": client} {
		one, two := net.Pipe()
		accepted := make(chan error, 1)
		go func() {
			accepted <- tls.Server(one, &tls.Config{Certificates: []tls.Certificate{member},
				MinVersion: tls.VersionTLS13,
				ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pools[kube.EtcdName]}).Handshake()
		}()
		err := tls.Client(two, &tls.Config{Certificates: []tls.Certificate{as},
			RootCAs:    pools[kube.EtcdClientSecretName],
			ServerName: server}).Handshake()
		if server := <-accepted; err != nil || server != nil {
			t.Errorf("%v, %v", err, server)
		}
	}
	if _, err := client.Leaf.Verify(x509.VerifyOptions{Roots: pools[kube.EtcdName]}); err == nil {
		t.Error("the registry's certificate is one of a server as well")
	}
	if left := time.Until(member.Leaf.NotAfter); left < 9*365*24*time.Hour {
		t.Errorf("they end in %v", left)
	}
}

// TestBadCombinations are refused with the flag, the cause and the remedy.
func TestBadCombinations(t *testing.T) {
	for _, row := range []struct{ flags, want string }{
		{"--replicas=0", "replicas: 0 is too few; want at least 1"},
		{"--replicas=3", "replicas: 3 replicas need a journal that they share; add --etcd etcds://"},
		{"--replicas=3 --s3=" + bucket, "replicas: 3 replicas need a journal"},
		{"--replicas=3 --with-etcd", "s3: with the journal in etcd, several processes may serve"},
		{"--etcd=etcd://e:2379", "s3: with the journal in etcd"},
		{"--with-etcd --etcd=etcd://e:2379 --s3=" + bucket, "with-etcd: conflicts with --etcd"},
		{"--with-etcd --etcd-tls-secret=x --s3=" + bucket, "with-etcd: conflicts with --etcd and its Secrets"},
		{"--with-etcd --storage=empty --s3=" + bucket, "storage: the members of --with-etcd need volumes"},
		{"--etcd=etcd://e:2379 --storage-class=x --s3=" + bucket,
			"storage: with --etcd and --s3 the pods have no volume"},
		{"--etcd=http://e:2379 --s3=" + bucket, "etcd: the URL of the journal does not start with etcd://"},
		{"--etcd=etcd://u:p@e:2379 --s3=" + bucket, "etcd: the URL of the journal has credentials"},
		{"--etcd=etcd://e:2379 --etcd-ca-secret=x --s3=" + bucket, "certificates need --etcd etcds://"},
		{"--etcd-tls-secret=x", "certificates need --etcd etcds://"},
		{"--etcd=etcds://e:2379 --etcd-ca-secret=x --etcd-tls-secret=x --s3=" + bucket,
			"etcd-ca-secret: conflicts with"},
		{"--etcd=etcds://e:2379 --etcd-ca-secret=x_y --s3=" + bucket,
			"etcd-ca-secret: \"x_y\" is not a valid name of a Secret"},
		{"--etcd=etcds://e:2379 --etcd-user=x --s3=" + bucket, "etcd-user: want --etcd, --etcd-user and"},
		{"--s3=http://b", "s3: not a URL of the form s3://"},
		{"--s3=s3://k:s@images", "s3: the URL has credentials"},
		{"--s3-secret=x", "s3-secret, s3-ca-secret: want --s3 as well"},
		{"--max-replicas=3", "max-replicas: 3: want at least --replicas, with --etcd"},
		{"--replicas=3 --max-replicas=2 --with-etcd --s3=" + bucket, "max-replicas: 2: want at least --replicas"},
		{"--with-etcd --etcd-image=a:b:c --s3=" + bucket, "etcd-image: \"a:b:c\" is not a valid image"},
		{"--etcd=etcds://etcd.db.svc:2379 --s3=" + bucket,
			"etcd: etcd.db.svc is in namespace db, whose pods could not start"},
		{"--etcd=etcds://e-0.e.db.svc.cluster.local:2379 --s3=" + bucket, "add --exempt-namespaces db"},
		{"--with-etcd --s3=s3://images?endpoint=http://minio.minio.svc:9000",
			"s3: minio.minio.svc is in namespace minio"},
		{"--etcd=etcds://etcd.db.svc:2379 --exempt-namespaces=db --s3=" + bucket, ""},
		{"--etcd=etcds://etcd.db.svc:2379 --webhook=audit --s3=" + bucket, ""},
		{"--etcd=etcds://etcd.kube-system.svc:2379 --s3=" + bucket, ""},
		{"--s3=" + bucket, ""},
		{"--etcd=etcd://e:2379 --s3=" + bucket, ""},
		{"--etcd-secrets --namespace=A", "namespace: \"A\""},
	} {
		var out bytes.Buffer
		cmd := manifests.Command(release)
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetOut(&out)
		cmd.SetArgs(strings.Fields(row.flags))
		err := cmd.Execute()
		if row.want == "" {
			if err != nil {
				t.Errorf("%s: %v", row.flags, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "p@") ||
			out.Len() > 0 {
			t.Errorf("%s: %v, want %s", row.flags, err, row.want)
		}
	}
}
