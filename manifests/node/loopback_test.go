package node_test

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"trow/manifests/node"
)

// onPort makes trow node use a port of the machine as the node port. Its other ports are free ones, as in other tests.
func (w *world) onPort(address string) {
	_, port, _ := net.SplitHostPort(address)
	w.options.Port, _ = strconv.Atoi(port)
	w.options.LocalPort = 21000
	w.options.Listen = func(network, address string) (net.Listener, error) {
		if strings.HasSuffix(address, ":"+port) {
			return net.Listen(network, address)
		}
		return w.listen(network, address)
	}
}

// TestAForeignListenerOnLoopbackIsReported: a process that listens on the node port first serves what it likes for
// images of 127.0.0.1:31000. The node is not ready, until it is gone; then trow node listens itself.
func TestAForeignListenerOnLoopbackIsReported(t *testing.T) {
	serve := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "a false registry") })
	for what, start := range map[string]func(*httptest.Server){
		"HTTP":                      (*httptest.Server).Start,
		"TLS that is not of our CA": (*httptest.Server).StartTLS,
	} {
		t.Run(what, func(t *testing.T) {
			ca := makeAuthority(t)
			r := startRegistry(t, ca, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "the registry") })
			foreign := httptest.NewUnstartedServer(serve)
			foreign.Config.ErrorLog = log.New(io.Discard, "", 0)
			start(foreign)
			defer foreign.Close()
			address := foreign.Listener.Addr().String()
			w := newWorld(t, ca.pem, "etc/docker")
			w.onPort(address)
			w.start(r.address())
			w.until("an Event", func() bool { return len(w.published(node.Taken)) == 1 })
			e := w.published(node.Taken)[0]
			if e.Reason != "LoopbackTaken" || e.Type != "Warning" || !strings.Contains(e.Message, address) ||
				!strings.Contains(e.Message, "ss -ltnp") {
				t.Errorf("the Event is %+v", e)
			}
			if err := w.n.Ready(); err == nil || !strings.Contains(err.Error(), address+" is taken") {
				t.Errorf("ready: %v", err)
			}
			if status, _, body := w.get(w.url() + "/healthz"); status != 503 || !strings.Contains(body, address) {
				t.Errorf("the probe: %d %s", status, body)
			}
			w.until("the files of the other name", func() bool { return len(w.reported(node.NodeReady)) > 0 })
			foreign.Close()
			w.ready()
			if _, _, body := w.get("http://" + address + "/v2/"); body != "the registry" {
				t.Errorf("after that %s is %q", address, body)
			}
			if n := len(w.reported(node.Taken)); n != 1 {
				t.Errorf("reported %d times", n)
			}
		})
	}
}

// TestTheNodePortOnLoopbackIsNotForeign: a listener that leads to the registry is the node port.
func TestTheNodePortOnLoopbackIsNotForeign(t *testing.T) {
	ca := makeAuthority(t)
	r := startRegistry(t, ca, func(http.ResponseWriter, *http.Request) {})
	w := newWorld(t, ca.pem)
	w.onPort(r.address())
	w.start(r.address()).ready()
	if len(w.reported(node.Taken)) > 0 || len(w.reported(node.NotListens)) == 0 {
		t.Errorf("%v", w.all())
	}
}

// TestAnAddressThatDoesNotExistIsNotTaken: a node without IPv6.
func TestAnAddressThatDoesNotExistIsNotTaken(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, makeAuthority(t).pem)
	w.onPort(free.Addr().String())
	free.Close()
	listen := w.options.Listen
	w.options.Listen = func(network, address string) (net.Listener, error) {
		if network == "tcp6" {
			return nil, &net.OpError{Op: "listen", Err: syscall.EADDRNOTAVAIL}
		}
		return listen(network, address)
	}
	w.start("127.0.0.1:1").ready()
	if len(w.reported(node.Taken)) > 0 || len(w.reported(node.NotListens)) != 2 {
		t.Errorf("%v", w.all())
	}
}
