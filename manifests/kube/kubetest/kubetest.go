// Package kubetest makes a client of client-go's clientset, of which there is a fake for tests.
package kubetest

import (
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/client-go/kubernetes"

	"trow/manifests/kube"
)

// Client asks a clientset.
func Client(c kubernetes.Interface) *kube.Client {
	return &kube.Client{
		ConfigMaps: func(ns string) kube.Lister[*corev1.ConfigMap, *corev1.ConfigMapList] {
			return c.CoreV1().ConfigMaps(ns)
		},
		Events: func(ns string) kube.Creator[*corev1.Event] { return c.CoreV1().Events(ns) },
		PersistentVolumeClaims: func(ns string) kube.Resource[*corev1.PersistentVolumeClaim] {
			return c.CoreV1().PersistentVolumeClaims(ns)
		},
		Pods:    func(ns string) kube.Resource[*corev1.Pod] { return c.CoreV1().Pods(ns) },
		Secrets: func(ns string) kube.Resource[*corev1.Secret] { return c.CoreV1().Secrets(ns) },
		DaemonSets: func(ns string) kube.Lister[*appsv1.DaemonSet, *appsv1.DaemonSetList] {
			return c.AppsV1().DaemonSets(ns)
		},
		PersistentVolumes:     kube.Resource[*corev1.PersistentVolume](c.CoreV1().PersistentVolumes()),
		ClusterRoles:          kube.Resource[*rbacv1.ClusterRole](c.RbacV1().ClusterRoles()),
		WebhookConfigurations: kube.Resource[*admissionregistrationv1.ValidatingWebhookConfiguration](c.AdmissionregistrationV1().ValidatingWebhookConfigurations()),
		TokenReviews:          kube.Creator[*authenticationv1.TokenReview](c.AuthenticationV1().TokenReviews()),
		SubjectAccessReviews:  kube.Creator[*authorizationv1.SubjectAccessReview](c.AuthorizationV1().SubjectAccessReviews()),
	}
}
