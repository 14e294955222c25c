package mirror

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// With several replicas, one bound covers what all of them store. They share a record, the board, in which each has a
// seat. A replica stores only what its seat allows, so the seats and what the journal shows are never more than the
// bound together:
//
//   - A replica raises its seat in a change that is committed only while the board is as it was read. Between the two
//     it counts what the journal shows. Whatever another replica has stored is then either counted, or within its seat.
//   - The commit that stores a blob depends on the board as well, and on the seat being large enough. A replica that
//     was suspended, and whose seat was taken away, stores nothing.
//   - Seats have some bytes to spare, so that not every download changes the board.
//
// One replica, the leader, evicts. One that has no room says so on the board and passes content through unstored until
// the leader has made room. The leader evicts nothing that another replica is reading: it names the contents on the
// board, and waits until all others have answered which of them they read, and keep clients from the rest.

// BoardRecord is the name of the board.
const BoardRecord = "cache/board"

const (
	// renewSeat is how old the time of a seat is when it is renewed; seatLife is how old it is when others remove it:
	// clocks of replicas may differ by minutes, and a replica that is stopped comes back.
	renewSeat = time.Minute
	seatLife  = 5 * time.Minute
	// spareShare divides the bound: a seat has that part of it to spare.
	spareShare = 64
	// wantLife is for how long the leader makes room for what a replica wants, which it says again with each download.
	wantLife = time.Minute
	// refusedFor is for how long after a refusal a replica does not ask again: each question counts all content.
	refusedFor = time.Second
	// answerTime bounds how long the leader waits for the other replicas. One that does not answer may be reading.
	answerTime = 3 * time.Second
	// mustAnswer is how old the time of a seat is from which on the leader does not wait for that replica, which has
	// ended or is suspended; unansweredFor is for how long it does not try again after one has not answered.
	mustAnswer    = 2 * renewSeat
	unansweredFor = 30 * time.Second
	// awayTime is more than an eviction takes.
	awayTime = 2 * evictTime
)

// seat is the entry of a replica on the board.
type seat struct {
	Bytes  int64 `json:"bytes,omitempty"`  // what it may store that the journal may not show
	Leaves int64 `json:"leaves,omitempty"` // what it is deleting that the journal may not show any more
	Wants  int64 `json:"wants,omitempty"`  // bytes that it has no room for
	Asked  int64 `json:"asked,omitempty"`  // when, Unix seconds
	Time   int64 `json:"time"`             // when the seat was renewed, Unix seconds
	// Going are the contents that the leader is about to evict, and Turn is a number for this eviction.
	Going []digest.Digest `json:"going,omitempty"`
	Turn  int64           `json:"turn,omitempty"`
	// Seen is the last Turn that this replica has answered, and Busy what it was reading of it.
	Seen int64           `json:"seen,omitempty"`
	Busy []digest.Digest `json:"busy,omitempty"`
}

type board map[string]seat

// begun is when this replica has first seen an eviction of another one.
type begun struct {
	turn int64
	at   time.Time
}

// sharing is what a Cache needs to share its bound.
type sharing struct {
	name    string     // of this replica
	seating sync.Mutex // held while the seat is changed: bytes is that of the last change; taken before Cache.mu
	news    broadcast  // of the board

	turns map[string]begun // the last eviction of each replica; guarded by seating

	lead  context.Context // while this replica evicts; nil: it does not. Guarded by Cache.mu, as all below.
	bytes int64           // of the seat
	spent int64           // of these, for what was stored, or may have been, since the seat was last raised or lowered
	// counted is the part of spent that the change of the seat which is being made counts as stored.
	counted int64
	// others is the sum of the other seats, as it was last read.
	others  int64
	refused time.Time
	silent  time.Time     // until then nothing is evicted, because a replica has not answered
	moved   chan struct{} // closed and replaced when what is going has changed
}

// Share makes the Cache share its bound with those of other replicas; name is that of this one. It is called once,
// before Attach.
func (c *Cache) Share(name string) {
	c.shared = &sharing{name: name, moved: make(chan struct{}), turns: map[string]begun{}}
}

// broadcast wakes all that wait.
type broadcast struct {
	mu sync.Mutex // guards ch
	ch chan struct{}
}

// next returns a channel that is closed with the next call of send.
func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// Shared reports whether other replicas share the bound.
func (c *Cache) Shared() bool { return c != nil && c.shared != nil }

// Covers reports whether the board allows this replica to store what it has reserved. value is that of BoardRecord; the
// commit that stores must depend on it.
func (c *Cache) Covers(value []byte) bool {
	mine, seated := parseBoard(value)[c.shared.name]
	c.mu.Lock()
	defer c.mu.Unlock()
	return seated && mine.Bytes >= c.reserved+c.shared.spent-c.shared.counted
}

func parseBoard(value []byte) board {
	b := board{}
	_ = json.Unmarshal(value, &b) // if it is of a later version, or damaged, each replica takes a new seat
	return b
}

// read returns the board.
func (c *Cache) read() (b board, value []byte) {
	for name, v := range c.store.Records(BoardRecord) {
		if name == BoardRecord {
			value = v
		}
	}
	return parseBoard(value), value
}

// seat changes the seat of this replica. change gets the board and returns the seat; false: it stays as it is. Errors:
// those of the journal.
func (c *Cache) seat(ctx context.Context, change func(b board, mine seat) (seat, bool)) error {
	c.shared.seating.Lock()
	defer c.shared.seating.Unlock()
	for {
		c.uncount()
		b, old := c.read()
		mine, ok := change(b, b[c.shared.name])
		if !ok {
			return nil
		}
		now := time.Now()
		maps.DeleteFunc(b, func(_ string, s seat) bool { return !s.lives(now) })
		mine.Time = now.Unix()
		b[c.shared.name] = mine
		value, _ := json.Marshal(b) // never fails
		err := c.store.SetRecord(ctx, BoardRecord, old, value)
		if errors.Is(err, storage.ErrConflict) && ctx.Err() == nil {
			continue // another replica was faster
		}
		if err == nil {
			c.mu.Lock()
			c.shared.bytes = mine.Bytes
			c.shared.spent, c.shared.counted = c.shared.spent-c.shared.counted, 0
			c.mu.Unlock()
		}
		return err
	}
}

func (s seat) lives(now time.Time) bool { return now.Sub(time.Unix(s.Time, 0)).Abs() < seatLife }

// claim raises the seat so that n more bytes can be stored. ok is false if there is no room; then the seat says what is
// wanted. The caller holds evicting. Errors: those of the journal.
func (c *Cache) claim(ctx context.Context, n int64) (ok bool, err error) {
	err = c.seat(ctx, func(b board, mine seat) (seat, bool) {
		use := c.count(ctx) // after the board was read: what others have stored is counted, or in their seats
		c.mu.Lock()
		defer c.mu.Unlock()
		c.shared.others = b.others(c.shared.name)
		free := c.limit.Load() - c.used - c.shared.others - use
		ok = n <= free
		now := time.Now().Unix()
		if ok {
			mine.Bytes, mine.Wants, mine.Asked = use+min(max(n, c.limit.Load()/spareShare), free), 0, 0
		} else if mine.Wants == n && now-mine.Asked < int64(wantLife/time.Second)/2 {
			return mine, false
		} else {
			mine.Bytes, mine.Wants, mine.Asked = max(min(mine.Bytes-c.shared.counted, use), 0), n, now
		}
		return mine, ctx.Err() == nil
	})
	if err == nil {
		err = ctx.Err()
	}
	return ok && err == nil, err
}

// count looks at what is stored, and returns which part of the seat is used beyond that. Until the change of the seat
// is made, nothing more is reserved of it: the new one may have less. The caller is a function for seat.
func (c *Cache) count(ctx context.Context) (use int64) {
	c.mu.Lock()
	stored := c.shared.spent // its facts show by now
	c.mu.Unlock()
	c.Look(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shared.bytes = min(c.shared.bytes, c.reserved+c.shared.spent)
	if ctx.Err() == nil { // otherwise the Look may be incomplete
		c.shared.counted = stored
	}
	return c.reserved + c.shared.spent - c.shared.counted
}

// uncount begins a change of the seat anew.
func (c *Cache) uncount() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shared.counted = 0
}

// others returns the sum of the seats of other replicas.
func (b board) others(me string) (sum int64) {
	now := time.Now()
	for name, s := range b {
		if name != me && s.lives(now) {
			sum += s.Bytes + s.Leaves
		}
	}
	return sum
}

// reserveShared is Reserve for a bound that others share. The caller holds evicting.
func (c *Cache) reserveShared(n int64) bool {
	c.mu.Lock()
	refused, lead := c.shared.refused, c.shared.lead
	c.mu.Unlock()
	if time.Since(refused) < refusedFor {
		return c.take(n)
	}
	for !c.take(n) {
		ctx, cancel := context.WithTimeout(context.Background(), evictTime)
		ok, err := c.claim(ctx, n)
		cancel()
		if !ok && err == nil && lead != nil {
			ok, err = c.makeRoom(lead, n)
		}
		if !ok || err != nil {
			c.mu.Lock()
			c.shared.refused = time.Now()
			c.mu.Unlock()
			return false
		}
	}
	return true
}

// makeRoom evicts one step of contents so that n bytes fit beside all seats, if they do not. The caller holds evicting.
// Errors: those of the store.
func (c *Cache) makeRoom(lead context.Context, n int64) (freed bool, err error) {
	ctx, cancel := context.WithTimeout(lead, evictTime)
	defer cancel()
	c.mu.Lock()
	want, silent := c.used+c.shared.others+c.reserved+c.shared.spent+n-c.limit.Load(), c.shared.silent
	c.mu.Unlock()
	if time.Now().Before(silent) {
		return false, nil
	}
	return c.evict(ctx, want)
}

// Lead evicts for all replicas until ctx is done, which has the fence of the task if there is one.
func (c *Cache) Lead(ctx context.Context) {
	if !c.Shared() {
		<-ctx.Done()
		return
	}
	set := func(lead context.Context) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.shared.lead = lead
	}
	set(ctx)
	defer set(nil)
	every, trim := time.NewTicker(refusedFor), time.NewTicker(lookInterval)
	defer every.Stop()
	defer trim.Stop()
	for {
		c.serve(ctx)
		select {
		case <-every.C:
		case <-trim.C:
			c.trim(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// serve makes room for what other replicas want.
func (c *Cache) serve(ctx context.Context) {
	b, _ := c.read()
	var n int64
	now := time.Now()
	for name, s := range b {
		if name != c.shared.name && s.lives(now) && now.Sub(time.Unix(s.Asked, 0)) < wantLife {
			n += s.Wants
		}
	}
	if n == 0 {
		return
	}
	c.evicting.Lock()
	defer c.evicting.Unlock()
	for room := false; !room && ctx.Err() == nil; {
		// The board before the look, as in claim: what is stored in between is in a seat.
		b, _ := c.read()
		c.Look(ctx)
		c.mu.Lock()
		c.shared.others = b.others(c.shared.name)
		room = c.used+c.shared.others+c.shared.bytes+n <= c.limit.Load()
		c.mu.Unlock()
		if room {
			return
		}
		if freed, err := c.makeRoom(ctx, n); !freed || err != nil {
			return
		}
	}
}

// depart asks the other replicas to let contents go, and returns those that none is reading. Until arrive is called,
// their bytes count for the seat, because they are deleted after the facts. Errors: those of the journal; a replica
// does not answer.
func (c *Cache) depart(ctx context.Context, all []digest.Digest, bytes int64) (free []digest.Digest, err error) {
	if !c.Shared() {
		return all, nil
	}
	turn := time.Now().UnixNano()
	if err := c.seat(ctx, func(_ board, mine seat) (seat, bool) {
		mine.Leaves, mine.Going, mine.Turn = bytes, all, turn
		return mine, true
	}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	for {
		news := c.shared.news.next() // before the board is read
		b, _ := c.read()
		answered, busy := true, []digest.Digest{}
		now := time.Now()
		for name, s := range b {
			if name == c.shared.name || now.Sub(time.Unix(s.Time, 0)).Abs() > mustAnswer {
				continue
			}
			answered = answered && s.Seen == turn
			busy = append(busy, s.Busy...)
		}
		if answered {
			return slices.DeleteFunc(slices.Clone(all), func(d digest.Digest) bool {
				return slices.Contains(busy, d)
			}), nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			c.mu.Lock()
			c.shared.silent = time.Now().Add(unansweredFor)
			c.mu.Unlock()
			return nil, errors.New("another replica has not answered whether it is reading what is to be evicted")
		}
	}
}

// arrive ends depart.
func (c *Cache) arrive() {
	if !c.Shared() {
		return
	}
	// Without the fence: what this replica says on its seat ends also if another one leads by now.
	ctx, cancel := context.WithTimeout(context.Background(), evictTime)
	defer cancel()
	// If this fails, the bytes count until the next eviction, and readers wait until they give up.
	_ = c.seat(ctx, func(_ board, mine seat) (seat, bool) {
		mine.Leaves, mine.Going = 0, nil
		return mine, true
	})
}

// follow takes a seat, answers the leader, and renews the seat, until ctx is done.
func (c *Cache) follow(ctx context.Context) {
	renew := time.NewTicker(renewSeat)
	defer renew.Stop()
	for {
		news := c.shared.news.next()
		c.answer(ctx)
		select {
		case <-news:
		case <-renew.C:
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTime)
			defer cancel()
			c.leave(end)
			return
		}
	}
}

// answer keeps clients from what others evict, and says on the board what they are reading.
func (c *Cache) answer(ctx context.Context) {
	_ = c.seat(ctx, func(b board, mine seat) (seat, bool) { // tried again with the next change of the board
		going, turn := map[digest.Digest]time.Time{}, mine.Seen
		now := time.Now()
		for name, s := range b {
			if name == c.shared.name || len(s.Going) == 0 || !s.lives(now) {
				continue
			}
			turn = max(turn, s.Turn)
			until := c.endOf(name, s.Turn)
			for _, d := range s.Going {
				going[d] = until
			}
		}
		busy := c.keepFrom(going)
		old := now.Sub(time.Unix(mine.Time, 0)) >= renewSeat
		if turn == mine.Seen && !old {
			return mine, false
		}
		if old { // an eviction has ended long ago
			mine.Leaves, mine.Going = 0, nil
		}
		if mine.Seen, mine.Busy = turn, busy; old && mine.Bytes > 0 { // what is not used is given up
			use := c.count(ctx)
			c.mu.Lock()
			mine.Bytes = max(min(mine.Bytes-c.shared.counted, use+c.limit.Load()/spareShare), 0)
			c.mu.Unlock()
		}
		return mine, true
	})
}

// endOf returns when an eviction of another replica has ended, maybe with that replica. The caller is a function for
// seat.
func (c *Cache) endOf(name string, turn int64) time.Time {
	if began := c.shared.turns[name]; began.turn != turn {
		c.shared.turns[name] = begun{turn, time.Now()}
	}
	return c.shared.turns[name].at.Add(awayTime)
}

// keepFrom marks what other replicas evict, and until when at most, so that Use waits. It returns what clients are
// reading of it.
func (c *Cache) keepFrom(going map[digest.Digest]time.Time) (busy []digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.order.Front(); e != nil; e = e.Next() {
		e.Value.(*item).away = time.Time{}
	}
	for d, until := range going {
		e := c.items[d]
		if e == nil { // another replica has stored it since the last Look
			c.add(d, 0, false, false)
			e = c.items[d]
		}
		if i := e.Value.(*item); i.readers > 0 {
			busy = append(busy, d)
		} else {
			i.away = until
		}
	}
	close(c.shared.moved)
	c.shared.moved = make(chan struct{})
	return busy
}

// leave gives up the seat, at the end of the process.
func (c *Cache) leave(ctx context.Context) {
	for {
		b, old := c.read()
		if _, seated := b[c.shared.name]; !seated {
			return
		}
		delete(b, c.shared.name)
		value, _ := json.Marshal(b) // never fails
		if err := c.store.SetRecord(ctx, BoardRecord, old, value); !errors.Is(err, storage.ErrConflict) {
			return // if this fails, the others remove the seat after seatLife
		}
	}
}

// awaitBack waits until another replica has evicted an item, or has left it, or until a time. The caller holds mu, and
// finds the item anew afterwards.
func (c *Cache) awaitBack(until time.Time) {
	moved := c.shared.moved
	c.mu.Unlock()
	defer c.mu.Lock()
	select {
	case <-moved:
	case <-time.After(time.Until(until)):
	}
}
