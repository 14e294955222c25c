package storage_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

const mib = 1 << 20

// receiver is a process that receives uploads under a quota of team/.
type receiver struct {
	*storage.Index
	uploads *storage.Uploads
	name    string
}

func receivers(t *testing.T, j storage.Journal, n int, quota int64) (all []*receiver) {
	for i := range n {
		r := &receiver{uploads: storage.NewUploads(), name: fmt.Sprint("replica-", i)}
		r.Index = storagetest.OpenIndexWith(t, j, storage.IndexOptions{Uploads: r.uploads})
		r.SetQuotas(team(quota))
		beat(t, r)
		all = append(all, r)
	}
	return all
}

func beat(t *testing.T, r *receiver) {
	t.Helper()
	if err := r.Beat(t.Context(), r.name); err != nil {
		t.Fatal(err)
	}
}

func (r *receiver) begin(i int) *storage.OpenUpload {
	return r.uploads.Begin(fmt.Sprint("team/", i), 0)
}

// reserved returns how many reservations there are.
func (r *receiver) reserved() (n int) {
	for range r.Records(storage.ReservedRecord) {
		n++
	}
	return n
}

// amount returns how much one reserves, in bytes.
func (r *receiver) amount(t *testing.T) (n int64) {
	t.Helper()
	var all map[string]int64
	for name, value := range r.Records(storage.ReservedRecord + r.name) {
		if err := json.Unmarshal(value, &all); err != nil {
			t.Fatal(name, err)
		}
	}
	for _, bytes := range all {
		n += bytes
	}
	return n
}

func isOver(err error) bool { return errors.As(err, new(*storage.QuotaError)) }

// grow grows an upload, and fails the test if a quota decides otherwise.
func grow(t *testing.T, u *storage.OpenUpload, n int64, over bool) {
	t.Helper()
	if err := u.Grow(n, true); isOver(err) != over || !over && err != nil {
		t.Errorf("%d bytes more: %v; over the quota: %v", n, err, over)
	}
}

// TestOpenUploadsOfAllReplicasStayWithinAQuota, received at once: nothing shows them to the other replicas but the
// reservations.
func TestOpenUploadsOfAllReplicasStayWithinAQuota(t *testing.T) {
	const quota, piece = 300 * mib, 256 << 10
	all := receivers(t, sharedJournal(), 3, quota)
	var held atomic.Int64
	var wg sync.WaitGroup
	for i, r := range all {
		for range 4 {
			wg.Go(func() {
				u := r.begin(i)
				for {
					err := u.Grow(piece, true)
					if isOver(err) {
						return
					} else if err != nil {
						t.Error(err)
						return
					}
					if n := held.Add(piece); n > quota {
						t.Errorf("%d bytes are open, %d more than the quota", n, n-quota)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	if n := held.Load(); n < quota-16*mib {
		t.Errorf("%d bytes are open: %d of the quota were not given to anyone", n, quota-n)
	}
	var open int64
	for _, r := range all {
		open += r.Quotas()[0].Open
	}
	if open != held.Load() {
		t.Errorf("all replicas together show %d open bytes, want %d: without what is only reserved", open, held.Load())
	}
}

// TestWhatIsReceivedIsAccepted, whatever the other replicas do meanwhile, and all of it is never more than the quota.
func TestWhatIsReceivedIsAccepted(t *testing.T) {
	const quota = 400 * mib
	all := receivers(t, sharedJournal(), 3, quota)
	var mu sync.Mutex
	var held int64 // open, or linked
	change := func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		if held += n; held > quota {
			t.Errorf("%d bytes are held, %d more than the quota", held, held-quota)
		}
	}
	var blob atomic.Int64
	var wg sync.WaitGroup
	for _, r := range all {
		for range 3 {
			wg.Go(func() {
				for {
					id := int(blob.Add(1))
					repo := fmt.Sprint("team/", id%5)
					u, size := r.uploads.Begin(repo, 0), int64(0)
					var err error
					for range rand.N(12) {
						n := rand.N[int64](4 * mib)
						if err = u.Grow(n, true); err != nil {
							break
						}
						size += n
						change(n)
					}
					if err != nil && !isOver(err) {
						t.Error(err)
					}
					if err != nil || rand.N(3) == 0 {
						change(-size)
						u.End()
						if err != nil {
							return
						}
						continue
					}
					u.Commit(digestOf("blob", id))
					if err := r.Update(t.Context(), repo, link(id, size)); err != nil {
						t.Errorf("an upload of %d bytes was received, and then: %v", size, err)
					}
				}
			})
		}
	}
	wg.Wait()
}

// TestAReservationIsGivenBack when the uploads end: at once if it is large, and soon in any case.
func TestAReservationIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := receivers(t, sharedJournal(), 2, 100*mib)
		a, b := all[0].begin(0), all[1].begin(1)
		grow(t, a, 90*mib, false)
		grow(t, b, 50*mib, true)
		a.End()
		grow(t, b, 50*mib, false)
		a = all[0].begin(0)
		grow(t, a, mib, false)
		a.End()
		if all[0].reserved() != 2 {
			t.Error("a step is not kept for the next upload")
		}
		time.Sleep(time.Minute)
		if all[0].reserved() != 1 {
			t.Error("the step is kept although there are no uploads")
		}
		b.Commit(digestOf("blob", 1))
		storagetest.Update(t, all[1].Index, "team/1", link(1, 50*mib))
		a = all[0].begin(0)
		grow(t, a, 45*mib, false) // what is linked counts once
		a.End()
		time.Sleep(time.Minute)
		if n := all[0].reserved(); n != 0 {
			t.Errorf("%d reservations without uploads", n)
		}
	})
}

// wantAmount fails the test unless one reserves so many bytes.
func (r *receiver) wantAmount(t *testing.T, what string, want int64) {
	t.Helper()
	if got := r.amount(t); got != want {
		t.Errorf("%s: %d bytes are reserved, want %d", what, got, want)
	}
}

// TestHowMuchIsReserved: what uploads have, and a step, but no more than a quarter of what is left.
func TestHowMuchIsReserved(t *testing.T) {
	const step = 100 * mib / 16
	synctest.Test(t, func(t *testing.T) {
		all := receivers(t, sharedJournal(), 2, 100*mib)
		synctest.Wait()
		u := all[0].begin(0)
		grow(t, u, 60*mib, false)
		all[0].wantAmount(t, "60 MiB", 60*mib+step)
		u.Recorded(5 * mib)
		grow(t, u, 7*mib, false)
		all[0].wantAmount(t, "7 MiB more, of which 5 are recorded", 62*mib+step)
		u.End()
		synctest.Wait()
		all[0].wantAmount(t, "no upload", step)

		v := all[1].begin(1)
		grow(t, v, 90*mib-step, false)
		all[1].wantAmount(t, "all but 10 MiB, a step of which is another's", 90*mib-step+10*mib/4)
		v.End()
		synctest.Wait()
		u = all[0].begin(0)
		grow(t, u, 90*mib-step, false)
		all[0].wantAmount(t, "the same again", 90*mib-step+10*mib/4)
	})
}

// TestWhatOthersReserveBoundsACommit that links what was not uploaded, such as a mount.
func TestWhatOthersReserveBoundsACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := receivers(t, sharedJournal(), 2, 100*mib)
		synctest.Wait()
		grow(t, all[0].begin(0), 60*mib, false)
		if err := all[1].Update(t.Context(), "team/1", link(1, 37*mib)); err == nil ||
			!strings.HasPrefix(err.Error(), "over:") {
			t.Errorf("37 MiB beside 66.25 that another one has reserved: %v", err)
		}
		storagetest.Update(t, all[1].Index, "team/1", link(2, 33*mib))
	})
}

// TestWhatIsRecordedIsSpentOnce, however often a record is made, and also where the quotas change.
func TestWhatIsRecordedIsSpentOnce(t *testing.T) {
	const step = 100 * mib / 16
	synctest.Test(t, func(t *testing.T) {
		r := receivers(t, sharedJournal(), 1, 100*mib)[0]
		synctest.Wait()
		var none *storage.OpenUpload
		none.Recorded(1)
		u, other := r.begin(0), r.begin(1)
		grow(t, u, 60*mib, false)
		u.Recorded(2 * mib)
		u.Recorded(5 * mib)
		other.Recorded(4 * mib) // at another process
		other.Recorded(6 * mib)
		grow(t, u, 6*mib, false) // of the step
		r.wantAmount(t, "what fits is taken", 60*mib+step)
		r.SetQuotas(team(100 * mib))
		grow(t, u, mib, false)
		r.wantAmount(t, "reserved anew with other quotas", 62*mib+step)
		other.End()
		other.Recorded(50 * mib)
		grow(t, r.begin(1), 30*mib, false)
	})
}

// TestAProcessCommitsNoMoreThanNeeded for what it has reserved: once for each change, and nothing while it is idle.
func TestAProcessCommitsNoMoreThanNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := sharedJournal()
		var commits atomic.Int64
		r := receivers(t, hooked{j, func(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
			commits.Add(1)
			return j.Commit(ctx, b...)
		}}, 1, 100*mib)[0]
		synctest.Wait()
		u, before := r.begin(0), commits.Load()
		once := func(what string) {
			t.Helper()
			now := commits.Load()
			if now != before+1 {
				t.Errorf("%s: %d commits, want 1", what, now-before)
			}
			before = now
		}
		grow(t, u, 60*mib, false)
		once("the first bytes")
		time.Sleep(11 * time.Second)
		r.wantAmount(t, "no step is kept", 60*mib)
		once("no step is kept")
		u.Recorded(20 * mib)
		synctest.Wait()
		r.wantAmount(t, "what is recorded is given back", 40*mib)
		once("what is recorded is given back")
		grow(t, u, mib, false)
		once("more bytes")
		time.Sleep(16 * time.Second) // a step is given back after 10 to 15
		once("no step is kept again")
		time.Sleep(time.Minute)
		if n := commits.Load() - before; n != 0 {
			t.Errorf("%d commits in a minute", n)
		}
	})
}

// TestWhoFindsNoRoomWaitsNoLongerThanNeeded: not at all if others have reserved nothing, and else until they have given
// back what they do not use.
func TestWhoFindsNoRoomWaitsNoLongerThanNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := receivers(t, sharedJournal(), 2, 100*mib)
		synctest.Wait()
		begun := time.Now()
		grow(t, all[0].begin(0), 101*mib, true)
		grow(t, all[0].begin(0), 60*mib, false)
		grow(t, all[1].begin(1), 37*mib, false)
		if took := time.Since(begun); took > 0 {
			t.Errorf("it took %v", took)
		}
		all[0].wantAmount(t, "another one wants it", 60*mib)
		var over *storage.QuotaError
		err := all[1].begin(1).Grow(4*mib, true)
		if !errors.As(err, &over) || over.Excess.Open != 97*mib || over.Excess.Used != 97*mib {
			t.Errorf("%v, want an error that says that 97 MiB are open", err)
		}
		if took := time.Since(begun); took != time.Second {
			t.Errorf("it waited for %v for what others use", took)
		}
	})
}

// TestACommitReservesBesideWhatItAdds: facts of the same commit are not in the usage yet.
func TestACommitReservesBesideWhatItAdds(t *testing.T) {
	for added, want := range map[int64]int64{20 * mib: 60*mib + 5*mib, 41 * mib: 0} {
		synctest.Test(t, func(t *testing.T) {
			j, gate, commits := gated(sharedJournal())
			open := make(chan struct{})
			go func() {
				for {
					select {
					case gate <- struct{}{}:
					case <-open:
						<-t.Context().Done()
						return
					}
				}
			}()
			r := receivers(t, j, 1, 100*mib)[0]
			synctest.Wait()
			close(open) // from now on commits wait
			synctest.Wait()
			before := commits.Load()
			var all sync.WaitGroup
			all.Go(func() { storagetest.Update(t, r.Index, "other", link(9, 1)) })
			synctest.Wait()
			all.Go(func() { storagetest.Update(t, r.Index, "team/1", link(1, added)) })
			synctest.Wait()
			all.Go(func() { grow(t, r.begin(0), 60*mib, want == 0) })
			synctest.Wait()
			close(gate)
			all.Wait()
			r.wantAmount(t, fmt.Sprint(added, " bytes are added"), want)
			if n := commits.Load() - before; want > 0 && n != 2 {
				t.Errorf("%d commits, want one for both", n)
			}
		})
	}
}

// TestHowMuchOfAReservationIsGivenBack: what is left beyond a step, at once, if that is more than a step; all that is
// left, once no upload has grown for 10 seconds. A step of 100 MiB is a sixteenth.
func TestHowMuchOfAReservationIsGivenBack(t *testing.T) {
	const step = 100 * mib / 16
	for name, row := range map[string]struct {
		shrink, recorded int64
		want             int64 // of the reservation of 60 MiB and a step: at once, and
		after            int64 // when 6 seconds have passed
	}{
		"nothing":           {0, 0, 60*mib + step, 60*mib + step},
		"a step":            {step, 0, 60*mib + step, 60*mib + step},
		"more than that":    {step + 1, 0, 60*mib - 1, 60*mib - 1},
		"much":              {40 * mib, 0, 20*mib + step, 20*mib + step},
		"a little recorded": {0, 4 * mib, 60*mib + step, 60*mib + step},
		"much recorded":     {0, 7 * mib, 53*mib + step, 53*mib + step},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := receivers(t, sharedJournal(), 1, 100*mib)[0]
				synctest.Wait() // it has loaded the Journal
				u := r.begin(0)
				grow(t, u, 60*mib, false)
				if row.recorded > 0 {
					u.Recorded(row.recorded)
				}
				u.Shrink(row.shrink)
				for i, want := range []int64{row.want, row.after, 60*mib - row.shrink - row.recorded} {
					synctest.Wait()
					r.wantAmount(t, fmt.Sprintf("after %d s", []int{0, 6, 11}[i]), want)
					time.Sleep([]time.Duration{6, 5, 0}[i] * time.Second)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // an upload that ends
		r := receivers(t, sharedJournal(), 1, 100*mib)[0]
		synctest.Wait()
		u := r.begin(0)
		grow(t, u, mib, false)
		u.End()
		for i, want := range []int64{mib + step, mib + step, mib + step, 0} {
			r.wantAmount(t, fmt.Sprintf("after %d s", []int{0, 4, 9, 11}[i]), want)
			time.Sleep([]time.Duration{4, 5, 2, 0}[i] * time.Second)
		}
	})
}

// TestWhatIsGivenBackIsNotTaken while that is committed: an upload takes what stays, and waits for more.
func TestWhatIsGivenBackIsNotTaken(t *testing.T) {
	j := sharedJournal()
	var during atomic.Pointer[func()]
	r := receivers(t, hooked{j, func(ctx context.Context, batches ...storage.Batch) (storage.Revision, error) {
		if f := during.Swap(nil); f != nil {
			(*f)()
		}
		return j.Commit(ctx, batches...)
	}}, 1, 100*mib)[0]
	if err := r.uploads.GiveBack(t.Context()); err != nil { // as at each start
		t.Fatal(err)
	}
	u := r.begin(0)
	grow(t, u, 60*mib, false)
	took := make(chan struct{})
	take := func(n int64) {
		grow(t, u, n, false)
		took <- struct{}{}
	}
	var mu sync.Mutex // held until it is committed
	mu.Lock()
	f := func() { // 40 MiB are open, and a step of 6.25 MiB stays
		defer mu.Unlock()
		go take(6 * mib)
		select {
		case <-took:
		case <-time.After(10 * time.Second):
			t.Error("what stays is not taken")
		}
		go take(3 * mib)
		select {
		case <-took:
			t.Error("what is given back is taken")
		case <-time.After(50 * time.Millisecond):
		}
	}
	during.Store(&f)
	u.Shrink(20 * mib)
	mu.Lock()
	<-took
	if got, most := r.amount(t), int64(49*mib+100*mib/16); got < 49*mib || got > most {
		t.Errorf("%d bytes are reserved for 49 MiB", got)
	}
}

// TestTheReservationOfAReplicaThatDiedEnds, and that of one which leaves ends at once.
func TestTheReservationOfAReplicaThatDiedEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := receivers(t, sharedJournal(), 3, 100*mib)
		grow(t, all[0].begin(0), 90*mib, false)
		all[0].Close()
		b := all[1].begin(1)
		grow(t, b, 50*mib, true)
		for range 6 {
			time.Sleep(storage.BeatInterval)
			beat(t, all[1])
			beat(t, all[2])
		}
		grow(t, b, 50*mib, false)
		if n := all[1].reserved(); n != 1 {
			t.Errorf("%d reservations, want that of the replica that lives", n)
		}
		c := all[2].begin(2)
		grow(t, c, 60*mib, true)
		if err := all[1].Leave(t.Context(), all[1].name); err != nil {
			t.Fatal(err)
		}
		if n := all[2].reserved(); n != 0 {
			t.Errorf("%d reservations after the only one has left", n)
		}
		grow(t, c, 60*mib, false)
	})
}

// TestAReservationFromBeforeARestart is not taken for uploads of now.
func TestAReservationFromBeforeARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := sharedJournal()
		all := receivers(t, j, 2, 100*mib)
		grow(t, all[0].begin(0), 60*mib, false)
		all[0].Close()
		again := receivers(t, j, 1, 100*mib)[0]
		grow(t, again.begin(0), 60*mib, false)
		grow(t, all[1].begin(1), 60*mib, true)
		time.Sleep(time.Minute)
		grow(t, all[1].begin(1), 39*mib, false)
	})
}

// TestWhoHasNoQuotaReservesNothing: neither repositories without one, nor the only process of a journal.
func TestWhoHasNoQuotaReservesNothing(t *testing.T) {
	commits := 0
	count := func(j storage.Journal) storage.Journal {
		return watched(j, func(b []storage.Batch) error {
			for i := range b {
				for _, f := range b[i].Facts {
					if strings.HasPrefix(f.Name, "quota/") {
						commits++
					}
				}
			}
			return nil
		})
	}
	shared := receivers(t, count(sharedJournal()), 1, mib)[0]
	alone := receivers(t, count(memory.NewJournal()), 1, mib)[0]
	free := receivers(t, count(sharedJournal()), 1, mib)[0]
	free.SetQuotas(nil)
	for _, u := range []*storage.OpenUpload{shared.uploads.Begin("other", 0), alone.uploads.Begin("team/a", 0),
		free.uploads.Begin("team/a", 0)} {
		grow(t, u, mib, false)
		u.End()
	}
	u := alone.uploads.Begin("team/a", 0)
	grow(t, u, mib, false)
	u.Recorded(mib)
	u.Commit(digestOf("blob", 1))
	if commits != 0 {
		t.Errorf("%d records of quotas were written", commits)
	}
	// A step serves many small uploads.
	shared.SetQuotas(team(1000 * mib))
	for range 100 {
		u := shared.begin(1)
		grow(t, u, 100<<10, false)
		u.End()
	}
	if commits != 2 { // the reservation, and that of the quota
		t.Errorf("%d records of quotas were written for uploads that fit into a step", commits)
	}
}

// TestARecordOfAnUploadTakesTheReservation: what it has counts by the record, and until the upload is a blob again by
// the reservation.
func TestARecordOfAnUploadTakesTheReservation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := receivers(t, sharedJournal(), 2, 100*mib)
		other := all[1].begin(0)
		var recorded atomic.Int64
		had := int64(0)
		all[1].uploads.CountWith(func() {
			n := recorded.Load()
			other.Recorded(n)
			other.Shrink(had - n)
			had = n
		})
		u := all[0].begin(0)
		grow(t, u, 80*mib, false)
		recorded.Store(80 * mib)
		u.Recorded(80 * mib)
		b := all[1].begin(1)
		grow(t, b, 30*mib, true)
		grow(t, b, 15*mib, false)
		u.Commit(digestOf("blob", 1)) // its record ends after this
		recorded.Store(0)
		grow(t, b, 10*mib, true)
		storagetest.Update(t, all[0].Index, "team/0", link(1, 80*mib))
		grow(t, b, 5*mib, false)
	})
}

// TestWhatIsSpentIsNotTakenAgain: a replica that does not know yet what the records of others have takes no more than
// it has reserved, and what is in a record is a part of that.
func TestWhatIsSpentIsNotTakenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all := receivers(t, sharedJournal(), 2, 100*mib)
		a, b := all[0].begin(0), all[1].begin(1)
		grow(t, a, 6*mib, false)
		grow(t, b, 87*mib, false)
		others := all[0].begin(1)
		all[0].uploads.CountWith(func() { others.Recorded(87 * mib) }) // before it raises a reservation
		a.Recorded(6 * mib)
		b.Recorded(87 * mib)
		synctest.Wait() // the other replica gives back what it does not need any more
		grow(t, a, 6*mib, false)
		grow(t, a, 2*mib, true)
	})
}

// TestTwoReplicasReserveAtOnce, and only one of them finds room.
func TestTwoReplicasReserveAtOnce(t *testing.T) {
	j := sharedJournal()
	b := receivers(t, j, 1, 100*mib)[0]
	b.name = "b"
	beat(t, b)
	var other *storage.OpenUpload
	var lost error
	a := receivers(t, hooked{j, func(ctx context.Context, batches ...storage.Batch) (storage.Revision, error) {
		u := other
		if other = nil; u == nil {
			return j.Commit(ctx, batches...)
		}
		grow(t, u, 60*mib, false) // between what the first one has added up, and its commit
		rev, err := j.Commit(ctx, batches...)
		lost = err
		return rev, err
	}}, 1, 100*mib)[0]
	other = b.begin(1)
	grow(t, a.begin(0), 60*mib, true)
	if !errors.Is(lost, storage.ErrConflict) {
		t.Errorf("both have reserved 60 of 100 MiB: %v", lost)
	}
}

// TestAnUploadWithoutAJournal is refused once its step is used, and not without end.
func TestAnUploadWithoutAJournal(t *testing.T) {
	broken := errors.New("broken")
	var fail atomic.Bool
	inner := sharedJournal()
	j := watched(inner, func([]storage.Batch) error {
		if fail.Load() {
			return broken
		}
		return nil
	})
	r := receivers(t, j, 1, 1000*mib)[0]
	u := r.begin(0)
	grow(t, u, mib, false)
	fail.Store(true)
	grow(t, u, 10*mib, false)
	if err := u.Grow(100*mib, true); !errors.Is(err, broken) {
		t.Errorf("without a journal: %v", err)
	}
	fail.Store(false)
	grow(t, u, 100*mib, false)
	if n := r.Quotas()[0].Open; n != 111*mib {
		t.Errorf("%d bytes are open", n)
	}
}
