package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// kubernetesPrograms are the programs to build, the largest first.
var kubernetesPrograms = []string{
	"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"}

// kubernetesVersion returns the version to run.
func kubernetesVersion() string {
	if v := os.Getenv("TROW_E2E_KUBERNETES"); v != "" {
		return v
	}
	return "v1.34.4"
}

var versionPattern = regexp.MustCompile(`^v1\.(\d+)\.\d+[a-z0-9.-]*$`)

// kubernetesDir returns the directory of the programs of a version.
func kubernetesDir(version string) (string, error) {
	if !versionPattern.MatchString(version) {
		return "", fmt.Errorf("TROW_E2E_KUBERNETES: %.40q is not a version such as v1.34.4", version)
	}
	cache, err := cacheDir()
	return filepath.Join(cache, "kubernetes", version), err
}

// buildKubernetes builds the programs of a version from its Go module, unless they exist, and returns their directory.
func buildKubernetes(ctx context.Context, version string) (string, error) {
	dir, err := kubernetesDir(version)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	lock, err := lockFile(dir+".lock", syscall.LOCK_EX) // another run may be building it
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	defer took(time.Now(), "build Kubernetes "+version)
	fmt.Fprintf(os.Stderr, "e2e: building Kubernetes %s: takes some minutes, once\n", version)
	if f := flag.Lookup("test.timeout"); f != nil && f.Value.String() == "10m0s" {
		fmt.Fprintln(os.Stderr, "e2e: go test stops the build after 10 minutes; use -timeout 60m, "+
			"or run it again until it is complete")
	}

	// The files of an interrupted build are incomplete; Go's build cache makes the next build faster.
	tmp := dir + ".building"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	src, bin := filepath.Join(tmp, "src"), filepath.Join(tmp, "bin")
	if err := writeKubernetesModule(ctx, src, version); err != nil {
		return "", err
	}
	for _, name := range kubernetesPrograms {
		start := time.Now()
		_, err := goTool(ctx, src, "-mod=mod", "build", "-trimpath", "-ldflags", kubernetesFlags(version),
			"-o", filepath.Join(bin, name), "k8s.io/kubernetes/cmd/"+name)
		if err != nil {
			return "", fmt.Errorf("build %s %s: %w", name, version, err)
		}
		took(start, "build "+name)
	}
	return dir, os.Rename(bin, dir)
}

// writeKubernetesModule writes a module that requires Kubernetes. The repository of Kubernetes replaces the libraries
// of k8s.io by its own folders; they are published as separate modules as well, v0.X.Y for Kubernetes v1.X.Y.
func writeKubernetesModule(ctx context.Context, dir, version string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module trow.e2e/kubernetes\n"), 0o644); err != nil {
		return err
	}
	out, err := goTool(ctx, dir, "-mod=mod", "mod", "download", "-json", "k8s.io/kubernetes@"+version)
	if err != nil {
		return fmt.Errorf("download Kubernetes %s: %w", version, err)
	}
	var module struct{ GoMod string }
	if err := json.Unmarshal(out, &module); err != nil {
		return fmt.Errorf("go mod download: %w", err)
	}
	original, err := os.ReadFile(module.GoMod)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "module trow.e2e/kubernetes\n\n")
	// The language and its defaults are those that Kubernetes was tested with.
	for _, line := range regexp.MustCompile(`(?m)^(go|godebug) .*$`).FindAllString(string(original), -1) {
		fmt.Fprintf(&b, "%s\n\n", line)
	}
	fmt.Fprintf(&b, "require k8s.io/kubernetes %s\n\ntool (\n", version)
	for _, name := range kubernetesPrograms {
		fmt.Fprintf(&b, "\tk8s.io/kubernetes/cmd/%s\n", name)
	}
	fmt.Fprintf(&b, ")\n\nreplace (\n")
	staging := regexp.MustCompile(`(?m)^\t*(k8s\.io/[a-z-]+) => \./staging`)
	for _, m := range staging.FindAllStringSubmatch(string(original), -1) {
		fmt.Fprintf(&b, "\t%s => %s v0.%s\n", m[1], m[1], strings.TrimPrefix(version, "v1."))
	}
	fmt.Fprintf(&b, ")\n")
	return os.WriteFile(filepath.Join(dir, "go.mod"), []byte(b.String()), 0o644)
}

// kubernetesFlags returns the linker flags: no symbols, and the version that the components report.
func kubernetesFlags(version string) string {
	minor := versionPattern.FindStringSubmatch(version)[1]
	flags := "-s -w"
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, v := range []string{"gitVersion=" + version, "gitMajor=1", "gitMinor=" + minor, "gitTreeState=clean",
			"gitCommit=0000000000000000000000000000000000000000", "buildDate=2026-01-01T00:00:00Z"} {
			flags += " -X " + pkg + "." + v
		}
	}
	return flags
}

// goTries is how often a go command is run that fails: a download may fail once.
const goTries = 3

// goTool runs the go command without cgo and outside a workspace, with GOFLAGS=-mod=mod or the like, and returns its
// standard output. What it reports, such as downloads, is shown on standard error while it runs. Errors have the end of
// that.
func goTool(ctx context.Context, dir, mod string, args ...string) ([]byte, error) {
	for try := 1; ; try++ {
		var reported bytes.Buffer
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS="+mod, "GOWORK=off")
		cmd.Stderr = io.MultiWriter(os.Stderr, &reported)
		out, err := cmd.Output()
		if err == nil {
			return out, nil
		}
		const most = 2 << 10
		end := reported.Bytes()[max(0, reported.Len()-most):]
		err = fmt.Errorf("go %s in %s: %w\n%s%s", strings.Join(args, " "), dir, err, out, end)
		if try == goTries || ctx.Err() != nil {
			return nil, err
		}
		fmt.Fprintf(os.Stderr, "e2e: try %d of %d failed: %v\n", try, goTries, err)
	}
}

// build builds a program as the Dockerfile does.
func build(ctx context.Context, path, dir, mod string) error {
	_, err := goTool(ctx, dir, mod, "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	return err
}

// trowBinary returns the path of the program under test.
func trowBinary(dir string) string { return filepath.Join(dir, "trow") }

// Root returns the directory of Trow's source: the nearest parent directory with its go.mod.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module trow\n") {
			return dir, nil
		}
	}
	return "", errors.New("no parent directory has the go.mod of module trow; run the tests in their own directory")
}

// buildTrow builds the program under test as the Dockerfile does.
func buildTrow(ctx context.Context, path string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	defer took(time.Now(), "build trow")
	return build(ctx, path, root, "")
}

// BuildProgram builds a static program from one file of Go source, which may import the standard library only.
func BuildProgram(ctx context.Context, path, source string) error {
	dir, err := os.MkdirTemp("", "trow-e2e-program-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module program\n\ngo 1.26\n"), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o644); err != nil {
		return err
	}
	return build(ctx, path, dir, "-mod=mod")
}

// BuildModule builds the main package of a module of its own in this directory, with the versions of its go.sum.
func BuildModule(ctx context.Context, path, dir string) error {
	defer took(time.Now(), "build "+dir)
	return build(ctx, path, dir, "-mod=readonly")
}
