package auth

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"strings"
	"sync"
	"time"

	"trow/storage"
)

// Records are the facts of the journal that robots and the keys of tokens are, one each, so that all processes that
// share a journal accept the same credentials. A [storage.Index] has these methods.
type Records interface {
	// Record returns the value of a record, nil if it does not exist. A miss is confirmed with the journal. Errors:
	// storage.ErrUnavailable if that has failed.
	Record(ctx context.Context, name string) ([]byte, error)
	// Records lists the records whose names start with prefix, from memory.
	Records(prefix string) iter.Seq2[string, []byte]
	// SetRecord replaces the value old of a record, durably; nil is no record. Errors: storage.ErrConflict if it has
	// another value, which Records shows then.
	SetRecord(ctx context.Context, name string, old, value []byte) error
	// NotifyRecords makes changed be called after each change that Records shows, with locks held.
	NotifyRecords(prefix string, changed func())
	// Shared reports whether other processes change the records.
	Shared() bool
	// CatchUp waits until Records shows what there was when it was called, for at most wait. age is not 0 if the
	// journal did not answer.
	CatchUp(ctx context.Context, wait time.Duration) (age time.Duration, err error)
}

// The names of records.
const (
	recordPrefix = "auth/"
	robotRecord  = recordPrefix + "robot/" // and the robot's name; the value is a storedRobot
	keyRecord    = recordPrefix + "key/"   // and the key's id; the value is a signingKey
	takenRecord  = recordPrefix + "taken"  // the files of earlier versions are in the records; the value is the time
)

// errReadOnly refuses what must be durable.
var errReadOnly = errors.New("the registry is read-only: it writes nothing to its data directory, so no token can be " +
	"created or revoked; restart it where it may write there")

// errLoading: nothing is known of robots and keys yet.
var errLoading = fmt.Errorf("%w: the registry is loading its index", ErrUnavailable)

// Load gives the Guard its records, and from then on follows their changes. Robots and keys that an earlier version
// kept in files are taken into the records first; copied is called before the files are removed, and makes a copy of
// the journal that knows the records, for trow rebuild. What cannot be written is logged and tried again: it is no
// reason not to start. Errors: robots in a file that cannot be read; no user could log in.
func (g *Guard) Load(ctx context.Context, r Records, copied func(context.Context) error) error {
	g.cleanup = copied
	if err := g.findFiles(r); err != nil {
		return err
	}
	r.NotifyRecords(recordPrefix, func() { g.news.Add(1) })
	_ = g.change(func(s *state) error {
		s.records, s.shared = r, r.Shared()
		return nil
	})
	g.news.Add(1)
	if s := g.current(); !s.logins && s.policy.closed() {
		return errors.New("user: everything needs a login, and no user could log in; set user, htpasswd or client-ca")
	}
	g.keepKeys(ctx) // makes the first key
	return nil
}

// current returns the state, which shows all that the records do.
func (g *Guard) current() *state {
	if s := g.state.Load(); s.seen == g.news.Load() {
		return s
	}
	return g.refresh()
}

// refresh reads the records again. The first request after a change calls it, and not a goroutine that could be late:
// so a robot is revoked as soon as the index has the change.
func (g *Guard) refresh() *state {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.state.Load()
	news := g.news.Load() // before the records are read: a change while they are read causes another refresh
	if s.seen == news {   // another request has refreshed while this one waited for the lock
		return s
	}
	next := *s
	next.seen = news
	if next.records != nil {
		g.readRecords(&next)
	}
	next.derive(g)
	g.state.Store(&next)
	return &next
}

// readRecords reads the robots and keys.
func (g *Guard) readRecords(s *state) {
	stored, before := map[string][]byte{}, s.robots
	s.keys, s.taken = nil, false
	for name, value := range s.records.Records(recordPrefix) {
		if robot, ok := strings.CutPrefix(name, robotRecord); ok {
			stored[robot] = value
		} else if id, ok := strings.CutPrefix(name, keyRecord); ok {
			// A key that cannot be read is skipped: clients whose tokens it has signed get new ones by themselves.
			if k, err := parseKey(id, value); err == nil {
				s.keys = append(s.keys, k)
			} else if g.unread[id] != string(value) {
				g.unread[id] = string(value)
				g.unreadable(err)
			}
		} else if name == takenRecord {
			s.taken = true
		}
	}
	if g.old != nil && !s.taken {
		g.old.add(stored, &s.keys)
	}
	if g.temporary != nil {
		s.keys = append(s.keys, *g.temporary)
	}
	s.keys.sorted()
	s.robots = newRobots(stored, before, g.unreadable)
}

func (g *Guard) unreadable(err error) {
	g.options.Log.Error().Err(err).Msg("a record of the journal cannot be read, and is ignored; " +
		"revoke and create the robot, or use the version that wrote it")
}

// writable returns the state, for a change; the caller holds changes. Errors: nothing may be written; what takeFiles
// could not record.
func (g *Guard) writable(ctx context.Context) (*state, error) {
	if g.options.ReadOnly {
		return nil, errReadOnly
	}
	s := g.state.Load()
	if s.records == nil {
		return nil, errLoading
	}
	err := g.takeFiles(ctx)
	return g.current(), err
}

// confirmed returns a state that is up to date with the journal, after a miss in s: another replica may have created
// the robot or key that is missing. Errors: ErrUnavailable if the journal does not answer; that of ctx.
func (g *Guard) confirmed(ctx context.Context, s *state) (*state, error) {
	switch {
	case s.records == nil:
		return nil, errLoading
	case !s.shared:
		return s, nil
	}
	if err := g.misses.confirm(ctx, s.records); err != nil {
		return nil, err
	}
	return g.current(), nil
}

// anybody returns a state from which it is certain whether any credentials are valid. If none are, those of a request
// are ignored; but another replica may have just created the first robot. robotic reports whether the credentials of
// the request can be those of a robot. Errors: as confirmed.
func (g *Guard) anybody(ctx context.Context, s *state, robotic bool) (*state, error) {
	if s.logins || !robotic {
		return s, nil
	}
	return g.confirmed(ctx, s)
}

// robotic reports whether an Authorization header can be that of a robot.
func robotic(header string) bool {
	scheme, rest, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return strings.EqualFold(scheme, "Bearer")
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimLeft(rest, " "))
	_, password, _ := strings.Cut(string(b), ":")
	return err == nil && strings.HasPrefix(password, SecretPrefix)
}

// confirmInterval is the least time between two requests to the journal because of unknown keys and robots. Clients
// need no login to invent those, so a replica asks at most ten times a second, however many it gets. A client of a new
// robot waits at most a tenth of a second for that.
const confirmInterval = 100 * time.Millisecond

// confirmer sends one request to the journal for all callers that wait. Its zero value is ready.
type confirmer struct {
	mu   sync.Mutex // guards what follows
	next *confirmation
	last time.Time // when the last request began
}

// confirmation is one request to the journal. While it is confirmer.next it has not begun, so its answer is newer than
// each caller that joins it.
type confirmation struct {
	done chan struct{}
	err  error // valid once done is closed
}

// confirm waits until the records show what there was when it was called. Errors: ErrUnavailable; that of ctx.
func (c *confirmer) confirm(ctx context.Context, r Records) error {
	one := c.join(r)
	select {
	case <-one.done:
		return one.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *confirmer) join(r Records) *confirmation {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next != nil {
		return c.next
	}
	one := &confirmation{done: make(chan struct{})}
	c.next = one
	time.AfterFunc(confirmInterval-time.Since(c.last), func() {
		c.mu.Lock()
		c.next, c.last = nil, time.Now()
		c.mu.Unlock()
		// Not with the context of a caller, because others wait as well. CatchUp has a bound of its own.
		if age, err := r.CatchUp(context.Background(), storage.CatchUpTime); err != nil || age > 0 {
			one.err = fmt.Errorf("%w: the journal does not answer", ErrUnavailable)
		}
		close(one.done)
	})
	return one
}
