package cluster_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"trow/admission/cluster"
)

// TestAnEventTellsOfTheSettings that are not in use: about the pod, once an hour, until they are.
func TestAnEventTellsOfTheSettings(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		var problem error
		w.options.Settings = func() error { w.mu.Lock(); defer w.mu.Unlock(); return problem }
		w.start(t)
		w.logged(t)
		if events := w.events(t); len(events) != 0 {
			t.Errorf("%+v", events)
		}
		w.set(func() { problem = errors.New("configuration file /etc/trow/trow.yaml: unknown setting \"x\"") })
		time.Sleep(65 * time.Minute)
		events := w.events(t)
		if len(events) != 2 {
			t.Fatalf("%d Events in little more than an hour", len(events))
		}
		e := events[0]
		if e.Type != corev1.EventTypeWarning || e.Reason != "SettingsInvalid" || e.InvolvedObject.Name != "trow-0" ||
			!strings.Contains(e.Message, "trow.yaml: unknown setting") ||
			!strings.Contains(e.Message, "trow config check") {
			t.Errorf("%+v", e)
		}
		w.set(func() { problem = errors.New(strings.Repeat("long ", 1000)) })
		time.Sleep(time.Minute)
		if events = w.events(t); len(events) != 3 || len(events[2].Message) > 1024 {
			t.Errorf("%d Events, the last of %d bytes", len(events), len(events[len(events)-1].Message))
		}
		w.set(func() { problem = nil })
		time.Sleep(65 * time.Minute)
		if events := w.events(t); len(events) != 3 {
			t.Errorf("%d Events after it was corrected", len(events))
		}
	})
}
