package node_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"

	"trow/manifests/node"
)

const (
	k3sCerts   = "var/lib/rancher/k3s/agent/etc/containerd/certs.d"
	crioMirror = "etc/containers/registries.conf.d/50-trow-mirrors.conf"
)

// mirrorFiles are the files of the node that are about other registries.
func (w *world) mirrorFiles() []string {
	w.Helper()
	return slices.DeleteFunc(w.files(), func(f string) bool {
		return !strings.Contains(w.file(f), "# for images of other registries")
	})
}

func TestEachRuntimeGetsItsMirrors(t *testing.T) {
	hosts := func(certs string, names ...string) (all []string) {
		for _, name := range names {
			all = append(all, certs+"/"+name+"/hosts.toml", certs+"/"+name+"/trow-ca.pem")
		}
		return all
	}
	const containerd = "etc/containerd/certs.d"
	crio := []string{"etc/containers/certs.d/127.0.0.1:24000/ca.crt", crioMirror}
	for what, c := range map[string]struct {
		has     string // shows the runtime
		mirrors []string
		want    []string
	}{
		"one":     {"etc/containerd/config.toml", []string{"docker.io"}, hosts(containerd, "docker.io")},
		"aliases": {"etc/containerd/config.toml", []string{"Index.Docker.io"}, hosts(containerd, "docker.io")},
		"two": {"etc/containerd/config.toml", []string{"quay.io", "localhost:5000"},
			hosts(containerd, "localhost:5000", "quay.io")},
		"all":         {"etc/containerd/config.toml", []string{"all"}, hosts(containerd, "_default")},
		"all and one": {"etc/containerd/config.toml", []string{"a.io", "all"}, hosts(containerd, "_default", "a.io")},
		"k3s": {"var/lib/rancher/k3s/agent/etc/containerd/config.toml", []string{"all"},
			hosts(k3sCerts, "_default")},
		"CRI-O":         {"etc/crio/crio.conf", []string{"docker.io"}, crio},
		"CRI-O and all": {"etc/crio/crio.conf", []string{"all"}, nil},
		"CRI-O, IPv6":   {"etc/crio/crio.conf", []string{"[::1]:5000"}, nil},
		"Docker": {"etc/docker/daemon.json", []string{"docker.io"},
			[]string{"etc/docker/certs.d/localhost:24000/ca.crt"}},
		"Docker knows no other": {"etc/docker/daemon.json", []string{"quay.io"}, nil},
		"none":                  {"etc/containerd/config.toml", nil, nil},
	} {
		w := newWorld(t, makeAuthority(t).pem)
		w.put(c.has, "")
		w.options.Mirrors = c.mirrors
		w.start("127.0.0.1:1").ready()
		if strings.HasPrefix(c.has, "etc/crio/") && c.want == nil {
			w.until("an Event", func() bool { return len(w.published(node.Unmirrored)) == 1 })
		}
		w.until(what, func() bool { return slices.Equal(w.mirrorFiles(), c.want) })
		for _, file := range c.want {
			if !strings.HasPrefix(w.file(file), mark) {
				t.Errorf("%s: %s has no marker", what, file)
			}
			if filepath.Base(file) != "hosts.toml" {
				continue
			}
			// No server: containerd goes on to the registry itself. It must not push to the mirror.
			h := decode(t, toml.Unmarshal, w.file(file))
			entry, _ := at(h, "host", "https://127.0.0.1:24000").(map[string]any)
			if _, has := h["server"]; has || len(entry) != 2 || entry["ca"] != "/"+filepath.Dir(file)+"/trow-ca.pem" ||
				!slices.Equal(entry["capabilities"].([]any), []any{"pull", "resolve"}) {
				t.Errorf("%s: %s", what, w.file(file))
			}
		}
	}
}

// TestMirrorsOfCRIO: it sends no ns, so that the path has the registry. Entries of the administrator stay in force: one
// of ours with the same prefix would replace them.
func TestMirrorsOfCRIO(t *testing.T) {
	w := newWorld(t, makeAuthority(t).pem, "etc/crio/crio.conf.d")
	w.put("etc/containers/registries.conf", "[[registry]]\nlocation = \"ghcr.io\"\nblocked = true\n")
	w.put("etc/containers/registries.conf.d/00-mine.conf", "[[registry]]\nprefix = \"*.example.com\"\n")
	w.options.Mirrors = []string{"docker.io", "localhost:5000", "ghcr.io", "a.example.com"}
	w.start("127.0.0.1:1").ready()
	w.until("the files", func() bool { return w.file(crioMirror) != "" })
	got := map[string]string{}
	conf := decode(t, toml.Unmarshal, w.file(crioMirror))
	for i := range conf["registry"].([]any) {
		prefix, _ := at(conf, "registry", i, "prefix").(string)
		same(t, "location", at(conf, "registry", i, "location"), prefix)
		got[prefix], _ = at(conf, "registry", i, "mirror", 0, "location").(string)
	}
	if len(got) != 2 || got["docker.io"] != "127.0.0.1:24000/f/docker.io" ||
		got["localhost:5000"] != "127.0.0.1:24000/f/localhost__5000" {
		t.Errorf("%v", got)
	}
	w.until("an Event", func() bool { return len(w.published(node.Unmirrored)) == 1 })
	text := w.published(node.Unmirrored)[0].Message
	for _, part := range []string{"ghcr.io (/etc/containers/registries.conf)", "127.0.0.1:24000/f/",
		"a.example.com (/etc/containers/registries.conf.d/00-mine.conf)"} {
		if !strings.Contains(text, part) {
			t.Errorf("%s: it does not say %s", text, part)
		}
	}
	w.put("etc/containers/registries.conf", "[[")
	w.until("a file that cannot be parsed is reported", func() bool {
		return strings.Contains(strings.Join(w.reported(node.Unmirrored), ""), "cannot find out what is configured")
	})
}

// TestDockersConfigurationIsTheAdministrators: an Event says what to add, until it is there.
func TestDockersConfigurationIsTheAdministrators(t *testing.T) {
	const file, line = "etc/docker/daemon.json", `"registry-mirrors": ["https://localhost:24000"]`
	w := newWorld(t, makeAuthority(t).pem, "etc/docker")
	w.options.Mirrors = []string{"all"}
	w.start("127.0.0.1:1").ready()
	for round, text := range []string{"", `{"debug": true}`, `{`} {
		if text != "" {
			w.put(file, `{`+line+`}`) // solved, in between
			w.until("it is solved", func() bool { return w.looked(2) })
			w.put(file, text)
		}
		w.until("an Event", func() bool { return len(w.reported(node.Unmirrored)) == round+1 })
		if got := w.reported(node.Unmirrored)[round]; !strings.Contains(got, line) {
			t.Error(got)
		}
		if w.file(file) != text {
			t.Errorf("%s is now %s", file, w.file(file))
		}
	}
}

// TestDockersConfigurationWhereThereIsNone is written if that is allowed, and removed when it is no longer wanted. What
// an administrator has added something to is no longer ours.
func TestDockersConfigurationWhereThereIsNone(t *testing.T) {
	const file, want = "etc/docker/daemon.json", "{\n  \"registry-mirrors\": [\"https://localhost:24000\"]\n}\n"
	w := newWorld(t, makeAuthority(t).pem, "etc/docker")
	w.options.DaemonJSON = true
	run := func(what, want string, mirrors ...string) {
		t.Helper()
		w.options.Mirrors = mirrors
		w.start("127.0.0.1:1").ready()
		w.until(what, func() bool { return w.file(file) == want })
		w.looked(2)
		if got := w.file(file); got != want {
			t.Errorf("%s: it is %q", what, got)
		}
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
	}
	run("it is written", want, "docker.io")
	if got := w.published(node.Reload); len(got) != 1 || !strings.Contains(got[0].Message, "systemctl reload docker") {
		t.Errorf("the Events are %v", got)
	}
	if got := w.reported(node.Unmirrored); len(got) != 0 {
		t.Errorf("a problem: %v", got)
	}
	run("Docker knows no other", "", "quay.io")
	run("it is written for all", want, "all")
	run("it goes without mirrors", "")
	w.put(file, strings.Replace(want, "24000", "24001", 1))
	run("another port", want, "docker.io")
	added := strings.Replace(want, "{", "{\n  \"debug\": true,", 1)
	w.put(file, added)
	run("it was added to", added, "docker.io")
	run("it stays without mirrors", added)
	w.put(file, want)
	w.options.DaemonJSON = false
	run("without the right to write it", want)
	w.options.DaemonJSON = true
	w.PrependReactor("get", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "daemonsets"}, "trow-node")
	})
	w.options.Mirrors = []string{"docker.io"}
	w.start("127.0.0.1:1").ready()
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if got := w.files(); len(got) > 0 {
		t.Errorf("after the uninstallation: %v", got)
	}
}

// looked waits until trow node has looked at the files this many times: it restores a file that is removed.
func (w *world) looked(times int) bool {
	w.Helper()
	const file = "etc/docker/certs.d/" + name + "/ca.crt"
	for range times {
		if err := os.Remove(filepath.Join(w.root, file)); err != nil {
			w.Fatal(err)
		}
		w.until("a look", func() bool { return w.file(file) != "" })
	}
	return true
}

// TestMirrorsOfOthersStay, and nothing is written beside them. The other registries have theirs.
func TestMirrorsOfOthersStay(t *testing.T) {
	const dir = "etc/containerd/certs.d/"
	for _, file := range []string{dir + "_default/hosts.toml", dir + "docker.io/hosts.toml",
		dir + "docker.io/client.cert"} {
		w := newWorld(t, makeAuthority(t).pem, "etc/containerd")
		w.put("etc/containerd/config.toml", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n"+
			"config_path = \"/etc/containerd/certs.d\"\n")
		w.put(file, "mine")
		w.options.Mirrors = []string{"all", "docker.io"}
		w.start("127.0.0.1:1").ready()
		w.until("an Event", func() bool { return len(w.published(node.Unmirrored)) == 1 })
		if text := w.published(node.Unmirrored)[0].Message; !strings.Contains(text, "/"+file+" was not written by") {
			t.Error(text)
		}
		if entries, err := os.ReadDir(filepath.Join(w.root, filepath.Dir(file))); err != nil || len(entries) != 1 ||
			w.file(file) != "mine" {
			t.Errorf("%s: %v, %v", file, entries, err)
		}
		w.until("the files of the other one", func() bool { return len(w.mirrorFiles()) == 2 })
		w.until("the node can pull by name", func() bool { return len(w.published(node.NodeReady)) > 0 })
	}
}

// TestMirrorsThatAreNoLongerWantedGo when they are switched off, one by one, and at the end.
func TestMirrorsThatAreNoLongerWantedGo(t *testing.T) {
	const mine = "etc/containerd/certs.d/ghcr.io/hosts.toml"
	w := newWorld(t, makeAuthority(t).pem, "etc/containerd", "etc/docker", "etc/crio/crio.conf.d")
	w.put("etc/containerd/config.toml", "")
	w.put(mine, "mine")
	run := func(want int, mirrors ...string) {
		t.Helper()
		w.options.Mirrors = mirrors
		w.start("127.0.0.1:1").ready()
		w.until("the files", func() bool { return len(w.mirrorFiles()) == want })
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
		if got := w.mirrorFiles(); len(got) != want || w.file(mine) != "mine" {
			t.Errorf("%v: %v", mirrors, got)
		}
	}
	run(9, "all", "quay.io", "docker.io") // 3 for containerd, and one CA for Docker, one for CRI-O and its drop-in
	run(4, "quay.io")
	own := len(w.files())
	run(0)
	if len(w.files()) != own-4 {
		t.Errorf("%v", w.files())
	}
	if entries, err := os.ReadDir(filepath.Join(w.root, "etc/containerd/certs.d")); err != nil || len(entries) != 2 {
		t.Errorf("directories stay: %v, %v", entries, err)
	}
	run(9, "all", "quay.io", "docker.io")
	w.PrependReactor("get", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "daemonsets"}, "trow-node")
	})
	w.start("127.0.0.1:1").ready()
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if got := w.files(); !slices.Equal(got, []string{mine, "etc/containerd/config.toml"}) {
		t.Errorf("after the uninstallation: %v", got)
	}
}

// TestInvalidMirrors become neither paths nor lines of configuration files.
func TestInvalidMirrors(t *testing.T) {
	for _, text := range []string{"", "..", "../x", "a/b", "https://quay.io", "a b", "a\"b", "_default", "quay.io:0",
		name, "ALL"} {
		w := newWorld(t, "")
		w.options.Mirrors = []string{text}
		if _, err := node.New(w.options); (err == nil) != (text == "ALL") { // a host without a dot
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, port := range []int{-1, 65536, 31000, 21000} {
		w := newWorld(t, "")
		w.options.Mirrors, w.options.MirrorPort = []string{"all"}, port
		if _, err := node.New(w.options); err == nil || !strings.Contains(err.Error(), "mirror port") {
			t.Errorf("%d: %v", port, err)
		}
	}
}
