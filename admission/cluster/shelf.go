package cluster

import (
	"bytes"
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/manifests/kube"
)

const (
	// shelfTimeout bounds the requests of one call: the start of the server waits for them.
	shelfTimeout = 10 * time.Second
	// shelfKey is the key of the Secret.
	shelfKey = "last-good-settings.json"
)

// Shelf keeps the last good configuration files of replicas in the Secret [kube.SettingsSecretName], and not in a
// ConfigMap, because a file may have a password. The data directory of a replica is deleted with its pod; without the
// Shelf, new replicas would not start while the present files have an error, until none is left to review pods. The
// manifest creates the Secret without data, so that the server needs no right to create Secrets.
type Shelf struct{ o Options }

// OpenShelf returns the Shelf if the setting deployment is set, so that there are replicas; otherwise nil. It sends no
// request. It returns an interface without a name, because this package does not import package settings.
func OpenShelf(setting func(key string) string) interface {
	Load() ([]byte, error)
	Save(content []byte) error
} {
	if setting("deployment") == "" {
		return nil
	}
	return NewShelf(Options{})
}

// NewShelf returns the Shelf in the namespace of o, with its client; without a client it connects as [Open] does.
func NewShelf(o Options) *Shelf { return &Shelf{o} }

// Load returns the content that was saved last; nil if there is none. Errors: this process does not run in a cluster;
// those of the API.
func (s *Shelf) Load() ([]byte, error) {
	var content []byte
	err := s.with(func(ctx context.Context) error {
		secret, err := s.o.Client.Secrets(s.o.Namespace).Get(ctx, kube.SettingsSecretName, metav1.GetOptions{})
		if err == nil {
			content = secret.Data[shelfKey]
		}
		return err
	})
	return content, err
}

// Save saves the content. If another replica changes the Secret at the same time, its content stays, which is as good:
// it has started with it as well. Errors: as Load.
func (s *Shelf) Save(content []byte) error {
	return s.with(func(ctx context.Context) error {
		secret, err := s.o.Client.Secrets(s.o.Namespace).Get(ctx, kube.SettingsSecretName, metav1.GetOptions{})
		if err != nil || bytes.Equal(secret.Data[shelfKey], content) {
			return err
		}
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		secret.Data[shelfKey] = content
		_, err = written(s.o.Client.Secrets(s.o.Namespace).Update(ctx, secret, metav1.UpdateOptions{}))
		return err
	})
}

// with connects, calls do with a time limit, and names the Secret in its error.
func (s *Shelf) with(do func(context.Context) error) error {
	if err := s.o.connect("deployment"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), shelfTimeout)
	defer cancel()
	err := do(ctx)
	if apierrors.IsNotFound(err) {
		err = errMissing
	}
	if err != nil {
		err = fmt.Errorf("Secret %s/%s: %w", s.o.Namespace, kube.SettingsSecretName, err)
	}
	return err
}
