//go:build faults

package bolt_test

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/storagetest"
)

// dataIn returns the data directory below the root of the recorded file system. Two directories above it are new as
// well.
func dataIn(root string) string { return filepath.Join(root, "var", "lib", "trow") }

// recording is what a workload did.
type recording struct {
	*script
	root    string
	calls   []call
	moments []int            // the calls that changed something
	syncs   map[string][]int // what is synced, and when
}

// recordWork records the workload, and checks that the trace explains everything that happened.
func recordWork(t *testing.T) *recording {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv(powerSeed); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("%s: %v", powerSeed, err)
		}
	}
	t.Setenv(powerSeed, strconv.FormatUint(seed, 10))
	t.Logf("%s=%d", powerSeed, seed)
	rec := &recording{script: newScript(seed), root: scratch(t), syncs: map[string][]int{}}
	rec.calls = record(t, dataIn(rec.root))
	p := newReplay(rec.root)
	done := [powerRepos]int{}
	mark, now, sync := marker(&done), 0, 0
	p.skip = func(what string) bool { rec.syncs[what] = append(rec.syncs[what], now); return false }
	p.mark = func(line string) {
		if mark(line); strings.HasPrefix(line, "fault") {
			rec.calls[sync].failed = true
		}
	}
	for at, c := range rec.calls {
		if now = at; c.name == "fdatasync" {
			sync = at
		}
		changed, err := p.do(at, c)
		if err != nil {
			t.Fatal(err)
		}
		if changed {
			rec.moments = append(rec.moments, at)
		}
	}
	if err := p.same(rec.root); err != nil {
		t.Fatalf("the trace does not explain the directory: %v", err)
	}
	for n := range done {
		if done[n] != len(rec.states[n])-1 {
			t.Fatalf("repo %d: %d of %d steps are done", n, done[n], len(rec.states[n])-1)
		}
	}
	return rec
}

// scratch returns a directory, in memory if possible: thousands of states are written, and their fsyncs mean nothing.
func scratch(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("/dev/shm"); err != nil {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "power")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// marker counts the steps that are done.
func marker(done *[powerRepos]int) func(string) {
	return func(line string) {
		what, whose, _ := strings.Cut(line, " ")
		for n := range done {
			if what == "done" && (whose == "all" || whose == strconv.Itoa(n)) {
				done[n]++
			}
		}
	}
}

// try is one state to check: the power was cut after a call, and this is how the unsynced changes are lost.
type try struct {
	at   int
	loss loss
	seed uint64
}

// finding is a state that breaks a promise.
type finding struct {
	try
	err error
}

// cuts checks states. Syncs that skip selects are left out, as if the program did not do them. It stops after most
// findings.
func (rec *recording) cuts(t *testing.T, tries []try, skip func(what string) bool,
	most int) (states int, findings []finding) {
	t.Helper()
	p := newReplay(rec.root)
	done, known := [powerRepos]int{}, map[uint64]bool{}
	p.mark, p.skip = marker(&done), skip
	slices.SortStableFunc(tries, func(a, b try) int { return a.at - b.at })
	work := make(chan func(root string))
	var mu sync.Mutex
	var all sync.WaitGroup
	var stop atomic.Bool
	for range 3 {
		root := filepath.Join(scratch(t), "state")
		all.Go(func() {
			for do := range work {
				do(root)
			}
		})
	}
	for at, c := range rec.calls {
		if _, err := p.do(at, c); err != nil {
			t.Fatal(err)
		}
		for ; len(tries) > 0 && tries[0].at == at && !stop.Load(); tries = tries[1:] {
			tr := tries[0]
			s := p.cut(tr.loss, rand.New(rand.NewPCG(rec.seed, tr.seed)))
			if id := s.id(done); known[id] {
				continue
			} else {
				known[id] = true
			}
			states++
			acked := done
			work <- func(root string) {
				if err := rec.check(t.Context(), root, s, acked); err != nil {
					mu.Lock()
					defer mu.Unlock()
					findings = append(findings, finding{tr, err})
					stop.Store(len(findings) >= most)
				}
			}
		}
	}
	close(work)
	all.Wait()
	return states, findings
}

// choose draws n tries among moments.
func (rec *recording) choose(n int, moments []int) (tries []try) {
	r := rand.New(rand.NewPCG(rec.seed, uint64(n)))
	for range n {
		tries = append(tries, try{moments[r.IntN(len(moments))], losses[r.IntN(len(losses))], r.Uint64()})
	}
	return tries
}

// after returns the moments shortly after one of these calls.
func (rec *recording) after(calls []int) (moments []int) {
	const shortly = 80 // until something is acknowledged
	for _, at := range calls {
		from, _ := slices.BinarySearch(rec.moments, at)
		moments = append(moments, rec.moments[from:min(from+shortly, len(rec.moments))]...)
	}
	return moments
}

var stateSeed = maphash.MakeSeed()

// id is the same for equal states.
func (s *state) id(done [powerRepos]int) uint64 {
	var h maphash.Hash
	h.SetSeed(stateSeed)
	fmt.Fprint(&h, done)
	for _, path := range s.paths {
		h.WriteString(path)
		h.Write([]byte{0})
		h.Write(s.data[s.node[path]])
	}
	return h.Sum64()
}

// check starts on a state as a server does, and checks what was promised.
func (rec *recording) check(ctx context.Context, root string, s *state, done [powerRepos]int) error {
	defer os.RemoveAll(root)
	if err := s.write(root); err != nil {
		return err
	}
	w := &worker{dir: dataIn(root)}
	if err := w.open(); err != nil {
		return fmt.Errorf("it does not start: %w", err)
	}
	held, err := rec.holds(ctx, w, done)
	if err == nil {
		err = rec.continues(ctx, w)
	}
	if err = errors.Join(err, w.shut()); err != nil {
		return err
	}
	if err := w.open(); err != nil {
		return fmt.Errorf("it does not start again: %w", err)
	}
	defer w.shut()
	return errors.Join(unchanged(ctx, w, held), checkBackup(root))
}

// holds checks that every repo is as it was after its last step that was done, or after the one in progress, with all
// its bytes, and that every file in blobs has the content that its name says.
func (rec *recording) holds(ctx context.Context, w *worker, done [powerRepos]int) (held [powerRepos]keeps, err error) {
	for n := range powerRepos {
		k, err := keptBy(ctx, w.index, powerRepo(n))
		if err != nil {
			return held, err
		}
		now, states := k.String(), rec.states[n][done[n]:min(done[n]+2, len(rec.states[n]))]
		if !slices.Contains(states, now) {
			return held, fmt.Errorf("%s after %d steps is neither as then nor as after the next one: %s",
				powerRepo(n), done[n],
				difference(states[0], now))
		}
		for d := range k.blobs {
			err = errors.Join(err, wantBytes(ctx, w, d))
		}
		for d, refs := range k.manifests {
			for _, d := range append(refs, d) {
				err = errors.Join(err, wantBytes(ctx, w, d))
			}
		}
		if err != nil {
			return held, err
		}
		held[n] = k
	}
	for info, err := range w.blobs.All(ctx) {
		if err = errors.Join(err, wantBytes(ctx, w, info.Digest)); err != nil {
			return held, fmt.Errorf("a blob that no fact names: %w", err)
		}
	}
	return held, nil
}

// difference returns what is missing and what is too much.
func difference(want, got string) string {
	var lines []string
	for line := range strings.Lines(want + "\n") {
		if !strings.Contains(got+"\n", line) {
			lines = append(lines, "lacks "+line)
		}
	}
	for line := range strings.Lines(got + "\n") {
		if !strings.Contains(want+"\n", line) {
			lines = append(lines, "has "+line)
		}
	}
	return strings.Join(lines, "")
}

// wantBytes checks the bytes of a digest.
func wantBytes(ctx context.Context, w *worker, d digest.Digest) error {
	b, err := storagetest.Read(ctx, w.blobs, d)
	if err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	if got := d.Algorithm().FromBytes(b); got != d {
		return fmt.Errorf("%s has %d bytes of digest %s", d, len(b), got)
	}
	return nil
}

// continues checks that uploads can be resumed, new images pushed, and what no fact names collected.
func (rec *recording) continues(ctx context.Context, w *worker) error {
	if err := rec.resumes(ctx, w); err != nil {
		return err
	}
	layer := step{how: "at once", content: []byte("a layer after the cut"), alg: digest.SHA256}
	shared := step{how: "at once", content: fmt.Appendf(nil, "shared %d 0", rec.seed), alg: digest.SHA256}
	image := step{how: "manifest", content: []byte("an image after the cut"), alg: digest.SHA256,
		refs: []digest.Digest{layer.digest(), shared.digest()}, tags: []string{"v"}}
	c := storage.Collector{Blobs: w.blobs, Index: w.index}
	if err := c.Finish(ctx); err != nil {
		return err
	}
	for _, d := range []step{layer, shared, image} {
		if err := w.do("after", d); err != nil {
			return fmt.Errorf("a push after the cut: %w", err)
		}
	}
	if _, err := c.RunWith(ctx, -time.Hour, false, nil); err != nil {
		return err
	}
	if _, err := w.blobs.Expire(ctx, time.Now().Add(time.Hour)); err != nil {
		return err
	}
	if left, err := os.ReadDir(filepath.Join(w.dir, "uploads")); err != nil || len(left) > 0 {
		return fmt.Errorf("uploads are left: %v, %v", left, err)
	}
	return rec.exactly(ctx, w)
}

// exactly checks that exactly the files exist that repos hold.
func (rec *recording) exactly(ctx context.Context, w *worker) error {
	want := map[digest.Digest]bool{}
	for _, name := range w.index.Names() {
		k, err := keptBy(ctx, w.index, name)
		if err != nil {
			return err
		}
		for d := range k.blobs {
			want[d] = true
		}
		for d := range k.manifests {
			want[d] = true
		}
	}
	for info, err := range w.blobs.All(ctx) {
		if err != nil || !want[info.Digest] {
			return fmt.Errorf("after a collection there is %s, which no repo holds; %v", info.Digest, err)
		}
		delete(want, info.Digest)
	}
	if len(want) > 0 {
		return fmt.Errorf("after a collection %d files are missing: %v", len(want), want)
	}
	return nil
}

// resumes continues every upload as clients would. Either its bytes are right, or it is refused.
func (rec *recording) resumes(ctx context.Context, w *worker) error {
	entries, err := os.ReadDir(filepath.Join(w.dir, "uploads"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), "-"+e.Name()[37:])
		for n := range powerRepos {
			u, err := w.blobs.Resume(ctx, powerRepo(n), id, -1)
			if errors.Is(err, storage.ErrNotFound) {
				continue
			} else if err != nil {
				return fmt.Errorf("an upload cannot be resumed: %w", err)
			}
			part, err := os.ReadFile(filepath.Join(w.dir, "uploads", e.Name()))
			if err != nil {
				return err
			}
			rest, d, found := rec.complete(part)
			if _, err := u.Write(rest); err != nil {
				return err
			}
			if err := u.Commit(ctx, d); found && err != nil || !found && !errors.Is(err, storage.ErrDigest) {
				return fmt.Errorf("a resumed upload: %v", err)
			}
		}
	}
	return nil
}

// unchanged checks that the repos are as they were before the second start, except for what the collection removed, and
// that the image that was pushed in between is there.
func unchanged(ctx context.Context, w *worker, held [powerRepos]keeps) error {
	for n, was := range held {
		was.after(step{how: "collect", alg: digest.SHA256})
		if k, err := keptBy(ctx, w.index, powerRepo(n)); err != nil || k.String() != was.String() {
			return fmt.Errorf("after another start %s %s; %v", powerRepo(n), difference(was.String(), k.String()), err)
		}
	}
	if _, ok, err := w.index.Resolve(ctx, "after", "v"); !ok || err != nil {
		return fmt.Errorf("what was pushed after the cut is gone; %v", err)
	}
	return nil
}

// checkBackup checks that the backup, if there is one, can be opened.
func checkBackup(root string) error {
	backup, err := os.ReadFile(filepath.Join(dataIn(root), "journal.backup"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	w := &worker{dir: filepath.Join(root, "backup")}
	if err = errors.Join(err, os.Mkdir(w.dir, 0o700), os.WriteFile(journalIn(w.dir), backup, 0o600)); err != nil {
		return err
	}
	if err := w.open(); err != nil {
		return fmt.Errorf("the backup: %w", err)
	}
	return w.shut()
}

func (f finding) String(calls []call) string {
	args := strings.Builder{}
	for _, arg := range calls[f.at].args {
		fmt.Fprintf(&args, " %.100q", arg)
	}
	return fmt.Sprintf("after call %d, %s%s; left of what was not synced: %s: %v", f.at, calls[f.at].name, &args,
		f.loss.name, f.err)
}

// TestPowerCuts records the system calls of a workload and checks the states that power cuts may leave. It needs strace
// and the right to trace. STORAGE_TEST_POWER_CUTS is the number of states, STORAGE_TEST_POWER_SEED determines what the
// workload does (not how its threads interleave).
func TestPowerCuts(t *testing.T) {
	n := 1000
	if v := os.Getenv("STORAGE_TEST_POWER_CUTS"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatalf("STORAGE_TEST_POWER_CUTS: %v", err)
		}
	}
	rec := recordWork(t)
	t.Run("what was acknowledged is there", func(t *testing.T) {
		tries := rec.choose(n, rec.moments)
		for _, at := range rec.moments[:60] { // the first start, with calls that happen only once
			for _, l := range losses {
				tries = append(tries, try{at, l, rec.seed})
			}
		}
		states, findings := rec.cuts(t, tries, func(string) bool { return false }, 5)
		t.Logf("%d different states after %d calls", states, len(rec.moments))
		for _, f := range findings {
			t.Error(f.String(rec.calls))
		}
		if states < n/2 {
			t.Error("too few states to prove anything")
		}
	})
	for _, what := range slices.Sorted(maps.Keys(rec.syncs)) {
		t.Run("without the sync of "+what, func(t *testing.T) { rec.without(t, what) })
	}
}

// needless are the syncs that the promises do not need, and why they are done nevertheless.
var needless = map[string]string{
	"a directory, nothing new": "a start cannot know what is on the disk; two pushes at once may share one sync",
	"journal, its new size":    "bbolt does it; the sync of the pages covers it as well, and it is rare",
}

// without leaves one kind of sync out, as if the program did not do it. Then some state must break a promise: so the
// replay can fail, and the program does not wait for the disk more often than it must.
func (rec *recording) without(t *testing.T, what string) {
	n := 600
	if needless[what] != "" {
		n = 100
	}
	tries := rec.choose(n, rec.after(rec.syncs[what]))
	states, findings := rec.cuts(t, tries, func(other string) bool { return other == what }, 1)
	times := len(rec.syncs[what])
	switch {
	case needless[what] != "" && len(findings) > 0:
		t.Errorf("it is needed: %s", findings[0].String(rec.calls))
	case needless[what] != "":
		t.Logf("%d of them; none of %d states is broken: %s", times, states, needless[what])
	case len(findings) == 0:
		t.Errorf("%d of them; none of %d states is broken", times, states)
	default:
		first, _, _ := strings.Cut(findings[0].String(rec.calls), "\n")
		t.Logf("%d of them; state %d is broken: %s", times, states, first)
	}
}
