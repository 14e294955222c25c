package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options describe the cluster. Empty fields are taken from the environment; see the package comment.
type Options struct {
	ProxyMode     string   // of kube-proxy: iptables or nftables
	Containerd    string   // path of the program
	NoConfigPath  bool     // containerd's configuration does not name /etc/containerd/certs.d
	APIServerArgs []string // appended to the others, which they override
	Volumes       int      // number of PersistentVolumes; 0: 4
}

// complete fills in empty fields from the environment.
func (o *Options) complete() error {
	if o.ProxyMode == "" {
		o.ProxyMode = os.Getenv("TROW_E2E_PROXY_MODE")
	}
	switch o.ProxyMode {
	case "":
		o.ProxyMode = "iptables"
	case "iptables", "nftables":
	default:
		return fmt.Errorf("TROW_E2E_PROXY_MODE: %.40q: want iptables or nftables", o.ProxyMode)
	}
	if o.Containerd == "" {
		o.Containerd = os.Getenv("TROW_E2E_CONTAINERD")
	}
	switch v := os.Getenv("TROW_E2E_CONFIG_PATH"); v {
	case "":
	case "off":
		o.NoConfigPath = true
	default:
		return fmt.Errorf("TROW_E2E_CONFIG_PATH: %.40q: want off", v)
	}
	if o.Volumes == 0 {
		o.Volumes = 4
	}
	return nil
}

// Cluster is a running cluster.
type Cluster struct {
	options    Options
	dir        string // scratch
	bin        string // directory of the Kubernetes programs
	containerd string // path of the program
	cgroup     string // of all pods
	processes  processes
	health     *http.Client // as admin, for health checks; it does not verify certificates
	api        *http.Client // as admin, for the API server
}

// Start starts a cluster and waits until its node is ready and has the image of Trow and volumes.
func Start(ctx context.Context, options Options) (*Cluster, error) {
	start := time.Now()
	if os.Getenv(stageVar) != stageTests {
		return nil, errors.New("cluster.Start needs the namespaces that cluster.Main creates; call cluster.Main in " +
			"TestMain")
	}
	if err := options.complete(); err != nil {
		return nil, err
	}
	bin, err := kubernetesDir(kubernetesVersion())
	if err != nil {
		return nil, err
	}
	dir := os.Getenv(scratchVar)
	c := &Cluster{options: options, dir: dir, bin: bin, cgroup: filepath.Base(dir), containerd: options.Containerd,
		processes: processes{running: map[string]*process{}}}
	if c.containerd == "" {
		if c.containerd, err = lookPath("containerd", c.env()); err != nil {
			return nil, err
		}
	}
	if err := c.prepare(); err != nil {
		return nil, err
	}
	took(start, "prepare the node")
	if err := c.bootstrap(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start the cluster: %w", err), c.Stop())
	}
	took(start, "start the cluster, in total")
	return c, nil
}

// prepare writes the files that the components need, and sets up network and cgroups.
func (c *Cluster) prepare() error {
	pki := filepath.Join(c.dir, "pki")
	for _, dir := range []string{"home", "logs"} {
		if err := os.MkdirAll(filepath.Join(c.dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := writeCertificates(pki); err != nil {
		return err
	}
	for _, name := range []string{"admin", "controller-manager", "scheduler", "kubelet", "kube-proxy"} {
		if _, err := writeKubeconfig(c.dir, pki, name); err != nil {
			return err
		}
	}
	if err := c.makeClients(); err != nil {
		return err
	}
	return errors.Join(prepareNetwork(), makeCgroups(c.cgroup), c.writeConfigs())
}

// makeClients makes the HTTP clients, which have the rights of the administrator.
func (c *Cluster) makeClients() error {
	cert, err := tls.LoadX509KeyPair(c.pki("admin.crt"), c.pki("admin.key"))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(c.pki("ca.crt"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client := func(config *tls.Config) *http.Client {
		return &http.Client{Timeout: 30 * time.Second,
			Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	}
	c.api = client(&tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool})
	c.health = client(&tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true})
	return nil
}

// bootstrap starts the components, as many as possible in parallel, and creates what the tests need.
func (c *Cluster) bootstrap(ctx context.Context) error {
	start := func(name string) func() error {
		return func() error { return c.startComponent(ctx, name) }
	}
	timed := func(what string, f func() error) func() error {
		return func() error {
			defer took(time.Now(), what)
			return f()
		}
	}
	err := inParallel(
		inOrder(start("containerd"), timed("import pause", c.importPause), timed("import trow", c.importTrow)),
		inOrder(start("etcd"), start("kube-apiserver")),
	)
	if err != nil {
		return err
	}
	return inParallel(start("kube-controller-manager"), start("kube-scheduler"), start("kube-proxy"),
		inOrder(start("kubelet"), timed("node ready", func() error { return c.waitNode(ctx) })),
		timed("volumes", func() error { return c.makeVolumes(ctx) }),
		timed("service accounts", func() error { return c.waitServiceAccounts(ctx) }),
	)
}

// inOrder returns a function that calls functions one after the other, until one fails.
func inOrder(fs ...func() error) func() error {
	return func() error {
		for _, f := range fs {
			if err := f(); err != nil {
				return err
			}
		}
		return nil
	}
}

// inParallel calls functions at the same time.
func inParallel(fs ...func() error) error {
	errs := make([]error, len(fs))
	var wg sync.WaitGroup
	for i, f := range fs {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// importPause gives the node the image of the container that holds the namespaces of each pod.
func (c *Cluster) importPause() error {
	program := filepath.Join(c.dir, "pause")
	if err := BuildProgram(context.Background(), program, pauseSource); err != nil {
		return err
	}
	return c.AddImage(pauseImage, Image{Files: []File{{Name: "pause", Mode: 0o755, Source: program}},
		User: "65535:65535", Entrypoint: []string{"/pause"}})
}

// importTrow gives the node the image under test.
func (c *Cluster) importTrow() error {
	name, err := TrowImage()
	if err != nil {
		return err
	}
	img, err := trowImage(trowBinary(c.dir))
	if err != nil {
		return err
	}
	return c.AddImage(name, img)
}

// TrowBinary returns the path of the program under test, for tests of its commands.
func (c *Cluster) TrowBinary() string { return trowBinary(c.dir) }

// waitNode waits until pods can be started.
func (c *Cluster) waitNode(ctx context.Context) error {
	return retry(ctx, func() error {
		var node struct {
			Status struct {
				Conditions []struct{ Type, Status, Message string }
			}
		}
		if err := c.Get(ctx, "/api/v1/nodes/"+NodeName, &node); err != nil {
			return err
		}
		for _, cond := range node.Status.Conditions {
			if cond.Type == "Ready" && cond.Status == "True" {
				return nil
			}
		}
		return fmt.Errorf("node %s is not ready: %v", NodeName, node.Status.Conditions)
	})
}

// waitServiceAccounts waits until pods can be created.
func (c *Cluster) waitServiceAccounts(ctx context.Context) error {
	return retry(ctx, func() error {
		return c.Get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", nil)
	})
}

// retry calls a function until it succeeds.
func retry(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Get gets an object from the API server. object may be nil.
func (c *Cluster) Get(ctx context.Context, path string, object any) error {
	status, body, err := c.Ask(ctx, http.MethodGet, path, "")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("GET %s: %d: %.500s", path, status, body)
	}
	if object == nil {
		return nil
	}
	return json.Unmarshal(body, object)
}

// Ask sends a request to the API server as the administrator, with JSON if there is any, and returns the answer. It
// costs a fraction of what kubectl does.
func (c *Cluster) Ask(ctx context.Context, method, path, json string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://127.0.0.1:6443"+path, strings.NewReader(json))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.api.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// StartComponent starts one of [Components] and waits until it is ready.
func (c *Cluster) StartComponent(name string) error {
	return c.startComponent(context.Background(), name)
}

func (c *Cluster) startComponent(ctx context.Context, name string) error {
	for _, comp := range components {
		if comp.name != name {
			continue
		}
		defer took(time.Now(), "start "+name)
		proc, err := c.processes.start(name, comp.args(c), c.env(), c.log(name))
		if err != nil {
			return err
		}
		if err := proc.waitReady(ctx, func(ctx context.Context) error { return c.ready(ctx, comp) }); err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, c.Tail(name, 20))
		}
		return nil
	}
	return fmt.Errorf("component %q: want one of %s", name, strings.Join(Components(), ", "))
}

// StopComponent stops one of [Components] as an administrator would, with SIGTERM. Pods keep running without kubelet
// and without containerd.
func (c *Cluster) StopComponent(name string) error { return c.processes.stop(name, syscall.SIGTERM) }

// KillComponent kills one of [Components] with SIGKILL.
func (c *Cluster) KillComponent(name string) error { return c.processes.stop(name, syscall.SIGKILL) }

// RestartAll simulates a power cut of the node: it kills everything with SIGKILL, containers included, and starts the
// components again with the data on the disk. Until kubelet has reported, the API server returns the old state of pods;
// wait for something that only a running pod does.
func (c *Cluster) RestartAll(ctx context.Context) error {
	defer took(time.Now(), "restart all")
	if err := c.killAll(); err != nil {
		return err
	}
	for _, comp := range components {
		if err := c.startComponent(ctx, comp.name); err != nil {
			return err
		}
	}
	return nil
}

// killAll kills each process of the cluster. kubelet goes first, so that it does not see the others die.
func (c *Cluster) killAll() error {
	for i := len(components) - 1; i >= 0; i-- {
		_ = c.KillComponent(components[i].name) // fails if it does not run
	}
	return killContainers(c.cgroup)
}

// Stop stops the cluster. Its files are removed with the scratch directory.
func (c *Cluster) Stop() error { return c.killAll() }

// env returns the environment of all programs of the cluster, with a HOME of its own.
func (c *Cluster) env() []string {
	path := c.bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if c.options.Containerd != "" {
		path = filepath.Dir(c.options.Containerd) + ":" + path // for its own shim and ctr, if it has any
	}
	return []string{"PATH=" + path, "HOME=" + filepath.Join(c.dir, "home"), "KUBECONFIG=" + c.kubeconfig("admin")}
}

// command returns a command in this environment.
func (c *Cluster) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	env := c.env()
	if path, err := lookPath(name, env); err == nil && !strings.Contains(name, "/") {
		name = path
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.WaitDelay = env, 5*time.Second
	return cmd
}

func (c *Cluster) pki(name string) string        { return filepath.Join(c.dir, "pki", name) }
func (c *Cluster) kubeconfig(name string) string { return filepath.Join(c.dir, name+".kubeconfig") }

// Certificate returns the files of the certificate and the key of an identity, and that of the CA which has signed it.
func (c *Cluster) Certificate(name string) (ca, cert, key string) {
	return c.pki("ca.crt"), c.pki(name + ".crt"), c.pki(name + ".key")
}

func (c *Cluster) log(name string) string { return filepath.Join(c.dir, "logs", name+".log") }

// Kubeconfig returns the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return c.kubeconfig("admin") }

// Tail returns the last lines of a component's log.
func (c *Cluster) Tail(name string, lines int) string {
	b, err := os.ReadFile(c.log(name))
	if err != nil {
		return err.Error()
	}
	all := strings.SplitAfter(string(b), "\n")
	return strings.Join(all[max(0, len(all)-lines-1):], "")
}
