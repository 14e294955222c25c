// Package kubetest makes a kube.Client from a clientset of client-go, so that tests can use the clientset's fake.
package kubetest

import (
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/kubernetes"

	"trow/manifests/kube"
)

// Client returns a client that sends its requests to a clientset.
func Client(c kubernetes.Interface) *kube.Client {
	return &kube.Client{
		ConfigMaps: func(ns string) kube.Lister[*corev1.ConfigMap, *corev1.ConfigMapList] {
			return c.CoreV1().ConfigMaps(ns)
		},
		Events: func(ns string) kube.Lister[*corev1.Event, *corev1.EventList] { return c.CoreV1().Events(ns) },
		PersistentVolumeClaims: func(ns string) kube.Resource[*corev1.PersistentVolumeClaim] {
			return c.CoreV1().PersistentVolumeClaims(ns)
		},
		Pods:    func(ns string) kube.Lister[*corev1.Pod, *corev1.PodList] { return c.CoreV1().Pods(ns) },
		Secrets: func(ns string) kube.Resource[*corev1.Secret] { return c.CoreV1().Secrets(ns) },
		DaemonSets: func(ns string) kube.Lister[*appsv1.DaemonSet, *appsv1.DaemonSetList] {
			return c.AppsV1().DaemonSets(ns)
		},
		Deployments: func(ns string) kube.Lister[*appsv1.Deployment, *appsv1.DeploymentList] {
			return c.AppsV1().Deployments(ns)
		},
		EndpointSlices: func(ns string) kube.Resource[*discoveryv1.EndpointSlice] {
			return c.DiscoveryV1().EndpointSlices(ns)
		},
		Leases: func(ns string) kube.Resource[*coordinationv1.Lease] {
			return c.CoordinationV1().Leases(ns)
		},
		Namespaces:                    c.CoreV1().Namespaces(),
		Nodes:                         c.CoreV1().Nodes(),
		PersistentVolumes:             c.CoreV1().PersistentVolumes(),
		ClusterRoles:                  c.RbacV1().ClusterRoles(),
		WebhookConfigurations:         c.AdmissionregistrationV1().ValidatingWebhookConfigurations(),
		MutatingWebhookConfigurations: c.AdmissionregistrationV1().MutatingWebhookConfigurations(),
		TokenReviews:                  c.AuthenticationV1().TokenReviews(),
		SubjectAccessReviews:          c.AuthorizationV1().SubjectAccessReviews(),
	}
}
