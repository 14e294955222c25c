// Package workstation simulates a developer's machine: a real dockerd, which resolves the registry's name and trusts
// its CA, and the two images of the tutorial, made of Debian packages.
package workstation

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// rootfs is a root file system made of Debian packages.
type rootfs struct {
	name     string
	packages string            // beside Debian's minimal system
	files    map[string]string // content by path
	changes  []string          // instructions of a Dockerfile
}

// version must change with the content of a root file system.
const version = "1"

var (
	// php is like the official php:8-fpm: it listens on port 9000 and logs to stderr.
	php = rootfs{name: "php:8-fpm", packages: "php-fpm",
		changes: []string{`CMD ["/usr/local/bin/php-fpm", "-F", "-O"]`, "EXPOSE 9000"},
		files: map[string]string{
			"usr/local/bin/php-fpm": "#!/bin/sh\nexec /usr/sbin/php-fpm[0-9]* --fpm-config " +
				"/usr/local/etc/php-fpm.conf \"$@\"\n",
			"usr/local/etc/php-fpm.conf": "[global]\nerror_log = /proc/self/fd/2\n" +
				"[www]\nuser = www-data\ngroup = www-data\nlisten = 9000\n" +
				"pm = dynamic\npm.max_children = 5\npm.start_servers = 2\n" +
				"pm.min_spare_servers = 1\npm.max_spare_servers = 3\nclear_env = no\n",
		}}
	// nginx is like the official nginx:1.21.0: it reads conf.d, and stays in the foreground.
	nginx = rootfs{name: "nginx:1.21.0", packages: "nginx-light",
		changes: []string{`CMD ["nginx", "-g", "daemon off;"]`, "EXPOSE 80"},
		files: map[string]string{
			"etc/nginx/nginx.conf": "user www-data;\nworker_processes 1;\nerror_log /dev/stderr;\n" +
				"pid /run/nginx.pid;\nevents {}\n" +
				"http {\n  include mime.types;\n  access_log /dev/stdout;\n  include conf.d/*.conf;\n}\n",
		}}
)

// Prepare makes the root file systems, in the user's cache directory. It needs the network and debootstrap.
func Prepare(ctx context.Context) error {
	for _, r := range []rootfs{php, nginx} {
		if err := r.make(ctx); err != nil {
			return fmt.Errorf("root file system of %s: %w", r.name, err)
		}
	}
	return nil
}

// archive returns the path of a root file system's archive.
func (r *rootfs) archive() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "trow-ci", "images", strings.ReplaceAll(r.name, ":", "-")+"-"+version+".tar"), err
}

// make makes the archive, unless it exists.
func (r *rootfs) make(ctx context.Context) error {
	archive, err := r.archive()
	if err != nil {
		return err
	}
	if _, err := os.Stat(archive); err == nil {
		return nil
	}
	start := time.Now()
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(archive), ".rootfs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	root := filepath.Join(dir, "root")
	site, suite, err := debian(ctx)
	if err != nil {
		return err
	}
	packages := "--include=" + strings.ReplaceAll(r.packages, " ", ",")
	if err := run(ctx, "debootstrap", "--variant=minbase", packages, suite, root, site); err != nil {
		return err
	}
	for name, content := range r.files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o755); err != nil {
			return err
		}
	}
	// An image needs none of these files, which are half of it.
	const clean = `cd "$1" && rm -rf var/cache/apt/* var/lib/apt/lists/* usr/share/doc/* usr/share/man/* ` +
		`usr/share/locale/* etc/nginx/sites-enabled/* dev/* proc/* sys/*`
	if err := run(ctx, "sh", "-c", clean, "sh", root); err != nil {
		return err
	}
	temp := filepath.Join(dir, "archive")
	if err := run(ctx, "tar", "--numeric-owner", "-C", root, "-cf", temp, "."); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "e2e: %6.1fs root file system of %s\n", time.Since(start).Seconds(), r.name)
	return os.Rename(temp, archive)
}

// debian returns the mirror that this machine gets its packages from, and its release.
func debian(ctx context.Context) (site, suite string, err error) {
	release, err := exec.CommandContext(ctx, "sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME").Output()
	if err != nil {
		return "", "", err
	}
	suite = strings.TrimSpace(string(release))
	targets, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)",
		"Created-By: Packages").Output()
	for line := range strings.Lines(string(targets)) {
		if f := strings.Fields(line); len(f) == 3 && f[1] == suite && f[2] == "main" {
			return strings.TrimSuffix(f[0], "/"), suite, nil
		}
	}
	return "", "", errors.Join(err, fmt.Errorf("the sources of apt have no %s main", suite))
}

// run runs a command. Its output is part of the error if it fails.
func run(ctx context.Context, name string, args ...string) error {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out[max(0, len(out)-2000):])
	}
	return nil
}
