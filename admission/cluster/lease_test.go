package cluster_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/admission/cluster"
)

// TestTheLeaseIsDeleted by hand: the replicas cannot create it, so readiness, a metric and an Event say what to do, and
// once it is there again, one of them leads.
func TestTheLeaseIsDeleted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newReplicas(t, "")
		for _, pod := range []string{"trow-a", "trow-b"} {
			defer r.run(t, pod, nil)()
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		leases := coordinationv1.SchemeGroupVersion.WithResource("leases")
		if err := r.Tracker().Delete(leases, ns, "trow"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		for pod, c := range r.all {
			ok, line := c.Check()
			if ok || !strings.Contains(line, "risk: no replica keeps the webhook in order") ||
				c.Published([]byte("CA 1")) || strings.Contains(line, "this replica") || c.State().
				Mode != cluster.Enforce ||
				!strings.Contains(allMetrics(t, c), "lease 1") {
				t.Errorf("%s: %v %s, %+v", pod, ok, line, c.State())
			}
		}
		events := r.events(t)
		if len(events) != 2 || events[0].Reason != "LeaseMissing" || events[0].InvolvedObject.Kind != "Deployment" {
			t.Errorf("Events %+v", events)
		}
		lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow"}}
		if _, err := r.CoordinationV1().Leases(ns).Create(t.Context(), lease, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		for pod, c := range r.all {
			if ok, line := c.Check(); !ok || strings.Contains(line, "risk") || r.holder(t) == "" {
				t.Errorf("%s: %v %s", pod, ok, line)
			}
		}
	})
}

// TestReplicasWithoutALease from the beginning say why the webhook is off.
func TestReplicasWithoutALease(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newReplicas(t, "")
		if err := r.Tracker().Delete(coordinationv1.SchemeGroupVersion.WithResource("leases"), ns, "trow"); err != nil {
			t.Fatal(err)
		}
		defer r.run(t, "trow-a", nil)()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		ok, line := r.c.Check()
		if ok || r.armed(t) || !strings.Contains(line, "risk: no replica keeps the webhook in order") {
			t.Errorf("%v %s", ok, line)
		}
	})
}
