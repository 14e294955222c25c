package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// File is a file of an image or, if its name ends in a slash, a directory.
type File struct {
	Name   string // path from the root, without a leading slash
	Mode   int64
	Owner  int    // user and group
	Data   []byte // its content
	Source string // or a file with its content
}

// Image has the files of an image and its configuration, with the field names of the OCI specification.
type Image struct {
	Files      []File
	User       string
	Entrypoint []string
	Cmd        []string
	Env        []string
	Volumes    []string
	Ports      []string // as in 8443/tcp
}

// descriptor describes a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// nameAnnotation has the name of an image in a layout, for containerd.
const nameAnnotation = "io.containerd.image.name"

// WriteImage writes an image for this machine's architecture, as a tar archive of an OCI layout.
func WriteImage(file, name string, img Image) error {
	layer, err := layerOf(img.Files)
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	blob := func(mediaType string, b []byte) descriptor {
		sum := sha256.Sum256(b)
		put(w, fmt.Sprintf("blobs/sha256/%x", sum), b)
		return descriptor{MediaType: mediaType, Digest: fmt.Sprintf("sha256:%x", sum), Size: len(b)}
	}
	set := func(keys []string) map[string]struct{} {
		m := map[string]struct{}{}
		for _, k := range keys {
			m[k] = struct{}{}
		}
		return m
	}
	put(w, "oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	layerDesc := blob("application/vnd.oci.image.layer.v1.tar", layer)
	config := blob("application/vnd.oci.image.config.v1+json", encode(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"User": img.User, "Entrypoint": img.Entrypoint, "Cmd": img.Cmd, "Env": img.Env,
			"Volumes": set(img.Volumes), "ExposedPorts": set(img.Ports)},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerDesc.Digest}},
	}))
	manifest := blob("application/vnd.oci.image.manifest.v1+json", encode(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": config, "layers": []descriptor{layerDesc},
	}))
	manifest.Annotations = map[string]string{nameAnnotation: name}
	put(w, "index.json", encode(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}}))
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(file, buf.Bytes(), 0o644)
}

// layerOf returns a tar archive of files.
func layerOf(files []File) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		data := f.Data
		if f.Source != "" {
			var err error
			if data, err = os.ReadFile(f.Source); err != nil {
				return nil, err
			}
		}
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Uid: f.Owner, Gid: f.Owner, Size: int64(len(data)),
			Typeflag: tar.TypeReg}
		if strings.HasSuffix(f.Name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}

// put adds a file to an archive in memory, which cannot fail.
func put(w *tar.Writer, name string, b []byte) {
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b)), Typeflag: tar.TypeReg})
	if err == nil {
		_, err = w.Write(b)
	}
	if err != nil {
		panic(err)
	}
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // impossible: maps, slices and strings can be encoded
	}
	return b
}

// ImportImage gives the node the image in a tar archive, of an OCI layout or of docker save, with this name. The name
// may be short: alpine is docker.io/library/alpine:latest.
func (c *Cluster) ImportImage(tarball, name string) error {
	renamed := filepath.Join(c.dir, "import.tar")
	defer os.Remove(renamed)
	if err := rename(tarball, renamed, FullName(name)); err != nil {
		return fmt.Errorf("import %s: %w", tarball, err)
	}
	cmd := c.command(context.Background(), "ctr", "--address", containerdSocket, "--namespace", "k8s.io",
		"images", "import", renamed)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import %s as %s: %w: %s", tarball, name, err, out)
	}
	return nil
}

// AddImage writes an image and gives it to the node.
func (c *Cluster) AddImage(name string, img Image) error {
	file := filepath.Join(c.dir, "image.tar")
	defer os.Remove(file)
	if err := WriteImage(file, FullName(name), img); err != nil {
		return err
	}
	return c.ImportImage(file, name)
}

// RemoveImage removes an image from the node, with its content, so that it is pulled again.
func (c *Cluster) RemoveImage(name string) error {
	cmd := c.command(context.Background(), "ctr", "--address", containerdSocket, "--namespace", "k8s.io",
		"images", "rm", "--sync", FullName(name))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("remove %s: %w: %s", name, err, out)
	}
	return nil
}

// FullName returns containerd's name of an image: with a host and a tag.
func FullName(name string) string {
	host, rest, ok := strings.Cut(name, "/")
	switch {
	case !ok:
		name = "docker.io/library/" + name
	case rest != "" && !strings.ContainsAny(host, ".:") && host != "localhost":
		name = "docker.io/" + name
	}
	if last := path.Base(name); !strings.ContainsAny(last, ":@") {
		name += ":latest"
	}
	return name
}

// rename copies an archive of one image, and changes the name of the image in the copy.
func rename(from, to, name string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	r, w := tar.NewReader(in), tar.NewWriter(out)
	named := false
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		var content io.Reader = r
		switch path.Clean(h.Name) {
		case "index.json", "manifest.json":
			b, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			if b, err = nameIn(b, name); err != nil {
				return fmt.Errorf("%s: %w", h.Name, err)
			}
			h.Size, content, named = int64(len(b)), bytes.NewReader(b), true
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, content); err != nil {
			return err
		}
	}
	if !named {
		return errors.New("not a tar archive of an OCI layout (index.json) or of docker save (manifest.json); " +
			"is it compressed?")
	}
	return errors.Join(w.Close(), out.Close())
}

// nameIn sets the name in the index.json of an OCI layout, or in docker's manifest.json.
func nameIn(b []byte, name string) ([]byte, error) {
	var docker []map[string]any
	if json.Unmarshal(b, &docker) == nil {
		if len(docker) != 1 {
			return nil, fmt.Errorf("%d images; want 1", len(docker))
		}
		docker[0]["RepoTags"] = []string{name}
		return encode(docker), nil
	}
	var index map[string]any
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, err
	}
	manifests, _ := index["manifests"].([]any)
	if len(manifests) != 1 {
		return nil, fmt.Errorf("%d images; want 1", len(manifests))
	}
	m, ok := manifests[0].(map[string]any)
	if !ok {
		return nil, errors.New("manifests: want a descriptor")
	}
	m["annotations"] = map[string]string{nameAnnotation: name}
	return encode(index), nil
}

// pauseImage is the image of the container that holds the namespaces of a pod.
const pauseImage = "trow.e2e/pause:1"

// pauseSource is its program: it reaps processes of pods that share their PID namespace, until it gets a signal to
// stop.
const pauseSource = `package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ch := make(chan os.Signal, 16)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for s := range ch {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && err != syscall.EINTR {
				break
			}
		}
	}
}
`

// trowImage is the image under test, as the Dockerfile builds it: with its files, and its configuration, which is read
// from there. Errors: those of dockerfile.
func trowImage(binary string) (Image, error) {
	img, err := dockerfile()
	img.Files = []File{
		{Name: "trow", Mode: 0o755, Source: binary},
		{Name: "data/", Mode: 0o755, Owner: 65532},
		{Name: "etc/", Mode: 0o755}, {Name: "etc/ssl/", Mode: 0o755}, {Name: "etc/ssl/certs/", Mode: 0o755},
		{Name: "etc/ssl/certs/ca-certificates.crt", Mode: 0o644, Data: systemCertificates()},
	}
	return img, err
}

// systemCertificates returns the CAs that this machine trusts, if any. No test depends on them.
func systemCertificates() []byte {
	b, _ := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	return b
}

// TrowImage returns the name of the image in manifests/trow.yaml.
func TrowImage() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	file := filepath.Join(root, "manifests", "trow.yaml")
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`(?m)^\s*image:\s*(\S+)`).FindSubmatch(b)
	if m == nil {
		return "", fmt.Errorf("%s: no image", file)
	}
	return string(m[1]), nil
}
