package manifests

import (
	"fmt"
	"slices"
	"strings"

	"trow/manifests/node"
)

// validateMirrors reports each invalid option about mirrors. What is valid has no character with a meaning in YAML or
// for a command line.
func (o *Options) validateMirrors(wrong func(flag, format string, args ...any)) {
	if o.DaemonJSON && !(o.Node && o.NodeDir == nil && slices.Contains(o.Runtimes, RuntimeDocker)) {
		wrong("write-daemon-json", "requires the DaemonSet with the directories of Docker: --runtimes docker, and "+
			"neither --no-node nor --node-dir")
	}
	if len(o.Mirrors) == 0 {
		return
	}
	m, err := node.ParseMirrors(o.Mirrors)
	if err != nil {
		wrong("mirrors", "%s", strings.TrimPrefix(err.Error(), "mirrors: "))
		return
	}
	for _, name := range o.names() {
		if slices.Contains(m.Hosts, name) {
			wrong("mirrors", "%s is this registry; leave it out", name)
		}
	}
	if !o.Node {
		wrong("mirrors", "requires the DaemonSet that listens on the nodes; leave out --no-node")
	}
	switch {
	case o.MirrorPort < 1 || o.MirrorPort > 65535:
		wrong("mirror-port", "%d is not a valid port; want 1 to 65535, and usually below 30000", o.MirrorPort)
	case o.MirrorPort == o.NodePort || o.MirrorPort == o.LocalPort:
		wrong("mirror-port", "%d is the node port or the local port; choose another below 30000", o.MirrorPort)
	case slices.Contains(nodePorts, o.MirrorPort):
		wrong("mirror-port", "%d is a port of Kubernetes on each node; choose another", o.MirrorPort)
	}
}

// MirrorArgs are the arguments of trow node for mirrors, as items of a YAML list; empty: there are none.
func (o *Options) MirrorArgs() (items string) {
	if o.DaemonJSON {
		items = ", --write-daemon-json"
	}
	m, err := node.ParseMirrors(o.Mirrors)
	if err != nil || len(o.Mirrors) == 0 {
		return items
	}
	hosts := m.Hosts
	if m.All {
		hosts = append([]string{node.MirrorAll}, hosts...)
	}
	// Hosts are ASCII, in which YAML's form of a string is that of Go.
	return items + fmt.Sprintf(", %q, --mirror-port=%d", "--mirrors="+strings.Join(hosts, ","), o.MirrorPort)
}

// MirrorSite returns the host at which Docker asks this registry for images of Docker Hub; empty if Docker Hub is not
// among the mirrors.
func (o *Options) MirrorSite() string {
	m, err := node.ParseMirrors(o.Mirrors)
	if err != nil || !m.Hub() {
		return ""
	}
	return node.MirrorSite(o.MirrorPort)
}
