package maintenance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"trow/storage"
)

// A journal and bytes outside of the data directory have a common identity. Without it, settings that name a wrong pair
// would lose data: a collector with a new journal deletes all bytes, and a scrub with another bucket quarantines all
// content. The journal has the identity in a record, and the engine of the bytes beside them. If both are in the data
// directory, they cannot be confused, and have no identity.

// identityRecord is the name of the record.
const identityRecord = "identity"

// ErrIdentity refuses a start with a journal and bytes that do not belong together.
var ErrIdentity = errors.New("journal and blobs do not belong together")

// identify makes sure that the journal and the bytes belong together, and gives both the same identity if they are new
// or the setting adopt says so. Errors: [ErrIdentity], with the remedy; those of the engines.
func (d *Data) identify(ctx context.Context, x *storage.Index) error {
	kept, elsewhere := d.Blobs().(storage.Identified)
	mine, err := x.Record(ctx, identityRecord)
	if err != nil {
		return err
	}
	if !elsewhere {
		return d.identifyDirectory(ctx, x, mine)
	}
	if mine == nil && d.readOnly == "" {
		if mine, err = d.makeIdentity(ctx, x); err != nil {
			return err
		}
	}
	theirs, err := kept.Identity(ctx)
	if err != nil {
		return err
	}
	used := false
	if theirs == "" {
		// Another server may be starting with the same pair. It sets the identity before it stores anything. So if the
		// bytes are used, and still have no identity after that was found, they are not those of such a server.
		if used, err = d.used(ctx, x); err != nil {
			return err
		}
		if theirs, err = kept.Identity(ctx); err != nil {
			return err
		}
	}
	switch {
	case theirs == string(mine) && theirs != "", theirs == "" && !used && d.readOnly != "":
		return nil
	case theirs == "" && !used, d.adopts(mine):
		if theirs != "" || used {
			d.log.Warn().Str("journal", string(mine)).Str("blobs", theirs).
				Msg("journal and blobs belong together from now on (setting adopt)")
		}
		return kept.SetIdentity(ctx, string(mine))
	}
	return d.mismatch(string(mine), theirs)
}

// adopts reports whether the setting adopt names a journal of this identity.
func (d *Data) adopts(mine []byte) bool {
	return len(mine) > 0 && d.options.Adopt == string(mine) && d.readOnly == ""
}

// mismatch returns an ErrIdentity that names the two identities and the remedies.
func (d *Data) mismatch(mine, theirs string) error {
	journal, blobs := d.options.names()
	name := func(what, id string) string {
		if id == "" {
			return what + " (without an identity)"
		}
		return what + " (identity " + id + ")"
	}
	remedy := "start once with trow serve --adopt " + mine
	if mine == "" { // a read-only server cannot give the journal an identity, which --adopt needs
		remedy = "start once without read-only, which says how"
	}
	lost := ""
	if theirs != "" { // a server has used the bucket, so there may be a copy of the facts
		lost = "; or, if the journal of these blobs is lost and this one is empty, run trow rebuild with the same " +
			"settings"
	}
	return fmt.Errorf("%w: %s and %s; content that only one of them knows would be lost. Correct the settings journal "+
		"and blobs%s; or, if these two are to be used together from now on, %s", ErrIdentity, name(journal, mine),
		name(blobs, theirs), lost, remedy)
}

// identifyDirectory is identify for bytes in the data directory: a journal with an identity was used with other bytes.
func (d *Data) identifyDirectory(ctx context.Context, x *storage.Index, mine []byte) error {
	switch {
	case mine == nil:
		return nil
	case d.adopts(mine):
		return x.SetRecord(ctx, identityRecord, mine, nil)
	}
	return d.mismatch(string(mine), "")
}

// makeIdentity gives the journal an identity and returns it, or returns that which another server has given it at the
// same time. Errors: those of the Journal.
func (d *Data) makeIdentity(ctx context.Context, x *storage.Index) ([]byte, error) {
	id := rand.Text()
	if j, ok := d.journal.(interface{ Identity() string }); ok {
		id = j.Identity() // that which the administrator of the service sees
	}
	err := x.SetRecord(ctx, identityRecord, nil, []byte(id))
	if err != nil && !errors.Is(err, storage.ErrConflict) {
		return nil, err
	}
	return x.Record(ctx, identityRecord)
}

// used reports whether the journal names content, or the engine of the bytes has objects. Errors: those of the engine.
func (d *Data) used(ctx context.Context, x *storage.Index) (bool, error) {
	if x.Stats().Contents > 0 {
		return true, nil
	}
	if placed, ok := d.Blobs().(storage.Placed); ok {
		for _, err := range placed.Objects(ctx) {
			return err == nil, err
		}
	}
	return false, nil
}

// trust compares the identities again: a bucket may have been exchanged while the server runs. Errors: [ErrIdentity];
// those of the engines.
func (d *Data) trust(ctx context.Context) error {
	kept, elsewhere := d.Blobs().(storage.Identified)
	if !elsewhere {
		return nil
	}
	mine, err := d.loaded.Load().index.Record(ctx, identityRecord)
	if err != nil {
		return err
	}
	theirs, err := kept.Identity(ctx)
	if err == nil && (theirs == "" || theirs != string(mine)) {
		err = d.mismatch(string(mine), theirs)
	}
	return err
}

// suspicions are the reasons why the collector and the scrub wait for an administrator; nil: they do not.
type suspicions struct{ identity, scrub atomic.Pointer[string] }

// believeRemedy is the remedy for a journal that is suspected to have gone back.
const believeRemedy = "Run trow gc --all if the journal is to be believed as it is"

// collectTrusted calls collect if the bytes are those of the journal. It compares the journal with the newest copy of
// the facts first, because a collection deletes what a journal that went back does not name. Errors: ErrIdentity;
// ErrSuspicious, with the remedy; those of the engines and of collect.
func (d *Data) collectTrusted(ctx context.Context,
	collect func() (storage.Collected, error)) (storage.Collected, error) {
	if err := d.trust(ctx); err != nil {
		if errors.Is(err, ErrIdentity) {
			note(&d.suspicions.identity, err)
		}
		return storage.Collected{}, fmt.Errorf("nothing is collected: %w", err)
	}
	d.suspicions.identity.Store(nil)
	if k, ok := d.keeper(); ok {
		if _, err := expectCopied(ctx, k, d.loaded.Load().index); err != nil {
			return storage.Collected{}, fmt.Errorf("nothing is collected: looking at the copies of the facts: %w", err)
		}
	}
	done, err := collect()
	switch {
	case !errors.Is(err, storage.ErrSuspicious):
	case d.loaded.Load().index.Suspicion() != nil:
		err = fmt.Errorf("%w. %s", err, believeRemedy)
	default:
		err = fmt.Errorf("%w Nothing of it was deleted; if it is to be, run trow gc --all", err)
	}
	return done, err
}

// collectAll collects without the bound on how much is deleted at once, and ends the suspicion that the journal went
// back. Errors: those of the engines.
func (d *Data) collectAll(ctx context.Context, grace time.Duration,
	report func(storage.Collected)) (storage.Collected, error) {
	l := d.loaded.Load()
	suspected := l.index.Suspicion() != nil
	done, err := l.collector.RunAll(ctx, grace, report)
	if k, ok := d.keeper(); ok && suspected && err == nil {
		// The newest copy has a higher revision than the journal. Without a new copy, the next collection would suspect
		// the journal again.
		if err = d.writeCopy(ctx, k, true); err != nil {
			err = fmt.Errorf("all is collected, but the next collection will not believe the journal: copying the "+
				"facts to where the content is: %w; run it again", err)
		}
	}
	return done, err
}

// noteScrub notes that a scrub has stopped because too much seemed to be damaged, or that one has ended. It returns
// err, with the remedy.
func (d *Data) noteScrub(err error) error {
	switch {
	case errors.Is(err, storage.ErrSuspicious):
		err = fmt.Errorf("%w No further scrub begins by itself; when the storage is as it should be, run trow scrub, "+
			"and if the content is lost, trow scrub --all", err)
		note(&d.suspicions.scrub, err)
	case err == nil:
		d.suspicions.scrub.Store(nil)
	}
	return err
}

// note stores the text of err as a suspicion.
func note(where *atomic.Pointer[string], err error) {
	text := err.Error()
	where.Store(&text)
}

// collectionRests returns why the collector deletes nothing, or not all that it would; empty if it does.
func (d *Data) collectionRests() string {
	l := d.loaded.Load()
	if l == nil {
		return ""
	}
	if why := d.suspicions.identity.Load(); why != nil {
		return *why
	}
	if err := l.index.Suspicion(); err != nil {
		return err.Error() + ". " + believeRemedy
	}
	if err := l.collector.Suspicion(); err != nil {
		return err.Error() + " Run trow gc --all if they are to be deleted"
	}
	return ""
}

// CollectorCheck is a line of /readyz?verbose while the collector waits for an administrator.
func (d *Data) CollectorCheck() (ok bool, text string) {
	if why := d.collectionRests(); why != "" {
		return false, "collector: " + why
	}
	return true, ""
}

// ScrubCheck is a line of /readyz?verbose while the scrub waits for an administrator.
func (d *Data) ScrubCheck() (ok bool, text string) {
	if why := d.suspicions.scrub.Load(); why != nil {
		return false, *why
	}
	return true, ""
}
