package cluster

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/manifests/kube"
)

// Secret keeps files in an existing Secret. The manifest creates it empty, so that the server needs no right to create
// Secrets. It is a Store of package tls, and any number of processes may share it.
type Secret struct {
	client    *kube.Client
	namespace string
}

// NewSecret returns the Secret of the certificates.
func NewSecret(client *kube.Client, namespace string) *Secret {
	return &Secret{client: client, namespace: namespace}
}

func (s *Secret) String() string { return "Secret " + s.namespace + "/" + kube.SecretName }

func (s *Secret) get(ctx context.Context) (*corev1.Secret, error) {
	secret, err := s.client.Secrets(s.namespace).Get(ctx, kube.SecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("%s: %w", s, errMissing)
	}
	return secret, err
}

// Load returns the files, and the Secret's resourceVersion. Errors: those of the API.
func (s *Secret) Load(ctx context.Context) (map[string][]byte, string, error) {
	secret, err := s.get(ctx)
	if err != nil {
		return nil, "", err
	}
	return maps.Clone(secret.Data), secret.ResourceVersion, nil
}

// Save replaces the files if the Secret still has that resourceVersion, and reports whether it did. Other files in the
// Secret stay. Errors: those of the API.
func (s *Secret) Save(ctx context.Context, files map[string][]byte, version string) (bool, error) {
	secret, err := s.get(ctx)
	if err != nil {
		return false, err
	}
	if secret.ResourceVersion != version {
		return false, nil
	}
	if secret.Data == nil {
		secret.Data = map[string][]byte{}
	}
	maps.Copy(secret.Data, files)
	// The API server refuses the update if the Secret has changed since it was read above.
	return written(s.client.Secrets(s.namespace).Update(ctx, secret, metav1.UpdateOptions{}))
}

// written turns a conflict into false.
func written[T any](_ T, err error) (bool, error) {
	if apierrors.IsConflict(err) {
		return false, nil
	}
	return err == nil, err
}

// rotate starts the rotation that the annotation requests, then removes the annotation. In this order a crash in
// between loses no request: the rotation is in progress then, and starting it again has no effect.
func (c *Cluster) rotate(ctx context.Context) error {
	s := NewSecret(c.o.Client, c.o.Namespace)
	secret, err := s.get(ctx)
	if err != nil || secret.Annotations[rotateAnnotation] == "" {
		return err
	}
	if err := c.o.Rotate(ctx); err != nil {
		return err
	}
	// Rotate has written the Secret, so the object from above is out of date.
	if secret, err = s.get(ctx); err != nil {
		return err
	}
	delete(secret.Annotations, rotateAnnotation)
	_, err = written(c.o.Client.Secrets(c.o.Namespace).Update(ctx, secret, metav1.UpdateOptions{}))
	return err
}

// publish writes the bundle to the ConfigMap. settled reports whether it is there; it is not if there is a newer
// bundle, which the next pass has. A conflict is an error; the next pass tries again.
func (c *Cluster) publish(ctx context.Context, bundle []byte) (settled bool, err error) {
	configMaps := c.o.Client.ConfigMaps(c.o.Namespace)
	m, err := configMaps.Get(ctx, kube.ConfigMapName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, errMissing
	}
	if err != nil || m.Data[kube.CAKey] == string(bundle) {
		return err == nil, err
	}
	if current, err := c.current(ctx, bundle); !current || err != nil {
		return false, err
	}
	if m.Data == nil {
		m.Data = map[string]string{}
	}
	m.Data[kube.CAKey] = string(bundle)
	_, err = configMaps.Update(ctx, m, metav1.UpdateOptions{})
	return err == nil, err
}
