package node_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"trow/manifests/kube/kubetest"
	"trow/manifests/node"
)

const (
	ns   = "kube-public"
	name = "trow.kube-public:31000"
	mark = "# Written by trow node"
)

// hello is the start of TLS: what trow node has to see before it connects to the registry.
var hello = []byte{0x16, 3, 1, 0, 1, 1}

// authority is a CA with a server certificate for the registry.
type authority struct {
	pem  string
	leaf tls.Certificate
	pool *x509.CertPool
}

func makeAuthority(t *testing.T) *authority {
	t.Helper()
	now := time.Now()
	caKey, leafKey := key(t), key(t)
	ca := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()),
		Subject:   pkix.Name{CommonName: "CA " + rand.Text()},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		DNSNames: []string{"trow.kube-public.svc"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, leafKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{pool: x509.NewCertPool(),
		leaf: tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: leafKey},
		pem:  string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}))}
	a.pool.AppendCertsFromPEM([]byte(a.pem))
	return a
}

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// registry is a server whose certificate may change.
type registry struct {
	*httptest.Server
	mu      sync.Mutex // guards current
	current *authority
}

func startRegistry(t *testing.T, ca *authority, h http.HandlerFunc) *registry {
	t.Helper()
	r := &registry{Server: httptest.NewUnstartedServer(h), current: ca}
	r.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return &r.current.leaf, nil
	}}
	r.Config.ErrorLog = nil
	r.StartTLS()
	t.Cleanup(r.Close)
	return r
}

func (r *registry) address() string { return r.Listener.Addr().String() }

// world is a cluster with one node, and trow node on it.
type world struct {
	*testing.T
	*fake.Clientset
	root    string
	options node.Options
	n       *node.Node
	change  func(*node.Node)
	// unhurried: with the intervals that it has
	unhurried bool

	watching chan struct{} // has an element for each watch
	mu       sync.Mutex    // guards the next two
	events   []node.Event
	bound    map[string]net.Addr // actual addresses, by the requested ones
	refuse   func(address string) bool
	cancel   context.CancelFunc
	ended    chan error
}

// newWorld has the objects of the manifest, and these directories on the node.
func newWorld(t *testing.T, ca string, dirs ...string) *world {
	t.Helper()
	w := &world{T: t, root: t.TempDir(), bound: map[string]net.Addr{}, watching: make(chan struct{}, 100),
		change: func(*node.Node) {}}
	for _, dir := range dirs {
		w.mkdir(dir)
	}
	w.Clientset = fake.NewClientset(
		configMap("trow-ca", ca),
		configMap("kube-root-ca.crt", "another"),
		&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow-node", UID: "uid-1"}})
	w.PrependWatchReactor("configmaps", func(a clienttesting.Action) (bool, watch.Interface, error) {
		if got := a.(clienttesting.WatchAction).GetWatchRestrictions().Fields.String(); got != "metadata.name=trow-ca" {
			t.Errorf("watches %q, for which it has no rights", got)
		}
		i, err := w.Tracker().Watch(a.GetResource(), a.GetNamespace())
		w.watching <- struct{}{}
		return true, i, err
	})
	w.PrependReactor("list", "configmaps", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if got := a.(clienttesting.ListAction).GetListRestrictions().Fields.String(); got != "metadata.name=trow-ca" {
			t.Errorf("lists %q, for which it has no rights", got)
		}
		return false, nil, nil
	})
	w.options = node.Options{Client: kubetest.Client(w.Clientset), Namespace: ns, NodeName: "node-1",
		Host: "trow.kube-public", Port: 31000, Root: w.root,
		Notify: func(e node.Event) { w.mu.Lock(); defer w.mu.Unlock(); w.events = append(w.events, e) },
		Listen: w.listen}
	return w
}

// configMap returns a ConfigMap with a bundle.
func configMap(name, bundle string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Data: map[string]string{"ca.crt": bundle}}
}

// listen opens a free port instead of the requested one, which may be in use where tests run.
func (w *world) listen(network, address string) (net.Listener, error) {
	if w.refuse != nil && w.refuse(address) {
		return nil, errors.New("in use")
	}
	host, _, _ := net.SplitHostPort(address)
	l, err := net.Listen(network, net.JoinHostPort(host, "0"))
	if err == nil {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.bound[address] = l.Addr()
	}
	return l, err
}

// start runs trow node until the test ends.
func (w *world) start(targets ...string) *world {
	w.Helper()
	n, err := node.New(w.options)
	if err != nil {
		w.Fatal(err)
	}
	if !w.unhurried {
		node.Hurry(n)
	}
	node.Targets(n, targets...)
	w.change(n)
	w.n = n
	ctx, cancel := context.WithCancel(w.Context())
	w.cancel, w.ended = cancel, make(chan error, 1)
	go func() { w.ended <- n.Run(ctx) }()
	w.Cleanup(func() { w.stop() })
	return w
}

func (w *world) stop() error {
	w.cancel()
	err, ok := <-w.ended
	if ok {
		close(w.ended)
	}
	return err
}

func (w *world) until(what string, ok func() bool) {
	w.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("timed out waiting until %s; events: %v", what, w.all())
		}
	}
}

func (w *world) ready() *world {
	w.Helper()
	w.until("it is ready", func() bool { return w.n.Ready() == nil })
	return w
}

func (w *world) all() []node.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// reported returns the messages of the events of a kind.
func (w *world) reported(kind node.Kind) (texts []string) {
	for _, e := range w.all() {
		if e.Kind == kind {
			texts = append(texts, e.Message)
		}
	}
	return texts
}

// published returns the Kubernetes Events with this reason.
func (w *world) published(kind node.Kind) (found []corev1.Event) {
	w.Helper()
	list, err := w.CoreV1().Events(ns).List(w.Context(), metav1.ListOptions{})
	if err != nil {
		w.Fatal(err)
	}
	for _, e := range list.Items {
		if e.Reason == string(kind) {
			found = append(found, e)
		}
	}
	return found
}

func (w *world) url() string { return "http://" + w.address("127.0.0.1:21000") }

func (w *world) address(requested string) string {
	w.Helper()
	var a net.Addr
	w.until("it listens on "+requested, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		a = w.bound[requested]
		return a != nil
	})
	return a.String()
}

func (w *world) publish(ca string) {
	w.Helper()
	_, err := w.CoreV1().ConfigMaps(ns).Update(w.Context(), configMap("trow-ca", ca), metav1.UpdateOptions{})
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) mkdir(dir string) {
	w.Helper()
	if err := os.MkdirAll(filepath.Join(w.root, dir), 0o755); err != nil {
		w.Fatal(err)
	}
}

func (w *world) put(file, content string) {
	w.Helper()
	w.mkdir(filepath.Dir(file))
	if err := os.WriteFile(filepath.Join(w.root, file), []byte(content), 0o600); err != nil {
		w.Fatal(err)
	}
}

// file returns the content of a file, "" if it does not exist.
func (w *world) file(file string) string {
	w.Helper()
	b, err := os.ReadFile(filepath.Join(w.root, file))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		w.Fatal(err)
	}
	return string(b)
}

// get sends a GET over plain HTTP, on a new connection.
func (w *world) get(url string, change ...func(*http.Request)) (int, http.Header, string) {
	w.Helper()
	r, err := http.NewRequestWithContext(w.Context(), "GET", url, nil)
	if err != nil {
		w.Fatal(err)
	}
	for _, f := range change {
		f(r)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(r)
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func TestTLSIsPipedUntouched(t *testing.T) {
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Host, r.TLS.ServerName)
	})
	w := newWorld(t, "").start(r.address()) // without a bundle
	for _, asked := range []string{"127.0.0.1:21000", "127.0.0.1:31000"} {
		dialer := &net.Dialer{}
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{RootCAs: ca.pool, ServerName: "trow.kube-public.svc"},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "tcp", w.address(asked))
			}}}
		resp, err := client.Get("https://" + name + "/v2/")
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != name+" trow.kube-public.svc" {
			t.Errorf("%s: %q", asked, b)
		}
	}
	if err := w.n.Ready(); err == nil || !strings.Contains(err.Error(), "trow-ca") {
		t.Errorf("ready without a bundle: %v", err)
	}
}

func TestEachEndOfAPipeMayCloseFirst(t *testing.T) {
	for _, first := range []string{"the client", "the registry"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		w := newWorld(t, "").start(l.Addr().String())
		client, err := net.Dial("tcp", w.address("127.0.0.1:21000"))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, err := client.Write(hello); err != nil {
			t.Fatal(err)
		}
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if _, err := io.ReadFull(server, make([]byte, len(hello))); err != nil {
			t.Fatal(err)
		}
		ends := []net.Conn{client, server}
		if first == "the registry" {
			slices.Reverse(ends)
		}
		long := bytes.Repeat([]byte("x"), 3<<20) // more than a chunk
		write(t, ends[0], []byte("that is all"))
		ends[0].(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(ends[1]); err != nil || !strings.HasSuffix(string(got), "that is all") {
			t.Errorf("%s closed first: the other end read %q, %v", first, got, err)
		}
		go write(t, ends[1], long)
		got := make([]byte, len(long))
		if _, err := io.ReadFull(ends[0], got); err != nil || !bytes.Equal(got, long) {
			t.Errorf("%s closed first: the bytes in the other direction: %v", first, err)
		}
	}
}

func write(t *testing.T, c net.Conn, b []byte) {
	if _, err := c.Write(b); err != nil {
		t.Error(err)
	}
}

func TestASilentPipeEndsAndABusyOneDoesNot(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const idle = time.Second // of which the test must not be kept waiting on a busy machine
	w := newWorld(t, "")
	w.change = func(n *node.Node) { node.Impatient(n, idle, 10*time.Second) }
	w.start(l.Addr().String())
	client, err := net.Dial("tcp", w.address("127.0.0.1:21000"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	write(t, client, hello)
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	// In one direction only, for several idle times: the silence of the other direction must not end the pipe.
	ticks := time.NewTicker(idle / 6)
	defer ticks.Stop()
	for range 24 {
		<-ticks.C
		write(t, server, []byte("."))
	}
	got := make([]byte, 24)
	if _, err := io.ReadFull(client, got); err != nil {
		t.Fatalf("the busy pipe ended: %v", err)
	}
	client.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := client.Read(got); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the silent pipe did not end: %v", err)
	}
}

func TestAConnectionWithoutARequestEnds(t *testing.T) {
	w := newWorld(t, "")
	w.change = func(n *node.Node) { node.Impatient(n, time.Minute, 50*time.Millisecond) }
	w.start("127.0.0.1:1")
	for _, sent := range []string{"", "G", "\x16", "\x16\x03\x01\x00\x01", "GET / HTTP/1.1\r\nX: "} {
		c, err := net.Dial("tcp", w.address("127.0.0.1:21000"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		write(t, c, []byte(sent))
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after %q the connection stays open", sent)
		}
	}
}

func TestHTTPIsProxied(t *testing.T) {
	ca := makeAuthority(t)
	seen := make(chan *http.Request, 1)
	r := startRegistry(t, ca, func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		w.Header().Set("Location", "/v2/app/blobs/uploads/1?_state=a")
		w.WriteHeader(http.StatusAccepted)
	})
	w := newWorld(t, ca.pem).start(r.address()).ready()
	status, header, _ := w.get(w.url()+"/v2/app/manifests/a%2Fb?ns=docker.io&x=1;y", func(r *http.Request) {
		r.Host = "127.0.0.1:31000"
		r.Header.Set("X-Forwarded-Proto", "http")
		r.Header.Set("X-Forwarded-For", "10.0.0.1")
		r.Header.Set("Authorization", "Basic abc")
	})
	got := <-seen
	if status != http.StatusAccepted || header.Get("Location") != "/v2/app/blobs/uploads/1?_state=a" {
		t.Errorf("status %d, headers %v", status, header)
	}
	if got.Host != "127.0.0.1:31000" || got.RequestURI != "/v2/app/manifests/a%2Fb?ns=docker.io&x=1;y" ||
		got.Header.Get("Authorization") != "Basic abc" {
		t.Errorf("the registry got %s %s %v", got.Host, got.RequestURI, got.Header)
	}
	for _, h := range []string{"X-Forwarded-Proto", "X-Forwarded-For", "X-Forwarded-Host", "Accept-Encoding"} {
		if got.Header.Get(h) != "" {
			t.Errorf("%s: %q reached the registry", h, got.Header.Get(h))
		}
	}
}

func TestAClientCannotChooseTheDestination(t *testing.T) {
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "the registry") })
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("a request was sent elsewhere")
	}))
	defer elsewhere.Close()
	address := elsewhere.Listener.Addr().String()
	t.Setenv("HTTPS_PROXY", elsewhere.URL)
	w := newWorld(t, ca.pem).start(r.address()).ready()
	for request, want := range map[string]string{
		"GET " + elsewhere.URL + "/v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n": "the registry",
		"GET /v2/ HTTP/1.1\r\nHost: " + address + "\r\nConnection: close\r\n\r\n":        "the registry",
		"CONNECT " + address + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":       "405",
	} {
		c, err := net.Dial("tcp", w.address("127.0.0.1:21000"))
		if err != nil {
			t.Fatal(err)
		}
		write(t, c, []byte(request))
		answer, err := io.ReadAll(c)
		c.Close()
		if err != nil || !strings.Contains(string(answer), want) {
			t.Errorf("%q: %q, %v", request, answer, err)
		}
	}
}

func TestHTTPIsRefusedWithoutATrustedRegistry(t *testing.T) {
	ca, other := makeAuthority(t), makeAuthority(t)
	r := startRegistry(t, other, func(http.ResponseWriter, *http.Request) {
		t.Error("a request reached an impostor of the registry")
	})
	for what, c := range map[string]struct {
		ca, target string
		status     int
	}{
		"no bundle yet":     {"", r.address(), 503},
		"another CA":        {ca.pem, r.address(), 502},
		"no registry":       {ca.pem, "127.0.0.1:1", 502},
		"a broken bundle":   {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", r.address(), 503},
		"a key, not a cert": {"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", r.address(), 503},
	} {
		w := newWorld(t, c.ca).start(c.target)
		if c.status == 502 {
			w.ready()
		}
		status, header, body := w.get(w.url() + "/v2/")
		if status != c.status || header.Get("Retry-After") != "5" ||
			!strings.HasPrefix(body, `{"errors":[{"code":"UNAVAILABLE","message":"`) {
			t.Errorf("%s: %d %v %s", what, status, header, body)
		}
		if strings.Contains(what, "a ") {
			w.until("the invalid bundle is reported", func() bool { return len(w.published(node.BadBundle)) == 1 })
		}
	}
}

func TestAnUnreachableRegistryIsReportedOnce(t *testing.T) {
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(http.ResponseWriter, *http.Request) {})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := l.Addr().String()
	l.Close()
	w := newWorld(t, ca.pem).start(dead).ready()
	for range 3 {
		if status, _, _ := w.get(w.url() + "/v2/"); status != 502 {
			t.Errorf("status %d", status)
		}
	}
	if l, err = net.Listen("tcp", dead); err != nil {
		t.Fatalf("the port was free a moment ago: %v", err)
	}
	defer l.Close()
	go r.Config.Serve(tls.NewListener(l, r.TLS))
	if status, _, _ := w.get(w.url() + "/v2/"); status != 200 {
		t.Errorf("status %d", status)
	}
	if a, b := len(w.reported(node.Unreachable)), len(w.reported(node.Reachable)); a != 1 || b != 1 {
		t.Errorf("reported %d and %d times", a, b)
	}
}

func TestTheNextAddressIsTried(t *testing.T) {
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(http.ResponseWriter, *http.Request) {})
	w := newWorld(t, ca.pem).start("127.0.0.1:1", r.address()).ready()
	if status, _, _ := w.get(w.url() + "/v2/"); status != 200 {
		t.Errorf("status %d", status)
	}
}

// TestAnotherReplicaIsTried checks that a connection to a replica that was killed, to which the Service leads until the
// endpoints are updated, is tried again at the same address, and that a name which is not found is not.
func TestAnotherReplicaIsTried(t *testing.T) {
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(http.ResponseWriter, *http.Request) {})
	var refused, unknown atomic.Int32
	w := newWorld(t, ca.pem)
	w.change = func(n *node.Node) {
		node.Connects(n, func(ctx context.Context, address string) (net.Conn, error) {
			if address == "unknown.test:443" {
				unknown.Add(1)
				return nil, &net.OpError{Op: "dial", Err: &net.DNSError{Name: "unknown.test", IsNotFound: true}}
			}
			if refused.Add(1) < 4 {
				return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", address)
		})
	}
	w.start("unknown.test:443", r.address()).ready()
	if status, _, _ := w.get(w.url() + "/v2/"); status != 200 {
		t.Errorf("status %d", status)
	}
	if a, b := refused.Load(), unknown.Load(); a != 4 || b != 1 {
		t.Errorf("%d attempts at the address, want 4; %d at the name, want 1", a, b)
	}
	if reported := w.reported(node.Unreachable); len(reported) != 0 {
		t.Errorf("reported: %s", reported)
	}
}

// zeros is a reader of this number of zeros.
type zeros int64

func (z *zeros) Read(b []byte) (int, error) {
	if *z == 0 {
		return 0, io.EOF
	}
	k := min(len(b), int(*z))
	clear(b[:k])
	*z -= zeros(k)
	return k, nil
}

func TestLargeBodiesStreamBothWays(t *testing.T) {
	const size = 64 << 20
	ca := makeAuthority(t)
	half := make(chan struct{})
	r := startRegistry(t, ca, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			z := zeros(size)
			io.Copy(w, &z)
			return
		}
		n, err := io.CopyN(io.Discard, r.Body, size/2)
		close(half) // the client sends the rest only now, so the proxy must not wait for all of it
		rest, err2 := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n+rest, err, err2)
	})
	w := newWorld(t, ca.pem).start(r.address()).ready()

	resp, err := http.Get(w.url() + "/v2/app/blobs/x")
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if n != size || err != nil {
		t.Errorf("down: %d bytes, %v", n, err)
	}

	body, feed := io.Pipe()
	go func() {
		z := zeros(size / 2)
		io.Copy(feed, &z)
		<-half
		z = size / 2
		io.Copy(feed, &z)
		feed.Close()
	}()
	resp, err = http.Post(w.url()+"/v2/app/blobs/uploads/", "application/octet-stream", body)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if want := fmt.Sprint(int64(size), error(nil), error(nil)); string(b) != want {
		t.Errorf("up: %q, want %q", b, want)
	}
}

func TestAnAnswerIsFlushedAsItComes(t *testing.T) {
	ca := makeAuthority(t)
	more := make(chan struct{})
	r := startRegistry(t, ca, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "one")
		http.NewResponseController(w).Flush()
		<-more
		fmt.Fprintln(w, "two")
	})
	w := newWorld(t, ca.pem).start(r.address()).ready()
	resp, err := http.Get(w.url() + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	one, _ := lines.ReadString('\n')
	close(more)
	two, _ := lines.ReadString('\n')
	if one != "one\n" || two != "two\n" {
		t.Errorf("%q %q", one, two)
	}
}

func TestANewCAIsFollowed(t *testing.T) {
	old, next := makeAuthority(t), makeAuthority(t)
	r := startRegistry(t, old, func(http.ResponseWriter, *http.Request) {})
	w := newWorld(t, old.pem, "etc/docker").start(r.address()).ready()
	<-w.watching
	r.mu.Lock()
	r.current = next
	r.mu.Unlock()
	r.CloseClientConnections()
	if status, _, _ := w.get(w.url() + "/v2/"); status != 502 {
		t.Errorf("with an unknown CA: %d", status)
	}
	w.publish("-----BEGIN CERTIFICATE-----\nnot one") // leaves the old one in use
	w.until("the invalid bundle is reported", func() bool { return len(w.reported(node.BadBundle)) == 1 })
	w.publish("# both\n" + old.pem + "\n" + next.pem)
	const file = "etc/docker/certs.d/" + name + "/ca.crt"
	w.until("the file has both", func() bool { return strings.Count(w.file(file), "BEGIN CERTIFICATE") == 2 })
	if status, _, _ := w.get(w.url() + "/v2/"); status != 200 {
		t.Errorf("with both CAs: %d", status)
	}
	want := mark + "; removed when Trow is uninstalled\n" + old.pem + next.pem
	if !x509.NewCertPool().AppendCertsFromPEM([]byte(w.file(file))) || w.file(file) != want {
		t.Errorf("the file: %s", w.file(file))
	}
}

func TestTheConfigMapIsListedAgainAfterErrors(t *testing.T) {
	ca := makeAuthority(t)
	w := newWorld(t, ca.pem)
	var mu sync.Mutex
	failures := 3
	w.PrependReactor("list", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		if failures--; failures >= 0 {
			return true, nil, apierrors.NewInternalError(errors.New("down"))
		}
		return false, nil, nil
	})
	w.start("127.0.0.1:1").ready()
	if got := w.reported(node.APIFailed); len(got) != 1 {
		t.Errorf("three failures with the same error were reported %d times", len(got))
	}
}

func TestProbesAreAnswered(t *testing.T) {
	w := newWorld(t, "").start("127.0.0.1:1")
	if status, _, _ := w.get(w.url() + "/livez"); status != 200 {
		t.Errorf("livez: %d", status)
	}
	if status, _, body := w.get(w.url() + "/healthz"); status != 503 || !strings.Contains(body, "trow-ca") {
		t.Errorf("healthz without a bundle: %d %s", status, body)
	}
	<-w.watching
	w.publish(makeAuthority(t).pem)
	w.ready()
	if status, _, _ := w.get(w.url() + "/healthz"); status != 200 {
		t.Errorf("healthz: %d", status)
	}
}

// peer is a connection from another machine.
type peer struct{ net.Conn }

func (peer) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1} }

type peers struct{ net.Listener }

func (p peers) Accept() (net.Conn, error) {
	c, err := p.Listener.Accept()
	return peer{c}, err
}

func TestOnlyTheNodeIsServed(t *testing.T) {
	w := newWorld(t, "")
	w.options.Listen = func(network, address string) (net.Listener, error) {
		l, err := w.listen(network, address)
		return peers{l}, err
	}
	w.start("127.0.0.1:1")
	c, err := net.Dial("tcp", w.address("127.0.0.1:21000"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write([]byte("GET /livez HTTP/1.0\r\n\r\n")) // may fail: the connection is closed
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("another machine got the answer %q, %v", b, err)
	}
}

func TestPortsInUse(t *testing.T) {
	for what, c := range map[string]struct {
		refused string
		fails   bool
		local   string
	}{
		"the node port":              {"127.0.0.1:31000 [::1]:31000", false, "127.0.0.1:21000"},
		"IPv4 of the local port":     {"127.0.0.1:21000 127.0.0.1:31000", false, "[::1]:21000"},
		"the local port":             {"127.0.0.1:21000 [::1]:21000", true, ""},
		"IPv6, on a host without it": {"[::1]:21000 [::1]:31000", false, "127.0.0.1:21000"},
	} {
		w := newWorld(t, makeAuthority(t).pem, "etc/containerd")
		w.refuse = func(address string) bool { return slices.Contains(strings.Fields(c.refused), address) }
		w.start("127.0.0.1:1")
		if c.fails {
			if err := <-w.ended; err == nil || !strings.Contains(err.Error(), "21000") {
				t.Errorf("%s: %v", what, err)
			}
			close(w.ended)
			continue
		}
		w.ready()
		hosts := w.file("etc/containerd/certs.d/" + name + "/hosts.toml")
		if len(w.reported(node.NotListens)) != 2 || !strings.Contains(hosts, `server = "https://`+c.local+`"`) {
			t.Errorf("%s: %v", what, w.all())
		}
	}
}

func TestTransfersFinishAtTheEnd(t *testing.T) {
	ca := makeAuthority(t)
	started, more := make(chan struct{}, 2), make(chan struct{})
	r := startRegistry(t, ca, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "one")
		http.NewResponseController(w).Flush()
		started <- struct{}{}
		<-more
		fmt.Fprintln(w, "two")
	})
	w := newWorld(t, ca.pem)
	w.start(r.address()).ready()
	silent, err := net.Dial("tcp", w.address("127.0.0.1:21000")) // an idle pipe must not delay the end
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	write(t, silent, hello)

	answer := make(chan string, 2)
	for _, scheme := range []string{"http", "https"} {
		go func() {
			client := &http.Client{Transport: &http.Transport{
				TLSClientConfig: &tls.Config{RootCAs: ca.pool, ServerName: "trow.kube-public.svc"}}}
			resp, err := client.Get(scheme + "://" + w.address("127.0.0.1:21000"))
			if err != nil {
				answer <- err.Error()
				return
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			answer <- fmt.Sprint(scheme, string(b), err)
		}()
	}
	for range 2 {
		select {
		case <-started:
		case a := <-answer:
			close(more)
			t.Fatalf("the transfer did not start: %s", a)
		}
	}
	w.cancel()
	w.until("it accepts no more connections", func() bool {
		c, err := net.Dial("tcp", w.address("127.0.0.1:21000"))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	close(more)
	for range 2 {
		if a := <-answer; !strings.Contains(a, "one\ntwo\n") || strings.Contains(a, "EOF") {
			t.Errorf("a transfer in progress got %q", a)
		}
	}
	start := time.Now()
	if err := w.stop(); err != nil || time.Since(start) > 2*time.Second {
		t.Errorf("Run returned %v after %v", err, time.Since(start))
	}
}

func TestFilesAreRemovedOnlyWhenUninstalled(t *testing.T) {
	resource := schema.GroupResource{Group: "apps", Resource: "daemonsets"}
	now := metav1.Now()
	answer := func(err error) func(*world) {
		return func(w *world) {
			w.PrependReactor("get", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, nil, err
			})
		}
	}
	set := func(change func(*appsv1.DaemonSet)) func(*world) {
		return func(w *world) {
			d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "trow-node", UID: "uid-1"}}
			change(d)
			w.PrependReactor("get", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, d, nil
			})
		}
	}
	for what, c := range map[string]struct {
		change func(*world)
		early  bool // whether it is so from the start
		gone   bool
	}{
		"the DaemonSet exists": {func(*world) {}, false, false},
		"it is deleted":        {answer(apierrors.NewNotFound(resource, "trow-node")), false, true},
		"it is being deleted":  {set(func(d *appsv1.DaemonSet) { d.DeletionTimestamp = &now }), false, true},
		"another one exists":   {set(func(d *appsv1.DaemonSet) { d.UID = "uid-2" }), false, true},
		"the rights are deleted": {answer(apierrors.NewForbidden(resource, "trow-node", errors.New("no"))),
			false, true},
		"the account is deleted":    {answer(apierrors.NewUnauthorized("no")), false, true},
		"the API server is broken":  {answer(apierrors.NewInternalError(errors.New("down"))), false, false},
		"the API server is down":    {answer(errors.New("dial tcp: connection refused")), false, false},
		"it answers too late":       {answer(context.DeadlineExceeded), false, false},
		"its UID was never learned": {answer(apierrors.NewInternalError(errors.New("down"))), true, false},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, makeAuthority(t).pem, "etc/containerd", "etc/docker", "etc/crio/crio.conf.d")
			foreign := "etc/docker/certs.d/" + name + "/client.cert"
			w.put(foreign, "mine")
			w.put("etc/containerd/config.toml", "")
			if c.early {
				c.change(w)
			}
			w.start("127.0.0.1:1").ready()
			if !c.early {
				w.until("it asks for its DaemonSet", func() bool {
					return slices.ContainsFunc(w.Actions(), func(a clienttesting.Action) bool {
						return a.Matches("get", "daemonsets")
					})
				})
				w.until("it is ready", func() bool { return len(w.published(node.NodeReady)) == 1 })
				c.change(w)
			}
			if err := w.stop(); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{
				"etc/containerd/certs.d/" + name + "/hosts.toml", "etc/containerd/certs.d/" + name + "/ca.crt",
				"etc/docker/certs.d/" + name + "/ca.crt", "etc/containers/certs.d/" + name + "/ca.crt",
				"etc/containers/registries.conf.d/50-trow.conf"} {
				if exists := w.file(file) != ""; exists == c.gone {
					t.Errorf("%s exists: %v", file, exists)
				}
			}
			_, err := os.Stat(filepath.Join(w.root, "etc/containerd/certs.d", name))
			if errors.Is(err, os.ErrNotExist) != c.gone {
				t.Errorf("the directory: %v", err)
			}
			if w.file(foreign) != "mine" {
				t.Error("the foreign file was removed")
			}
			if kept := len(w.reported(node.Kept)) == 1; kept == c.gone {
				t.Errorf("reported: %v", w.all())
			}
		})
	}
}

func TestEventsNameTheNodeAndTheDaemonSet(t *testing.T) {
	w := newWorld(t, makeAuthority(t).pem, "etc/docker").start("127.0.0.1:1").ready()
	w.until("an Event is created", func() bool { return len(w.published(node.NodeReady)) == 1 })
	e := w.published(node.NodeReady)[0]
	o := e.InvolvedObject
	if o.Kind != "DaemonSet" || o.Name != "trow-node" || o.Namespace != ns || o.APIVersion != "apps/v1" {
		t.Errorf("the Event is about %v", o)
	}
	if e.Namespace != ns || e.Related.Kind != "Node" || e.Related.Name != "node-1" || e.Type != "Normal" ||
		e.ReportingController != "trow-node" || e.ReportingInstance != "node-1" || e.Action == "" ||
		e.EventTime.IsZero() || !strings.Contains(e.Message, "node-1") || len(e.Message) > 1024 {
		t.Errorf("%+v", e)
	}
}

func TestTheSameEventIsCreatedAgainBeforeItExpires(t *testing.T) {
	n, err := node.New(newWorld(t, "").options)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	a, b := node.Event{Kind: node.Foreign, Message: "a"}, node.Event{Kind: node.Foreign, Message: "b"}
	for i, c := range []struct {
		e    node.Event
		at   time.Duration
		want bool
	}{{a, 0, true}, {a, time.Minute, false}, {b, time.Minute, true},
		{a, 49 * time.Minute, false}, {a, 50 * time.Minute, true}, {a, time.Hour, false}} {
		if got := node.Due(n, c.e, now.Add(c.at)); got != c.want {
			t.Errorf("%d: %v after %v: %v", i, c.e, c.at, got)
		}
	}
}

func TestARefusedEventIsNotFatal(t *testing.T) {
	w := newWorld(t, makeAuthority(t).pem, "etc/docker")
	w.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "", errors.New("no"))
	})
	w.start("127.0.0.1:1").ready()
	w.until("the refusal is reported", func() bool { return len(w.reported(node.APIFailed)) == 1 })
	if w.file("etc/docker/certs.d/"+name+"/ca.crt") == "" {
		t.Error("nothing was written")
	}
}

func TestNewRefusesInvalidOptions(t *testing.T) {
	good := newWorld(t, "").options
	for what, change := range map[string]func(*node.Options){
		"client is not set":         func(o *node.Options) { o.Client = nil },
		`namespace "A"`:             func(o *node.Options) { o.Namespace = "A" },
		`host "../etc"`:             func(o *node.Options) { o.Host = "../etc" },
		`host "a/b"`:                func(o *node.Options) { o.Host = "a/b" },
		`host ""`:                   func(o *node.Options) { o.Host = "" },
		`node name ""`:              func(o *node.Options) { o.NodeName = "" },
		"port 0":                    func(o *node.Options) { o.Port = 0 },
		"local port 65536":          func(o *node.Options) { o.LocalPort = 65536 },
		"local port 31000":          func(o *node.Options) { o.LocalPort = 31000 },
		`service "10.0.0.1" is not`: func(o *node.Options) { o.Service = "10.0.0.1" },
		`DaemonSet "a/b"`:           func(o *node.Options) { o.DaemonSet = "a/b" },
	} {
		o := good
		change(&o)
		if _, err := node.New(o); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	good.Service = "[fd00::1]:443"
	if _, err := node.New(good); err != nil {
		t.Error(err)
	}
}
