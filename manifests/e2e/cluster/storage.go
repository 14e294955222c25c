package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// makeVolumes creates a default StorageClass and some volumes, which are directories of the node. They belong to the
// user of the Trow image.
func (c *Cluster) makeVolumes(ctx context.Context) error {
	var b strings.Builder
	b.WriteString(`apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: local
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
`)
	for i := range c.options.Volumes {
		dir := filepath.Join(c.dir, "volumes", fmt.Sprint(i))
		if err := os.MkdirAll(dir, 0o770); err != nil {
			return err
		}
		if err := os.Chown(dir, 65532, 65532); err != nil {
			return err
		}
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: PersistentVolume
metadata: {name: local-%d}
spec:
  capacity: {storage: 100Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: local
  persistentVolumeReclaimPolicy: Retain
  local: {path: %q}
  nodeAffinity:
    required:
      nodeSelectorTerms:
        - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]
`, i, dir, NodeName)
	}
	return retry(ctx, func() error {
		out, err := c.kubectl(ctx, b.String(), "apply", "-f", "-")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}
