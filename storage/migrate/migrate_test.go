package migrate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
	"trow/storage/memory"
	"trow/storage/migrate"
	"trow/storage/storagetest"
)

// place is where one end keeps everything. It outlives the processes that open it.
type place struct {
	name    string
	journal storage.Journal
	blobs   func(storage.Records) storage.Blobs
}

var bounds = storage.Traits{Shared: true, Compares: 24, Operations: 24, Bytes: 4000}

// shared is a journal and objects for several processes.
func shared(name string) *place {
	j, service := memory.NewJournal(), memory.NewService()
	j.Is = bounds
	return &place{name, j, func(r storage.Records) storage.Blobs {
		return &memory.Objects{Service: service, Records: r}
	}}
}

// single is for one process.
func single(name string) *place {
	b := memory.NewBlobs()
	return &place{name, memory.NewJournal(), func(storage.Records) storage.Blobs { return b }}
}

// open opens it as a process does, or as a migration does.
func (p *place) open(t *testing.T, migration bool) migrate.Side {
	t.Helper()
	x, err := p.index(t, migration)
	if err != nil {
		t.Fatal(err)
	}
	return migrate.Side{Name: p.name, Journal: p.journal, Index: x, Blobs: p.blobs(x)}
}

func (p *place) index(t *testing.T, migration bool) (*storage.Index, error) {
	_, placed := p.blobs(nil).(storage.Placed)
	x, err := storage.OpenIndex(t.Context(), p.journal,
		storage.IndexOptions{Placed: placed, Grace: time.Hour, Migration: migration})
	if err == nil {
		t.Cleanup(x.Close)
	}
	return x, err
}

// push is what a client's push comes to.
func push(ctx context.Context, s migrate.Side, repo, tag, body string, refs ...digest.Digest) (digest.Digest, error) {
	u, err := s.Blobs.Create(ctx, repo, digest.SHA256)
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(u, body); err != nil {
		return "", err
	}
	d := digest.FromString(body)
	release, err := s.Index.Commit(ctx, u, d)
	if err != nil {
		return "", err
	}
	defer release()
	return d, s.Index.Update(ctx, repo, func(tx *storage.Tx) error {
		if tag == "" {
			tx.Link(d, int64(len(body)))
			return nil
		}
		tx.As("somebody")
		m := storage.Manifest{Digest: d, MediaType: "application/a", Size: int64(len(body)), Refs: refs}
		return errors.Join(tx.PutManifest(m), tx.SetTag(tag, d))
	})
}

// pushImage pushes a layer, and a manifest that refers to it.
func pushImage(ctx context.Context, s migrate.Side, repo, tag string, n int) error {
	layer, err := push(ctx, s, repo, "", fmt.Sprint("layer ", n))
	if err == nil {
		_, err = push(ctx, s, repo, tag, fmt.Sprint("manifest ", n), layer)
	}
	return err
}

// act does something that a client does.
func act(ctx context.Context, s migrate.Side, r *rand.Rand) error {
	repo, tag, n := fmt.Sprint("team/app", r.IntN(4)), fmt.Sprint("tag", r.IntN(6)), r.IntN(40)
	var err error
	switch r.IntN(5) {
	case 0:
		err = s.Index.Update(ctx, repo, func(tx *storage.Tx) error { return tx.DeleteTag(tag) })
	case 1:
		if m, ok, _ := s.Index.Resolve(ctx, repo, tag); ok {
			err = s.Index.Update(ctx, repo, func(tx *storage.Tx) error { return tx.DeleteManifest(m.Digest()) })
		}
	default:
		err = pushImage(ctx, s, repo, tag, n)
	}
	if errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrExpired) ||
		errors.Is(err, storage.ErrTooLarge) {
		return nil
	}
	return err
}

// dump is all that a migration has to keep: facts, histories, the order of tags, and the bytes.
func (p *place) dump(t *testing.T) map[string]string {
	t.Helper()
	all, enough := map[string]string{}, errors.New("enough")
	err := p.journal.Watch(t.Context(), func(u storage.Update) error {
		for _, b := range u.Batches {
			for _, f := range b.Facts {
				if storage.Portable(b.Repo, f) {
					all[fmt.Sprintf("%s %c %q", b.Repo, f.Kind, f.Name)] = string(f.Value)
				}
			}
		}
		if u.Synced {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatal(err)
	}
	s := p.open(t, true)
	for _, repo := range s.Index.Names() {
		history, err := p.journal.History(t.Context(), repo, "")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range history {
			all[fmt.Sprintf("%s history %q", repo, f.Name)] = string(f.Value)
		}
		held, _, err := s.Index.Holdings(t.Context(), repo)
		if err != nil {
			t.Fatal(err)
		}
		var tags []storage.HeldTag
		for _, m := range held.Manifests {
			tags = append(tags, m.Tags...)
		}
		for i, group := range storage.TagsInOrder(tags) {
			for _, tag := range group {
				all[fmt.Sprintf("%s order %s", repo, tag.Name)] = fmt.Sprint(i, tag.Order)
			}
		}
	}
	for d := range s.Index.Contents() {
		if body, err := storagetest.Read(t.Context(), s.Blobs, d); err != nil {
			all["bytes of "+d.String()] = err.Error()
		} else if digest.FromBytes(body) == d {
			all["bytes of "+d.String()] = "whole"
		}
	}
	return all
}

func wantEqual(t *testing.T, from, to *place) {
	t.Helper()
	a, b := from.dump(t), to.dump(t)
	if maps.Equal(a, b) {
		return
	}
	for _, k := range slices.Sorted(maps.Keys(a)) {
		if a[k] != b[k] {
			t.Errorf("%s: %q became %q", k, a[k], b[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(b)) {
		if _, had := a[k]; !had {
			t.Errorf("%s: %q was made", k, b[k])
		}
	}
}

func isMoved(err error) bool {
	var sealed *storage.SealedError
	return errors.As(err, &sealed) && sealed.Moved()
}

// TestThereAndBack moves a registry while clients change it at two processes, and then back.
func TestThereAndBack(t *testing.T) {
	for round := range 8 {
		seed := uint64(time.Now().UnixNano()) + uint64(round)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			one, other := single("one"), shared("other")
			budget := 500 << rand.New(rand.NewPCG(seed, 1)).IntN(10)
			moveInUse(t, one, other, budget, 1, seed)
			moveInUse(t, other, single("back"), budget, 2, seed)
		})
	}
}

// moveInUse moves a registry while clients of some processes change it, until they are refused.
func moveInUse(t *testing.T, from, to *place, budget, processes int, seed uint64) {
	t.Helper()
	var sides []migrate.Side
	for range processes {
		sides = append(sides, from.open(t, false))
	}
	r := rand.New(rand.NewPCG(seed, 0))
	for range 100 {
		if err := act(t.Context(), sides[0], r); err != nil {
			t.Fatal(err)
		}
	}
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(2+i)))
			for range 100_000 {
				if err := act(t.Context(), sides[i%processes], r); err != nil {
					if !isMoved(err) || !strings.Contains(err.Error(), to.name) {
						t.Errorf("a client gets: %v", err)
					}
					return
				}
			}
			t.Error("the source was never sealed")
		})
	}
	o := migrate.Options{From: sides[0], To: to.open(t, true)}
	done, err := migrate.Run(t.Context(), migrate.WithBudget(o, budget))
	if err != nil || done.Stage != migrate.Done || len(done.Lost) > 0 || done.Copied == 0 {
		t.Errorf("%+v, %v", done, err)
		sides[0].Index.Close() // the clients end
	}
	if done.There+done.Copied > done.Contents || done.Sent > done.Bytes {
		t.Errorf("more was copied than there is: %+v", done)
	}
	clients.Wait()
	wantEqual(t, from, to)
	if err := pushImage(t.Context(), to.open(t, false), "team/new", "v1", 1000); err != nil {
		t.Errorf("the target is not in use: %v", err)
	}
}

// fill puts something of each kind into a place.
func fill(t *testing.T, p *place) migrate.Side {
	t.Helper()
	s := p.open(t, false)
	for i := range 6 {
		if err := pushImage(t.Context(), s, fmt.Sprint("team/app", i%2), fmt.Sprint("v", i/2), i); err != nil {
			t.Fatal(err)
		}
	}
	if err := pushImage(t.Context(), s, "team/app0", "v1", 7); err != nil { // a history
		t.Fatal(err)
	}
	if _, err := push(t.Context(), s, "team/app1", "", "without a manifest"); err != nil {
		t.Fatal(err)
	}
	if err := s.Index.SetRecord(t.Context(), "auth/robot/ci", nil, []byte("robot")); err != nil {
		t.Fatal(err)
	}
	return s
}

// failPlaced is FailBlobs for a Placed engine.
type failPlaced struct {
	storagetest.FailBlobs
	placed storage.Placed
}

func (b failPlaced) Remove(ctx context.Context, places ...string) error {
	return b.placed.Remove(ctx, places...)
}

func (b failPlaced) Objects(ctx context.Context) iter.Seq2[storage.Object, error] {
	return b.placed.Objects(ctx)
}

// failing makes a call of an engine fail.
func (s *place) failing(f *storagetest.Fault) *place {
	return &place{s.name, storagetest.FailJournal{Journal: s.journal, Fault: f}, func(r storage.Records) storage.Blobs {
		b := s.blobs(r)
		if placed, ok := b.(storage.Placed); ok {
			return failPlaced{storagetest.FailBlobs{Blobs: b, Fault: f}, placed}
		}
		return storagetest.FailBlobs{Blobs: b, Fault: f}
	}}
}

// TestAnyCallMayFail: a migration that has failed anywhere is gone on with, and does not copy again what is there.
func TestAnyCallMayFail(t *testing.T) {
	for _, atSource := range []bool{true, false} {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("source %v, after its effect %v", atSource, after), func(t *testing.T) {
				failed := 0
				for n := 1; ; n++ {
					from, to := single("from"), shared("to")
					fill(t, from).Index.Close()
					source, target := from, to
					f := &storagetest.Fault{N: n, After: after}
					if atSource {
						source = from.failing(f)
					} else {
						target = to.failing(f)
					}
					done, err := try(t, source, target)
					if !f.Fired() {
						break // all calls have had their turn
					}
					if err != nil {
						failed++
						change(t, from, uint64(n)) // unless it is sealed already
						var again migrate.Progress
						if again, err = try(t, from, to); err != nil {
							t.Fatalf("call %d failed, and then the next run: %v", n, err)
						}
						if !again.Again && again.There+again.Copied > again.Contents {
							t.Errorf("call %d: %+v, and then %+v", n, done, again)
						}
					}
					wantEqual(t, from, to)
					if t.Failed() {
						t.Fatalf("after call %d", n)
					}
					to.open(t, false)
				}
				if failed < 3 {
					t.Errorf("only %d runs have failed", failed)
				}
			})
		}
	}
}

// change changes a source between two runs, as clients do.
func change(t *testing.T, p *place, seed uint64) {
	t.Helper()
	s := p.open(t, false)
	defer s.Index.Close()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		if err := act(t.Context(), s, r); isMoved(err) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, tag := range []string{"v0", "v1"} { // with its history
		err := s.Index.Update(t.Context(), "team/app0", func(tx *storage.Tx) error { return tx.DeleteTag(tag) })
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			t.Fatal(err)
		}
	}
}

// TestNothingIsCopiedTwice: what is at the target is not copied again, and what is not there any more is.
func TestNothingIsCopiedTwice(t *testing.T) {
	for _, to := range []*place{shared("shared"), single("single")} {
		from := single("from")
		s := fill(t, from)
		target := to.failing(&storagetest.Fault{Method: "Create", N: 11}).open(t, true)
		o := migrate.Options{From: s, To: target, Parallel: 1}
		if done, err := migrate.Run(t.Context(), o); !errors.Is(err, storagetest.ErrFault) || done.Copied != 10 {
			t.Fatalf("%s: %+v, %v", to.name, done, err)
		}
		lost := 0
		for d := range s.Index.Contents() {
			if _, err := target.Blobs.Stat(t.Context(), d); err != nil || lost == 2 {
				continue
			}
			lost++
			b := to.blobs(target.Index)
			if err := b.Delete(t.Context(), d); err != nil {
				t.Fatal(err)
			}
		}
		o.To = to.open(t, true)
		done, err := migrate.Run(t.Context(), o)
		if err != nil || done.There != 10-lost || done.Copied != done.Contents-done.There {
			t.Errorf("%s: %+v, %v", to.name, done, err)
		}
		wantEqual(t, from, to)
	}
}

// try is a Run by new processes.
func try(t *testing.T, from, to *place) (done migrate.Progress, err error) {
	var opened []migrate.Side
	defer func() {
		for _, s := range opened {
			s.Index.Close()
		}
	}()
	for _, p := range []*place{from, to} {
		x, err := p.index(t, p.name == to.name)
		if err != nil {
			return done, err
		}
		opened = append(opened, migrate.Side{Name: p.name, Journal: p.journal, Index: x, Blobs: p.blobs(x)})
	}
	return migrate.Run(t.Context(), migrate.Options{From: opened[0], To: opened[1], Parallel: 1})
}

// TestAfterTheSwitch: the source refuses writes for good and says where to, serves reads, and collects nothing.
func TestAfterTheSwitch(t *testing.T) {
	from, to := single("from"), shared("etcd://e:2379/trow, s3://bucket")
	s := fill(t, from)
	if _, err := migrate.Run(t.Context(), migrate.Options{From: s, To: to.open(t, true)}); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"at once", "after a restart"} {
		err := pushImage(t.Context(), s, "team/app0", "v9", 99)
		if !isMoved(err) || !strings.Contains(err.Error(), to.name) {
			t.Errorf("a push %s: %v", when, err)
		}
		err = s.Index.Update(t.Context(), "team/app0", func(tx *storage.Tx) error { return tx.DeleteTag("v1") })
		if !isMoved(err) {
			t.Errorf("a deletion %s: %v", when, err)
		}
		c := &storage.Collector{Blobs: s.Blobs, Index: s.Index}
		if _, err := c.Run(t.Context(), false, nil); !errors.Is(err, storage.ErrMigrating) {
			t.Errorf("a collection %s: %v", when, err)
		}
		if err := c.Finish(t.Context()); err != nil {
			t.Errorf("finishing a collection %s: %v", when, err)
		}
		if m, ok, err := s.Index.Resolve(t.Context(), "team/app0", "v1"); !ok || err != nil {
			t.Errorf("a pull %s: %v, %v, %v", when, m, ok, err)
		}
		if _, _, err := migrate.Cancel(t.Context(), s.Index); !isMoved(err) {
			t.Errorf("giving it up %s: %v", when, err)
		}
		s.Index.Close()
		s = from.open(t, false)
	}
	done, err := migrate.Run(t.Context(), migrate.Options{From: s, To: to.open(t, true)})
	if err != nil || !done.Again {
		t.Errorf("once more: %+v, %v", done, err)
	}
	elsewhere := shared("elsewhere")
	_, err = migrate.Run(t.Context(), migrate.Options{From: s, To: elsewhere.open(t, true)})
	if !errors.Is(err, migrate.ErrOther) {
		t.Errorf("to another target: %v", err)
	}
	// The target's own collector waits for a grace: clients rely on the answers of the source.
	x := to.open(t, false)
	c := &storage.Collector{Blobs: x.Blobs, Index: x.Index, Grace: time.Hour}
	if got, err := c.RunWith(t.Context(), time.Minute, false, nil); err != nil || !got.Waiting || got.Unlinked > 0 {
		t.Errorf("a collection at the target: %+v, %v", got, err)
	}
}

// TestWhileUnfinished: the source's collector rests, nothing is written to the target, and a migration can be given up.
func TestWhileUnfinished(t *testing.T) {
	from, to := shared("from"), shared("to")
	s, replica := fill(t, from), from.open(t, false)
	idle := to.open(t, false) // somebody has started a server on the empty target
	third := to.failing(&storagetest.Fault{Method: "Create", N: 3})
	_, err := migrate.Run(t.Context(), migrate.Options{From: s, To: third.open(t, true)})
	if !errors.Is(err, storagetest.ErrFault) {
		t.Fatal(err)
	}
	if err := pushImage(t.Context(), replica, "team/app0", "v9", 99); err != nil {
		t.Errorf("a push to the source: %v", err)
	}
	for _, side := range []migrate.Side{s, replica} {
		c := &storage.Collector{Blobs: side.Blobs, Index: side.Index}
		if _, err := side.Index.CatchUp(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		_, err := c.Run(t.Context(), false, nil)
		if !errors.Is(err, storage.ErrMigrating) || !strings.Contains(err.Error(), "trow migrate") {
			t.Errorf("a collection: %v", err)
		}
		if _, err := c.Run(t.Context(), true, nil); err != nil {
			t.Errorf("a collection that only looks: %v", err)
		}
	}
	var sealed *storage.SealedError
	if err := pushImage(t.Context(), idle, "team/app0", "v9", 99); !errors.As(err, &sealed) || sealed.Moved() {
		t.Errorf("a push to the target: %v", err)
	}
	if _, err := to.index(t, false); !errors.As(err, &sealed) || !strings.Contains(err.Error(), "trow migrate") {
		t.Errorf("a server on the target: %v", err)
	}
	stranger := fill(t, shared("stranger"))
	_, err = migrate.Run(t.Context(), migrate.Options{From: stranger, To: to.open(t, true)})
	if !errors.Is(err, migrate.ErrNotEmpty) {
		t.Errorf("from another source: %v", err)
	}
	_, err = migrate.Run(t.Context(), migrate.Options{From: s, To: shared("third").open(t, true)})
	if !errors.Is(err, migrate.ErrOther) {
		t.Errorf("to another target: %v", err)
	}
	m, found, err := migrate.Cancel(t.Context(), s.Index)
	if err != nil || !found || m.To != "to" {
		t.Errorf("giving it up: %+v, %v, %v", m, found, err)
	}
	if _, err := (&storage.Collector{Blobs: s.Blobs, Index: s.Index}).Run(t.Context(), false, nil); err != nil {
		t.Errorf("a collection after that: %v", err)
	}
	if _, err := migrate.Run(t.Context(), migrate.Options{From: s, To: shared("third").open(t, true)}); err != nil {
		t.Errorf("another one after that: %v", err)
	}
}

// TestATargetThatIsInUse is refused, and stays as it is.
func TestATargetThatIsInUse(t *testing.T) {
	from, to := single("from"), shared("to")
	s := fill(t, from)
	fill(t, to)
	before := to.dump(t)
	_, err := migrate.Run(t.Context(), migrate.Options{From: s, To: to.open(t, true)})
	if !errors.Is(err, migrate.ErrNotEmpty) || !maps.Equal(before, to.dump(t)) || s.Index.Resting() != nil {
		t.Errorf("%v; the source rests: %v", err, s.Index.Resting())
	}
}

// TestALaterRunTakesOver: an earlier one that goes on somewhere commits nothing any more.
func TestALaterRunTakesOver(t *testing.T) {
	to := shared("to")
	first, second := to.open(t, true), to.open(t, true)
	for i, x := range []*storage.Index{first.Index, second.Index} {
		if err := x.Seal(t.Context(), storage.Migration{ID: "id", From: "from", Run: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	fact := storage.Fact{Kind: storage.KindTag, Name: "a"} // to delete
	if err := first.Index.CopyFacts(t.Context(), "r", []storage.Fact{fact}); err == nil ||
		!strings.Contains(err.Error(), "another run") {
		t.Errorf("the first one: %v", err)
	}
	if err := first.Index.Unseal(t.Context(), storage.Migration{ID: "id"}); err == nil {
		t.Error("the first one ends the migration")
	}
	if err := second.Index.CopyFacts(t.Context(), "r", []storage.Fact{fact}); err != nil {
		t.Errorf("the second one: %v", err)
	}
}

// TestLostContent is quarantined at the target, and named. The migration goes on without it.
func TestLostContent(t *testing.T) {
	from, to := single("from"), shared("to")
	s := fill(t, from)
	missing, broken := digest.FromString("layer 0"), digest.FromString("layer 1")
	if err := s.Blobs.Delete(t.Context(), missing); err != nil {
		t.Fatal(err)
	}
	s.Blobs = damaged{s.Blobs, broken}
	target := to.open(t, true)
	done, err := migrate.Run(t.Context(), migrate.Options{From: s, To: target})
	if err != nil || len(done.Lost) != 2 {
		t.Fatalf("%+v, %v", done, err)
	}
	for _, d := range []digest.Digest{missing, broken} {
		if !target.Index.Quarantined(d) || s.Index.Quarantined(d) {
			t.Errorf("%s is quarantined at the target: %v, at the source: %v", d, target.Index.Quarantined(d),
				s.Index.Quarantined(d))
		}
	}
}

type damaged struct {
	storage.Blobs
	digest digest.Digest
}

func (b damaged) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	if d == b.digest {
		return struct {
			io.ReadSeeker
			io.Closer
		}{bytes.NewReader([]byte("other bytes")), io.NopCloser(nil)}, nil
	}
	return b.Blobs.Open(ctx, d)
}

// healed has bytes that are missing until the source is sealed, as if a client had pushed them again just before that.
type healed struct {
	storage.Blobs
	digest digest.Digest
	index  *storage.Index
}

func (b healed) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	if d == b.digest && b.index.Sealed() == nil {
		return nil, storage.ErrNotFound
	}
	return b.Blobs.Open(ctx, d)
}

// TestContentThatIsHealedMeanwhileIsNotLost: a push of what is damaged adds no fact by which it would be noticed.
func TestContentThatIsHealedMeanwhileIsNotLost(t *testing.T) {
	from, to := single("from"), shared("to")
	s := fill(t, from)
	d := digest.FromString("layer 0")
	s.Blobs = healed{s.Blobs, d, s.Index}
	target := to.open(t, true)
	done, err := migrate.Run(t.Context(), migrate.Options{From: s, To: target})
	if err != nil || len(done.Lost) > 0 {
		t.Errorf("%+v, %v", done, err)
	}
	if _, err := target.Blobs.Stat(t.Context(), d); err != nil || target.Index.Quarantined(d) {
		t.Errorf("at the target: %v, quarantined: %v", err, target.Index.Quarantined(d))
	}
}

// TestWhatTheTargetHasTooMuchIsFoundFirst: the full state may be complete, and changes follow, at the moment before
// what was found is taken. The tag that only the target has must end with the manifest that it names, not after it.
func TestWhatTheTargetHasTooMuchIsFoundFirst(t *testing.T) {
	target := shared("to").open(t, true)
	if err := pushImage(t.Context(), target, "app", "stale", 1); err != nil {
		t.Fatal(err)
	}
	m := migrate.NewPass(t.Context(), t, target)
	// The source has the manifest without a tag, and loses it after its full state.
	var held []storage.Fact
	_ = target.Journal.Watch(t.Context(), func(u storage.Update) error {
		for _, b := range u.Batches {
			for _, f := range b.Facts {
				if b.Repo == "app" && f.Kind != storage.KindTag {
					held = append(held, f)
				}
			}
		}
		return errors.New("enough")
	})
	first := m.Take() // before the full state is complete
	m.Apply(storage.Update{Synced: true, Batches: []storage.Batch{{Repo: "app", Facts: held}}})
	for _, f := range held {
		if f.Kind == storage.KindManifest {
			f.Value = nil
			m.Apply(storage.Update{Batches: []storage.Batch{{Repo: "app", Facts: []storage.Fact{f}}}})
		}
	}
	if second := m.Take(); first != 0 || second != 2 { // the manifest and its tag
		t.Errorf("%d and %d facts were taken together", first, second)
	}
}

// TestFromADirectoryAndBack moves a data directory to a journal and objects for several processes, and back.
func TestFromADirectoryAndBack(t *testing.T) {
	directory := func(name string) *place {
		dir := t.TempDir()
		j, err := bolt.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { j.Close() })
		b, err := disk.Open(dir, disk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return &place{name, j, func(storage.Records) storage.Blobs { return b }}
	}
	first, middle, last := directory("first"), shared("middle"), directory("last")
	moveInUse(t, first, middle, 10_000, 1, 1)
	moveInUse(t, middle, last, 10_000, 1, 2)
}

func TestPlan(t *testing.T) {
	from, to := single("from"), shared("to")
	s := fill(t, from)
	target := to.open(t, true)
	p, err := migrate.PlanOf(t.Context(), s, &target)
	if err != nil || p.Repos != 2 || p.Contents != 15 || p.Tags != 6 || p.Bytes == 0 || p.Estimate <= 0 {
		t.Errorf("%+v, %v", p, err)
	}
	if s.Index.Resting() != nil || target.Index.Sealed() != nil || !target.Index.Empty() {
		t.Error("a plan changes something")
	}
	fill(t, to)
	if _, err := migrate.PlanOf(t.Context(), s, &target); !errors.Is(err, migrate.ErrNotEmpty) {
		t.Errorf("a target in use: %v", err)
	}
}

// named is an engine for bytes that keeps the identity of its pair.
type named struct {
	storage.Placed
	id *string
}

func (b named) Identity(context.Context) (string, error) { return *b.id, nil }

func (b named) SetIdentity(_ context.Context, id string) error {
	*b.id = id
	return nil
}

// TestTheTargetHasAnIdentityOfItsOwn, with which its servers know that journal and blobs belong together.
func TestTheTargetHasAnIdentityOfItsOwn(t *testing.T) {
	identify := func(name, id string) (*place, *string) {
		p, service := shared(name), memory.NewService()
		p.blobs = func(r storage.Records) storage.Blobs {
			return named{&memory.Objects{Service: service, Records: r}, &id}
		}
		return p, &id
	}
	from, source := identify("from", "the source's")
	s := fill(t, from)
	if err := s.Index.SetRecord(t.Context(), storage.IdentityRecord, nil, []byte(*source)); err != nil {
		t.Fatal(err)
	}
	other, _ := identify("other", "of another journal")
	_, err := migrate.Run(t.Context(), migrate.Options{From: s, To: other.open(t, true)})
	if !errors.Is(err, migrate.ErrNotEmpty) {
		t.Errorf("to the blobs of another journal: %v", err)
	}
	if _, _, err := migrate.Cancel(t.Context(), s.Index); err != nil {
		t.Fatal(err)
	}
	to, id := identify("to", "")
	target := to.open(t, true)
	if _, err := migrate.Run(t.Context(), migrate.Options{From: s, To: target}); err != nil {
		t.Fatal(err)
	}
	mine, err := target.Index.Record(t.Context(), storage.IdentityRecord)
	if err != nil || *id == "" || string(mine) != *id || *id == *source {
		t.Errorf("the journal has %q, %v, and the blobs %q", mine, err, *id)
	}
	wantEqual(t, from, to)
}
