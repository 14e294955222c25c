package manifests

import (
	"slices"
	"strings"
)

// Values of Options.Runtimes.
const (
	RuntimeContainerd = "containerd"
	RuntimeDocker     = "docker"
	RuntimeCRIO       = "crio"
)

// secrets is a directory of the node that the DaemonSet never gets: it has the keys of the cluster.
const secrets = "/etc/kubernetes"

// mount is a directory of the node in the DaemonSet's pods.
type mount struct {
	Path     string
	ReadOnly bool
	Create   bool // it is created on nodes that do not have it, so that the pod starts there
	Hidden   bool // an empty directory is mounted in its place
}

// runtimeMounts are the directories of each runtime: what trow node writes, and read-only what it reads to find out
// whether the runtime exists and reads what is written.
var runtimeMounts = map[string][]mount{
	RuntimeContainerd: {
		{Path: "/etc/containerd", ReadOnly: true, Create: true},
		{Path: "/etc/containerd/certs.d", Create: true},
		// Not /var/lib/rancher as a whole: it has the keys of the cluster as well. Not certs.d alone: k3s and RKE2 may
		// create that directory anew, and a mount of the old one would not show the new one.
		{Path: "/var/lib/rancher/k3s/agent/etc/containerd", Create: true},
		{Path: "/var/lib/rancher/rke2/agent/etc/containerd", Create: true},
	},
	RuntimeDocker: {
		{Path: "/etc/docker/certs.d", Create: true},
	},
	RuntimeCRIO: {
		{Path: "/etc/crio", ReadOnly: true, Create: true},
		{Path: "/etc/containers/certs.d", Create: true},
		{Path: "/etc/containers/registries.conf.d", Create: true},
	},
}

// mirrorMounts are what trow node reads in addition where it makes mirrors: what administrators have configured. With
// Options.DaemonJSON it may write to that of Docker.
var mirrorMounts = map[string]mount{
	RuntimeDocker: {Path: "/etc/docker", ReadOnly: true, Create: true},
	RuntimeCRIO:   {Path: "/etc/containers", ReadOnly: true, Create: true},
}

// mounts returns the directories of the nodes that the DaemonSet gets.
func (o *Options) mounts() (all []mount) {
	if o.NodeDir == nil {
		for i, r := range o.Runtimes {
			if slices.Contains(o.Runtimes[:i], r) {
				continue
			}
			if m, ok := mirrorMounts[r]; ok && (len(o.Mirrors) > 0 || o.DaemonJSON && r == RuntimeDocker) {
				m.ReadOnly = !(o.DaemonJSON && r == RuntimeDocker)
				all = append(all, m) // before those in it
			}
			all = append(all, runtimeMounts[r]...)
		}
		return all
	}
	hide := false
	for _, dir := range o.NodeDir {
		all = append(all, mount{Path: dir})
		hide = hide || strings.HasPrefix(secrets, dir+"/")
	}
	if hide {
		all = append(all, mount{Path: secrets, ReadOnly: true, Hidden: true})
	}
	return all
}

// written lists the directories that can be written to.
func written(all []mount) string {
	var paths []string
	for _, m := range all {
		if !m.ReadOnly {
			paths = append(paths, m.Path)
		}
	}
	return strings.Join(paths, ",\n#   ")
}
