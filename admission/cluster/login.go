package cluster

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/manifests/kube"
)

// loginRetry is the time between two tries to read or fill the Secret of the login.
const loginRetry = time.Second

// LoginUser returns the user who may do everything: the setting user, or the one in the Secret that login-secret names.
// That Secret is read when the server starts, by [Options.Login].
func (o *Options) LoginUser() string {
	if o.LoginSecret != "" {
		return kube.LoginUser
	}
	return o.User
}

// Login sets user and password to those in the Secret that the setting login-secret names, and fills in what the Secret
// lacks: the manifest has it without data, so that applying it again keeps the password. Without that setting it does
// nothing. While the API server does not answer, it retries: after a power cut this process may start first. Errors:
// this process does not run in a cluster; ctx is done.
func (o Options) Login(ctx context.Context, user, password *string) error {
	if o.LoginSecret == "" {
		return nil
	}
	if err := o.connect("login-secret"); err != nil {
		return err
	}
	lastReported := ""
	for {
		secret, err := o.fillLogin(ctx)
		if err == nil {
			*user, *password = value(secret, kube.UserKey), value(secret, kube.PasswordKey)
			return nil
		}
		err = fmt.Errorf("login-secret: Secret %s/%s: %w", o.Namespace, o.LoginSecret, err)
		if ctx.Err() != nil {
			return err
		}
		if err.Error() != lastReported {
			lastReported = err.Error()
			o.Log.Warn().Err(err).Msg("waiting for the login")
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(loginRetry):
		}
	}
}

// fillLogin returns the Secret, with both keys. Errors: those of the API; another process has changed the Secret.
func (o *Options) fillLogin(ctx context.Context) (*corev1.Secret, error) {
	secret, err := o.Client.Secrets(o.Namespace).Get(ctx, o.LoginSecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, errMissing
	}
	if err != nil {
		return nil, err
	}
	changed := false
	for key, make := range map[string]func() string{
		kube.UserKey: func() string { return kube.LoginUser }, kube.PasswordKey: rand.Text} {
		if value(secret, key) != "" {
			continue
		}
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		secret.Data[key], changed = []byte(make()), true
	}
	if !changed {
		return secret, nil
	}
	// The API server refuses the update if the Secret has changed since it was read, so that two servers that start at
	// the same time agree on a password: the loser reads that of the other.
	return o.Client.Secrets(o.Namespace).Update(ctx, secret, metav1.UpdateOptions{})
}

// value returns a value without the line break at its end that an editor may have added.
func value(secret *corev1.Secret, key string) string {
	return strings.TrimRight(string(secret.Data[key]), "\r\n")
}
