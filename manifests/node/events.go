package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/manifests/kube"
)

// Kind is what happened. It is the reason of the Event of Kubernetes, where one is made.
type Kind string

// The kinds of events.
const (
	Listening   Kind = "Listening"         // on an address of the node
	NotListens  Kind = "NotListening"      // on one of them; the rest works
	Trusts      Kind = "BundleChanged"     // the bundle is another from now on
	BadBundle   Kind = "BadBundle"         // the ConfigMap's cannot be used; the one before is
	APIFailed   Kind = "APIFailed"         // the API server does not answer, or refuses; tried again
	Written     Kind = "FileWritten"       // a file of the node
	Removed     Kind = "FileRemoved"       // a file of the node
	Kept        Kind = "FilesKept"         // at the end: this is no uninstallation
	Foreign     Kind = "ForeignFile"       // somebody else's file is where ours would be; it stays
	FileFailed  Kind = "FileFailed"        // a file of the node could not be read, written or removed; tried again
	ConfigPath  Kind = "ConfigPathMissing" // containerd does not look where we write
	Reload      Kind = "ReloadNeeded"      // CRI-O reads what we wrote when it is told to
	NodeReady   Kind = "NodeReady"         // the runtimes of the node have been told
	Unreachable Kind = "Unreachable"       // the registry, by each of its addresses
	Reachable   Kind = "Reachable"         // it is again
)

// public says which kinds become Events of Kubernetes, and of which type: those that somebody has to act upon, and
// the good end.
var public = map[Kind]string{
	BadBundle: corev1.EventTypeWarning, Foreign: corev1.EventTypeWarning, FileFailed: corev1.EventTypeWarning,
	ConfigPath: corev1.EventTypeWarning, Reload: corev1.EventTypeWarning, NodeReady: corev1.EventTypeNormal,
}

// Event tells what [Node.Run] did or found.
type Event struct {
	Kind    Kind
	Message string
	Err     error // the cause, nil if there is none
}

// Warning reports whether somebody should look at it.
func (e Event) Warning() bool {
	return public[e.Kind] == corev1.EventTypeWarning || e.Kind == NotListens || e.Kind == APIFailed || e.Kind == Unreachable
}

const (
	// again is when the same Event of Kubernetes may be made once more: the API server keeps them for an hour.
	again = time.Hour
	// maxMessage and maxInstance are what the API server accepts of an Event's text and of its reporter's name.
	maxMessage, maxInstance = 1024, 128
)

// tell tells the caller.
func (n *Node) tell(kind Kind, err error, format string, args ...any) Event {
	e := Event{Kind: kind, Message: fmt.Sprintf(format, args...), Err: err}
	n.notifyMu.Lock()
	defer n.notifyMu.Unlock()
	n.o.Notify(e)
	return e
}

// report tells the caller, and those who watch the cluster.
func (n *Node) report(ctx context.Context, kind Kind, err error, format string, args ...any) {
	e := n.tell(kind, err, format, args...)
	if public[kind] == "" || !n.due(e, time.Now()) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, n.times.ask)
	defer cancel()
	n.learn(ctx) // kubectl describe shows no Event without the DaemonSet's UID
	if _, err := n.o.Client.Events(n.o.Namespace).Create(ctx, n.event(e, time.Now()), metav1.CreateOptions{}); err != nil {
		n.tell(APIFailed, err, "no Event of Kubernetes for %s", kind)
	}
}

// due reports whether the same Event was not made lately, and notes it.
func (n *Node) due(e Event, now time.Time) bool {
	n.eventsMu.Lock()
	defer n.eventsMu.Unlock()
	for key, at := range n.posted {
		if now.Sub(at) >= again {
			delete(n.posted, key)
		}
	}
	key := string(e.Kind) + " " + e.text()
	if _, posted := n.posted[key]; posted {
		return false
	}
	n.posted[key] = now
	return true
}

// text is message and cause.
func (e Event) text() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// event is about the DaemonSet, so that kubectl describe shows those of all nodes; the Node is named beside it.
func (n *Node) event(e Event, at time.Time) *corev1.Event {
	object := corev1.ObjectReference{APIVersion: "apps/v1", Kind: "DaemonSet", Namespace: n.o.Namespace, Name: n.o.DaemonSet}
	if uid := n.uid.Load(); uid != nil {
		object.UID = *uid
	}
	return &corev1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: n.o.Namespace, Name: fmt.Sprintf("%.200s.%x%08x", n.o.DaemonSet, at.UnixNano(), rand.Uint32())},
		InvolvedObject:      object,
		Related:             &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: n.o.NodeName},
		Type:                public[e.Kind],
		Reason:              string(e.Kind),
		Message:             cut("node "+n.o.NodeName+": "+e.text(), maxMessage),
		Source:              corev1.EventSource{Component: kube.DaemonSetName, Host: n.o.NodeName},
		FirstTimestamp:      metav1.NewTime(at),
		LastTimestamp:       metav1.NewTime(at),
		Count:               1,
		EventTime:           metav1.NewMicroTime(at),
		Action:              "Configure",
		ReportingController: kube.DaemonSetName,
		ReportingInstance:   cut(n.o.NodeName, maxInstance),
	}
}

func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return s[:most]
}
