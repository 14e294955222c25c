package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"trow/manifests/e2e/cluster"
)

// host is the registry's address in image names.
const host = "trow.kube-public:31000"

// appSource is a program that runs until it gets a signal to stop, as a container should.
const appSource = `package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
}
`

// app returns an image with that program, made unique by text and enlarged by size bytes.
func app(t *testing.T, text string, size int) cluster.Image {
	t.Helper()
	program := filepath.Join(t.TempDir(), "app")
	if err := cluster.BuildProgram(context.Background(), program, appSource); err != nil {
		t.Fatal(err)
	}
	return cluster.Image{Entrypoint: []string{"/app"}, User: "65532:65532", Files: []cluster.File{
		{Name: "app", Mode: 0o755, Source: program},
		{Name: "text", Mode: 0o644, Data: append([]byte(text), make([]byte, size)...)}}}
}

// push pushes an image from outside the cluster, to the node port, and returns its digest.
func push(t *testing.T, c *cluster.Cluster, name, tag string, img cluster.Image) string {
	t.Helper()
	digest, err := tryPush(t, c, name, tag, img)
	if err != nil {
		t.Fatalf("push %s:%s: %v", name, tag, err)
	}
	return digest
}

func tryPush(t *testing.T, c *cluster.Cluster, name, tag string, img cluster.Image) (string, error) {
	t.Helper()
	blobs, digest := layout(t, img)
	client, err := registryClient(c)
	if err != nil {
		return "", err
	}
	client.Timeout = time.Minute
	base := "https://" + cluster.NodeIP + ":31000/v2/" + name
	for d, b := range blobs {
		if d == digest {
			continue
		}
		err := send(client, http.MethodPost, base+"/blobs/uploads/?digest="+d, "application/octet-stream", b)
		if err != nil {
			return "", err
		}
	}
	const manifest = "application/vnd.oci.image.manifest.v1+json"
	return digest, send(client, http.MethodPut, base+"/manifests/"+tag, manifest, blobs[digest])
}

// TestATagIsMovedWithALogin checks that a client without a login cannot change what others run, and that the command in
// the refusal gives it a login.
func TestATagIsMovedWithALogin(t *testing.T) {
	c := start(t)
	armed(t, c)
	first, second := app(t, "first", 0), app(t, "second", 0)
	for range 2 { // the same again is no move
		push(t, c, "moved", "1", first)
	}
	push(t, c, "moved", "2", second)
	_, err := tryPush(t, c, "moved", "1", second)
	const command = "kubectl -n kube-public exec trow-0 -- /trow token create"
	if err == nil || !strings.Contains(err.Error(), "403") || !strings.Contains(err.Error(), command) {
		t.Fatalf("moved without a login: %v", err)
	}
	token := c.Output(t, "--namespace=kube-public", "exec", "trow-0", "--", "/trow", "token", "create", "mover",
		"--repository=moved", "--actions=pull,push")
	t.Cleanup(func() {
		c.Kubectl(t, "--namespace=kube-public", "exec", "trow-0", "--", "/trow", "token", "revoke", "mover")
	})
	client, err := registryClient(c)
	if err != nil {
		t.Fatal(err)
	}
	blobs, digest := layout(t, second)
	req, err := http.NewRequest(http.MethodPut, "https://"+cluster.NodeIP+":31000/v2/moved/manifests/1",
		bytes.NewReader(blobs[digest]))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("mover", strings.TrimSpace(token)) // as docker login --password-stdin
	req.Header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusCreated {
		t.Errorf("with a login: %s", resp.Status)
	}
}

// send sends a body. Any status but 201 is an error.
func send(client *http.Client, method, url, mediaType string, body []byte) error {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, text)
	}
	return nil
}

// layout returns the blobs of an image by digest, and the digest of its manifest.
func layout(t *testing.T, img cluster.Image) (map[string][]byte, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := cluster.WriteImage(file, "image", img); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	blobs := map[string][]byte{}
	var index struct{ Manifests []struct{ Digest string } }
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return blobs, index.Manifests[0].Digest
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if hex, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok {
			blobs["sha256:"+hex] = b
		}
		if h.Name == "index.json" {
			if err := json.Unmarshal(b, &index); err != nil {
				t.Fatal(err)
			}
		}
	}
}
