package engines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"trow/storage"
	"trow/storage/etcd"
	"trow/storage/storagetest"
)

// etcdProgram is the server that is tested against; the part engines of .ci/run builds it.
var etcdProgram = os.Getenv("ENGINES_ETCD")

// member is one process of etcd. Clients reach it through a proxy.
type member struct {
	t     testing.TB
	dir   string
	args  []string
	cmd   *exec.Cmd
	proxy *proxy
	addr  string // behind the proxy
}

// cluster is an etcd cluster on loopback.
type cluster struct {
	t       *testing.T
	members []*member
	admin   *clientv3.Client // not through the proxies
}

// startEtcd starts a cluster with further flags for each member.
func startEtcd(t *testing.T, n int, flags ...string) *cluster {
	t.Helper()
	if etcdProgram == "" {
		t.Fatal("ENGINES_ETCD does not name an etcd server; run bash .ci/run engines")
	}
	c := &cluster{t: t}
	var peers, initial []string
	for i := range n {
		peers = append(peers, "http://"+freeAddr(t))
		initial = append(initial, fmt.Sprintf("m%d=%s", i, peers[i]))
	}
	var direct []string
	for i := range n {
		m := &member{t: t, dir: t.TempDir(), addr: freeAddr(t)}
		m.proxy = newProxy(t, m.addr)
		m.args = append([]string{"--name", fmt.Sprint("m", i), "--data-dir", filepath.Join(m.dir, "data"),
			"--listen-client-urls", "http://" + m.addr, "--advertise-client-urls", "http://" + m.addr,
			"--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--initial-cluster", strings.Join(initial, ","), "--log-level", "error", "--unsafe-no-fsync"}, flags...)
		c.members = append(c.members, m)
		direct = append(direct, m.addr)
		m.start()
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			m.kill()
		}
	})
	c.admin = adminOf(t, direct...)
	c.await()
	return c
}

func adminOf(t *testing.T, endpoints ...string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, Logger: zap.NewNop(), DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

var ports atomic.Int64

// freeAddr returns an address for a server, which stays free while the server is restarted: it is below the ports that
// the kernel takes for the other end of connections, and no test uses it twice. The tests have a network of their own.
func freeAddr(t testing.TB) string {
	t.Helper()
	return fmt.Sprint("127.0.0.1:", 10_000+ports.Add(1))
}

func (m *member) start() {
	log, err := os.OpenFile(filepath.Join(m.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	m.cmd = exec.Command(etcdProgram, m.args...)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) kill() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	m.cmd = nil
}

func (m *member) signal(s syscall.Signal) {
	if err := m.cmd.Process.Signal(s); err != nil {
		m.t.Error(err)
	}
}

// await waits until the cluster answers.
func (c *cluster) await() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	for {
		one, cancel := context.WithTimeout(ctx, time.Second)
		_, err := c.admin.Get(one, "any")
		cancel()
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			c.t.Fatalf("etcd does not answer: %v", err)
		}
	}
}

// leader returns the member that leads now.
func (c *cluster) leader() *member {
	c.t.Helper()
	for range 100 {
		for _, m := range c.members {
			ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
			s, err := c.admin.Status(ctx, m.addr)
			cancel()
			if err == nil && s.Leader == s.Header.MemberId {
				return m
			}
		}
	}
	c.t.Fatal("no member leads")
	return nil
}

// endpoints are the addresses of the proxies.
func (c *cluster) endpoints() (all []string) {
	for _, m := range c.members {
		all = append(all, m.proxy.addr())
	}
	return all
}

var prefixes atomic.Int64

// newPrefix returns one that no test has used.
func newPrefix() string { return fmt.Sprintf("test/%d", prefixes.Add(1)) }

// open opens a journal below a prefix, until the test ends.
func (c *cluster) open(t *testing.T, prefix string) *etcd.Journal {
	t.Helper()
	return openWith(t, etcd.Options{Endpoints: c.endpoints(), Prefix: prefix})
}

func openWith(t *testing.T, o etcd.Options) *etcd.Journal {
	t.Helper()
	o.Warn = func(err error) { t.Logf("warned: %v", err) }
	j, err := etcd.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func TestJournalSuite(t *testing.T) {
	c := startEtcd(t, 1)
	storagetest.Journal(t, func(t *testing.T) func() storage.Journal {
		prefix := newPrefix()
		var last *etcd.Journal
		return func() storage.Journal {
			if last != nil {
				last.Close()
			}
			last = c.open(t, prefix)
			return last
		}
	})
	// A second handle stands for another process.
	t.Run("two handles", func(t *testing.T) {
		storagetest.Journal(t, func(t *testing.T) func() storage.Journal {
			prefix := newPrefix()
			return func() storage.Journal { return c.open(t, prefix) }
		})
	})
}

func set(name, value string) storage.Fact {
	return storage.Fact{Kind: storage.KindTag, Name: name, Value: []byte(value)}
}

// one is a batch.
func one(repo string, base storage.Revision, facts ...storage.Fact) storage.Batch {
	return storage.Batch{Repo: repo, Base: base, Facts: facts}
}

func isUnknown(err error) bool {
	return err != nil && !errors.Is(err, storage.ErrConflict) && !strings.Contains(err.Error(), "nothing was committed")
}
