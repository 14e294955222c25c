package cluster_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"

	"trow/admission/cluster"
)

// TestTheShelfIsASecret, which two replicas may fill at the same time, and is not written again with the same.
func TestTheShelfIsASecret(t *testing.T) {
	w := newWorld(t, cluster.Enforce,
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow-settings"}})
	updates := 0
	conflict := false
	w.PrependReactor("update", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		if updates++; conflict {
			return true, nil, apierrors.NewConflict(schema.GroupResource{}, "trow-settings", errors.New("changed"))
		}
		return false, nil, nil
	})
	s := cluster.NewShelf(w.options)
	want := func(content string, updated int) {
		t.Helper()
		if got, err := s.Load(); err != nil || string(got) != content || updates != updated {
			t.Fatalf("%q, %v after %d updates; want %q after %d", got, err, updates, content, updated)
		}
	}
	save := func(content string) {
		t.Helper()
		if err := s.Save([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	want("", 0)
	save("1")
	want("1", 1)
	save("1")
	want("1", 1)
	save("2")
	want("2", 2)
	conflict = true
	save("3") // another replica was faster
	want("2", 3)
}

// TestAShelfThatIsNotThere, as with a manifest of before, is an error with a remedy.
func TestAShelfThatIsNotThere(t *testing.T) {
	s := cluster.NewShelf(newWorld(t, cluster.Enforce).options)
	_, err := s.Load()
	for _, err := range []error{err, s.Save(bytes.Repeat([]byte("x"), 10))} {
		if err == nil || !strings.Contains(err.Error(),
			"Secret kube-public/trow-settings: not found; apply the manifest") {
			t.Errorf("%v", err)
		}
	}
	if cluster.OpenShelf(func(string) string { return "" }) != nil {
		t.Error("one pod has a shelf")
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	replicas := func(string) string { return "trow" }
	if _, err := cluster.OpenShelf(replicas).Load(); err == nil || !strings.Contains(err.Error(), "outside a cluster") {
		t.Errorf("%v", err)
	}
}
