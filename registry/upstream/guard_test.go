package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// names is a DNS server: each answer takes the next of a name's addresses, and the last one stays.
type names struct {
	t     *testing.T
	mu    sync.Mutex
	all   map[string][]string
	asked map[string]int
}

// resolver returns what asks the server.
func (n *names) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe() // not a PacketConn, so messages have their length before them, as over TCP
		go n.serve(theirs)
		return ours, nil
	}}
}

func (n *names) serve(c net.Conn) {
	defer c.Close()
	for {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		query := make([]byte, int(length[0])<<8|int(length[1]))
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		answer := n.answer(query)
		if _, err := c.Write(append([]byte{byte(len(answer) >> 8), byte(len(answer))}, answer...)); err != nil {
			return
		}
	}
}

func (n *names) answer(query []byte) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		n.t.Error(err)
		return nil
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	q := m.Questions[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.all[name]
	if len(all) == 0 {
		m.RCode = dnsmessage.RCodeNameError
	} else {
		if q.Type == dnsmessage.TypeA {
			n.asked[name]++
		}
		addr := netip.MustParseAddr(all[min(max(n.asked[name]-1, 0), len(all)-1)])
		h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 0}
		switch {
		case addr.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: addr.As4()}}}
		case addr.Is6() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AAAAResource{AAAA: addr.As16()}}}
		}
	}
	b, err := m.Pack()
	if err != nil {
		n.t.Error(err)
	}
	return b
}

func TestAddressesThatAreRefused(t *testing.T) {
	g := &Guard{}
	g.Refuse(netip.MustParsePrefix("81.2.69.0/24"), netip.MustParsePrefix("2a00:1450::/32"))
	for _, text := range strings.Fields(`
		0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254
		168.63.129.16 169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.170 192.0.2.1 192.88.99.1
		192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255
		240.0.0.1 255.255.255.255 81.2.69.142
		:: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:0:10.0.0.1
		64:ff9b::10.0.0.1 64:ff9b::8.8.8.8 64:ff9b:1::1 64:ff9b:1:ffff::10.0.0.1 100::1 100:0:0:1::1
		2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1::1
		2002:a00:1::1 2002:808:808::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fdff::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1
		ff0e::1 2a00:1450:4001::1 4000::1 2606:4700::1%eth0`) {
		if err := g.Check("h", netip.MustParseAddr(text)); err == nil {
			t.Errorf("%s is not refused", text)
		}
	}
	if err := g.Check("h", netip.Addr{}); err == nil {
		t.Error("no address is not refused")
	}
	for _, text := range strings.Fields(
		`8.8.8.8 1.0.0.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255
		128.0.0.1 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 192.169.0.0
		198.17.255.255 198.20.0.0 223.255.255.255 ::ffff:8.8.8.8 2606:4700::1 2a03:2880::1 2001:200::1 2001:4860::1`) {
		if err := g.Check("h", netip.MustParseAddr(text)); err != nil {
			t.Error(err)
		}
	}
}

// get makes a request through the transport for hosts that are written, and returns what refused it.
func get(t *testing.T, g *Guard, w written, at string) (*http.Response, error) {
	t.Helper()
	transport := g.transport(w)
	t.Cleanup(transport.CloseIdleConnections)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err == nil {
		resp.Body.Close()
	}
	return resp, err
}

func named(hosts ...string) written {
	w := written{hosts: map[string]bool{}, services: map[string]bool{}}
	for _, h := range hosts {
		w.add(h)
	}
	return w
}

func guardWith(t *testing.T, all map[string][]string) (*Guard, *names) {
	t.Helper()
	n := &names{t: t, all: all, asked: map[string]int{}}
	g := &Guard{proxy: func(*url.URL) (*url.URL, error) { return nil, nil }}
	g.dialer.Resolver = n.resolver()
	return g, n
}

// TestTheGuardChecksWhatIsDialled: written hosts may have any address, others none of ours, however it is spelled, and
// whatever a look-up said before.
func TestTheGuardChecksWhatIsDialled(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port := ":" + at.Port()
	g, _ := guardWith(t, map[string][]string{"evil.example": {"127.0.0.1"}, "mapped.example": {"::ffff:127.0.0.1"},
		"own.example": {"127.0.0.1"}, "ula.example": {"fd00::1"}})
	for name, c := range map[string]struct {
		written written
		host    string
		refused bool
	}{
		"the endpoint itself":                     {named("127.0.0.1" + port), "127.0.0.1" + port, false},
		"a written name":                          {named("own.example" + port), "own.example" + port, false},
		"its other spelling":                      {named("own.example" + port), "OWN.Example." + port, false},
		"another port of this machine":            {named("own.example:1"), "own.example" + port, true},
		"a name of this machine without its port": {named("own.example"), "own.example" + port, true},
		"an address that is not written":          {named("own.example" + port), "127.0.0.1" + port, true},
		"a name that is not written":              {named("own.example" + port), "evil.example" + port, true},
		"a mapped address":                        {named(), "mapped.example" + port, true},
		"an address in decimal":                   {named(), "2130706433" + port, true},
		"an address in brackets":                  {named(), "[::ffff:127.0.0.1]" + port, true},
		"unspecified":                             {named(), "0.0.0.0" + port, true},
		"unspecified, IPv6":                       {named(), "[::]" + port, true},
		"localhost":                               {named(), "localhost" + port, true},
		"unique local":                            {named(), "ula.example" + port, true},
	} {
		_, err := get(t, g, c.written, "http://"+c.host+"/")
		refusal, refused := errors.AsType[*AddressError](err)
		if c.refused != (err != nil) || c.refused && !refused && !strings.Contains(name, "decimal") {
			t.Errorf("%s: %v", name, err)
		}
		if refused && !strings.Contains(refusal.Error(), "also:") {
			t.Errorf("%s: %v does not name the remedy", name, err)
		}
	}
}

// TestAddressesOfThisMachine are reached by the ports that are written alone, also those that are not loopback.
func TestAddressesOfThisMachine(t *testing.T) {
	g := &Guard{own: prefixes("10.1.2.3/32", "8.8.4.4/32", "2001:4860::1/128")}
	w := named("registry.lan:5000", "minio.lan")
	for _, c := range []struct {
		host, port, addr string
		refused          bool
	}{
		{"registry.lan", "5000", "10.1.2.3", false}, {"registry.lan", "5000", "127.0.0.1", false},
		{"registry.lan", "8443", "10.1.2.3", true}, {"registry.lan", "8443", "::ffff:10.1.2.3", true},
		{"registry.lan", "8443", "10.1.2.4", false}, {"registry.lan", "443", "8.8.4.4", true},
		{"minio.lan", "443", "10.1.2.3", true}, {"minio.lan", "443", "2001:4860::1", true},
		{"minio.lan", "443", "127.0.0.1", true}, {"minio.lan", "443", "::", true},
		{"minio.lan", "443", "10.9.9.9", false},
		{"cdn.example", "443", "8.8.4.4", true}, {"cdn.example", "443", "2001:4860::1", true},
		{"cdn.example", "443", "8.8.8.8", false},
	} {
		if err := g.permit(w, c.host, c.port, netip.MustParseAddr(c.addr)); (err != nil) != c.refused {
			t.Errorf("%s:%s at %s: %v", c.host, c.port, c.addr, err)
		}
	}
	if own := NewGuard(); !own.isOwn(netip.MustParseAddr("127.0.0.1")) || len(own.own) == 0 {
		t.Errorf("the addresses of this machine: %v", own.own)
	}
}

// TestANameThatChangesItsAddress between a look-up and the connection is refused all the same.
func TestANameThatChangesItsAddress(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the request arrived")
	}))
	defer server.Close()
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(server.URL, "http://"))
	g, n := guardWith(t, map[string][]string{"rebind.example": {"1.1.1.1", "127.0.0.1"}})
	addrs, err := g.dialer.Resolver.LookupNetIP(t.Context(), "ip4", "rebind.example")
	if err != nil || len(addrs) != 1 || g.Check("rebind.example", addrs[0]) != nil {
		t.Fatalf("the first look-up: %v, %v", addrs, err)
	}
	_, err = get(t, g, named(), "http://rebind.example:"+port+"/")
	if refusal, ok := errors.AsType[*AddressError](err); !ok || refusal.Addr != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("%v after %d look-ups", err, n.asked["rebind.example"])
	}
}

// TestRedirectsAreGuarded like every connection, however many there are before.
func TestRedirectsAreGuarded(t *testing.T) {
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the request arrived")
	}))
	defer inside.Close()
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(inside.URL, "http://"))
	to := ""
	outside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/" {
			http.Redirect(w, req, "/again", http.StatusFound)
			return
		}
		http.Redirect(w, req, to, http.StatusTemporaryRedirect)
	}))
	defer outside.Close()
	g, _ := guardWith(t, map[string][]string{"evil.example": {"127.0.0.1"}})
	own := strings.TrimPrefix(outside.URL, "http://")
	for _, to = range []string{inside.URL, "http://evil.example:" + port + "/x", "http://localhost:" + port,
		"http://[::1]:" + port, "http://169.254.169.254/latest/meta-data/"} {
		if _, err := get(t, g, named(own), outside.URL); err == nil {
			t.Errorf("%s was followed", to)
		} else if _, ok := errors.AsType[*AddressError](err); !ok {
			t.Errorf("%s: %v", to, err)
		}
	}
}

// TestAProxyDialsForUs: it may have any address, and what is plainly inside is not asked for.
func TestAProxyDialsForUs(t *testing.T) {
	var got []string
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		got = append(got, req.URL.Host)
	}))
	defer proxy.Close()
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("NO_PROXY", "direct.example")
	g := NewGuard()
	g.dialer.Resolver = (&names{t: t, all: map[string][]string{"direct.example": {"127.0.0.1"}},
		asked: map[string]int{}}).resolver()
	for host, refused := range map[string]bool{"registry.example": false, "169.254.169.254": true, "[::1]:5000": true,
		"direct.example:80": true} {
		_, err := get(t, g, named(), "http://"+host+"/")
		if _, is := errors.AsType[*AddressError](err); is != refused {
			t.Errorf("%s: %v", host, err)
		}
	}
	if len(got) != 1 || got[0] != "registry.example" {
		t.Errorf("the proxy was asked for %v", got)
	}
}
