package node

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"trow/registry/address"
	"trow/registry/namespace"
)

// MirrorAll stands for all registries in [Options].Mirrors.
const MirrorAll = "all"

// Mirrors are registries whose images are pulled through this one.
type Mirrors struct {
	All   bool
	Hosts []string // in their canonical form, sorted
}

// ParseMirrors parses a list of hosts and MirrorAll. Errors: a text that is neither.
func ParseMirrors(list []string) (m Mirrors, err error) {
	for _, text := range list {
		if strings.EqualFold(text, MirrorAll) {
			m.All = true
			continue
		}
		host, err := namespace.Host(text)
		if err == nil && !address.LooksLikeHost(strings.ToLower(text)) { // docker/app is an image of docker.io
			err = fmt.Errorf("%q is not a registry: it has no dot, and no port", text)
		}
		if err != nil {
			return Mirrors{}, fmt.Errorf("mirrors: %w; want a registry as images name it, such as docker.io, or %s",
				err, MirrorAll)
		}
		m.Hosts = append(m.Hosts, host)
	}
	slices.Sort(m.Hosts)
	m.Hosts = slices.Compact(m.Hosts)
	return m, nil
}

// Hub reports whether images of Docker Hub, the only registry of which Docker knows mirrors, are among them.
func (m Mirrors) Hub() bool { return m.All || slices.Contains(m.Hosts, address.Hub) }

func (m Mirrors) none() bool { return !m.All && len(m.Hosts) == 0 }

// checkMirrorPort checks the option, which becomes part of configuration files.
func checkMirrorPort(port int, others ...int) error {
	if port < 1 || port > 65535 || slices.Contains(others, port) {
		return fmt.Errorf("mirror port %d: want 1 to 65535, and neither the port nor the local port", port)
	}
	return nil
}

// mirror is the mirror port. It knows whether the registry answers: from the bytes that come from there, and where none
// come, from probes. A nil mirror does nothing.
//
// A runtime asks this registry for each layer before it goes on to the registry of the image. If the one here is dead
// in a way that takes time to notice (it hangs, or packets to it are lost), each layer would take that time. So what is
// noticed once holds for all connections: those that wait are closed, and new ones as soon as they are accepted.
type mirror struct {
	node *Node
	Mirrors
	local atomic.Pointer[string] // host:port that runtimes are configured with; nil: it does not listen yet
	first atomic.Int32           // index of the target that has answered last
	base  time.Time              // what last counts from: a clock that is set must stop no probe
	last  atomic.Int64           // when bytes last came from the registry, in nanoseconds since base
	calm  atomic.Int32           // probes since the last traffic
	wake  chan struct{}          // has an element after something has changed that watch waits for

	mu     sync.Mutex // guards what follows
	known  bool       // whether a probe has ended
	up     bool       // whether the registry answers
	wanted bool       // whether a connection was closed since the last probe
	conns  map[*conn]struct{}
}

// newMirror returns the mirror of a node; nil if it has none.
func newMirror(n *Node, m Mirrors) *mirror {
	if m.none() {
		return nil
	}
	return &mirror{node: n, Mirrors: m, base: time.Now(), wake: make(chan struct{}, 1), conns: map[*conn]struct{}{}}
}

// keepListening listens on the addresses of the mirror port, and tries again where that fails, until ctx is done. The
// runtimes are configured once it listens: another process on that port could keep them waiting.
func (m *mirror) keepListening(ctx context.Context) {
	n := m.node
	all := addresses(n.o.MirrorPort)
	left := all[:]
	for reported := false; len(left) > 0; {
		var failed error
		for _, a := range slices.Clone(left) {
			l, err := n.o.Listen(a.network, a.address)
			if err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			left = slices.DeleteFunc(left, func(b struct{ network, address string }) bool { return a == b })
			n.listeners.addFor(l, func(l net.Listener) { n.accept(l, m.serve) })
			n.notify(Listening, nil, "listening on %s", a.address)
			if m.local.CompareAndSwap(nil, &a.address) {
				signal(n.changed)
			}
		}
		if m.local.Load() == nil && !reported {
			reported = true
			n.report(ctx, Unmirrored, failed, "cannot listen on port %d of loopback, so images of other registries "+
				"are pulled from those registries: find what listens there with ss -ltnp 'sport = :%[1]d' and stop "+
				"it, or make the manifest with another port (trow manifest --mirror-port)", n.o.MirrorPort)
		}
		if !sleep(ctx, n.times.rebind) {
			return
		}
	}
}

// serve passes a connection on to the registry, or closes it if that does not answer. Only TLS is passed on: the
// runtime verifies the registry's certificate.
func (m *mirror) serve(c *conn) {
	defer c.Close()
	if !m.enter(c) {
		return
	}
	defer m.leave(c)
	m.asked()
	if m.node.hear(c) != speaksTLS {
		return
	}
	m.asked()
	// It ends when c is closed, which it is when a probe has failed.
	to, err := m.node.dialTarget(c.ctx, m.node.targets[int(m.first.Load())%len(m.node.targets)])
	if err != nil {
		signal(m.wake)
		return
	}
	m.node.run(&pipe{node: m.node, client: c, ends: [2]net.Conn{c.Conn, to}, mirror: m})
}

// enter registers a connection. It reports false if the registry does not answer.
func (m *mirror) enter(c *conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.up {
		m.conns[c] = struct{}{}
		return true
	}
	m.wanted = true
	signal(m.wake)
	return false
}

func (m *mirror) leave(c *conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.conns, c)
}

// asked notes that a client has sent something, for which it will wait.
func (m *mirror) asked() {
	m.calm.Store(0)
	signal(m.wake)
}

// answered notes that bytes have come from the registry.
func (m *mirror) answered() {
	if m != nil {
		m.calm.Store(0)
		m.hear()
	}
}

func (m *mirror) hear() { m.last.Store(int64(time.Since(m.base))) }

// trusts notes that there is a bundle.
func (m *mirror) trusts() {
	if m != nil {
		signal(m.wake)
	}
}

// watch finds out whether the registry answers, again and again until ctx is done.
func (m *mirror) watch(ctx context.Context) {
	var ended time.Time // when the last probe has ended
	for failures := 0; ; {
		trusted := m.node.upstream.current.Load()
		wait := time.Until(m.due(ended, failures))
		if trusted == nil { // no server can be verified as the registry until trusts is called
			wait = m.node.times.pulse
		}
		if wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
			case <-m.wake: // it may be due sooner
				t.Stop()
			}
			continue
		}
		begin := time.Now()
		ok := m.probe(ctx, trusted.TLSClientConfig)
		if ctx.Err() != nil {
			return
		}
		ended = time.Now()
		if m.set(ok, begin) {
			failures = 0
			m.calm.Add(1)
		} else {
			failures++
		}
	}
}

// due returns when the next probe begins: none while bytes come from the registry; a beat after the last byte if a
// client may wait for one, and then less and less often; rarely when no connection is open. After a failure it is
// sooner if a connection was closed since.
func (m *mirror) due(ended time.Time, failures int) time.Time {
	m.mu.Lock()
	up, wanted, used := m.up, m.wanted, len(m.conns) > 0
	m.mu.Unlock()
	t := m.node.times
	rare := func(times int) time.Duration { return min(t.beat<<min(times, 10), t.pulse) }
	switch heard := m.base.Add(time.Duration(m.last.Load())); {
	case up && used:
		return heard.Add(rare(int(m.calm.Load())))
	case up:
		return heard.Add(t.pulse)
	case wanted:
		return ended.Add(t.beat)
	default: // often, because nodes pull past the registry until it is known to answer
		return ended.Add(min(rare(failures), t.pulse/4))
	}
}

// set records the result of a probe that began at a time, and reports whether the registry answers. Bytes that have
// come meanwhile show that it does, and is slow. If it does not, all connections are closed: invariant 9.
func (m *mirror) set(ok bool, begin time.Time) bool {
	m.mu.Lock()
	ok = ok || m.up && time.Duration(m.last.Load()) > begin.Sub(m.base)
	changed := m.up != ok || !m.known
	m.up, m.known, m.wanted = ok, true, false
	var closed []*conn
	if !ok {
		closed = slices.Collect(maps.Keys(m.conns))
	}
	m.mu.Unlock()
	for _, c := range closed {
		c.Close() // without the lock, which leave needs
	}
	switch {
	case changed && ok:
		m.node.notify(MirrorUp, nil, "the registry answers: images of other registries are pulled through it")
	case changed:
		m.node.notify(MirrorDown, nil, "the registry does not answer: images of other registries are pulled from "+
			"those registries, and connections to port %d are closed at once", m.node.o.MirrorPort)
	}
	return ok
}

// probe reports whether the registry answers within the time limit of one dial. It connects several times, and to each
// address, as one of several replicas may be dead while the endpoints have it, and a packet may be lost.
func (m *mirror) probe(ctx context.Context, config *tls.Config) bool {
	n := m.node
	ctx, cancel := context.WithTimeout(ctx, n.times.dial)
	defer cancel()
	answers := make(chan int, maxDials) // the index of a target; below 0: no answer
	first, begun, ended := int(m.first.Load()), 0, 0
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-next.C:
			if begun == maxDials {
				continue
			}
			at := (first + begun) % len(n.targets)
			begun++
			go func() {
				if err := m.ask(ctx, n.targets[at], config); err != nil {
					at = -1
				}
				answers <- at
			}()
			next.Reset(n.times.dial / maxDials)
		case at := <-answers:
			if at >= 0 {
				m.first.Store(int32(at))
				m.hear()
				return true
			}
			if ended++; ended == maxDials {
				return false
			}
			next.Reset(n.times.redial)
		}
	}
}

// ask asks the registry whether it is alive, over a connection of its own: an existing one may lead to another replica.
// Errors: it does not answer, its certificate is not one of our CA, or its answer is not that of a live registry.
func (m *mirror) ask(ctx context.Context, target string, config *tls.Config) error {
	c, err := m.node.connect(ctx, target)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })() // ends what follows
	s := tls.Client(c, config.Clone())
	if err := s.HandshakeContext(ctx); err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+m.node.serverName()+readyPath, nil)
	if err != nil {
		return err
	}
	req.Close = true
	if err := req.Write(s); err != nil {
		return err
	}
	answer, err := http.ReadResponse(bufio.NewReader(s), req)
	if err != nil {
		return err
	}
	answer.Body.Close()
	if answer.StatusCode >= http.StatusInternalServerError {
		return errors.New(answer.Status)
	}
	return nil
}

// ask moves what the client sends. It is like copy, but notices each request at once: from then on the client waits.
func (p *pipe) ask(to, from net.Conn) {
	b := make([]byte, 16<<10)
	for {
		until := p.arm(to, from)
		k, err := from.Read(b)
		if k > 0 {
			p.move()
			p.mirror.asked()
			if _, failed := to.Write(b[:k]); failed != nil {
				err = failed
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			closeWrite(to)
			return
		case errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(until) && !p.silent():
			// The client is silent: it waits, or has nothing to ask.
		default:
			p.stop()
			return
		}
	}
}

// signal puts an element into a channel that has room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // a signal is pending already
	}
}
