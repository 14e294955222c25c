package namespace_test

import (
	"regexp"
	"strings"
	"testing"

	"trow/registry"
	"trow/registry/namespace"
)

func TestLocalNames(t *testing.T) {
	table := namespace.NewTable(nil)
	table.Set(map[string]string{"[2001:db8::1]:5000": "six", "ghcr.io": "gh", "lan:443": "taken.example"})
	long := strings.Repeat("a", 200)
	for _, c := range []struct{ host, repo, local string }{
		{"docker.io", "library/nginx", "f/docker.io/library/nginx"},
		{"docker.io", "nginx", "f/docker.io/library/nginx"},
		{"index.docker.io", "nginx", "f/docker.io/library/nginx"},
		{"registry-1.docker.io", "a/b", "f/docker.io/a/b"},
		{"registry.hub.docker.com", "nginx", "f/docker.io/library/nginx"},
		{"Docker.IO.", "nginx", "f/docker.io/library/nginx"},
		{"docker.io:443", "nginx", "f/docker.io/library/nginx"},
		{"docker.io:5000", "nginx", "f/docker.io__5000/nginx"},
		{"quay.io", "nginx", "f/quay.io/nginx"},
		{"quay.io:443", "a", "f/quay.io/a"},
		{"quay.io:08443", "a", "f/quay.io__8443/a"},
		{"localhost:5000", "a/b/c", "f/localhost__5000/a/b/c"},
		{"10.0.0.7:5000", "a", "f/10.0.0.7__5000/a"},
		{"foo", "a", "f/foo__443/a"}, // as everywhere: foo/a is docker.io/foo/a, so the host has a port
		{"ghcr.io", "a/b", "f/gh/a/b"},
		{"[2001:DB8:0::1]:5000", "a", "f/six/a"},
		{"[2001:db8::1]", "a", ""}, // it needs another name
		{"taken.example", "a", ""}, // the name is that of lan:443
		{"lan", "a", "f/taken.example/a"},
		{"quay.io", "f/docker.io/library/nginx", "f/quay.io/f/docker.io/library/nginx"},
		{"quay.io", long + "/" + long, ""},
		{strings.Repeat("a.", 100) + "io", strings.Repeat("a", 60), ""},
		{"quay.io", "A", ""}, {"quay.io", "", ""}, {"quay.io", "../x", ""}, {"quay.io", "a//b", ""},
		{"quay.io", "a/", ""},
		{"", "a", ""}, {"quay.io/x", "a", ""}, {"https://quay.io", "a", ""}, {"user@quay.io", "a", ""}, {"..", "a", ""},
		{"quay.io:0", "a", ""}, {"quay.io:65536", "a", ""}, {"1.2", "a", ""}, {"a b", "a", ""}, {"a_b.io", "a", ""},
		{"quay.io\x00", "a", ""}, {"[::1", "a", ""}, {"quay.io%2fx", "a", ""}, {"-a.io", "a", ""},
	} {
		n, err := namespace.Parse(c.host, c.repo)
		local := ""
		if err == nil {
			local, err = table.Local(n)
		}
		if local != c.local || (err == nil) != (c.local != "") {
			t.Errorf("%q %q: %q, %v; want %q", c.host, c.repo, local, err, c.local)
		}
		if back, ok := table.Upstream(local); c.local != "" && (!ok || back != n) {
			t.Errorf("%s leads back to %v, %v; want %v", local, back, ok, n)
		}
	}
}

func TestOtherSpellingsOfALocalName(t *testing.T) {
	table := namespace.NewTable(nil)
	table.Set(map[string]string{"ghcr.io": "gh", "registry.lan": "quay.io"})
	for text, want := range map[string]string{
		"f/docker.io/nginx": "f/docker.io/library/nginx", "f/index.docker.io/nginx": "f/docker.io/library/nginx",
		"f/registry-1.docker.io/a/b": "f/docker.io/a/b", "f/ghcr.io/a/b": "f/gh/a/b", "f/gh/a/b": "f/gh/a/b",
		"f/docker.io__443/nginx": "f/docker.io/library/nginx", "f/a.io__05000/b": "f/a.io__5000/b",
		"f/docker/nginx": "f/docker.io/library/nginx", "f/docker/a/b": "f/docker.io/a/b", // as with Trow 0.x
		"f/quay.io/a": "f/quay.io/a", "f/registry.lan/a": "f/quay.io/a",
		"f/team/app": "", "f/docker.io": "", "f/a_b.io/c": "", "f/quay.io__0/a": "", "library/nginx": "",
		"f": "", "f/": "",
		"docker.io/nginx": "", "f//a": "", "f/../a": "", "f/docker.io/../a": "",
	} {
		n, ok := table.Upstream(text)
		local := ""
		if ok {
			local, _ = table.Local(n)
		}
		if local != want {
			t.Errorf("%s: %q, want %q", text, local, want)
		}
	}
}

func TestThePathMayHaveTheLocalName(t *testing.T) {
	var table *namespace.Table
	for _, c := range [][3]string{
		{"docker.io", "library/nginx", "f/docker.io/library/nginx"},
		{"docker.io", "f/docker.io/library/nginx", "f/docker.io/library/nginx"},
		{"docker.io", "f/index.docker.io/nginx", "f/docker.io/library/nginx"},
		{"quay.io", "f/docker.io/library/nginx", "f/quay.io/f/docker.io/library/nginx"},
		{"[::1]", "a", ""},
	} {
		if got, err := table.Here(c[0], c[1]); got != c[2] || (err == nil) != (c[2] != "") {
			t.Errorf("%v: %q, %v", c, got, err)
		}
	}
}

func TestSites(t *testing.T) {
	o := namespace.Options{Sites: []namespace.Site{{Host: "Hub.trow.example", Upstream: "index.docker.io"},
		{Host: "quay.trow.example:8443", Upstream: "quay.io"}}}
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	table := namespace.NewTable(o.Sites)
	for host, want := range map[string]string{"hub.trow.example": "docker.io", "HUB.trow.example.:5000": "docker.io",
		"quay.trow.example:8443": "quay.io", "quay.trow.example": "", "trow.example": "", "": "", "[": "", "a/b": ""} {
		if got, ok := table.Site(host); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", host, got, ok)
		}
	}
	if !table.Known("docker.io") || table.Known("ghcr.io") {
		t.Error("the wrong namespaces are known")
	}
	for text, s := range map[string][]namespace.Site{
		"namespaces: entry 1: host: it is missing": {{Upstream: "docker.io"}},
		"namespaces: entry 2: host: an earlier entry has a.example": {{Host: "a.example", Upstream: "docker.io"},
			{Host: "A.example:443", Upstream: "quay.io"}},
		"namespaces: entry 1: upstream: it is missing":            {{Host: "a.example"}},
		"namespaces: entry 1: upstream: \"a/b\" is not a valid":   {{Host: "a.example", Upstream: "a/b"}},
		"namespaces: entry 1: upstream: it is the host itself":    {{Host: "a.example", Upstream: "a.example"}},
		"namespaces: entry 1: upstream: \"[::1]\" cannot be part": {{Host: "a.example", Upstream: "[::1]"}},
	} {
		o := namespace.Options{Sites: s}
		if err := o.Validate(); err == nil || !strings.HasPrefix(err.Error(), text) {
			t.Errorf("%v: %v, want %s…", s, err, text)
		}
	}
	for _, ours := range []string{"hub.trow.example", "docker.io"} {
		err := o.CheckNames([]string{"a.example", ours})
		if err == nil || !strings.Contains(err.Error(), ours+" is one of") {
			t.Errorf("%s as a name of the registry: %v", ours, err)
		}
	}
}

// FuzzNames: whatever a client sends leads nowhere but to a valid name below f/, and back to the same upstream.
// specHost is the form of a host without upper case (github.com/distribution/reference, "domain").
var specHost = regexp.MustCompile(`^([a-z0-9]+(-+[a-z0-9]+)*(\.[a-z0-9]+(-+[a-z0-9]+)*)*|\[[0-9a-f:.]+\])` +
	`(:[0-9]{1,5})?$`)

func FuzzNames(f *testing.F) {
	for _, s := range [][2]string{{"docker.io", "nginx"}, {"quay.io:5000", "a/b"}, {"[::1]:5", "a"},
		{"", "f/docker.io/nginx"},
		{"a__5000", "f/a__5000/b"}, {"foo", "f/foo__443/x"}, {"127.1", "x"}, {"docker.io", "f/docker.io/f/docker.io/x"},
		{"taken.example", "f/six/a"}} {
		f.Add(s[0], s[1])
	}
	table := namespace.NewTable([]namespace.Site{{Host: "hub.example", Upstream: "docker.io"}})
	table.Set(map[string]string{"[::1]:5000": "six", "ghcr.io": "gh", "lan:443": "taken.example"})
	check := func(t *testing.T, n namespace.Name) {
		local, err := table.Local(n)
		if err != nil {
			return
		}
		if !registry.ValidName(local) || !namespace.Within(local) || strings.Count(local, "/") < 2 ||
			len(local) > namespace.MaxName {
			t.Fatalf("%v: local name %q", n, local)
		}
		if back, ok := table.Upstream(local); !ok || back != n {
			t.Fatalf("%v: %q leads back to %v, %v", n, local, back, ok)
		}
		if again, err := namespace.Parse(n.Host, n.Repo); err != nil || again != n {
			t.Fatalf("%v has another form: %v, %v", n, again, err)
		}
	}
	f.Fuzz(func(t *testing.T, host, repo string) {
		if n, err := namespace.Parse(host, repo); err == nil {
			check(t, n)
			here, err := table.Here(n.Host, repo)
			if err == nil && !namespace.Within(here) {
				t.Fatalf("%q %q: %q", host, repo, here)
			}
		}
		if n, ok := table.Upstream(repo); ok {
			check(t, n)
			if _, err := table.Local(n); err != nil {
				t.Fatalf("%q is a local name, and %v has none: %v", repo, n, err)
			}
		}
		table.Site(host)
		if got := namespace.ValidHost(host); got != specHost.MatchString(host) {
			t.Fatalf("ValidHost(%q) is %v", host, got)
		}
	})
}
