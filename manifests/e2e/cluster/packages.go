package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// packages are the Debian packages that the tests need beside Kubernetes, each with a file of it.
var packages = []struct{ file, name string }{
	{"etcd", "etcd-server"},
	{"containerd", "containerd"},
	{"runc", "runc"},
	{"/usr/lib/cni/bridge", "containernetworking-plugins"},
	{"iptables", "iptables"},
	{"nft", "nftables"},
	{"conntrack", "conntrack"},
	{"ip", "iproute2"},
	{"dockerd", "docker.io"},
	{"debootstrap", "debootstrap"},
}

// installPackages installs the missing packages.
func installPackages(ctx context.Context) error {
	var missing []string
	for _, p := range packages {
		// LookPath searches PATH only for names without a slash.
		if _, err := exec.LookPath(p.file); err != nil {
			missing = append(missing, p.name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("this machine has no apt-get; install the equivalents of these Debian packages: %s",
			strings.Join(missing, " "))
	}
	defer took(time.Now(), "install "+strings.Join(missing, " "))
	apt := func(args ...string) error {
		args = append([]string{"-q", "-o", "DPkg::Lock::Timeout=300"}, args...)
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1") // starts no services
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("apt-get %s: %w", strings.Join(args, " "), err)
		}
		return nil
	}
	install := append([]string{"install", "-y", "--no-install-recommends"}, missing...)
	if apt(install...) == nil {
		return nil
	}
	if err := apt("update"); err != nil {
		return err
	}
	return apt(install...)
}

// took prints how long something took since start.
func took(start time.Time, what string) {
	fmt.Fprintf(os.Stderr, "e2e: %6.1fs %s\n", time.Since(start).Seconds(), what)
}
