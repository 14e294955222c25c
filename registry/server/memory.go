package server

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

const (
	// gcPercent is how much garbage the heap may have, in percent of what is in use. Most of what is in use is the
	// index: it lives long and has few pointers to follow, so that a collection is cheap; and Go's default, twice the
	// size of the index, would be a lot of memory for the little garbage that requests make.
	gcPercent = 50
	// ballast counts as in use in addition. It is never touched, so it takes no memory. Without it, a server with a
	// small index would collect garbage every few hundred requests.
	ballast = 32 << 20
	// cgroupLimit is the memory limit of the control group, such as a pod's container, in cgroup v2.
	cgroupLimit = "/sys/fs/cgroup/memory.max"
	// machineMemory has the memory of the machine, on Linux.
	machineMemory = "/proc/meminfo"
	// assumedMemory is what the process may use if neither is known.
	assumedMemory = 1 << 30
)

// Memory returns how many bytes the process may use: the limit of its control group, the memory of the machine or
// GOMEMLIMIT, whichever is least. What is bounded by memory follows from it.
func Memory() int64 {
	n := min(bytesIn(os.ReadFile(cgroupLimit)), totalMemory(os.ReadFile(machineMemory)))
	if os.Getenv("GOMEMLIMIT") != "" {
		n = min(n, debug.SetMemoryLimit(-1)) // a negative limit changes nothing
	}
	if n == math.MaxInt64 {
		return assumedMemory
	}
	return n
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

// bytesIn returns the limit that the file of a control group contains, the largest number if there is none.
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
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit(os.ReadFile(cgroupLimit)))
	}
	return func() { runtime.KeepAlive(b) } // until here the collector must count b
}

// memoryLimit is the size that the heap may reach before garbage is collected at any cost: nine tenths of the limit of
// the control group, whose file contains a number of bytes or "max". Without such a file there is no limit.
func memoryLimit(text []byte, err error) int64 {
	n := bytesIn(text, err)
	if n == math.MaxInt64 {
		return n
	}
	return n / 10 * 9
}
