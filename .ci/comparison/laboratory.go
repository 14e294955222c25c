package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// laboratory is what the measurements of one run share. It must be closed.
type laboratory struct {
	options options
	root    string // of the working tree
	dir     string // for everything that is created
	bench   string // the program that generates load by its command `bench`
	cert    string
	key     string
	peers   []*peer
	scale   string
	filled  map[*peer]bool // peers whose store has the content
	errOut  io.Writer
}

// newLaboratory finds the peers and builds Trow. Errors: nothing can be measured.
func newLaboratory(ctx context.Context, o options, errOut io.Writer) (*laboratory, error) {
	root, err := findRoot()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(o.dir, "comparison")
	if err != nil {
		return nil, fmt.Errorf("dir: %w; want a directory on a disk", err)
	}
	l := &laboratory{options: o, root: root, dir: dir,
		cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), scale: o.scale,
		filled: map[*peer]bool{}, errOut: errOut}
	if err := l.prepare(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// tmpfsMagic is the type by which statfs(2) reports a tmpfs.
const tmpfsMagic = 0x01021994

func (l *laboratory) prepare(ctx context.Context) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(l.dir, &fs); err != nil {
		return err
	}
	if fs.Type == tmpfsMagic {
		return fmt.Errorf("dir: %s is a tmpfs, which is never synced; want a directory on a disk", l.options.dir)
	}
	if err := writeCertificate(l.cert, l.key); err != nil {
		return err
	}
	for _, p := range newPeers() {
		if (l.options.check != "" || l.options.commit) && p.name != nameTrow && p.name != nameNginx {
			continue
		}
		if err := l.obtain(ctx, p); err != nil {
			return err
		}
		if p.missing != "" {
			l.log("%s: not measured: %s", p.name, p.missing)
		}
		l.peers = append(l.peers, p)
	}
	l.bench = l.peers[0].program
	return nil
}

func (l *laboratory) close() { os.RemoveAll(l.dir) }

func (l *laboratory) log(format string, args ...any) {
	fmt.Fprintf(l.errOut, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// store returns the directory of the content of a peer.
func (l *laboratory) store(p *peer) string { return filepath.Join(l.dir, "store-"+p.name) }

// session has all running peers, with the same transport.
type session map[*peer]*server

func (s session) stop() {
	for _, server := range s {
		server.stop()
	}
}

// open starts all peers that have a store. A peer that does not start or cannot be filled is missing from then on.
// Errors: Trow does not start; those of ctx.
func (l *laboratory) open(ctx context.Context, secure bool) (session, error) {
	s := session{}
	for _, p := range l.peers {
		if p.missing != "" || p.name == nameLimit {
			continue
		}
		server, err := l.ready(ctx, p, secure)
		if err != nil && (p.name == nameTrow || ctx.Err() != nil) {
			s.stop()
			return nil, err
		}
		if err != nil {
			p.missing = err.Error()
			l.log("%s: not measured: %s", p.name, p.missing)
			continue
		}
		s[p] = server
	}
	return s, nil
}

// ready starts a peer on its store, and fills the store if it is empty.
func (l *laboratory) ready(ctx context.Context, p *peer, secure bool) (*server, error) {
	if p.name == nameNginx && !l.filled[p] {
		if err := l.fillStatic(ctx, p); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(l.store(p), 0o755); err != nil {
		return nil, err
	}
	s, err := l.start(ctx, p, l.store(p), secure)
	if err != nil || l.filled[p] {
		return s, err
	}
	l.log("%s: filling its store (%s)", p.name, l.scale)
	begin := time.Now()
	if err := l.populate(ctx, s); err != nil {
		s.stop()
		return nil, err
	}
	l.filled[p] = true
	l.log("%s: filled in %.1f s", p.name, time.Since(begin).Seconds())
	return s, nil
}

// fillStatic writes the content as files, and records the answer of Trow to a review.
func (l *laboratory) fillStatic(ctx context.Context, p *peer) error {
	if err := os.MkdirAll(l.store(p), 0o755); err != nil {
		return err
	}
	if err := l.trowBench(ctx, "--static", l.store(p), "--scale", l.scale); err != nil {
		return err
	}
	answer, err := l.recordAnswer(ctx)
	if err != nil {
		return fmt.Errorf("recording Trow's answer to a review: %w", err)
	}
	l.filled[p] = true
	return os.WriteFile(filepath.Join(l.store(p), answerFile), answer, 0o644)
}

// measure measures tasks in a number of rounds. For each transport it starts all servers; then, for each task and
// round, it loads one peer after the other.
func (l *laboratory) measure(
	ctx context.Context, tasks []task, rounds int, duration time.Duration,
) (all figures, err error) {
	for _, secure := range []bool{false, true} {
		var these []task
		for _, t := range tasks {
			if t.secure() == secure {
				these = append(these, t)
			}
		}
		if len(these) == 0 {
			continue
		}
		s, err := l.open(ctx, secure)
		if err != nil {
			return all, err
		}
		for _, t := range these {
			f, err := l.rounds(ctx, s, t, rounds, duration)
			if all = append(all, f...); err != nil {
				s.stop()
				return all, err
			}
		}
		s.stop()
	}
	return all, nil
}

// rounds measures one task. A peer that failed is not asked again.
func (l *laboratory) rounds(
	ctx context.Context, s session, t task, rounds int, duration time.Duration,
) (all figures, err error) {
	failed := map[*peer]bool{}
	for round := range rounds {
		for _, p := range l.peers {
			if p.missing != "" || p.unsupported(t) != "" || failed[p] {
				continue
			}
			f, err := l.once(ctx, s[p], p, t, duration)
			if err != nil {
				return all, err
			}
			for i := range f {
				f[i].Round = round
				failed[p] = failed[p] || f[i].Failure != ""
			}
			l.log("%s, round %d of %d, %s: %s", t, round+1, rounds, p.name, f.line())
			all = append(all, f...)
		}
	}
	return all, nil
}

// once measures one peer once. A task that pushes has its own server, whose store is removed afterwards.
func (l *laboratory) once(ctx context.Context, s *server, p *peer, t task, duration time.Duration) (figures, error) {
	if !t.pushes() {
		return l.load(ctx, s, t, duration)
	}
	dir, err := os.MkdirTemp(l.dir, "push-"+p.name+"-")
	if err != nil {
		return nil, err
	}
	defer syscall.Sync() // what this peer left in the page cache must not slow down the next one
	defer os.RemoveAll(dir)
	s, err = l.start(ctx, p, dir, t.secure())
	if err != nil {
		return failures(p, t, err), ctx.Err()
	}
	defer s.stop()
	return l.load(ctx, s, t, duration)
}

// loadAverage returns the load of the machine in the last minute: it shows what else was running.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}
