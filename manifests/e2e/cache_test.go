package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// origin stands in for Docker Hub. It has one image, library/cached:1, and listens on the node's address: with TLS as
// registry-1.docker.io, for the node, and without for the registry's pod.
type origin struct {
	t        *testing.T
	handler  http.Handler
	cert     tls.Certificate
	servers  []*http.Server
	plain    string // host:port for the registry's pod
	byNode   atomic.Int64
	byServer atomic.Int64
}

// startOrigin starts an origin. The node resolves its name, and its containerd trusts it.
func startOrigin(t *testing.T, c *cluster.Cluster, img cluster.Image) *origin {
	t.Helper()
	blobs, digest := layout(t, img)
	o := &origin{t: t, plain: cluster.NodeIP + ":5080"}
	serve := func(w http.ResponseWriter, mediaType, d string) {
		b, ok := blobs[d]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Docker-Content-Digest", d)
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		_, _ = w.Write(b) // of a HEAD, net/http sends no body
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v2/library/cached/manifests/{ref}", func(w http.ResponseWriter, r *http.Request) {
		ref := r.PathValue("ref")
		if ref == "1" {
			ref = digest
		}
		serve(w, "application/vnd.oci.image.manifest.v1+json", ref)
	})
	mux.HandleFunc("GET /v2/library/cached/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		serve(w, "application/octet-stream", r.PathValue("digest"))
	})
	o.handler = mux
	const name = "registry-1.docker.io"
	o.cert = selfSigned(t, name)
	change(t, "/etc/hosts", cluster.NodeIP+" "+name+"\n")
	change(t, "/etc/ssl/certs/ca-certificates.crt",
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.cert.Certificate[0]})))
	// It has read the certificates already.
	for _, f := range []func(string) error{c.StopComponent, c.StartComponent} {
		if err := f("containerd"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(o.stop)
	o.start()
	return o
}

func (o *origin) start() {
	o.t.Helper()
	for address, n := range map[string]*atomic.Int64{cluster.NodeIP + ":443": &o.byNode, o.plain: &o.byServer} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			o.t.Fatal(err)
		}
		if n == &o.byNode {
			l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{o.cert}})
		}
		s := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(
			func(w http.ResponseWriter, r *http.Request) {
				n.Add(1)
				o.handler.ServeHTTP(w, r)
			})}
		o.servers = append(o.servers, s)
		go s.Serve(l)
	}
}

func (o *origin) stop() {
	for _, s := range o.servers {
		_ = s.Close()
	}
	o.servers = nil
}

// selfSigned returns a certificate for a name, which is its own CA.
func selfSigned(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// change appends a text to a file of the node until the test ends.
func change(t *testing.T, file, text string) {
	t.Helper()
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(before, "\n"+text...), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, before, 0o644); err != nil {
			t.Error(err)
		}
	})
}

// TestImagesOfOtherRegistries runs an unchanged pod of docker.io through the cache: denied until the image is here,
// then with the origin, without it, and with the registry down. Then without a network: what was exported is imported
// where there is no upstream, and the same pod runs.
func TestImagesOfOtherRegistries(t *testing.T) {
	const image = "docker.io/library/cached:1"
	c := start(t)
	armed(t, c)
	namespace(t, c, "cached")
	o := startOrigin(t, c, app(t, "cached", 3<<20))
	apply(t, c, rendered(t, c, "--mirrors", "all"))
	upstreams := fmt.Sprintf("upstreams: [{host: docker.io, path: library/cached, insecure: true, may-run: held, "+
		"endpoints: [{url: \"http://%s\"}]}]\n", o.plain)
	settings(t, c, upstreams)
	cluster.Eventually(t, time.Minute, "the node pulls through the registry", func() error {
		b, err := os.ReadFile("/etc/containerd/certs.d/_default/hosts.toml")
		if err != nil || !strings.Contains(string(b), "24000") {
			return fmt.Errorf("%s, %v", b, err)
		}
		return nil
	})
	trow := func(command string) string {
		t.Helper()
		out, err := c.Run("sh", "-c", "set -e; cd "+t.TempDir()+"; "+
			strings.ReplaceAll(command, "trow ", "kubectl -n kube-public exec -i trow-0 -- /trow "))
		if err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
		t.Logf("$ %s\n%s", command, out)
		return out
	}
	// mirrored waits until the node knows that the registry answers: it has been restarted.
	mirrored := func() {
		t.Helper()
		cluster.Eventually(t, time.Minute, "the node's mirror port answers", func() error {
			return readyAt(c, "127.0.0.1:24000")
		})
	}
	// fresh starts a pod whose image the node does not have.
	fresh := func(ns, name string) {
		t.Helper()
		if err := c.RemoveImage(image); err != nil && !strings.Contains(err.Error(), "not found") {
			t.Fatal(err)
		}
		running(t, c, ns, name, image)
		c.Kubectl(t, "--namespace", ns, "delete", "pod", name)
	}

	denied := func(what string) {
		t.Helper()
		out, err := c.TryApply(pod("cached", "x", containers(image)))
		if err == nil || !strings.Contains(out, "docker.io/cached") {
			t.Errorf("%s: %v: %s", what, err, out)
		}
		t.Log(out)
	}
	denied("it is not held")
	trow("trow warm " + image)
	mirrored()
	fresh("cached", "with-the-origin")
	if n := o.byNode.Load(); n > 0 {
		t.Errorf("the node has asked the origin %d times", n)
	}
	o.stop()
	fresh("cached", "without-the-origin")

	// The node goes on to the origin. The webhook does not get the pods of kube-system.
	o.start()
	c.Kubectl(t, "--namespace=kube-public", "scale", "statefulset/trow", "--replicas=0")
	c.Kubectl(t, "--namespace=kube-public", "wait", "--for=delete", "pod/trow-0", "--timeout=60s")
	before := o.byNode.Load()
	fresh("kube-system", "without-the-registry")
	if o.byNode.Load() == before {
		t.Error("the node has not asked the origin")
	}
	c.Kubectl(t, "--namespace=kube-public", "scale", "statefulset/trow", "--replicas=1")
	cluster.Eventually(t, 2*time.Minute, "the registry answers", func() error { return registryReady(c) })

	archive := filepath.Join(t.TempDir(), "images.tar")
	pods := filepath.Join(t.TempDir(), "pods.yaml")
	if err := os.WriteFile(pods, []byte(pod("cached", "unchanged", containers(image))), 0o600); err != nil {
		t.Fatal(err)
	}
	trow("trow export -f - - <" + pods + " >" + archive)
	o.stop()
	trow("trow evict " + image)
	settings(t, c, "")
	denied("it was evicted")
	trow("trow import - <" + archive)
	mirrored()
	fresh("cached", "imported")
}
