// Package kube is a client of the Kubernetes API for the kinds that this program uses, and the names of the program's
// objects in a cluster.
//
// # Why
//
// The clientset of client-go knows every kind, with everything that encodes and registers it: a third of the program, a
// good part of which is loaded at each start. This package uses the parts that the clientset is made of (a REST client,
// and gentype, which makes a typed client from it) with a scheme of our few kinds. The methods are those of the
// clientset, so that its fake works in tests.
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
	"k8s.io/client-go/gentype"
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

// scheme knows the kinds of Client.
var scheme = newScheme()

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
	codecs := serializer.NewCodecFactory(scheme)
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
	parameters := runtime.NewParameterCodec(scheme)
	core, apps := groups[corev1.SchemeGroupVersion], groups[appsv1.SchemeGroupVersion]
	rbac := groups[rbacv1.SchemeGroupVersion]
	admission := groups[admissionregistrationv1.SchemeGroupVersion]
	authentication := groups[authenticationv1.SchemeGroupVersion]
	authorization := groups[authorizationv1.SchemeGroupVersion]
	return &Client{
		ConfigMaps: func(ns string) Lister[*corev1.ConfigMap, *corev1.ConfigMapList] {
			return gentype.NewClientWithList("configmaps", core, parameters, ns,
				func() *corev1.ConfigMap { return &corev1.ConfigMap{} },
				func() *corev1.ConfigMapList { return &corev1.ConfigMapList{} })
		},
		Events: func(ns string) Lister[*corev1.Event, *corev1.EventList] {
			return gentype.NewClientWithList("events", core, parameters, ns,
				func() *corev1.Event { return &corev1.Event{} },
				func() *corev1.EventList { return &corev1.EventList{} })
		},
		PersistentVolumeClaims: func(ns string) Resource[*corev1.PersistentVolumeClaim] {
			return gentype.NewClient("persistentvolumeclaims", core, parameters, ns,
				func() *corev1.PersistentVolumeClaim { return &corev1.PersistentVolumeClaim{} })
		},
		Pods: func(ns string) Lister[*corev1.Pod, *corev1.PodList] {
			return gentype.NewClientWithList("pods", core, parameters, ns,
				func() *corev1.Pod { return &corev1.Pod{} }, func() *corev1.PodList { return &corev1.PodList{} })
		},
		Secrets: func(ns string) Resource[*corev1.Secret] {
			return gentype.NewClient("secrets", core, parameters, ns, func() *corev1.Secret { return &corev1.Secret{} })
		},
		DaemonSets: func(ns string) Lister[*appsv1.DaemonSet, *appsv1.DaemonSetList] {
			return gentype.NewClientWithList("daemonsets", apps, parameters, ns,
				func() *appsv1.DaemonSet { return &appsv1.DaemonSet{} },
				func() *appsv1.DaemonSetList { return &appsv1.DaemonSetList{} })
		},
		Deployments: func(ns string) Lister[*appsv1.Deployment, *appsv1.DeploymentList] {
			return gentype.NewClientWithList("deployments", apps, parameters, ns,
				func() *appsv1.Deployment { return &appsv1.Deployment{} },
				func() *appsv1.DeploymentList { return &appsv1.DeploymentList{} })
		},
		EndpointSlices: func(ns string) Resource[*discoveryv1.EndpointSlice] {
			return gentype.NewClient("endpointslices", groups[discoveryv1.SchemeGroupVersion], parameters, ns,
				func() *discoveryv1.EndpointSlice { return &discoveryv1.EndpointSlice{} })
		},
		Leases: func(ns string) Resource[*coordinationv1.Lease] {
			return gentype.NewClient("leases", groups[coordinationv1.SchemeGroupVersion], parameters, ns,
				func() *coordinationv1.Lease { return &coordinationv1.Lease{} })
		},
		Namespaces: gentype.NewClient("namespaces", core, parameters, "",
			func() *corev1.Namespace { return &corev1.Namespace{} }),
		Nodes: gentype.NewClientWithList("nodes", core, parameters, "",
			func() *corev1.Node { return &corev1.Node{} }, func() *corev1.NodeList { return &corev1.NodeList{} }),
		PersistentVolumes: gentype.NewClient("persistentvolumes", core, parameters, "",
			func() *corev1.PersistentVolume { return &corev1.PersistentVolume{} }),
		ClusterRoles: gentype.NewClient("clusterroles", rbac, parameters, "",
			func() *rbacv1.ClusterRole { return &rbacv1.ClusterRole{} }),
		WebhookConfigurations: gentype.NewClientWithList("validatingwebhookconfigurations", admission, parameters, "",
			func() *admissionregistrationv1.ValidatingWebhookConfiguration {
				return &admissionregistrationv1.ValidatingWebhookConfiguration{}
			},
			func() *admissionregistrationv1.ValidatingWebhookConfigurationList {
				return &admissionregistrationv1.ValidatingWebhookConfigurationList{}
			}),
		MutatingWebhookConfigurations: gentype.NewClientWithList("mutatingwebhookconfigurations", admission,
			parameters, "",
			func() *admissionregistrationv1.MutatingWebhookConfiguration {
				return &admissionregistrationv1.MutatingWebhookConfiguration{}
			},
			func() *admissionregistrationv1.MutatingWebhookConfigurationList {
				return &admissionregistrationv1.MutatingWebhookConfigurationList{}
			}),
		TokenReviews: gentype.NewClient("tokenreviews", authentication, parameters, "",
			func() *authenticationv1.TokenReview { return &authenticationv1.TokenReview{} }),
		SubjectAccessReviews: gentype.NewClient("subjectaccessreviews", authorization, parameters, "",
			func() *authorizationv1.SubjectAccessReview { return &authorizationv1.SubjectAccessReview{} }),
	}
}
