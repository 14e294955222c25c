package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	// marker begins every file of ours, and the rest of its first line is for people. In front of a certificate it
	// is explanatory text (RFC 7468, section 2), which the runtimes' parsers skip. It never changes: what begins
	// otherwise is foreign.
	marker     = "# Written by trow node"
	markerLine = marker + "; removed when Trow is uninstalled\n"
	// tempSuffix ends the name of a file that is being written. Runtimes look for .crt, .cert, .key, .toml, .conf.
	tempSuffix = ".trow-tmp"
	// maxFile is more than any file of ours has.
	maxFile = 1 << 20
)

// keepFiles writes the node's files when the bundle has changed, and looks after them until ctx is done.
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

// writeFiles makes the node's files what they should be, and tells what is in the way.
func (n *Node) writeFiles(ctx context.Context, bundle []byte) {
	root, err := os.OpenRoot(n.o.Root)
	if n.problem(ctx, n.o.Root, FileFailed, err); err != nil {
		return
	}
	defer root.Close()
	var done []string
	for _, p := range n.places(n.local(), bundle) {
		if n.writePlace(ctx, root, &p) && !slices.Contains(done, p.runtime) {
			done = append(done, p.runtime)
		}
	}
	if err = n.checkContainerd(root); err != nil {
		done = slices.DeleteFunc(done, func(runtime string) bool { return runtime == containerdName })
	}
	n.problem(ctx, containerdConfig, ConfigPath, err)
	text := fmt.Sprintf("%s: told to find %s at %s", strings.Join(done, ", "), n.name(), n.local())
	if len(done) > 0 && n.told[""] != text {
		n.told[""] = text
		n.report(ctx, NodeReady, nil, "%s", text)
	}
}

// writePlace reports whether the runtime is there and has what it needs.
func (n *Node) writePlace(ctx context.Context, root *os.Root, p *place) bool {
	there, err := isDir(root, p.parent)
	if err == nil && !there {
		return false
	}
	var written []string
	if err == nil {
		written, err = p.write(root)
	}
	for _, file := range written {
		n.tell(Written, nil, "/%s", file)
	}
	kind := FileFailed
	if errors.As(err, new(foreignError)) {
		kind = Foreign
	}
	n.problem(ctx, p.dir, kind, err)
	if p.reload != "" && len(written) > 0 {
		n.report(ctx, Reload, nil, "%s", p.reload)
	}
	return err == nil
}

// problem tells of what is wrong with a path, once until it is over or another. nil: nothing is.
func (n *Node) problem(ctx context.Context, path string, kind Kind, err error) {
	if err == nil {
		delete(n.told, path)
		return
	}
	if text := string(kind) + err.Error(); n.told[path] != text {
		n.told[path] = text
		n.report(ctx, kind, nil, "%v", err)
	}
}

// removeFiles takes away what is ours, by either address of the local port: it may have been the other one once.
func (n *Node) removeFiles() {
	root, err := os.OpenRoot(n.o.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		n.tell(FileFailed, err, "the node's files cannot be removed")
		return
	}
	defer root.Close()
	for _, loopback := range []string{"127.0.0.1", "[::1]"} {
		for _, p := range n.places(fmt.Sprintf("%s:%d", loopback, n.o.LocalPort), nil) {
			removed, err := p.remove(root)
			for _, file := range removed {
				n.tell(Removed, nil, "/%s", file)
			}
			if err != nil && !errors.As(err, new(foreignError)) {
				n.tell(FileFailed, err, "/%s cannot be removed", p.dir)
			}
		}
	}
}

// place is a directory and our files in it, which belong together. Paths are below the root, without a leading slash.
type place struct {
	runtime string // for people
	parent  string // is there if the runtime is
	dir     string
	files   []file // in the order in which they are written
	named   bool   // the directory is for our name: it goes when nothing is left in it
	alone   bool   // our files would take the place of others in the directory
	reload  string // what to do once a file was written, for people
}

type file struct {
	name, content string
}

// foreignError says which file is not ours.
type foreignError struct{ path string }

func (e foreignError) Error() string {
	return fmt.Sprintf("/%s was not written by trow node and stays as it is; nothing is written beside it", e.path)
}

// write writes what is not there yet, and returns the paths. Error: foreignError, and nothing was written.
func (p *place) write(root *os.Root) (written []string, err error) {
	have, err := p.read(root)
	if err != nil {
		return nil, err
	}
	if p.alone && have[len(have)-1] == nil {
		if err := p.checkAlone(root); err != nil {
			return nil, err
		}
	}
	for i, f := range p.files {
		want := []byte(markerLine + f.content)
		if bytes.Equal(have[i], want) {
			continue
		}
		if err := writeFile(root, p.dir, f.name, want); err != nil {
			return written, err
		}
		written = append(written, path.Join(p.dir, f.name))
	}
	return written, nil
}

// read returns the content of the files; nil: it is not there. Error: foreignError.
func (p *place) read(root *os.Root) ([][]byte, error) {
	have := make([][]byte, len(p.files))
	for i, f := range p.files {
		name := path.Join(p.dir, f.name)
		b, err := readFile(root, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, err
		case !bytes.HasPrefix(b, []byte(marker)):
			return nil, foreignError{name}
		default:
			have[i] = b
		}
	}
	return have, nil
}

// checkAlone finds a file that would not be looked at any more. Error: foreignError.
func (p *place) checkAlone(root *os.Root) error {
	entries, err := fs.ReadDir(root.FS(), p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), tempSuffix) && !slices.ContainsFunc(p.files, func(f file) bool { return f.name == e.Name() }) {
			return foreignError{path.Join(p.dir, e.Name())}
		}
	}
	return err
}

// remove removes the files, the last one written first, and the directory if it was made for them. It returns the
// paths of what it removed.
func (p *place) remove(root *os.Root) (removed []string, err error) {
	have, err := p.read(root)
	if err != nil {
		return nil, err
	}
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
	if p.named && root.Remove(p.dir) == nil { // otherwise somebody else has something in it
		return removed, syncDir(root, path.Dir(p.dir))
	}
	return removed, syncDir(root, p.dir)
}

// isDir reports whether there is such a directory. Error: it cannot be said, as of a link that leads out of the root.
func isDir(root *os.Root, name string) (bool, error) {
	info, err := root.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.IsDir(), err
}

// readFile reads a file. What is no plain file is read as empty: it is not ours.
func readFile(root *os.Root, name string) ([]byte, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return []byte{}, nil
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// writeFile puts a file into its place whole; invariant 4. Everybody may read it: it holds no secret, and runtimes
// without root exist.
func writeFile(root *os.Root, dir, name string, content []byte) error {
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	temp := path.Join(dir, "."+name+tempSuffix)
	if err := root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) { // a crash may have left it
		return err
	}
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = root.Rename(temp, path.Join(dir, name))
	}
	if err != nil {
		return errors.Join(err, root.Remove(temp))
	}
	return syncDir(root, dir)
}

// syncDir makes what happened in a directory last.
func syncDir(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
