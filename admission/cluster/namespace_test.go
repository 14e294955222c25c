package cluster_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	clienttesting "k8s.io/client-go/testing"

	"trow/admission/cluster"
	"trow/manifests/kube"
)

func home() *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns,
		Labels: map[string]string{"kubernetes.io/metadata.name": ns}}}
}

// terminate marks the namespace as being deleted, as kubectl delete namespace does.
func (w *world) terminate(t *testing.T) {
	t.Helper()
	n := home()
	now := metav1.Now()
	n.DeletionTimestamp, n.Finalizers = &now, []string{"kubernetes"}
	if err := w.Tracker().Update(corev1.SchemeGroupVersion.WithResource("namespaces"), n, ""); err != nil {
		t.Error(err)
	}
}

// TestTheEndOfTheNamespaceDisarms: the configuration, which belongs to no namespace, would stay with Fail.
func TestTheEndOfTheNamespaceDisarms(t *testing.T) {
	for name, test := range map[string]func(*testing.T, *world){
		"at once": func(t *testing.T, w *world) {
			w.terminate(t)
			synctest.Wait()
		},
		"although another client writes": func(t *testing.T, w *world) {
			conflicts := 3
			w.PrependReactor("update", "validatingwebhookconfigurations",
				func(clienttesting.Action) (bool, runtime.Object, error) {
					if conflicts--; conflicts < 0 {
						return false, nil, nil
					}
					return true, nil, apierrors.NewConflict(schema.GroupResource{}, "trow", errors.New("changed"))
				})
			w.terminate(t)
			synctest.Wait()
		},
		"although the rest of the namespace has gone": func(t *testing.T, w *world) {
			fails := true
			w.PrependReactor("update", "validatingwebhookconfigurations",
				func(clienttesting.Action) (bool, runtime.Object, error) {
					w.mu.Lock()
					defer w.mu.Unlock()
					return fails, nil, errors.New("the API server is broken")
				})
			w.CoreV1().Secrets(ns).Delete(t.Context(), "trow-tls", metav1.DeleteOptions{})
			w.terminate(t)
			time.Sleep(3 * time.Second)
			w.set(func() { fails = false })
			time.Sleep(2 * time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, cluster.Enforce, home())
				w.start(t)
				if w.logged(t); !w.armed(t) {
					t.Fatal("not armed")
				}
				test(t, w)
				if w.armed(t) {
					t.Error("the webhook stays")
				}
				got := w.logged(t)
				if !strings.Contains(got, "disarmed") || w.armed(t) || w.c.State().Mode != cluster.Off ||
					!strings.Contains(w.c.State().Why, "namespace "+ns+" is being deleted") {
					t.Errorf("%q, armed %v, %+v", got, w.armed(t), w.c.State())
				}
			})
		})
	}
}

// TestNothingIsArmedInANamespaceThatIsDeleted, as by a container that restarts meanwhile, although the watch has not
// said so.
func TestNothingIsArmedInANamespaceThatIsDeleted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, home())
		w.PrependWatchReactor("namespaces", func(clienttesting.Action) (bool, watch.Interface, error) {
			return true, nil, errors.New("no watch")
		})
		w.PrependReactor("update", "validatingwebhookconfigurations",
			func(a clienttesting.Action) (bool, runtime.Object, error) {
				u := a.(clienttesting.UpdateAction)
				if len(u.GetObject().(*admissionregistrationv1.ValidatingWebhookConfiguration).Webhooks) > 0 {
					t.Error("it was filled")
				}
				return false, nil, nil
			})
		w.terminate(t)
		w.start(t)
		time.Sleep(time.Minute)
		if got := w.logged(t); got != "disarmed" || w.armed(t) {
			t.Errorf("%q, armed %v", got, w.armed(t))
		}
	})
}

// TestTheEndOfTheNamespaceOfReplicas: one of them sees it first, and the one that keeps the webhook in order, which
// cannot watch the namespace just now, does not put back what the other one has emptied.
func TestTheEndOfTheNamespaceOfReplicas(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newReplicas(t, "", home())
		defer r.run(t, "trow-a", func(o *cluster.Options) {
			client := *o.Client
			client.Namespaces = unwatched{client.Namespaces}
			o.Client = &client
		})()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if r.holder(t) != "trow-a" || !r.armed(t) {
			t.Fatalf("%s leads, armed %v", r.holder(t), r.armed(t))
		}
		defer r.run(t, "trow-b", nil)()
		time.Sleep(20 * time.Second)
		synctest.Wait()
		r.set(func() { r.writes = nil })
		r.terminate(t)
		time.Sleep(time.Minute)
		synctest.Wait()
		r.set(func() {
			if strings.Join(r.writes, ", ") != "none" {
				t.Errorf("the writes are %q", r.writes)
			}
		})
		for pod, c := range r.all {
			if s := c.State(); r.armed(t) || s.Mode != cluster.Off || !strings.Contains(s.Why, "is being deleted") {
				t.Errorf("%s: armed %v, %+v", pod, r.armed(t), s)
			}
		}
	})
}

// unwatched is a client of namespaces whose watches fail.
type unwatched struct {
	kube.Resource[*corev1.Namespace]
}

func (unwatched) Watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	return nil, errors.New("no watch")
}

// TestTheEndOfTheProcess does not disarm, unless the namespace is being deleted, which the watch may have missed.
func TestTheEndOfTheProcess(t *testing.T) {
	for name, terminating := range map[string]bool{"in a namespace that stays": false, "in one that is deleted": true} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				w := newWorld(t, cluster.Enforce, home())
				w.PrependWatchReactor("namespaces", func(clienttesting.Action) (bool, watch.Interface, error) {
					return true, nil, errors.New("no watch")
				})
				w.c = cluster.New(w.options)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- w.c.Run(ctx) }()
				w.logged(t)
				if terminating {
					w.terminate(t)
				}
				cancel()
				if err := <-done; err != nil || w.armed(t) == terminating {
					t.Errorf("%v, armed %v", err, w.armed(t))
				}
			})
		})
	}
}

// TestWithoutTheRightToWatch, as after an upgrade of the image alone, it says so and does the rest.
func TestWithoutTheRightToWatch(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce, home())
		forbidden := func(a clienttesting.Action) error {
			return apierrors.NewForbidden(a.GetResource().GroupResource(), "", errors.New("RBAC"))
		}
		w.PrependWatchReactor("namespaces", func(a clienttesting.Action) (bool, watch.Interface, error) {
			return true, nil, forbidden(a)
		})
		for _, resource := range []string{"deployments", "validatingwebhookconfigurations",
			"mutatingwebhookconfigurations"} {
			w.PrependReactor("list", resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
				return true, nil, forbidden(a)
			})
		}
		w.start(t)
		w.logged(t)
		time.Sleep(5 * time.Minute)
		if got := w.logged(t); got != "" {
			t.Errorf("logged again: %q", got)
		}
		_, line := w.c.Check()
		for _, want := range []string{"webhook enforce", "may not watch its namespace",
			"may not list webhook configurations, Deployments", "apply the manifest"} {
			if !strings.Contains(line, want) {
				t.Errorf("%q lacks %q", line, want)
			}
		}
	})
}
