package server

import (
	"math"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// gcPercent is how much garbage the heap may have, in percent of what is in use. Most of what is in use is the
	// index: it lives long and has few pointers to follow, so that a collection is cheap; and Go's default, twice the
	// size of the index, would be a lot of memory for the little garbage that requests make.
	gcPercent = 50
	// ballast counts as in use in addition. It is never touched, so it takes no memory. Without it, a server with a
	// small index would collect garbage every few hundred requests.
	ballast = 32 << 20
	// cgroupMount is where the control groups are, such as that of a pod's container, in cgroup v2.
	cgroupMount = "/sys/fs/cgroup"
	// machineMemory has the memory of the machine, on Linux.
	machineMemory = "/proc/meminfo"
	// assumedMemory is what the process may use if neither is known.
	assumedMemory = 1 << 30
)

// Memory returns how many bytes the process may use: the least of the limits of its control groups, of the memory of
// the machine, and of GOMEMLIMIT. Everything that is bounded by memory follows from it.
func Memory() int64 {
	n := min(groupsLimit(), totalMemory(os.ReadFile(machineMemory)))
	if os.Getenv("GOMEMLIMIT") != "" {
		n = min(n, debug.SetMemoryLimit(-1)) // a negative limit changes nothing
	}
	if n == math.MaxInt64 {
		return assumedMemory
	}
	return n
}

// groupsLimit returns the lowest limit of the control groups that the process is in (cgroup v2), or the largest number
// if they set none. In a container its own group is the root of what is mounted; under systemd it is a group below.
func groupsLimit() int64 {
	limit := int64(math.MaxInt64)
	text, _ := os.ReadFile("/proc/self/cgroup")
	for group := groupOf(string(text)); ; group = path.Dir(group) {
		limit = min(limit, bytesIn(os.ReadFile(path.Join(cgroupMount, group, "memory.max"))))
		if group == "/" {
			return limit
		}
	}
}

// groupOf returns the path of the group in the text of /proc/self/cgroup (cgroups(7)), and / without one.
func groupOf(text string) string {
	for line := range strings.Lines(text) {
		if group, ok := strings.CutPrefix(line, "0::"); ok {
			return path.Clean("/" + strings.TrimSpace(group))
		}
	}
	return "/"
}

// totalMemory returns the memory of the machine in bytes, from the text of proc_meminfo(5); the largest number if it
// is not known.
func totalMemory(text []byte, err error) int64 {
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" && err == nil {
			if n, err := strconv.ParseInt(f[1], 10, 64); err == nil && n > 0 {
				return n << 10
			}
		}
	}
	return math.MaxInt64
}

// bytesIn returns the limit that the file of a control group contains, and the largest number for a file without one.
func bytesIn(text []byte, err error) int64 {
	n, perr := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || perr != nil || n <= 0 {
		return math.MaxInt64
	}
	return n
}

// TuneMemory sets up the garbage collector for a server that holds an index. The environment variables GOGC and
// GOMEMLIMIT take precedence. The effect lasts until the caller calls release.
func TuneMemory() (release func()) {
	var b []byte
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
		b = make([]byte, ballast)
		// The allocator has zeroed, and so touched, what was part of the heap before. An error costs memory only.
		_ = unix.Madvise(b, unix.MADV_DONTNEED)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(heapLimit(groupsLimit()))
	}
	return func() { runtime.KeepAlive(b) } // until here the collector must count b
}

// heapLimit is the size that the heap may reach before garbage is collected at any cost: nine tenths of the limit of
// the control groups. Without one there is no limit.
func heapLimit(groups int64) int64 {
	if groups == math.MaxInt64 {
		return groups
	}
	return groups / 10 * 9
}
