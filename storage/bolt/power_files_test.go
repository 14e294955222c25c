//go:build faults

package bolt_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// This is a model of what a file system promises about a power cut (POSIX, without what single file systems add): what
// was there when an fsync of a file or a directory started is there after the cut if the fsync returned. Of later
// changes any part may be there and any other part not, in any order: of a file its sectors and its size; of a
// directory each name, so that one half of a rename may have happened.

// sector is what a disk writes whole, in bytes.
const sector = 512

// node is a file or a directory.
type node struct {
	dir     map[string]*node // nil: a file
	data    []byte           // as the process sees it
	safe    safe             // as a power cut leaves it at least
	pending []change         // not synced yet, in order
}

// safe is what was synced.
type safe struct {
	dir  map[string]*node
	data []byte
}

// change is one step of a file or a directory that was not synced.
type change struct {
	at     int    // the position in the trace
	lost   bool   // an fsync of it has failed, after which the kernel takes it for written: no later one writes it
	name   string // of a directory: what this name stands for now
	to     *node  // nil: nothing
	offset int64  // of a file: bytes are written here,
	bytes  []byte // or, if nil, the file has this size
}

func newDir() *node {
	return &node{dir: map[string]*node{}, safe: safe{dir: map[string]*node{}}}
}

func (c change) dirTo(dir map[string]*node) {
	if c.to == nil {
		delete(dir, c.name)
	} else {
		dir[c.name] = c.to
	}
}

func (c change) dataTo(data []byte) []byte {
	if c.bytes == nil {
		return resize(data, c.offset)
	}
	if end := c.offset + int64(len(c.bytes)); end > int64(len(data)) {
		data = resize(data, end)
	}
	copy(data[c.offset:], c.bytes)
	return data
}

func resize(data []byte, size int64) []byte {
	if size <= int64(len(data)) {
		return data[:size:size]
	}
	return append(data, make([]byte, size-int64(len(data)))...)
}

// do applies a change.
func (n *node) do(c change) {
	n.pending = append(n.pending, c)
	if n.dir != nil {
		c.dirTo(n.dir)
	} else {
		n.data = c.dataTo(n.data)
	}
}

// sync makes safe what happened before a position in the trace; if the sync failed, those changes are lost.
func (n *node) sync(before int, failed bool) {
	var left []change
	for _, c := range n.pending {
		switch {
		case c.at >= before || c.lost:
			left = append(left, c)
		case failed:
			c.lost = true
			left = append(left, c)
		case n.dir != nil:
			c.dirTo(n.safe.dir)
		default:
			n.safe.data = c.dataTo(n.safe.data)
		}
	}
	n.pending = left
}

// files is a file system.
type files struct{ root *node }

// find returns the node at a path that is relative to the root.
func (f *files) find(path string) (*node, bool) {
	n := f.root
	for name := range strings.SplitSeq(path, "/") {
		if path == "." {
			break
		}
		if n = n.dir[name]; n == nil {
			return nil, false
		}
	}
	return n, true
}

// set makes a path name a node, or nothing.
func (f *files) set(at int, path string, to *node) error {
	dir, ok := f.find(filepath.Dir(path))
	if !ok || dir.dir == nil {
		return fmt.Errorf("the directory of %s does not exist", path)
	}
	dir.do(change{at: at, name: filepath.Base(path), to: to})
	return nil
}

// loss chooses what a power cut leaves of the changes that were not synced.
type loss struct {
	name string
	dir  func(changes []change, r *rand.Rand) []change // those that are there
	file func(n *node, r *rand.Rand) []byte
}

func none([]change, *rand.Rand) []change          { return nil }
func all(changes []change, _ *rand.Rand) []change { return changes }
func some(changes []change, r *rand.Rand) []change {
	return pick(changes, func() bool { return r.IntN(2) == 0 })
}
func first(changes []change, r *rand.Rand) []change { return changes[:r.IntN(len(changes)+1)] }
func last(changes []change, _ *rand.Rand) []change  { return changes[max(len(changes)-1, 0):] }
func butOne(changes []change, r *rand.Rand) []change {
	if len(changes) == 0 {
		return nil
	}
	i := r.IntN(len(changes))
	return slices.Concat(changes[:i], changes[i+1:])
}

func pick(changes []change, yes func() bool) (picked []change) {
	for _, c := range changes {
		if yes() {
			picked = append(picked, c)
		}
	}
	return picked
}

// whole turns a choice among changes into a choice of a file's content.
func whole(choose func([]change, *rand.Rand) []change) func(*node, *rand.Rand) []byte {
	return func(n *node, r *rand.Rand) []byte {
		data := bytes.Clone(n.safe.data)
		for _, c := range choose(n.pending, r) {
			data = c.dataTo(data)
		}
		return data
	}
}

// grown returns the new size, but of the bytes only those that were synced.
func grown(n *node, _ *rand.Rand) []byte { return resize(bytes.Clone(n.safe.data), int64(len(n.data))) }

// stale returns the new size too, filled with what was on the disk before.
func stale(n *node, r *rand.Rand) []byte {
	data := grown(n, r)
	for i := len(n.safe.data); i < len(data); i++ {
		data[i] = byte(r.Uint32())
	}
	return data
}

// torn returns any sectors of any writes, and one of the sizes.
func torn(n *node, r *rand.Rand) []byte { return tear(n, r, func() bool { return r.IntN(2) == 0 }) }

// nicked returns all that was written except about one sector.
func nicked(n *node, r *rand.Rand) []byte {
	sectors := 1
	for _, c := range n.pending {
		sectors += len(c.bytes) / sector
	}
	return tear(n, r, func() bool { return r.IntN(sectors) != 0 })
}

func tear(n *node, r *rand.Rand, keep func() bool) []byte {
	data := bytes.Clone(n.safe.data)
	for _, c := range n.pending {
		if c.bytes == nil {
			if keep() {
				data = c.dataTo(data)
			}
			continue
		}
		for from, to := int64(0), int64(0); from < int64(len(c.bytes)); from = to {
			to = min(from+sector-(c.offset+from)%sector, int64(len(c.bytes)))
			if keep() {
				data = change{offset: c.offset + from, bytes: c.bytes[from:to]}.dataTo(data)
			}
		}
	}
	sizes := []int{len(data), len(data), len(n.data), len(n.safe.data)}
	return resize(data, int64(sizes[r.IntN(len(sizes))]))
}

// losses are the ways to lose unsynced changes. The random ones are worth more than one try.
var losses = []loss{
	{"nothing", none, whole(none)},
	{"everything", all, whole(all)},
	{"the names", all, whole(none)},
	{"names and sizes", all, grown},
	{"names and sizes, and garbage", all, stale},
	{"the data", none, whole(all)},
	{"the last of each", last, whole(last)},
	{"names, and the last write of each file", all, whole(last)},
	{"the first of each", first, whole(first)},
	{"names, and all writes but one", all, whole(butOne)},
	{"names, and all but a sector", all, nicked},
	{"names, and any sectors", all, torn},
	{"any names, and any sectors", some, torn},
	{"any names, and all data", some, whole(all)},
}

// state is what a power cut may leave: the files by path.
type state struct {
	paths []string
	node  map[string]*node
	data  map[*node][]byte
}

// cut chooses a state that a power cut may leave.
func (f *files) cut(l loss, r *rand.Rand) *state {
	s := &state{node: map[string]*node{}, data: map[*node][]byte{}}
	s.add(".", f.root, l, r)
	return s
}

func (s *state) add(path string, n *node, l loss, r *rand.Rand) {
	s.paths = append(s.paths, path)
	s.node[path] = n
	if n.dir == nil {
		if _, known := s.data[n]; !known {
			s.data[n] = l.file(n, r)
		}
		return
	}
	dir := maps.Clone(n.safe.dir)
	for _, c := range l.dir(n.pending, r) {
		c.dirTo(dir)
	}
	for _, name := range slices.Sorted(maps.Keys(dir)) {
		s.add(filepath.Join(path, name), dir[name], l, r)
	}
}

// write creates the files of the state. A file with two names gets hard links.
func (s *state) write(root string) error {
	made := map[*node]string{}
	for _, path := range s.paths {
		n, to := s.node[path], filepath.Join(root, path)
		var err error
		switch {
		case n.dir != nil:
			err = os.MkdirAll(to, 0o700)
		case made[n] != "":
			err = os.Link(made[n], to)
		default:
			made[n] = to
			err = os.WriteFile(to, s.data[n], 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// same compares a directory with what, by the model, the process saw.
func (f *files) same(root string) error {
	s := f.cut(losses[1], nil)
	var found []string
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, e fs.DirEntry, err error) error {
		found = append(found, path)
		n := s.node[path]
		if err != nil || n == nil || e.IsDir() {
			return err
		}
		if data, err := os.ReadFile(filepath.Join(root, path)); err != nil || !bytes.Equal(data, n.data) {
			return fmt.Errorf("%s does not have the content of the trace, %v", path, err)
		}
		return nil
	})
	slices.Sort(found)
	slices.Sort(s.paths)
	if err == nil && !slices.Equal(found, s.paths) {
		err = fmt.Errorf("there are %q, but by the trace %q", found, s.paths)
	}
	return err
}
