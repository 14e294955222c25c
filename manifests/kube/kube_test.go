package kube_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"trow/manifests/kube"
)

// answers is an API server that knows the answers to some requests. To any other it answers 404, naming the request.
type answers map[string]any

func (a answers) start(t *testing.T) *kube.Client {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		asked := r.Method + " " + r.URL.RequestURI()
		answer, ok := a[asked]
		if !ok {
			answer = metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure",
				Reason: metav1.StatusReasonNotFound, Code: 404, Message: asked}
			w.WriteHeader(404)
		}
		if text, ok := answer.(string); ok {
			fmt.Fprint(w, text)
			return
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	c, err := kube.New(&rest.Config{Host: s.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestEachKindHasTheRightPath checks path and group of each kind, and that answers are decoded.
func TestEachKindHasTheRightPath(t *testing.T) {
	object := func(apiVersion, kind string) string {
		return fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":"x","uid":"u"}}`, apiVersion, kind)
	}
	const rbac, admission = "rbac.authorization.k8s.io/v1", "admissionregistration.k8s.io/v1"
	const webhooks = "ValidatingWebhookConfiguration"
	c := answers{
		"GET /api/v1/namespaces/ns/configmaps/x":             object("v1", "ConfigMap"),
		"GET /api/v1/namespaces/ns/persistentvolumeclaims/x": object("v1", "PersistentVolumeClaim"),
		"GET /api/v1/namespaces/ns/pods/x":                   object("v1", "Pod"),
		"GET /api/v1/namespaces/ns/secrets/x":                object("v1", "Secret"),
		"GET /api/v1/pods?limit=5":                           `{"apiVersion":"v1","kind":"PodList","items":[{}]}`,
		"GET /api/v1/nodes?limit=5":                          `{"apiVersion":"v1","kind":"NodeList","items":[{}]}`,
		"PUT /api/v1/namespaces/ns/secrets/x":                object("v1", "Secret"),
		"POST /api/v1/namespaces/ns/events":                  object("v1", "Event"),
		"GET /api/v1/namespaces/ns/events?limit=5":           `{"apiVersion":"v1","kind":"EventList","items":[{}]}`,
		"GET /api/v1/persistentvolumes/x":                    object("v1", "PersistentVolume"),
		"GET /api/v1/nodes/x":                                object("v1", "Node"),
		"GET /apis/apps/v1/namespaces/ns/daemonsets/x":       object("apps/v1", "DaemonSet"),
		"GET /apis/apps/v1/daemonsets?limit=5": `{"apiVersion":"apps/v1","kind":"DaemonSetList",
			"items":[{"metadata":{"name":"x"}}]}`,
		"GET /api/v1/namespaces/x":                                     object("v1", "Namespace"),
		"GET /apis/apps/v1/namespaces/ns/deployments/x":                object("apps/v1", "Deployment"),
		"PUT /apis/coordination.k8s.io/v1/namespaces/ns/leases/x":      object("coordination.k8s.io/v1", "Lease"),
		"GET /apis/discovery.k8s.io/v1/namespaces/ns/endpointslices/x": object("discovery.k8s.io/v1", "EndpointSlice"),
		"GET /apis/" + admission + "/mutatingwebhookconfigurations/x": object(admission,
			"MutatingWebhookConfiguration"),
		"GET /apis/" + rbac + "/clusterroles/x":                         object(rbac, "ClusterRole"),
		"PATCH /apis/" + rbac + "/clusterroles/x":                       object(rbac, "ClusterRole"),
		"GET /apis/" + admission + "/validatingwebhookconfigurations/x": object(admission, webhooks),
		"DELETE /apis/" + admission + "/validatingwebhookconfigurations/x": `{"apiVersion":"v1","kind":"Status",
			"status":"Success"}`,
		"POST /apis/authentication.k8s.io/v1/tokenreviews": `{"apiVersion":"authentication.k8s.io/v1",
			"kind":"TokenReview","status":{"authenticated":true}}`,
		"POST /apis/authorization.k8s.io/v1/subjectaccessreviews": object("authorization.k8s.io/v1",
			"SubjectAccessReview"),
		"GET /api/v1/namespaces/ns/configmaps?fieldSelector=metadata.name%3Dx&watch=true": `{"type":"ADDED","object":` +
			object("v1", "ConfigMap") + "}\n",
	}.start(t)
	ctx := t.Context()
	get := metav1.GetOptions{}
	for name, ask := range map[string]func() (metav1.Object, error){
		"ConfigMap": func() (metav1.Object, error) { return c.ConfigMaps("ns").Get(ctx, "x", get) },
		"PersistentVolumeClaim": func() (metav1.Object, error) {
			return c.PersistentVolumeClaims("ns").Get(ctx, "x", get)
		},
		"Pod":              func() (metav1.Object, error) { return c.Pods("ns").Get(ctx, "x", get) },
		"Secret":           func() (metav1.Object, error) { return c.Secrets("ns").Get(ctx, "x", get) },
		"Namespace":        func() (metav1.Object, error) { return c.Namespaces.Get(ctx, "x", get) },
		"Deployment":       func() (metav1.Object, error) { return c.Deployments("ns").Get(ctx, "x", get) },
		"EndpointSlice":    func() (metav1.Object, error) { return c.EndpointSlices("ns").Get(ctx, "x", get) },
		"mutating webhook": func() (metav1.Object, error) { return c.MutatingWebhookConfigurations.Get(ctx, "x", get) },
		"Node":             func() (metav1.Object, error) { return c.Nodes.Get(ctx, "x", get) },
		"PersistentVolume": func() (metav1.Object, error) { return c.PersistentVolumes.Get(ctx, "x", get) },
		"DaemonSet":        func() (metav1.Object, error) { return c.DaemonSets("ns").Get(ctx, "x", get) },
		"ClusterRole":      func() (metav1.Object, error) { return c.ClusterRoles.Get(ctx, "x", get) },
		"webhook":          func() (metav1.Object, error) { return c.WebhookConfigurations.Get(ctx, "x", get) },
		"patched ClusterRole": func() (metav1.Object, error) {
			return c.ClusterRoles.Patch(ctx, "x", types.MergePatchType, []byte("{}"), metav1.PatchOptions{})
		},
		"updated Secret": func() (metav1.Object, error) {
			secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "x"}}
			return c.Secrets("ns").Update(ctx, secret, metav1.UpdateOptions{})
		},
		"updated Lease": func() (metav1.Object, error) {
			lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "x"}}
			return c.Leases("ns").Update(ctx, lease, metav1.UpdateOptions{})
		},
		"created Event": func() (metav1.Object, error) {
			return c.Events("ns").Create(ctx, &corev1.Event{}, metav1.CreateOptions{})
		},
	} {
		if o, err := ask(); err != nil || o.GetName() != "x" || o.GetUID() != "u" {
			t.Errorf("%s: %v, %v", name, o, err)
		}
	}
	r, err := c.TokenReviews.Create(ctx, &authenticationv1.TokenReview{}, metav1.CreateOptions{})
	if err != nil || !r.Status.Authenticated {
		t.Errorf("TokenReview: %+v, %v", r, err)
	}
	l, err := c.DaemonSets("").List(ctx, metav1.ListOptions{Limit: 5})
	if err != nil || len(l.Items) != 1 || l.Items[0].Name != "x" {
		t.Errorf("list: %+v, %v", l, err)
	}
	if e, err := c.Events("ns").List(ctx, metav1.ListOptions{Limit: 5}); err != nil || len(e.Items) != 1 {
		t.Errorf("list events: %+v, %v", e, err)
	}
	if p, err := c.Pods("").List(ctx, metav1.ListOptions{Limit: 5}); err != nil || len(p.Items) != 1 {
		t.Errorf("list pods: %+v, %v", p, err)
	}
	if n, err := c.Nodes.List(ctx, metav1.ListOptions{Limit: 5}); err != nil || len(n.Items) != 1 {
		t.Errorf("list nodes: %+v, %v", n, err)
	}
	if err := c.WebhookConfigurations.Delete(ctx, "x", metav1.DeleteOptions{}); err != nil {
		t.Errorf("delete: %v", err)
	}
	w, err := c.ConfigMaps("ns").Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=x"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if e := <-w.ResultChan(); e.Type != watch.Added || e.Object.(*corev1.ConfigMap).Name != "x" {
		t.Errorf("watch: %+v", e)
	}
}

// TestErrorsAreThoseOfTheAPI, so that a caller can distinguish a missing object from a failed request.
func TestErrorsAreThoseOfTheAPI(t *testing.T) {
	c := answers{}.start(t)
	_, err := c.Secrets("ns").Get(t.Context(), "gone", metav1.GetOptions{})
	if !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "/api/v1/namespaces/ns/secrets/gone") {
		t.Errorf("%v", err)
	}
	invalid := rest.TLSClientConfig{CAData: []byte("no certificate")}
	if _, err := kube.New(&rest.Config{Host: "https://x", TLSClientConfig: invalid}); err == nil {
		t.Error("an invalid CA is accepted")
	}
}

func TestRegistryNames(t *testing.T) {
	got := kube.RegistryNames(kube.DefaultHost("kube-public"), "kube-public", 31000)
	if want := []string{"trow.kube-public:31000", "trow:31000"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	got = kube.LoopbackNames(31000)
	if want := []string{"localhost:31000", "127.0.0.1:31000", "[::1]:31000"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	got = kube.RegistryNames("registry.example.org", "images", 30500)
	if len(got) != 3 || got[0] != "registry.example.org:30500" || got[1] != "trow.images:30500" {
		t.Errorf("with a host of its own: %q", got)
	}
}

func TestTheNamespaceOfAHost(t *testing.T) {
	for host, want := range map[string]string{"etcd.db.svc": "db", "e-0.etcd.DB.svc.cluster.local": "db", "etcd.db": "",
		"etcd.example.org": "", "svc": "", "db.svc": "", "10.0.0.1": "", "": "", "fd00::1": ""} {
		if got := kube.NamespaceOf(host); got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
}

func TestLocalNamesDependOnPortAndPlace(t *testing.T) {
	for _, tt := range []struct {
		port      int
		inCluster bool
		want      string
	}{
		{8443, false, "trow.kube-public:31000 trow:31000 localhost:31000 127.0.0.1:31000 [::1]:31000 " +
			"localhost:8443 127.0.0.1:8443 [::1]:8443"},
		{31000, false, "trow.kube-public:31000 trow:31000 localhost:31000 127.0.0.1:31000 [::1]:31000"},
		{8443, true, "trow.kube-public:31000 trow:31000"},
	} {
		if got := strings.Join(kube.LocalNames(tt.port, tt.inCluster), " "); got != tt.want {
			t.Errorf("%d, %v: %s", tt.port, tt.inCluster, got)
		}
	}
	const want = "localhost 127.0.0.1 ::1 trow trow.kube-public trow.kube-public.svc trow.kube-public.svc.cluster.local"
	if got := strings.Join(kube.CertificateNames(), " "); got != want {
		t.Errorf("names of the certificate: %s", got)
	}
}

func TestConnecting(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, _, err := kube.InCluster(); err == nil {
		t.Error("InCluster connects outside a cluster")
	}
	file := filepath.Join(t.TempDir(), "config")
	if _, err := kube.FromKubeconfig(file, ""); err == nil {
		t.Error("FromKubeconfig connects without a file")
	}
	config := `{"apiVersion":"v1","kind":"Config","current-context":"a",
		"clusters":[{"name":"c","cluster":{"server":"https://a.example"}}],
		"contexts":[{"name":"a","context":{"cluster":"c"}}]}`
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := kube.FromKubeconfig(file, ""); err != nil || c == nil {
		t.Errorf("the current context: %v", err)
	}
	if _, err := kube.FromKubeconfig(file, "b"); err == nil {
		t.Error("a context that does not exist is accepted")
	}
}
