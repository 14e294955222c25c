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

// Where several processes share a journal, each has a record, which it renews every BeatInterval: the time of its
// clock, and which format it knows (see format.go). Links and the facts of deleted manifests have times of such clocks,
// and the Collector unlinks by their age. So it compares each clock with its own, as they were when the record showed
// here: a record that is not renewed, because its process has stopped, says nothing about the clock since. A record
// that shows late makes a clock seem behind, until the next one; the Collector then waits, which does no harm.

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
	fresh bool      // the record showed as a commit; one of the full state may be of any age

	format int // that it knows
}

// ahead returns how far its clock is ahead of the one here; negative: behind. The time since the record showed is
// measured by the monotonic clock: so a clock here that was set right or wrong since then is noticed as well.
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

// Beat records that this process runs, the time of its clock and the format that it knows. name is different for each
// process. Call it every BeatInterval. Errors: ErrFormat; as Update.
func (x *Index) Beat(ctx context.Context, name string) error {
	x.mu.Lock()
	if x.name != name {
		x.name = name
		x.options.Uploads.set(x) // an earlier process of this name may have left a reservation
	}
	x.mu.Unlock()
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		if err := tx.agree(name); err != nil {
			return err
		}
		// The time of the commit, not of the call of Beat, which may have waited.
		tx.setRecord(replicaRecord+name, replicaValue(time.Now(), x.format()))
		return nil
	})
}

// Leave deletes the record of Beat, and the reservation of the process. Errors: as Update.
func (x *Index) Leave(ctx context.Context, name string) error {
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		tx.setRecord(replicaRecord+name, nil)
		if value := tx.record(reservedRecord + name); value != nil {
			tx.moveReserved(parseReservation(value), nil)
			tx.setRecord(reservedRecord+name, nil)
		}
		return nil
	})
}

// minTolerance is by how much clocks may always differ: a commit takes time to show, and ages are whole seconds.
const minTolerance = 5 * time.Second

// clocks compares the clocks of all processes with the one here. It returns an ErrClocks if one differs by more than a
// tenth of the grace, and by more than minTolerance. A wrong clock counts for the grace even if its process has ended:
// the times that it has recorded are as wrong. unsure reports that a process may run whose clock is not known yet.
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

// forgetReplicas deletes the records of processes that have ended without Leave: those not renewed for a day, or for
// twice the grace if that is longer. A process that still runs records itself again. Errors: as Update.
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
