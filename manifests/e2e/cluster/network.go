package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// The network: the node is a bridge, to which pods are connected; kube-proxy implements Services.
const (
	NodeName  = "node-1"
	NodeIP    = "10.88.0.1"
	podSubnet = "10.88.0.0/24"
	firstPod  = "10.88.0.10"
	services  = "10.96.0.0/16"
	bridge    = "cni0"
)

// prepareNetwork creates the node's interfaces. The default route leads nowhere, but some programs need one.
func prepareNetwork() error {
	for _, args := range []string{
		"link set lo up",
		"link add " + bridge + " type bridge",
		"addr add " + NodeIP + "/24 dev " + bridge,
		"link set " + bridge + " up",
		"route replace default dev " + bridge,
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	// These apply to this network namespace only. With the second, an answer from pod to pod goes back through the
	// Service.
	for _, file := range []string{"net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"} {
		if err := os.WriteFile(filepath.Join("/proc/sys", file), []byte("1"), 0o644); err != nil {
			return fmt.Errorf("%w; for net/bridge load the kernel module br_netfilter", err)
		}
	}
	return nil
}

// cniConfig returns the configuration of the pods' network.
func cniConfig(dir string) string {
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": %q,
            "ranges": [[{"subnet": %q, "rangeStart": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`, bridge, filepath.Join(dir, "ipam"), podSubnet, firstPod)
}
