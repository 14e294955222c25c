package bench

import (
	"os"
	"path/filepath"
)

// WriteStatic writes the content below a directory, so that a static file server has it under the paths of the API:
// the manifests by tag and by digest, and the blobs. It writes no lists. Errors: an invalid option; those of the file
// system.
func WriteStatic(dir string, o Options) error {
	if err := o.validate(); err != nil {
		return err
	}
	c, err := newContent(o)
	if err != nil {
		return err
	}
	root := filepath.Join(dir, "v2", filepath.FromSlash(c.repo))
	for _, sub := range []string{"manifests", "blobs"} {
		if err := os.MkdirAll(filepath.Join(root, sub), 0o755); err != nil {
			return err
		}
	}
	for _, p := range append([]piece{c.large, c.small, c.empty}, c.blobs...) {
		if err := writeFile(filepath.Join(root, "blobs", p.digest), p.bytes); err != nil {
			return err
		}
	}
	for _, p := range append(append([]piece{c.holder}, c.images...), c.referrers...) {
		if err := writeFile(filepath.Join(root, "manifests", p.digest), p.bytes); err != nil {
			return err
		}
	}
	for i, tag := range c.tags {
		if err := writeFile(filepath.Join(root, "manifests", tag), c.tagged(i).bytes); err != nil {
			return err
		}
	}
	return writeFile(filepath.Join(root, "manifests", holderTag), c.holder.bytes)
}

// writeFile writes a file that every user may read, unless it has that content already. It is neither durable nor
// written as a whole: the content is made anew by the next run, which also completes what an earlier one cut short.
func writeFile(path string, b []byte) error {
	if info, err := os.Stat(path); err == nil && info.Size() == int64(len(b)) {
		if old, err := os.ReadFile(path); err == nil && string(old) == string(b) {
			return nil
		}
	}
	return os.WriteFile(path, b, 0o644)
}
