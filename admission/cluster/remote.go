package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"trow/manifests/kube"
)

// Disarm deletes the configuration and notes that it must not be created again: until [Arm], or until the manifest is
// deleted and applied again. It works without the server, and after the manifest was deleted. found reports whether
// there was a configuration.
func Disarm(ctx context.Context, c *kube.Client) (found bool, err error) {
	// The note comes first: a running server creates a configuration that it misses.
	if err := annotateRole(ctx, c, string(Off)); err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("ClusterRole %s: %w", kube.Name, err)
	}
	err = c.WebhookConfigurations.Delete(ctx, kube.Name, metav1.DeleteOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("ValidatingWebhookConfiguration %s: %w", kube.Name, err)
	}
	return true, nil
}

// Arm removes the note of [Disarm]. Within seconds the server arms the webhook as its settings say.
func Arm(ctx context.Context, c *kube.Client) error {
	err := annotateRole(ctx, c, nil)
	if apierrors.IsNotFound(err) {
		err = errMissing
	}
	if err != nil {
		return fmt.Errorf("ClusterRole %s: %w", kube.Name, err)
	}
	return nil
}

// annotateRole sets the annotation that [Cluster.arm] reads; nil removes it.
func annotateRole(ctx context.Context, c *kube.Client, value any) error {
	_, err := c.ClusterRoles.Patch(ctx, kube.Name, types.MergePatchType, annotate(modeAnnotation, value),
		metav1.PatchOptions{})
	return err
}

// RotateCA requests a new CA. The server starts the rotation within seconds.
func RotateCA(ctx context.Context, c *kube.Client, namespace string) error {
	patch := annotate(rotateAnnotation, time.Now().UTC().Format(time.RFC3339))
	_, err := c.Secrets(namespace).Patch(ctx, kube.SecretName, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("%s: %w", NewSecret(c, namespace), err)
	}
	return nil
}

// annotate returns a merge patch that sets an annotation; nil removes it.
func annotate(key string, value any) []byte {
	b, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{key: value}}})
	if err != nil {
		panic(err) // impossible: strings can be encoded
	}
	return b
}
