//go:build abuse

package soak

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cell bounds the memory of one server as the container of manifests/trow.yaml does. Where the test may create a
// control group (cgroup v2 with the memory controller, root), the kernel enforces the limit. Elsewhere the test
// compares the peak of the resident memory, and of the socket buffers that a control group would count, with the limit.
// In both cases the server sees the limit in /sys/fs/cgroup/memory.max, as in a pod.
type cell struct {
	limit   int64  // bytes
	group   string // directory of the control group; empty: the kernel does not enforce the limit
	sockets int64  // bytes of all socket buffers of the machine before the server started
}

const cgroups = "/sys/fs/cgroup"

// The commands that start the server in a cell. Both make the limit visible where a container has it.
const (
	enterGroup = `group=$1 && shift && echo $$ >"$group/cgroup.procs" &&
		exec unshare --mount sh -c 'mount --bind "$1" /sys/fs/cgroup && shift && exec "$@"' sh "$group" "$@"`
	showLimit = `size=$1 && shift && mount -t tmpfs none /sys/fs/cgroup &&
		echo "$size" >/sys/fs/cgroup/memory.max && exec "$@"`
)

// containerLimit returns the memory limit of the registry's container in manifests/trow.yaml.
func containerLimit(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "manifests", "trow.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, container, ok := strings.Cut(string(b), "- name: trow\n")
	m := regexp.MustCompile(`limits: \{memory: (\d+)Mi\}`).FindStringSubmatch(container)
	if !ok || m == nil {
		t.Fatal("manifests/trow.yaml: the container trow has no memory limit of the form 512Mi")
	}
	mib, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return mib << 20
}

// newCell makes a cell for one process, until the test ends: a control group counts the peak from its creation on.
func newCell(t *testing.T, limit int64) *cell {
	t.Helper()
	c := &cell{limit: limit, sockets: socketMemory()}
	group := filepath.Join(cgroups, fmt.Sprintf("trow-abuse.%d.%d", os.Getpid(), time.Now().UnixNano()))
	controllers, err := os.ReadFile(filepath.Join(cgroups, "cgroup.subtree_control"))
	if err != nil || !strings.Contains(string(controllers), "memory") || os.Mkdir(group, 0o755) != nil {
		return c
	}
	t.Cleanup(func() {
		// The kernel may need a moment to forget the process that has just ended.
		eventually(t, 5*time.Second, "the control group is removed", func() bool { return os.Remove(group) == nil })
	})
	for name, value := range map[string]string{"memory.max": fmt.Sprint(limit), "memory.swap.max": "0"} {
		if err := os.WriteFile(filepath.Join(group, name), []byte(value), 0); err != nil && name == "memory.max" {
			t.Fatal(err)
		}
	}
	c.group = group
	return c
}

// under returns the command that starts a program in the cell.
func (c *cell) under() []string {
	if c.group != "" {
		return []string{"sh", "-c", enterGroup, "sh", c.group}
	}
	show := []string{"unshare", "--mount", "sh", "-c", showLimit, "sh", fmt.Sprint(c.limit)}
	if exec.Command(show[0], append(show[1:], "true")...).Run() == nil {
		return show
	}
	return []string{"env", fmt.Sprint("GOMEMLIMIT=", c.limit/10*9)}
}

// String says how the limit is enforced.
func (c *cell) String() string {
	if c.group != "" {
		return fmt.Sprintf("cgroup v2, memory.max %d MiB", c.limit>>20)
	}
	return fmt.Sprintf("no cgroup v2 for this test: resident memory and socket buffers, want below %d MiB", c.limit>>20)
}

// peakResident returns the peak of the resident memory of a process in bytes, or 0 if it is dead.
func peakResident(pid int) int64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return number(status, `VmHWM:\s+(\d+) kB`) << 10
}

// socketMemory returns how many bytes the TCP sockets of the machine take.
func socketMemory() int64 {
	b, _ := os.ReadFile("/proc/net/sockstat")
	return number(b, `TCP: .* mem (\d+)`) * int64(os.Getpagesize())
}

// number returns the number that a pattern finds, or 0.
func number(text []byte, pattern string) int64 {
	m := regexp.MustCompile(pattern).FindSubmatch(text)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(m[1]), 10, 64) // digits
	return n
}

// measure updates the figures of memory in a report.
func (c *cell) measure(pid int, r *report) {
	r.resident = max(r.resident, peakResident(pid))
	r.sockets = max(r.sockets, socketMemory()-c.sockets)
	if c.group == "" {
		return
	}
	read := func(name, pattern string) int64 {
		b, _ := os.ReadFile(filepath.Join(c.group, name))
		return number(b, pattern)
	}
	r.group = max(r.group, read("memory.peak", `(\d+)`), read("memory.current", `(\d+)`))
	r.oom = max(r.oom, read("memory.events", `oom_kill (\d+)`))
}

// complaints returns what is wrong with the memory of a report. The peak of a control group includes files in the page
// cache, which the kernel drops before it kills: so only the kill counts.
func (c *cell) complaints(r *report) (all []string) {
	if r.oom > 0 {
		all = append(all, fmt.Sprintf("the kernel killed the server at %d MiB (oom_kill %d)", c.limit>>20, r.oom))
	}
	used, what := r.resident, "resident"
	if c.group == "" {
		used, what = r.resident+r.sockets, "resident and in socket buffers"
	}
	if used >= c.limit {
		all = append(all, fmt.Sprintf("%d MiB %s, want below %d", used>>20, what, c.limit>>20))
	}
	return all
}
