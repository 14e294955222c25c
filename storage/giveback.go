package storage

import (
	"context"
	"maps"
	"time"
)

// This file gives back what a process has reserved for uploads and does not use. See reserve.go.

// tell wakes keepReservation if much more is reserved than needed. The caller holds both locks.
func (u *Uploads) tell(r *openRepo) {
	for _, i := range r.of {
		if u.left(i)+u.spent[i] > 2*stepOf(u.index.quotas.all[i].Bytes) {
			u.wake()
		}
	}
}

func (u *Uploads) wake() {
	select {
	case u.wasted <- struct{}{}:
	default:
	}
}

// noteWanted notes that a process found no room.
func (u *Uploads) noteWanted() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.wanted = true
	u.wake()
}

// keepReservation gives back what is not used.
func (x *Index) keepReservation() {
	u := x.options.Uploads
	every := time.NewTicker(giveAfter / 2)
	defer every.Stop()
	for {
		select {
		case <-u.wasted:
		case <-every.C:
		case <-x.ctx.Done():
			return
		}
		// If this fails, the next one does it.
		_ = u.giveBack(x.ctx)
	}
}

// giveBack lowers the reservation to what is needed, and a step if uploads have grown of late and no other process
// wants it. Errors: as Update.
func (u *Uploads) giveBack(ctx context.Context) error {
	u.changing.Lock()
	defer u.changing.Unlock()
	x, all, due := u.of(), false, false
	u.lock(func() {
		all = u.wanted || time.Since(u.grew) >= giveAfter
		u.wanted = false
		_, due = u.needed(all)
		due = due && x.name != ""
	})
	if !due {
		return nil
	}
	return u.change(ctx, func(_ *Tx, next reservation) error {
		needed, _ := u.needed(all)
		clear(next)
		maps.Copy(next, needed)
		for i := range x.quotas.all { // from now on uploads take no more than that
			u.spent[i] += max(u.left(i)-(needed[x.quotas.all[i].Name]-u.own(i)), 0)
		}
		return nil
	})
}

// needed returns what has to be reserved, all beside it being given back or a step kept; due reports that it is so much
// less than what is that a commit is worth it. The caller holds both locks.
func (u *Uploads) needed(all bool) (next reservation, due bool) {
	x := u.index
	mine := x.state.reserved[x.name]
	next = reservation{}
	for i := range x.quotas.all {
		q := &x.quotas.all[i]
		keep := min(max(u.left(i), 0), stepOf(q.Bytes))
		if all {
			keep = 0
		}
		next[q.Name] = min(u.own(i)+keep, mine[q.Name])
		more := mine[q.Name] - next[q.Name]
		due = due || more > stepOf(q.Bytes) || all && more > 0
	}
	for name := range mine {
		_, known := next[name]
		due = due || !known // the quota is gone
	}
	return next, due
}
