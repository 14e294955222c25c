package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// migration is one Run.
type migration struct {
	Options
	start  time.Time
	id     string
	seed   maphash.Seed // of the hashes of facts; another one for each comparison
	bySeed maphash.Seed // of the hashes of digests

	mu     sync.Mutex // guards all below; never held across I/O
	done   Progress
	sealed bool // the source
	at     time.Time
	// have is what the target has once all that is found is copied: the hash of a value by the hash of the fact.
	have     map[uint64]known
	stored   map[uint64]int64         // bytes of the blobs at the target, by the hash of the digest
	verified map[uint64]int64         // those that this run has copied
	lost     map[digest.Digest]string // and why
	found    work
	held     int // bytes that found takes, about
	pass     uint32
	synced   bool // the pass has seen the full state
	sealSeen bool // the source's
	staleDue bool // what only the target has was not looked for
}

type known struct {
	value uint64
	pass  uint32 // in which the source had it
}

// work is what has to be copied.
type work struct {
	blobs     map[digest.Digest]struct{}
	facts     map[string]map[fact][]byte // by repo; nil: to delete
	histories map[string]struct{}        // repos whose histories have to be compared
}

type fact struct {
	kind storage.Kind
	name string
}

func newWork() work {
	return work{map[digest.Digest]struct{}{}, map[string]map[fact][]byte{}, map[string]struct{}{}}
}

func (w work) size() int {
	n := len(w.blobs) + len(w.histories)
	for _, facts := range w.facts {
		n += len(facts)
	}
	return n
}

// Why a Watch ends that has done what it was for.
var (
	errFull = errors.New("more was found than can be held")
	errOnce = errors.New("the full state was seen")
)

func (m *migration) hashFact(repo string, f storage.Fact) uint64 {
	var h maphash.Hash
	h.SetSeed(m.seed)
	_, _ = h.WriteString(repo) // a Hash never fails
	_ = h.WriteByte(0)
	_ = h.WriteByte(byte(f.Kind))
	_, _ = h.WriteString(f.Name)
	return h.Sum64()
}

func (m *migration) hashOf(d digest.Digest) uint64 { return maphash.String(m.bySeed, string(d)) }

// load finds out what is at the target, from what its engines list and deliver.
func (m *migration) load(ctx context.Context) error {
	first := m.have == nil
	m.seed = maphash.MakeSeed()
	if first {
		m.bySeed = maphash.MakeSeed()
	}
	have := map[uint64]known{}
	err := state(ctx, m.To.Journal, func(repo string, f storage.Fact) {
		if storage.Portable(repo, f) {
			have[m.hashFact(repo, f)] = known{value: maphash.Bytes(m.seed, f.Value)}
		}
	})
	if err != nil {
		return fmt.Errorf("read the target's journal: %w", err)
	}
	stored, err := m.list(ctx)
	if err != nil {
		return fmt.Errorf("list the target's blobs: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.have, m.stored, m.found, m.held = have, stored, newWork(), 0
	if !first {
		return nil
	}
	for d := range m.From.Index.Contents() {
		m.done.Contents++
		m.done.Bytes += m.From.Index.Size(d)
		if _, there := stored[m.hashOf(d)]; there {
			m.done.There++
		}
	}
	return nil
}

// list returns the sizes of the blobs at the target.
func (m *migration) list(ctx context.Context) (map[uint64]int64, error) {
	stored := map[uint64]int64{}
	placed, ok := m.To.Blobs.(storage.Placed)
	if !ok {
		for info, err := range m.To.Blobs.All(ctx) {
			if err != nil {
				return nil, err
			}
			stored[m.hashOf(info.Digest)] = info.Size
		}
		return stored, nil
	}
	objects := map[uint64]int64{}
	for o, err := range placed.Objects(ctx) {
		if err != nil {
			return nil, err
		}
		objects[maphash.String(m.bySeed, o.Place)] = o.Size
	}
	for d, place := range m.To.Index.Places() {
		if size, there := objects[maphash.String(m.bySeed, place)]; there {
			stored[m.hashOf(d)] = size
		}
	}
	return stored, nil
}

// state calls f with each fact of the full state of a journal.
func state(ctx context.Context, j storage.Journal, f func(repo string, f storage.Fact)) error {
	err := j.Watch(ctx, func(u storage.Update) error {
		for _, b := range u.Batches {
			for _, one := range b.Facts {
				f(b.Repo, one)
			}
		}
		if u.Synced {
			return errOnce
		}
		return nil
	})
	if errors.Is(err, errOnce) {
		return nil
	}
	return err
}

// note compares a fact of the source with the target. The caller holds mu. It is called while the source's journal is
// locked, so it only compares and remembers.
func (m *migration) note(repo string, f storage.Fact) {
	if storage.IsSeal(repo, f) {
		m.sealSeen = f.Value != nil
	}
	if !storage.Portable(repo, f) {
		return
	}
	if d, size, ok := storage.ContentOf(repo, f); ok && !m.has(d, size) {
		if _, found := m.found.blobs[d]; !found {
			m.found.blobs[d] = struct{}{}
			m.held += 200
		}
	}
	switch {
	case f.IsHistoryEnd():
		m.found.histories[strings.Clone(repo)] = struct{}{}
		return
	case f.Kind == storage.KindHistory: // the full state has none, so have knows nothing of them
		m.find(repo, f)
		return
	}
	h := m.hashFact(repo, f)
	old, had := m.have[h]
	if f.Value == nil {
		if had {
			delete(m.have, h)
			m.find(repo, f)
		}
		return
	}
	now := known{maphash.Bytes(m.seed, f.Value), m.pass}
	m.have[h] = now
	if !had || old.value != now.value {
		m.find(repo, f)
	}
}

// find remembers a fact that differs. The journal's own bytes are not kept.
func (m *migration) find(repo string, f storage.Fact) {
	facts := m.found.facts[repo]
	if facts == nil {
		facts = map[fact][]byte{}
		m.found.facts[strings.Clone(repo)] = facts
	}
	facts[fact{f.Kind, strings.Clone(f.Name)}] = bytes.Clone(f.Value)
	m.held += 150 + len(f.Name) + len(f.Value)
}

// has reports whether the target has the bytes of a content, or the source has lost them. The caller holds mu.
func (m *migration) has(d digest.Digest, size int64) bool {
	h := m.hashOf(d)
	n, there := m.stored[h]
	if !there {
		_, lost := m.lost[d]
		return lost
	}
	// A fact may say a wrong size, if the bytes were missing when it was rebuilt.
	whole, verified := m.verified[h]
	return n == size || verified && n == whole
}

// take returns what was found, and whether that is all until the end of the full state, and until the source's seal.
func (m *migration) take() (w work, synced, sealed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w = m.found
	m.found, m.held = newWork(), 0
	return w, m.synced, m.synced && m.sealSeen
}

// run makes a pass over the source: it copies what differs, as it is found. With once, it ends with the full state;
// otherwise when the source is sealed and all until then is copied, which it does itself. It returns how much differed.
func (m *migration) run(ctx context.Context, once bool) (differed int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	wake, ended := make(chan struct{}, 1), make(chan error, 1)
	m.mu.Lock()
	m.pass++
	m.synced, m.sealSeen, m.staleDue = false, false, true
	m.mu.Unlock()
	var watch sync.WaitGroup
	watch.Go(func() { ended <- m.From.Journal.Watch(ctx, m.watcher(once, wake)) })
	defer watch.Wait()
	defer cancel()
	caughtUp := false
	for takes := 0; ; takes++ {
		over := false
		select { // what came before the end is taken after it
		case err = <-ended:
			over = true
		default:
		}
		if err := m.findStale(ctx); err != nil {
			return differed, copyError{err}
		}
		w, synced, sealed := m.take()
		differed += w.size()
		if err := m.copy(ctx, w); err != nil {
			return differed, err
		}
		if synced && !caughtUp {
			n, err := m.copyHistories(ctx)
			if differed += n; err != nil {
				return differed, err
			}
			caughtUp = true
		}
		switch {
		case over && (!errors.Is(err, errOnce) || !synced):
			return differed, err
		case over, sealed && caughtUp && !once:
			return differed, nil
		case caughtUp && !once && (w.size() < fewFacts || takes > manyTakes):
			if err := m.seal(ctx); err != nil {
				return differed, err
			}
		}
		if w.size() > 0 {
			continue
		}
		select {
		case <-wake:
		case err := <-ended:
			ended <- err
		case <-ctx.Done():
			return differed, context.Cause(ctx)
		}
	}
}

// When the source is sealed: when little has changed since the last look, or when it never does.
const (
	fewFacts  = 1000
	manyTakes = 20
)

// watcher returns the apply function of a pass.
func (m *migration) watcher(once bool, wake chan<- struct{}) func(storage.Update) error {
	return func(u storage.Update) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, b := range u.Batches {
			for _, f := range b.Facts {
				m.note(b.Repo, f)
			}
		}
		m.synced = m.synced || u.Synced
		select {
		case wake <- struct{}{}:
		default:
		}
		switch {
		case once && m.synced:
			return errOnce
		case m.held > m.budget:
			return errFull
		}
		return nil
	}
}

// repeat makes passes until one has seen all.
func (m *migration) repeat(ctx context.Context, once bool) (differed int, err error) {
	const most = 30
	for failed := 0; ; {
		n, err := m.run(ctx, once)
		differed += n
		switch {
		case err == nil || ctx.Err() != nil:
			return differed, err
		case errors.Is(err, errFull):
			failed = 0
		case errors.As(err, new(copyError)):
			return differed, err
		default: // the watch has lost its place
			if failed++; failed == most {
				return differed, fmt.Errorf("follow the source's journal: %w", err)
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}
}

// follow copies all, seals the source, and copies the rest.
func (m *migration) follow(ctx context.Context) error {
	_, err := m.repeat(ctx, false)
	return err
}

// compare compares both ends, and copies what differs, until nothing does.
func (m *migration) compare(ctx context.Context) error {
	m.mu.Lock()
	m.done.Stage = Comparing
	m.mu.Unlock()
	const most = 4
	for range most {
		if err := m.quarantine(ctx); err != nil {
			return err
		}
		if err := m.load(ctx); err != nil {
			return err
		}
		if differed, err := m.repeat(ctx, true); differed == 0 || err != nil {
			return err
		}
	}
	return fmt.Errorf("the target still differs from the source after %d comparisons; "+
		"does anything else write to it? Run the migration again", most)
}

// quarantine marks at the target what the source has lost.
func (m *migration) quarantine(ctx context.Context) error {
	for _, l := range m.now().Lost {
		if m.From.Index.Quarantined(l.Digest) || m.To.Index.Quarantined(l.Digest) {
			continue
		}
		if err := m.To.Index.Quarantine(ctx, l.Digest, l.Reason); err != nil {
			return err
		}
	}
	return nil
}

// seal makes the source refuse writes, unless it does already.
func (m *migration) seal(ctx context.Context) error {
	m.mu.Lock()
	sealed := m.sealed
	m.mu.Unlock()
	if sealed {
		return nil
	}
	err := m.From.Index.Seal(ctx, storage.Migration{ID: m.id, To: m.To.Name, Time: time.Now().Unix()})
	if err != nil {
		return copyError{fmt.Errorf("seal the source: %w", err)}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sealed, m.at, m.done.Stage = true, time.Now(), Switched
	return nil
}

// copyError is an error of the copying, after which another Run has to go on.
type copyError struct{ error }

func (e copyError) Unwrap() error { return e.error }

// copy copies what was found: first the bytes, then the facts.
func (m *migration) copy(ctx context.Context, w work) error {
	blobs := make([]digest.Digest, 0, len(w.blobs))
	for d := range w.blobs {
		blobs = append(blobs, d)
	}
	if err := m.copyAll(ctx, blobs); err != nil {
		return copyError{err}
	}
	repos := make([]string, 0, len(w.facts))
	for repo := range w.facts {
		repos = append(repos, repo)
	}
	err := each(ctx, repos, func(ctx context.Context, repo string) error {
		facts := make([]storage.Fact, 0, len(w.facts[repo]))
		for f, value := range w.facts[repo] {
			facts = append(facts, storage.Fact{Kind: f.kind, Name: f.name, Value: value})
		}
		return m.copyFacts(ctx, repo, facts)
	})
	if err != nil {
		return copyError{err}
	}
	for repo := range w.histories {
		if _, err := m.copyHistory(ctx, repo); err != nil {
			return copyError{err}
		}
	}
	return nil
}

func (m *migration) copyFacts(ctx context.Context, repo string, facts []storage.Fact) error {
	if err := m.To.Index.CopyFacts(ctx, repo, facts); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done.Facts += len(facts)
	return nil
}

// each calls f for each repo, several at a time.
func each(ctx context.Context, repos []string, f func(context.Context, string) error) error {
	const parallel = 8 // they share the commits of the target
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan string)
	var workers sync.WaitGroup
	for range min(parallel, len(repos)) {
		workers.Go(func() {
			for repo := range queue {
				if err := f(ctx, repo); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	for _, repo := range repos {
		select {
		case queue <- repo:
		case <-ctx.Done():
		}
	}
	close(queue)
	workers.Wait()
	return context.Cause(ctx)
}

// copyHistories copies the histories of tags, once the full state was seen. It returns how much differed.
func (m *migration) copyHistories(ctx context.Context) (differed int, err error) {
	var mu sync.Mutex
	names := slices.Concat(m.From.Index.Names(), m.To.Index.Names())
	slices.Sort(names)
	err = each(ctx, slices.Compact(names), func(ctx context.Context, repo string) error {
		n, err := m.copyHistory(ctx, repo)
		mu.Lock()
		defer mu.Unlock()
		differed += n
		return err
	})
	if err != nil {
		return differed, copyError{err}
	}
	return differed, nil
}

// findStale finds, once in a pass, the facts that the target has of an earlier run and that the source has not. They
// are deleted together with all that has changed since the full state: one without the other could leave a tag without
// its manifest.
func (m *migration) findStale(ctx context.Context) error {
	m.mu.Lock()
	due, stale := m.staleDue && m.synced, false
	if due {
		m.staleDue = false
		for _, k := range m.have {
			stale = stale || k.pass != m.pass
		}
	}
	m.mu.Unlock()
	if !stale {
		return nil
	}
	return state(ctx, m.To.Journal, func(repo string, f storage.Fact) {
		m.mu.Lock()
		defer m.mu.Unlock()
		h := m.hashFact(repo, f)
		k, had := m.have[h]
		d, quarantine := storage.IsQuarantine(repo, f)
		if _, lost := m.lost[d]; !had || k.pass == m.pass || quarantine && lost {
			return // the source has it, or has had it since, or this migration has made it
		}
		delete(m.have, h)
		f.Value = nil
		m.find(repo, f)
	})
}

// copyHistory makes the histories of a repo's tags those of the source, and returns how many facts differed.
func (m *migration) copyHistory(ctx context.Context, repo string) (int, error) {
	from, err := m.From.Index.Facts(ctx, repo)
	if err != nil {
		return 0, fmt.Errorf("read the history of %q: %w", repo, err)
	}
	to, err := m.To.Index.Facts(ctx, repo)
	if err != nil {
		return 0, fmt.Errorf("read the history of %q at the target: %w", repo, err)
	}
	old := make(map[string][]byte, len(to))
	for _, f := range to {
		old[f.Name] = f.Value
	}
	var differ []storage.Fact
	for _, f := range from {
		if value, had := old[f.Name]; !had || !bytes.Equal(value, f.Value) {
			differ = append(differ, f)
		}
		delete(old, f.Name)
	}
	for name := range old {
		differ = append(differ, storage.Fact{Kind: storage.KindHistory, Name: name})
	}
	if len(differ) == 0 {
		return 0, nil
	}
	return len(differ), m.copyFacts(ctx, repo, differ)
}

// now returns the progress.
func (m *migration) now() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.done
	p.Took = time.Since(m.start)
	if !m.at.IsZero() {
		p.Refused = time.Since(m.at)
	}
	p.Lost = nil
	for d, reason := range m.lost {
		p.Lost = append(p.Lost, Lost{d, reason})
	}
	slices.SortFunc(p.Lost, func(a, b Lost) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return p
}

// reportEach reports the progress until ctx is done.
func (m *migration) reportEach(ctx context.Context, every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			m.Report(m.now())
		case <-ctx.Done():
			return
		}
	}
}
