// Package node lets the container runtime of one machine reach and trust the registry. The runtime knows neither
// the cluster's DNS nor our CA; a pod of a DaemonSet on each node makes up for both.
//
// # Words
//
//   - name: host:port, as image names begin: trow.kube-public:31000. The port is the Service's node port.
//   - local port: the port of the loopback interface on which this package listens, beside the name's own.
//   - bundle: the certificates that the runtime is to trust, in PEM, from ConfigMap trow-ca.
//   - pipe: a connection that is TLS; its bytes pass unread. What is not TLS is HTTP, and is proxied.
//   - place: a directory of the node in which a runtime looks for what belongs to a name.
//   - ours, foreign: a file that begins with our marker, and one that does not.
//
// # Invariants
//
//  1. Only the node itself is served: peers are loopback addresses. Where a connection goes is settled by the options
//     alone, never by what a client sends.
//  2. HTTP goes on as TLS that is verified against the bundle, or not at all.
//  3. A foreign file is neither changed nor removed, and a runtime's own configuration is not edited: what people
//     have to do themselves is told them by an Event of Kubernetes.
//  4. A file is written whole or not at all: temporary file, fsync, rename, fsync of the directory.
//  5. No symbolic link leads out of the directories that the options name.
//  6. A bundle that cannot be read leaves the one before it in place.
//  7. The files go when, at the end, the DaemonSet is known to be gone or going. Without an answer they stay.
//
// # What it does not do
//
// It does not log: it tells its caller what happened. It pulls nothing and authenticates nobody. It restarts no
// runtime. It does not clean up after a change of the host or the port: files of the name before stay. It does not
// write to k0s, whose containerd looks into no such directory unless it is told to.
//
// # Why
//
// Node ports on loopback depend on the mode of kube-proxy and get rarer; a listener on the network of the host works
// with each of them. The local port is another than the node port because kube-proxy may catch the latter.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"trow/manifests/kube"
)

// Options say which registry it is, and where. Client, Namespace, NodeName, Host and Port are required.
type Options struct {
	// Client asks the API server. It needs to get, list and watch ConfigMap trow-ca, to get the DaemonSet, and to
	// create Events, all in Namespace.
	Client    *kube.Client
	Namespace string // of the registry, the ConfigMap and the DaemonSet
	DaemonSet string // that this process belongs to; empty: trow-node
	NodeName  string // for the Events

	Host      string // the registry's name on nodes, a DNS name
	Port      int    // its node port
	LocalPort int    // 0: Port + 1

	// Service is the registry's address, host:port; it is tried before the Service's name in DNS. Empty: DNS alone.
	Service string

	// Root is where the node's directories are mounted. Empty: /host.
	Root string

	// RuntimeVersion is that of the node's status, such as containerd://1.7.27. Empty: unknown; advice then names
	// the versions that it is for.
	RuntimeVersion string

	// Notify is told what happens, one event at a time. nil: nobody.
	Notify func(Event)

	// Listen opens the listeners; for tests. nil: net.Listen.
	Listen func(network, address string) (net.Listener, error)
}

// defaultRoot is where the manifest mounts the directories of the node.
const defaultRoot = "/host"

// times are how long things take. Tests have others.
type times struct {
	recheck  time.Duration // between two looks at the node's files: a file that somebody removed comes back
	first    time.Duration // until a connection's first byte, and for the headers of a request
	idle     time.Duration // without a byte: a push may wait this long for a slow disk
	dial     time.Duration // for each address: both are one hop away
	grace    time.Duration // for transfers at the end; less than the pod's terminationGracePeriodSeconds of 30
	quiet    time.Duration // at the end, a pipe without a byte for so long has nothing left to transfer
	ask      time.Duration // for an answer of the API server, at the end and for an Event
	backoff  time.Duration // after the first failure to follow the ConfigMap
	backoffs time.Duration // at most
}

func defaultTimes() times {
	return times{
		recheck: time.Minute, first: 10 * time.Second, idle: 10 * time.Minute, dial: 2 * time.Second,
		grace: 20 * time.Second, quiet: 2 * time.Second, ask: 3 * time.Second, backoff: time.Second, backoffs: 30 * time.Second,
	}
}

// Node serves one machine. Make one with [New], and call Run once.
type Node struct {
	o     Options
	times times

	notifyMu sync.Mutex // one event at a time
	eventsMu sync.Mutex // guards posted
	posted   map[string]time.Time
	told     map[string]string // by path: the problem last told; by "": the success; used by keepFiles alone

	targets []string     // addresses of the registry
	good    atomic.Int32 // index of the target that answered last
	lost    atomic.Bool  // none of them answered last

	loopback string        // of the local port, as URLs have it: 127.0.0.1 or [::1]; set before anything runs
	slots    chan struct{} // one for each connection
	closing  chan struct{} // closed when no connection is taken any more
	draining atomic.Bool
	pipesMu  sync.Mutex // guards pipes
	pipes    map[*pipe]struct{}

	upstream upstream
	bundle   atomic.Pointer[[]byte] // nil: unknown
	changed  chan struct{}          // has one element when the bundle has changed

	uid       atomic.Pointer[types.UID] // of the DaemonSet; nil: unknown
	listening atomic.Bool
	synced    atomic.Bool // every place was written, or its problem told
}

// New checks the options. Errors: every option that cannot be meant.
func New(o Options) (*Node, error) {
	if o.LocalPort == 0 {
		o.LocalPort = o.Port + 1
	}
	if o.DaemonSet == "" {
		o.DaemonSet = kube.DaemonSetName
	}
	if o.Root == "" {
		o.Root = defaultRoot
	}
	if o.Notify == nil {
		o.Notify = func(Event) {}
	}
	if o.Listen == nil {
		o.Listen = net.Listen
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	n := &Node{o: o, times: defaultTimes(), posted: map[string]time.Time{}, told: map[string]string{},
		slots: make(chan struct{}, maxConns), closing: make(chan struct{}), pipes: map[*pipe]struct{}{}, changed: make(chan struct{}, 1)}
	if o.Service != "" {
		n.targets = append(n.targets, o.Service)
	}
	n.targets = append(n.targets, net.JoinHostPort(n.serverName(), strconv.Itoa(kube.ServicePort)))
	return n, nil
}

// check finds what cannot be meant.
func (o *Options) check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.Client == nil {
		wrong("no client of the API server")
	}
	if msg := validation.IsDNS1123Label(o.Namespace); len(msg) > 0 {
		wrong("namespace %.80q: %s", o.Namespace, msg[0])
	}
	if msg := validation.IsDNS1123Subdomain(o.DaemonSet); len(msg) > 0 {
		wrong("DaemonSet %.80q: %s", o.DaemonSet, msg[0])
	}
	if msg := validation.IsDNS1123Subdomain(o.NodeName); len(msg) > 0 {
		wrong("node name %.80q: %s", o.NodeName, msg[0])
	}
	if err := checkName(o.Host, o.Port, o.LocalPort); err != nil {
		wrong("%w", err)
	}
	if o.Service != "" {
		if host, port, err := net.SplitHostPort(o.Service); err != nil || host == "" || !isPort(port) {
			wrong("service %.80q is not host:port", o.Service)
		}
	}
	return errors.Join(errs...)
}

// checkName checks what becomes part of paths and of configuration files.
func checkName(host string, port, localPort int) error {
	var errs []error
	if msg := validation.IsDNS1123Subdomain(host); len(msg) > 0 {
		errs = append(errs, fmt.Errorf("host %.80q: %s", host, msg[0]))
	}
	if port < 1 || port > 65535 {
		errs = append(errs, fmt.Errorf("port %d is none", port))
	}
	if localPort < 1 || localPort > 65535 || localPort == port {
		errs = append(errs, fmt.Errorf("local port %d is none, or the port", localPort))
	}
	return errors.Join(errs...)
}

func isPort(s string) bool {
	p, err := strconv.ParseUint(s, 10, 16)
	return err == nil && p > 0
}

// name is what image names begin with.
func (n *Node) name() string { return net.JoinHostPort(n.o.Host, strconv.Itoa(n.o.Port)) }

// serverName is whom the registry's certificate has to be for.
func (n *Node) serverName() string { return kube.ServiceHost(n.o.Namespace) }

// Run serves until ctx is done. Then it takes no more connections, lets transfers finish, takes the node's files away
// if it is being uninstalled, and returns nil. Error: none of the local port's addresses could be listened on.
func (n *Node) Run(ctx context.Context) error {
	listeners, err := n.listen()
	if err != nil {
		return err
	}
	n.listening.Store(true)
	server, conns := n.server()
	var serving, following sync.WaitGroup
	serving.Go(func() { _ = server.Serve(conns) }) // it ends when it is shut down
	for _, l := range listeners {
		serving.Go(func() { n.accept(l, conns) })
	}
	following.Go(func() { n.identify(ctx) })
	following.Go(func() { n.follow(ctx) })
	following.Go(func() { n.keepFiles(ctx) })

	<-ctx.Done()
	n.listening.Store(false)
	close(n.closing)
	for _, l := range listeners {
		l.Close()
	}
	n.drain(server)
	serving.Wait()
	following.Wait()
	n.leave()
	return nil
}

// drain lets transfers finish, for as long as there is time.
func (n *Node) drain(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), n.times.grace)
	defer cancel()
	n.drainPipes()
	var both sync.WaitGroup
	both.Go(func() {
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
	})
	both.Go(func() { n.waitForPipes(ctx) })
	both.Wait()
	n.upstream.close()
}

// Ready returns what is still missing until the runtime of the node can reach and trust the registry, nil: nothing.
// A place that could not be written is not missing: people were told of it.
func (n *Node) Ready() error {
	var missing []string
	if !n.listening.Load() {
		missing = append(missing, "it does not listen")
	}
	switch {
	case n.bundle.Load() == nil:
		missing = append(missing, fmt.Sprintf("ConfigMap %s of namespace %s has told no CA yet", kube.ConfigMapName, n.o.Namespace))
	case !n.synced.Load():
		missing = append(missing, "the runtime has not been told yet")
	}
	if len(missing) > 0 {
		return errors.New(strings.Join(missing, "; "))
	}
	return nil
}
