package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// The directories of containerd, unless a distribution of Kubernetes brings its own containerd.
const (
	containerdName   = "containerd"
	containerdParent = "etc/containerd"
	containerdCerts  = "etc/containerd/certs.d"
	containerdConfig = "etc/containerd/config.toml"
)

// distributions bring their own containerd, which they configure to read certs.d.
var distributions = []struct{ name, parent string }{
	{"k3s", "var/lib/rancher/k3s/agent/etc/containerd"},
	{"RKE2", "var/lib/rancher/rke2/agent/etc/containerd"},
	{"MicroK8s", "var/snap/microk8s/current/args"},
}

const (
	crioParent   = "etc/crio"
	dockerParent = "etc/docker"
)

// runs reports whether the node has the runtime of a directory. The mount of a directory creates it on each node, and
// certs.d in it, so that only something else in it shows the runtime. Docker needs no file of its own: its directory is
// mounted only where the user has asked for that. containerd does not need one either, and then is the runtime if no
// other is. Error: it cannot be found out, for example because a link leads out of root.
func runs(root *os.Root, parent string) (bool, error) {
	there, err := isDir(root, parent)
	switch {
	case err != nil || !there || parent == dockerParent:
		return there, err
	case parent != containerdParent:
		return hasOwn(root, parent)
	}
	if _, err := root.Lstat(containerdConfig); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	for _, other := range others() {
		if there, err := isDir(root, other); there && err == nil {
			if has, err := hasOwn(root, other); has || err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// others are the directories of runtimes that serve the kubelet instead of the plain containerd.
func others() []string {
	all := []string{crioParent}
	for _, d := range distributions {
		all = append(all, d.parent)
	}
	return all
}

// hasOwn reports whether a directory has something beside certs.d.
func hasOwn(root *os.Root, dir string) (bool, error) {
	entries, err := fs.ReadDir(root.FS(), dir)
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != "certs.d" }), err
}

// places returns the places of all runtimes that a node may have. local is host:port of the local port.
func (n *Node) places(local string, bundle []byte) []place {
	ca := file{name: "ca.crt", content: string(bundle)}
	containerd := func(runtime, parent string) place {
		dir := path.Join(parent, "certs.d", n.name())
		return place{runtime: runtime, parent: parent, dir: dir, named: true, alone: true,
			files: []file{ca, {name: "hosts.toml", content: hostsTOML(local, "/"+dir+"/ca.crt")}}}
	}
	all := []place{containerd(containerdName, containerdParent)}
	for _, d := range distributions {
		all = append(all, containerd(d.name, d.parent))
	}
	if n.elsewhere != "" {
		dir := path.Join(n.elsewhere, n.name())
		all = append(all, place{runtime: containerdName, parent: containerdParent, dir: dir, named: true, alone: true,
			files: []file{ca, {name: "hosts.toml", content: hostsTOML(local, "/"+dir+"/ca.crt")}}})
	}
	certs := func(runtime, parent, dir, name string) place {
		return place{runtime: runtime, parent: parent, dir: path.Join(dir, name), named: true, files: []file{ca}}
	}
	all = append(all, certs("Docker", dockerParent, "etc/docker/certs.d", n.name()))
	loopback := local[:strings.LastIndex(local, ":")]
	for _, name := range []string{n.name(), local, fmt.Sprintf("%s:%d", loopback, n.o.Port)} {
		all = append(all, certs("CRI-O", crioParent, "etc/containers/certs.d", name))
	}
	return append(all, place{runtime: "CRI-O", parent: crioParent, dir: "etc/containers/registries.conf.d",
		files:  []file{{name: "50-trow.conf", content: registriesConf(n.name(), local)}},
		reload: fmt.Sprintf("run systemctl reload crio, so that CRI-O finds %s", n.name())})
}

// hostsTOML returns containerd's configuration of a name. The host table is for containerd 1.6, which refuses a file
// without one. The server key keeps each version from connecting to the name itself, which the node cannot resolve.
// When the host does not have an image, containerd asks the server as well; without the CA there, it would report a
// wrong certificate instead of a missing image.
func hostsTOML(local, ca string) string {
	return fmt.Sprintf(`server = "https://%[1]s"
ca = %[2]q

[host."https://%[1]s"]
  capabilities = ["pull", "resolve"]
  ca = %[2]q
`, local, ca)
}

// registriesConf returns CRI-O's configuration of a name (containers-registries.conf.d(5)).
func registriesConf(name, local string) string {
	return fmt.Sprintf(`[[registry]]
prefix = %[1]q
location = %[1]q

[[registry.mirror]]
location = %[2]q
`, name, local)
}

// checkContainerd returns what an administrator has to add to containerd's configuration; nil: nothing, or the kubelet
// uses another runtime.
func (n *Node) checkContainerd(root *os.Root) error {
	if n.o.RuntimeVersion != "" && !strings.HasPrefix(n.o.RuntimeVersion, "containerd://") {
		return nil
	}
	for _, other := range others() {
		if there, err := runs(root, other); there || err != nil {
			return nil
		}
	}
	if there, err := runs(root, containerdParent); !there {
		return err
	}
	c, err := readConfig(root)
	if err != nil {
		return fmt.Errorf("cannot parse /%s to find out whether containerd reads /%s: %w", containerdConfig,
			containerdCerts, err)
	}
	why := c.missing(parseVersion(n.o.RuntimeVersion))
	if n.elsewhere != "" && n.elsewhere == c.single() {
		why = ""
	}
	switch {
	case why == "" && len(c.unseen) > 0:
		return uncheckedError{c.unseen}
	case why == "":
		return nil
	case c.absent:
		why = fmt.Sprintf("there is no /%s (if containerd is not the runtime of this node, make the manifest with "+
			"trow manifest --runtimes); %s", containerdConfig, why)
	case len(c.unseen) > 0:
		why += " (" + uncheckedError{c.unseen}.Error() + ")"
	}
	use := n.name() + "/… names"
	if n.mirror != nil {
		use += " and mirrors"
	}
	return fmt.Errorf("%s. To use %s, add these two lines to /%s, then restart containerd:\n%s\n"+
		"Or use 127.0.0.1:%d/… names, which need no such lines: make the manifest with trow manifest --loopback-names",
		why, use, containerdConfig, c.lines(), n.o.Port)
}

// uncheckedError names the imports of containerd's configuration that this process cannot see.
type uncheckedError struct{ imports []string }

func (e uncheckedError) Error() string {
	return fmt.Sprintf("cannot be checked: the imports %s of /%s, which are outside of /%s; make sure that they do "+
		"not set another config_path", strings.Join(e.imports, ", "), containerdConfig, containerdParent)
}

// criConfig is what containerd's configuration says about registries.
type criConfig struct {
	version int64  // of the format
	path    string // config_path
	legacy  bool   // whether mirrors are set in the configuration itself, which excludes config_path
	local   bool   // whether the plugin pulls images itself, not the transfer service
	off     bool   // whether the plugin that serves the kubelet is disabled

	absent bool     // whether there is no configuration
	unseen []string // imports that are not mounted
}

// readConfig reads containerd's configuration and the files that it imports, as containerd does: the last file with a
// setting wins. A missing file counts as empty.
func readConfig(root *os.Root) (criConfig, error) {
	c := criConfig{}
	var main struct {
		Imports []string `toml:"imports"`
	}
	b, err := root.ReadFile(containerdConfig)
	if errors.Is(err, fs.ErrNotExist) {
		c.version, c.absent = 2, true // each version of containerd understands version 2
		return c, nil
	}
	if err == nil {
		err = toml.Unmarshal(b, &main)
	}
	if err == nil {
		err = c.merge(b)
	}
	if err != nil {
		return c, err
	}
	for _, pattern := range main.Imports {
		if !path.IsAbs(pattern) {
			pattern = path.Join("/", containerdParent, pattern)
		}
		if outside(root, pattern) {
			c.unseen = append(c.unseen, fmt.Sprintf("%.100q", pattern))
			continue
		}
		names, err := fs.Glob(root.FS(), strings.TrimPrefix(path.Clean(pattern), "/"))
		if err != nil {
			return c, err
		}
		for _, name := range names {
			b, err := root.ReadFile(name)
			if err == nil {
				err = c.merge(b)
			}
			if err != nil {
				return c, fmt.Errorf("/%s: %w", name, err)
			}
		}
	}
	return c, nil
}

// outside reports whether an import is in a directory that is not mounted. It cannot be known what is there.
func outside(root *os.Root, pattern string) bool {
	dir := strings.TrimPrefix(path.Dir(path.Clean(pattern)), "/")
	if dir == containerdParent || strings.HasPrefix(dir, containerdParent+"/") {
		return false
	}
	if strings.ContainsAny(dir, `*?[\`) {
		return true
	}
	there, err := isDir(root, dir)
	return !there || err != nil
}

// merge takes over the settings of one file.
func (c *criConfig) merge(b []byte) error {
	var all map[string]any
	if err := toml.Unmarshal(b, &all); err != nil {
		return err
	}
	version, ok := all["version"].(int64)
	if !ok {
		version = 1
	}
	if c.version == 0 {
		c.version = version
	}
	disabled, _ := all["disabled_plugins"].([]any)
	c.off = c.off || slices.Contains(disabled, any("cri")) ||
		slices.Contains(disabled, any("io.containerd.grpc.v1.cri"))

	cri := table(all, "plugins", pluginOf(version))
	registry := table(cri, "registry")
	if p, ok := registry["config_path"].(string); ok {
		c.path = p
	}
	for _, key := range []string{"mirrors", "configs", "auths"} {
		c.legacy = c.legacy || len(table(registry, key)) > 0
	}
	// Each of these settings makes containerd pull images with the plugin. Version 2 has some of them in a sub-table.
	for _, t := range []map[string]any{cri, table(cri, "containerd")} {
		downloads, set := t["max_concurrent_downloads"].(int64)
		c.local = c.local || t["use_local_image_pull"] == true || t["discard_unpacked_layers"] == true ||
			t["image_pull_with_sync_fs"] == true || set && downloads != 3
	}
	return nil
}

// pluginOf returns the name of the plugin that pulls images, by the version of the format.
func pluginOf(version int64) string {
	switch {
	case version >= 3:
		return "io.containerd.cri.v1.images"
	case version == 2:
		return "io.containerd.grpc.v1.cri"
	}
	return "cri"
}

// table descends a tree of tables; a missing table is empty.
func table(t map[string]any, keys ...string) map[string]any {
	for _, key := range keys {
		t, _ = t[key].(map[string]any)
	}
	return t
}

// release is a version of containerd, major and minor; zero: unknown.
type release [2]int

func (r release) known() bool { return r != release{} }

func (r release) before(major, minor int) bool {
	return r[0] < major || r[0] == major && r[1] < minor
}

// parseVersion parses the version in a node's status: containerd://1.7.27-k3s1.
func parseVersion(s string) (r release) {
	if s, ok := strings.CutPrefix(s, "containerd://"); ok {
		if _, err := fmt.Sscanf(strings.TrimPrefix(s, "v"), "%d.%d", &r[0], &r[1]); err != nil {
			return release{}
		}
	}
	return r
}

// missing returns why containerd does not read our directory, "" if it does.
//
// From 2.1 on, the transfer service pulls images, unless some settings prevent that. It takes a list of directories for
// the name of one directory, up to 2.4 at least. From 2.2 on, the default of config_path is a list.
func (c criConfig) missing(r release) string {
	ours := "/" + containerdCerts
	dirs := strings.Split(c.path, ":")
	if c.off {
		return ""
	}
	switch listed := slices.ContainsFunc(dirs, func(d string) bool { return path.Clean(d) == ours }); {
	case listed && (len(dirs) == 1 || c.local || r.known() && r.before(2, 1)):
		return ""
	case listed && r.known():
		return fmt.Sprintf("this containerd (%d.%d) reads config_path = %q as the name of one directory", r[0],
			r[1], c.path)
	case listed:
		return fmt.Sprintf("containerd from 2.1 on reads config_path = %q as the name of one directory", c.path)
	case c.single() != "":
		return fmt.Sprintf("containerd reads config_path = %q, not %s (trow node writes there if that directory is "+
			"mounted: trow manifest --node-dir=/%s,%s)", c.path, ours, containerdParent, path.Clean(c.path))
	case c.path != "":
		return fmt.Sprintf("containerd reads config_path = %q, not %s", c.path, ours)
	case c.legacy:
		return fmt.Sprintf("containerd does not read %s: its configuration has registry.mirrors, configs or auths; "+
			"remove them before setting config_path", ours)
	case c.local && r.known() && !r.before(2, 2):
		return ""
	case c.local && !r.known():
		return fmt.Sprintf("containerd before 2.2 does not read %s: config_path is not set", ours)
	case r.known() && !r.before(2, 2):
		return fmt.Sprintf("this containerd (%d.%d) does not read %s: config_path is not set, and it reads its "+
			"default, a list, as the name of one directory", r[0], r[1], ours)
	}
	return fmt.Sprintf("containerd does not read %s: config_path is not set", ours)
}

// single returns the directory that config_path names, without a leading slash; "" if it names none, or several.
func (c criConfig) single() string {
	if !path.IsAbs(c.path) || strings.Contains(c.path, ":") {
		return ""
	}
	return strings.TrimPrefix(path.Clean(c.path), "/")
}

// findElsewhere sets elsewhere: where config_path names another directory than the usual one, and that one is mounted,
// our files are written there as well.
func (n *Node) findElsewhere(root *os.Root) {
	n.elsewhere = ""
	c, err := readConfig(root)
	if err != nil || c.off {
		return
	}
	if dir := c.single(); dir != "" && dir != containerdCerts {
		if there, err := isDir(root, dir); there && err == nil {
			n.elsewhere = dir
		}
	}
}

// lines returns the lines that are missing in the configuration.
func (c criConfig) lines() string {
	if c.version < 2 {
		return fmt.Sprintf("[plugins.cri.registry]\n  config_path = %q", "/"+containerdCerts)
	}
	return fmt.Sprintf("[plugins.%q.registry]\n  config_path = %q", pluginOf(c.version), "/"+containerdCerts)
}
