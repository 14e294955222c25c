package maintenance

import (
	"context"
	"errors"
	"fmt"
	"time"

	"trow/storage"
	"trow/storage/bolt"
)

// This file opens the engines of a server, and shows their state. What only some engines can do is an optional
// interface, found by a type assertion. For an engine without it, nothing is done or shown: no metric has a made-up
// value.

// openParts opens the engines in the directory, as readOnly says, and takes its lock. Other engines are opened by Load,
// so that the server listens while they do not answer. Errors: those of the engines; the directory is locked.
func (d *Data) openParts() (err error) {
	o := &d.options
	d.release = func() error { return nil }
	switch {
	case o.Journal == "":
		d.journal, err = o.OpenJournal(context.Background(), d.use()) // first: it holds the lock of the directory
	case d.readOnly == "": // a read-only server writes nothing, and needs no lock
		d.release, err = bolt.LockDirectory(o.DataDir)
	}
	if err != nil {
		return err
	}
	if o.Blobs == "" {
		b, err := o.OpenBlobs(context.Background(), d.use(), nil)
		if err != nil {
			return errors.Join(err, d.closeJournal())
		}
		d.setBlobs(b)
	}
	if d.hold, err = openHold(o.DataDir, d.readOnly != ""); err != nil {
		return errors.Join(fmt.Errorf("data directory: %w", err), d.closeJournal())
	}
	return nil
}

// closeJournal closes the journal if it is open, and releases the directory.
func (d *Data) closeJournal() (err error) {
	err = closeJournal(d.journal)
	d.journal = nil
	return errors.Join(err, d.release())
}

func (d *Data) setBlobs(b storage.Blobs) { d.blobs.Store(&b) }

// Blobs returns the engine of the content. It is nil until Load has opened it if the content is not in the data
// directory.
func (d *Data) Blobs() storage.Blobs {
	if b := d.blobs.Load(); b != nil {
		return *b
	}
	return nil
}

// use returns how a server uses its engines.
func (d *Data) use() Use {
	return Use{ReadOnly: d.readOnly != "", Reserve: d.options.Reserve.Of, Uploads: d.uploads,
		MaxUploads: d.options.MaxUploads, Memory: Memory(), Warn: d.warn}
}

// openEngines opens the engines that are not in the data directory, and loads the index. Load calls it again while an
// engine does not answer; a journal that is open stays open. The order is journal, index, blobs, because the facts say
// which object has which bytes, and then the identity, before anything is changed. Errors: ErrIdentity; those of the
// engines.
func (d *Data) openEngines(ctx context.Context) (index *storage.Index, err error) {
	if d.journal == nil {
		if d.journal, err = d.options.OpenJournal(ctx, d.use()); err != nil {
			return nil, err
		}
	}
	if index, err = d.openIndex(ctx); err != nil {
		return nil, err
	}
	if d.options.Blobs != "" {
		var b storage.Blobs
		if b, err = d.options.OpenBlobs(ctx, d.use(), index); err == nil {
			d.setBlobs(b)
		}
	}
	if err == nil {
		err = d.identify(ctx, index)
	}
	if err != nil {
		index.Close()
		return nil, err
	}
	return index, nil
}

// warn logs an error that an engine has handled itself, but its administrator must know.
func (d *Data) warn(err error) { d.log.Warn().Err(err).Msg("storage") }

// retryInterval is the time between two attempts to open an engine at the start. It is a variable for tests only.
var retryInterval = time.Second

// untilAnswered calls do until it succeeds or returns another error than ErrUnavailable. It logs why it waits, at most
// once in 10 s. Errors: those of do; that of ctx.
func (d *Data) untilAnswered(ctx context.Context, do func() error) error {
	for logged := (time.Time{}); ; {
		err := do()
		if err == nil || !errors.Is(err, storage.ErrUnavailable) || ctx.Err() != nil {
			return err
		}
		if time.Since(logged) > 10*time.Second {
			logged = time.Now()
			d.log.Warn().Err(err).Msg("waiting for the storage: requests are answered 503 until it answers")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(retryInterval):
		}
	}
}

// confirmInterval is the time between two confirmations that the index is up to date: otherwise JournalCheck would show
// a growing age while no request asks.
const confirmInterval = 2 * time.Second

// staleAfter is the age of the index from which JournalCheck fails. It is a variable for tests alone.
var staleAfter = 10 * time.Second

// confirm asks the journal whether the index is up to date. The result is seen in Index.Confirmed.
func (d *Data) confirm(ctx context.Context) { _, _ = d.loaded.Load().index.CatchUp(ctx, time.Second) }

// shared returns the index if other processes write to the journal as well; nil before it is loaded.
func (d *Data) shared() *storage.Index {
	if l := d.loaded.Load(); l != nil && l.shared {
		return l.index
	}
	return nil
}

// JournalCheck is a line of /readyz?verbose where the journal is shared: ok reports whether it answers.
func (d *Data) JournalCheck() (ok bool, text string) {
	index := d.shared()
	if index == nil {
		return true, ""
	}
	age := time.Since(index.Confirmed())
	if age < staleAfter {
		return true, "journal: the index is up to date"
	}
	text = fmt.Sprintf("journal: it has not answered for %s; reads and verdicts go on, with what was known then",
		age.Round(time.Second))
	if why := index.Behind(); why != nil {
		text += "; " + why.Error()
	}
	return false, text
}

// answering is implemented by engines that send a service no requests while it does not answer. The error says why.
type answering interface{ Answering() error }

// BlobsCheck is a line of /readyz?verbose where the bytes are in a service: ok reports whether it answers.
func (d *Data) BlobsCheck() (ok bool, text string) {
	a, has := d.Blobs().(answering)
	if !has {
		return true, ""
	}
	if err := a.Answering(); err != nil {
		return false, "blobs: " + err.Error() + "; what is in memory is served"
	}
	return true, "blobs: the service answers"
}
