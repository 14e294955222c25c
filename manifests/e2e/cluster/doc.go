// Package cluster runs a real Kubernetes of one node for tests: etcd, all components of Kubernetes and containerd,
// as processes of this machine, where pods really run. It needs Linux, root and Debian's package manager, but no
// container engine, no virtual machine, no registry of images and, once everything is built, no network.
//
// # How a run goes
//
// [Main], called by TestMain, runs the test binary three times, one within the other; TROW_E2E_INSIDE says which it is:
//
//   - outside (unset): installs Debian packages that are missing, builds Kubernetes (kept in the user's cache directory)
//     and Trow, makes a scratch directory, and starts the next in new network, mount, PID and UTS namespaces. When that
//     one ends, for whatever reason, it removes the scratch directory and the cgroups of the run.
//   - init: is PID 1 of these namespaces. It covers what Kubernetes would change of this machine and reaps processes.
//     When it ends, the kernel kills whatever is left in the namespaces.
//   - 1: runs the tests. [Start] there makes the cluster.
//
// # What the machine notices
//
// Nothing but load: /etc, /var/lib and /var/log are overlays that keep what is written in the scratch directory, /run
// is empty and temporary, sysctls that kubelet writes are covered by files, and the only interfaces are those of the
// private network. Cgroups cannot be covered; they lie below one that is named like the scratch directory.
// A node's usual paths (/etc/containerd/certs.d, /etc/cni/net.d, /run/containerd, /var/lib/kubelet) are what they are
// on any node, so that pods with hostPath volumes find what they expect.
//
// # Settings
//
//   - TROW_E2E_KUBERNETES: the version (v1.34.4)
//   - TROW_E2E_PROXY_MODE: of kube-proxy, iptables or nftables (iptables)
//   - TROW_E2E_CONTAINERD: path of a containerd, 1.6 to 2.x, with its shim and ctr beside it if it has its own (Debian's)
//   - TROW_E2E_CONFIG_PATH: off leaves the certs.d directory unset in containerd's configuration
//   - TROW_E2E_KEEP: 1 leaves the scratch directory, with all logs
//
// The first build takes a quarter of an hour on two cores, which counts for go test's timeout: go test -timeout 60m.
//
// # What it has not
//
// There is no DNS: pods reach Services by their address. Images come from [Cluster.ImportImage]. The default route
// leads nowhere. There can be one cluster in a run.
package cluster
