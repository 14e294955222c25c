//go:build faults

package bolt_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// traced are the system calls that change files, and those needed to follow them. A call that the replay does not know
// is an error.
const traced = "open,openat,openat2,creat,close,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate," +
	"fsync,fdatasync,sync_file_range,syncfs,sync,msync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir," +
	"link,linkat,symlink,symlinkat,lseek,copy_file_range,sendfile,splice,dup,dup2,dup3"

// call is one system call that succeeded.
type call struct {
	name   string
	args   []string // strings without their quotes, decoded
	result int64
	start  int // how many calls had ended when it started
	failed bool
}

// record runs the workload under strace and returns its calls, in the order in which they ended.
func record(t *testing.T, dir string) []call {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trace")
	cmd := exec.CommandContext(t.Context(), "strace", "-f", "-qq", "-xx", "-s", "4000000", "-e", "trace="+traced,
		"-e", "signal=none", "-o", file, os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), powerDir+"="+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("the workload under strace (is it installed?): %v\n%s", err, &stderr)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	calls, err := parseTrace(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return calls
}

// parseTrace reads what strace has written: a thread, a call, its arguments, its result. A call has two lines if a call
// of another thread ended meanwhile.
func parseTrace(text string) (calls []call, err error) {
	type half struct {
		start int
		args  string
	}
	open := map[string]half{}
	for line := range strings.Lines(text) {
		thread, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "+++") || strings.HasSuffix(rest, "= ?") {
			continue
		}
		c, args, resumed := call{start: len(calls)}, "", false
		if rest, resumed = strings.CutPrefix(rest, "<... "); resumed {
			c.name, rest, _ = strings.Cut(rest, " resumed>")
			c.start, args = open[thread].start, open[thread].args
		} else {
			c.name, rest, _ = strings.Cut(rest, "(")
		}
		if first, ok := strings.CutSuffix(rest, " <unfinished ...>"); ok {
			if open[thread] = (half{len(calls), first}); c.name == "close" { // the number is free as soon as it starts
				calls = append(calls, call{name: c.name, args: []string{first}, start: c.start})
			}
			continue
		}
		end := strings.LastIndex(rest, ") ")
		if end < 0 {
			return nil, fmt.Errorf("trace: cannot read %.200s", line)
		}
		result, _, _ := strings.Cut(strings.TrimLeft(rest[end+2:], " ="), " ")
		if c.result, err = strconv.ParseInt(result, 10, 64); err != nil {
			return nil, fmt.Errorf("trace: %w", err)
		}
		if c.args, err = arguments(args + rest[:end]); err != nil {
			return nil, err
		}
		if c.result >= 0 && !(resumed && c.name == "close") {
			calls = append(calls, c)
		}
	}
	return calls, nil
}

func arguments(text string) (args []string, err error) {
	for part := range strings.SplitSeq(text, ", ") {
		part = strings.TrimSpace(part)
		if strings.HasSuffix(part, `"...`) {
			return nil, errors.New("trace: a string is cut")
		}
		if strings.HasPrefix(part, `"`) {
			if part, err = decode(strings.Trim(part, `"`)); err != nil {
				return nil, err
			}
		}
		args = append(args, part)
	}
	return args, nil
}

// decode reads a string of the form \x2f\x76….
func decode(text string) (string, error) {
	out := make([]byte, 0, len(text)/4)
	for ; len(text) >= 4; text = text[4:] {
		b, err := strconv.ParseUint(text[2:4], 16, 8)
		if err != nil {
			return "", fmt.Errorf("trace: %w", err)
		}
		out = append(out, byte(b))
	}
	return string(out), nil
}

// replay repeats the calls of a trace on the model, below root.
type replay struct {
	files
	root  string
	open  map[string]*handle
	other map[string]bool        // open files elsewhere
	mark  func(line string)      // called with each line on the standard output
	skip  func(what string) bool // reports whether a sync is to be left out
}

// handle is an open file.
type handle struct {
	node   *node
	path   string
	offset int64
	append bool
}

func newReplay(root string) *replay {
	return &replay{files: files{newDir()}, root: root, open: map[string]*handle{}, other: map[string]bool{},
		mark: func(string) {}, skip: func(string) bool { return false }}
}

// inside makes a path relative to the root.
func (p *replay) inside(path string) (string, bool) {
	rel, err := filepath.Rel(p.root, path)
	return rel, err == nil && filepath.IsAbs(path) && rel != ".." && !strings.HasPrefix(rel, "../")
}

// path returns a path of a call relative to the root. dir is the number of the directory that it starts from, if it
// does not start from the root of the file system.
func (p *replay) path(dir, path string) (string, bool) {
	if h := p.open[dir]; h != nil && !filepath.IsAbs(path) {
		return filepath.Join(h.path, path), true
	}
	return p.inside(path)
}

// do repeats the call at a position of the trace. changed reports whether it changed a file.
func (p *replay) do(at int, c call) (changed bool, err error) {
	switch c.name {
	case "openat":
		return p.openat(at, c)
	case "renameat", "unlinkat", "mkdirat":
		return p.names(at, c)
	}
	h := p.open[c.args[0]]
	if c.name == "copy_file_range" {
		h = p.open[c.args[2]]
	}
	switch {
	case c.name == "write" && c.args[0] == "1":
		p.mark(strings.TrimSpace(c.args[1]))
		return true, nil
	case h == nil && !p.other[c.args[0]] && c.name != "write" && c.name != "close": // these two are not only for files
		return false, fmt.Errorf("trace: %s of the unknown file %s", c.name, c.args[0])
	case h == nil:
		return false, nil
	}
	switch c.name {
	case "close":
		delete(p.open, c.args[0])
		return false, nil
	case "lseek":
		h.offset = c.result
		return false, nil
	case "write":
		h.write(at, c.args[1])
	case "pwrite64":
		h.node.do(change{at: at, offset: number(c.args[3]), bytes: []byte(c.args[1])})
	case "ftruncate":
		h.node.do(change{at: at, offset: number(c.args[1])})
	case "copy_file_range":
		from := p.open[c.args[0]]
		if from == nil || c.args[1] != "NULL" || c.args[3] != "NULL" {
			return false, fmt.Errorf("trace: copy_file_range%q", c.args)
		}
		h.write(at, string(from.node.data[from.offset:from.offset+c.result]))
		from.offset += c.result
	case "fsync", "fdatasync":
		if p.skip(kindOf(c, h)) {
			return false, nil
		}
		h.node.sync(c.start, c.failed)
	default:
		return false, fmt.Errorf("trace: the replay does not know %s%.200q", c.name, c.args)
	}
	return true, nil
}

func (h *handle) write(at int, data string) {
	if h.append {
		h.offset = int64(len(h.node.data))
	}
	if data != "" {
		h.node.do(change{at: at, offset: h.offset, bytes: []byte(data)})
	}
	h.offset += int64(len(data))
}

func number(text string) int64 {
	n, err := strconv.ParseInt(text, 0, 64)
	if err != nil {
		panic(err) // strace writes numbers
	}
	return n
}

func (p *replay) openat(at int, c call) (changed bool, err error) {
	path, ok := p.path(c.args[0], c.args[1])
	flags, fd := c.args[2], strconv.FormatInt(c.result, 10)
	if p.other[fd] = !ok; !ok {
		delete(p.open, fd)
		return false, nil
	}
	n, ok := p.find(path)
	if !ok {
		if !strings.Contains(flags, "O_CREAT") {
			return false, fmt.Errorf("trace: %s was opened, but does not exist", path)
		}
		n, changed = &node{}, true
		if err := p.set(at, path, n); err != nil {
			return false, err
		}
	} else if strings.Contains(flags, "O_TRUNC") && len(n.data) > 0 {
		n.do(change{at: at})
		changed = true
	}
	p.open[fd] = &handle{node: n, path: path, append: strings.Contains(flags, "O_APPEND")}
	return changed, nil
}

func (p *replay) names(at int, c call) (changed bool, err error) {
	path, ok := p.path(c.args[0], c.args[1])
	if !ok {
		return false, nil
	}
	switch c.name {
	case "mkdirat":
		return true, p.set(at, path, newDir())
	case "unlinkat":
		return true, p.set(at, path, nil)
	}
	to, ok := p.path(c.args[2], c.args[3])
	n, found := p.find(path)
	if !ok || !found {
		return false, fmt.Errorf("trace: %q was renamed to %q", path, c.args[3])
	}
	return true, errors.Join(p.set(at, to, n), p.set(at, path, nil))
}

// kindOf names what is synced; syncs of one kind have the same name.
func kindOf(c call, h *handle) string {
	dir, name := filepath.Split(h.path)
	has := func(f func(change) bool) bool { return slices.ContainsFunc(h.node.pending, f) }
	switch {
	case c.name == "fdatasync" && has(func(c change) bool { return c.bytes != nil && c.offset < 2*4096 }): // by bbolt
		return "journal, a head"
	case c.name == "fdatasync":
		return "journal, the pages"
	case h.node.dir == nil && name == "journal.db":
		return "journal, its new size"
	case h.node.dir == nil && filepath.Base(dir) == "uploads":
		return "uploads/*"
	case h.node.dir == nil && strings.HasPrefix(name, ".trow-tmp-"): // the backup
		return "temporary files"
	case h.node.dir == nil:
		return name
	case len(h.node.pending) == 0:
		return "a directory, nothing new"
	case name == "sha256" || name == "sha512":
		name = "blobs/*"
	case name != "blobs" && name != "trow":
		name = "above the data directory"
	}
	if !has(func(c change) bool { return c.to != nil }) {
		return name + ", deletions"
	}
	return name
}
