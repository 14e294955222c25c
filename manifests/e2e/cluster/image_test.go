package cluster

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestFullName(t *testing.T) {
	for name, want := range map[string]string{
		"alpine":                  "docker.io/library/alpine:latest",
		"trow:0.1.0":              "docker.io/library/trow:0.1.0",
		"team/app":                "docker.io/team/app:latest",
		"localhost/app:1":         "localhost/app:1",
		"127.0.0.1:5000/app":      "127.0.0.1:5000/app:latest",
		"quay.io/a/b@sha256:0123": "quay.io/a/b@sha256:0123",
	} {
		if got := FullName(name); got != want {
			t.Errorf("FullName(%q) = %q, want %q", name, got, want)
		}
	}
}

// TestTheImageIsThatOfTheDockerfile: its configuration is read, and what is not understood is an error.
func TestTheImageIsThatOfTheDockerfile(t *testing.T) {
	img, err := trowImage("/bin/trow")
	if err != nil {
		t.Fatal(err)
	}
	want := Image{Files: img.Files, Env: []string{"TROW_LISTEN=:8443"}, User: "65532:65532",
		Ports:   []string{"8443/tcp"},
		Volumes: []string{"/data"}, Entrypoint: []string{"/trow"}, Cmd: []string{"serve", "--data-dir=/data"}}
	if !reflect.DeepEqual(img, want) || len(img.Files) == 0 {
		t.Errorf("%+v, want %+v", img, want)
	}
	if _, err := parseDockerfile("FROM scratch\n"); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"FROM debian\n", "HEALTHCHECK NONE\n", "ENV A B\n", "ENV A=\"b\"\n",
		"ENTRYPOINT /trow\n"} {
		if img, err := parseDockerfile("FROM scratch\n" + text); err == nil {
			t.Errorf("%q: %+v", text, img)
		}
	}
}

// TestRename checks that archives of both formats get the name, and that their other files stay.
func TestRename(t *testing.T) {
	dir := t.TempDir()
	layout := filepath.Join(dir, "layout.tar")
	img := Image{Files: []File{{Name: "a", Mode: 0o644, Data: []byte("content")}}}
	if err := WriteImage(layout, "old", img); err != nil {
		t.Fatal(err)
	}
	docker := filepath.Join(dir, "docker.tar")
	writeTar(t, docker, "manifest.json", `[{"Config":"c.json","RepoTags":["old"],"Layers":["l.tar"]}]`)
	for _, file := range []string{layout, docker} {
		to := file + ".new"
		if err := rename(file, to, "docker.io/library/new:1"); err != nil {
			t.Fatal(err)
		}
		before, after := readTar(t, file), readTar(t, to)
		for name, content := range before {
			switch name {
			case "index.json", "manifest.json":
				if !strings.Contains(after[name], `"docker.io/library/new:1"`) ||
					strings.Contains(after[name], `"old"`) {
					t.Errorf("%s of %s: %s", name, file, after[name])
				}
			default:
				if after[name] != content {
					t.Errorf("%s of %s was changed", name, file)
				}
			}
		}
	}
	other := filepath.Join(dir, "other.tar")
	writeTar(t, other, "file", "content")
	err := rename(other, other+".new", "new")
	if err == nil || !strings.Contains(err.Error(), "not a tar archive of an OCI layout") {
		t.Errorf("another kind of archive: %v", err)
	}
}

func writeTar(t *testing.T, file, name, content string) {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	put(w, name, []byte(content))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readTar(t *testing.T, file string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(content)
	}
}
