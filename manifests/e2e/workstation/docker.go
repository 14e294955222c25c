package workstation

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Workstation is a running dockerd.
type Workstation struct {
	dir    string
	daemon *exec.Cmd
	exited chan error
}

// daemonScript runs dockerd with its own /etc, so that it knows names and CAs that the node on the same machine does
// not. It has no network for containers, since it only builds and pushes.
const daemonScript = `mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/work" /etc &&
mount --bind "$1/docker" /etc/docker &&
exec dockerd --host "unix://$1/docker.sock" --data-root "$1/data" --exec-root "$1/exec" \
  --pidfile "$1/dockerd.pid" --config-file "$1/daemon.json" --storage-driver=vfs --iptables=false --ip6tables=false \
  --ip-forward=false --ip-masq=false --bridge=none --userland-proxy=false --oom-score-adjust=0`

// Start starts dockerd, which writes to dir alone. hosts is appended to its /etc/hosts.
func Start(ctx context.Context, dir, hosts string) (*Workstation, error) {
	w := &Workstation{dir: dir, exited: make(chan error, 1)}
	for _, d := range []string{"etc/docker", "docker", "work", "data", "exec", "config", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	old, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/hosts"), append(old, "\n"+hosts+"\n"...), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "daemon.json"), []byte("{}"), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(w.Log())
	if err != nil {
		return nil, err
	}
	defer log.Close()
	w.daemon = exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", daemonScript, "sh", dir)
	w.daemon.Stdout, w.daemon.Stderr = log, log
	w.daemon.Env = append(os.Environ(), "TMPDIR="+filepath.Join(dir, "tmp"))
	if err := w.daemon.Start(); err != nil {
		return nil, err
	}
	go func() { w.exited <- w.daemon.Wait() }()
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		out, err := w.Docker(ctx, "version")
		if err == nil {
			return w, nil
		}
		select {
		case err := <-w.exited:
			return nil, fmt.Errorf("dockerd: %w: %s", err, w.tail())
		default:
		}
		if time.Since(start) > time.Minute {
			return nil, fmt.Errorf("dockerd does not answer: %s: %s", out, w.tail())
		}
	}
}

// Log returns the path of dockerd's log.
func (w *Workstation) Log() string { return filepath.Join(w.dir, "dockerd.log") }

func (w *Workstation) tail() string {
	b, err := os.ReadFile(w.Log())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

// Trust makes docker trust a registry's CA.
func (w *Workstation) Trust(registry string, ca []byte) error {
	dir := filepath.Join(w.dir, "docker/certs.d", registry)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o644)
}

// Docker runs the docker command, and returns its output, errors included.
func (w *Workstation) Docker(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+filepath.Join(w.dir, "docker.sock"),
		"DOCKER_CONFIG="+filepath.Join(w.dir, "config"), "DOCKER_BUILDKIT=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// Images gives docker the images that a developer would pull from Docker Hub: php:8-fpm and nginx:1.21.0.
func (w *Workstation) Images(ctx context.Context) error {
	for _, r := range []rootfs{php, nginx} {
		archive, err := r.archive()
		if err != nil {
			return err
		}
		args := []string{"import"}
		for _, c := range r.changes {
			args = append(args, "--change", c)
		}
		if _, err := w.Docker(ctx, append(args, archive, r.name)...); err != nil {
			return err
		}
	}
	return nil
}

// Stop stops dockerd.
func (w *Workstation) Stop() error {
	if err := w.daemon.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	select {
	case <-w.exited:
		return nil
	case <-time.After(20 * time.Second):
		return w.daemon.Process.Kill()
	}
}
