package tls

import (
	"context"
	"crypto/tls"
	"time"
)

// Kind is what happened to a certificate.
type Kind string

// The kinds of events.
const (
	Published Kind = "published" // CA: a new one is in the bundle, and will sign after the overlap
	Renewed   Kind = "renewed"   // CA, Leaf: a new one signs, is served from now on
	Retired   Kind = "retired"   // CA: an old one is no longer in the bundle
	Reloaded  Kind = "reloaded"  // User, Clients: the files changed, and the new pair is served from now on
	Rejected  Kind = "rejected"  // User, Clients: the files changed, and cannot be used (Err); the pair before is served on
	Failed    Kind = "failed"    // CA, Leaf: what was due could not be done (Err); the next try is in an hour
	Ending    Kind = "ending"    // User: it has ended (Err)
)

// Event tells what [Keeper.Run] did or found.
type Event struct {
	Kind     Kind
	Cert     Cert
	NotAfter time.Time // the end of the certificate that is used after the event
	Err      error     // nil unless the kind says so
}

const (
	// retry: a leaf is renewed a month before its end, a CA a year, so an hour is often enough, and it does not
	// fill the log.
	retry = time.Hour
	// remind is how often an end that nobody acts upon is told again.
	remind = 24 * time.Hour
)

// Run does what is due with CA and leaf, takes over what other processes have put into the store, and follows the
// user's files until ctx is done; then it returns nil. It calls notify from its own goroutine, for each event
// once: a bad pair is told when the files have changed to it, not at each look. The end of a certificate is told
// each day. Run must be called once.
func (k *Keeper) Run(ctx context.Context, notify func(Event)) error {
	t := time.NewTicker(k.poll)
	defer t.Stop()
	w := watch{Keeper: k, notify: notify, last: k.userSeen, seen: k.userSeen, told: k.ca.Load(), toldLeaf: k.leaf.Load(), clients: newFollower(k.clients.Load())}
	for {
		w.look(ctx, time.Now())
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

	clients follower

	told     *authority       // what was told of
	toldLeaf *tls.Certificate // what was told of

	nextTry  time.Time // of what has failed; not before
	nextEnds time.Time // no reminder before
}

// look does what is due now.
func (w *watch) look(ctx context.Context, now time.Time) {
	w.follow(ctx, now)
	w.reload(now)
	w.reloadClients()
	if !now.Before(w.nextEnds) {
		w.nextEnds = now.Add(remind)
		w.tellEnds(now)
	}
}

// follow settles, and tells what came of it. A store that does not answer is nobody's business as long as nothing
// is due.
func (w *watch) follow(ctx context.Context, now time.Time) {
	if now.Before(w.nextTry) {
		return
	}
	if err := w.settle(ctx, now, false); err != nil {
		if cert := w.urgent(now); cert != "" && ctx.Err() == nil {
			w.nextTry = now.Add(retry)
			w.tell(Failed, cert, err)
		}
		return
	}
	ca, leaf := w.ca.Load(), w.leaf.Load()
	before := w.told
	w.told = ca
	switch {
	case ca.next != nil && before.next == nil:
		w.tell(Published, CA, nil)
	case !ca.signer.Leaf.Equal(before.signer.Leaf):
		w.tell(Renewed, CA, nil)
	case len(ca.old) < len(before.old):
		w.tell(Retired, CA, nil)
	}
	if !leaf.Leaf.Equal(w.toldLeaf.Leaf) {
		w.toldLeaf = leaf
		w.tell(Renewed, Leaf, nil)
	}
}

// urgent names what cannot wait, "" if all can.
func (w *watch) urgent(now time.Time) Cert {
	ca := w.ca.Load()
	switch {
	case due(w.leaf.Load().Leaf, ca.signer.Leaf, now):
		return Leaf
	case holds(ca.signer.Leaf, now.Add(lastYear)) != nil, ca.next != nil && now.After(ca.since.Add(w.overlap)):
		return CA
	}
	return ""
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

// tellEnds tells of a certificate that nobody renews by itself and that has ended.
func (w *watch) tellEnds(now time.Time) {
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
