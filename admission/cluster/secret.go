package cluster

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Secret keeps files in a Secret that exists: the manifest makes it, empty, so that nobody needs the right to
// make Secrets. It is a Store of package tls, for any number of processes.
type Secret struct {
	client    Client
	namespace string
}

// NewSecret is the Secret of the certificates.
func NewSecret(client Client, namespace string) *Secret {
	return &Secret{client: client, namespace: namespace}
}

func (s *Secret) String() string { return "Secret " + s.namespace + "/" + SecretName }

func (s *Secret) get(ctx context.Context) (*corev1.Secret, error) {
	secret, err := s.client.Secrets(s.namespace).Get(ctx, SecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("%s: %w", s, errMissing)
	}
	return secret, err
}

// Load returns the files, and the Secret's resourceVersion.
func (s *Secret) Load(ctx context.Context) (map[string][]byte, string, error) {
	secret, err := s.get(ctx)
	if err != nil {
		return nil, "", err
	}
	return maps.Clone(secret.Data), secret.ResourceVersion, nil
}

// Save replaces the files, if the Secret still has that resourceVersion: otherwise false. What else is in it
// stays.
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
	return written(s.client.Secrets(s.namespace).Update(ctx, secret, metav1.UpdateOptions{}))
}

// written turns a conflict into false.
func written[T any](_ T, err error) (bool, error) {
	if apierrors.IsConflict(err) {
		return false, nil
	}
	return err == nil, err
}

// rotate begins the rotation that somebody has asked for, then takes the request away. If the process ends in
// between, the rotation is under way, and beginning it again changes nothing.
func (c *Cluster) rotate(ctx context.Context) error {
	s := NewSecret(c.Client, c.Namespace)
	secret, err := s.get(ctx)
	if err != nil || secret.Annotations[rotateAnnotation] == "" {
		return err
	}
	if err := c.Rotate(ctx); err != nil {
		return err
	}
	if secret, err = s.get(ctx); err != nil {
		return err
	}
	delete(secret.Annotations, rotateAnnotation)
	_, err = written(c.Client.Secrets(c.Namespace).Update(ctx, secret, metav1.UpdateOptions{}))
	return err
}

// publish puts the bundle into the ConfigMap. A conflict is left to the next round.
func (c *Cluster) publish(ctx context.Context, bundle []byte) error {
	maps := c.Client.ConfigMaps(c.Namespace)
	m, err := maps.Get(ctx, ConfigMapName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return errMissing
	}
	if err != nil || m.Data[CAKey] == string(bundle) {
		return err
	}
	if m.Data == nil {
		m.Data = map[string]string{}
	}
	m.Data[CAKey] = string(bundle)
	_, err = maps.Update(ctx, m, metav1.UpdateOptions{})
	return err
}
