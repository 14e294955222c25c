package migrate

import (
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
	sealed bool      // the source
	at     time.Time // when this run sealed it
	// have is what the target has once all that is found is copied: the hash of a value by the hash of the fact.
	have     map[uint64]known
	stored   map[uint64]int64         // bytes of the blobs at the target, by the hash of the digest
	verified map[uint64]int64         // of these, the blobs that this run has copied
	lost     map[digest.Digest]string // and why
	found    work
	held     int // bytes that found takes, about
	pass     uint32
	synced   bool // the pass has seen the full state
	sealSeen bool // the source's
	staleDue bool // what only the target has was not looked for
}

// Errors that end a Watch that has done its work.
var (
	errFull = errors.New("more was found than can be held")
	errOnce = errors.New("the full state was seen")
)

// run makes a pass over the source: it copies what differs, as it is found. With once, the pass ends with the full
// state; otherwise it seals the source when little is left, and ends when everything from before the seal is copied. It
// returns how much differed. Errors: errFull; a copyError; those of the Watch.
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
		select { // before take, so that what was found until the Watch ended is copied as well
		case err = <-ended:
			over = true
		default:
		}
		w, synced, sealed, nextErr := m.next(ctx)
		if nextErr != nil {
			return differed, copyError{nextErr}
		}
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

// The source is sealed when a take has found fewer than fewFacts changes, so that writes are refused for a short time
// only; or after manyTakes, because a busy source may never have so few.
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

// repeat makes passes until one has seen everything. It tries again, for half a minute, if the Watch of the source
// fails.
func (m *migration) repeat(ctx context.Context, once bool) (differed int, err error) {
	const most = 30
	for failed := 0; ; { // passes in a row whose Watch has failed
		n, err := m.run(ctx, once)
		differed += n
		switch {
		case err == nil || ctx.Err() != nil:
			return differed, err
		case errors.Is(err, errFull):
			failed = 0
		case errors.As(err, new(copyError)):
			return differed, err
		default: // the Watch has failed, as when the service of the journal does not answer
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

// follow copies everything, seals the source, and copies the rest.
func (m *migration) follow(ctx context.Context) error {
	_, err := m.repeat(ctx, false)
	return err
}

// compare compares both ends, and copies what differs, until nothing does. The source is sealed, so differences come
// from a run that was cut short, from this run's mistakes, or from another writer.
func (m *migration) compare(ctx context.Context) error {
	m.mu.Lock()
	m.done.Stage = Comparing
	// What was lost may have been pushed again before the seal, which heals it: from now on nothing changes, so that
	// what is lost when it is read once more stays lost.
	clear(m.lost)
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

// quarantine quarantines at the target what the source has lost, unless the source has: then the mark was copied.
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

// seal makes the source refuse writes, unless it already does. No process commits anything there after the seal; see
// seal.go of package storage.
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
