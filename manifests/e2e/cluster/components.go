package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// component is a program of the cluster.
type component struct {
	name string
	args func(c *Cluster) []string
	url  string // of its health check; empty: ask is the health check
	ask  func(c *Cluster, ctx context.Context) error
}

// components are in the order of starting: each after those that it needs.
var components = []component{
	{name: "etcd", args: (*Cluster).etcdArgs, url: "https://127.0.0.1:2379/health"},
	{name: "containerd", args: (*Cluster).containerdArgs, ask: (*Cluster).containerdReady},
	{name: "kube-apiserver", args: (*Cluster).apiserverArgs, url: "https://127.0.0.1:6443/readyz"},
	{name: "kube-controller-manager", args: (*Cluster).controllerManagerArgs, url: "https://127.0.0.1:10257/healthz"},
	{name: "kube-scheduler", args: (*Cluster).schedulerArgs, url: "https://127.0.0.1:10259/healthz"},
	{name: "kubelet", args: (*Cluster).kubeletArgs, url: "http://127.0.0.1:10248/healthz"},
	{name: "kube-proxy", args: (*Cluster).proxyArgs, url: "http://127.0.0.1:10256/healthz"},
}

// Components returns the names that StartComponent and StopComponent accept.
func Components() []string {
	var names []string
	for _, c := range components {
		names = append(names, c.name)
	}
	return names
}

// ready checks whether a component is ready.
func (c *Cluster) ready(ctx context.Context, comp component) error {
	if comp.ask != nil {
		return comp.ask(c, ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, comp.url, nil)
	if err != nil {
		return err
	}
	resp, err := c.health.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 2000))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", comp.url, resp.Status, body)
	}
	return nil
}

func (c *Cluster) etcdArgs() []string {
	return []string{"etcd", "--name=e2e", "--data-dir=" + filepath.Join(c.dir, "etcd"),
		"--listen-client-urls=https://127.0.0.1:2379", "--advertise-client-urls=https://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=e2e=http://127.0.0.1:2380",
		"--cert-file=" + c.pki("etcd.crt"), "--key-file=" + c.pki("etcd.key"),
		"--trusted-ca-file=" + c.pki("ca.crt"), "--client-cert-auth",
		"--unsafe-no-fsync"} // faster; only a power cut of this machine could lose data, not a killed etcd
}

func (c *Cluster) apiserverArgs() []string {
	return append([]string{"kube-apiserver", "--bind-address=0.0.0.0", "--secure-port=6443",
		"--advertise-address=" + NodeIP, "--endpoint-reconciler-type=lease",
		"--etcd-servers=https://127.0.0.1:2379", "--etcd-cafile=" + c.pki("ca.crt"),
		"--etcd-certfile=" + c.pki("etcd.crt"), "--etcd-keyfile=" + c.pki("etcd.key"),
		"--client-ca-file=" + c.pki("ca.crt"),
		"--tls-cert-file=" + c.pki("apiserver.crt"), "--tls-private-key-file=" + c.pki("apiserver.key"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.pki("sa.pub"), "--service-account-signing-key-file=" + c.pki("sa.key"),
		"--service-cluster-ip-range=" + services,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--kubelet-client-certificate=" + c.pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + c.pki("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority=" + c.pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--proxy-client-cert-file=" + c.pki("front-proxy.crt"), "--proxy-client-key-file=" + c.pki("front-proxy.key"),
		"--requestheader-client-ca-file=" + c.pki("ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--enable-aggregator-routing=true", // reach webhooks at their pods; kube-proxy may not be ready yet
		"--profiling=false", "--v=1"}, c.options.APIServerArgs...)
}

func (c *Cluster) controllerManagerArgs() []string {
	return []string{"kube-controller-manager", "--kubeconfig=" + c.kubeconfig("controller-manager"),
		"--bind-address=127.0.0.1", "--secure-port=10257", "--authorization-always-allow-paths=/healthz",
		"--use-service-account-credentials=true", "--service-account-private-key-file=" + c.pki("sa.key"),
		"--root-ca-file=" + c.pki("ca.crt"), "--leader-elect=false",
		"--cluster-signing-cert-file=" + c.pki("ca.crt"), "--cluster-signing-key-file=" + c.pki("ca.key"),
		"--kube-api-qps=500", "--kube-api-burst=500", // with the defaults, the start takes seconds longer
		"--v=1"}
}

func (c *Cluster) schedulerArgs() []string {
	k := c.kubeconfig("scheduler")
	return []string{"kube-scheduler", "--kubeconfig=" + k, "--authentication-kubeconfig=" + k,
		"--authorization-kubeconfig=" + k, "--bind-address=127.0.0.1", "--secure-port=10259",
		"--leader-elect=false", "--v=1"}
}

func (c *Cluster) kubeletArgs() []string {
	return []string{"kubelet", "--config=" + filepath.Join(c.dir, "kubelet.yaml"),
		"--kubeconfig=" + c.kubeconfig("kubelet"),
		"--root-dir=/var/lib/kubelet", "--cert-dir=/var/lib/kubelet/pki",
		"--image-credential-provider-config=" + c.credentials(),
		"--image-credential-provider-bin-dir=" + filepath.Dir(trowBinary(c.dir)),
		"--hostname-override=" + NodeName, "--node-ip=" + NodeIP, "--v=2"}
}

func (c *Cluster) proxyArgs() []string {
	return []string{"kube-proxy", "--config=" + filepath.Join(c.dir, "kube-proxy.yaml"), "--v=1"}
}

// containerdSocket is containerd's default socket.
const containerdSocket = "/run/containerd/containerd.sock"

func (c *Cluster) containerdArgs() []string {
	return []string{c.containerd, "--config=/etc/containerd/config.toml"}
}

func (c *Cluster) containerdReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := c.command(ctx, "ctr", "--address", containerdSocket, "plugins", "ls").CombinedOutput()
	if err != nil {
		return fmt.Errorf("ctr plugins ls: %w: %s", err, out)
	}
	// containerd also answers without this plugin, but then kubelet cannot use it.
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[0], "io.containerd.grpc.v1") && f[1] == "cri" {
			if f[len(f)-1] != "ok" {
				return fmt.Errorf("containerd's CRI plugin: %s", line)
			}
			return nil
		}
	}
	return fmt.Errorf("containerd has no CRI plugin:\n%s", out)
}

// writeConfigs writes the configuration files of the components. Root may lack CAP_SYS_RESOURCE, as in a container, so
// they must not lower any OOM score.
func (c *Cluster) writeConfigs() error {
	containerdConfig, err := c.containerdConfig()
	if err != nil {
		return err
	}
	credentialConfig, err := c.credentialConfig()
	if err != nil {
		return err
	}
	for path, content := range map[string]string{
		c.credentials():                          credentialConfig,
		"/etc/containerd/config.toml":            containerdConfig,
		"/etc/cni/net.d/10-pods.conflist":        cniConfig(c.dir),
		filepath.Join(c.dir, "kubelet.yaml"):     c.kubeletConfig(),
		filepath.Join(c.dir, "kube-proxy.yaml"):  c.proxyConfig(),
		filepath.Join(c.dir, "resolv.conf"):      "",
		"/etc/containerd/certs.d/.created-empty": "",
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return os.Remove("/etc/containerd/certs.d/.created-empty")
}

// credentials returns the path of the kubelet's configuration of credential providers.
func (c *Cluster) credentials() string { return filepath.Join(c.dir, "credentials.yaml") }

// credentialConfig returns that configuration, as the program under test prints it, with a loopback name as well.
func (c *Cluster) credentialConfig() (string, error) {
	out, err := c.Run(trowBinary(c.dir), "credential-provider", "--print-config", "--program="+trowBinary(c.dir),
		"--file="+c.credentials(), "--names=trow.kube-public:31000,127.0.0.1:31000")
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return out, nil
}

func (c *Cluster) kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
port: 10250
readOnlyPort: 0
healthzBindAddress: 127.0.0.1
healthzPort: 10248
authentication: {x509: {clientCAFile: %q}, webhook: {enabled: true}, anonymous: {enabled: false}}
authorization: {mode: Webhook}
tlsCertFile: %q
tlsPrivateKeyFile: %q
cgroupDriver: cgroupfs
cgroupRoot: /%s
cgroupsPerQOS: true
enforceNodeAllocatable: [pods]
containerRuntimeEndpoint: unix://%s
failSwapOn: false
failCgroupV1: false
oomScoreAdj: 0
makeIPTablesUtilChains: false
resolvConf: %q
staticPodPath: ""
rotateCertificates: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 100Mi, nodefs.available: 1%%, imagefs.available: 1%%}
volumePluginDir: /var/lib/kubelet/volumeplugins
localStorageCapacityIsolation: true
`, c.pki("ca.crt"), c.pki("kubelet-server.crt"), c.pki("kubelet-server.key"), c.cgroup, containerdSocket,
		filepath.Join(c.dir, "resolv.conf"))
}

func (c *Cluster) proxyConfig() string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
clientConnection: {kubeconfig: %q}
mode: %s
clusterCIDR: %s
hostnameOverride: %s
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, c.kubeconfig("kube-proxy"), c.options.ProxyMode, podSubnet, NodeName)
}

// containerdConfig returns containerd's configuration, in the format of its version.
func (c *Cluster) containerdConfig() (string, error) {
	out, err := c.command(context.Background(), c.containerd, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", c.containerd, err)
	}
	m := regexp.MustCompile(`^containerd \S+ v?(\d+)\.(\d+)`).FindStringSubmatch(string(out))
	if m == nil {
		return "", fmt.Errorf("%s --version: no version in %q", c.containerd, out)
	}
	fmt.Fprintf(os.Stderr, "e2e: Kubernetes %s, kube-proxy in mode %s, %s %s\n", kubernetesVersion(),
		c.options.ProxyMode,
		c.containerd, m[1]+"."+m[2])
	runc, err := lookPath("runc", c.env())
	if err != nil {
		return "", err
	}
	configPath := `config_path = "/etc/containerd/certs.d"`
	if c.options.NoConfigPath {
		configPath = ""
	}
	config := containerdV2
	if major, _ := strconv.Atoi(m[1]); major >= 2 {
		config = containerdV3
	}
	return strings.NewReplacer("@CONFIG_PATH@", configPath, "@RUNC@", runc, "@PAUSE@", pauseImage).Replace(config), nil
}

// containerdV2 is a configuration in version 2 of the format, for containerd 1.x.
const containerdV2 = `version = 2
oom_score = 0
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "@PAUSE@"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
        BinaryName = "@RUNC@"
  [plugins."io.containerd.grpc.v1.cri".registry]
    @CONFIG_PATH@
`

// containerdV3 is a configuration in version 3 of the format, for containerd 2.x.
const containerdV3 = `version = 3
oom_score = 0
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "@PAUSE@"
  [plugins."io.containerd.cri.v1.images".registry]
    @CONFIG_PATH@
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  enable_cdi = false
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = "@RUNC@"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
`
