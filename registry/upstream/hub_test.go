package upstream_test

import (
	"strings"
	"testing"

	"trow/registry/upstream"
)

// TestTheSettingsOfDockerHub make the entry that people would write, and are refused beside one.
func TestTheSettingsOfDockerHub(t *testing.T) {
	token, empty := write(t, "token", "t0ken\n"), write(t, "empty", "\n")
	o, err := load(t, "upstreams: [{host: quay.io}]", "--proxy-docker-hub", "--hub-user=alice",
		"--hub-token-file="+token)
	if err != nil {
		t.Fatal(err)
	}
	up := upstream.New(upstream.Config{})
	if err := up.Set(o.Entries()); err != nil || !o.Used() {
		t.Fatal(err)
	}
	for host, want := range map[string]string{"docker.io": "f/docker.io/library/php", "quay.io": "f/quay.io/php"} {
		u, there, err := up.Find(host, "php")
		if err != nil || u.Local(there) != want {
			t.Errorf("%s: %v", host, err)
		}
	}
	if e := o.Entries()[1].Endpoints[0]; e.Username != "alice" || e.PasswordFile != token || len(o.Upstreams) != 1 {
		t.Errorf("%+v", o.Entries())
	}
	if o, err := load(t, "", "--proxy-docker-hub"); err != nil || len(o.Entries()) != 1 || !o.Used() {
		t.Errorf("without a login: %v", err)
	}
	for _, c := range []struct {
		want, file string
		args       []string
	}{
		{"entry 1 of upstreams is for docker.io as well", "upstreams: [{host: index.docker.io}]",
			[]string{"--proxy-docker-hub"}},
		{"they need proxy-docker-hub", "", []string{"--hub-user=alice", "--hub-token-file=" + token}},
		{"only one is set", "", []string{"--proxy-docker-hub", "--hub-user=alice"}},
		{"only one is set", "", []string{"--proxy-docker-hub", "--hub-token-file=" + token}},
		{"hub-token-file: " + empty + " is empty", "",
			[]string{"--proxy-docker-hub", "--hub-user=alice", "--hub-token-file=" + empty}},
		{"hub-token-file: ", "", []string{"--proxy-docker-hub", "--hub-user=alice", "--hub-token-file=/none"}},
		{"upstream-internal: \"10.0.0.1\" is not a network", "", []string{"--upstream-internal=10.0.0.1"}},
	} {
		o, err := load(t, c.file, c.args...)
		if err == nil {
			err = o.CheckFiles()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v; want %s", c.args, err, c.want)
		}
	}
}
