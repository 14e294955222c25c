package cluster

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"trow/manifests/kube"
)

const (
	// nodesEvery is the time between two looks at the Events about nodes.
	nodesEvery = time.Minute
	// maxNodeEvents bounds one look. trow node creates an Event when something changes, and one an hour for a problem
	// that lasts, so this is enough for hundreds of nodes with problems; of more, some are not counted.
	maxNodeEvents = 2000
	// maxNodesListed and maxNodeText bound the line of /readyz?verbose: nodes, and bytes for each.
	maxNodesListed, maxNodeText = 3, 200
)

// readNodes reads what trow node has reported about the nodes: the last Event of a node says whether its runtimes find
// the registry by its name. An Event expires after an hour, and trow node repeats a problem before that. It is not an
// error of the pass if the Events cannot be read: the manifest of an earlier version does not allow it.
func (c *Cluster) readNodes(ctx context.Context) {
	now := time.Now()
	if now.Sub(c.nodesAt) < nodesEvery {
		return
	}
	c.nodesAt = now
	list, err := c.o.Client.Events(c.o.Namespace).List(ctx, metav1.ListOptions{Limit: maxNodeEvents,
		FieldSelector: fields.Set{"involvedObject.kind": "DaemonSet",
			"involvedObject.name": kube.DaemonSetName}.String()})
	if err != nil {
		if ctx.Err() == nil && err.Error() != c.nodesError {
			c.nodesError = err.Error()
			c.line(c.o.Log.Warn().Err(fmt.Errorf("list Events of DaemonSet %s: %w", kube.DaemonSetName, err)), failed,
				"")
		}
		return
	}
	c.nodesError = ""
	found := problems(list.Items)
	c.mu.Lock()
	c.nodes = found
	c.mu.Unlock()
}

// problems returns a line for each node whose last Event is a problem, sorted.
func problems(events []corev1.Event) (found []string) {
	last := map[string]corev1.Event{}
	for _, e := range events {
		switch e.Reason {
		case kube.ReasonNodeReady, kube.ReasonConfigPath, kube.ReasonForeign, kube.ReasonFileFailed:
		default:
			continue
		}
		if e.InvolvedObject.Name != kube.DaemonSetName || e.Source.Host == "" {
			continue
		}
		if before, ok := last[e.Source.Host]; !ok || before.EventTime.Time.Before(e.EventTime.Time) {
			last[e.Source.Host] = e
		}
	}
	for _, node := range slices.Sorted(maps.Keys(last)) {
		if e := last[node]; e.Reason != kube.ReasonNodeReady {
			// The message begins with the node. It has line breaks, and this is one line.
			text := strings.Join(strings.Fields(cmp.Or(e.Message, "node "+node)), " ")
			found = append(found, fmt.Sprintf("%.*s", maxNodeText, text))
		}
	}
	return found
}

// unable returns what keeps nodes from pulling by name.
func (c *Cluster) unable() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes
}

// NodesCheck reports whether the runtimes of all nodes find the registry by its name, for the readiness endpoint. While
// they do, and outside a cluster, there is no line.
func (c *Cluster) NodesCheck() (ok bool, text string) {
	if c == nil {
		return true, ""
	}
	all := c.unable()
	if len(all) == 0 {
		return true, ""
	}
	text = fmt.Sprintf("nodes that cannot pull by name (%d): %s", len(all), strings.Join(all[:min(len(all),
		maxNodesListed)], "; "))
	if len(all) > maxNodesListed {
		text += "; …"
	}
	return false, text + "; see kubectl describe daemonset " + kube.DaemonSetName
}
