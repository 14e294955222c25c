package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// cgroupMounts returns the mount points of the machine's cgroup hierarchies: one of version 2, or one of version 1 for
// each controller, or both.
func cgroupMounts() (v1, v2 []string, err error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 3:
		case fields[2] == "cgroup" && !slices.Contains(v1, fields[1]):
			v1 = append(v1, fields[1])
		case fields[2] == "cgroup2" && !slices.Contains(v2, fields[1]):
			v2 = append(v2, fields[1])
		}
	}
	if len(v1)+len(v2) == 0 {
		return nil, nil, errors.New("no cgroup file system is mounted; mount one at /sys/fs/cgroup")
	}
	return v1, v2, nil
}

// makeCgroups creates the cgroup that holds all pods of the node, in each hierarchy.
func makeCgroups(name string) error {
	v1, v2, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, root := range v1 {
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("create cgroup: %w", err)
		}
		// Without these values no process can run in it; a new cgroup of version 1 has none.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				continue // not the cpuset hierarchy
			}
			if err := os.WriteFile(filepath.Join(dir, file), value, 0o644); err != nil {
				return fmt.Errorf("set up cgroup: %w", err)
			}
		}
	}
	if len(v1) > 0 {
		return nil // version 2, if mounted as well, has no controllers then
	}
	dir := filepath.Join(v2[0], name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create cgroup: %w", err)
	}
	for _, parent := range []string{v2[0], dir} {
		for _, controller := range []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"} {
			err := os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
			if err != nil && controller != "hugetlb" && controller != "io" {
				return fmt.Errorf("enable cgroup controller %s: %w; the tests need the root cgroup of the machine",
					controller, err)
			}
		}
	}
	return nil
}

// removeCgroups removes a cgroup and all below it, in each hierarchy. Their processes are dead or dying.
func removeCgroups(name string) error {
	v1, v2, err := cgroupMounts()
	if err != nil {
		return err
	}
	for _, root := range append(v1, v2...) {
		err := removeCgroup(filepath.Join(root, name))
		for range 100 {
			if err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
			err = removeCgroup(filepath.Join(root, name))
		}
		if err != nil {
			return fmt.Errorf("remove cgroup: %w; a process may still be in it", err)
		}
	}
	return nil
}

// removeCgroup removes a tree of cgroups, the innermost first. The kernel removes the files in them.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
