package storage_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// twoClocks is a process with a collector, and a journal that it shares with others.
func twoClocks(t *testing.T) (*storage.Index, *storage.Collector, *memory.Journal) {
	j := memory.NewJournal()
	j.Is = storage.Traits{Shared: true}
	x := storagetest.OpenIndexWith(t, j, storage.IndexOptions{Placed: true, Grace: sharedGrace})
	blobs := &memory.Objects{Service: memory.NewService(), Records: x}
	if err := x.Beat(t.Context(), "me"); err != nil {
		t.Fatal(err)
	}
	return x, &storage.Collector{Blobs: blobs, Index: x, Grace: sharedGrace}, j
}

// TestTheCollectorComparesClocks: ages come from the clocks of all processes, so it unlinks nothing while one differs.
func TestTheCollectorComparesClocks(t *testing.T) {
	const limit = sharedGrace / 10
	for _, tt := range []struct {
		name  string
		beats []time.Duration // how far the other clock is ahead, one a minute
		then  time.Duration   // how long after
		wrong bool
	}{
		{"ahead by the limit", []time.Duration{limit}, 0, false},
		{"behind, and a grace has just passed", []time.Duration{-limit - time.Minute},
			sharedGrace + 2*storage.BeatInterval, true},
		{"the same", []time.Duration{0}, 0, false},
		{"a little ahead", []time.Duration{limit - time.Minute}, 0, false},
		{"ahead", []time.Duration{limit + time.Minute}, 0, true},
		{"behind", []time.Duration{0, -limit - time.Minute}, 0, true},
		{"behind, and its process has ended", []time.Duration{-limit - time.Minute}, sharedGrace - time.Minute, true},
		{"behind, and a grace has passed", []time.Duration{-limit - time.Minute}, sharedGrace + 3*time.Minute, false},
		{"set right", []time.Duration{-10 * time.Hour, 0}, 0, false},
		{"its process has stopped", []time.Duration{0}, 100 * time.Hour, false},
		{"a record that came late, and the next one", []time.Duration{-2 * time.Hour, time.Second}, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x, c, _ := twoClocks(t)
				if err := hold(t.Context(), x, "a", "unused"); !errors.Is(err, storage.ErrNotFound) { // it has no bytes
					t.Fatal(err)
				}
				pushUnused(t, x, c.Blobs)
				time.Sleep(2 * sharedGrace)
				for _, ahead := range tt.beats {
					time.Sleep(storage.BeatInterval)
					if err := storage.BeatOf(t.Context(), x, "other", time.Now().Add(ahead)); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(tt.then)
				done, err := c.Run(t.Context(), false, nil)
				if got := errors.Is(err, storage.ErrClocks); got != tt.wrong || !got && err != nil {
					t.Errorf("%v, want ErrClocks: %v", err, tt.wrong)
				}
				if tt.wrong != (done.Unlinked == 0) {
					t.Errorf("%+v", done)
				}
				direction := "ahead of this one's"
				if tt.beats[len(tt.beats)-1] < 0 {
					direction = "behind this one's"
				}
				if tt.wrong && (!strings.Contains(err.Error(), "that of other is ") ||
					!strings.Contains(err.Error(), direction)) {
					t.Errorf("which clock, and how? %v", err)
				}
			})
		})
	}
}

// pushUnused pushes a blob that no manifest refers to.
func pushUnused(t *testing.T, x *storage.Index, blobs storage.Blobs) {
	t.Helper()
	u, err := blobs.Create(t.Context(), "a", "sha256")
	if err != nil {
		t.Fatal(err)
	}
	_, err = u.Write([]byte("unused"))
	release, cerr := x.Commit(t.Context(), u, digest.FromString("unused"))
	if err := errors.Join(err, cerr); err != nil {
		t.Fatal(err)
	}
	defer release()
	if err := hold(t.Context(), x, "a", "unused"); err != nil {
		t.Fatal(err)
	}
}

// TestAReplicaThatWasLoaded: its record may be of any age. It says nothing until it is renewed, for which the Collector
// waits a little, and what has ended is forgotten after a day.
func TestAReplicaThatWasLoaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, _, j := twoClocks(t)
		if err := storage.BeatOf(t.Context(), x, "other", time.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * sharedGrace)
		x.Close()
		x = storagetest.OpenIndexWith(t, j, storage.IndexOptions{Placed: true, Grace: sharedGrace})
		blobs := &memory.Objects{Service: memory.NewService(), Records: x}
		c := &storage.Collector{Blobs: blobs, Index: x, Grace: sharedGrace}
		for i, want := range []struct {
			waiting  bool
			replicas []string
		}{{true, []string{"me", "other"}}, {false, []string{"me", "other"}}, {false, nil}} {
			done, err := c.Run(t.Context(), false, nil)
			if err != nil || done.Waiting != want.waiting {
				t.Errorf("%d: %+v, %v; waiting: want %v", i, done, err, want.waiting)
			}
			if got := storage.Replicas(x); !slices.Equal(got, want.replicas) {
				t.Errorf("%d: the replicas are %v, want %v", i, got, want.replicas)
			}
			time.Sleep(3*storage.BeatInterval + time.Duration(i)*24*time.Hour)
			if i == 1 {
				_, _ = c.Run(t.Context(), false, nil)
			}
		}
	})
}

// TestForHowLongARecordThatWasLoadedIsWaitedFor: for two beats, and not a moment longer.
func TestForHowLongARecordThatWasLoadedIsWaitedFor(t *testing.T) {
	for after, want := range map[time.Duration]bool{2 * storage.BeatInterval: true, 2*storage.BeatInterval + 1: false} {
		synctest.Test(t, func(t *testing.T) {
			x, _, j := twoClocks(t)
			if err := storage.BeatOf(t.Context(), x, "other", time.Now()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * sharedGrace)
			x.Close()
			x = storagetest.OpenIndexWith(t, j, storage.IndexOptions{Placed: true, Grace: sharedGrace})
			blobs := &memory.Objects{Service: memory.NewService(), Records: x}
			c := &storage.Collector{Blobs: blobs, Index: x, Grace: sharedGrace}
			time.Sleep(after)
			if done, err := c.Run(t.Context(), false, nil); err != nil || done.Waiting != want {
				t.Errorf("after %s: %+v, %v; waiting: want %v", after, done, err, want)
			}
		})
	}
}

// TestAWrongClockIsFoundAmongRecordsThatWereLoaded, whatever else is not known.
func TestAWrongClockIsFoundAmongRecordsThatWereLoaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, _, j := twoClocks(t)
		for i := range 20 {
			if err := storage.BeatOf(t.Context(), x, fmt.Sprint("loaded ", i), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * sharedGrace)
		x.Close()
		x = storagetest.OpenIndexWith(t, j, storage.IndexOptions{Placed: true, Grace: sharedGrace})
		if err := storage.BeatOf(t.Context(), x, "wrong", time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		blobs := &memory.Objects{Service: memory.NewService(), Records: x}
		done, err := (&storage.Collector{Blobs: blobs, Index: x, Grace: sharedGrace}).Run(t.Context(), false, nil)
		if !errors.Is(err, storage.ErrClocks) || !done.Waiting {
			t.Errorf("%+v, %v", done, err)
		}
	})
}

// TestWhenAReplicaIsForgotten: a day after its last record, or two graces if they are longer, and only if it had the
// time to say that it is still there.
func TestWhenAReplicaIsForgotten(t *testing.T) {
	const short, long = time.Hour, 20 * time.Hour
	for _, tt := range []struct {
		grace, age, seen time.Duration
		forgotten        bool
	}{
		{short, 24 * time.Hour, 24 * time.Hour, false}, {short, 24*time.Hour + 1, 24*time.Hour + 1, true},
		{long, 30 * time.Hour, 30 * time.Hour, false},
		{long, 2 * long, 2 * long, false}, {long, 2*long + 1, 2*long + 1, true},
		{short, 48 * time.Hour, 2 * storage.BeatInterval, false},
		{short, 48 * time.Hour, 2*storage.BeatInterval + 1, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			x, _, j := twoClocks(t)
			if err := storage.BeatOf(t.Context(), x, "other", time.Now()); err != nil {
				t.Fatal(err)
			}
			if loaded := tt.age - tt.seen; loaded > 0 { // by a process that starts later
				time.Sleep(loaded)
				x.Close()
				x = storagetest.OpenIndexWith(t, j, storage.IndexOptions{Placed: true, Grace: tt.grace})
			}
			time.Sleep(tt.seen)
			blobs := &memory.Objects{Service: memory.NewService(), Records: x}
			c := &storage.Collector{Blobs: blobs, Index: x, Grace: tt.grace}
			if _, err := c.Run(t.Context(), false, nil); err != nil {
				t.Fatal(err)
			}
			if got := !slices.Contains(storage.Replicas(x), "other"); got != tt.forgotten {
				t.Errorf("%+v: forgotten: %v", tt, got)
			}
		})
	}
}

// TestARecordThatIsNoReplica is left out: nothing is known of its clock.
func TestARecordThatIsNoReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, c, _ := twoClocks(t)
		if err := x.SetRecord(t.Context(), "replica/damaged", nil, []byte{0xff}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(storage.BeatInterval)
		if _, err := c.Run(t.Context(), false, nil); err != nil {
			t.Error(err)
		}
	})
}
