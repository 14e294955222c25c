package node_test

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"sigs.k8s.io/yaml"

	"trow/manifests/node"
)

// written returns the files that a script writes, by path.
func written(t *testing.T, script string) map[string]string {
	t.Helper()
	files := map[string]string{}
	for _, m := range regexp.MustCompile(`(?ms)^cat > '([^']+)' <<'EOF'\n(.*?)^EOF$`).
		FindAllStringSubmatch(script, -1) {
		files[m[1]] = m[2]
	}
	if len(files) == 0 {
		t.Fatalf("the script writes no file: %s", script)
	}
	return files
}

func snippet(t *testing.T, flavour, ca string) string {
	t.Helper()
	s, err := node.Print(flavour, node.PrintOptions{Host: "trow.kube-public", Port: 31000, CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(s, "# ") || strings.Contains(s, "%!") {
		t.Errorf("%s: %s", flavour, s)
	}
	return s
}

// at descends a decoded tree.
func at(v any, keys ...any) any {
	for _, key := range keys {
		switch key := key.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[key]
		case int:
			l, _ := v.([]any)
			if key >= len(l) {
				return nil
			}
			v = l[key]
		}
	}
	return v
}

func same(t *testing.T, what string, got any, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %q", what, got, want)
	}
}

func decode(t *testing.T, f func([]byte, any) error, text string) (v map[string]any) {
	t.Helper()
	if err := f([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

func fromYAML(b []byte, v any) error { return yaml.Unmarshal(b, v) }

const local = "127.0.0.1:21000"

func TestPrintedSnippets(t *testing.T) {
	ca := makeAuthority(t).pem
	in64 := base64.StdEncoding.EncodeToString([]byte(ca))

	talos := decode(t, fromYAML, snippet(t, "talos", ca))
	same(t, "talos", at(talos, "machine", "registries", "mirrors", name, "endpoints", 0), "https://"+local)
	same(t, "talos", at(talos, "machine", "registries", "config", local, "tls", "ca"), in64)

	bottlerocket := decode(t, toml.Unmarshal, snippet(t, "bottlerocket", ca))
	mirror := at(bottlerocket, "settings", "container-registry", "mirrors", 0)
	same(t, "bottlerocket", at(mirror, "registry"), name)
	same(t, "bottlerocket", at(mirror, "endpoint", 0), "https://"+local)
	same(t, "bottlerocket", at(bottlerocket, "settings", "pki", "trow", "data"), in64)
	if at(bottlerocket, "settings", "pki", "trow", "trusted") != true {
		t.Error("bottlerocket: not trusted")
	}

	for _, product := range []string{"k3s", "rke2"} {
		files := written(t, snippet(t, product, ca))
		conf := decode(t, fromYAML, files["/etc/rancher/"+product+"/trow-registries.yaml"])
		same(t, product, at(conf, "mirrors", name, "endpoint", 0), "https://"+local)
		file, _ := at(conf, "configs", local, "tls", "ca_file").(string)
		same(t, product, files[file], ca)
	}

	containerd := written(t, snippet(t, "containerd", ca))
	hosts := decode(t, toml.Unmarshal, containerd["/etc/containerd/certs.d/"+name+"/hosts.toml"])
	file, _ := at(hosts, "host", "https://"+local, "ca").(string)
	same(t, "containerd", containerd[file], ca)

	same(t, "docker", written(t, snippet(t, "docker", ca))["/etc/docker/certs.d/"+name+"/ca.crt"], ca)

	crio := written(t, snippet(t, "crio", ca))
	for _, n := range []string{name, local, "127.0.0.1:31000"} {
		same(t, "crio", crio["/etc/containers/certs.d/"+n+"/ca.crt"], ca)
	}
	conf := decode(t, toml.Unmarshal, crio["/etc/containers/registries.conf.d/50-trow.conf"])
	same(t, "crio", at(conf, "registry", 0, "mirror", 0, "location"), local)
}

// TestRegistriesOfOthersStay: the script for k3s and RKE2 replaces only a file that it has written itself, and that
// nobody has changed.
func TestRegistriesOfOthersStay(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("there is no shell")
	}
	for _, product := range []string{"k3s", "rke2"} {
		dir := t.TempDir()
		file := filepath.Join(dir, product, "registries.yaml")
		script := strings.ReplaceAll(snippet(t, product, makeAuthority(t).pem), "/etc/rancher", dir)
		run := func(ok bool) string {
			t.Helper()
			cmd := exec.CommandContext(t.Context(), shell, "-c", script)
			out, err := cmd.CombinedOutput()
			if (err == nil) != ok {
				t.Errorf("%s: %v: %s", product, err, out)
			}
			return string(out)
		}
		for range 2 { // the second time it replaces its own file
			run(true)
			if b, err := os.ReadFile(file); err != nil || at(decode(t, fromYAML, string(b)), "mirrors", name) == nil {
				t.Errorf("%s: %s, %v", product, b, err)
			}
		}
		printed, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for what, mine := range map[string]string{
			"a file of the administrator": "configs: {docker.io: {auth: {username: u, password: p}}}\n",
			"a file that was added to":    string(printed) + "  docker.io: {auth: {username: u, password: p}}\n",
			"an empty file":               "",
		} {
			if err := os.WriteFile(file, []byte(mine), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				out := run(false)
				if b, err := os.ReadFile(file); err != nil || string(b) != mine {
					t.Errorf("%s: %s is now %s, %v", product, what, b, err)
				}
				if !strings.Contains(out, name) || !strings.Contains(out, "https://"+local) ||
					!strings.Contains(out, "ca_file") {
					t.Errorf("%s: %s: it does not print what to add: %s", product, what, out)
				}
			}
		}
		link := filepath.Join(dir, "elsewhere")
		if err := errors.Join(os.Remove(file), os.Symlink(link, file)); err != nil {
			t.Fatal(err)
		}
		run(false)
		if _, err := os.Lstat(link); err == nil {
			t.Errorf("%s: it writes through a link that leads nowhere", product)
		}
	}
}

func TestPrintedOpenShiftObjects(t *testing.T) {
	ca := makeAuthority(t).pem
	objects := map[string]map[string]any{}
	for doc := range strings.SplitSeq(snippet(t, "openshift", ca), "\n---\n") {
		o := decode(t, fromYAML, doc)
		objects[at(o, "kind").(string)] = o
	}
	for _, key := range []string{"trow.kube-public..31000", "127.0.0.1..21000", "127.0.0.1..31000"} {
		text, _ := at(objects["ConfigMap"], "data", key).(string)
		if !x509.NewCertPool().AppendCertsFromPEM([]byte(text)) {
			t.Errorf("%s: %q", key, text)
		}
	}
	configMap, _ := at(objects["ConfigMap"], "metadata", "name").(string)
	same(t, "Image", at(objects["Image"], "spec", "additionalTrustedCA", "name"), configMap)
	same(t, "tags", at(objects["ImageTagMirrorSet"], "spec", "imageTagMirrors", 0, "source"), name)
	same(t, "tags", at(objects["ImageTagMirrorSet"], "spec", "imageTagMirrors", 0, "mirrors", 0), local)
	same(t, "digests", at(objects["ImageDigestMirrorSet"], "spec", "imageDigestMirrors", 0, "mirrors", 0), local)
}

func TestPrintRefusesInvalidOptions(t *testing.T) {
	ca := makeAuthority(t).pem
	for _, flavour := range node.Flavours() {
		if _, err := node.Print(flavour, node.PrintOptions{Host: "a'b", Port: 31000, CA: ca}); err == nil {
			t.Errorf("%s: printed an invalid host", flavour)
		}
		if _, err := node.Print(flavour, node.PrintOptions{Host: "trow.a", Port: 31000, CA: "EOF"}); err == nil {
			t.Errorf("%s: printed an invalid bundle", flavour)
		}
	}
	_, err := node.Print("windows", node.PrintOptions{Host: "trow.a", Port: 31000, CA: ca})
	const known = "want one of bottlerocket, containerd, crio, docker, k3s, openshift, rke2, talos"
	if err == nil || !strings.Contains(err.Error(), known) {
		t.Error(err)
	}
}

// TestPrintedMirrors: each platform gets them in its own form, and nothing without --mirrors.
func TestPrintedMirrors(t *testing.T) {
	ca := makeAuthority(t).pem
	const mirror, crioHub = "127.0.0.1:24000", "127.0.0.1:24000/f/docker.io"
	printed := func(flavour string) string {
		t.Helper()
		text, err := node.Print(flavour, node.PrintOptions{Host: "trow.kube-public", Port: 31000, CA: ca,
			Mirrors: []string{"all", "docker.io"}})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for _, flavour := range node.Flavours() {
		if plain := snippet(t, flavour, ca); strings.Contains(plain, "24000") || strings.Contains(plain, "docker.io") {
			t.Errorf("%s: %s", flavour, plain)
		}
	}
	containerd := written(t, printed("containerd"))
	for _, dir := range []string{"_default", "docker.io"} {
		dir = "/etc/containerd/certs.d/" + dir
		hosts := decode(t, toml.Unmarshal, containerd[dir+"/hosts.toml"])
		same(t, dir, at(hosts, "host", "https://"+mirror, "ca"), dir+"/trow-ca.pem")
		same(t, dir, pemOf(containerd[dir+"/trow-ca.pem"]), ca)
	}
	crio := written(t, printed("crio"))
	conf := decode(t, toml.Unmarshal, crio["/etc/containers/registries.conf.d/50-trow-mirrors.conf"])
	same(t, "crio", at(conf, "registry", 0, "mirror", 0, "location"), crioHub)
	same(t, "crio", pemOf(crio["/etc/containers/certs.d/"+mirror+"/ca.crt"]), ca)
	if docker := printed("docker"); !strings.Contains(docker, `"registry-mirrors": ["https://localhost:24000"]`) ||
		!strings.Contains(docker, `namespaces: [{host: "localhost:24000", upstream: docker.io}]`) {
		t.Error(docker)
	}
	for _, product := range []string{"k3s", "rke2"} {
		dir := "/etc/rancher/" + product
		files := written(t, printed(product))
		conf := decode(t, fromYAML, files[dir+"/trow-registries.yaml"])
		for _, host := range []string{"*", "docker.io"} {
			same(t, product, at(conf, "mirrors", host, "endpoint", 0), "https://"+mirror)
		}
		same(t, product, at(conf, "configs", mirror, "tls", "ca_file"), dir+"/trow-ca.crt")
	}
	talos := decode(t, fromYAML, printed("talos"))
	same(t, "talos", at(talos, "machine", "registries", "mirrors", "*", "endpoints", 0), "https://"+mirror)
	if text, _ := at(talos, "machine", "registries", "config", mirror, "tls", "ca").(string); text == "" {
		t.Error("Talos has no CA")
	}
	rocket := decode(t, toml.Unmarshal, printed("bottlerocket"))
	same(t, "bottlerocket", at(rocket, "settings", "container-registry", "mirrors", 1, "registry"), "*")
	same(t, "bottlerocket", at(rocket, "settings", "container-registry", "mirrors", 2, "endpoint", 0),
		"https://"+mirror)
	objects := map[string]map[string]any{}
	for doc := range strings.SplitSeq(printed("openshift"), "\n---\n") {
		o := decode(t, fromYAML, doc)
		objects[at(o, "kind").(string)] = o
	}
	same(t, "openshift", at(objects["ImageTagMirrorSet"], "spec", "imageTagMirrors", 1, "mirrors", 0), crioHub)
	same(t, "openshift", at(objects["ImageDigestMirrorSet"], "spec", "imageDigestMirrors", 1, "source"), "docker.io")
	if text, _ := at(objects["ConfigMap"], "data", "127.0.0.1..24000").(string); text == "" {
		t.Error("OpenShift has no CA of the mirror port")
	}
}

// pemOf returns the certificates of a file, without the text before them.
func pemOf(text string) string { return text[max(0, strings.Index(text, "-----BEGIN")):] }

// TestMirrorsAreRegistries: a name that no image has as its registry is a mistake.
func TestMirrorsAreRegistries(t *testing.T) {
	for list, want := range map[string]string{"All": "{true []}", "all,quay.io": "{true [quay.io]}",
		"LOCALHOST": "{false [localhost]}", "quay:443": "{false [quay:443]}",
		"index.docker.io,docker.io": "{false [docker.io]}", "docker": "", "quay.io/team": "", "": ""} {
		m, err := node.ParseMirrors(strings.Split(list, ","))
		if got := fmt.Sprint(m); (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%q: %s, %v; want %s", list, got, err, want)
		}
	}
	text, err := node.Print("crio", node.PrintOptions{Host: "trow.kube-public", Port: 31000, CA: makeAuthority(t).pem,
		Mirrors: []string{"[fd00::1]:5000", "quay.io"}})
	if err != nil || !strings.Contains(text, "# Not [fd00::1]:5000: ") ||
		!strings.Contains(text, `prefix = "quay.io"`) {
		t.Errorf("%v %s", err, text)
	}
}

// TestPrintedMirrorsOfOthersStay: the script does not overwrite what an administrator has written.
func TestPrintedMirrorsOfOthersStay(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("there is no shell")
	}
	dir := t.TempDir()
	text, err := node.Print("containerd", node.PrintOptions{Host: "trow.kube-public", Port: 31000,
		CA: makeAuthority(t).pem, Mirrors: []string{"docker.io"}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "certs.d/docker.io/hosts.toml")
	run := func() string {
		out, _ := exec.CommandContext(t.Context(), shell, "-c", strings.ReplaceAll(text, "'/etc/containerd", "'"+dir)).
			CombinedOutput()
		return string(out)
	}
	for range 2 { // the second time it replaces its own
		if out := run(); out != "" {
			t.Error(out)
		}
		if b, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(b), mark) {
			t.Errorf("%s, %v", b, err)
		}
	}
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := run()
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" || !strings.Contains(out, "stays as it is") {
		t.Errorf("%s, %v: %s", b, err, out)
	}
}
