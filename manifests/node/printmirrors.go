package node

import (
	"fmt"
	"path"
	"strings"

	"trow/registry/namespace"
)

// each returns a format once for each host of the mirrors, with the host and the address of the mirror port. all is
// what the platform calls all registries.
func (p printed) each(format, all string) (text string) {
	hosts := p.mirrors.Hosts
	if p.mirrors.All {
		hosts = append([]string{all}, hosts...)
	}
	for _, host := range hosts {
		text += fmt.Sprintf(format, host, p.mirror)
	}
	return text
}

// config returns a format with the address of the mirror port and a value, if there are mirrors.
func (p printed) config(format, value string) string {
	if p.mirrors.none() {
		return ""
	}
	return fmt.Sprintf(format, p.mirror, value)
}

// kept returns shell commands that write the files of a directory, unless the last one exists and is not one of ours.
// Then they fail.
func kept(dir string, files ...file) string {
	last := files[len(files)-1]
	text := fmt.Sprintf("if [ -e '%[1]s' ] && ! head -n 1 '%[1]s' | grep -q '^%[2]s'; then\n  echo '%[1]s exists and "+
		"stays as it is' >&2\n  false\nelse\n", path.Join(dir, last.name), marker)
	for _, f := range files {
		text += script(path.Join(dir, f.name), markerLine+f.content)
	}
	return text + "fi\n"
}

func containerdMirrors(p printed) (text string) {
	if p.mirrors.none() {
		return ""
	}
	hosts := p.mirrors.Hosts
	if p.mirrors.All {
		hosts = append([]string{defaultHosts}, hosts...)
	}
	for _, host := range hosts {
		dir := "/" + containerdCerts + "/" + host
		text += kept(dir, file{name: mirrorCA, content: mirrorLine + p.ca},
			file{name: "hosts.toml", content: mirrorTOML(p.mirror, dir+"/"+mirrorCA)})
	}
	return "# Images of other registries through this one: a file that somebody else has written stays.\n" + text
}

func dockerMirror(p printed) string {
	if !p.mirrors.Hub() {
		return ""
	}
	site := MirrorSite(p.mirrorPort)
	return script("/etc/docker/certs.d/"+site+"/ca.crt", markerLine+mirrorLine+p.ca) + fmt.Sprintf(`# Images of `+
		`docker.io through this registry (Docker knows no mirrors of others): add this to /%s, then run
# systemctl reload docker. The registry needs the setting namespaces: [{host: "%[2]s", upstream: docker.io}].
#   "registry-mirrors": ["https://%[2]s"]
`, dockerConfig, site)
}

func crioMirrorScript(p printed) string {
	if p.mirrors.none() {
		return ""
	}
	text := "# Images of other registries through this one. An entry replaces one with the same prefix that you have.\n"
	conf := ""
	for _, host := range p.mirrors.Hosts {
		entry, err := crioMirror(host, p.mirror)
		if conf += entry; err != nil {
			text += "# Not " + host + ": it has no name there.\n"
		}
	}
	if conf == "" {
		return text[strings.Index(text, "\n")+1:] +
			"# CRI-O has no entry for all registries: name those that it uses, as in --mirrors all,docker.io.\n"
	}
	return text + script("/etc/containers/certs.d/"+p.mirror+"/ca.crt", markerLine+mirrorLine+p.ca) +
		script("/"+crioDropIns+"/"+crioMirrorFile, markerLine+mirrorLine+conf)
}

// openShiftMirrors returns the entries of the objects with mirrors. OpenShift's runtime is CRI-O.
func openShiftMirrors(p printed) (text string) {
	for _, host := range p.mirrors.Hosts {
		if element, err := namespace.Element(host); err == nil {
			text += fmt.Sprintf("    - source: %q\n      mirrors: [%q]\n", host,
				p.mirror+"/"+strings.TrimSuffix(namespace.Join(element, ""), "/"))
		}
	}
	return text
}
