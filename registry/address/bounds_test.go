package address

import "testing"

func TestHostsAndPortsAreSplit(t *testing.T) {
	for s, want := range map[string][2]string{
		"a": {"a", ""}, "a:1": {"a", "1"}, "ab:": {"ab", ""}, ":1": {"", "1"}, "[::1]": {"[::1]", ""},
		"[::1]:2": {"[::1]", "2"},
	} {
		if host, port := SplitPort(s); host != want[0] || port != want[1] {
			t.Errorf("%q: %q and %q, want %q", s, host, port, want)
		}
	}
}

// TestAddressesOfTheCLibrary: what a denial suggests instead is what the C library takes the text for.
func TestAddressesOfTheCLibrary(t *testing.T) {
	for s, want := range map[string]string{
		"0": "0.0.0.0", "0.0": "0.0.0.0", "00": "0.0.0.0", "0x": "0.0.0.0", "1": "0.0.0.1", "010": "0.0.0.8",
		"127.1": "127.0.0.1", "1.2.3": "1.2.0.3", "1.2.3.4": "1.2.3.4", "1.2.3.255": "1.2.3.255",
		"1.2.65535":  "1.2.255.255",
		"1.16777215": "1.255.255.255", "4294967295": "255.255.255.255", "255.0xff": "255.0.0.255",
		"0377.1":    "255.0.0.1",
		"1.2.3.256": "", "1.2.65536": "", "1.16777216": "", "4294967296": "", "256.1": "", "1.256.1": "",
		"1.2.3.4.5": "",
		"":          "", ".": "", "1.": "", "08": "", "0x1g": "", "18446744073709551616": "", "a": "",
	} {
		got, ok := parseInetAton(s)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q: %v, %v, want %q", s, got, ok, want)
		}
	}
}
