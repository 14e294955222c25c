package tls

import (
	"context"
	"time"
)

// Kind is what happened to a certificate.
type Kind string

// The kinds of events.
const (
	Renewed  Kind = "renewed"  // Leaf: a new one is served from now on
	Reloaded Kind = "reloaded" // User: the files changed, and the new pair is served from now on
	Rejected Kind = "rejected" // User: the files changed, and cannot be used (Err); the pair before is served on
	Failed   Kind = "failed"   // Leaf: it could not be renewed (Err); the old one is served on, the next try is in an hour
	Ending   Kind = "ending"   // CA, User: it has ended, or the CA is in its last year (Err says which)
)

// Event tells what [Keeper.Run] did or found.
type Event struct {
	Kind     Kind
	Cert     Cert
	NotAfter time.Time // the end of the certificate that is served after the event
	Err      error     // nil for Renewed and Reloaded
}

const (
	// retryLeaf: a leaf is renewed a month before its end, so an hour is often enough, and it does not fill
	// the log.
	retryLeaf = time.Hour
	// lastYear is when the CA's end is told: to bring a new one to every machine takes its time.
	lastYear = 365 * 24 * time.Hour
	// remind is how often an end that nobody acts upon is told again.
	remind = 24 * time.Hour
)

// Run renews the leaf and follows the user's files until ctx is done; then it returns nil. It calls notify
// from its own goroutine, for each event once: a bad pair is told when the files have changed to it, not at
// each look. The end of a certificate is told each day. Run must be called once.
func (k *Keeper) Run(ctx context.Context, notify func(Event)) error {
	t := time.NewTicker(k.poll)
	defer t.Stop()
	w := watch{Keeper: k, notify: notify, last: k.userSeen, seen: k.userSeen}
	for {
		w.look(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// watch is the state of one Run.
type watch struct {
	*Keeper
	notify func(Event)

	last userPEM // what the user's files held at the last look
	seen userPEM // what they held when they were last acted upon

	nextLeaf time.Time // no renewal before
	nextEnds time.Time // no reminder before
}

// look does what is due now.
func (w *watch) look(now time.Time) {
	w.renew(now)
	w.reload(now)
	if !now.Before(w.nextEnds) {
		w.nextEnds = now.Add(remind)
		w.tellEnds(now)
	}
}

// renew makes a new leaf when its time has come.
func (w *watch) renew(now time.Time) {
	if now.Before(w.nextLeaf) || !due(w.leaf.Load().Leaf, w.ca.Leaf, now) {
		return
	}
	leaf, err := makeLeaf(w.dir, w.ca, w.names, now)
	if err != nil {
		w.nextLeaf = now.Add(retryLeaf)
		w.tell(Failed, Leaf, err)
		return
	}
	w.leaf.Store(leaf)
	w.tell(Renewed, Leaf, nil)
}

// reload serves the user's new pair. It compares the content, so it does not matter how a file was replaced:
// written over, renamed, or the symbolic link to its directory swapped, as Kubernetes does with a Secret. It
// acts when two looks in a row found the same, because between two files written one after the other there is
// a time when they do not match.
func (w *watch) reload(now time.Time) {
	if w.userFile == (userFiles{}) {
		return
	}
	p, err := w.userFile.read()
	if err != nil {
		p = userPEM{cert: err.Error()} // so that the same error twice is the same
	}
	settled := p == w.last
	w.last = p
	if p == w.seen || !settled {
		return
	}
	w.seen = p
	if err == nil {
		err = w.swap(p)
	}
	if err != nil {
		w.tell(Rejected, User, err)
		return
	}
	w.tell(Reloaded, User, nil)
	w.nextEnds = now // the new one may have ended as well
}

// swap makes p the user's pair.
func (w *watch) swap(p userPEM) error {
	user, err := w.userFile.parse(p)
	if err != nil {
		return err
	}
	w.user.Store(user)
	return nil
}

// tellEnds tells of certificates that nobody renews by themselves and that have ended, or soon will.
func (w *watch) tellEnds(now time.Time) {
	if err := holds(w.ca.Leaf, now.Add(lastYear)); err != nil {
		w.tell(Ending, CA, err)
	}
	user := w.user.Load()
	if user == nil {
		return
	}
	if err := holds(user.Leaf, now); err != nil {
		w.tell(Ending, User, err)
	}
}

func (w *watch) tell(kind Kind, c Cert, err error) {
	w.notify(Event{Kind: kind, Cert: c, NotAfter: w.NotAfter(c), Err: err})
}
