package cluster_test

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"sigs.k8s.io/yaml"

	"trow/admission/cluster"
)

var update = flag.Bool("update", false, "write the golden files")

// TestTheConfigurationIsAsDocumented compares the configuration that enforces with testdata/webhook.golden.yaml.
func TestTheConfigurationIsAsDocumented(t *testing.T) {
	const file = "testdata/webhook.golden.yaml"
	bubble(t, func(t *testing.T) {
		w := newWorld(t, cluster.Enforce)
		w.options.ExemptNamespaces = []string{"calico-system"}
		w.start(t)
		w.logged(t)
		v := w.configuration(t)
		v.ResourceVersion, v.ManagedFields = "", nil
		got, err := yaml.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v; run go test -run %s -update and look at the difference:\n%s", err, t.Name(), got)
		}
	})
}
