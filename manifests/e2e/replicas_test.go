package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// TestTheAPIServerTakesTheManifestsOfReplicas as they are: each object passes its validation and its admission plugins,
// also in a namespace whose pods must be restricted. Nothing is created.
func TestTheAPIServerTakesTheManifestsOfReplicas(t *testing.T) {
	c := start(t)
	const bucket = "--s3=s3://images/trow?endpoint=https://s3.example.org&region=eu-west-1"
	for name, flags := range map[string][]string{
		"with an etcd": {"--replicas=3", "--max-replicas=9", "--with-etcd", bucket, "--s3-secret=s3", "--login"},
		"an etcd of yours": {"--replicas=3", "--etcd=etcds://etcd.example.org:2379/trow",
			"--etcd-tls-secret=e", bucket},
		"S3 alone":     {bucket, "--s3-ca-secret=ca"},
		"certificates": {"--etcd-secrets"},
	} {
		file := filepath.Join(t.TempDir(), "trow.yaml")
		text := trow(t, c, append([]string{"manifest"}, flags...)...)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out := c.Kubectl(t, "apply", "--dry-run=server", "--validate=strict", "--filename", file)
		t.Logf("%s:\n%s", name, out)
	}
}
