package cluster

import (
	"bufio"
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// kubectlTimeout is longer than any wait that a test asks kubectl for.
const kubectlTimeout = 10 * time.Minute

// kubectl runs kubectl as the administrator, and returns its output, errors included.
func (c *Cluster) kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, kubectlTimeout)
	defer cancel()
	cmd := c.command(ctx, "kubectl", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w", strings.Join(args, " "), err)
	}
	return string(out), err
}

// TryKubectl runs kubectl and returns its output, errors included.
func (c *Cluster) TryKubectl(args ...string) (string, error) {
	return c.kubectl(context.Background(), "", args...)
}

// Kubectl runs kubectl and returns its output. If it fails, the test fails.
func (c *Cluster) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.TryKubectl(args...)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return out
}

// Output runs kubectl and returns its standard output alone, which is what a pipe passes on. If it fails, the test
// fails.
func (c *Cluster) Output(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), kubectlTimeout)
	defer cancel()
	cmd := c.command(ctx, "kubectl", args...)
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("kubectl %s: %v: %s%s", strings.Join(args, " "), err, out, errOut.String())
	}
	return string(out)
}

// Apply applies objects and returns kubectl's output. If that fails, the test fails.
func (c *Cluster) Apply(t testing.TB, yaml string) string {
	t.Helper()
	out, err := c.TryApply(yaml)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return out
}

// TryApply applies objects and returns kubectl's output, errors included.
func (c *Cluster) TryApply(yaml string) (string, error) {
	return c.kubectl(context.Background(), yaml, "apply", "-f", "-")
}

// Events returns the Events of a namespace, the oldest first.
func (c *Cluster) Events(t testing.TB, namespace string) string {
	t.Helper()
	return c.Kubectl(t, "--namespace", namespace, "get", "events", "--sort-by=.lastTimestamp", "--output=wide")
}

// Eventually calls f until it returns no error. After the timeout the test fails with f's last error.
func Eventually(t testing.TB, timeout time.Duration, what string, f func() error) {
	t.Helper()
	start := time.Now()
	for {
		err := f()
		if err == nil {
			t.Logf("%s after %.1fs", what, time.Since(start).Seconds())
			return
		}
		if time.Since(start) > timeout {
			t.Fatalf("%s: not within %v: %v", what, timeout, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// forwarding matches the first line of kubectl port-forward.
var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) `)

// PortForward forwards an address of this machine to a port of a pod or Service (pod/NAME, svc/NAME) until the test
// ends, and returns the address.
func (c *Cluster) PortForward(t testing.TB, namespace, target string, port int) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := c.command(ctx, "kubectl", "--namespace", namespace, "port-forward", "--address=127.0.0.1", target,
		fmt.Sprintf(":%d", port))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errOut strings.Builder
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	m := forwarding.FindStringSubmatch(line)
	if m == nil {
		cancel()
		_ = cmd.Wait()
		t.Fatalf("kubectl port-forward %s: %q, %v: %s", target, line, err, errOut.String())
	}
	return m[1]
}

// ShowOnFailure makes a failing test log the state of the cluster: pods, Events and the ends of the logs.
func (c *Cluster) ShowOnFailure(t testing.TB) {
	t.Helper()
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, args := range [][]string{
			{"get", "pods", "--all-namespaces", "--output=wide"},
			{"get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"},
			{"--namespace=kube-public", "logs", "--selector=app.kubernetes.io/name=trow",
				"--all-containers", "--prefix",
				"--tail=30"},
		} {
			out, _ := c.TryKubectl(append(args, "--request-timeout=10s")...)
			t.Logf("---- kubectl %s\n%s", strings.Join(args, " "), out)
		}
		for _, name := range Components() {
			t.Logf("---- the end of %s\n%s", c.log(name), c.Tail(name, 25))
		}
	})
}
