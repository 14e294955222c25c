// Package node makes the container runtime of one node reach and trust the registry. The runtime knows neither the
// cluster's DNS nor our CA; a pod of a DaemonSet on each node makes up for both.
//
// # Words
//
//   - name: host:port, as image names start: trow.kube-public:31000. The port is the node port of the Service.
//   - local port: the port on loopback on which this package listens, beside the port of the name.
//   - bundle: the CA certificates that the runtime has to trust, in PEM, from ConfigMap trow-ca.
//   - pipe: a TLS connection; its bytes are passed on unread. A connection that is not TLS is HTTP, and is proxied.
//   - mirror port: a third port on loopback, for images of other registries. Each runtime goes on to the registry
//     itself when this one does not give an image, so that connections are closed there rather than kept waiting.
//   - slot: room for a connection of a client. When all are taken, connections that do nothing give way.
//   - place: a directory of the node in which a runtime looks for the configuration of a name.
//   - ours, foreign: a file that starts with our marker, and one that does not.
//
// # Invariants
//
//  1. Only the node itself is served: peers have loopback addresses. The options alone decide where a connection goes,
//     never the data that a client sends.
//  2. HTTP is passed on over TLS that is verified against the bundle, or not at all.
//  3. Foreign files are neither changed nor removed, and the runtime's own configuration is not edited. A Kubernetes
//     Event says what an administrator has to do.
//  4. A file is written whole or not at all; see package storage/files.
//  5. No symbolic link leads out of the directories that the options name.
//  6. A bundle that cannot be parsed leaves the previous one in use.
//  7. Connections that do nothing keep out neither the runtime's nor the kubelet's probes, however many there are.
//  8. The node is not ready while a process that is not the registry listens on a loopback address of the node port.
//  9. While the registry does not answer, no connection to the mirror port waits: it is closed at once. Those that wait
//     when that is found out are closed as well.
//  10. At the end the files are removed if the DaemonSet is known to be deleted. Without an answer they stay.
//
// # What it does not do
//
// It does not log, but notifies its caller. It does not pull images or authenticate clients. It does not restart a
// runtime. It does not clean up after a change of the host or the port: the files of the previous name stay, but for
// those of mirrors. It does not write to k0s, whose containerd reads no such directory unless it is configured to.
//
// # Why
//
// Whether node ports are reachable on loopback depends on the mode of kube-proxy, and fewer modes support it; a
// listener on the host's network works with each of them. The local port is not a node port, because kube-proxy may
// intercept those.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"trow/manifests/kube"
)

// Options say which registry this is, and where it is. Client, Namespace, NodeName, Host and Port are required.
type Options struct {
	// Client needs the rights to get, list and watch ConfigMap trow-ca, to get the DaemonSet, and to create Events, all
	// in Namespace.
	Client    *kube.Client
	Namespace string // of the registry, the ConfigMap and the DaemonSet
	DaemonSet string // of this process; empty: trow-node
	NodeName  string // for the Events

	Host      string // the registry's name on nodes, a DNS name
	Port      int    // its node port
	LocalPort int    // 0: see kube.LocalPort

	// Mirrors are the hosts of other registries whose images the runtimes pull through this registry, as images name
	// them; MirrorAll stands for all. Empty: none. MirrorPort is the port on loopback for that; 0: see kube.MirrorPort.
	Mirrors    []string
	MirrorPort int

	// DaemonJSON lets it write Docker's configuration file with the mirror of Docker Hub, on nodes that have no such
	// file. Without Docker Hub in Mirrors it removes the file. dockerd does not start if it has the flag
	// --registry-mirror as well. Whoever can write the file can run programs as root.
	DaemonJSON bool

	// Service is the address of the registry, host:port. It is tried before the Service's DNS name. Empty: DNS alone.
	Service string

	// Root is where the node's directories are mounted. Empty: /host.
	Root string

	// RuntimeVersion is the one of the node's status, such as containerd://1.7.27. Empty: unknown; advice then says
	// which versions it applies to.
	RuntimeVersion string

	// Notify is called with each event, one at a time. nil: events are dropped.
	Notify func(Event)

	// Listen opens the listeners; for tests. nil: net.Listen.
	Listen func(network, address string) (net.Listener, error)
}

// defaultRoot is where the manifest mounts the directories of the node.
const defaultRoot = "/host"

// times are time limits and intervals. Tests have shorter ones.
type times struct {
	recheck    time.Duration // between two checks of the node's files: a file that was removed is written again
	first      time.Duration // until it is known what a connection speaks, and for the headers of a request
	idle       time.Duration // without a byte: a push may wait this long for a slow disk
	beat       time.Duration // a pipe notices within this time that bytes have moved
	opening    time.Duration // when the slots are taken, a connection without an answer gives way after this time
	yield      time.Duration // and one without traffic after this: longer than a registry usually thinks
	dial       time.Duration // for each attempt: the registry is one hop away
	redial     time.Duration // between two attempts
	grace      time.Duration // for transfers at the end; less than the pod's terminationGracePeriodSeconds of 30
	quiet      time.Duration // at the end, a pipe without a byte for this long has nothing left to transfer
	rebind     time.Duration // between two attempts to listen on an address of the node port
	hush       time.Duration // without a byte through the mirror port: longer than the registry waits for an upstream
	pulse      time.Duration // between two questions whether the registry answers, while it is not used
	ask        time.Duration // for an answer of the API server, at the end and for an Event
	backoff    time.Duration // after the first failure to follow the ConfigMap
	maxBackoff time.Duration // after many
}

func defaultTimes() times {
	return times{
		recheck: time.Minute, first: 10 * time.Second, idle: 10 * time.Minute, dial: 2 * time.Second,
		redial: 50 * time.Millisecond,
		beat:   time.Second, opening: 250 * time.Millisecond, yield: 5 * time.Second,
		grace: 20 * time.Second, quiet: 2 * time.Second, ask: 3 * time.Second, rebind: 10 * time.Second,
		hush: time.Minute, pulse: 10 * time.Second,
		backoff: time.Second, maxBackoff: 30 * time.Second,
	}
}

// Node serves one machine. Make one with [New], and call Run once.
type Node struct {
	o     Options
	times times

	notifyMu sync.Mutex // serializes calls of Notify
	eventsMu sync.Mutex // guards posted
	posted   map[string]time.Time
	// lastReported has the last problem by path, and the last success by "". Used by keepFiles alone.
	lastReported map[string]string
	// elsewhere is the directory, below Root, that containerd reads instead of the usual one. Set by findElsewhere,
	// before the places are used. Used by keepFiles, and at the end.
	elsewhere string

	connect func(ctx context.Context, address string) (net.Conn, error) // one attempt
	targets []string                                                    // addresses of the registry
	good    atomic.Int32                                                // index of the target that was reached last
	lost    atomic.Bool                                                 // whether the last attempt reached none of them

	mirror *mirror // nil: no mirrors

	listeners listeners
	named     atomic.Bool   // whether it is known what listens on the addresses of the node port
	taken     sync.Map      // from an address of the node port on which another process listens, to a text about it
	trusts    chan struct{} // has an element after the bundle has changed, for keepNames

	loopback string // address of the local port, as in URLs: 127.0.0.1 or [::1]; set before anything runs
	slots    *slots
	closing  chan struct{} // closed when no more connections are accepted
	draining atomic.Bool
	pipesMu  sync.Mutex // guards pipes
	pipes    map[*pipe]struct{}

	upstream upstream
	bundle   atomic.Pointer[[]byte] // nil: unknown
	changed  chan struct{}          // has an element after the bundle has changed, for keepFiles

	uid       atomic.Pointer[types.UID] // of the DaemonSet; nil: unknown
	listening atomic.Bool
	synced    atomic.Bool // each place was written, or its problem reported
}

// New makes a Node. Errors: each invalid option.
func New(o Options) (*Node, error) {
	if o.LocalPort == 0 {
		o.LocalPort = kube.LocalPort(o.Port)
	}
	if o.MirrorPort == 0 {
		o.MirrorPort = kube.MirrorPort(o.LocalPort)
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
	if err := o.validate(); err != nil {
		return nil, err
	}
	hosts, err := ParseMirrors(o.Mirrors)
	if err != nil {
		return nil, err
	}
	n := &Node{o: o, times: defaultTimes(), posted: map[string]time.Time{}, lastReported: map[string]string{},
		closing: make(chan struct{}), pipes: map[*pipe]struct{}{},
		changed: make(chan struct{}, 1), trusts: make(chan struct{}, 1)}
	n.slots = newSlots(n.times)
	n.mirror = newMirror(n, hosts)
	n.connect = func(ctx context.Context, address string) (net.Conn, error) {
		return (&net.Dialer{Timeout: n.times.dial}).DialContext(ctx, "tcp", address)
	}
	if o.Service != "" {
		n.targets = append(n.targets, o.Service)
	}
	n.targets = append(n.targets, net.JoinHostPort(n.serverName(), strconv.Itoa(kube.ServicePort)))
	return n, nil
}

// validate reports each invalid option.
func (o *Options) validate() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.Client == nil {
		wrong("client is not set")
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
	if len(o.Mirrors) > 0 {
		if slices.Contains(o.Mirrors, fmt.Sprintf("%s:%d", o.Host, o.Port)) {
			wrong("mirrors: %s:%d is this registry; leave it out", o.Host, o.Port)
		}
		if err := checkMirrorPort(o.MirrorPort, o.Port, o.LocalPort); err != nil {
			wrong("%w", err)
		}
	}
	if o.Service != "" {
		if host, port, err := net.SplitHostPort(o.Service); err != nil || host == "" || !isPort(port) {
			wrong("service %.80q is not host:port", o.Service)
		}
	}
	return errors.Join(errs...)
}

// checkName checks the options that become part of paths and configuration files.
func checkName(host string, port, localPort int) error {
	var errs []error
	if msg := validation.IsDNS1123Subdomain(host); len(msg) > 0 {
		errs = append(errs, fmt.Errorf("host %.80q: %s", host, msg[0]))
	}
	if port < 1 || port > 65535 {
		errs = append(errs, fmt.Errorf("port %d: want 1 to 65535", port))
	}
	if localPort < 1 || localPort > 65535 || localPort == port {
		errs = append(errs, fmt.Errorf("local port %d: want 1 to 65535, and not the port", localPort))
	}
	return errors.Join(errs...)
}

func isPort(s string) bool {
	p, err := strconv.ParseUint(s, 10, 16)
	return err == nil && p > 0
}

// name returns the prefix of image names.
func (n *Node) name() string { return net.JoinHostPort(n.o.Host, strconv.Itoa(n.o.Port)) }

// serverName returns the name that the registry's certificate must be valid for.
func (n *Node) serverName() string { return kube.ServiceHost(n.o.Namespace) }

// Run serves until ctx is done. Then it accepts no more connections, lets transfers finish, removes the node's files if
// Trow is being uninstalled, and returns nil. Error: it could not listen on any address of the local port.
func (n *Node) Run(ctx context.Context) error {
	all, failed, err := n.listen()
	if err != nil {
		return err
	}
	n.listening.Store(true)
	server, conns := n.server()
	var serving, following sync.WaitGroup
	serving.Go(func() { _ = server.Serve(conns) }) // returns after Shutdown
	n.listeners.serve = func(l net.Listener) { n.accept(l, func(c *conn) { n.dispatch(c, conns) }) }
	for _, l := range all {
		n.listeners.add(l)
	}
	following.Go(func() { n.identify(ctx) })
	following.Go(func() { n.follow(ctx) })
	following.Go(func() { n.keepFiles(ctx) })
	following.Go(func() { n.keepNames(ctx, failed) })
	if n.mirror != nil {
		following.Go(func() { n.mirror.keepListening(ctx) })
		following.Go(func() { n.mirror.watch(ctx) })
	}

	<-ctx.Done()
	// The order: not ready, no new connections, the old ones finish, and the files go last, when no pull needs them.
	n.listening.Store(false)
	close(n.closing)
	n.listeners.close()
	n.drain(server)
	serving.Wait()
	following.Wait()
	n.leave()
	return nil
}

// drain lets transfers finish, within the grace time.
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

// Ready returns what is still missing before the runtime of the node can reach and trust the registry; nil: nothing. A
// place that could not be written does not count, because an Event has reported it.
func (n *Node) Ready() error {
	var missing []string
	if !n.listening.Load() {
		missing = append(missing, "not listening")
	}
	switch {
	case n.bundle.Load() == nil:
		missing = append(missing, fmt.Sprintf("ConfigMap %s/%s has no CA yet", n.o.Namespace, kube.ConfigMapName))
	case !n.synced.Load() || !n.named.Load():
		missing = append(missing, "runtime not configured yet")
	}
	n.taken.Range(func(_, text any) bool { missing = append(missing, text.(string)); return true })
	if len(missing) > 0 {
		return errors.New(strings.Join(missing, "; "))
	}
	return nil
}
