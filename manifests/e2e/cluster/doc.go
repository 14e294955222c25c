// Package cluster runs a real Kubernetes cluster of one node for tests: etcd, all components of Kubernetes and
// containerd, as processes of this machine, with real pods. It needs Linux, root and Debian's package manager, but no
// container engine, no virtual machine, no image registry and, once everything is built, no network.
//
// # How a run works
//
// [Main], called by TestMain, runs the test binary three times, each within the previous one; TROW_E2E_INSIDE says
// which one it is:
//
//   - outside (unset): installs missing Debian packages, builds Kubernetes (kept in the user's cache directory) and
//     Trow, creates a scratch directory, and starts the next process in new network, mount, PID and UTS namespaces.
//     When that process ends, for whatever reason, it removes the scratch directory and the cgroups of the run.
//   - init: is PID 1 of these namespaces. It covers what Kubernetes would change on this machine, and reaps processes.
//     When it ends, the kernel kills all processes in the namespaces.
//   - 1: runs the tests. [Start] creates the cluster there.
//
// # Effects on the machine
//
// None but load. /etc, /var/lib and /var/log are overlays whose changes go to the scratch directory, /run is empty and
// temporary, sysctls that kubelet writes are covered by files, and the only interfaces are those of the private
// network. Cgroups cannot be covered; they are below one with the name of the scratch directory. The usual paths of a
// node (/etc/containerd/certs.d, /etc/cni/net.d, /run/containerd, /var/lib/kubelet) have their usual meaning, so that
// hostPath volumes of pods work.
//
// # Settings
//
//   - TROW_E2E_KUBERNETES: the version of Kubernetes (v1.34.4)
//   - TROW_E2E_PROXY_MODE: the mode of kube-proxy, iptables or nftables (iptables)
//   - TROW_E2E_CONTAINERD: the path of a containerd, 1.6 to 2.x, with its shim and ctr in the same directory, if it has
//     its own (Debian's)
//   - TROW_E2E_CONFIG_PATH: off removes the certs.d directory from containerd's configuration
//   - TROW_E2E_KEEP: 1 keeps the scratch directory, with all logs
//
// The first build takes a quarter of an hour on two cores, which counts for the timeout of go test: go test -timeout
// 60m.
//
// # What it does not have
//
// There is no DNS: pods reach Services by their address; a test that needs names starts CoreDNS (../dns). Images
// come from [Cluster.ImportImage]. The default route leads nowhere. A run can have one cluster.
package cluster
