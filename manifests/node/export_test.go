package node

import "time"

// Hurry makes n wait less.
func Hurry(n *Node) {
	n.times.recheck, n.times.backoff, n.times.backoffs = 20*time.Millisecond, 5*time.Millisecond, 20*time.Millisecond
	n.times.grace, n.times.quiet, n.times.ask, n.times.dial = 3*time.Second, 50*time.Millisecond, 200*time.Millisecond, time.Second
}

// Impatient makes n end what does not move.
func Impatient(n *Node, idle, first time.Duration) { n.times.idle, n.times.first = idle, first }

// Targets replaces where the registry is.
func Targets(n *Node, addresses ...string) { n.targets = addresses }

// Due is [Node.due].
func Due(n *Node, e Event, now time.Time) bool { return n.due(e, now) }
