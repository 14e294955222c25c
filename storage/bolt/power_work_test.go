//go:build faults

package bolt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
)

// powerDir is the variable that turns the test binary into the process whose system calls are recorded; powerSeed has
// the seed of what it does.
const (
	powerDir  = "STORAGE_TEST_POWER_DIR"
	powerSeed = "STORAGE_TEST_POWER_SEED"
)

func init() {
	dir := os.Getenv(powerDir)
	if dir == "" {
		return
	}
	seed, err := strconv.ParseUint(os.Getenv(powerSeed), 10, 64)
	if err == nil {
		err = work(dir, newScript(seed))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

const (
	powerRepos  = 3
	powerPhases = 8
)

// step is one request of a client of a repo, which is acknowledged.
type step struct {
	how     string
	content []byte
	alg     digest.Algorithm
	refs    []digest.Digest
	tags    []string
}

func (d step) digest() digest.Digest { return d.alg.FromBytes(d.content) }

// keeps is what a repo holds.
type keeps struct {
	blobs     map[digest.Digest]bool
	manifests map[digest.Digest][]digest.Digest
	tags      map[string]digest.Digest
}

func (k keeps) needs(d digest.Digest) bool {
	for _, refs := range k.manifests {
		if slices.Contains(refs, d) {
			return true
		}
	}
	return false
}

// after applies a step.
func (k keeps) after(d step) {
	at := d.digest()
	switch d.how {
	case "at once", "in chunks":
		k.blobs[at] = true
	case "manifest":
		k.manifests[at] = d.refs
		fallthrough
	case "tag":
		for _, tag := range d.tags {
			k.tags[tag] = at
		}
	case "untag":
		delete(k.tags, d.tags[0])
	case "remove":
		delete(k.manifests, at)
		maps.DeleteFunc(k.tags, func(_ string, named digest.Digest) bool { return named == at })
	case "unlink":
		delete(k.blobs, at)
	case "collect":
		maps.DeleteFunc(k.blobs, func(d digest.Digest, _ bool) bool { return !k.needs(d) })
	}
}

// String is the same for equal holdings.
func (k keeps) String() string {
	var lines []string
	for d := range k.blobs {
		lines = append(lines, fmt.Sprint("blob ", d))
	}
	for d := range k.manifests {
		lines = append(lines, fmt.Sprint("manifest ", d))
	}
	for tag, d := range k.tags {
		lines = append(lines, fmt.Sprint("tag ", tag, " ", d))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// keptBy returns what a repo holds by the Index.
func keptBy(ctx context.Context, x *storage.Index, repo string) (keeps, error) {
	k := keeps{map[digest.Digest]bool{}, map[digest.Digest][]digest.Digest{}, map[string]digest.Digest{}}
	h, _, err := x.Holdings(ctx, repo)
	for _, b := range h.Blobs {
		k.blobs[b.Digest] = true
	}
	for _, m := range h.Manifests {
		k.manifests[m.Digest] = m.Refs
		for _, tag := range m.Tags {
			k.tags[tag.Name] = m.Digest
		}
	}
	return k, err
}

// script is what the workload does, by repo and phase. After each phase all clients wait, and something is done to the
// whole store.
type script struct {
	seed   uint64
	phases [powerRepos][powerPhases][]step
	states [powerRepos][]string // what the repo holds, by the number of steps done
	large  [][]byte             // contents that were pushed in chunks
}

// between returns what is done after a phase.
func between(phase int) string {
	return []string{"collect", "restart", "fault", "backup", "collect", "fault"}[phase%6]
}

func powerRepo(n int) string { return fmt.Sprint("team/app", n) }

func newScript(seed uint64) *script {
	s := &script{seed: seed}
	for n := range powerRepos {
		a := &author{script: s, r: rand.New(rand.NewPCG(seed, uint64(n))), repo: n,
			now: keeps{map[digest.Digest]bool{}, map[digest.Digest][]digest.Digest{}, map[string]digest.Digest{}}}
		s.states[n] = []string{a.now.String()}
		for phase := range powerPhases {
			a.phase = phase
			a.write()
		}
	}
	return s
}

// author writes the part of the script for one repo.
type author struct {
	*script
	r           *rand.Rand
	repo, phase int
	now         keeps
	manifests   []step // all that were ever pushed
}

func (a *author) add(d step) {
	if d.alg == "" {
		d.alg = digest.SHA256
	}
	a.now.after(d)
	a.states[a.repo] = append(a.states[a.repo], a.now.String())
	if d.how == "in chunks" {
		a.large = append(a.large, d.content)
	}
	if d.how == "manifest" {
		a.manifests = append(a.manifests, d)
	}
	if d.how != "collect" {
		at := &a.phases[a.repo][a.phase]
		*at = append(*at, d)
	}
}

func (a *author) bytes(most int) []byte {
	b := make([]byte, 1+a.r.IntN(most))
	for i := range b {
		b[i] = byte(a.r.Uint32())
	}
	return b
}

// blob returns a push of a new blob, or of one that several repos have.
func (a *author) blob() step {
	d := step{how: "at once", content: a.bytes(6000), alg: digest.SHA256}
	switch a.r.IntN(6) {
	case 0, 1:
		d.content = fmt.Appendf(nil, "shared %d %d", a.seed, a.r.IntN(3))
	case 2:
		d.how, d.content = "in chunks", a.bytes(60_000)
	case 3:
		d.alg = digest.SHA512
	}
	return d
}

func (a *author) image(tags ...string) {
	var refs []digest.Digest
	for range 1 + a.r.IntN(2) {
		b := a.blob()
		a.add(b)
		refs = append(refs, b.digest())
	}
	a.add(step{how: "manifest", content: a.bytes(500), refs: refs, tags: tags})
}

func (a *author) write() {
	a.image(fmt.Sprint("v", a.phase), "latest")
	a.add(a.blob()) // no manifest refers to it
	a.add(step{how: "leave", content: a.bytes(9000)})
	if a.phase%2 == a.repo%2 {
		a.add(step{how: "cancel", content: a.bytes(9000)})
		var many []string // so that the file grows, and pages split
		for i := range 60 {
			many = append(many, fmt.Sprintf("release-%d.%d-with-a-name-of-some-length", a.phase, i))
		}
		a.image(many...)
	}
	if old := a.manifests[a.r.IntN(len(a.manifests))]; a.now.manifests[old.digest()] != nil {
		a.add(step{how: "tag", content: old.content, tags: []string{"stable"}})
		if a.phase%3 == 2 {
			a.add(step{how: "remove", content: old.content})
		}
	}
	for _, tag := range slices.Sorted(maps.Keys(a.now.tags)) {
		if a.r.IntN(3) == 0 && len(tag) < 5 {
			a.add(step{how: "untag", tags: []string{tag}})
		}
	}
	for _, d := range a.phases[a.repo][a.phase] {
		if (d.how == "at once") && a.now.blobs[d.digest()] && !a.now.needs(d.digest()) {
			a.add(step{how: "unlink", content: d.content, alg: d.alg})
			break
		}
	}
	switch between(a.phase) {
	case "collect":
		a.add(step{how: "collect"})
	case "fault":
		if a.repo == 0 {
			a.add(step{how: "manifest", content: a.bytes(500), tags: []string{fmt.Sprint("faulty", a.phase)}})
		}
	}
}

// worker runs the script, and prints a line for each step that is done.
type worker struct {
	dir     string
	blobs   *disk.Blobs
	journal *bolt.Journal
	index   *storage.Index
}

func (w *worker) open() (err error) {
	if w.journal, err = bolt.Open(w.dir); err != nil {
		return err
	}
	if w.index, err = storage.OpenIndex(context.Background(), w.journal, storage.IndexOptions{}); err != nil {
		return err
	}
	w.blobs, err = disk.Open(w.dir, disk.Options{})
	return err
}

func (w *worker) shut() error {
	w.index.Close()
	return w.journal.Close()
}

func say(what string, repo any) error {
	_, err := fmt.Fprintf(os.Stdout, "%s %v\n", what, repo)
	return err
}

func work(dir string, s *script) error {
	w := &worker{dir: dir}
	if err := w.open(); err != nil {
		return err
	}
	for phase := range powerPhases {
		var failed [powerRepos]error
		var all sync.WaitGroup
		for n := range powerRepos {
			steps := s.phases[n][phase]
			if n == 0 && between(phase) == "fault" {
				steps = steps[:len(steps)-1]
			}
			all.Go(func() { failed[n] = w.doAll(n, steps) })
		}
		all.Wait()
		if err := errors.Join(failed[:]...); err != nil {
			return err
		}
		if err := w.between(phase, s); err != nil {
			return fmt.Errorf("%s: %w", between(phase), err)
		}
	}
	return w.shut()
}

func (w *worker) doAll(repo int, all []step) error {
	for _, d := range all {
		if err := w.do(powerRepo(repo), d); err != nil {
			return fmt.Errorf("%s: %w", d.how, err)
		}
		if err := say("done", repo); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) between(phase int, s *script) error {
	ctx := context.Background()
	switch between(phase) {
	case "collect":
		c := storage.Collector{Blobs: w.blobs, Index: w.index}
		if _, err := c.RunWith(ctx, -time.Hour, false, nil); err != nil {
			return err
		}
		return say("done", "all")
	case "backup":
		return w.journal.Backup()
	case "restart":
		return errors.Join(w.shut(), w.open())
	}
	// The last sync of a commit fails; a line tells the replay which one. The client tries again.
	steps := s.phases[0][phase]
	d := steps[len(steps)-1]
	w.journal.FailNext(func() error { return errors.Join(syscall.EIO, say("fault", 0)) })
	if err := w.do(powerRepo(0), d); !errors.Is(err, syscall.EIO) {
		return fmt.Errorf("the fault was reported as %w", err)
	}
	return w.doAll(0, []step{d})
}

func (w *worker) do(repo string, d step) error {
	ctx, at := context.Background(), d.digest()
	switch d.how {
	case "at once":
		return w.push(ctx, repo, d, func(u storage.Upload) (storage.Upload, error) {
			_, err := u.Write(d.content)
			return u, err
		}, w.link)
	case "in chunks":
		return w.push(ctx, repo, d, func(u storage.Upload) (storage.Upload, error) {
			return w.chunks(ctx, repo, u, d)
		}, w.link)
	case "manifest":
		return w.push(ctx, repo, d, func(u storage.Upload) (storage.Upload, error) {
			_, err := u.Write(d.content)
			return u, err
		}, func(ctx context.Context, repo string, at digest.Digest, size int64) error {
			return w.index.Update(ctx, repo, func(tx *storage.Tx) error {
				err := tx.PutManifest(storage.Manifest{Digest: at, MediaType: "application/a", Size: size,
					Refs: d.refs})
				return errors.Join(err, setTags(tx, d.tags, at))
			})
		})
	case "leave", "cancel":
		u, err := w.blobs.Create(ctx, repo, d.alg)
		if err != nil {
			return err
		}
		if _, err = u.Write(d.content); err != nil {
			return err
		}
		if d.how == "leave" {
			return u.Close(ctx)
		}
		return u.Cancel(ctx)
	}
	return w.index.Update(ctx, repo, func(tx *storage.Tx) error {
		switch d.how {
		case "tag":
			return setTags(tx, d.tags, at)
		case "untag":
			return tx.DeleteTag(d.tags[0])
		case "remove":
			return tx.DeleteManifest(at)
		case "unlink":
			return tx.Unlink(at)
		}
		return fmt.Errorf("unknown step %s", d.how)
	})
}

func (w *worker) link(ctx context.Context, repo string, d digest.Digest, size int64) error {
	return w.index.Update(ctx, repo, func(tx *storage.Tx) error { tx.Link(d, size); return nil })
}

func setTags(tx *storage.Tx, tags []string, d digest.Digest) (err error) {
	for _, tag := range tags {
		err = errors.Join(err, tx.SetTag(tag, d))
	}
	return err
}

// push does what the registry does for a blob or a manifest.
func (w *worker) push(ctx context.Context, repo string, d step, write func(storage.Upload) (storage.Upload, error),
	name func(context.Context, string, digest.Digest, int64) error) error {
	u, err := w.blobs.Create(ctx, repo, d.alg)
	if err != nil {
		return err
	}
	if u, err = write(u); err != nil {
		return err
	}
	release, err := w.index.Commit(ctx, u, d.digest())
	if err != nil {
		return err
	}
	defer release()
	return name(ctx, repo, d.digest(), int64(len(d.content)))
}

// chunks sends a blob in three requests.
func (w *worker) chunks(ctx context.Context, repo string, u storage.Upload, d step) (storage.Upload, error) {
	size := len(d.content)/3 + 1
	for chunk := range slices.Chunk(d.content, size) {
		for piece := range slices.Chunk(chunk, 8<<10) {
			if _, err := u.Write(piece); err != nil {
				return u, err
			}
		}
		err := u.Close(ctx)
		if err == nil {
			u, err = w.blobs.Resume(ctx, repo, u.ID(), u.Size())
		}
		if err != nil {
			return u, err
		}
	}
	return u, nil
}

// complete returns the rest and the digest of the content that starts with what an upload has.
func (s *script) complete(part []byte) (rest []byte, d digest.Digest, found bool) {
	for _, content := range s.large {
		if bytes.HasPrefix(content, part) {
			return content[len(part):], digest.FromBytes(content), true
		}
	}
	return nil, digest.FromString("another"), false
}
