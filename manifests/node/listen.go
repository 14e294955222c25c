package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"trow/registry/socket"
)

// chunk is how many bytes a pipe moves before it renews its deadlines: few, compared with the idle time.
const chunk = 1 << 20

const (
	// unsent is how many bytes that may not be sent yet the kernel keeps for one connection, and unsentOfFew as long as
	// few have a slot.
	unsent      = 32 << 10
	unsentOfFew = 1 << 20
	// unread is how many bytes that are not read yet it keeps, twice.
	unread = 32 << 10
)

// boundBuffers bounds what the kernel keeps of a connection of which one end does not read: for 512 of them 2 GiB,
// which count as memory of a container with 128 MiB.
func boundBuffers(c net.Conn, few bool) {
	if k, ok := c.(*conn); ok {
		c = k.Conn
	}
	if few {
		socket.BoundUnsent(c, unsentOfFew)
		return
	}
	socket.BoundUnsent(c, unsent)
	socket.BoundUnread(c, unread)
}

// maxDials is how often an address of the registry is dialed for one connection: of three replicas one may be dead, and
// with four attempts one connection in 81 meets it each time.
const maxDials = 4

// listen opens the listeners. failed has the addresses of the node port where that was not possible. Error: it could
// not listen on any address of the local port.
func (n *Node) listen() (all []net.Listener, failed map[string]error, err error) {
	failed = map[string]error{}
	for _, port := range []int{n.o.LocalPort, n.o.Port} {
		var errs []error
		for _, a := range addresses(port) {
			l, err := n.o.Listen(a.network, a.address)
			if err != nil {
				errs = append(errs, err)
				n.notify(NotListens, err, "cannot listen on %s", a.address)
				if port == n.o.Port {
					failed[a.address] = err
				}
				continue
			}
			if n.loopback == "" { // the first address of the local port
				n.loopback, _, _ = strings.Cut(a.address, fmt.Sprintf(":%d", port))
			}
			all = append(all, l)
			n.notify(Listening, nil, "listening on %s", a.address)
		}
		if len(all) == 0 {
			return nil, nil, fmt.Errorf("local port %d: %w", port, errors.Join(errs...))
		}
	}
	return all, failed, nil
}

// local returns the address that runtimes are configured with.
func (n *Node) local() string { return fmt.Sprintf("%s:%d", n.loopback, n.o.LocalPort) }

// accept accepts connections until the listener is closed. It never stops accepting: a connection that sends nothing
// has to give way to the next, which may be a probe of the kubelet.
func (n *Node) accept(l net.Listener, serve func(*conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			select { // out of file descriptors, or the like: try again
			case <-time.After(100 * time.Millisecond):
			case <-n.closing:
			}
			continue
		}
		go serve(n.slots.listen(c, n.times.idle))
	}
}

// dispatch reads until it knows what the connection speaks: TLS is piped, HTTP is handed over.
func (n *Node) dispatch(c *conn, http *handover) {
	switch n.hear(c) {
	case undecided, neither:
		c.Close()
	case speaksTLS:
		n.pipe(c)
	default:
		boundBuffers(c, n.slots.few())
		http.give(c)
	}
}

// hear reads until it knows what a connection speaks, and gives it a slot if it needs one. It returns undecided or
// neither for a connection that is not served.
func (n *Node) hear(c *conn) protocol {
	peer, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil || !peer.Addr().Unmap().IsLoopback() { // invariant 1
		return neither
	}
	b := make([]byte, 0, maxHead)
	_ = c.SetReadDeadline(time.Now().Add(n.times.first)) // if this fails, the read fails as well
	what := undecided
	for what == undecided {
		k, err := c.Conn.Read(b[len(b):maxHead])
		if err != nil || k == 0 {
			return undecided
		}
		b = b[:len(b)+k]
		what = speaks(b)
	}
	if what == neither || what != probes && !n.slots.take(c, n.closing) {
		return neither
	}
	_ = c.SetReadDeadline(time.Time{})
	c.head = b
	return what
}

// dial connects to the registry: to the address that was reached last, then to the others. Error: none was reached.
func (n *Node) dial(ctx context.Context) (net.Conn, error) {
	first := int(n.good.Load())
	var errs []error
	for i := range n.targets {
		at := (first + i) % len(n.targets)
		c, err := n.dialTarget(ctx, n.targets[at])
		if err == nil {
			n.good.Store(int32(at))
			if n.lost.Swap(false) {
				n.notify(Reachable, nil, "registry reached at %s", n.targets[at])
			}
			return c, nil
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if ctx.Err() == nil && !n.lost.Swap(true) { // once, until the registry is reached again
		n.notify(Unreachable, err, "cannot reach the registry")
	}
	return nil, err
}

// dialTarget connects to one address, that of a Service. Kubernetes chooses a replica for each connection, also one
// that was killed, until the endpoints are updated: then the next attempt may reach another one. It must not take long
// either: the client waits. Errors: those of the last attempt.
func (n *Node) dialTarget(ctx context.Context, address string) (net.Conn, error) {
	begin := time.Now()
	for try := 1; ; try++ {
		c, err := n.connect(ctx, address)
		var name *net.DNSError
		if err == nil || errors.As(err, &name) || try == maxDials || time.Since(begin) >= 2*n.times.dial {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(n.times.redial):
		}
	}
}

// pipe is a connection of a client and the one to the registry that belongs to it.
type pipe struct {
	node   *Node
	client *conn
	ends   [2]net.Conn // the client's and the registry's
	mirror *mirror     // nil: it does not come through the mirror port
}

// pipe moves bytes in both directions until both ends have closed, or no byte has moved for the idle time. On an error
// it closes the client's connection without a message: within TLS it cannot send any.
func (n *Node) pipe(c *conn) {
	defer c.Close()
	to, err := n.dial(c.ctx) // the time limit of dial ends it, or that c gives way
	if err != nil {
		return
	}
	n.run(&pipe{node: n, client: c, ends: [2]net.Conn{c.Conn, to}})
}

// run moves the bytes of a pipe; see [Node.pipe]. It closes the registry's end.
func (n *Node) run(p *pipe) {
	c, to := p.client, p.ends[1]
	defer to.Close()
	few := n.slots.few()
	for _, end := range p.ends {
		boundBuffers(end, few)
	}
	p.move()
	if !n.addPipe(p) {
		return
	}
	defer n.removePipe(p)
	_ = to.SetWriteDeadline(time.Now().Add(n.times.first))
	if _, err := to.Write(c.head); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if p.mirror != nil {
			p.ask(to, c.Conn)
		} else {
			p.copy(to, c.Conn)
		}
	}()
	p.copy(c.Conn, to)
	<-done
}

// copy moves bytes in one direction, and passes on that the source has closed. Both ends are TCP, so the kernel moves
// the bytes (splice). This function sees them at the end of a chunk, or when the time for reading is over.
func (p *pipe) copy(to, from net.Conn) {
	size := int64(chunk)
	if from == p.ends[1] {
		size = 1 // of the registry's answer: from then on the client is taken for one that uses the connection
	}
	for {
		until := p.arm(to, from)
		k, err := io.Copy(to, &io.LimitedReader{R: from, N: size})
		if k > 0 {
			p.move()
			p.mirror.answered()
		}
		switch {
		case err == nil && k < size:
			closeWrite(to)
			return
		case err == nil:
			if size == 1 {
				p.client.shown.Store(true)
			}
			size = chunk
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(until) && !p.silent():
			// The read timed out, but bytes move in at least one direction: go on.
		default:
			p.stop()
			return
		}
	}
}

func (p *pipe) move() { p.client.move() }

// silent reports whether no byte has moved in either direction for the idle time.
func (p *pipe) silent() bool { return time.Since(time.Unix(0, p.client.last.Load())) >= p.idle() }

// arm sets the deadlines of one direction, and returns the one for writing. Reading has half the time of writing at
// most, so that a timeout before that deadline means that reading took too long; and no more than the beat, so that it
// is known when bytes last moved if the pipe has to give way.
func (p *pipe) arm(to, from net.Conn) time.Time {
	for {
		idle := p.idle()
		now := time.Now()
		_ = from.SetReadDeadline(now.Add(min(idle/2, p.node.times.beat)))
		_ = to.SetWriteDeadline(now.Add(idle))
		if idle == p.idle() { // otherwise drainPipes has shortened it in the meantime
			return now.Add(idle)
		}
	}
}

// stop closes both ends.
func (p *pipe) stop() {
	for _, c := range p.ends {
		c.Close()
	}
}

func closeWrite(c net.Conn) {
	if t, ok := c.(interface{ CloseWrite() error }); ok {
		_ = t.CloseWrite() // on an error the connection is closed soon anyway
	}
}

// idle returns how long a pipe may be silent.
func (p *pipe) idle() time.Duration {
	switch times := &p.node.times; {
	case p.node.draining.Load():
		return times.quiet
	case p.mirror != nil:
		return times.hush
	default:
		return times.idle
	}
}

// addPipe registers a pipe. It reports false while draining, when no new pipe may start.
func (n *Node) addPipe(p *pipe) bool {
	n.pipesMu.Lock()
	defer n.pipesMu.Unlock()
	if n.draining.Load() {
		return false
	}
	n.pipes[p] = struct{}{}
	return true
}

func (n *Node) removePipe(p *pipe) {
	n.pipesMu.Lock()
	defer n.pipesMu.Unlock()
	delete(n.pipes, p)
}

// each calls f for each pipe and returns the number of pipes.
func (n *Node) each(f func(*pipe)) int {
	n.pipesMu.Lock()
	defer n.pipesMu.Unlock()
	for p := range n.pipes {
		f(p)
	}
	return len(n.pipes)
}

// drainPipes shortens the idle time of each pipe, so that a silent one ends soon.
func (n *Node) drainPipes() {
	// Each pipe counts as active now: one that is active will have moved bytes within the short idle time.
	n.each((*pipe).move)
	n.draining.Store(true)
	// A deadline in the past wakes up each read, and copy sets the new, short deadline.
	n.each(func(p *pipe) {
		for _, c := range p.ends {
			_ = c.SetReadDeadline(time.Now())
		}
	})
}

// waitForPipes waits until no pipe is left, and stops the rest when ctx is done.
func (n *Node) waitForPipes(ctx context.Context) {
	for n.each(func(*pipe) {}) > 0 {
		if !sleep(ctx, 20*time.Millisecond) { // polling is good enough at the end of the process
			n.each((*pipe).stop)
			return
		}
	}
}
