package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// module is the Go module of a peer. It is built once for each version and toolchain.
type module struct {
	peer, path, pkg, version string // pkg is within the module path
	tags                     string
}

// modules lists the peers that Debian does not have.
var modules = []module{
	{"distribution", "github.com/distribution/distribution/v3", "cmd/registry", "v3.1.2", ""},
	// Without the tags of extensions this is its minimal build.
	{"zot", "zotregistry.dev/zot/v2", "cmd/zot", "v2.1.21", "containers_image_openpgp"},
	{"olareg", "github.com/olareg/olareg", "cmd/olareg", "v0.2.2", ""},
}

// buildTime bounds the build of one peer. Large ones take minutes on two cores.
const buildTime = 20 * time.Minute

// obtain finds or builds the program of a peer. If that fails, p.missing has the reason. Errors: Trow cannot be built,
// without which there is nothing to compare; those of ctx.
func (l *laboratory) obtain(ctx context.Context, p *peer) error {
	if reason, out := l.options.without[p.name]; out {
		p.missing = reason
		return nil
	}
	if path := l.options.binaries[p.name]; path != "" {
		p.program, p.version = path, "given by --binary"
		return nil
	}
	var err error
	switch p.name {
	case nameTrow:
		return l.buildTrow(ctx, p)
	case nameLimit:
		p.program, err = os.Executable()
	case nameNginx, "docker-registry":
		err = fromDebian(ctx, p)
	default:
		err = l.fromModule(ctx, p)
	}
	if err != nil {
		p.missing = err.Error()
	}
	return ctx.Err()
}

// buildTrow builds the working tree like a release. The version is that of the commit.
func (l *laboratory) buildTrow(ctx context.Context, p *peer) error {
	p.program = filepath.Join(l.dir, "trow")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", p.program, ".")
	cmd.Dir, cmd.Env = l.root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building Trow: %w: %s", err, lastLine(out))
	}
	p.version = "working tree"
	git := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty")
	git.Dir = l.root
	if out, err := git.Output(); err == nil {
		p.version = strings.TrimSpace(string(out))
	}
	return nil
}

// debianVersion matches the upstream part of a version: 2.8.2 of 2.8.2+ds1-1.
var debianVersion = regexp.MustCompile(`^[0-9]+(\.[0-9]+)*`)

// fromDebian finds an installed program.
func fromDebian(ctx context.Context, p *peer) error {
	pkg := map[string]string{nameNginx: "nginx-light"}[p.name]
	if pkg == "" {
		pkg = p.name
	}
	path, err := exec.LookPath(p.name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + p.name)
	}
	if err != nil {
		return fmt.Errorf("not installed: apt-get install %s", pkg)
	}
	p.program = path
	for _, owner := range []string{pkg, "nginx"} {
		if out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Version}", owner).Output(); err == nil {
			p.version = debianVersion.FindString(string(out))
			return nil
		}
	}
	p.version = "of " + path
	return nil
}

// fromModule builds a program from the Go module proxy, unless an earlier run did.
func (l *laboratory) fromModule(ctx context.Context, p *peer) error {
	var m module
	for _, each := range modules {
		if each.peer == p.name {
			m = each
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	dir := filepath.Join(cache, "trow-ci", "bin", runtime.Version(), m.peer+"@"+m.version)
	p.version, p.program = strings.TrimPrefix(m.version, "v"), filepath.Join(dir, m.peer)
	if _, err := os.Stat(p.program); err == nil {
		return nil
	}
	l.log("building %s %s, which may take minutes", m.peer, m.version)
	ctx, cancel := context.WithTimeout(ctx, buildTime)
	defer cancel()
	return m.build(ctx, dir)
}

// build builds the program within a temporary module that requires exactly this version: `go install` would ask for
// lists of versions, which not every proxy has. The program appears in dir only when it is complete.
func (m module) build(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(dir, "build")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	file := "module comparison\n\ngo 1.26\n\nrequire " + m.path + " " + m.version + "\n"
	if err := os.WriteFile(filepath.Join(work, "go.mod"), []byte(file), 0o644); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=mod", "-trimpath", "-tags", m.tags, "-o", m.peer,
		m.path+"/"+m.pkg)
	cmd.Dir, cmd.Env = work, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); ctx.Err() != nil {
		return fmt.Errorf("go build did not end within %s", buildTime)
	} else if err != nil {
		return fmt.Errorf("go build %s/%s@%s: %s", m.path, m.pkg, m.version, cmp.Or(lastLine(out), err.Error()))
	}
	return os.Rename(filepath.Join(work, m.peer), filepath.Join(dir, m.peer))
}

// address matches the address of a server, which does not help a reader.
var address = regexp.MustCompile(`(reading )?https?://\S+: `)

// lastLine returns the last line of a command's output, for use as a reason.
func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	text := address.ReplaceAllString(strings.TrimSpace(lines[len(lines)-1]), "")
	if len(text) > 300 {
		text = text[:300] + "…"
	}
	return text
}

// product is the line by which the root's go.mod is recognized.
const product = "module trow\n"

// findRoot returns the root of Trow's working tree: the nearest directory above the current one whose go.mod is Trow's.
// The comparison has a go.mod too, so the nearest go.mod would be the wrong one.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), product) {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not inside Trow's working tree; run `go run .` in .ci/comparison")
		}
		dir = parent
	}
}
