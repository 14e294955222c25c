// Package engines runs what several replicas share: an etcd of one member and an S3 service over a directory,
// versitygw, both with TLS, as processes of the tests. They are the programs of .ci/engines, in the same cache.
package engines

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"trow/manifests/e2e/cluster"
)

// The credentials of the S3 service, and its bucket.
const (
	AccessKey = "trow-e2e"
	SecretKey = "trow-e2e-secret"
	Bucket    = "images"
)

// program is a program of .ci, of the version in a file there.
type program struct {
	name    string
	file    string // from the root of the repository
	version *regexp.Regexp
	build   func(ctx context.Context, root, path, version string) *exec.Cmd
}

var (
	// go install refuses etcd, whose modules replace each other.
	etcd = program{"etcd", ".ci/engines/etcd/go.mod", regexp.MustCompile(`go\.etcd\.io/etcd/server/v3 (v\S+)`),
		func(ctx context.Context, root, path, _ string) *exec.Cmd {
			cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "go.etcd.io/etcd/server/v3")
			cmd.Dir, cmd.Env = filepath.Join(root, ".ci/engines/etcd"),
				append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
			return cmd
		}}
	versitygw = program{"versitygw", ".ci/lib.bash", regexp.MustCompile(`versity/versitygw/cmd/versitygw@(v[\w.-]+)`),
		func(ctx context.Context, _, path, version string) *exec.Cmd {
			cmd := exec.CommandContext(ctx, "go", "install", "github.com/versity/versitygw/cmd/versitygw@"+version)
			cmd.Env = append(os.Environ(), "GOBIN="+filepath.Dir(path), "GOWORK=off", "GOFLAGS=")
			return cmd
		}}
)

// Prepare builds the programs, unless they exist. It needs the network.
func Prepare(ctx context.Context) error {
	return errors.Join(etcd.make(ctx), versitygw.make(ctx))
}

// path returns where a program is in the cache, as tool of .ci/lib.bash does, and its version.
func (p program) path() (path, version string, err error) {
	root, err := cluster.Root()
	if err != nil {
		return "", "", err
	}
	b, err := os.ReadFile(filepath.Join(root, p.file))
	if err != nil {
		return "", "", err
	}
	m := p.version.FindSubmatch(b)
	if m == nil {
		return "", "", fmt.Errorf("%s: no version of %s", p.file, p.name)
	}
	cache, err := os.UserCacheDir()
	version = string(m[1])
	return filepath.Join(cache, "trow-ci", "bin", runtime.Version(), p.name+"@"+version, p.name), version, err
}

// make builds a program in a directory beside its own, so that a build that is cut off leaves nothing there.
func (p program) make(ctx context.Context) error {
	path, version, err := p.path()
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	root, err := cluster.Root()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	start, built := time.Now(), filepath.Join(dir, p.name)
	if out, err := p.build(ctx, root, built, version).CombinedOutput(); err != nil {
		return fmt.Errorf("build %s %s: %w: %s", p.name, version, err, out[max(0, len(out)-2000):])
	}
	fmt.Fprintf(os.Stderr, "e2e: %6.1fs build %s\n", time.Since(start).Seconds(), p.name)
	return os.Rename(built, path)
}

// Options say where the engines listen, and with which certificates. etcd answers only clients that show one of the CA.
type Options struct {
	Dir           string // for data and logs
	Address       string // IP, that of their certificate
	CA, Cert, Key string // files
}

// Engines are the running processes.
type Engines struct {
	Etcd, S3 string // HOST:PORT
	etcd, s3 *exec.Cmd
}

// Start starts the engines and waits until they accept connections.
func Start(ctx context.Context, o Options) (*Engines, error) {
	etcdPath, _, err := etcd.path()
	if err != nil {
		return nil, err
	}
	s3Path, _, err := versitygw.path()
	if err != nil {
		return nil, err
	}
	e := &Engines{Etcd: net.JoinHostPort(o.Address, "12379"), S3: net.JoinHostPort(o.Address, "12443")}
	bucket := filepath.Join(o.Dir, "s3", Bucket)
	if err := os.MkdirAll(bucket, 0o700); err != nil {
		return nil, err
	}
	e.etcd = exec.Command(etcdPath, "--name=m0", "--data-dir="+filepath.Join(o.Dir, "etcd"), "--log-level=warn",
		"--listen-client-urls=https://"+e.Etcd, "--advertise-client-urls=https://"+e.Etcd,
		"--listen-peer-urls=http://127.0.0.1:12380", "--initial-advertise-peer-urls=http://127.0.0.1:12380",
		"--initial-cluster=m0=http://127.0.0.1:12380", "--auto-compaction-mode=periodic",
		"--auto-compaction-retention=1h",
		"--trusted-ca-file="+o.CA, "--cert-file="+o.Cert, "--key-file="+o.Key, "--client-cert-auth")
	e.s3 = exec.Command(s3Path, "--port="+e.S3, "--cert="+o.Cert, "--key="+o.Key, "--quiet", "posix",
		filepath.Dir(bucket))
	e.s3.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+AccessKey, "ROOT_SECRET_ACCESS_KEY="+SecretKey)
	for name, cmd := range map[string]*exec.Cmd{"etcd": e.etcd, "s3": e.s3} {
		log, err := os.Create(filepath.Join(o.Dir, name+".log"))
		if err == nil {
			cmd.Stdout, cmd.Stderr = log, log
			err = cmd.Start()
			log.Close()
		}
		if err != nil {
			return nil, errors.Join(err, e.Stop())
		}
	}
	for name, address := range map[string]string{"etcd": e.Etcd, "s3": e.S3} {
		if err := listens(ctx, address); err != nil {
			text, _ := os.ReadFile(filepath.Join(o.Dir, name+".log"))
			return nil, errors.Join(fmt.Errorf("%s: %w: %s", name, err, text[max(0, len(text)-2000):]), e.Stop())
		}
	}
	return e, nil
}

// listens waits until an address accepts connections.
func listens(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// SignalEtcd sends a signal to etcd: SIGSTOP takes it away without closing its connections, SIGCONT brings it back.
func (e *Engines) SignalEtcd(s syscall.Signal) error { return e.etcd.Process.Signal(s) }

// Stop kills the engines, also if they have stopped. Errors: a process was not started, or has ended before.
func (e *Engines) Stop() error {
	var errs []error
	for _, cmd := range []*exec.Cmd{e.etcd, e.s3} {
		if cmd.Process == nil {
			continue
		}
		errs = append(errs, cmd.Process.Kill())
		if err := cmd.Wait(); err != nil && !strings.Contains(err.Error(), "killed") {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
