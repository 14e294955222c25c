package cluster_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/admission/cluster"
)

// TestNodesThatCannotPull show in the readiness endpoint and in a metric, until trow node reports success.
func TestNodesThatCannotPull(t *testing.T) {
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		n := 0
		report := func(node, object, reason string) {
			t.Helper()
			n++
			_, err := w.CoreV1().Events(ns).Create(t.Context(), &corev1.Event{
				ObjectMeta:     metav1.ObjectMeta{Namespace: ns, Name: fmt.Sprintf("e%d", n)},
				InvolvedObject: corev1.ObjectReference{Kind: "DaemonSet", Name: object}, Reason: reason,
				Message: "node " + node + ": containerd does not read certs.d\n  config_path",
				Source:  corev1.EventSource{Host: node}, EventTime: metav1.NowMicro()}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		want := func(nodes int, part string) {
			t.Helper()
			time.Sleep(2 * time.Minute)
			ok, text := w.c.NodesCheck()
			if ok != (nodes == 0) || !strings.Contains(text, part) || strings.Contains(text, "\n") ||
				nodes == 0 && text != "" ||
				!strings.Contains(metrics(t, w.c, "trow_nodes"), fmt.Sprintf("trow_nodes_unable %d", nodes)) {
				t.Errorf("%t %q, %s; want %d nodes", ok, text, metrics(t, w.c, "trow_nodes"), nodes)
			}
		}
		w.start(t)
		want(0, "")
		report("b", "trow-node", "ConfigPathMissing")
		report("a", "trow-node", "NodeReady")
		report("a", "trow-node", "ForeignFile")
		report("c", "trow-node", "FileFailed")
		report("c", "trow-node", "NodeReady")
		report("d", "another", "FileFailed")
		report("e", "trow-node", "LoopbackTaken")
		want(2, "nodes that cannot pull by name (2): node a: containerd does not read certs.d config_path; node b: ")
		report("a", "trow-node", "NodeReady")
		want(1, "nodes that cannot pull by name (1): node b: ")
		report("b", "trow-node", "NodeReady")
		want(0, "")
	})
}
