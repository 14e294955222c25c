package node_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"trow/manifests/node"
)

const mirrorPort = "127.0.0.1:24000"

// gate is the way from trow node to the registry. It can fail like one.
type gate struct {
	net.Listener
	to string

	mu    sync.Mutex // guards what follows
	conns []net.Conn
	hung  chan struct{} // closed when nothing passes any more; no connection ends
	lost  bool          // whether packets to it are dropped

	deaf  atomic.Bool  // no probe gets through
	waits atomic.Int64 // connections of clients that were opened, or begun, after it has failed, and that wait
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Listener: l, to: to, hung: make(chan struct{})}
	go func() {
		for {
			c, err := g.Accept()
			if err != nil {
				return
			}
			go g.pass(c)
		}
	}()
	t.Cleanup(g.kill)
	return g
}

func (g *gate) keep(c net.Conn) chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns = append(g.conns, c)
	return g.hung
}

func (g *gate) pass(c net.Conn) {
	hung := g.keep(c)
	to, err := net.Dial("tcp", g.to)
	if err != nil {
		c.Close()
		return
	}
	g.keep(to)
	copies := func(to, from net.Conn) {
		b := make([]byte, 1<<10)
		for {
			k, err := from.Read(b)
			select {
			case <-hung:
				return // both stay open
			default:
			}
			if err != nil {
				to.Close()
				return
			}
			if _, err := to.Write(b[:k]); err != nil {
				from.Close()
				return
			}
		}
	}
	go copies(to, c)
	copies(c, to)
}

func (g *gate) kill() {
	g.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns {
		c.Close()
	}
}

func (g *gate) hang() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.hung)
}

func (g *gate) lose() {
	g.hang()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lost = true
}

// heal is for a gate that hangs, or loses packets.
func (g *gate) heal() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hung, g.lost = make(chan struct{}), false
}

func (g *gate) failed() (failed, lost bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.hung:
		return true, g.lost
	default:
		return false, false
	}
}

// connect is how trow node connects. Its probes have a deadline, and connections of clients have none.
func (g *gate) connect(ctx context.Context, address string) (net.Conn, error) {
	failed, lost := g.failed()
	if _, probe := ctx.Deadline(); failed && !probe {
		g.waits.Add(1)
	}
	if _, probe := ctx.Deadline(); lost || probe && g.deaf.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}

const layers = 20

// puller pulls images as containerd does: it sends each request to the mirror first, with the registry that it means,
// and to that registry after any error, and any answer that is not the content.
type puller struct {
	*testing.T
	mirror, origin *http.Client
	url            string // of the mirror
	originURL      string

	fromMirror, fromOrigin atomic.Int64
}

func (w *world) puller(ca *authority) *puller {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ns := r.URL.Query().Get("ns"); ns != "" {
			http.Error(w, "the registry itself gets no ns", http.StatusBadRequest)
			return
		}
		io.WriteString(w, strings.Repeat(r.URL.Path, 100))
	}))
	w.Cleanup(origin.Close)
	r := &puller{T: w.T, origin: origin.Client(), originURL: origin.URL, url: "https://" + w.address(mirrorPort),
		mirror: &http.Client{Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{RootCAs: ca.pool, ServerName: "trow.kube-public.svc"},
			TLSHandshakeTimeout: time.Minute}}}
	w.Cleanup(r.mirror.CloseIdleConnections)
	return r
}

func (r *puller) ask(client *http.Client, method, url, want string) error {
	req, err := http.NewRequestWithContext(r.Context(), method, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != 200 || method == "GET" && string(b) != want) {
		err = fmt.Errorf("%s: %q", resp.Status, b)
	}
	return err
}

func (r *puller) request(method, path string) {
	want := strings.Repeat(path, 100)
	if err := r.ask(r.mirror, method, r.url+path+"?ns=docker.io", want); err == nil {
		r.fromMirror.Add(1)
		return
	}
	if err := r.ask(r.origin, method, r.originURL+path, want); err != nil {
		r.Errorf("%s %s: %v", method, path, err)
	}
	r.fromOrigin.Add(1)
}

// pull pulls an image: its tag is resolved, then come the manifest and the config, and then the layers, of which
// three at a time.
func (r *puller) pull() {
	const image = "/v2/library/php"
	r.request("HEAD", image+"/manifests/8.3")
	r.request("GET", image+"/manifests/sha256:1")
	r.request("GET", image+"/blobs/sha256:config")
	work := make(chan int)
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			for i := range work {
				r.request("GET", fmt.Sprintf("%s/blobs/sha256:%d", image, i))
			}
		})
	}
	for i := range layers {
		work <- i
	}
	close(work)
	all.Wait()
}

// mirrored has a registry behind a gate, and a node that pulls from it.
func mirrored(t *testing.T, pulse time.Duration, handler http.HandlerFunc) (*world, *gate, *authority) {
	t.Helper()
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/healthz" {
			return
		}
		handler(w, req)
	})
	g := newGate(t, r.address())
	w := newWorld(t, ca.pem, "etc/docker/certs.d")
	w.options.Mirrors = []string{"docker.io"}
	w.change = func(n *node.Node) {
		node.Watches(n, 100*time.Millisecond, pulse)
		node.Connects(n, g.connect)
	}
	w.start(g.Addr().String()).ready()
	w.until("the registry is known to answer", func() bool { return len(w.reported(node.MirrorUp)) == 1 })
	return w, g, ca
}

// content answers as the registry of puller does.
func content(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("ns") != "docker.io" {
		http.Error(w, "no ns", http.StatusBadRequest)
		return
	}
	io.WriteString(w, strings.Repeat(r.URL.Path, 100))
}

// TestADeadRegistryCostsAPullOneWait at most, whatever it has died of, and none if that is known already. Without that,
// each of the 23 requests would wait.
func TestADeadRegistryCostsAPullOneWait(t *testing.T) {
	for what, die := range map[string]func(*gate){"killed": (*gate).kill, "hung": (*gate).hang,
		"unreachable": (*gate).lose} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, known: %t", what, known), func(t *testing.T) {
				t.Parallel()
				pulse := time.Hour
				if known {
					pulse = 100 * time.Millisecond
				}
				w, g, ca := mirrored(t, pulse, content)
				most := int64(1)
				die(g)
				if known {
					w.until("it is known", func() bool { return len(w.reported(node.MirrorDown)) == 1 })
					most = 0
				}
				r := w.puller(ca)
				r.pull()
				if waits := g.waits.Load(); waits > most {
					t.Errorf("%d connections waited, want %d at most", waits, most)
				}
				if r.fromOrigin.Load() != layers+3 {
					t.Errorf("%d answers of the registry itself", r.fromOrigin.Load())
				}
				if what != "killed" { // it is used again when it answers
					g.heal()
					r.pull() // a node that asks in vain asks soon again
					w.until("it answers", func() bool { return len(w.reported(node.MirrorUp)) == 2 })
					before := r.fromMirror.Load()
					if r.pull(); r.fromMirror.Load() != before+layers+3 {
						t.Errorf("%d answers of the mirror", r.fromMirror.Load()-before)
					}
				}
			})
		}
	}
}

// TestARegistryThatDiesDuringAPull: the requests under way, three at most, end together, also those over connections
// that were open, and in the middle of a layer.
func TestARegistryThatDiesDuringAPull(t *testing.T) {
	for what, die := range map[string]func(*gate){"killed": (*gate).kill, "hung": (*gate).hang,
		"unreachable": (*gate).lose} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			var once sync.Once
			half := make(chan struct{})
			w, g, ca := mirrored(t, time.Hour, func(w http.ResponseWriter, r *http.Request) {
				if !strings.HasSuffix(r.URL.Path, ":5") {
					content(w, r)
					return
				}
				w.Header().Set("Content-Length", fmt.Sprint(100*len(r.URL.Path)))
				io.WriteString(w, strings.Repeat(r.URL.Path, 50))
				http.NewResponseController(w).Flush()
				once.Do(func() { close(half) })
				<-r.Context().Done()
			})
			go func() { <-half; die(g) }()
			r := w.puller(ca)
			r.pull()
			if waits := g.waits.Load(); waits > 3 {
				t.Errorf("%d connections waited, want 3 at most", waits)
			}
			if r.fromMirror.Load() < 5 || r.fromMirror.Load()+r.fromOrigin.Load() != layers+3 {
				t.Errorf("%d answers of the mirror, %d of the registry itself", r.fromMirror.Load(),
					r.fromOrigin.Load())
			}
		})
	}
}

// TestASlowRegistryIsNotDead: while bytes come, a probe that takes too long closes nothing.
func TestASlowRegistryIsNotDead(t *testing.T) {
	more := make(chan struct{})
	w, g, ca := mirrored(t, time.Hour, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		for range 40 {
			select {
			case <-more:
			case <-r.Context().Done():
				return
			}
			io.WriteString(w, "some bytes")
			http.NewResponseController(w).Flush()
		}
	})
	r := w.puller(ca)
	resp, err := r.mirror.Get(r.url + "/v2/a/blobs/b?ns=docker.io")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	g.deaf.Store(true)
	b := make([]byte, 10)
	for range 40 {
		select {
		case more <- struct{}{}:
		case <-time.After(10 * time.Second):
			t.Fatal("the connection has ended")
		}
		if _, err := io.ReadFull(resp.Body, b); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // two time limits of a probe, in all
	}
	if len(w.reported(node.MirrorDown)) > 0 {
		t.Error("it was taken for dead")
	}
}

// TestASilentAnswerEnds: one of several replicas may hang while the others answer probes.
func TestASilentAnswerEnds(t *testing.T) {
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/healthz" {
			<-req.Context().Done()
		}
	})
	w := newWorld(t, ca.pem)
	w.options.Mirrors = []string{"all"}
	w.change = func(n *node.Node) { node.Hush(n, 300*time.Millisecond) }
	w.start(r.address()).ready()
	w.until("the registry is known to answer", func() bool { return len(w.reported(node.MirrorUp)) == 1 })
	client := w.puller(ca)
	if err := client.ask(client.mirror, "GET", client.url+"/v2/a/manifests/b?ns=quay.io", ""); err == nil {
		t.Error("there is an answer")
	}
	if len(w.reported(node.MirrorDown)) > 0 {
		t.Error("it was taken for dead")
	}
}

// TestTheMirrorPortPassesOnWhatTheClientSays: the namespace, the path and the host say which registry is meant. Only
// TLS is passed on, which the client verifies.
func TestTheMirrorPortPassesOnWhatTheClientSays(t *testing.T) {
	got := make(chan string, 1)
	w, _, ca := mirrored(t, time.Hour, func(w http.ResponseWriter, r *http.Request) {
		select {
		case got <- r.Host + " " + r.URL.String():
		default:
		}
		http.NotFound(w, r) // such an answer leads the runtime to the registry itself
	})
	r := w.puller(ca)
	if err := r.ask(r.mirror, "GET", r.url+"/v2/a/manifests/b?ns=quay.io", ""); err == nil {
		t.Error("404 is content")
	}
	if text, want := <-got, strings.TrimPrefix(r.url, "https://")+" /v2/a/manifests/b?ns=quay.io"; text != want {
		t.Errorf("it got %s, want %s", text, want)
	}
	if err := r.ask(r.origin, "GET", strings.Replace(r.url, "https", "http", 1)+"/v2/", ""); err == nil {
		t.Error("plain HTTP is answered")
	}
	other := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: makeAuthority(t).pool,
		ServerName: "trow.kube-public.svc"}}}
	err := r.ask(other, "GET", r.url+"/v2/", "")
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		t.Error(err)
	}
}

// TestWithoutACAConnectionsAreClosed: the node cannot know who answers.
func TestWithoutACAConnectionsAreClosed(t *testing.T) {
	ca := makeAuthority(t)
	r := startRegistry(t, ca, content)
	w := newWorld(t, "")
	w.options.Mirrors = []string{"docker.io"}
	w.start(r.address())
	client := w.puller(ca)
	client.request("GET", "/v2/a/manifests/b")
	if client.fromOrigin.Load() != 1 {
		t.Error("the mirror answered")
	}
	<-w.watching
	w.publish(ca.pem)
	w.until("the registry answers", func() bool { return len(w.reported(node.MirrorUp)) == 1 })
	client.request("GET", "/v2/a/manifests/b")
	if client.fromMirror.Load() != 1 {
		t.Error("the mirror did not answer")
	}
}

// TestAMirrorPortInUse is reported, and the runtimes are configured when it is free.
func TestAMirrorPortInUse(t *testing.T) {
	var taken atomic.Bool
	taken.Store(true)
	w := newWorld(t, makeAuthority(t).pem, "etc/containerd")
	w.options.Mirrors = []string{"docker.io"}
	w.refuse = func(address string) bool { return taken.Load() && strings.HasSuffix(address, ":24000") }
	w.start("127.0.0.1:1").ready()
	w.until("an Event", func() bool { return len(w.published(node.Unmirrored)) == 1 })
	if e := w.published(node.Unmirrored)[0]; !strings.Contains(e.Message, "ss -ltnp 'sport = :24000'") {
		t.Error(e.Message)
	}
	const file = "etc/containerd/certs.d/docker.io/hosts.toml"
	if slices.Contains(w.files(), file) {
		t.Error("the runtime is configured")
	}
	taken.Store(false)
	w.until("the runtime is configured", func() bool { return w.file(file) != "" })
}
