package address_test

import (
	"net/http/httptest"
	"testing"

	"trow/registry/address"
)

func TestLocal(t *testing.T) {
	for _, c := range []struct {
		peer, host, header string
		want               bool
	}{
		{"127.0.0.1:4000", "localhost:8443", "", true},
		{"127.0.0.1:4000", "LOCALHOST", "", true},
		{"127.9.9.9:4000", "app.localhost:5000", "", true},
		{"[::1]:4000", "[::1]:8443", "", true},
		{"[::ffff:127.0.0.1]:4000", "127.0.0.1:8443", "", true},
		{"10.0.0.7:4000", "127.0.0.1:8443", "", false},      // a node port
		{"127.0.0.1:4000", "rebind.example", "", false},     // DNS rebinding
		{"127.0.0.1:4000", "localhost.example", "", false},  //
		{"127.0.0.1:4000", "evil-localhost", "", false},     //
		{"127.0.0.1:4000", "127.0.0.1.example", "", false},  //
		{"127.0.0.1:4000", "trow.kube-public", "", false},   //
		{"127.0.0.1:4000", "", "", false},                   // HTTP/1.0
		{"@", "localhost:8443", "", false},                  // a socket
		{"127.0.0.1:4000", "localhost", "Forwarded", false}, // proxies on this machine
		{"127.0.0.1:4000", "localhost", "X-Forwarded-For", false},
		{"127.0.0.1:4000", "localhost", "X-Forwarded-Proto", false},
		{"127.0.0.1:4000", "localhost", "X-Real-Ip", false},
		{"127.0.0.1:4000", "localhost", "Cf-Connecting-Ip", false},
		{"127.0.0.1:4000", "localhost", "X-Forwarded", false},
		{"127.0.0.1:4000", "localhost", "X-Original-Forwarded-For", false},
		{"127.0.0.1:4000", "localhost", "X-Envoy-External-Address", false},
		{"127.0.0.1:4000", "localhost", "X-Original-Url", false},
		{"127.0.0.1:4000", "localhost", "X_FORWARDED_FOR", false},
		{"127.0.0.1:4000", "localhost", "x_real_ip", false},
		{"127.0.0.1:4000", "localhost", "X-Request-Id", true},
		{"127.0.0.1:4000", "localhost", "Via", false},
	} {
		r := httptest.NewRequest("GET", "/v2/", nil)
		if r.RemoteAddr, r.Host = c.peer, c.host; c.header != "" {
			r.Header.Set(c.header, "x")
		}
		if got := address.Local(r); got != c.want {
			t.Errorf("peer %s, Host %q, %s: %v", c.peer, c.host, c.header, got)
		}
		r.URL.Scheme, r.URL.Host = "https", "localhost" // a whole URL in the request line
		if address.Local(r) {
			t.Errorf("peer %s, Host %q, a whole URL: local", c.peer, c.host)
		}
	}
}
