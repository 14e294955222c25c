package node_test

import (
	"io/fs"
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

// files returns the paths of all files below the root.
func (w *world) files() (all []string) {
	w.Helper()
	err := filepath.WalkDir(w.root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(w.root, p)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	return all
}

// hosts is hosts.toml as containerd parses it.
type hosts struct {
	Server string                    `toml:"server"`
	Host   map[string]map[string]any `toml:"host"`
}

func TestEachRuntimeGetsItsFiles(t *testing.T) {
	ca := makeAuthority(t)
	certs := func(dirs ...string) (files []string) {
		for _, dir := range dirs {
			files = append(files, dir+"/"+name+"/ca.crt", dir+"/"+name+"/hosts.toml")
		}
		return files
	}
	crio := []string{"etc/containers/certs.d/127.0.0.1:21000/ca.crt", "etc/containers/certs.d/127.0.0.1:31000/ca.crt",
		"etc/containers/certs.d/" + name + "/ca.crt", "etc/containers/registries.conf.d/50-trow.conf"}
	const k3s, rke2 = "var/lib/rancher/k3s/agent/etc/containerd", "var/lib/rancher/rke2/agent/etc/containerd"
	for what, c := range map[string]struct {
		dirs, want []string // directories end in a slash, files do not; a mount makes the former on each node
	}{
		"none":       {nil, nil},
		"containerd": {[]string{"etc/containerd/config.toml"}, certs("etc/containerd/certs.d")},
		"containerd without a file": {[]string{"etc/containerd/certs.d/", k3s + "/", rke2 + "/"},
			certs("etc/containerd/certs.d")},
		"containerd, all mounted": {[]string{"etc/containerd/config.toml", "etc/containerd/certs.d/",
			k3s + "/", rke2 + "/",
			"etc/crio/", "etc/containers/certs.d/"}, certs("etc/containerd/certs.d")},
		"k3s": {[]string{k3s + "/config.toml"}, certs(k3s + "/certs.d")},
		"k3s, all mounted": {[]string{"etc/containerd/certs.d/", k3s + "/config.toml", rke2 + "/"},
			certs(k3s + "/certs.d")},
		"rke2": {[]string{rke2 + "/config.toml"}, certs(rke2 + "/certs.d")},
		"docker": {[]string{"etc/docker/certs.d/"},
			[]string{"etc/docker/certs.d/" + name + "/ca.crt"}},
		"containers, without CRI-O": {[]string{"etc/crio/", "etc/containers/"}, nil},
		"CRI-O":                     {[]string{"etc/crio/crio.conf.d/", "etc/containers/"}, crio},
		"CRI-O, all mounted": {[]string{"etc/crio/crio.conf", "etc/containers/certs.d/",
			"etc/containerd/certs.d/", k3s + "/",
			rke2 + "/"}, crio},
	} {
		w := newWorld(t, ca.pem)
		var own []string
		for _, dir := range c.dirs {
			if strings.HasSuffix(dir, "/") {
				w.mkdir(dir)
				continue
			}
			w.put(dir, "")
			own = append(own, dir)
		}
		w.start("127.0.0.1:1").ready()
		got := slices.DeleteFunc(w.files(), func(f string) bool { return slices.Contains(own, f) })
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
		for _, file := range c.want {
			content := w.file(file)
			if !strings.HasPrefix(content, mark) {
				t.Errorf("%s: %s has no marker", what, file)
			}
			if info, err := os.Stat(filepath.Join(w.root, file)); err != nil || info.Mode().Perm() != 0o644 {
				t.Errorf("%s: %v %v", file, info.Mode(), err)
			}
			if filepath.Base(file) == "hosts.toml" {
				var h hosts
				if err := toml.Unmarshal([]byte(content), &h); err != nil {
					t.Fatal(err)
				}
				host := h.Host["https://127.0.0.1:21000"]
				if h.Server != "https://127.0.0.1:21000" || len(h.Host) != 1 ||
					len(host["capabilities"].([]any)) != 2 ||
					host["ca"] != "/"+filepath.Dir(file)+"/ca.crt" {
					t.Errorf("%s: %s", what, content)
				}
			}
		}
	}
}

// TestTheLastEventSaysHowTheNodeIs: the server reads it. Success is reported again after a problem.
func TestTheLastEventSaysHowTheNodeIs(t *testing.T) {
	const file = "etc/containerd/certs.d/" + name + "/hosts.toml"
	w := newWorld(t, makeAuthority(t).pem, "etc/containerd")
	w.put("etc/containerd/config.toml", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n"+
		"config_path = \"/etc/containerd/certs.d\"\n")
	w.start("127.0.0.1:1").ready()
	w.until("it is ready", func() bool { return len(w.published(node.NodeReady)) == 1 })
	for round := range 2 {
		w.put(file, "mine")
		w.until("the problem is reported", func() bool { return len(w.reported(node.Foreign)) == round+1 })
		if err := os.Remove(filepath.Join(w.root, file)); err != nil {
			t.Fatal(err)
		}
		w.until("success is reported again", func() bool { return len(w.published(node.NodeReady)) == round+2 })
	}
}

// TestAnotherConfigPath is honoured if it is mounted: containerd reads the files there. They go with the others.
func TestAnotherConfigPath(t *testing.T) {
	const config = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/opt/certs\"\n"
	elsewhere := "opt/certs/" + name
	for _, mounted := range []bool{true, false} {
		w := newWorld(t, makeAuthority(t).pem, "etc/containerd")
		w.put("etc/containerd/config.toml", config)
		if mounted {
			w.put("opt/certs/other.example/hosts.toml", "mine")
		}
		w.start("127.0.0.1:1").ready()
		text := w.file(elsewhere + "/hosts.toml")
		advice := strings.Join(w.reported(node.ConfigPath), "")
		if mounted != strings.Contains(text, `ca = "/opt/certs/`+name+`/ca.crt"`) || mounted != (advice == "") ||
			!mounted && !strings.Contains(advice, "--node-dir=/etc/containerd,/opt/certs") {
			t.Errorf("mounted: %t; the file is %q, the advice %q", mounted, text, advice)
		}
		w.until("an Event, which needs the DaemonSet's UID", func() bool {
			return len(w.published(node.NodeReady))+len(w.published(node.ConfigPath)) == 1
		})
		w.PrependReactor("get", "daemonsets", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewNotFound(schema.GroupResource{Resource: "daemonsets"}, "trow-node")
		})
		if err := w.stop(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(w.root, elsewhere)); !os.IsNotExist(err) {
			t.Errorf("after the end: %v", err)
		}
		if mounted && w.file("opt/certs/other.example/hosts.toml") != "mine" {
			t.Error("a file of others is gone")
		}
	}
}

// TestFilesOfTheOlderLocalPortAreReplaced when Trow is upgraded, and removed where they are for that port alone.
func TestFilesOfTheOlderLocalPortAreReplaced(t *testing.T) {
	const older, foreign = "etc/containers/certs.d/127.0.0.1:31001", "etc/containers/certs.d/[::1]:31001"
	hosts := "etc/containerd/certs.d/" + name + "/hosts.toml"
	w := newWorld(t, makeAuthority(t).pem, "etc/containerd", "etc/crio/crio.conf.d")
	w.put("etc/containerd/config.toml", "")
	w.put(hosts, mark+"\nserver = \"https://127.0.0.1:31001\"\n")
	w.put("etc/containers/registries.conf.d/50-trow.conf", mark+"\nlocation = \"127.0.0.1:31001\"\n")
	w.put(older+"/ca.crt", mark+"\nold")
	w.put(foreign+"/ca.crt", "mine")
	w.start("127.0.0.1:1").ready()
	for _, file := range []string{hosts, "etc/containers/registries.conf.d/50-trow.conf"} {
		if text := w.file(file); strings.Contains(text, "31001") || !strings.Contains(text, "127.0.0.1:21000") {
			t.Errorf("%s: %s", file, text)
		}
	}
	if _, err := os.Stat(filepath.Join(w.root, older)); !os.IsNotExist(err) {
		t.Errorf("%s: %v", older, err)
	}
	if w.file(foreign+"/ca.crt") != "mine" || w.file("etc/containers/certs.d/127.0.0.1:21000/ca.crt") == "" {
		t.Error("a foreign file was removed, or ours is missing")
	}
}

func TestMicroK8sIsFoundBehindItsLink(t *testing.T) {
	w := newWorld(t, makeAuthority(t).pem, "var/snap/microk8s/7000/args")
	if err := os.Symlink("7000", filepath.Join(w.root, "var/snap/microk8s/current")); err != nil {
		t.Fatal(err)
	}
	w.put("var/snap/microk8s/7000/args/containerd.toml", "")
	w.start("127.0.0.1:1").ready()
	content := w.file("var/snap/microk8s/7000/args/certs.d/" + name + "/hosts.toml")
	if !strings.Contains(content, `ca = "/var/snap/microk8s/current/args/certs.d/`+name+`/ca.crt"`) {
		t.Errorf("%v: %s", w.files(), content)
	}
}

func TestRegistriesConfLeadsToTheLocalPort(t *testing.T) {
	w := newWorld(t, makeAuthority(t).pem, "etc/crio/crio.conf.d").start("127.0.0.1:1").ready()
	var conf struct {
		Registry []struct {
			Prefix, Location string
			Mirror           []struct{ Location string }
		}
	}
	if err := toml.Unmarshal([]byte(w.file("etc/containers/registries.conf.d/50-trow.conf")), &conf); err != nil {
		t.Fatal(err)
	}
	if r := conf.Registry; len(r) != 1 || r[0].Prefix != name || r[0].Location != name || len(r[0].Mirror) != 1 ||
		r[0].Mirror[0].Location != "127.0.0.1:21000" {
		t.Errorf("%+v", conf)
	}
	w.until("an Event asks for a reload", func() bool { return len(w.published(node.Reload)) == 1 })
}

func TestFilesAreRestored(t *testing.T) {
	const dir = "etc/containerd/certs.d/" + name
	w := newWorld(t, makeAuthority(t).pem, "etc/containerd").start("127.0.0.1:1").ready()
	before, err := os.Stat(filepath.Join(w.root, dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	hosts := w.file(dir + "/hosts.toml")
	if err := os.Remove(filepath.Join(w.root, dir, "hosts.toml")); err != nil {
		t.Fatal(err)
	}
	w.until("the removed file is written again", func() bool { return w.file(dir+"/hosts.toml") == hosts })
	w.put(dir+"/hosts.toml", mark+" but changed")
	w.until("the changed file is corrected", func() bool { return w.file(dir+"/hosts.toml") == hosts })
	// A crash of this version, and one of an earlier version, have left these.
	w.put(dir+"/.trow-tmp-ABC", "half")
	w.put(dir+"/.hosts.toml.trow-tmp", "half")
	if err := os.RemoveAll(filepath.Join(w.root, dir, "hosts.toml")); err != nil {
		t.Fatal(err)
	}
	w.until("the file is written once more", func() bool { return w.file(dir+"/hosts.toml") == hosts })
	after, err := os.Stat(filepath.Join(w.root, dir, "ca.crt"))
	if err != nil || !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Errorf("a file that had not changed was written again: %v", err)
	}
	if got := w.files(); len(got) != 2 {
		t.Errorf("temporary files stay: %v", got)
	}
}

func TestForeignFilesStay(t *testing.T) {
	const containerd, docker = "etc/containerd/certs.d/" + name, "etc/docker/certs.d/" + name
	const crio = "etc/containers/certs.d/" + name
	for file, nothingIn := range map[string]string{
		containerd + "/hosts.toml":                      containerd,
		containerd + "/ca.crt":                          containerd,
		containerd + "/corp.crt":                        containerd, // containerd would ignore it beside our hosts.toml
		docker + "/ca.crt":                              "",
		crio + "/ca.crt":                                "",
		"etc/containers/registries.conf.d/50-trow.conf": "",
	} {
		w := newWorld(t, makeAuthority(t).pem, "etc/containerd", "etc/docker", "etc/crio/crio.conf.d")
		w.put("etc/containerd/config.toml", "")
		w.put(file, "mine")
		w.start("127.0.0.1:1").ready()
		w.until("an Event", func() bool { return len(w.published(node.Foreign)) == 1 })
		for range 2 { // two more checks
			const other = "etc/containers/certs.d/127.0.0.1:21000/ca.crt"
			w.until("the previous check", func() bool { return w.file(other) != "" })
			if err := os.Remove(filepath.Join(w.root, other)); err != nil {
				t.Fatal(err)
			}
			w.until("a check", func() bool { return w.file(other) != "" })
		}
		if texts := w.reported(node.Foreign); len(texts) != 1 || !strings.Contains(texts[0], "/"+file+" ") {
			t.Errorf("%s: reported %q", file, texts)
		}
		if nothingIn != "" {
			if entries, err := os.ReadDir(filepath.Join(w.root, nothingIn)); err != nil || len(entries) != 1 {
				t.Errorf("%s: %v beside it, %v", file, entries, err)
			}
		}
		if w.file(file) != "mine" {
			t.Errorf("%s: %q", file, w.file(file))
		}
		// Once the foreign file is removed, ours are written.
		if err := os.Remove(filepath.Join(w.root, file)); err != nil {
			t.Fatal(err)
		}
		w.until("our files", func() bool { return len(w.files()) == 8 })
	}
}

// TestALargeFileIsForeign, even if it starts with our marker: none of ours is that large.
func TestALargeFileIsForeign(t *testing.T) {
	const file = "etc/docker/certs.d/" + name + "/ca.crt"
	w := newWorld(t, makeAuthority(t).pem, "etc/docker")
	large := mark + strings.Repeat("x", 2<<20)
	w.put(file, large)
	w.start("127.0.0.1:1").ready()
	if len(w.reported(node.Foreign)) != 1 || w.file(file) != large {
		t.Errorf("reported %v", w.all())
	}
}

func TestAForeignFileBesideOursDoesNotBlockUpdates(t *testing.T) {
	const dir = "etc/containerd/certs.d/" + name
	old, next := makeAuthority(t), makeAuthority(t)
	w := newWorld(t, old.pem, "etc/containerd").start("127.0.0.1:1").ready()
	<-w.watching
	w.put(dir+"/notes.txt", "mine")
	w.publish(next.pem)
	w.until("the new CA", func() bool { return strings.HasSuffix(w.file(dir+"/ca.crt"), next.pem) })
}

func TestLinksDoNotLeadOut(t *testing.T) {
	for what, link := range map[string]struct{ at, parent string }{
		"the runtime's directory": {"etc/containerd", "etc"},
		"certs.d":                 {"etc/containerd/certs.d", "etc/containerd"},
		"the name's directory":    {"etc/containerd/certs.d/" + name, "etc/containerd/certs.d"},
		"a file":                  {"etc/containerd/certs.d/" + name + "/ca.crt", "etc/containerd/certs.d/" + name},
	} {
		for _, relative := range []bool{false, true} {
			outside := t.TempDir()
			target := outside
			w := newWorld(t, makeAuthority(t).pem, link.parent)
			at := filepath.Join(w.root, link.at)
			if relative {
				target, _ = filepath.Rel(filepath.Dir(at), outside)
			}
			if what == "a file" {
				target = filepath.Join(target, "victim")
				if err := os.WriteFile(filepath.Join(outside, "victim"), []byte(mark+" it looks like ours"),
					0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink(target, at); err != nil {
				t.Fatal(err)
			}
			w.start("127.0.0.1:1").ready()
			if len(w.reported(node.FileFailed))+len(w.reported(node.Foreign)) != 1 {
				t.Errorf("%s: reported %v", what, w.all())
			}
			entries, err := os.ReadDir(outside)
			if err != nil || what != "a file" && len(entries) > 0 {
				t.Errorf("%s: written outside the root: %v, %v", what, entries, err)
			}
			if what == "a file" {
				if b, err := os.ReadFile(filepath.Join(outside, "victim")); err != nil ||
					string(b) != mark+" it looks like ours" {
					t.Errorf("%s: %q %v", what, b, err)
				}
			}
		}
	}
}

func TestAMissingRootIsReported(t *testing.T) {
	w := newWorld(t, makeAuthority(t).pem)
	w.options.Root = filepath.Join(w.root, "none")
	w.start("127.0.0.1:1").ready()
	if len(w.reported(node.FileFailed)) != 1 {
		t.Errorf("reported %v", w.all())
	}
}

func TestContainerdsConfigurationIsChecked(t *testing.T) {
	const v2 = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n"
	const images = "[plugins.'io.containerd.cri.v1.images']\n"
	const registry3 = "[plugins.'io.containerd.cri.v1.images'.registry]\n"
	const v3 = "version = 3\n" + registry3
	const ours = `config_path = "/etc/containerd/certs.d"`
	const list = `config_path = "/etc/containerd/certs.d:/etc/docker/certs.d"`
	for what, c := range map[string]struct {
		config, version string
		want            string // part of the message; "": none
	}{
		"no file":                        {"", "", `[plugins."io.containerd.grpc.v1.cri".registry]` + "\n  " + ours},
		"no file, with the default list": {"", "containerd://2.2.1", "reads its default, a list"},
		"version 2, set":                 {v2 + ours, "", ""},
		"version 2, set with a slash":    {v2 + `config_path = "/etc/containerd/certs.d/"`, "", ""},
		"version 2, empty": {v2 + `config_path = ""`, "containerd://1.6.20",
			`[plugins."io.containerd.grpc`},
		"version 2, elsewhere":    {v2 + `config_path = "/opt/certs"`, "", `reads config_path = "/opt/certs", not`},
		"version 2, the key of 3": {"version = 2\n" + registry3 + ours, "", "is not set"},
		"version 3, set":          {v3 + ours, "containerd://2.1.0", ""},
		"version 3, empty":        {v3, "", `[plugins."io.containerd.cri.v1.images".registry]`},
		"version 1, set":          {"[plugins.cri.registry]\n" + ours, "", ""},
		"version 1, empty":        {"oom_score = 0", "", "[plugins.cri.registry]"},
		"a list, unknown release": {v2 + list, "", "from 2.1 on"},
		"a list, 1.7":             {v2 + list, "containerd://1.7.27-k3s1", ""},
		"a list, 2.1":             {v3 + list, "containerd://2.1.4", "this containerd (2.1)"},
		"a list, pulled by the plugin": {"version = 3\n" + images + "discard_unpacked_layers = true\n" + registry3 +
			list,
			"containerd://2.1.4", ""},
		"unset, pulled by plugin, 2.2": {"version = 3\n" + images + "use_local_image_pull=true",
			"containerd://2.2.0", ""},
		"unset, pulled by the plugin": {"version = 3\n" + images + "use_local_image_pull = true", "", "before 2.2"},
		"mirrors of the old kind": {v2 + "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\n" +
			"endpoint = [\"https://x\"]", "", "remove them before"},
		"not TOML":                 {"version = ", "", "cannot parse"},
		"the kubelet has Docker":   {`disabled_plugins = ["cri"]`, "", ""},
		"the kubelet has CRI-O":    {"", "cri-o://1.34.0", ""},
		"set in an import":         {`version = 2` + "\n" + `imports = ["/etc/containerd/conf.d/*.toml"]`, "", ""},
		"set in a relative import": {`version = 2` + "\n" + `imports = ["conf.d/a.toml"]`, "", ""},
		"not imported":             {`version = 2`, "", "is not set"},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, makeAuthority(t).pem, "etc/containerd")
			w.put("etc/containerd/conf.d/a.toml", v2+ours)
			if c.config != "" {
				w.put("etc/containerd/config.toml", c.config)
			}
			w.options.RuntimeVersion = c.version
			w.start("127.0.0.1:1").ready()
			got := w.reported(node.ConfigPath)
			switch {
			case c.want == "" && len(got) > 0:
				t.Errorf("reported %q", got)
			case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want) ||
				!bothWays(got[0]) && !strings.Contains(c.want, "cannot parse")):
				t.Errorf("reported %q, want %q", got, c.want)
			}
			if c.want != "" {
				w.until("an Event", func() bool { return len(w.published(node.ConfigPath)) == 1 })
				if text := w.published(node.ConfigPath)[0].Message; c.want != "cannot parse" && !bothWays(text) {
					t.Errorf("the Event is cut: %q", text)
				}
			}
			if c.config != "" && w.file("etc/containerd/config.toml") != c.config {
				t.Error("the configuration was edited")
			}
		})
	}
}

// bothWays reports whether a message names both ways out: the setting of containerd, and loopback names.
func bothWays(text string) bool {
	return strings.Contains(text, "config_path = ") && strings.Contains(text, "127.0.0.1:31000/") &&
		strings.Contains(text, "trow manifest --loopback-names")
}

// TestImportsOutsideCannotBeChecked: trow node does not see the whole node, and says so.
func TestImportsOutsideCannotBeChecked(t *testing.T) {
	const set = "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
	for what, c := range map[string]struct {
		imports, rest string
		kind          node.Kind
		want          string // "": no report
	}{
		"absolute":         {`["/opt/corp/*.toml"]`, set, node.Unchecked, `"/opt/corp/*.toml"`},
		"relative":         {`["../corp/a.toml"]`, set, node.Unchecked, `"/etc/corp/a.toml"`},
		"a pattern":        {`["/*/a.toml"]`, set, node.Unchecked, `"/*/a.toml"`},
		"inside":           {`["conf.d/*.toml", "/etc/containerd/b.toml"]`, set, node.Unchecked, ""},
		"mounted":          {`["/etc/shared/*.toml"]`, set, node.Unchecked, ""},
		"not set, outside": {`["/opt/a.toml"]`, "", node.ConfigPath, "cannot be checked"},
	} {
		w := newWorld(t, makeAuthority(t).pem, "etc/shared")
		w.put("etc/containerd/config.toml", "version = 2\nimports = "+c.imports+"\n"+c.rest)
		w.start("127.0.0.1:1").ready()
		got := w.reported(c.kind)
		if others := w.reported(node.ConfigPath); c.kind == node.Unchecked && len(others) > 0 {
			t.Errorf("%s: reported %q", what, others)
		}
		if c.want == "" {
			if len(got) > 0 {
				t.Errorf("%s: reported %q", what, got)
			}
			continue
		}
		if len(got) != 1 || !strings.Contains(got[0], c.want) || !strings.Contains(got[0], "cannot be checked") {
			t.Errorf("%s: reported %q, want %q", what, got, c.want)
		}
		w.until("an Event", func() bool { return len(w.published(c.kind)) == 1 })
	}
}

func TestContainerdOfADistributionIsNotChecked(t *testing.T) {
	w := newWorld(t, makeAuthority(t).pem, "etc/containerd")
	w.put("var/lib/rancher/k3s/agent/etc/containerd/config.toml", "")
	w.start("127.0.0.1:1").ready()
	if got := w.reported(node.ConfigPath); len(got) > 0 {
		t.Errorf("reported %q", got)
	}
}
