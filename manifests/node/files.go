package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"trow/storage/files"
)

const (
	// marker starts each file of ours; the rest of its first line is for people. In front of a certificate it is
	// explanatory text (RFC 7468, section 2), which the parsers of runtimes skip. It must never change: a file that
	// starts otherwise is foreign.
	marker     = "# Written by trow node"
	markerLine = marker + "; removed when Trow is uninstalled\n"
	// olderTempSuffix ended the names of temporary files in earlier versions. A crash may have left one.
	olderTempSuffix = ".trow-tmp"
	// maxFile is more than any file of ours has.
	maxFile = 1 << 20
)

// keepFiles writes the node's files when the bundle has changed, and checks them regularly, until ctx is done.
func (n *Node) keepFiles(ctx context.Context) {
	t := time.NewTicker(n.times.recheck)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		case <-t.C:
		}
		if bundle := n.bundle.Load(); bundle != nil {
			n.writeFiles(ctx, *bundle)
			n.synced.Store(true)
		}
	}
}

// writeFiles writes the node's files where they are not as they should be, and reports problems.
func (n *Node) writeFiles(ctx context.Context, bundle []byte) {
	root, err := os.OpenRoot(n.o.Root)
	if n.problem(ctx, n.o.Root, FileFailed, err); err != nil {
		return
	}
	defer root.Close()
	n.findElsewhere(root)
	n.removeOlder(root)
	var done []string
	for _, p := range n.places(n.local(), bundle) {
		if n.writePlace(ctx, root, &p) && !slices.Contains(done, p.runtime) {
			done = append(done, p.runtime)
		}
	}
	n.writeMirrors(ctx, root, bundle)
	kind := ConfigPath
	if err = n.checkContainerd(root); errors.As(err, new(uncheckedError)) {
		kind = Unchecked
	} else if err != nil {
		done = slices.DeleteFunc(done, func(runtime string) bool { return runtime == containerdName })
	}
	n.problem(ctx, containerdConfig, kind, err)
	text := fmt.Sprintf("%s: configured to find %s at %s", strings.Join(done, ", "), n.name(), n.local())
	if len(done) > 0 && n.lastReported[""] != text {
		n.lastReported[""] = text
		n.report(ctx, NodeReady, nil, "%s", text)
	}
}

// writePlace reports whether the runtime exists on the node and has what it needs.
func (n *Node) writePlace(ctx context.Context, root *os.Root, p *place) bool {
	exists, err := runs(root, p.parent)
	if err == nil && !exists {
		return false
	}
	var written []string
	if err == nil {
		written, err = p.write(root)
	}
	for _, file := range written {
		n.notify(Written, nil, "/%s", file)
	}
	kind := FileFailed
	if errors.As(err, new(foreignError)) {
		kind = Foreign
	}
	if p.kind != "" && err != nil {
		kind, err = p.kind, fmt.Errorf("%s does not pull images of other registries through this one: %w", p.runtime,
			err)
	}
	n.problem(ctx, p.dir, kind, err)
	if p.reload != "" && len(written) > 0 {
		n.report(ctx, Reload, nil, "%s", p.reload)
	}
	return err == nil
}

// problem reports the problem of a path, once until it is solved or another takes its place. nil means that it is
// solved.
func (n *Node) problem(ctx context.Context, path string, kind Kind, err error) {
	if err == nil {
		delete(n.lastReported, path)
		return
	}
	text := string(kind) + err.Error()
	if n.lastReported[path] == text {
		n.publish(ctx, Event{Kind: kind, Message: err.Error()}) // again, when the Event is about to expire
		return
	}
	n.lastReported[path] = text
	n.report(ctx, kind, nil, "%v", err)
	// The last Event about a node says how it is. So success is reported again after each problem: at once if another
	// runtime has the problem, else when it is solved.
	delete(n.lastReported, "")
	n.forget(NodeReady)
}

// removeFiles removes our files for both addresses of the local port: an earlier run may have used the other one.
func (n *Node) removeFiles() {
	root, err := os.OpenRoot(n.o.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		n.notify(FileFailed, err, "cannot remove the node's files")
		return
	}
	defer root.Close()
	n.findElsewhere(root)
	n.removeMirrors(root, nil)
	for _, local := range append(localAddresses(n.o.LocalPort), localAddresses(olderLocalPort(n.o.Port))...) {
		for _, p := range n.places(local, nil) {
			n.removePlace(root, &p)
		}
	}
}

func (n *Node) removePlace(root *os.Root, p *place) {
	removed, err := p.remove(root)
	for _, file := range removed {
		n.notify(Removed, nil, "/%s", file)
	}
	if err != nil && !errors.As(err, new(foreignError)) {
		n.notify(FileFailed, err, "cannot remove /%s", p.dir)
	}
}

// olderLocalPort returns the local port of the manifests of earlier versions. It was a node port in most clusters.
func olderLocalPort(port int) int { return port + 1 }

// localAddresses returns the addresses of a local port, one of which runtimes are configured with.
func localAddresses(port int) []string {
	return []string{fmt.Sprintf("127.0.0.1:%d", port), fmt.Sprintf("[::1]:%d", port)}
}

// removeOlder removes our files in places that are for the older local port alone. In the others, writing replaces
// them.
func (n *Node) removeOlder(root *os.Root) {
	current := map[string]bool{}
	for _, p := range n.places(n.local(), nil) {
		current[p.dir] = true
	}
	for _, local := range localAddresses(olderLocalPort(n.o.Port)) {
		for _, p := range n.places(local, nil) {
			if !current[p.dir] {
				n.removePlace(root, &p)
			}
		}
	}
}

// place is a directory and our files in it, which belong together. Paths are below the root, without a leading slash.
type place struct {
	runtime string // its name, for people
	parent  string // the runtime's own directory; see runs
	dir     string
	files   []file // in the order of writing
	named   bool   // whether the directory is for our name alone: it is removed when it is empty
	alone   bool   // whether our files replace other files of the directory, as far as the runtime is concerned
	kind    Kind   // of its problems, if it is for a mirror
	reload  string // what to do after a file was written, for people
}

type file struct {
	name, content string
	// whole matches all contents that are ours, of a file in a format without comments. nil: it starts with the marker.
	whole *regexp.Regexp
}

// bytes returns what is written.
func (f *file) bytes() []byte {
	if f.whole != nil {
		return []byte(f.content)
	}
	return []byte(markerLine + f.content)
}

// isOurs reports whether a content is ours.
func (f *file) isOurs(content []byte) bool {
	if f.whole != nil {
		return f.whole.Match(content)
	}
	return bytes.HasPrefix(content, []byte(marker))
}

// foreignError names a foreign file.
type foreignError struct{ path string }

func (e foreignError) Error() string {
	return fmt.Sprintf("/%s was not written by trow node; it is kept, and nothing is written beside it", e.path)
}

// write writes the files that are missing or differ, and returns their paths. Error: foreignError, in which case
// nothing was written; those of the file system.
func (p *place) write(root *os.Root) (written []string, err error) {
	have, err := p.read(root)
	if err != nil {
		return nil, err
	}
	checked := false
	for i, f := range p.files {
		want := f.bytes()
		if bytes.Equal(have[i], want) {
			continue
		}
		if !checked {
			if err := p.prepare(root, have[len(have)-1] == nil); err != nil {
				return nil, err
			}
			checked = true
		}
		// Anyone may read it: it holds no secret, and some runtimes do not run as root.
		name := path.Join(p.dir, f.name)
		if err := files.Write(root, name, want, 0o644); err != nil {
			return written, err
		}
		written = append(written, name)
	}
	return written, nil
}

// prepare creates the directory, and removes what a crash left in it. first reports whether the last file, which makes
// the runtime read the others, does not exist yet; then a foreign file in the directory is an error.
func (p *place) prepare(root *os.Root, first bool) error {
	if err := root.MkdirAll(p.dir, 0o755); err != nil {
		return err
	}
	if err := p.sweep(root); err != nil {
		return err
	}
	if p.alone && first {
		return p.checkAlone(root)
	}
	return nil
}

// sweep removes the temporary files that a crash left.
func (p *place) sweep(root *os.Root) error {
	for _, f := range p.files {
		older := path.Join(p.dir, "."+f.name+olderTempSuffix)
		if err := root.Remove(older); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return files.Sweep(root, p.dir)
}

// read returns the contents of the files, nil for a file that does not exist. Error: foreignError.
func (p *place) read(root *os.Root) ([][]byte, error) {
	have := make([][]byte, len(p.files))
	for i, f := range p.files {
		name := path.Join(p.dir, f.name)
		b, err := readFile(root, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case !f.isOurs(b):
			return nil, foreignError{name}
		default:
			have[i] = b
		}
	}
	return have, nil
}

// checkAlone looks for a file that the runtime would no longer read. Error: foreignError.
func (p *place) checkAlone(root *os.Root) error {
	entries, err := fs.ReadDir(root.FS(), p.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.ContainsFunc(p.files, func(f file) bool { return f.name == e.Name() }) {
			return foreignError{path.Join(p.dir, e.Name())}
		}
	}
	return nil
}

// remove removes the files and, if it is for our name alone, the directory. It returns the paths that it removed.
func (p *place) remove(root *os.Root) (removed []string, err error) {
	have, err := p.read(root)
	if err != nil {
		return nil, err
	}
	// The file written last goes first: it makes the runtime read the others.
	for i, f := range slices.Backward(p.files) {
		if have[i] == nil {
			continue
		}
		name := path.Join(p.dir, f.name)
		if err := root.Remove(name); err != nil {
			return removed, err
		}
		removed = append(removed, name)
	}
	if len(removed) == 0 {
		return nil, nil
	}
	if err := p.sweep(root); err != nil {
		return removed, err
	}
	if p.named && root.Remove(p.dir) == nil { // fails if a foreign file is in it
		return removed, files.SyncDirIn(root, path.Dir(p.dir))
	}
	return removed, files.SyncDirIn(root, p.dir)
}

// isDir reports whether a directory exists. Error: it cannot be found out, for example because a link leads out of
// root.
func isDir(root *os.Root, name string) (bool, error) {
	info, err := root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.IsDir(), err
}

// readFile reads a file. It returns no content for one that cannot be ours: a link, a directory, a large file.
func readFile(root *os.Root, name string) ([]byte, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return []byte{}, nil
	}
	return files.ReadIn(root, name, maxFile)
}
