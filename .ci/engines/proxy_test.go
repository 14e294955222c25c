package engines

import (
	"net"
	"sync"
	"testing"
)

// proxy passes TCP connections on to a server, until a test lets it hold bytes back, in either direction, or cut them
// off.
type proxy struct {
	listener net.Listener
	target   string

	mu       sync.Mutex // guards all below
	changed  *sync.Cond
	requests bool // what clients send is held back
	answers  bool // what the server sends is held back
	refuses  bool
	conns    map[net.Conn]struct{}
}

func newProxy(t *testing.T, target string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: target, conns: map[net.Conn]struct{}{}}
	p.changed = sync.NewCond(&p.mu)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	t.Cleanup(func() { l.Close(); p.hold(false, false); p.cut() })
	return p
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

// hold holds back what clients or the server send from now on, or lets it go.
func (p *proxy) hold(requests, answers bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests, p.answers = requests, answers
	p.changed.Broadcast()
}

// cut ends all connections. What was held back is lost.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	p.changed.Broadcast()
}

// refuse lets new connections end at once.
func (p *proxy) refuse(yes bool) {
	p.mu.Lock()
	p.refuses = yes
	p.mu.Unlock()
	if yes {
		p.cut()
	}
}

func (p *proxy) serve(client net.Conn) {
	p.mu.Lock()
	refuses := p.refuses
	p.mu.Unlock()
	server, err := net.Dial("tcp", p.target)
	if err != nil || refuses {
		client.Close()
		return
	}
	p.mu.Lock()
	p.conns[client], p.conns[server] = struct{}{}, struct{}{}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.pump(server, client, func() bool { return p.requests }) })
	both.Go(func() { p.pump(client, server, func() bool { return p.answers }) })
	both.Wait()
	p.mu.Lock()
	delete(p.conns, client)
	delete(p.conns, server)
	p.mu.Unlock()
}

// pump copies until one side ends. What was read before the end of one side still reaches the other, as on a network.
func (p *proxy) pump(to, from net.Conn, held func() bool) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		for held() {
			p.changed.Wait()
		}
		p.mu.Unlock()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				from.Close()
				return
			}
		}
		if err != nil {
			return
		}
	}
}
