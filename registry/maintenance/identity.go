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

// A journal and bytes that are elsewhere carry one identity. Settings that name another pair would otherwise lose data:
// a collector with a new journal deletes all bytes, and a scrub with another bucket quarantines all content. The
// journal has it in a record, and the bytes beside them; in the data directory alone, the two cannot be confused, and
// have no identity.

// identityRecord is the name of the record.
const identityRecord = "identity"

// ErrIdentity ends a start with a journal and bytes that do not belong together.
var ErrIdentity = errors.New("journal and blobs do not belong together")

// identify makes sure that the journal and the bytes belong together, and joins those that are both new. Errors:
// [ErrIdentity], with the remedy; those of the engines.
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
		// Another server may just be starting with the same pair. It sets the identity before it pushes anything, so
		// what is there before this second look was not pushed by it.
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

// adopts reports whether the setting adopt is about a journal of this identity.
func (d *Data) adopts(mine []byte) bool {
	return len(mine) > 0 && d.options.Adopt == string(mine) && d.readOnly == ""
}

// mismatch says what does not belong together, and how to go on.
func (d *Data) mismatch(mine, theirs string) error {
	journal, blobs := d.options.names()
	name := func(what, id string) string {
		if id == "" {
			return what + " (without an identity)"
		}
		return what + " (identity " + id + ")"
	}
	remedy := "start once with trow serve --adopt " + mine
	if mine == "" { // a server that writes nothing has given it none
		remedy = "start once without read-only, which says how"
	}
	lost := ""
	if theirs != "" { // a bucket that a server has used may have a copy of the facts
		lost = "; or, if the journal of these blobs is lost and this one is empty, run trow rebuild with the same " +
			"settings"
	}
	return fmt.Errorf("%w: %s and %s; content that only one of them knows would be lost. Correct the settings journal "+
		"and blobs%s; or, if these two are to be used together from now on, %s", ErrIdentity, name(journal, mine),
		name(blobs, theirs), lost, remedy)
}

// identifyDirectory is identify for bytes in the data directory: a journal with an identity has its bytes elsewhere.
func (d *Data) identifyDirectory(ctx context.Context, x *storage.Index, mine []byte) error {
	switch {
	case mine == nil:
		return nil
	case d.adopts(mine):
		return x.SetRecord(ctx, identityRecord, mine, nil)
	}
	return d.mismatch(string(mine), "")
}

// makeIdentity gives the journal an identity, unless another server is faster.
func (d *Data) makeIdentity(ctx context.Context, x *storage.Index) ([]byte, error) {
	id := rand.Text()
	if j, ok := d.journal.(interface{ Identity() string }); ok {
		id = j.Identity() // by which the administrator of the service finds it
	}
	err := x.SetRecord(ctx, identityRecord, nil, []byte(id))
	if err != nil && !errors.Is(err, storage.ErrConflict) {
		return nil, err
	}
	return x.Record(ctx, identityRecord)
}

// used reports whether the journal names content, or there are objects.
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

// trust returns an error if the bytes may not be those of the journal, at this time.
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

// suspicions are why work rests until an administrator lets it go on; nil: it does not rest.
type suspicions struct{ identity, scrub atomic.Pointer[string] }

// believeRemedy is what an administrator can do about a journal that went back.
const believeRemedy = "Run trow gc --all if the journal is to be believed as it is"

// collectTrusted collects if the bytes are those of the journal.
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

// collectAll collects however much it is, and ends the suspicion that the journal went back.
func (d *Data) collectAll(ctx context.Context, grace time.Duration,
	report func(storage.Collected)) (storage.Collected, error) {
	l := d.loaded.Load()
	suspected := l.index.Suspicion() != nil
	done, err := l.collector.RunAll(ctx, grace, report)
	if k, ok := d.keeper(); ok && suspected && err == nil {
		// The newest copy is of a higher revision than the journal has: the next collection would suspect it again.
		if err = d.writeCopy(ctx, k, true); err != nil {
			err = fmt.Errorf("all is collected, but the next collection will not believe the journal: copying the "+
				"facts to where the content is: %w; run it again", err)
		}
	}
	return done, err
}

// noteScrub notes that a scrub has stopped, or that one has not.
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

func note(where *atomic.Pointer[string], err error) {
	text := err.Error()
	where.Store(&text)
}

// collectionRests returns why the collector deletes less than it would, "" if it does not.
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
