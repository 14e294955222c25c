package server

import (
	"container/list"
	"context"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// drainTime is how long what a client still sends is read after the server has closed a connection.
	drainTime = 2 * time.Second
	// drainBytes bounds what is read in that time. After that the client has to wait, and may still read the answer.
	drainBytes = 1 << 20
	// stalled is how long a client may take nothing of what it has not got yet, and beat the time between two looks.
	stalled, beat = time.Minute, 100 * time.Millisecond
	// maxDraining bounds the connections that are read in this way: a quarter of a second of some 500 clients a second.
	maxDraining = 128
)

// drains ends connections. A socket that is closed while the client sends makes the kernel reset the connection (RFC
// 9293, section 3.6.1), and the reset takes what the client has not read yet with it: the last answer, or the rest of
// the other connections in the tunnel of kubectl port-forward. Each TLS client sends something after the end: its own
// close_notify. Therefore the server first says that nothing follows (FIN), reads what still comes, and closes then.
//
// Then it waits until the client's machine has everything. A kernel sends on without the process, but not without the
// network of its pod, which Kubernetes removes as soon as the process has ended: a slow client, of whose layer
// megabytes are in a buffer of the kernel, would wait for them until it gives up.
//
// A connection that is drained has no place among the connections any more, so it keeps no client out. If there are too
// many, the oldest is closed at once.
type drains struct {
	most int           // 0 means maxDraining
	time time.Duration // 0 means drainTime

	mu  sync.Mutex // guards all
	all list.List  // of *draining, the oldest first
}

// draining is a connection that is drained.
type draining struct {
	stop context.CancelFunc
	done chan struct{} // closed after the connection
}

// end ends a connection in the background. No other goroutine may write to it.
func (d *drains) end(c net.Conn) {
	_ = c.SetWriteDeadline(time.Now()) // ends a write under way, as closing would
	to, ok := c.(interface{ CloseWrite() error })
	if !ok || to.CloseWrite() != nil { // in tests; or the client has gone
		_ = c.Close()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // ends the reading
	k := &draining{cancel, make(chan struct{})}
	at := d.add(k)
	go func() {
		defer close(k.done)
		defer d.remove(at)
		defer cancel()
		d.read(ctx, c)
		delivered(ctx, c)
		stop()
		_ = c.Close() // again, if it had to give way
	}()
}

// read reads what the client still sends, until it has ended as well, or the time is over.
func (d *drains) read(ctx context.Context, c net.Conn) {
	limit := d.time
	if limit == 0 {
		limit = drainTime
	}
	over := time.NewTimer(limit)
	defer over.Stop()
	_ = c.SetReadDeadline(time.Now().Add(limit)) // if this fails, the read fails as well
	if _, err := io.CopyN(io.Discard, c, drainBytes); err == nil {
		select {
		case <-over.C:
		case <-ctx.Done():
		}
	}
}

// delivered waits until the client's machine has acknowledged everything that was sent, takes nothing of it any more,
// or ctx is done.
func delivered(ctx context.Context, c net.Conn) {
	left, moved := unacknowledged(c), time.Now()
	for left > 0 && time.Since(moved) < stalled {
		select {
		case <-ctx.Done():
			return
		case <-time.After(beat):
		}
		if now := unacknowledged(c); now != left {
			left, moved = now, time.Now()
		}
	}
}

// add adds a connection; the oldest gives way if there are too many.
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

// remove removes a connection that has ended. It may have given way before.
func (d *drains) remove(e *list.Element) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all.Remove(e)
}

// wait waits for the connections that are drained, and closes them when ctx is done.
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
