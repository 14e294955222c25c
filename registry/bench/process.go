package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sampler reads the CPU times of the generator and of the server.
type sampler struct {
	pid int // of the server; 0 means that it is not measured
}

// sample is what both have used so far.
type sample struct {
	at        time.Time
	generator time.Duration // CPU time
	server    usage
}

// usage is what a process and its descendants use.
type usage struct {
	cpu       time.Duration
	rss, peak int64 // bytes; peak since each was started
}

func (s sampler) take() (sample, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return sample{}, fmt.Errorf("the generator's own CPU time: %w", err)
	}
	server, err := s.server()
	return sample{time.Now(), time.Duration(r.Utime.Nano() + r.Stime.Nano()), server}, err
}

// tick is the unit of CPU times in /proc: 10 ms on every architecture (USER_HZ).
const tick = 10 * time.Millisecond

// server reads /proc. The times of a process include those of its children that have ended.
func (s sampler) server() (u usage, err error) {
	if s.pid == 0 {
		return u, nil
	}
	family, err := descendants(s.pid)
	if err != nil {
		return u, err
	}
	for pid, cpu := range family {
		u.cpu += cpu
		rss, peak := memory(pid)
		u.rss, u.peak = u.rss+rss, u.peak+peak
	}
	return u, nil
}

// descendants returns a process and its descendants, with their CPU times. Errors: no such process; no
// /proc.
func descendants(root int) (map[int]time.Duration, error) {
	entries, err := os.ReadDir("/proc")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("pid: this system has no /proc; omit --pid")
	} else if err != nil {
		return nil, fmt.Errorf("pid: %w", err)
	}
	cpu, parent := map[int]time.Duration{}, map[int]int{}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if p, used, ok := stat(pid); ok {
				parent[pid], cpu[pid] = p, used
			}
		}
	}
	if _, ok := cpu[root]; !ok {
		return nil, fmt.Errorf("pid: no process %d; want the process ID of the running server", root)
	}
	family := map[int]time.Duration{}
	for pid := range cpu {
		// The bound ends a loop: parents may change while they are read.
		for p, depth := pid, 0; p != 0 && depth < 64; p, depth = parent[p], depth+1 {
			if p == root {
				family[pid] = cpu[pid]
				break
			}
		}
	}
	return family, nil
}

// stat reads a process's parent and CPU time (proc_pid_stat(5), fields 4 and 14 to 17). ok is false if it has ended.
func stat(pid int) (parent int, cpu time.Duration, ok bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, false
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])) // a name may have spaces and brackets
	if len(fields) < 15 {
		return 0, 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	for _, f := range fields[11:15] {
		n, _ := strconv.ParseInt(f, 10, 64)
		cpu += time.Duration(n) * tick
	}
	return parent, cpu, err == nil
}

// memory reads a process's resident memory and its peak, in bytes; 0 if the process has ended.
func memory(pid int) (rss, peak int64) {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			rss = n << 10
		case "VmHWM":
			peak = n << 10
		}
	}
	return rss, peak
}
