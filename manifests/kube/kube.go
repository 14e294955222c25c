// Package kube is a client of the Kubernetes API for the kinds that this program uses, and the names of the program's
// objects in a cluster.
//
// # Why
//
// The clientset of client-go knows every kind, with everything that encodes and registers it: a third of the program, a
// good part of which is loaded at each start. This package uses client-go's REST client with a scheme of our few kinds.
// Of client-go's gentype, which makes typed clients, the fakes would come along, and with them the schemas of OpenAPI.
// The methods are those of the clientset, so that its fake works in tests.
//
// # Words
//
//   - resource: the objects of one kind, in one namespace or in the cluster.
//
// # Invariants
//
//   - Each name that the manifest and the code have to agree on is written once, in names.go.
//
// # What it does not do
//
// It has no cache and no informers: the program watches one object at a time.
package kube

import (
	"context"
	"fmt"
	"sync"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
)

// Creator creates objects. Errors: those of k8s.io/apimachinery/pkg/api/errors, and of the connection.
type Creator[T any] interface {
	Create(ctx context.Context, object T, o metav1.CreateOptions) (T, error)
}

// Resource is the objects of one kind. Errors: see [Creator].
type Resource[T any] interface {
	Creator[T]
	Get(ctx context.Context, name string, o metav1.GetOptions) (T, error)
	Update(ctx context.Context, object T, o metav1.UpdateOptions) (T, error)
	Patch(ctx context.Context, name string, pt types.PatchType, data []byte, o metav1.PatchOptions,
		subresources ...string) (T, error)
	Delete(ctx context.Context, name string, o metav1.DeleteOptions) error
	Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error)
}

// Lister is a Resource that can be listed as well.
type Lister[T, L any] interface {
	Resource[T]
	List(ctx context.Context, o metav1.ListOptions) (L, error)
}

// Client has a Resource for each kind; where a kind has namespaces, it is a function of the namespace. It is safe for
// concurrent use. Make one with [InCluster], [FromKubeconfig] or [New].
type Client struct {
	ConfigMaps             func(namespace string) Lister[*corev1.ConfigMap, *corev1.ConfigMapList]
	Events                 func(namespace string) Lister[*corev1.Event, *corev1.EventList]
	PersistentVolumeClaims func(namespace string) Resource[*corev1.PersistentVolumeClaim]
	Pods                   func(namespace string) Lister[*corev1.Pod, *corev1.PodList]
	Secrets                func(namespace string) Resource[*corev1.Secret]
	DaemonSets             func(namespace string) Lister[*appsv1.DaemonSet, *appsv1.DaemonSetList]
	Deployments            func(namespace string) Lister[*appsv1.Deployment, *appsv1.DeploymentList]
	EndpointSlices         func(namespace string) Resource[*discoveryv1.EndpointSlice]
	Leases                 func(namespace string) Resource[*coordinationv1.Lease]

	Namespaces            Resource[*corev1.Namespace]
	Nodes                 Lister[*corev1.Node, *corev1.NodeList]
	PersistentVolumes     Resource[*corev1.PersistentVolume]
	ClusterRoles          Resource[*rbacv1.ClusterRole]
	WebhookConfigurations Lister[*admissionregistrationv1.ValidatingWebhookConfiguration,
		*admissionregistrationv1.ValidatingWebhookConfigurationList]
	MutatingWebhookConfigurations Lister[*admissionregistrationv1.MutatingWebhookConfiguration,
		*admissionregistrationv1.MutatingWebhookConfigurationList]
	TokenReviews         Creator[*authenticationv1.TokenReview]
	SubjectAccessReviews Creator[*authorizationv1.SubjectAccessReview]
}

// scheme knows the kinds of Client. It is made for the first client: not every process has one.
var scheme = sync.OnceValue(newScheme)

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, rbacv1.AddToScheme,
		admissionregistrationv1.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme,
		discoveryv1.AddToScheme, coordinationv1.AddToScheme} {
		utilruntime.Must(add(s)) // it fails only if two kinds of ours have the same name
	}
	metav1.AddToGroupVersion(s, schema.GroupVersion{Version: "v1"})
	return s
}

// New makes a client from a configuration. Errors: what is wrong with the configuration.
func New(config *rest.Config) (*Client, error) {
	groups := map[schema.GroupVersion]rest.Interface{}
	codecs := serializer.NewCodecFactory(scheme())
	// One HTTP client for all groups, so that they share connections.
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	for _, gv := range []schema.GroupVersion{corev1.SchemeGroupVersion, appsv1.SchemeGroupVersion,
		rbacv1.SchemeGroupVersion, admissionregistrationv1.SchemeGroupVersion, authenticationv1.SchemeGroupVersion,
		authorizationv1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, coordinationv1.SchemeGroupVersion} {
		c := rest.CopyConfig(config)
		c.GroupVersion, c.NegotiatedSerializer, c.APIPath = &gv, codecs.WithoutConversion(), "/apis"
		if gv.Group == "" {
			c.APIPath = "/api"
		}
		if groups[gv], err = rest.RESTClientForConfigAndClient(c, httpClient); err != nil {
			return nil, fmt.Errorf("kubernetes: %w", err)
		}
	}
	return assemble(groups), nil
}

// assemble makes the typed clients from the REST clients of the groups.
func assemble(groups map[schema.GroupVersion]rest.Interface) *Client {
	core, apps := groups[corev1.SchemeGroupVersion], groups[appsv1.SchemeGroupVersion]
	admission := groups[admissionregistrationv1.SchemeGroupVersion]
	return &Client{
		ConfigMaps: func(ns string) Lister[*corev1.ConfigMap, *corev1.ConfigMapList] {
			return newLister[*corev1.ConfigMap, *corev1.ConfigMapList](core, "configmaps", ns)
		},
		Events: func(ns string) Lister[*corev1.Event, *corev1.EventList] {
			return newLister[*corev1.Event, *corev1.EventList](core, "events", ns)
		},
		PersistentVolumeClaims: func(ns string) Resource[*corev1.PersistentVolumeClaim] {
			return newResource[*corev1.PersistentVolumeClaim](core, "persistentvolumeclaims", ns)
		},
		Pods: func(ns string) Lister[*corev1.Pod, *corev1.PodList] {
			return newLister[*corev1.Pod, *corev1.PodList](core, "pods", ns)
		},
		Secrets: func(ns string) Resource[*corev1.Secret] {
			return newResource[*corev1.Secret](core, "secrets", ns)
		},
		DaemonSets: func(ns string) Lister[*appsv1.DaemonSet, *appsv1.DaemonSetList] {
			return newLister[*appsv1.DaemonSet, *appsv1.DaemonSetList](apps, "daemonsets", ns)
		},
		Deployments: func(ns string) Lister[*appsv1.Deployment, *appsv1.DeploymentList] {
			return newLister[*appsv1.Deployment, *appsv1.DeploymentList](apps, "deployments", ns)
		},
		EndpointSlices: func(ns string) Resource[*discoveryv1.EndpointSlice] {
			return newResource[*discoveryv1.EndpointSlice](groups[discoveryv1.SchemeGroupVersion], "endpointslices", ns)
		},
		Leases: func(ns string) Resource[*coordinationv1.Lease] {
			return newResource[*coordinationv1.Lease](groups[coordinationv1.SchemeGroupVersion], "leases", ns)
		},
		Namespaces:        newResource[*corev1.Namespace](core, "namespaces", ""),
		Nodes:             newLister[*corev1.Node, *corev1.NodeList](core, "nodes", ""),
		PersistentVolumes: newResource[*corev1.PersistentVolume](core, "persistentvolumes", ""),
		ClusterRoles:      newResource[*rbacv1.ClusterRole](groups[rbacv1.SchemeGroupVersion], "clusterroles", ""),
		WebhookConfigurations: newLister[*admissionregistrationv1.ValidatingWebhookConfiguration,
			*admissionregistrationv1.ValidatingWebhookConfigurationList](
			admission, "validatingwebhookconfigurations", ""),
		MutatingWebhookConfigurations: newLister[*admissionregistrationv1.MutatingWebhookConfiguration,
			*admissionregistrationv1.MutatingWebhookConfigurationList](
			admission, "mutatingwebhookconfigurations", ""),
		TokenReviews: newResource[*authenticationv1.TokenReview](
			groups[authenticationv1.SchemeGroupVersion], "tokenreviews", ""),
		SubjectAccessReviews: newResource[*authorizationv1.SubjectAccessReview](
			groups[authorizationv1.SchemeGroupVersion], "subjectaccessreviews", ""),
	}
}
