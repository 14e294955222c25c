package server

import (
	"container/list"
	"context"
	"io"
	"net"
	"sync"
	"time"

	"trow/registry/socket"
)

const (
	// drainTime is how long the server reads what a client still sends after it has closed its side of a connection.
	drainTime = 2 * time.Second
	// drainBytes bounds what is read in that time. Then the client is blocked by its window until the time is over, and
	// can still read the answer.
	drainBytes = 1 << 20
	// stalled is how long a client may acknowledge nothing of what was sent, and beat the time between two looks.
	stalled, beat = time.Minute, 100 * time.Millisecond
	// maxDraining bounds the connections that are drained: each takes a goroutine and a file descriptor, which
	// max-connections does not count.
	maxDraining = 128
)

// drains closes connections without losing what was sent. If a socket is closed while the client sends, the kernel
// resets the connection (RFC 9293, section 3.6.1), and the client loses what it has not read yet: the last answer, or
// the rest of the other connections in the tunnel of kubectl port-forward. Every TLS client sends something after the
// end: its own close_notify. So the server first sends FIN, then reads what still arrives, and closes the socket last.
//
// Before it does, it waits until the client's machine has acknowledged everything. A kernel goes on sending after the
// process has ended, but not after Kubernetes has removed the network of its pod, which follows at once: a slow client
// with megabytes of a layer in the send buffer would wait for them until it gives up.
//
// A connection that is drained does not count for max-connections. If there are too many, the oldest is closed at once.
type drains struct {
	most int           // 0 means maxDraining
	time time.Duration // 0 means drainTime

	mu  sync.Mutex // guards all; not held while a connection is closed
	all list.List  // of *draining, the oldest first
}

// draining is a connection that is drained.
type draining struct {
	stop context.CancelFunc // closes the connection at once
	done chan struct{}      // closed after the connection is
}

// end ends a connection in the background. No other goroutine may write to it.
func (d *drains) end(c net.Conn) {
	_ = c.SetWriteDeadline(time.Now()) // ends a write under way, as Close would: CloseWrite does not
	to, ok := c.(interface{ CloseWrite() error })
	if !ok || to.CloseWrite() != nil { // not TCP, as in tests; or the connection is gone
		_ = c.Close()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // ends a read that is blocked
	k := &draining{cancel, make(chan struct{})}
	at := d.add(k)
	go func() {
		defer close(k.done)
		defer d.remove(at)
		defer cancel()
		d.read(ctx, c)
		delivered(ctx, c)
		stop()
		_ = c.Close() // for the second time if ctx was cancelled, which does nothing
	}()
}

// read reads what the client still sends, until the client closes its side, or drainTime is over.
func (d *drains) read(ctx context.Context, c net.Conn) {
	limit := d.time
	if limit == 0 {
		limit = drainTime
	}
	over := time.NewTimer(limit)
	defer over.Stop()
	_ = c.SetReadDeadline(time.Now().Add(limit)) // if this fails, the read fails as well
	if _, err := io.CopyN(io.Discard, c, drainBytes); err == nil {
		// There may be more. It stays unread, but closing the socket now would reset the connection.
		select {
		case <-over.C:
		case <-ctx.Done():
		}
	}
}

// delivered waits until the client's machine has acknowledged everything that was sent, or has acknowledged nothing for
// the time stalled, or ctx is done.
func delivered(ctx context.Context, c net.Conn) {
	left, moved := socket.Unacknowledged(c), time.Now()
	for left > 0 && time.Since(moved) < stalled {
		select {
		case <-ctx.Done():
			return
		case <-time.After(beat):
		}
		if now := socket.Unacknowledged(c); now != left {
			left, moved = now, time.Now()
		}
	}
}

// add adds a connection, and closes the oldest one if there are too many.
func (d *drains) add(k *draining) *list.Element {
	d.mu.Lock()
	defer d.mu.Unlock()
	most := d.most
	if most == 0 {
		most = maxDraining
	}
	if d.all.Len() >= most {
		d.all.Remove(d.all.Front()).(*draining).stop()
	}
	return d.all.PushBack(k)
}

// remove removes a connection that has ended; add may have removed it before.
func (d *drains) remove(e *list.Element) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all.Remove(e)
}

// wait waits for the connections that are drained now, and closes those that are left when ctx is done.
func (d *drains) wait(ctx context.Context) {
	d.mu.Lock()
	var now []*draining
	for e := d.all.Front(); e != nil; e = e.Next() {
		now = append(now, e.Value.(*draining))
	}
	d.mu.Unlock()
	for _, k := range now {
		select {
		case <-k.done:
		case <-ctx.Done():
			k.stop()
			<-k.done
		}
	}
}
