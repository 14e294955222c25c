package address_test

import (
	"testing"

	"trow/registry/address"
)

func TestCanonicalHostsStayAsTheyAre(t *testing.T) {
	hosts := []string{"quay.io", "trow.kube-public:31000", "10.0.0.7:5000", "localhost", "docker.io", "foo:443"}
	if n := testing.AllocsPerRun(100, func() {
		for _, host := range hosts {
			if got, err := address.Host(host); got != host || err != nil {
				t.Errorf("%s is %s (%v)", host, got, err)
			}
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
