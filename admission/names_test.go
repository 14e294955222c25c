package admission_test

import (
	"testing"

	"trow/admission"
)

// TestLoopbackNamesAreExplained: in a cluster, one line says what they mean. It does not make the server look ill.
func TestLoopbackNamesAreExplained(t *testing.T) {
	const line = "loopback names are whatever listens on the node: "
	for _, c := range []struct {
		names     []string
		inCluster bool
		want      string
	}{
		{[]string{"trow.kube-public:31000", "LOCALHOST:31000", "127.0.0.1:31000", "127.9.9.9", "[::1]:31000", "[::1]"},
			true,
			line + "LOCALHOST:31000, 127.0.0.1:31000, 127.9.9.9, [::1]:31000, [::1] (setting names)"},
		{[]string{"trow.kube-public:31000", "10.0.0.1:31000", "localhost.example:31000"}, true, ""},
		{[]string{"127.0.0.1:31000"}, false, ""},
		{nil, true, ""},
	} {
		ok, text := (&admission.PolicyOptions{Names: c.names}).LoopbackCheck(c.inCluster)()
		if !ok || text != c.want {
			t.Errorf("%v: %v %q, want %q", c.names, ok, text, c.want)
		}
	}
}

func TestTheHostToPushTo(t *testing.T) {
	o := admission.PolicyOptions{Names: []string{host, "trow:31000"}}
	if inside, outside := o.Host(8443, true), o.Host(8443, false); inside != host || outside != "localhost:8443" {
		t.Errorf("in a cluster %s, elsewhere %s", inside, outside)
	}
}
