package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// covered are the directories of the machine that may be written to, but whose changes stay in the scratch directory.
// A pod that has them in a hostPath volume sees, and changes, what covers them.
var covered = []string{"/etc", "/var/lib", "/var/log"}

// own are directories that are as they are on a new node: empty. They lie on the disk itself and not in an overlay,
// which containers' own overlays need and for which kubelet finds out how full they are.
var own = []string{"/var/lib/kubelet", "/var/lib/containerd"}

// absent are directories that a node with containerd has not, or that are the machine's own and not the node's.
var absent = []string{"/etc/containerd", "/etc/docker", "/etc/cni", "/etc/rancher", "/var/lib/rancher", "/var/lib/docker", "/var/lib/cni"}

// sysctls are what kubelet insists on, and which would be changed for the whole machine.
var sysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// prepareMounts makes this process's mount namespace, which is a new one, that of a node.
func prepareMounts(dir string) error {
	// First apart from the machine's, then one in which pods may have volumes that share mounts, as on a node.
	if err := mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := mount("tmpfs", "/run", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, path := range covered {
		if err := cover(dir, path); err != nil {
			return err
		}
	}
	for _, path := range absent {
		if err := os.RemoveAll(path); err != nil { // in the overlay only
			return err
		}
	}
	for _, path := range own {
		source := filepath.Join(dir, strings.ReplaceAll(path[1:], "/", "-"))
		if err := errors.Join(os.MkdirAll(source, 0o755), os.MkdirAll(path, 0o755)); err != nil {
			return err
		}
		if err := mount(source, path, "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	return coverSysctls(dir)
}

// cover puts an overlay over a directory.
func cover(dir, path string) error {
	base := filepath.Join(dir, "overlay", strings.ReplaceAll(path[1:], "/", "-"))
	upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	if err := mount("overlay", path, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", path, upper, work)); err != nil {
		return fmt.Errorf("%w; /var/tmp must lie on a file system such as ext4 or xfs, not on an overlay", err)
	}
	return nil
}

// coverSysctls has kubelet find, and write, files in place of the machine's settings.
func coverSysctls(dir string) error {
	for name, value := range sysctls {
		path := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(path); err != nil {
			continue // this kernel has it not
		}
		file := filepath.Join(dir, "sysctl", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := mount(file, path, "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// mount is the system call, with an error that says what was to be mounted.
func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := syscall.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s %s on %s: %w", fstype, source, target, err)
	}
	return nil
}
