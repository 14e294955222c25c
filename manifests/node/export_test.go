package node

import (
	"context"
	"net"
	"time"
)

// Hurry shortens the intervals of n.
func Hurry(n *Node) {
	n.times.recheck, n.times.backoff, n.times.maxBackoff = 20*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond
	n.times.grace, n.times.quiet = 3*time.Second, 50*time.Millisecond
	n.times.rebind = 20 * time.Millisecond
	n.times.ask, n.times.dial = time.Second, time.Second
	n.times.redial = time.Millisecond
}

// Impatient shortens the time limits of connections.
func Impatient(n *Node, idle, first time.Duration) { n.times.idle, n.times.first = idle, first }

// Targets replaces the addresses of the registry.
func Targets(n *Node, addresses ...string) { n.targets = addresses }

// Connects replaces how n connects to these addresses.
func Connects(n *Node, f func(context.Context, string) (net.Conn, error)) { n.connect = f }

// LocalPortInPod calls [localPortInPod].
func LocalPortInPod(o Options) int { return localPortInPod(o) }

// Due calls [Node.due].
func Due(n *Node, e Event, now time.Time) bool { return n.due(e, now) }

// Crowd leaves n only a few slots, and makes connections give way early.
func Crowd(n *Node, most int, opening, quiet time.Duration) {
	n.slots.most, n.slots.opening, n.slots.quiet = most, opening, quiet
	n.times.beat = quiet / 4
}

// net/http ends its side before it closes a connection whose client still sends, if it can.
var _ interface{ CloseWrite() error } = (*conn)(nil)

// Watches shortens the intervals at which n finds out whether the registry answers.
func Watches(n *Node, beat, pulse time.Duration) { n.times.beat, n.times.pulse = beat, pulse }

// Hush shortens how long a connection to the mirror port may be silent.
func Hush(n *Node, d time.Duration) { n.times.hush = d }
