package maintenance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"trow/registry/server"
	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
	"trow/storage/etcd"
	"trow/storage/s3"
)

// This file is where the engines are opened. What only some of them have is asked of them by a type assertion. What an
// engine does not have is neither done nor shown: no metric has a made-up value.

// These are replaced by tests. Root may write wherever permissions are all that is missing, and the services are not on
// the machine.
var (
	openJournal = func(dir string) (storage.Journal, error) { return journalOr(bolt.Open(dir)) }
	openEtcd    = func(ctx context.Context, o etcd.Options) (storage.Journal, error) {
		return journalOr(etcd.Open(ctx, o))
	}
	openS3 = func(ctx context.Context, o s3.Options) (storage.Blobs, error) {
		b, err := s3.Open(ctx, o)
		if err != nil {
			return nil, err // not a nil *s3.Blobs
		}
		return b, nil
	}
)

// journalOr returns an interface that is nil on an error.
func journalOr[J storage.Journal](j J, err error) (storage.Journal, error) {
	if err != nil {
		return nil, err
	}
	return j, nil
}

// etcd returns the options of the engine etcd.
func (o *Options) etcd() (etcd.Options, error) {
	e, err := etcd.ParseURL(o.Journal)
	e.CAFile, e.CertFile, e.KeyFile = o.JournalCA, o.JournalCert, o.JournalKey
	e.User, e.PasswordFile = o.JournalUser, o.JournalPassword
	return e, err
}

// s3 returns the options of the engine s3.
func (o *Options) s3() (s3.Options, error) {
	b, err := s3.ParseURL(o.Blobs)
	b.CAFile = cmp.Or(o.BlobsCA, b.CAFile)
	return b, err
}

// validateEngines reports the first setting of an engine that is not valid. No error quotes a credential.
func (o *Options) validateEngines() error {
	for setting, file := range map[string]string{"journal-ca-file": o.JournalCA, "journal-cert-file": o.JournalCert,
		"journal-key-file": o.JournalKey} {
		if file != "" && !strings.HasPrefix(o.Journal, "etcds://") {
			return fmt.Errorf("%s: it is for a journal in etcd over TLS; set journal to etcds://HOST:PORT/PREFIX",
				setting)
		}
	}
	switch {
	case (o.JournalCert == "") != (o.JournalKey == ""):
		return errors.New("journal-cert-file: a client certificate needs its key; set journal-key-file as well, or " +
			"neither")
	case (o.JournalUser == "") != (o.JournalPassword == ""):
		return errors.New("journal-user: a user needs a password; set journal-password-file as well, or neither")
	case o.JournalUser != "" && o.Journal == "":
		return errors.New("journal-user: it is for a journal in etcd; set journal to etcd://HOST:PORT/PREFIX")
	case o.BlobsCA != "" && o.Blobs == "":
		return errors.New("blobs-ca-file: it is for blobs in S3; set blobs to s3://BUCKET/PREFIX?endpoint=https://HOST")
	}
	if o.Journal != "" {
		if _, err := o.etcd(); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
	}
	if o.Blobs != "" {
		if _, err := o.s3(); err != nil {
			return fmt.Errorf("blobs: %w", err)
		}
	}
	if o.Journal != "" && o.Blobs == "" {
		return errors.New("blobs: a journal in etcd is for several servers, and a data directory is of one: another " +
			"server would not find the bytes; set blobs to s3://BUCKET/PREFIX?endpoint=https://HOST")
	}
	return nil
}

// openParts opens what is in the directory, as readOnly says, and takes its lock. Engines that are elsewhere are opened
// by Load, so that the server listens while they do not answer.
func (d *Data) openParts() (err error) {
	o := &d.options
	d.release = func() error { return nil }
	switch {
	case o.Journal != "" && d.readOnly != "": // nothing is written, so there is nothing to lock
	case o.Journal != "":
		if d.release, err = bolt.LockDirectory(o.DataDir); err != nil {
			return err
		}
	case d.readOnly != "":
		d.journal, err = journalOr(bolt.OpenReadOnly(o.DataDir))
	default:
		d.journal, err = openJournal(o.DataDir) // first: it holds the lock of the directory
	}
	if err != nil {
		return err
	}
	if o.Blobs == "" {
		b, err := disk.Open(o.DataDir, disk.Options{Reserve: o.Reserve.Of, MaxUploads: o.MaxUploads,
			Uploads: d.uploads, ReadOnly: d.readOnly != ""})
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
	if c, ok := d.journal.(interface{ Close() error }); ok {
		err = c.Close()
	}
	d.journal = nil
	return errors.Join(err, d.release())
}

func (d *Data) setBlobs(b storage.Blobs) { d.blobs.Store(&b) }

// Blobs is the content. It is nil before Load has returned if the content is not in the data directory.
func (d *Data) Blobs() storage.Blobs {
	if b := d.blobs.Load(); b != nil {
		return *b
	}
	return nil
}

// Where says where the data is, for people.
func (o *Options) Where() string {
	switch {
	case o.Journal != "":
		return o.Journal + " and " + o.Blobs
	case o.Blobs != "":
		return o.DataDir + " and " + o.Blobs
	}
	return o.DataDir
}

// share is the part of the memory that the process may use that uploads to S3 take for their parts.
const share = 8

// openEngines opens what is not in the data directory, and loads the index. Load calls it again while an engine does
// not answer. The index comes between the two engines, because the facts say which object has which bytes.
func (d *Data) openEngines(ctx context.Context) (index *storage.Index, err error) {
	if d.journal == nil {
		if err := d.openShared(ctx); err != nil {
			return nil, err
		}
	}
	if index, err = d.openIndex(ctx); err != nil {
		return nil, err
	}
	if d.options.Blobs != "" {
		err = d.openObjects(ctx, index)
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

// openShared opens the journal that the setting names.
func (d *Data) openShared(ctx context.Context) error {
	o, err := d.options.etcd()
	if err != nil {
		return err
	}
	o.Warn = d.warn
	j, err := openEtcd(ctx, o)
	if err != nil {
		return err
	}
	if d.journal = j; d.readOnly != "" {
		d.journal = readOnlyJournal{j}
	}
	return nil
}

// openObjects opens the blobs that the setting names.
func (d *Data) openObjects(ctx context.Context, index *storage.Index) error {
	o, err := d.options.s3()
	if err != nil {
		return err
	}
	o.Records, o.Uploads, o.MaxUploads = index, d.uploads, d.options.MaxUploads
	o.ReadOnly, o.Warn = d.readOnly != "", d.warn
	o.Memory = max(server.Memory()/share, 2*o.PartSize)
	b, err := openS3(ctx, o)
	if err == nil {
		d.setBlobs(b)
	}
	return err
}

// warn logs what an engine has handled by itself, and what its administrator must know.
func (d *Data) warn(err error) { d.log.Warn().Err(err).Msg("storage") }

// retryInterval is the time between two attempts to reach an engine at the start, besides what an attempt takes. It is
// a variable for tests alone.
var retryInterval = time.Second

// untilAnswered calls do until it succeeds, or fails with something that waiting does not change. It logs why it waits.
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

// readOnlyJournal refuses commits, for a server that writes nothing.
type readOnlyJournal struct{ storage.Journal }

// Commit implements [storage.Journal].
func (readOnlyJournal) Commit(context.Context, ...storage.Batch) (storage.Revision, error) {
	return 0, fmt.Errorf("journal: %w", storage.ErrReadOnly)
}

// Close closes what is below.
func (j readOnlyJournal) Close() error {
	if c, ok := j.Journal.(interface{ Close() error }); ok {
		return c.Close()
	}
	return nil
}

const (
	// confirmInterval is the time between two questions whether the index is up to date: without them its age would
	// grow while no request comes.
	confirmInterval = 2 * time.Second
	// staleAfter is the age from which on a line of /readyz?verbose is marked.
	staleAfter = 10 * time.Second
)

// confirm asks the journal whether the index is up to date.
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
	return false, fmt.Sprintf("journal: it has not answered for %s; reads and verdicts go on, with what was known then",
		age.Round(time.Second))
}

// answering is implemented by engines that stop asking a service that does not answer. An error says why.
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
