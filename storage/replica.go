package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Where several processes share a journal, each has a record, which it renews once in a while: the time of its clock,
// and which format it knows (see format.go). Links and what deleted manifests leave have times of such clocks, and the
// Collector unlinks by their age. So it compares each clock with its own, at the moment at which a record shows: a
// record that is not renewed, because its process has stopped, says nothing more about a clock than it did then. A
// record that comes late makes a clock seem behind, until the next one; the Collector then waits, which is no harm.

// BeatInterval is how often a process calls Beat.
const BeatInterval = time.Minute

// ErrClocks: the clocks of processes that share a journal differ.
var ErrClocks = errors.New("the clocks of the replicas differ")

// replicaRecord begins the names of the records.
const replicaRecord = "replica/"

// replica is what is known of another process.
type replica struct {
	clock time.Time // when it wrote its record, by its own clock
	seen  time.Time // when the record showed here
	fresh bool      // the record was seen to come: one that was loaded may be of any age

	format int // that it knows
}

// ahead compares its clock with the one here. The time since the record showed is that of a timer, not of a clock: so
// it does not matter which of the two was set wrong, nor whether that was before or after.
func (r replica) ahead() time.Duration {
	return time.Until(r.clock.Add(time.Since(r.seen)))
}

func replicaValue(clock time.Time, format int) []byte {
	return binary.AppendUvarint(binary.AppendVarint(nil, clock.UnixNano()), uint64(format))
}

// noteReplica keeps what a record says of its process.
func (s *state) noteReplica(record string, value []byte) {
	name, ok := strings.CutPrefix(record, replicaRecord)
	if !ok {
		return
	}
	r := reader{buf: value}
	nanos, format := r.number(), r.length()
	if value == nil || r.err != nil {
		delete(s.replicas, name)
		return
	}
	if s.replicas == nil {
		s.replicas = map[string]replica{}
	}
	s.replicas[strings.Clone(name)] = replica{clock: time.Unix(0, nanos), seen: time.Now(), fresh: s.synced,
		format: int(format)}
}

// Beat records that this process is there, the time of its clock and the format that it knows. name is different for
// each process. Call it every BeatInterval. Errors: ErrFormat; as Update.
func (x *Index) Beat(ctx context.Context, name string) error {
	x.mu.Lock()
	x.name = name
	x.mu.Unlock()
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		if err := tx.agree(name); err != nil {
			return err
		}
		tx.setRecord(replicaRecord+name, replicaValue(time.Now(), x.format())) // now, not when Beat was called
		return nil
	})
}

// Leave ends the record of Beat. Errors: as Update.
func (x *Index) Leave(ctx context.Context, name string) error {
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		tx.setRecord(replicaRecord+name, nil)
		return nil
	})
}

// minTolerance is what clocks may differ by in any case: records take their time, and ages are whole seconds.
const minTolerance = 5 * time.Second

// clocks compares the clocks of all processes with the one here. It returns an ErrClocks if one differs by more than a
// tenth of the grace. A clock that was wrong counts for the grace even if its process is not there any more: what it
// has recorded is as wrong. unsure reports that a process may be there whose clock is not known yet.
func (x *Index) clocks(grace time.Duration) (unsure bool, err error) {
	tolerance, wait := max(grace/10, minTolerance), 2*BeatInterval
	var wrong []string
	x.mu.RLock()
	defer x.mu.RUnlock()
	for name, r := range x.state.replicas {
		age, ahead := time.Since(r.seen), r.ahead()
		if name == x.name || ahead.Abs() <= tolerance || age > wait && (!r.fresh || age > wait+grace) {
			continue
		}
		if !r.fresh { // it may have stopped long ago, or renew its record in a moment
			unsure = true
			continue
		}
		direction := "ahead of"
		if ahead < 0 {
			direction = "behind"
		}
		wrong = append(wrong, fmt.Sprintf("that of %s is %s %s this one's", name, ahead.Abs().
			Round(time.Second), direction))
	}
	if len(wrong) > 0 {
		slices.Sort(wrong)
		err = fmt.Errorf("%w by more than %s: %s; nothing was unlinked, because ages are not certain; set the "+
			"clocks, as by NTP, and the next collection goes on", ErrClocks, tolerance, strings.Join(wrong, ", "))
	}
	return unsure, err
}

// forgetReplicas ends the records of processes that have ended without Leave. One that is there all the same records
// itself again.
func (x *Index) forgetReplicas(ctx context.Context, grace time.Duration) error {
	x.mu.RLock()
	var gone []string
	for name, r := range x.state.replicas {
		if name != x.name && time.Since(r.clock) > max(24*time.Hour, 2*grace) && time.Since(r.seen) > 2*BeatInterval {
			gone = append(gone, name)
		}
	}
	x.mu.RUnlock()
	var errs []error
	for _, name := range gone {
		errs = append(errs, x.Leave(ctx, name))
	}
	return errors.Join(errs...)
}
