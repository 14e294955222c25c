package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// TestBothNames checks that the registry's name and, where it is asked for, loopback lead to it, in the kube-proxy mode
// of this run.
func TestBothNames(t *testing.T) {
	c := start(t)
	armed(t, c)
	apply(t, c, rendered(t, c, "--loopback-names"))
	namespace(t, c, "names")
	for i, prefix := range []string{host, "127.0.0.1:31000"} {
		name := fmt.Sprintf("n%d", i)
		push(t, c, "names", name, app(t, name, 0))
		running(t, c, "names", name, prefix+"/names:"+name)
	}
	t.Logf("trow node: %s", c.Kubectl(t, "--namespace=kube-public", "logs", "daemonset/trow-node"))
}

// containerdConfig is the configuration of this node's containerd.
const containerdConfig = "/etc/containerd/config.toml"

// TestContainerdWithoutConfigPath checks that an Event has the lines that containerd's configuration lacks, and that
// names with loopback work until these are added.
func TestContainerdWithoutConfigPath(t *testing.T) {
	c := start(t)
	armed(t, c)
	apply(t, c, rendered(t, c, "--loopback-names"))
	namespace(t, c, "unseen")
	push(t, c, "unseen", "1", app(t, "unseen", 0))
	before, err := os.ReadFile(containerdConfig)
	if err != nil {
		t.Fatal(err)
	}
	line := `config_path = "/etc/containerd/certs.d"`
	if !strings.Contains(string(before), line) {
		t.Fatalf("%s has no %s:\n%s", containerdConfig, line, before)
	}
	configure := func(text string) {
		t.Helper()
		if err := os.WriteFile(containerdConfig, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := c.StopComponent("containerd"); err != nil {
			t.Fatal(err)
		}
		if err := c.StartComponent("containerd"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { configure(string(before)) })
	configure(strings.Replace(string(before), line, "", 1))
	// A restarted trow node checks at once, not in a minute.
	c.Kubectl(t, "--namespace=kube-public", "rollout", "restart", "daemonset/trow-node")
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "daemonset/trow-node", "--timeout=60s")
	var description string
	cluster.Eventually(t, 90*time.Second, "an Event says what to do", func() error {
		description = c.Kubectl(t, "--namespace=kube-public", "describe", "daemonset", "trow-node")
		for _, text := range []string{"ConfigPathMissing", line, "127.0.0.1:31000", "--loopback-names"} {
			if !strings.Contains(description, text) {
				return fmt.Errorf("%s is missing in %s", text, description)
			}
		}
		return nil
	})
	_, events, _ := strings.Cut(description, "Events:")
	t.Log(events)
	running(t, c, "unseen", "loopback", "127.0.0.1:31000/unseen:1")
	c.Apply(t, pod("unseen", "named", containers(host+"/unseen:1")))
	cluster.Eventually(t, time.Minute, "the name cannot be pulled", func() error {
		out, err := c.TryKubectl("--namespace=unseen", "describe", "pod", "named")
		if err != nil || !strings.Contains(out, "ErrImagePull") && !strings.Contains(out, "ImagePullBackOff") {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	configure(string(before))
	cluster.Eventually(t, 3*time.Minute, "it can be pulled with the lines added", func() error {
		return podReady(c, "unseen", "named")
	})
}

// TestForeignFiles checks that a file of another program stays as it is.
func TestForeignFiles(t *testing.T) {
	c := start(t)
	armed(t, c)
	file, foreign := nodeFiles+"/hosts.toml", "server = \"https://elsewhere.test\"\n"
	cluster.Eventually(t, time.Minute, "the node's files exist", func() error { _, err := os.Stat(file); return err })
	if err := os.WriteFile(file, []byte(foreign), 0o644); err != nil {
		t.Fatal(err)
	}
	c.Kubectl(t, "--namespace=kube-public", "rollout", "restart", "daemonset/trow-node")
	c.Kubectl(t, "--namespace=kube-public", "rollout", "status", "daemonset/trow-node", "--timeout=60s")
	cluster.Eventually(t, time.Minute, "an Event reports it", func() error {
		if out := c.Events(t, "kube-public"); !strings.Contains(out, "ForeignFile") || !strings.Contains(out, file) {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if b, err := os.ReadFile(file); err != nil || string(b) != foreign {
		t.Errorf("the file is now %q, %v", b, err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	cluster.Eventually(t, 90*time.Second, "trow node writes the removed file again", func() error {
		b, err := os.ReadFile(file)
		if err == nil && !strings.Contains(string(b), "127.0.0.1:21000") {
			err = fmt.Errorf("%s", b)
		}
		return err
	})
}
