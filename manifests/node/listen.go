package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	// maxConns bounds the connections at once; more wait in the kernel's queue. A node pulls a few images at once, a
	// few layers each.
	maxConns = 512
	// handshake is the first byte of TLS (RFC 8446, section 5.1: content type handshake). No method of HTTP begins
	// with it.
	handshake = 0x16
	// chunk is what a pipe moves before it renews its deadlines; small against what moves within the idle time.
	chunk = 1 << 20
)

// listen opens the listeners. Error: there is none for the local port.
func (n *Node) listen() ([]net.Listener, error) {
	var all []net.Listener
	var errs []error
	for _, port := range []int{n.o.LocalPort, n.o.Port} {
		for _, ip := range []struct{ network, address, url string }{{"tcp4", "127.0.0.1", "127.0.0.1"}, {"tcp6", "::1", "[::1]"}} {
			address := net.JoinHostPort(ip.address, strconv.Itoa(port))
			l, err := n.o.Listen(ip.network, address)
			if err != nil {
				errs = append(errs, err)
				n.tell(NotListens, err, "not listening on %s", address)
				continue
			}
			if n.loopback == "" {
				n.loopback = ip.url
			}
			all = append(all, l)
			n.tell(Listening, nil, "listening on %s", address)
		}
		if len(all) == 0 {
			return nil, fmt.Errorf("local port %d: %w", port, errors.Join(errs...))
		}
	}
	return all, nil
}

// local is the address that runtimes are told.
func (n *Node) local() string { return fmt.Sprintf("%s:%d", n.loopback, n.o.LocalPort) }

// accept takes connections until the listener is closed.
func (n *Node) accept(l net.Listener, http *handover) {
	for {
		select {
		case n.slots <- struct{}{}:
		case <-n.closing:
			return
		}
		c, err := l.Accept()
		if err != nil {
			<-n.slots
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select { // out of files, or the like: it passes
			case <-time.After(100 * time.Millisecond):
			case <-n.closing:
			}
			continue
		}
		go n.sort(&conn{Conn: c, idle: n.times.idle, release: func() { <-n.slots }}, http)
	}
}

// conn is a connection of the node's. It gives its slot back when it is closed.
type conn struct {
	net.Conn
	head    []byte // read already
	idle    time.Duration
	release func()
	closed  atomic.Bool
}

func (c *conn) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		k := copy(b, c.head)
		c.head = c.head[k:]
		return k, nil
	}
	return c.Conn.Read(b)
}

// Write gives a client the idle time to take what it is sent.
func (c *conn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.idle)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	defer c.release()
	return c.Conn.Close()
}

// sort looks at the first byte: TLS is piped, the rest is HTTP.
func (n *Node) sort(c *conn, http *handover) {
	if peer, err := netip.ParseAddrPort(c.RemoteAddr().String()); err != nil || !peer.Addr().Unmap().IsLoopback() {
		c.Close()
		return
	}
	b := make([]byte, 4096)
	_ = c.SetReadDeadline(time.Now().Add(n.times.first)) // a connection that has no deadlines fails at the read
	k, err := c.Conn.Read(b)
	if err != nil || k == 0 {
		c.Close()
		return
	}
	_ = c.SetReadDeadline(time.Time{})
	if c.head = b[:k]; b[0] == handshake {
		n.pipe(c)
	} else {
		http.give(c)
	}
}

// dial connects to the registry: to the address that answered last, then to the others. Error: none answers.
func (n *Node) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: n.times.dial}
	first := int(n.good.Load())
	var errs []error
	for i := range n.targets {
		at := (first + i) % len(n.targets)
		c, err := d.DialContext(ctx, "tcp", n.targets[at])
		if err == nil {
			n.good.Store(int32(at))
			if n.lost.Swap(false) {
				n.tell(Reachable, nil, "the registry is at %s", n.targets[at])
			}
			return c, nil
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if ctx.Err() == nil && !n.lost.Swap(true) { // once, until it is over
		n.tell(Unreachable, err, "the registry does not answer")
	}
	return nil, err
}

// pipe is a connection of the node's and the one to the registry that goes with it.
type pipe struct {
	node *Node
	ends [2]net.Conn
	last atomic.Int64 // when something was last seen to have moved, in nanoseconds since 1970
}

// pipe moves bytes both ways until both ends have said all, or nothing has moved for the idle time. The client is
// told of nothing but the end: what it speaks is not ours.
func (n *Node) pipe(c *conn) {
	defer c.Close()
	to, err := n.dial(context.Background()) // it ends by its time
	if err != nil {
		return
	}
	defer to.Close()
	p := &pipe{node: n, ends: [2]net.Conn{c.Conn, to}}
	p.move()
	if !n.keep(p) {
		return
	}
	defer n.forget(p)
	_ = to.SetWriteDeadline(time.Now().Add(n.times.first))
	if _, err := to.Write(c.head); err != nil {
		return
	}
	done := make(chan struct{})
	go func() { p.copy(to, c.Conn); close(done) }()
	p.copy(c.Conn, to)
	<-done
}

// copy moves bytes one way and passes the end on. Both ends are TCP, so the kernel moves them by itself; what it has
// moved is seen at the end of a chunk, or after half of the idle time.
func (p *pipe) copy(to, from net.Conn) {
	for {
		until := p.arm(to, from)
		k, err := io.Copy(to, &io.LimitedReader{R: from, N: chunk})
		if k > 0 {
			p.move()
		}
		switch {
		case err == nil && k < chunk:
			closeWrite(to)
			return
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(until) && !p.silent():
			// It was the reading that took long, and something moves, be it the other way.
		default:
			p.stop()
			return
		}
	}
}

func (p *pipe) move() { p.last.Store(time.Now().UnixNano()) }

// silent reports whether nothing has moved for the idle time, either way.
func (p *pipe) silent() bool { return time.Since(time.Unix(0, p.last.Load())) >= p.node.idle() }

// arm sets the deadlines of one way. Reading has half of the time that writing has, which tells which of the two took
// too long; it returns the end of the latter.
func (p *pipe) arm(to, from net.Conn) time.Time {
	for {
		idle := p.node.idle()
		now := time.Now()
		_ = from.SetReadDeadline(now.Add(idle / 2))
		_ = to.SetWriteDeadline(now.Add(idle))
		if idle == p.node.idle() { // otherwise drainPipes has come in between
			return now.Add(idle)
		}
	}
}

// stop ends both ways.
func (p *pipe) stop() {
	for _, c := range p.ends {
		c.Close()
	}
}

func closeWrite(c net.Conn) {
	if t, ok := c.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite() // it is closed soon
	}
}

// idle is how long a pipe may be silent.
func (n *Node) idle() time.Duration {
	if n.draining.Load() {
		return n.times.quiet
	}
	return n.times.idle
}

// keep notes a pipe. It returns false when it is too late for a new one.
func (n *Node) keep(p *pipe) bool {
	n.pipesMu.Lock()
	defer n.pipesMu.Unlock()
	if n.draining.Load() {
		return false
	}
	n.pipes[p] = struct{}{}
	return true
}

func (n *Node) forget(p *pipe) {
	n.pipesMu.Lock()
	defer n.pipesMu.Unlock()
	delete(n.pipes, p)
}

// each calls f for each pipe and returns how many there are.
func (n *Node) each(f func(*pipe)) int {
	n.pipesMu.Lock()
	defer n.pipesMu.Unlock()
	for p := range n.pipes {
		f(p)
	}
	return len(n.pipes)
}

// drainPipes has each pipe look at the clock anew: one that is silent ends soon.
func (n *Node) drainPipes() {
	n.each((*pipe).move) // before the time is short: what moves has to be seen to move first
	n.draining.Store(true)
	n.each(func(p *pipe) {
		for _, c := range p.ends {
			_ = c.SetReadDeadline(time.Now())
		}
	})
}

// waitForPipes waits until there are none, and ends them when ctx is done.
func (n *Node) waitForPipes(ctx context.Context) {
	for n.each(func(*pipe) {}) > 0 {
		if !sleep(ctx, 20*time.Millisecond) { // at the end of the process: a look costs nothing
			n.each((*pipe).stop)
			return
		}
	}
}
