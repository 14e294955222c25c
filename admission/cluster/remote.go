package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"trow/manifests/kube"
)

// Disarm empties the configuration and notes that it must not be filled again: until [Arm], or until the manifest is
// deleted and applied again. It works without the server, and after the manifest was deleted. found reports whether
// there was a configuration with a webhook.
func Disarm(ctx context.Context, c *kube.Client) (found bool, err error) {
	// The note comes first: a running server fills a configuration that is empty.
	if err := annotateRole(ctx, c, string(Off)); err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("ClusterRole %s: %w", kube.Name, err)
	}
	have, err := c.WebhookConfigurations.Get(ctx, kube.Name, metav1.GetOptions{})
	if err == nil {
		// A patch without a resourceVersion, so that it does not lose a race against other clients.
		found = len(have.Webhooks) > 0
		_, err = c.WebhookConfigurations.Patch(ctx, kube.Name, types.MergePatchType, empty, metav1.PatchOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("ValidatingWebhookConfiguration %s: %w", kube.Name, err)
	}
	return found, nil
}

// empty is a merge patch that empties the configuration.
var empty = []byte(`{"webhooks":null,"metadata":{"annotations":{"` + modeAnnotation + `":"` + string(Off) + `","` +
	whyAnnotation + `":null}}}`)

// Arm removes the note of [Disarm]. Within seconds the server arms the webhook as its settings say. Errors: those of
// the API; the cluster does not have the ClusterRole, or the configuration, which the server cannot create.
func Arm(ctx context.Context, c *kube.Client) error {
	err := annotateRole(ctx, c, nil)
	if apierrors.IsNotFound(err) {
		err = errMissing
	}
	if err != nil {
		return fmt.Errorf("ClusterRole %s: %w", kube.Name, err)
	}
	// Other errors do not matter: it takes no right on the configuration to remove the note.
	if _, err := c.WebhookConfigurations.Get(ctx, kube.Name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
		return errors.New(absent)
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
