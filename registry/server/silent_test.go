package server_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"trow/registry/server"
)

// dialFrom opens a TCP connection from a loopback address.
func dialFrom(t *testing.T, from, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
	c, err := d.Dial("tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// clientFrom returns a client whose connections come from a loopback address.
func clientFrom(t *testing.T, from string) *http.Client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DialContext: d.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 5 * time.Second}
}

// silences are ways to hold a connection without a request.
var silences = map[string]func(t *testing.T, from, to string){
	"nothing sent": func(t *testing.T, from, to string) { dialFrom(t, from, to) },
	"half a handshake": func(t *testing.T, from, to string) {
		fmt.Fprint(dialFrom(t, from, to), "\x16\x03\x01\x02\x00\x01")
	},
	"half the headers": func(t *testing.T, from, to string) {
		c := tls.Client(dialFrom(t, from, to), &tls.Config{InsecureSkipVerify: true})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := c.HandshakeContext(ctx); err != nil {
			return // it has given way to a later one
		}
		fmt.Fprint(c, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX: ")
	},
}

// TestSilentConnectionsGiveWay: whatever silent connections have sent, webhook and probes are answered at once, and
// other requests are served. Behind a node port the others have the same address.
func TestSilentConnectionsGiveWay(t *testing.T) {
	t.Parallel()
	for name, hold := range silences {
		for _, other := range []string{"127.0.0.1", "127.0.0.2"} {
			t.Run(name+", client "+other, func(t *testing.T) {
				t.Parallel()
				s := start(t, modes[1], server.Options{Handler: newGate(), MaxConnections: 8,
					Vital: []string{"/validate"}})
				for range 200 { // more than the limit and the surplus
					hold(t, "127.0.0.1", s.addr)
				}
				for _, path := range []string{"/validate", "/healthz", "/v2/"} {
					begin := time.Now()
					resp, text := get(t, clientFrom(t, other), s.url+path)
					if took := time.Since(begin); resp.StatusCode != 200 || text != "ok" || took > time.Second {
						t.Errorf("%s: %d %q after %s", path, resp.StatusCode, text, took)
					}
				}
			})
		}
	}
}

// TestSilentConnectionsHoldNoSurplusPlaces: while all places are taken by requests under way, silent connections on the
// surplus places, and requests there whose bodies do not arrive, do not keep out the webhook.
func TestSilentConnectionsHoldNoSurplusPlaces(t *testing.T) {
	t.Parallel()
	g := newGate()
	read := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		g.ServeHTTP(w, r)
	})
	s := start(t, modes[0], server.Options{Handler: read, MaxConnections: 2, Vital: []string{"/validate"}})
	var busy sync.WaitGroup
	for range 2 {
		c := clientFrom(t, "127.0.0.3")
		busy.Go(func() {
			if resp, text := get(t, c, s.url+"/v2/slow"); resp.StatusCode != 200 || text != "ok" {
				t.Errorf("a request under way: %d %q", resp.StatusCode, text)
			}
		})
		<-g.arrived
	}
	vital := func(what string) {
		t.Helper()
		begin := time.Now()
		resp, _ := get(t, clientFrom(t, "127.0.0.1"), s.url+"/validate")
		if took := time.Since(begin); resp.StatusCode != 200 || took > time.Second {
			t.Errorf("%s: %d after %s", what, resp.StatusCode, took)
		}
	}
	for range 200 {
		dialFrom(t, "127.0.0.1", s.addr)
	}
	vital("silent ones")
	for range 200 {
		fmt.Fprint(dialFrom(t, "127.0.0.1", s.addr), "POST /validate HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
	}
	time.Sleep(2100 * time.Millisecond) // surplusTime
	vital("half bodies")
	close(g.open)
	busy.Wait()
}

// TestTheAddressThatHoldsMostGivesWay: of silent connections those of the address that holds most give way, so that one
// client does not cut off the handshakes of others.
func TestTheAddressThatHoldsMostGivesWay(t *testing.T) {
	t.Parallel()
	s := start(t, modes[0], server.Options{Handler: newGate(), MaxConnections: 4})
	patient := dialFrom(t, "127.0.0.2", s.addr)
	for range 50 {
		dialFrom(t, "127.0.0.1", s.addr)
	}
	fmt.Fprint(patient, "GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	patient.SetReadDeadline(time.Now().Add(5 * time.Second))
	if answer, err := io.ReadAll(patient); err != nil || len(answer) < 15 || string(answer[:15]) != "HTTP/1.1 200 OK" {
		t.Errorf("%q, %v", answer, err)
	}
}
