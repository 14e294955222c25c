package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// covered are directories of the machine under an overlay: changes go to the scratch directory. A pod with a hostPath
// volume of them sees and changes the overlay.
var covered = []string{"/etc", "/var/lib", "/var/log"}

// own are directories that are empty, as on a new node. They are on the disk and not in an overlay, because the
// overlays of containers need that, and because kubelet checks how full the disk is.
var own = []string{"/var/lib/kubelet", "/var/lib/containerd"}

// absent are directories that a node with containerd does not have, or that belong to the machine and not to the node.
var absent = []string{"/etc/containerd", "/etc/docker", "/etc/cni", "/etc/rancher", "/var/lib/rancher",
	"/var/lib/docker", "/var/lib/cni"}

// sysctls are settings that kubelet would change for the whole machine.
var sysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// prepareMounts turns the new mount namespace of this process into that of a node.
func prepareMounts(dir string) error {
	// First separate it from the machine's namespace, then allow pods to share mounts, as on a node.
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
		if err := os.RemoveAll(path); err != nil { // removes it from the overlay only
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

// cover mounts an overlay over a directory.
func cover(dir, path string) error {
	base := filepath.Join(dir, "overlay", strings.ReplaceAll(path[1:], "/", "-"))
	upper, work := filepath.Join(base, "upper"), filepath.Join(base, "work")
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", path, upper, work)
	if err := mount("overlay", path, "overlay", 0, options); err != nil {
		return fmt.Errorf("%w; /var/tmp must be on a file system such as ext4 or xfs, not on an overlay", err)
	}
	return nil
}

// coverSysctls mounts files over the settings, for kubelet to read and write.
func coverSysctls(dir string) error {
	for name, value := range sysctls {
		path := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(path); err != nil {
			continue // this kernel does not have it
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

// mount calls mount(2), with an error that names source and target.
func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := syscall.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s %s on %s: %w", fstype, source, target, err)
	}
	return nil
}
