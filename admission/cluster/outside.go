package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"trow/manifests/kube"
)

// Client asks the API server.
type Client = *kube.Client

// namespaceFile says where a pod is.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// Inside connects as the pod's service account, and tells its namespace. Error: this is no pod, or it has no
// token.
func Inside() (Client, string, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, "", err
	}
	config.QPS = -1 // no pull waits for five questions a second; Reviewer bounds its own
	namespace, err := os.ReadFile(namespaceFile)
	if err != nil {
		return nil, "", err
	}
	client, err := kube.New(config)
	return client, strings.TrimSpace(string(namespace)), err
}

// Outside connects as kubectl would: by this kubeconfig (empty: KUBECONFIG, then ~/.kube/config) and this context
// of it (empty: the current one).
func Outside(kubeconfig, context string) (Client, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context}).ClientConfig()
	if err != nil {
		return nil, err
	}
	return kube.New(config)
}

// Disarm takes the configuration away and notes that it is to stay away, for the process to see: until [Arm], or
// until the manifest is deleted and applied anew. It works without the process, and after the manifest was
// deleted. It returns whether there was a configuration.
func Disarm(ctx context.Context, client Client) (bool, error) {
	if err := note(ctx, client, string(Off)); err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("ClusterRole %s: %w", Name, err)
	}
	err := client.WebhookConfigurations.Delete(ctx, Name, metav1.DeleteOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("ValidatingWebhookConfiguration %s: %w", Name, err)
	}
	return true, nil
}

// Arm takes back what [Disarm] has noted. The process arms then, within seconds, as its settings say.
func Arm(ctx context.Context, client Client) error {
	err := note(ctx, client, nil)
	if apierrors.IsNotFound(err) {
		err = errMissing
	}
	if err != nil {
		return fmt.Errorf("ClusterRole %s: %w", Name, err)
	}
	return nil
}

// note writes the annotation that [Cluster.arm] reads; nil takes it away.
func note(ctx context.Context, client Client, value any) error {
	_, err := client.ClusterRoles.Patch(ctx, Name, types.MergePatchType, annotate(modeAnnotation, value), metav1.PatchOptions{})
	return err
}

// RotateCA asks the process for a new CA. It begins within seconds.
func RotateCA(ctx context.Context, client Client, namespace string) error {
	patch := annotate(rotateAnnotation, time.Now().UTC().Format(time.RFC3339))
	_, err := client.Secrets(namespace).Patch(ctx, SecretName, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("%s: %w", NewSecret(client, namespace), err)
	}
	return nil
}

// annotate is a merge patch that sets an annotation.
func annotate(key string, value any) []byte {
	b, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{key: value}}})
	if err != nil {
		panic(err) // strings encode
	}
	return b
}
