package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// listeners are those of a node. All methods are safe for concurrent use.
type listeners struct {
	serve func(net.Listener)

	mu      sync.Mutex // guards what follows
	closed  bool
	all     []net.Listener
	serving sync.WaitGroup
}

// add serves a listener of the local port or the node port, or closes it if close was called.
func (s *listeners) add(l net.Listener) { s.addFor(l, s.serve) }

// addFor is add for a listener that serve serves.
func (s *listeners) addFor(l net.Listener, serve func(net.Listener)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		l.Close()
		return
	}
	s.all = append(s.all, l)
	s.serving.Go(func() { serve(l) }) // under mu: close waits only after it has set closed
}

// close closes all listeners, and waits until none is served.
func (s *listeners) close() {
	s.mu.Lock()
	s.closed = true
	for _, l := range s.all {
		l.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

// addresses are the loopback addresses of a port, with their networks.
func addresses(port int) [2]struct{ network, address string } {
	p := strconv.Itoa(port)
	return [2]struct{ network, address string }{
		{"tcp4", net.JoinHostPort("127.0.0.1", p)}, {"tcp6", net.JoinHostPort("::1", p)}}
}

// keepNames tries again and again to listen on the addresses of the node port where that failed, until ctx is done.
// Image names contain them, and runtimes verify no certificate on loopback: whatever listens there is the registry.
func (n *Node) keepNames(ctx context.Context, failed map[string]error) {
	for {
		verified := n.bundle.Load() != nil
		for _, a := range addresses(n.o.Port) {
			if err := failed[a.address]; err != nil && ctx.Err() == nil {
				failed[a.address] = n.keepName(ctx, a.network, a.address, err)
			}
		}
		if verified {
			n.named.Store(true)
		}
		select {
		case <-n.trusts: // there is a bundle to verify with, or another one
		case <-time.After(n.times.rebind):
		case <-ctx.Done():
			return
		}
	}
}

// keepName tries once to listen on an address. If that fails, it reports a foreign listener. err is why it failed
// before; the result is why it fails now, nil if it does not.
func (n *Node) keepName(ctx context.Context, network, address string, err error) error {
	l, again := n.o.Listen(network, address)
	if again == nil {
		n.listeners.add(l)
		n.notify(Listening, nil, "listening on %s", address)
		n.taken.Delete(address)
		return nil
	}
	if n.bundle.Load() == nil {
		return again // nothing to verify with; the node is not ready for that reason
	}
	why := n.verify(ctx, address)
	if ctx.Err() != nil {
		return again
	}
	if absent := errors.Is(why, errAbsent); why == nil || absent && !errors.Is(again, syscall.EADDRINUSE) {
		n.taken.Delete(address) // it is the node port, or there is no such address
		return again
	}
	_, port, _ := net.SplitHostPort(address)
	text := fmt.Sprintf("%s is taken by a process that is not the registry, so that images named %s/… come from it: "+
		"find it on the node with ss -ltnp 'sport = :%s' and stop it, or take %s off the setting names",
		address, address,
		port, address)
	if _, known := n.taken.Swap(address, text); !known { // once, until it is solved
		n.report(ctx, Taken, why, "%s", text)
	}
	return again
}

// errAbsent means that nothing accepts connections at an address.
var errAbsent = errors.New("nothing listens there")

// verify connects to an address, and returns nil if it leads to the registry: its certificate is one of our CA. Errors:
// errAbsent; another server.
func (n *Node) verify(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, n.times.ask)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("%w: %w", errAbsent, err)
	}
	defer c.Close()
	return tls.Client(c, n.upstream.current.Load().TLSClientConfig.Clone()).HandshakeContext(ctx)
}
