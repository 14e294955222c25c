package node

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"trow/manifests/kube"
)

// PrintOptions say which registry a snippet is for. All but LocalPort are required.
type PrintOptions struct {
	Host      string // of the registry, as image names have it
	Port      int    // its node port
	LocalPort int    // on loopback, where trow node listens; 0: see kube.LocalPort
	CA        string // the bundle

	Mirrors    []string // see Options
	MirrorPort int      // 0: see kube.MirrorPort
}

// printed has the PrintOptions in the forms that snippets need.
type printed struct {
	name, local, loopback string // host:port
	ca, base64            string
	mirrors               Mirrors
	mirror                string // host:port of the mirror port
	mirrorPort            int
}

// flavours are the platforms that can be configured by hand, each in its own format.
var flavours = map[string]func(printed) string{
	"bottlerocket": printBottlerocket,
	"containerd":   printContainerd,
	"crio":         printCRIO,
	"docker":       printDocker,
	"k3s":          func(p printed) string { return printRancher(p, "k3s", "k3s (on agents: k3s-agent)") },
	"openshift":    printOpenShift,
	"rke2":         func(p printed) string { return printRancher(p, "rke2", "rke2-server (on agents: rke2-agent)") },
	"talos":        printTalos,
}

// Flavours returns the platforms that [Print] knows, sorted.
func Flavours() []string { return slices.Sorted(maps.Keys(flavours)) }

// Print returns the configuration of a platform on whose nodes trow node must not write files, for an administrator to
// apply. trow node has to run there nevertheless, because it listens on loopback. Errors: an unknown flavour, with the
// known ones; an invalid option; an invalid bundle.
func Print(flavour string, o PrintOptions) (string, error) {
	f, ok := flavours[flavour]
	if !ok {
		return "", fmt.Errorf("print: %.80q: want one of %s", flavour, strings.Join(Flavours(), ", "))
	}
	if o.LocalPort == 0 {
		o.LocalPort = kube.LocalPort(o.Port)
	}
	if o.MirrorPort == 0 {
		o.MirrorPort = kube.MirrorPort(o.LocalPort)
	}
	if err := checkName(o.Host, o.Port, o.LocalPort); err != nil {
		return "", err
	}
	mirrors, err := ParseMirrors(o.Mirrors)
	if err == nil && !mirrors.none() {
		err = checkMirrorPort(o.MirrorPort, o.Port, o.LocalPort)
	}
	if err != nil {
		return "", err
	}
	ca, _, err := parseBundle(o.CA)
	if err != nil {
		return "", fmt.Errorf("ca: %w", err)
	}
	port := strconv.Itoa(o.Port)
	return f(printed{
		name: net.JoinHostPort(o.Host, port), local: fmt.Sprintf("127.0.0.1:%d", o.LocalPort),
		loopback: "127.0.0.1:" + port, ca: string(ca), base64: base64.StdEncoding.EncodeToString(ca),
		mirrors: mirrors, mirror: fmt.Sprintf("127.0.0.1:%d", o.MirrorPort), mirrorPort: o.MirrorPort,
	}), nil
}

// script returns shell commands that write a file. The shell expands nothing in the content.
func script(name, content string) string {
	return fmt.Sprintf("install -d '%s'\ncat > '%s' <<'EOF'\n%sEOF\n", path.Dir(name), name, content)
}

func printContainerd(p printed) string {
	dir := "/" + containerdCerts + "/" + p.name
	return `# containerd: run this as root on each node. No restart is needed if containerd's configuration,
# /etc/containerd/config.toml, has config_path = "/etc/containerd/certs.d": with version = 2 in
# [plugins."io.containerd.grpc.v1.cri".registry], from version = 3 on in
# [plugins."io.containerd.cri.v1.images".registry]. After adding it: systemctl restart containerd.
` + script(dir+"/ca.crt", p.ca) + script(dir+"/hosts.toml", hostsTOML(p.local, dir+"/ca.crt")) +
		containerdMirrors(p)
}

func printDocker(p printed) string {
	host, _, _ := strings.Cut(p.name, ":")
	return `# Docker: run this as root on each node. No restart is needed. Docker cannot map a name to an address, so
# the name has to be in /etc/hosts; ` + p.loopback + `/… names work without that.
` + script("/etc/docker/certs.d/"+p.name+"/ca.crt", p.ca) +
		fmt.Sprintf("grep -qw '%[1]s' /etc/hosts || echo '127.0.0.1 %[1]s' >> /etc/hosts\n", host) +
		dockerMirror(p)
}

func printCRIO(p printed) string {
	text := "# CRI-O: run this as root on each node.\n"
	for _, name := range []string{p.name, p.local, p.loopback} {
		text += script("/etc/containers/certs.d/"+name+"/ca.crt", p.ca)
	}
	return text + script("/etc/containers/registries.conf.d/50-trow.conf", registriesConf(p.name, p.local)) +
		crioMirrorScript(p) +
		"systemctl reload crio\n"
}

// printRancher never replaces a registries.yaml that somebody else has written or changed, which may have the logins of
// other registries: only one that is the same as the file of the run before.
func printRancher(p printed, product, service string) string {
	dir := "/etc/rancher/" + product
	ca, ours, file := dir+"/trow-ca.crt", dir+"/trow-registries.yaml", dir+"/registries.yaml"
	return `# ` + product + `: run this as root on each node. If somebody else has written or changed registries.yaml,
# it stays: add the entries that the script prints then. The file is read at start: restart ` + service + ` afterwards.
` + fmt.Sprintf(`if [ ! -e '%[1]s' ] && [ ! -L '%[1]s' ] ||
  [ -f '%[2]s' ] && [ "$(cat '%[1]s')" = "$(cat '%[2]s')" ]; then
  trow_replace=yes
else
  trow_replace=no
fi
`, file, ours) + script(ca, p.ca) + script(ours, fmt.Sprintf(`# Printed by trow node --print
mirrors:
  %[1]q:
    endpoint:
      - "https://%[2]s"
%[4]sconfigs:
  %[2]q:
    tls:
      ca_file: %[3]s
%[5]s`, p.name, p.local, ca, p.each("  %[1]q:\n    endpoint:\n      - \"https://%[2]s\"\n", "*"),
		p.config("  %[1]q:\n    tls:\n      ca_file: %[2]s\n", ca))) +
		fmt.Sprintf(`if [ $trow_replace = yes ]; then
  cp '%[2]s' '%[1]s'
else
  echo '%[1]s exists and stays as it is. Add these entries to its mirrors and configs:' >&2
  cat '%[2]s' >&2
  false
fi
`, file, ours)
}

func printTalos(p printed) string {
	return fmt.Sprintf(`# Talos: a patch of the machine configuration of each node. No restart is needed.
#   talosctl -n NODES patch machineconfig --patch @THIS-FILE
# If there are documents RegistryMirrorConfig and RegistryTLSConfig (Talos 1.12 and later), put the same values there.
machine:
  registries:
    mirrors:
      %[1]q:
        endpoints:
          - "https://%[2]s"
%[4]s    config:
      %[2]q:
        tls:
          ca: %[3]s
%[5]s`, p.name, p.local, p.base64, p.each("      %[1]q:\n        endpoints:\n          - \"https://%[2]s\"\n", "*"),
		p.config("      %[1]q:\n        tls:\n          ca: %[2]s\n", p.base64))
}

func printBottlerocket(p printed) string {
	return fmt.Sprintf(`# Bottlerocket: user data of the nodes; on a running node: apiclient apply < THIS-FILE.
# No restart is needed. This replaces the whole list of mirrors: add yours to it.
[[settings.container-registry.mirrors]]
registry = %q
endpoint = ["https://%s"]
%s
[settings.pki.trow]
data = "%s"
trusted = true
`, p.name, p.local, p.each("\n[[settings.container-registry.mirrors]]\nregistry = %[1]q\n"+
		"endpoint = [\"https://%[2]s\"]\n", "*"), p.base64)
}

func printOpenShift(p printed) string {
	ca := "    " + strings.ReplaceAll(strings.TrimSuffix(p.ca, "\n"), "\n", "\n    ")
	key := func(name string) string { return strings.ReplaceAll(name, ":", "..") } // a key must not have colons
	mirrorCA := ""
	if !p.mirrors.none() {
		mirrorCA = fmt.Sprintf("  %q: |\n%s\n", key(p.mirror), ca)
	}
	return fmt.Sprintf(`# OpenShift: oc apply --server-side -f THIS-FILE. The machine config operator then updates the
# nodes, one after the other.
# If image.config.openshift.io/cluster names another additionalTrustedCA, add the keys to that ConfigMap instead.
# The DaemonSet needs the host's network: oc adm policy add-scc-to-user privileged -z trow-node -n NAMESPACE
apiVersion: v1
kind: ConfigMap
metadata:
  name: trow-ca
  namespace: openshift-config
data:
  %[1]q: |
%[4]s
  %[2]q: |
%[4]s
  %[3]q: |
%[4]s
%[8]s---
apiVersion: config.openshift.io/v1
kind: Image
metadata:
  name: cluster
spec:
  additionalTrustedCA:
    name: trow-ca
---
apiVersion: config.openshift.io/v1
kind: ImageTagMirrorSet
metadata:
  name: trow
spec:
  imageTagMirrors:
    - source: %[5]q
      mirrors: [%[6]q]
%[7]s---
apiVersion: config.openshift.io/v1
kind: ImageDigestMirrorSet
metadata:
  name: trow
spec:
  imageDigestMirrors:
    - source: %[5]q
      mirrors: [%[6]q]
%[7]s`, key(p.name), key(p.local), key(p.loopback), ca, p.name, p.local, openShiftMirrors(p),
		mirrorCA)
}
