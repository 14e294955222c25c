package kube_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"trow/manifests/kube"
)

// answers is an API server that knows some requests, and tells which it got.
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

// TestEveryKindIsAskedForAtItsPlace: path and group of each kind are the API's, and what comes is decoded.
func TestEveryKindIsAskedForAtItsPlace(t *testing.T) {
	object := func(apiVersion, kind string) string {
		return fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":"x","uid":"u"}}`, apiVersion, kind)
	}
	c := answers{
		"GET /api/v1/namespaces/ns/configmaps/x":                                          object("v1", "ConfigMap"),
		"GET /api/v1/namespaces/ns/persistentvolumeclaims/x":                              object("v1", "PersistentVolumeClaim"),
		"GET /api/v1/namespaces/ns/pods/x":                                                object("v1", "Pod"),
		"GET /api/v1/namespaces/ns/secrets/x":                                             object("v1", "Secret"),
		"GET /api/v1/persistentvolumes/x":                                                 object("v1", "PersistentVolume"),
		"GET /apis/apps/v1/namespaces/ns/daemonsets/x":                                    object("apps/v1", "DaemonSet"),
		"GET /apis/rbac.authorization.k8s.io/v1/clusterroles/x":                           object("rbac.authorization.k8s.io/v1", "ClusterRole"),
		"GET /apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/x":     object("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration"),
		"POST /apis/authentication.k8s.io/v1/tokenreviews":                                `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","status":{"authenticated":true}}`,
		"POST /apis/authorization.k8s.io/v1/subjectaccessreviews":                         object("authorization.k8s.io/v1", "SubjectAccessReview"),
		"POST /api/v1/namespaces/ns/events":                                               object("v1", "Event"),
		"GET /apis/apps/v1/daemonsets?limit=5":                                            `{"apiVersion":"apps/v1","kind":"DaemonSetList","items":[{"metadata":{"name":"x"}}]}`,
		"GET /api/v1/namespaces/ns/configmaps?fieldSelector=metadata.name%3Dx&watch=true": `{"type":"ADDED","object":` + object("v1", "ConfigMap") + "}\n",
		"PATCH /apis/rbac.authorization.k8s.io/v1/clusterroles/x":                         object("rbac.authorization.k8s.io/v1", "ClusterRole"),
		"DELETE /apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/x":  `{"apiVersion":"v1","kind":"Status","status":"Success"}`,
		"PUT /api/v1/namespaces/ns/secrets/x":                                             object("v1", "Secret"),
	}.start(t)
	ctx := t.Context()
	get := metav1.GetOptions{}
	for name, ask := range map[string]func() (metav1.Object, error){
		"ConfigMap":             func() (metav1.Object, error) { return c.ConfigMaps("ns").Get(ctx, "x", get) },
		"PersistentVolumeClaim": func() (metav1.Object, error) { return c.PersistentVolumeClaims("ns").Get(ctx, "x", get) },
		"Pod":                   func() (metav1.Object, error) { return c.Pods("ns").Get(ctx, "x", get) },
		"Secret":                func() (metav1.Object, error) { return c.Secrets("ns").Get(ctx, "x", get) },
		"PersistentVolume":      func() (metav1.Object, error) { return c.PersistentVolumes.Get(ctx, "x", get) },
		"DaemonSet":             func() (metav1.Object, error) { return c.DaemonSets("ns").Get(ctx, "x", get) },
		"ClusterRole":           func() (metav1.Object, error) { return c.ClusterRoles.Get(ctx, "x", get) },
		"webhook":               func() (metav1.Object, error) { return c.WebhookConfigurations.Get(ctx, "x", get) },
		"patched ClusterRole": func() (metav1.Object, error) {
			return c.ClusterRoles.Patch(ctx, "x", types.MergePatchType, []byte("{}"), metav1.PatchOptions{})
		},
		"updated Secret": func() (metav1.Object, error) {
			return c.Secrets("ns").Update(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.UpdateOptions{})
		},
		"created Event": func() (metav1.Object, error) {
			return c.Events("ns").Create(ctx, &corev1.Event{}, metav1.CreateOptions{})
		},
	} {
		if o, err := ask(); err != nil || o.GetName() != "x" || o.GetUID() != "u" {
			t.Errorf("%s: %v, %v", name, o, err)
		}
	}
	if r, err := c.TokenReviews.Create(ctx, &authenticationv1.TokenReview{}, metav1.CreateOptions{}); err != nil || !r.Status.Authenticated {
		t.Errorf("TokenReview: %+v, %v", r, err)
	}
	if l, err := c.DaemonSets("").List(ctx, metav1.ListOptions{Limit: 5}); err != nil || len(l.Items) != 1 || l.Items[0].Name != "x" {
		t.Errorf("list: %+v, %v", l, err)
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

// TestErrorsAreThoseOfTheAPI: who asks can tell what is not there from what went wrong.
func TestErrorsAreThoseOfTheAPI(t *testing.T) {
	c := answers{}.start(t)
	_, err := c.Secrets("ns").Get(t.Context(), "gone", metav1.GetOptions{})
	if !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), "/api/v1/namespaces/ns/secrets/gone") {
		t.Errorf("%v", err)
	}
	if _, err := kube.New(&rest.Config{Host: "https://x", TLSClientConfig: rest.TLSClientConfig{CAData: []byte("no certificate")}}); err == nil {
		t.Error("a CA that is none is taken")
	}
}
