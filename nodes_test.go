package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"trow/manifests/kube"
	"trow/manifests/kube/kubetest"
	"trow/manifests/node"
)

// mirrorPort runs trow node with all mirrors in front of a server, and returns the address of its mirror port.
func (p *process) mirrorPort(pool *x509.CertPool, ca string) string {
	p.Helper()
	const ns = kube.DefaultNamespace
	client := fake.NewClientset(
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: kube.ConfigMapName},
			Data: map[string]string{kube.CAKey: ca}},
		&appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: kube.DaemonSetName, UID: "1"}})
	address, up := make(chan string, 1), make(chan struct{})
	n, err := node.New(node.Options{Client: kubetest.Client(client), Namespace: ns, NodeName: "node-1",
		Host: kube.DefaultHost(ns), Port: kube.DefaultNodePort, Root: p.TempDir(), Mirrors: []string{node.MirrorAll},
		Service: strings.TrimPrefix(p.url, "https://"),
		Notify: func(e node.Event) {
			if e.Kind == node.MirrorUp {
				close(up)
			}
		},
		Listen: func(network, requested string) (net.Listener, error) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err == nil && requested == "127.0.0.1:24000" {
				address <- l.Addr().String()
			}
			return l, err
		}})
	if err != nil {
		p.Fatal(err)
	}
	ctx, cancel := context.WithCancel(p.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	p.Cleanup(func() { cancel(); <-ended })
	<-up
	return <-address
}

// TestWhatARuntimeGetsThroughTheMirrorPort is the registry's content of the namespace that it means, or an answer that
// leads it on to the registry of the image. This registry has repositories with the same names, which are other images.
func TestWhatARuntimeGetsThroughTheMirrorPort(t *testing.T) {
	const body = `{"schemaVersion":2,"mediaType":"` + manifestType + `","config":{"mediaType":` +
		`"application/vnd.oci.image.config.v1+json","digest":"sha256:` +
		`44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`
	var mu sync.Mutex // guards asked
	var asked []string
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.Path)
		mu.Unlock()
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Docker-Content-Digest", digest.FromString(body).String())
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		if r.Method == http.MethodGet {
			io.WriteString(w, body)
		}
	}))
	defer origin.Close()
	dir := t.TempDir()
	config := filepath.Join(t.TempDir(), "trow.yaml")
	text := fmt.Sprintf("upstreams:\n- {host: quay.io, insecure: true, endpoints: [{url: %q}], deny: [team/secret]}\n"+
		"namespaces: [{host: \"localhost:24000\", upstream: docker.io}]\n", origin.URL)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, dir, "--config="+config, "--tls-names=trow.kube-public.svc", "--names=trow.kube-public:31000")
	local := map[string]string{}
	for _, repo := range []string{"library/nginx", "team/app", "team/secret"} {
		local[repo] = p.push(repo, "v").String()
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	address := p.mirrorPort(pool, string(ca))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	upstream := digest.FromString(body).String()
	for _, c := range []struct {
		what, host, method, path string
		want                     string // the digest; empty: an error from which each runtime goes on
	}{
		{"containerd", "", "HEAD", "team/app/manifests/v?ns=quay.io", upstream},
		{"containerd", "", "GET", "team/app/manifests/" + upstream + "?ns=quay.io", upstream},
		{"containerd, a repository that may not be asked for", "", "HEAD", "team/secret/manifests/v?ns=quay.io", ""},
		{"containerd, no upstream", "", "HEAD", "library/nginx/manifests/v?ns=docker.io", ""},
		{"containerd, no upstream", "", "GET",
			"library/nginx/manifests/" + local["library/nginx"] + "?ns=docker.io", ""},
		{"containerd, no upstream", "", "GET", "library/nginx/manifests/v?ns=localhost:5000", ""},
		{"containerd, this registry", "", "HEAD", "team/app/manifests/v?ns=trow.kube-public:31000", local["team/app"]},
		{"CRI-O", "", "GET", "f/quay.io/team/app/manifests/v", upstream},
		{"CRI-O, no upstream", "", "GET", "f/docker.io/library/nginx/manifests/v", ""},
		{"CRI-O, a repository that may not be asked for", "", "GET", "f/quay.io/team/secret/manifests/v", ""},
		{"Docker, no upstream", "localhost:24000", "GET", "library/nginx/manifests/v", ""},
		{"a push", "", "POST", "team/app/blobs/uploads/?ns=quay.io", ""},
		{"a push", "", "POST", "f/quay.io/team/app/blobs/uploads/", ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "https://"+address+"/v2/"+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = c.host
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		got := resp.Header.Get("Docker-Content-Digest")
		if resp.StatusCode != 200 {
			got = ""
		}
		if got != c.want || c.want == "" && (resp.StatusCode < 400 || resp.StatusCode >= 500) {
			t.Errorf("%s: %s %s: %s %q, want %q", c.what, c.method, c.path, resp.Status, got, c.want)
		}
		if ns := req.URL.Query().Get("ns"); c.want != "" && resp.Header.Get("OCI-Namespace") != ns {
			t.Errorf("%s: OCI-Namespace %q", c.what, resp.Header.Get("OCI-Namespace"))
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, path := range asked {
		if !strings.HasPrefix(path, "/v2/team/app/") {
			t.Errorf("the upstream was asked for %s", path)
		}
	}
}
