package node_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"trow/manifests/node"
)

var withContainerd = flag.Bool("containerd", false, "also run TestContainerd, which needs root and containerd")

// image has the answers of a registry that has one image of 20 layers, by path. The tag is 1.
func image() map[string][]byte {
	type content struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	all := map[string][]byte{}
	put := func(kind, mediaType string, b []byte) content {
		d := fmt.Sprintf("sha256:%x", sha256.Sum256(b))
		all["/v2/app/"+kind+"/"+d] = b
		return content{mediaType, d, len(b)}
	}
	var list []content
	var ids []string
	for i := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		_ = w.WriteHeader(&tar.Header{Name: fmt.Sprint("file-", i), Size: 100 << 10, Mode: 0o644})
		_, _ = w.Write(bytes.Repeat([]byte{byte(i)}, 100<<10))
		w.Close()
		l := put("blobs", "application/vnd.oci.image.layer.v1.tar", b.Bytes())
		list, ids = append(list, l), append(ids, l.Digest)
	}
	config, _ := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux",
		"rootfs": map[string]any{"type": "layers", "diff_ids": ids}})
	const mediaType = "application/vnd.oci.image.manifest.v1+json"
	manifest, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaType, "layers": list,
		"config": put("blobs", "application/vnd.oci.image.config.v1+json", config)})
	put("manifests", mediaType, manifest)
	all["/v2/app/manifests/1"] = manifest
	return all
}

// TestContainerd measures how long containerd itself takes to pull an image of 20 layers whose registry has a mirror,
// while that is well, or dead; and without trow node, which says what it is worth.
func TestContainerd(t *testing.T) {
	if !*withContainerd {
		t.Skip("without -containerd")
	}
	answers := image()
	var asked [2]atomic.Int64 // the mirror and the registry itself
	serve := func(at int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			b, ok := answers[r.URL.Path]
			if r.URL.Path == "/healthz" {
				return
			}
			if asked[at].Add(1); !ok {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/octet-stream")
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				w.Header().Set("Docker-Content-Digest", fmt.Sprintf("sha256:%x", sha256.Sum256(b)))
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			_, _ = w.Write(b)
		}
	}
	origin := httptest.NewServer(serve(1))
	defer origin.Close()
	dir := t.TempDir()
	socket := startContainerd(t, dir)
	pull := func(hosts string) time.Duration {
		t.Helper()
		ref := strings.TrimPrefix(origin.URL, "http://") + "/app:1"
		ctr := func(args ...string) {
			t.Helper()
			cmd := exec.CommandContext(t.Context(), "ctr", append([]string{"-a", socket}, args...)...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		asked[0].Store(0)
		asked[1].Store(0)
		begin := time.Now()
		ctr("images", "pull", "--snapshotter", "native", "--max-concurrent-downloads", "3", "--hosts-dir", hosts, ref)
		took := time.Since(begin)
		ctr("images", "rm", "--sync", ref)
		return took
	}
	for _, c := range []struct {
		what string
		die  func(*gate)
	}{{"well", func(*gate) {}}, {"killed", (*gate).kill}, {"hung", (*gate).hang}, {"unreachable", (*gate).lose}} {
		ca := makeAuthority(t)
		r := httptest.NewUnstartedServer(serve(0))
		r.TLS = startRegistry(t, ca, nil).TLS.Clone()
		r.TLS.Certificates = append(r.TLS.Certificates[:0], ca.leaf) // containerd sends no name
		// It would log connections that end in the middle of a handshake.
		r.Config.ErrorLog = log.New(io.Discard, "", 0)
		r.StartTLS()
		defer r.Close()
		g := newGate(t, r.Listener.Addr().String())
		w := newWorld(t, ca.pem, "etc/containerd")
		w.options.Mirrors = []string{"all"}
		port := free(t)
		w.options.MirrorPort = port
		w.options.Listen = func(network, address string) (net.Listener, error) {
			if strings.HasSuffix(address, fmt.Sprint(":", port)) {
				return net.Listen(network, address)
			}
			return w.listen(network, address)
		}
		w.unhurried = true
		w.change = func(n *node.Node) { node.Connects(n, g.connect) }
		w.start(g.Addr().String()).ready()
		w.until("the registry is known to answer", func() bool { return len(w.reported(node.MirrorUp)) == 1 })
		const file = "etc/containerd/certs.d/_default/hosts.toml"
		w.until("the files", func() bool { return w.file(file) != "" })
		// containerd does not run in the root of w, so that the CA has another path. copied returns a directory like
		// certs.d, with another address of the mirror.
		copied := func(address string) string {
			dir := t.TempDir()
			text := strings.ReplaceAll(w.file(file), fmt.Sprintf("127.0.0.1:%d", port), address)
			text = strings.ReplaceAll(text, `"/etc`, `"`+w.root+"/etc")
			if err := errors.Join(os.Mkdir(filepath.Join(dir, "_default"), 0o755),
				os.WriteFile(filepath.Join(dir, "_default/hosts.toml"), []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
			return dir
		}
		hosts := copied(fmt.Sprintf("127.0.0.1:%d", port))
		c.die(g)
		first := pull(hosts)
		mirror := asked[0].Load()
		second := pull(hosts)
		t.Logf("%s: the first pull takes %v (%d answers of the mirror), the next one %v", c.what,
			first.Round(10*time.Millisecond), mirror, second.Round(10*time.Millisecond))
		if c.what == "hung" {
			took := pull(copied(g.Addr().String()))
			t.Logf("%s: without trow node it takes %v", c.what, took.Round(10*time.Millisecond))
		}
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	}
}

// free returns a port that nothing listens on.
func free(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// startContainerd starts a containerd that keeps everything in a directory, and returns its socket.
func startContainerd(t *testing.T, dir string) string {
	t.Helper()
	socket := filepath.Join(dir, "c.sock")
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"+
		"[grpc]\naddress = %q\n", dir+"/root", dir+"/state", socket)
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "containerd", "--config", dir+"/config.toml", "--log-level", "error")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if exec.CommandContext(t.Context(), "ctr", "-a", socket, "version").Run() == nil {
			return socket
		}
		if time.Now().After(deadline) {
			t.Fatal("containerd does not start")
		}
	}
}
