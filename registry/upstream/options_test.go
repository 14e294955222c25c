package upstream_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"trow/registry/auth"
	"trow/registry/namespace"
	"trow/registry/settings/settingstest"
	"trow/registry/upstream"
)

var load = settingstest.Load[upstream.Options]

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSettings(t *testing.T) {
	password := write(t, "hub", "secret\n")
	o, err := load(t, `
cache-size: 50Gi
upstreams:
- host: index.docker.io
  endpoints:
  - url: https://docker.io
    username: alice
    password-file: `+password+`
  fresh: 1h
  may-run: held
  allow: "library/**, team/*"
  deny: [library/old]
  keep: [{repository: php, tags: ["8.3*"]}]
- host: QUAY.io.
  path: /team/
  fresh: 0s
  read: [authenticated]
- {host: quay.io, insecure: true, endpoints: [{url: "http://Mirror.lan:5000"}, {url: "https://quay.io/"}]}
- {host: "registry.lan:5000", also: minio.lan}
`, "--upstream-any")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := o.Size(); err != nil || n.Of(1) != 50<<30 || len(o.Upstreams) != 4 || !o.Any || o.Offline {
		t.Errorf("%+v, %v", o, err)
	}
	u := upstream.New(upstream.Config{Guard: upstream.NewGuard()})
	if err := u.Set(o.Upstreams); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ host, repo, name, path, err string }{
		"a short name":        {"docker.io", "php", "f/docker.io/library/php", "", ""},
		"an alias":            {"registry-1.docker.io", "library/php", "f/docker.io/library/php", "", ""},
		"another alias":       {"Docker.IO:443", "team/x", "f/docker.io/team/x", "", ""},
		"not allowed":         {"docker.io", "other/x", "", "", "allow: of the upstream does not name it"},
		"denied":              {"docker.io", "old", "", "", "deny: of the upstream names it"},
		"the longest path":    {"quay.io", "team/app", "f/quay.io/team/app", "team", ""},
		"the path itself":     {"quay.io", "team", "f/quay.io/team", "team", ""},
		"not on a slash":      {"quay.io", "teamwork/app", "f/quay.io/teamwork/app", "", ""},
		"a port":              {"registry.lan:05000", "a", "f/registry.lan__5000/a", "", ""},
		"another port":        {"registry.lan", "a", "", "", "no entry of upstreams names it"},
		"an unknown host":     {"ghcr.io", "a/b", "", "", "no entry of upstreams names it"},
		"a name that is not":  {"quay.io", "../a", "", "", "the name of the repository is not valid"},
		"no name":             {"docker.io", "", "", "", "the name of the repository is not valid"},
		"a host that is not":  {"quay.io/x", "a", "", "", "the host is not valid"},
		"a user in the host":  {"me@quay.io", "a", "", "", "the host is not valid"},
		"an address":          {"127.1", "a", "", "", "the host is not valid"},
		"a name that is long": {"quay.io", strings.Repeat("a/", 123) + "a", "", "", "more than 255 characters"},
	} {
		got, repo, err := u.Find(c.host, c.repo)
		if c.err != "" {
			if !errors.Is(err, upstream.ErrRefused) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %s", name, err, c.err)
			}
			continue
		}
		if err != nil || got.Local(repo) != c.name || got.Path != c.path {
			t.Errorf("%s: %+v, %s, %v", name, got, repo, err)
		}
	}
	hub, _, _ := u.Find("docker.io", "php")
	team, _, _ := u.Find("quay.io", "team/a")
	quay, _, _ := u.Find("quay.io", "a")
	if hub.Fresh != time.Hour || team.Fresh != 0 || quay.Fresh != 10*time.Minute || len(team.Read) != 1 ||
		!hub.Keeps("library/php", "8.3.1") || hub.Keeps("library/php", "8.2") ||
		len(hub.Kept()) != 1 {
		t.Errorf("%+v, %+v, %+v", hub, team, quay)
	}
}

func TestUnknownHostsOnlyIfAnyIsOn(t *testing.T) {
	u := upstream.New(upstream.Config{Any: true})
	err := u.Set([]upstream.Entry{{Host: "quay.io", Path: "team"}, {Host: "docker.io", As: "hub.example"}})
	if err != nil {
		t.Fatal(err)
	}
	got, repo, err := u.Find("ghcr.io", "a/b")
	if err != nil || got.Local(repo) != "f/ghcr.io/a/b" {
		t.Errorf("%+v, %v", got, err)
	}
	if again, _, _ := u.Find("GHCR.io", "c"); again != got {
		t.Error("an unknown host is made anew for each request")
	}
	for _, host := range []string{"quay.io", "hub.example", "localhost", "intranet"} {
		_, _, err := u.Find(host, "a/b")
		if !errors.Is(err, upstream.ErrRefused) || !strings.Contains(err.Error(), "/a/b: refused: no entry") {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func TestSettingsThatAreInvalid(t *testing.T) {
	empty, config := write(t, "empty", "\n"), write(t, "config.json", "{")
	entry := func(rest string) string { return "upstreams: [{host: quay.io, " + rest + "}]\n" }
	end := func(rest string) string { return entry("endpoints: [{url: 'https://quay.io', " + rest + "}]") }
	for file, want := range map[string]string{
		"upstreams: [{path: a}]\n": "entry 1: host: it is missing",

		"upstreams: [{host: 'a b'}]\n": `entry 1 (a b): host: "a b" is not a valid host`,

		"upstreams: [{host: 'quay.io:0'}]\n": "its port is not between",

		"upstreams: [{host: quay.io}, {host: 'QUAY.IO:443'}]\n": "entry 2 (QUAY.IO:443): host: an earlier entry",

		"upstreams: [{host: quay.io, as: q}, {host: ghcr.io, as: q}]\n": "entry 2 (ghcr.io): as: an earlier entry",

		"upstreams: [{host: quay.io, as: q}, {host: quay.io, path: a}]\n": "as: an earlier entry has the name q",

		"upstreams: [{host: quay.io, as: a/b}]\n":            "as: \"a/b\" is not one part",
		"upstreams: [{host: '[::1]:5000'}]\n":                "as: ",
		"upstreams: [{host: quay.io, pasword: x}]\n":         "unknown key",
		"cache-size: much\n":                                 "cache-size: ",
		"cache-size: 0\n":                                    "cache-size: ",
		entry("path: A"):                                     "path: ",
		entry("fresh: soon"):                                 "soon",
		entry("may-run: perhaps"):                            "may-run: \"perhaps\" is not one of deny,",
		entry("allow: ['a@b']"):                              "allow: ",
		entry("deny: ['/(/']"):                               "deny: ",
		entry("read: [alice]"):                               "read: who: ",
		entry("keep: [{repository: A, tags: [x]}]"):          "keep: entry 1: repository: ",
		entry("path: a, keep: [{repository: b, tags: [x]}]"): "is not below the path a",
		entry("keep: [{repository: a}]"):                     "keep: entry 1: tags: ",
		entry("ca-file: /nowhere"):                           "ca-file: ",
		entry("ca-file: " + empty):                           "has no PEM certificate",
		entry("also: [http://x]"):                            "also: ",
		entry("realm: ['a/b']"):                              "realm: ",

		entry("endpoints: [{username: a}]"): "endpoints: entry 1: url: it is missing",

		entry("endpoints: [{url: 'http://quay.io'}]"):            "url: http sends passwords",
		entry("endpoints: [{url: 'https://quay.io/v2'}]"):        "url: not of the form",
		entry("endpoints: [{url: 'https://me:secret@quay.io'}]"): "url: it has a login",
		entry("endpoints: [{url: 'file:///etc/passwd'}]"):        "url: not of the form",
		end("username: a"):                          "username: requires password-file",
		end("password-file: " + empty):              "password-file: requires username",
		end("username: a, password-file: " + empty): "is empty",
		end("username: a, password-file: /nowhere"): "password-file: stat /nowhere",
		end("docker-config: /nowhere"):              "docker-config: ",
		end("docker-config: " + config):             "docker-config: ",
		end("secret: name"):                         "secret: ",
		end("helper: ../sh"):                        "helper: ",
		end("helper: a, secret: b/c"):               "only one of them may be set",
		entry("endpoints: [{url: 'https://a.example'}, {url: 'https://b/', x: y}]"): "unknown key",
	} {
		o, err := load(t, file)
		if err == nil { // then it is one of the files that it names
			err = o.CheckFiles()
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "me:secret") {
			t.Errorf("%s: %v, want %s", file, err, want)
		}
		if strings.HasPrefix(file, "upstreams") && err != nil && !strings.Contains(err.Error(), "entry ") {
			t.Errorf("%s: %v does not name the entry", file, err)
		}
	}
}

// TestSettingsAreValidWithoutTheirFiles: trow check and trow config check read them where the server's files are not.
func TestSettingsAreValidWithoutTheirFiles(t *testing.T) {
	for _, file := range []string{"upstreams: [{host: quay.io, ca-file: /nowhere}]\n",
		"upstreams: [{host: quay.io, endpoints: [{url: 'https://quay.io', docker-config: /nowhere}]}]\n",
		"upstreams: [{host: quay.io, endpoints: [{url: 'https://quay.io', username: a, password-file: /nowhere}]}]\n",
		"proxy-docker-hub: true\nhub-user: a\nhub-token-file: /nowhere\n"} {
		o, err := load(t, file)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if err := o.CheckFiles(); err == nil || !strings.Contains(err.Error(), "/nowhere") {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestAnyWithAProxy is refused, unless a setting says that the proxy refuses internal addresses.
func TestAnyWithAProxy(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "http://proxy.example:3128")
	if _, err := load(t, "upstream-any: true\n"); err == nil ||
		!strings.Contains(err.Error(), "upstream-any: a proxy") {
		t.Error(err)
	}
	for _, file := range []string{"upstreams: [{host: quay.io}]\n",
		"upstream-any: true\nupstream-proxy-filters: true\n"} {
		if _, err := load(t, file); err != nil {
			t.Error(err)
		}
	}
	u := upstream.New(upstream.Config{Any: true})
	if err := u.Set(nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := u.Find("ghcr.io", "a"); !errors.Is(err, upstream.ErrRefused) {
		t.Errorf("the package itself does not refuse: %v", err)
	}
}

// TestNamesAndReaders: the settings of upstreams say what stands for a host here, and who may read what is held of it.
func TestNamesAndReaders(t *testing.T) {
	o, err := load(t, `
upstreams:
- {host: docker.io, as: hub, read: ["user:alice"]}
- {host: quay.io, path: team, read: [authenticated]}
- {host: quay.io}
`)
	if err != nil {
		t.Fatal(err)
	}
	names := namespace.NewTable(nil)
	u := upstream.New(upstream.Config{Guard: upstream.NewGuard(), Names: names})
	if err := u.Set(o.Upstreams); err != nil {
		t.Fatal(err)
	}
	if here, err := names.Here("docker.io", "nginx"); here != "f/hub/library/nginx" || err != nil {
		t.Errorf("%s, %v", here, err)
	}
	for repo, want := range map[string]string{"f/hub/library/nginx": "docker.io", "f/docker.io/nginx": "docker.io",
		"f/hub/nginx": "docker.io", "f/quay.io/team/app": "quay.io/team", "f/quay.io__443/team": "quay.io/team",
		"f/quay.io/other": "quay.io", "f/quay.io/teamwork": "quay.io", "f/ghcr.io/a": "", "f/x": "", "team/app": ""} {
		who, from, ok := u.Readers(repo)
		if ok != (want != "") || ok && from != want {
			t.Errorf("%s: %q, %v, want %q", repo, from, ok, want)
		}
		if ok && (who.Match(auth.Named("alice", nil)) != true ||
			who.Match(auth.Named("", nil)) != (want == "quay.io")) {
			t.Errorf("%s: %v", repo, who)
		}
	}
	if !names.Known("docker.io") || !names.Known("quay.io") || names.Known("ghcr.io") {
		t.Error("the wrong namespaces are known")
	}
	if err := u.Set(nil); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := u.Readers("f/hub/library/nginx"); ok || names.Known("docker.io") {
		t.Error("what was taken out of the settings is still known")
	}
}
