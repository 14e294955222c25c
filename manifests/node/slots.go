package node

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"trow/registry/ocierror"
)

const (
	// maxConns bounds the connections that have a slot. A node pulls a few images at a time, a few layers each.
	maxConns = 512
	// maxSilent bounds the connections that have not said what they want, beside those with a slot.
	maxSilent = 128
	// maxWaiting bounds the connections that have, and wait for a slot.
	maxWaiting = 256
	// maxWait bounds how long they wait.
	maxWait = time.Minute
	// fewConns is how many connections may have a slot until the kernel keeps less for further ones: containerd pulls
	// three layers of an image at once.
	fewConns = 4
	// maxLines bounds the lines of the headers of a request: as fields, short lines take twenty times their bytes.
	maxLines = 512
	// poll is how often they look for a connection that gives way.
	poll = 100 * time.Millisecond
)

// slots says which connections stay. All peers are the node itself, so that only what its connections do
// distinguishes a client that fills the slots from the runtime:
//
//   - A connection that has not said what it wants has no slot. Of too many the oldest ends, so that there is always
//     room to listen to one more. A probe of the kubelet is answered without a slot.
//   - When all slots are taken, a connection gives way that got no answer yet, the oldest first; otherwise one that
//     moves no bytes, the one that has been quiet for the longest time first.
type slots struct {
	most           int           // connections with a slot
	opening, quiet time.Duration // how long a connection without an answer, and one without traffic, has its slot

	mu      sync.Mutex // guards what follows
	silent  *list.List // of *conn, the oldest first
	taken   map[*conn]struct{}
	waiting int
	freed   chan struct{} // has an element after a slot became free
}

func newSlots(t times) *slots {
	return &slots{most: maxConns, opening: t.opening, quiet: t.yield, silent: list.New(), taken: map[*conn]struct{}{},
		freed: make(chan struct{}, 1)}
}

// conn is a connection of a client on the node. Close ends its slot.
type conn struct {
	net.Conn
	head   []byte // bytes that dispatch has read
	idle   time.Duration
	ctx    context.Context // done after Close
	cancel context.CancelFunc
	closed atomic.Bool

	asks  atomic.Bool // the headers of a request over HTTP are awaited
	lines int         // of these; for the goroutine that reads them
	// answering: a handler answers the request. For the goroutine that serves the connection.
	answering bool
	// refused: count has answered. net/http may answer what it got of the request as well, which is dropped.
	refused bool

	since  time.Time    // when it was accepted
	shown  atomic.Bool  // whether it is in use: a whole request has come, or the registry has answered
	last   atomic.Int64 // when a byte was last seen to move, in nanoseconds since 1970
	slots  *slots
	silent *list.Element // in slots.silent; guarded by slots.mu
}

// listen makes a conn of a connection that was accepted. If there are too many silent ones, it ends the oldest.
func (p *slots) listen(c net.Conn, idle time.Duration) *conn {
	k := &conn{Conn: c, idle: idle, since: time.Now(), slots: p}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.move()
	var oldest *conn
	p.mu.Lock()
	k.silent = p.silent.PushBack(k)
	if p.silent.Len() > maxSilent {
		oldest = p.silent.Front().Value.(*conn)
		p.hear(oldest)
	}
	p.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	return k
}

// hear takes a connection off the silent ones. The caller holds mu.
func (p *slots) hear(c *conn) {
	if c.silent != nil {
		p.silent.Remove(c.silent)
		c.silent = nil
	}
}

// take gives a connection a slot. It waits until one is free or another connection gives way. It reports false if the
// connection was closed, too many wait, or it waited too long; and when closing is closed.
func (p *slots) take(c *conn, closing <-chan struct{}) bool {
	late := time.NewTimer(maxWait)
	defer late.Stop()
	again := time.NewTicker(poll)
	defer again.Stop()
	for first := true; ; first = false {
		if given, ok := p.try(c, first); given || !ok {
			return given
		}
		select {
		case <-p.freed:
			continue
		case <-again.C:
			continue
		case <-c.ctx.Done():
		case <-late.C:
		case <-closing:
		}
		p.mu.Lock()
		p.waiting--
		p.mu.Unlock()
		return false
	}
}

// try gives a connection a slot if there is one. first says that it has not waited yet; ok reports whether it may wait.
func (p *slots) try(c *conn, first bool) (given, ok bool) {
	var victim *conn
	p.mu.Lock()
	defer func() {
		p.mu.Unlock()
		if victim != nil {
			victim.Close() // without the lock, which Close needs
		}
	}()
	p.hear(c)
	if len(p.taken) >= p.most && !c.closed.Load() {
		// The victim leaves at once, so that two connections do not count on the same slot.
		if victim = p.givesWay(time.Now()); victim != nil {
			delete(p.taken, victim)
		}
	}
	switch {
	case c.closed.Load(): // after this check, leave takes it off again
		if !first {
			p.waiting--
		}
		return false, false
	case len(p.taken) < p.most:
		p.taken[c] = struct{}{}
		if !first {
			p.waiting--
		}
		return true, true
	case first && p.waiting >= maxWaiting:
		return false, false
	case first:
		p.waiting++
	}
	return false, true
}

// givesWay returns the connection that ends so that another gets its slot; nil if all are in use. The caller holds mu.
func (p *slots) givesWay(now time.Time) *conn {
	var unanswered, quiet *conn
	for c := range p.taken {
		switch {
		case !c.shown.Load():
			if now.Sub(c.since) >= p.opening && (unanswered == nil || c.since.Before(unanswered.since)) {
				unanswered = c
			}
		case now.UnixNano()-c.last.Load() >= int64(p.quiet):
			if quiet == nil || c.last.Load() < quiet.last.Load() {
				quiet = c
			}
		}
	}
	if unanswered != nil {
		return unanswered
	}
	return quiet
}

// few reports whether so few connections have a slot that they need not share the memory of the container.
func (p *slots) few() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.taken) <= fewConns
}

// leave ends the slot of a connection.
func (p *slots) leave(c *conn) {
	p.mu.Lock()
	p.hear(c)
	_, had := p.taken[c]
	delete(p.taken, c)
	p.mu.Unlock()
	if had {
		select {
		case p.freed <- struct{}{}:
		default: // a signal is pending already
		}
	}
}

// move notes that bytes have moved.
func (c *conn) move() { c.last.Store(time.Now().UnixNano()) }

func (c *conn) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		k := copy(b, c.head)
		c.head = c.head[k:]
		return c.count(b, k, nil)
	}
	k, err := c.Conn.Read(b)
	if k > 0 {
		c.move()
	}
	return c.count(b, k, err)
}

// count ends a connection whose request has too many lines.
func (c *conn) count(b []byte, k int, err error) (int, error) {
	if !c.asks.Load() {
		return k, err
	}
	head, _, _ := bytes.Cut(b[:k], []byte("\r\n\r\n")) // a body may come with the headers
	if c.lines += bytes.Count(head, []byte{'\n'}); c.lines > maxLines {
		if !c.refused {
			c.answering = true
			// If it cannot be written, the client has gone.
			_, _ = c.Write(ocierror.Raw(&ocierror.Error{Code: ocierror.Unsupported,
				Status:  http.StatusRequestHeaderFieldsTooLarge,
				Message: fmt.Sprintf("the headers have more than %d lines", maxLines)}))
			c.refused = true
		}
		return 0, io.EOF
	}
	return k, err
}

// ask counts the lines of the next request. net/http calls it in the goroutine that reads the connection.
func ask(c net.Conn, state http.ConnState) {
	k, ok := c.(*conn)
	if !ok {
		return
	}
	switch state {
	case http.StateNew, http.StateIdle:
		k.lines, k.answering, k.refused = 0, false, false
		k.asks.Store(true)
	case http.StateActive: // the headers are complete
		k.asks.Store(false)
	}
}

// Write gives the client the idle time to receive the data. What no handler has answered gets the form of all answers.
func (c *conn) Write(b []byte) (int, error) {
	switch {
	case c.refused:
		return len(b), nil
	case !c.answering:
		if _, err := c.write(ocierror.RawAnswer(b)); err != nil {
			return 0, err
		}
		return len(b), nil
	}
	return c.write(b)
}

func (c *conn) write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.idle)); err != nil {
		return 0, err
	}
	k, err := c.Conn.Write(b)
	if k > 0 {
		c.move()
	}
	return k, err
}

// CloseWrite reports to the client that nothing follows. net/http uses it before it closes a connection whose client
// still sends: otherwise the client may lose the answer (a 401, in the middle of an upload) to a reset.
func (c *conn) CloseWrite() error {
	closeWrite(c.Conn)
	return nil
}

func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	defer c.slots.leave(c)
	c.cancel()
	return c.Conn.Close()
}

// protocol is what a connection speaks.
type protocol int

const (
	undecided protocol = iota // more bytes are needed
	speaksTLS
	speaksHTTP
	probes // a request for the kubelet's probes, over HTTP
	neither
)

const (
	// handshake and clientHello are the first byte and the sixth of TLS (RFC 8446, sections 5.1 and 4): content type
	// handshake and, after version and length of the record, message type client_hello. No method of HTTP starts with
	// the first.
	handshake, clientHello = 0x16, 1
	// maxHead is how much of a connection is read to find out what it speaks. A longer line of a request is HTTP.
	maxHead = 4096
)

// speaks returns what a connection speaks that starts with these bytes. One byte is not enough: it costs a client
// nothing, and would open a connection to the registry.
func speaks(head []byte) protocol {
	switch {
	case len(head) == 0:
		return undecided
	case head[0] == handshake && len(head) < 6:
		return undecided
	case head[0] == handshake && head[1] == 3 && head[5] == clientHello:
		return speaksTLS
	case head[0] == handshake:
		return neither
	}
	line, _, whole := bytes.Cut(head, []byte("\n"))
	if !whole && len(head) < maxHead {
		return undecided
	}
	if words := bytes.Fields(line); len(words) == 3 {
		target, _, _ := bytes.Cut(words[1], []byte("?"))
		if path := string(target); path == livePath || path == readyPath {
			return probes
		}
	}
	return speaksHTTP
}
