package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"trow/registry/namespace"
)

const (
	// mirrorLine follows markerLine in files for images of other registries. It must never change: such files are found
	// by it when they are no longer wanted, whatever they were for.
	mirrorLine = "# for images of other registries, which go on to those if this one does not give them\n"
	// mirrorCA is the CA of a mirror. With the extension .crt, containerd would trust it for the registry itself as
	// well, where there is no hosts.toml beside it yet.
	mirrorCA = "trow-ca.pem"
	// defaultHosts is what containerd reads for registries that have no directory of their own.
	defaultHosts = "_default"
	// dockerSite is the host with which Docker asks the mirror port: it sends neither ns nor another path, and the
	// registry knows by the host which registry is meant (setting namespaces). Other runtimes use the address.
	dockerSite = "localhost"
)

// The files of others that say whether a runtime uses a mirror.
const (
	dockerConfig   = "etc/docker/daemon.json"
	crioConfig     = "etc/containers/registries.conf"
	crioDropIns    = "etc/containers/registries.conf.d"
	crioMirrorFile = "50-trow-mirrors.conf"
)

// MirrorSite is the host[:port] of the setting namespaces that stands for Docker Hub.
func MirrorSite(mirrorPort int) string { return net.JoinHostPort(dockerSite, strconv.Itoa(mirrorPort)) }

// writeMirrors writes the files with which runtimes pull images of other registries through this one, and removes those
// that are no longer wanted.
func (n *Node) writeMirrors(ctx context.Context, root *os.Root, bundle []byte) {
	var all []place
	if n.mirror != nil {
		local := n.mirror.local.Load()
		if local == nil { // what listens there now may keep the runtime waiting
			return
		}
		all = n.mirrorPlaces(root, *local, bundle)
	}
	n.removeMirrors(root, all)
	for _, p := range all {
		n.writePlace(ctx, root, &p)
	}
	if n.mirror != nil {
		n.problem(ctx, dockerConfig, Unmirrored, n.checkDocker(root))
		n.problem(ctx, crioConfig, Unmirrored, n.checkCRIO(root))
	}
}

// mirrorPlaces returns the places of mirrors. local is host:port of the mirror port.
func (n *Node) mirrorPlaces(root *os.Root, local string, bundle []byte) []place {
	m := n.mirror.Mirrors
	var all []place
	hosts := m.Hosts
	if m.All {
		hosts = append([]string{defaultHosts}, hosts...)
	}
	for _, c := range n.containerds() {
		for _, host := range hosts {
			dir := path.Join(c.certs, host)
			all = append(all, place{runtime: c.runtime, parent: c.parent, dir: dir, named: true, alone: true,
				kind: Unmirrored, files: []file{{name: mirrorCA, content: mirrorLine + string(bundle)},
					{name: "hosts.toml", content: mirrorTOML(local, "/"+dir+"/"+mirrorCA)}}})
		}
	}
	ca := []file{{name: "ca.crt", content: mirrorLine + string(bundle)}}
	if m.Hub() {
		all = append(all, place{runtime: "Docker", parent: dockerParent, named: true, kind: Unmirrored, files: ca,
			dir: path.Join("etc/docker/certs.d", MirrorSite(n.o.MirrorPort))})
		if n.o.DaemonJSON && !n.foreignDocker(root) {
			all = append(all, place{runtime: "Docker", parent: dockerParent, kind: Unmirrored, dir: dockerParent,
				files:  []file{daemonJSON(n.o.MirrorPort)},
				reload: "run systemctl reload docker, so that Docker pulls images of docker.io through this registry"})
		}
	}
	if conf, _, err := crioMirrors(root, m, local); conf != "" && err == nil {
		all = append(all, place{runtime: "CRI-O", parent: crioParent, named: true, kind: Unmirrored, files: ca,
			dir: path.Join("etc/containers/certs.d", local)},
			place{runtime: "CRI-O", parent: crioParent, kind: Unmirrored, dir: crioDropIns,
				files:  []file{{name: crioMirrorFile, content: conf}},
				reload: "run systemctl reload crio, so that CRI-O pulls images of other registries through this one"})
	}
	return all
}

// containerds are the directories in which each containerd looks for the configuration of registries.
func (n *Node) containerds() []struct{ runtime, parent, certs string } {
	all := []struct{ runtime, parent, certs string }{{containerdName, containerdParent, containerdCerts}}
	for _, d := range distributions {
		all = append(all, struct{ runtime, parent, certs string }{d.name, d.parent, path.Join(d.parent, "certs.d")})
	}
	if n.elsewhere != "" {
		all = append(all, struct{ runtime, parent, certs string }{containerdName, containerdParent, n.elsewhere})
	}
	return all
}

// mirrorTOML returns containerd's configuration of other registries. It names no server, so that containerd uses the
// registry of the image as the server: there it goes on after any error, and only there it pushes.
func mirrorTOML(local, ca string) string {
	return mirrorLine + fmt.Sprintf(`[host."https://%s"]
  capabilities = ["pull", "resolve"]
  ca = %q
`, local, ca)
}

// crioMirrors returns CRI-O's configuration of the hosts that no entry of an administrator names, and those entries:
// one of ours would replace them. Errors: the files of others cannot be read.
func crioMirrors(root *os.Root, m Mirrors, local string) (conf string, taken []string, err error) {
	others, err := crioEntries(root)
	if err != nil {
		return "", nil, err
	}
	for _, host := range m.Hosts {
		i := slices.IndexFunc(others, func(e crioEntry) bool { return e.covers(host) })
		if i >= 0 {
			taken = append(taken, fmt.Sprintf("%s (%s)", host, others[i].file))
			continue
		}
		if text, err := crioMirror(host, local); err == nil {
			conf += text
		} else {
			taken = append(taken, err.Error())
		}
	}
	if conf != "" {
		conf = mirrorLine + conf
	}
	return conf, taken, nil
}

// crioMirror returns the entry of a host (containers-registries.conf.d(5)). CRI-O sends no ?ns=: the path names the
// registry, as in package namespace. A setting as: need not be known here, because the host is another spelling of it.
// Errors: the host has no such name.
func crioMirror(host, local string) (string, error) {
	element, err := namespace.Element(host)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("[[registry]]\nprefix = %[1]q\nlocation = %[1]q\n\n[[registry.mirror]]\nlocation = %[2]q\n\n",
		host, local+"/"+strings.TrimSuffix(namespace.Join(element, ""), "/")), nil
}

// crioEntry is an entry of a registries.conf that is not ours.
type crioEntry struct{ prefix, file string }

// covers reports whether the entry is about a host.
func (e crioEntry) covers(host string) bool {
	if suffix, ok := strings.CutPrefix(e.prefix, "*"); ok {
		return strings.HasSuffix(host, suffix)
	}
	return e.prefix == host
}

// crioEntries returns the entries of the files that are not ours. Errors: a file cannot be read or parsed.
func crioEntries(root *os.Root) (all []crioEntry, err error) {
	names := []string{crioConfig}
	entries, err := fs.ReadDir(root.FS(), crioDropIns)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".conf") {
			names = append(names, path.Join(crioDropIns, e.Name()))
		}
	}
	for _, name := range names {
		b, err := root.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if bytes.HasPrefix(b, []byte(marker)) {
			continue
		}
		var conf struct {
			Registry []struct {
				Prefix   string `toml:"prefix"`
				Location string `toml:"location"`
			} `toml:"registry"`
		}
		if err == nil {
			err = toml.Unmarshal(b, &conf)
		}
		if err != nil {
			return nil, fmt.Errorf("/%s: %w", name, err)
		}
		for _, r := range conf.Registry {
			if r.Prefix == "" {
				r.Prefix = r.Location
			}
			all = append(all, crioEntry{r.Prefix, "/" + name})
		}
	}
	return all, nil
}

// checkCRIO returns what CRI-O does not pull through this registry; nil: nothing, or the node has no CRI-O.
func (n *Node) checkCRIO(root *os.Root) error {
	if there, err := runs(root, crioParent); !there || err != nil {
		return nil // an error is reported for the places
	}
	_, taken, err := crioMirrors(root, n.mirror.Mirrors, "")
	switch {
	case err != nil:
		return fmt.Errorf("CRI-O pulls no images of other registries through this one: cannot find out what is "+
			"configured: %w", err)
	case len(taken) > 0:
		return fmt.Errorf("CRI-O does not pull these through this registry: %s; their entries stay. To use both, add "+
			"the mirror %s/%s<host> to them", strings.Join(taken, ", "), *n.mirror.local.Load(), namespace.Prefix)
	case n.mirror.All && len(n.mirror.Hosts) == 0:
		return fmt.Errorf("CRI-O pulls no images of other registries through this one: it has no entry for all " +
			"registries. Name those that it uses as well: trow manifest --mirrors all,docker.io,quay.io")
	}
	return nil
}

// daemonJSON is Docker's configuration file with nothing but the mirror of Docker Hub. JSON has no comments: the file
// is ours if it has this form.
func daemonJSON(mirrorPort int) file {
	return file{name: path.Base(dockerConfig), whole: ourDaemonJSON,
		content: fmt.Sprintf("{\n  \"registry-mirrors\": [\"https://%s\"]\n}\n", MirrorSite(mirrorPort))}
}

var ourDaemonJSON = regexp.MustCompile(`^\{\n  "registry-mirrors": \["https://` + dockerSite + `:\d+"\]\n\}\n$`)

// foreignDocker reports whether the node has a configuration file of Docker that is not ours.
func (n *Node) foreignDocker(root *os.Root) bool {
	p := place{dir: dockerParent, files: []file{daemonJSON(n.o.MirrorPort)}}
	_, err := p.read(root)
	return errors.As(err, new(foreignError))
}

// checkDocker returns what an administrator has to add to Docker's configuration; nil: nothing, or the node has no
// Docker. trow node writes that file only if it is allowed to and there is none: dockerd does not start if a setting in
// it is also one of its flags.
func (n *Node) checkDocker(root *os.Root) error {
	if there, err := runs(root, dockerParent); !there || err != nil || !n.mirror.Hub() {
		return nil // an error is reported for the places
	}
	var conf struct {
		Mirrors []string `json:"registry-mirrors"`
	}
	url := "https://" + MirrorSite(n.o.MirrorPort)
	b, err := root.ReadFile(dockerConfig)
	if err == nil {
		err = json.Unmarshal(b, &conf)
	}
	if slices.ContainsFunc(conf.Mirrors, func(m string) bool { return strings.TrimSuffix(m, "/") == url }) {
		return nil
	}
	why := ""
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		why = fmt.Sprintf(" (it cannot be read: %v)", err)
	}
	return fmt.Errorf("if Docker is the runtime of this node, it does not pull images of docker.io through this "+
		"registry. To do so, add this to /%s, then run systemctl reload docker%s:\n"+
		"\"registry-mirrors\": [%q]", dockerConfig, why, url)
}

// removeMirrors removes our files for mirrors, except for those of these places.
func (n *Node) removeMirrors(root *os.Root, keep []place) {
	kept := map[string]bool{}
	for _, p := range keep {
		kept[path.Join(p.dir, p.files[len(p.files)-1].name)] = true
	}
	dirs := []string{"etc/docker/certs.d", "etc/containers/certs.d"}
	for _, c := range n.containerds() {
		dirs = append(dirs, c.certs)
	}
	for _, dir := range dirs {
		entries, err := fs.ReadDir(root.FS(), dir)
		if err != nil { // it does not exist; another error is reported when a place is written
			continue
		}
		for _, e := range entries {
			// The order is that of writing.
			p := place{dir: path.Join(dir, e.Name()), named: true}
			for _, name := range []string{"ca.crt", mirrorCA, "hosts.toml"} {
				b, err := readFile(root, path.Join(p.dir, name))
				if err == nil && bytes.HasPrefix(b, []byte(markerLine+mirrorLine)) {
					p.files = append(p.files, file{name: name})
				}
			}
			if len(p.files) > 0 && !kept[path.Join(p.dir, p.files[len(p.files)-1].name)] {
				n.removePlace(root, &p)
			}
		}
	}
	if conf := (place{dir: crioDropIns, files: []file{{name: crioMirrorFile}}}); !kept[path.Join(crioDropIns,
		crioMirrorFile)] {
		n.removePlace(root, &conf)
	}
	if n.o.DaemonJSON && !kept[dockerConfig] {
		n.removePlace(root, &place{dir: dockerParent, files: []file{daemonJSON(0)}})
	}
}
