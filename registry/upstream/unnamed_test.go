package upstream

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// TestHostsOfClientsKeepFewConnections: with upstream-any, clients choose the hosts, and each kept up to 16 idle
// connections for a minute, also when it was forgotten.
func TestHostsOfClientsKeepFewConnections(t *testing.T) {
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		if state == http.StateClosed {
			delete(open, c)
			return
		}
		open[c] = true
	}
	s.StartTLS()
	defer s.Close()
	u := New(Config{Any: true})
	var last *http.Transport
	for i := range maxAny + 50 {
		up, repo, err := u.Find(fmt.Sprintf("h%d.example.com", i), "a")
		if err != nil {
			t.Fatal(err)
		}
		if tr := up.endpoints[0].transport; tr != last {
			tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, s.Listener.Addr().String())
			}
			tr.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} // the address is that of the server above
			last = tr
			defer tr.CloseIdleConnections()
		}
		resp, err := up.ask(t.Context(), request{method: http.MethodHead, repo: repo, kind: "manifests", ref: "v"})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	stay := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(open)
	}
	for end := time.Now().Add(10 * time.Second); stay() > 64 && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // the server hears later that a connection was closed
	}
	if n := stay(); n > 64 {
		t.Errorf("%d connections stay open", n)
	}
}
