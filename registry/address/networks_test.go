package address_test

import (
	"strings"
	"testing"

	"trow/registry/address"
)

func TestNetworksOfASetting(t *testing.T) {
	n, err := address.ParseNetworks([]string{"10.1.0.0/16", "192.0.2.7", "2001:db8:1:2::/96"})
	if err != nil {
		t.Fatal(err)
	}
	for peer, want := range map[string]bool{
		"10.1.255.3:4711": true, "[::ffff:10.1.0.1]:1": true, "10.2.0.1:1": false,
		"192.0.2.7:1": true, "192.0.2.8:1": false,
		"[2001:db8:1:2::9]:1": true, "[2001:db8:1:2::9%eth0]:1": true,
		"[2001:db8:1:2:1::9]:1": false,                               // in the same /64
		"@":                     false, "": false, "10.1.0.1": false, // not those of a connection over TCP
	} {
		if n.Contain(peer) != want {
			t.Errorf("%q: want %t", peer, want)
		}
	}
	if n, err := address.ParseNetworks(nil); err != nil || n.Contain("10.1.0.1:1") {
		t.Errorf("no networks: %v, %v", n, err)
	}
	for _, text := range []string{"", "10.0.0.0/33", "proxy", "10.0.0.1:80", "fe80::1%eth0", "::ffff:10.0.0.1",
		"10.0.0.*"} {
		if n, err := address.ParseNetworks([]string{"10.0.0.1", text}); err == nil || !strings.Contains(err.Error(),
			"want 10.0.0.7 or 10.0.0.0/8") {
			t.Errorf("%q: %v, %v", text, n, err)
		}
	}
}
