package node

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"trow/manifests/kube"
)

// Kind says what happened. It is the reason of the Kubernetes Event, if there is one.
type Kind string

// The kinds of events.
const (
	Listening  Kind = "Listening"    // on an address of the node
	NotListens Kind = "NotListening" // on one of these addresses; the others work
	// another process listens on one of these addresses, and is not the registry
	Taken       Kind = "LoopbackTaken"
	Trusts      Kind = "BundleChanged"       // a new bundle is in use
	BadBundle   Kind = "BadBundle"           // the ConfigMap's bundle is invalid; the previous one stays in use
	APIFailed   Kind = "APIFailed"           // the API server does not answer, or refuses; retried
	Written     Kind = "FileWritten"         // a file of the node
	Removed     Kind = "FileRemoved"         // a file of the node
	Kept        Kind = "FilesKept"           // at the end: Trow is not being uninstalled
	Foreign     Kind = kube.ReasonForeign    // a foreign file is in the place of ours; it stays
	FileFailed  Kind = kube.ReasonFileFailed // a file of the node could not be read, written or removed; retried
	ConfigPath  Kind = kube.ReasonConfigPath // containerd does not look where we write
	Unchecked   Kind = "ConfigUnchecked"     // it cannot be found out where containerd looks
	Reload      Kind = "ReloadNeeded"        // CRI-O and Docker read our files only after a reload
	NodeReady   Kind = kube.ReasonNodeReady  // the runtimes of the node are configured
	Unreachable Kind = "Unreachable"         // none of the registry's addresses can be reached
	Reachable   Kind = "Reachable"           // one can be reached again
	Unmirrored  Kind = "MirrorNotConfigured" // a runtime does not pull images of other registries through this one
	MirrorUp    Kind = "MirrorAnswers"       // the registry answers: images of others are pulled through it
	MirrorDown  Kind = "MirrorSilent"        // it does not: they are pulled from their registries
)

// public has the kinds that become Kubernetes Events, with their type: those that need an administrator, and the final
// success.
var public = map[Kind]string{
	Taken:      corev1.EventTypeWarning,
	BadBundle:  corev1.EventTypeWarning,
	Foreign:    corev1.EventTypeWarning,
	FileFailed: corev1.EventTypeWarning,
	ConfigPath: corev1.EventTypeWarning,
	Unchecked:  corev1.EventTypeWarning,
	Reload:     corev1.EventTypeWarning,
	Unmirrored: corev1.EventTypeWarning,
	NodeReady:  corev1.EventTypeNormal,
}

// Event is what [Node.Run] did or found.
type Event struct {
	Kind    Kind
	Message string
	Err     error // the cause; may be nil
}

// Warning reports whether the event is a problem.
func (e Event) Warning() bool {
	switch e.Kind {
	case NotListens, APIFailed, Unreachable, MirrorDown:
		return true
	}
	return public[e.Kind] == corev1.EventTypeWarning
}

const (
	// again is when the same Kubernetes Event may be created once more: the API server keeps Events for an hour, and a
	// problem that lasts must not seem to be solved in between.
	again = 50 * time.Minute
	// maxMessage and maxInstance are the limits of the API server for the text and the reporter of an Event.
	maxMessage, maxInstance = 1024, 128
)

// notify passes an event to the caller.
func (n *Node) notify(kind Kind, err error, format string, args ...any) Event {
	e := Event{Kind: kind, Message: fmt.Sprintf(format, args...), Err: err}
	n.notifyMu.Lock()
	defer n.notifyMu.Unlock()
	n.o.Notify(e)
	return e
}

// report passes an event to the caller, and creates a Kubernetes Event if its kind is public.
func (n *Node) report(ctx context.Context, kind Kind, err error, format string, args ...any) {
	n.publish(ctx, n.notify(kind, err, format, args...))
}

// publish creates a Kubernetes Event if its kind is public, and it was not created a short time ago.
func (n *Node) publish(ctx context.Context, e Event) {
	if public[e.Kind] == "" || !n.due(e, time.Now()) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, n.times.ask)
	defer cancel()
	n.learnUID(ctx) // without the DaemonSet's UID, kubectl describe does not show the Event
	_, err := n.o.Client.Events(n.o.Namespace).Create(ctx, n.event(e, time.Now()), metav1.CreateOptions{})
	if err != nil {
		n.notify(APIFailed, err, "cannot create a Kubernetes Event for %s", e.Kind)
	}
}

// forget makes the next Event of a kind due.
func (n *Node) forget(kind Kind) {
	n.eventsMu.Lock()
	defer n.eventsMu.Unlock()
	maps.DeleteFunc(n.posted, func(key string, _ time.Time) bool { return strings.HasPrefix(key, string(kind)+" ") })
}

// due reports whether the same Event was not created within the time again, and counts it as created.
func (n *Node) due(e Event, now time.Time) bool {
	n.eventsMu.Lock()
	defer n.eventsMu.Unlock()
	// Old entries go here, so that the map holds no more Events than that time has.
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

// text returns the message with the cause.
func (e Event) text() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// event makes a Kubernetes Event. It is about the DaemonSet, whose kubectl describe shows the Events of all nodes; the
// Node is the related object.
func (n *Node) event(e Event, at time.Time) *corev1.Event {
	object := corev1.ObjectReference{APIVersion: "apps/v1", Kind: "DaemonSet",
		Namespace: n.o.Namespace, Name: n.o.DaemonSet}
	if uid := n.uid.Load(); uid != nil {
		object.UID = *uid
	}
	return &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.o.Namespace,
			Name: fmt.Sprintf("%.200s.%x%08x", n.o.DaemonSet, at.UnixNano(), rand.Uint32())},
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

// cut returns at most this number of bytes of s.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return s[:most]
}
