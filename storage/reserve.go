package storage

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"sync"
	"time"
)

// Where several processes share a Journal, the bytes of an upload that is open show at the others only once a record of
// it, or a fact, has them. So each process reserves room for its open uploads: a record has how many bytes of each
// quota.
//
//   - A reservation is raised by a commit on the condition that the quota's record is as it was before all was added
//     up, and that moves it, as each commit does that adds to the quota (see guardQuotas). So what the journal has,
//     what records of uploads have, and all reservations are never more than the quota together.
//   - An upload takes bytes of the reservation without a commit. What has become a fact, or is in the record of an
//     upload, is spent: the reservation still has it, and nothing else may take it.
//   - Reservations are raised by some bytes more than needed, a step, so that few uploads take a commit. What is not
//     used is given back after giveAfter; more than two steps at once, and all of it when another process finds no room
//     and changes a record that says so.
//   - A reservation ends with its process, see Leave, or once that has not renewed its record for replicaEnd.

// reservedRecord begins the names of the records of reservations, and wantedRecord is the name of the one that says
// that a process found no room. The names of quotas do not begin with these bytes.
const (
	reservedRecord = quotaRecord + "\x00"
	wantedRecord   = quotaRecord + "\x01"
)

const (
	// minStep and maxStep bound a step, which is the stepShare-th part of the quota.
	minStep, maxStep = 4 << 20, 64 << 20
	stepShare        = 16
	// freeShare bounds a step when a quota is nearly full: most of what is left stays for other processes.
	freeShare = 4
	giveAfter = 10 * time.Second
	// waitForRoom is how long an upload waits for others to give back what they do not use.
	waitForRoom = time.Second
)

func stepOf(quota int64) int64 { return min(max(quota/stepShare, minStep), maxStep) }

// reservation is what a process has reserved, by the name of the quota. It is not changed.
type reservation map[string]int64

func (s *state) noteReserved(record string, value []byte) {
	name, ok := strings.CutPrefix(record, reservedRecord)
	if !ok {
		return
	}
	delete(s.reserved, name)
	if r := parseReservation(value); len(r) > 0 {
		if s.reserved == nil {
			s.reserved = map[string]reservation{}
		}
		s.reserved[strings.Clone(name)] = r
	}
}

func parseReservation(value []byte) (r reservation) {
	_ = json.Unmarshal(value, &r) // one of a later version, or a damaged one, reserves nothing
	return r
}

// reserves reports whether uploads need a reservation; the caller holds mu.
func (x *Index) reserves() bool { return x != nil && x.shared && x.name != "" && len(x.quotas.all) > 0 }

// lives reports whether another process has not ended; the caller holds mu.
func (s *state) lives(name string) bool {
	r, ok := s.replicas[name]
	return ok && time.Since(r.seen) <= replicaEnd
}

// reservedByOthers returns what other processes have reserved of a quota; the caller holds mu.
func (x *Index) reservedByOthers(i int) (sum int64) {
	if !x.reserves() {
		return 0
	}
	for name, r := range x.state.reserved {
		if name != x.name && x.state.lives(name) {
			sum += max(r[x.quotas.all[i].Name], 0)
		}
	}
	return sum
}

// reserving is what an Uploads knows of the reservation of its process.
type reserving struct {
	changing sync.Mutex    // held while the reservation is changed; taken before all other locks
	wasted   chan struct{} // receives if something is to be given back

	// Uploads.mu guards these.
	recount func()    // see CountWith
	spent   []int64   // of each quota: what is reserved and cannot be taken any more
	grew    time.Time // when an upload last took bytes
	wanted  bool      // another process found no room
}

// CountWith makes Uploads call count, which reports what the records of uploads have, before it decides whether a quota
// has room.
func (u *Uploads) CountWith(count func()) {
	if u == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.recount = count
}

// of returns the Index that Uploads counts for.
func (u *Uploads) of() *Index {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.index
}

// own returns how many open bytes of a quota only this process sees.
func (u *Uploads) own(i int) int64 { return u.open[i] - u.recorded[i] }

// left returns how many bytes of the reservation uploads can take. The caller holds both locks.
func (u *Uploads) left(i int) int64 {
	x := u.index
	return x.state.reserved[x.name][x.quotas.all[i].Name] - u.spent[i] - u.own(i)
}

// spend notes that bytes show to all processes now. The caller holds both locks.
func (u *Uploads) spend(r *openRepo, n int64) {
	if !u.index.reserves() {
		return
	}
	for _, i := range r.of {
		u.spent[i] += n
	}
	u.tell(r)
}

// covers reports whether n bytes more of a repo fit into the reservation, and into the quotas if they bound them. The
// caller holds both locks.
func (u *Uploads) covers(r *openRepo, n int64, bounded bool) bool {
	for _, i := range r.of {
		if _, over := u.excess(i, n); bounded && over || u.left(i) < n {
			return false
		}
	}
	return true
}

// reserve raises the reservation so that it covers n bytes more of an upload, if it does not. Errors: *QuotaError, if
// bounded; as Update.
func (o *OpenUpload) reserve(n int64, bounded bool) error {
	x := o.all.of()
	ctx, cancel := context.WithTimeout(x.ctx, reloadTimeout)
	defer cancel()
	for begun, asked := time.Now(), false; ; {
		others, err := o.raise(ctx, n, bounded)
		over := (*QuotaError)(nil)
		if !errors.As(err, &over) || others == 0 || time.Since(begun) >= waitForRoom {
			return err
		}
		if !asked {
			if err := x.want(ctx); err != nil {
				return err
			}
			asked = true
		}
		wait, end := context.WithDeadline(ctx, begun.Add(waitForRoom))
		_ = x.await(wait, func() (bool, error) { return x.reservedOf(o.repo) < others, nil })
		end()
	}
}

// want asks all processes to give back what they do not use. Errors: as Update.
func (x *Index) want(ctx context.Context) error {
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		tx.moveRecord(wantedRecord)
		return nil
	})
}

// reserveRecorded reserves what is recorded, beside the record, which is about to end. Without it another process could
// take that room before a fact has the bytes. If it fails, only that is possible, so errors are ignored.
func (o *OpenUpload) reserveRecorded() {
	due := false
	o.all.lock(func() {
		r := o.all.repos[o.repo]
		due = o.recorded > 0 && len(r.of) > 0 && o.all.index.reserves() && !o.all.covers(r, o.recorded, false)
	})
	if due {
		_ = o.reserve(o.recorded, false)
	}
}

// reservedOf returns what other processes have reserved of the quotas of a repo; the caller holds mu.
func (x *Index) reservedOf(repo string) (sum int64) {
	for _, i := range x.quotas.ofRepo(repo) {
		sum += x.reservedByOthers(i)
	}
	return sum
}

// raise is reserve without waiting. It returns what others have reserved.
func (o *OpenUpload) raise(ctx context.Context, n int64, bounded bool) (others int64, err error) {
	u, x := o.all, o.all.of()
	u.changing.Lock()
	defer u.changing.Unlock()
	covered := false
	o.all.lock(func() { covered = u.covers(u.repos[o.repo], n, bounded) })
	if covered {
		return 0, nil
	}
	err = u.change(ctx, func(tx *Tx, next reservation) error {
		others = x.reservedOf(o.repo)
		for _, i := range u.repos[o.repo].of {
			q, grown := &x.quotas.all[i], tx.grown(i)
			e, over := u.excess(i, n+grown)
			if e.Added = n; bounded && over {
				return &QuotaError{e}
			}
			more := min(stepOf(q.Bytes), max(e.Bytes-e.Used-n-grown, 0)/freeShare)
			// Never less than what uploads may take while this is committed.
			next[q.Name] = max(u.own(i)+n+more, next[q.Name])
		}
		return nil
	})
	return others, err
}

// grown returns what earlier changes of the commit add to a quota; the caller holds Index.mu.
func (tx *Tx) grown(i int) int64 {
	if tx.growth.quotas != tx.x.quotas || len(tx.growth.grown) == 0 {
		return 0
	}
	return max(tx.growth.grown[i], 0)
}

// endReservations ends those of processes that have ended.
func (tx *Tx) endReservations() {
	tx.x.mu.RLock()
	var ended []string
	for name := range tx.x.state.reserved {
		if name != tx.x.name && !tx.x.state.lives(name) {
			ended = append(ended, name)
		}
	}
	tx.x.mu.RUnlock()
	for _, name := range ended {
		tx.setRecord(reservedRecord+name, nil)
	}
}

// change commits what f makes of the reservation, which it gets without what is spent. f is called with both locks
// held, and the caller holds changing. Errors: those of f; as Update.
func (u *Uploads) change(ctx context.Context, f func(*Tx, reservation) error) error {
	x := u.of()
	var spent []int64
	var of *quotas
	err := x.Update(ctx, storeRepo, func(tx *Tx) (err error) {
		for i := range tx.growth.quotas.all { // before all is added up
			tx.committedRecord(quotaRecord + tx.growth.quotas.all[i].Name)
		}
		tx.endReservations()
		u.countRecords()
		record := reservedRecord + x.ownName()
		value := tx.record(record)
		was, next := parseReservation(value), reservation{}
		maps.Copy(next, was)
		u.lock(func() {
			for i := range x.quotas.all {
				next[x.quotas.all[i].Name] -= u.spent[i]
			}
			err = f(tx, next)
			spent, of = append(spent[:0], u.spent...), x.quotas
		})
		if err != nil {
			return err
		}
		maps.DeleteFunc(next, func(_ string, n int64) bool { return n <= 0 })
		tx.moveReserved(was, next)
		if value = nil; len(next) > 0 {
			value, _ = json.Marshal(next) // never fails
		}
		tx.setRecord(record, value)
		return nil
	})
	if err != nil {
		return err
	}
	u.lock(func() {
		if of == x.quotas { // otherwise set has decided what is spent
			for i := range spent {
				u.spent[i] -= spent[i]
			}
		}
	})
	return nil
}

// moveReserved moves the records of all quotas of a reservation. Also for one that is lowered: its bytes may be in a
// record of an upload now, and who adds up must see them in one of the two.
func (tx *Tx) moveReserved(was, next reservation) {
	all := maps.Clone(next)
	if all == nil {
		all = reservation{}
	}
	maps.Copy(all, was)
	for name := range all {
		tx.moveQuota(name)
	}
}

// countRecords makes the engine report what the records of uploads have.
func (u *Uploads) countRecords() {
	u.mu.Lock()
	count := u.recount
	u.mu.Unlock()
	if count != nil {
		count()
	}
}

func (x *Index) ownName() string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.name
}
