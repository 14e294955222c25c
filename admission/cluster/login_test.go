package cluster_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"trow/admission/cluster"
)

func TestTheLogin(t *testing.T) {
	secret := func(data map[string][]byte) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow-login"}, Data: data}
	}
	for name, row := range map[string]struct {
		data           map[string][]byte
		user, password string // empty: made up
	}{
		"as the manifest has it": {nil, "trow", ""},
		"without a password":     {map[string][]byte{"user": []byte("admin")}, "admin", ""},
		"of an earlier manifest": {map[string][]byte{"user": []byte("trow"), "password": []byte("old")},
			"trow", "old"},
		"with a line break at an end": {map[string][]byte{"user": []byte("a\n"), "password": []byte("b\r\n")}, "a",
			"b"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, cluster.Enforce, secret(row.data))
			w.options.LoginSecret = "trow-login"
			user, password := "", ""
			if err := w.options.Login(t.Context(), &user, &password); err != nil {
				t.Fatal(err)
			}
			if user != row.user || row.password != "" && password != row.password ||
				row.password == "" && len(password) < 20 {
				t.Errorf("%q, %q", user, password)
			}
			again := ""
			if err := w.options.Login(t.Context(), &user, &again); err != nil || again != password {
				t.Errorf("the next start: %q, %v", again, err)
			}
			if strings.Contains(w.log.String(), password) {
				t.Error("the password is logged")
			}
		})
	}
}

// TestTwoServersAgreeOnTheLogin when they fill in the Secret at the same time.
func TestTwoServersAgreeOnTheLogin(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow-login"}})
		w.options.LoginSecret = "trow-login"
		var users, passwords [4]string
		var all sync.WaitGroup
		for i := range passwords {
			all.Go(func() {
				if err := w.options.Login(t.Context(), &users[i], &passwords[i]); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for _, p := range passwords {
			if p == "" || p != passwords[0] {
				t.Errorf("%q", passwords)
			}
		}
	})
}

// TestTheLoginWaits for the API server, and for the manifest to be applied.
func TestTheLoginWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.options.LoginSecret = "trow-login"
		down := true
		w.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return down, nil, errors.New("connection refused")
		})
		user, password, done := "", "", make(chan error, 1)
		go func() { done <- w.options.Login(t.Context(), &user, &password) }()
		time.Sleep(time.Minute)
		w.set(func() { down = false })
		time.Sleep(time.Minute)
		if _, err := w.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: "trow-login"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil || user != "trow" || password == "" {
			t.Errorf("%q, %q, %v", user, password, err)
		}
		if log := w.log.String(); strings.Count(log, "connection refused") != 1 ||
			strings.Count(log, "trow manifest") != 1 {
			t.Errorf("the log: %s", log)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w.options.LoginSecret = "none"
		if err := w.options.Login(ctx, &user, &password); err == nil ||
			!strings.Contains(err.Error(), "kube-public/none") {
			t.Error(err)
		}
	})
}

func TestWithoutALoginSecret(t *testing.T) {
	user, password := "u", "p"
	o := cluster.Options{}
	if err := o.Login(t.Context(), &user, &password); err != nil || user != "u" || password != "p" {
		t.Errorf("%q, %q, %v", user, password, err)
	}
	o.LoginSecret = "trow-login" // this process does not run in a pod
	if err := o.Login(t.Context(), &user, &password); err == nil || !strings.Contains(err.Error(), "login-secret") {
		t.Error(err)
	}
}
