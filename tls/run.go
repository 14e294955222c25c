package tls

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/rs/zerolog"
)

// kind is what happened to a certificate. The values are in the log.
type kind string

const (
	published kind = "published" // CA: a new one is in the bundle, and will sign after the overlap
	renewed   kind = "renewed"   // CA, Leaf: a new one signs, or is served, from now on
	retired   kind = "retired"   // CA: an old one is no longer in the bundle
	reloaded  kind = "reloaded"  // User, Clients: the files have changed, and their content is used from now on
	rejected  kind = "rejected"  // User, Clients: the files have changed and are invalid; what was before is used on
	failed    kind = "failed"    // CA, Leaf: something is due and could not be done; it is tried again at each poll
	ending    kind = "ending"    // User: it has expired
)

const (
	// repeat is how often a failure that lasts is logged. A leaf is renewed a month before its end and a CA a year, so
	// an hour is often enough, and it does not fill the log.
	repeat = time.Hour
	// remind is how often an expired certificate is logged that people have to replace.
	remind = 24 * time.Hour
)

// Run renews CA and leaf when they are due, takes over what other processes have saved in the store, and follows the
// user's files and the client CAs, until ctx is done; then it returns nil. It logs each change once: invalid files are
// logged when they have changed, not at each poll; an expired certificate is logged each day. Run must be called at
// most once. On a nil Keeper it returns at once.
func (k *Keeper) Run(ctx context.Context) error {
	if k == nil {
		return nil
	}
	t := time.NewTicker(k.poll)
	defer t.Stop()
	r := k.opened
	for {
		r.pollOnce(ctx, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// runner is the state of one Run.
type runner struct {
	*Keeper

	reportedCA   *authority       // the last that was logged
	reportedLeaf *tls.Certificate // the last that was logged

	nextReport time.Time // of a failure; not before
	nextRemind time.Time // of expired certificates; not before
}

// pollOnce does what is due now.
func (r *runner) pollOnce(ctx context.Context, now time.Time) {
	r.pollStore(ctx, now)
	for _, s := range r.sources {
		changed, err := s.poll()
		switch {
		case !changed:
		case err != nil:
			r.event(rejected, s.cert, err)
		default:
			r.event(reloaded, s.cert, nil)
			if s.cert == User {
				r.nextRemind = now // the new certificate may have expired as well
			}
		}
	}
	if !now.Before(r.nextRemind) {
		r.nextRemind = now.Add(remind)
		r.reportExpired(now)
	}
}

// pollStore reconciles with the store, and logs what has changed. An error is logged only if something is due, because
// a store that does not answer does no harm before, and once an hour. The store is read again at each poll all the
// same: another process may have done what is due, such as to let a new CA sign.
func (r *runner) pollStore(ctx context.Context, now time.Time) {
	if err := r.reconcile(ctx, now, false); err != nil {
		if cert := r.urgent(now); cert != "" && ctx.Err() == nil && !now.Before(r.nextReport) {
			r.nextReport = now.Add(repeat)
			r.event(failed, cert, err)
		}
		return
	}
	r.nextReport = time.Time{}
	ca, leaf, before := r.ca.Load(), r.leaf.Load(), r.reportedCA
	r.reportedCA = ca
	// A rotation takes these steps one after the other, so at most one of them is new.
	switch {
	case ca.next != nil && before.next == nil:
		r.caEvent(published)
	case !ca.signer.Leaf.Equal(before.signer.Leaf):
		r.caEvent(renewed)
	case len(ca.old) < len(before.old):
		r.caEvent(retired)
	}
	if !leaf.Leaf.Equal(r.reportedLeaf.Leaf) {
		r.reportedLeaf = leaf
		r.event(renewed, Leaf, nil)
	}
}

// urgent returns the certificate for which something is due, "" if nothing is.
func (r *runner) urgent(now time.Time) Cert {
	ca := r.ca.Load()
	switch {
	case due(r.leaf.Load().Leaf, ca.signer.Leaf, now):
		return Leaf
	case validAt(ca.signer.Leaf, now.Add(lastYear)) != nil, ca.next != nil && now.After(ca.since.Add(r.overlap)):
		return CA
	}
	return ""
}

// reportExpired logs a certificate that has expired and that only people can renew.
func (r *runner) reportExpired(now time.Time) {
	user := r.user.Load()
	if user == nil {
		return
	}
	if err := validAt(user.Leaf, now); err != nil {
		r.event(ending, User, err)
	}
}

// caEvent logs a change of the CAs, and writes the bundle for people.
func (r *runner) caEvent(k kind) {
	r.event(k, CA, nil)
	r.writeCAFile()
}

// event logs what happened to a certificate, with the end of the one that is used from now on.
func (k *Keeper) event(what kind, c Cert, err error) {
	level := zerolog.InfoLevel
	if err != nil {
		level = zerolog.WarnLevel
	}
	k.log.WithLevel(level).Err(err).Str("certificate", string(c)).Str("event", string(what)).
		Time("until", k.NotAfter(c)).Msg("certificate")
}
