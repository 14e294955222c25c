package maintenance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"trow/storage"
	"trow/storage/files"
)

// If the bytes are not in the data directory, a copy of all facts is kept beside them, from which trow rebuild makes a
// journal: etcd, or the data directory with the journal, may be lost without the bytes.

const (
	// copyInterval is the time between two copies, and so how much of the changes a rebuild can lose.
	copyInterval = time.Hour
	// keptCopies is how many copies are kept: the newest one may turn out to be damaged.
	keptCopies = 2
)

// isSecret reports whether a record is left out of copies. With the keys, anyone who may read the bucket could issue
// tokens and continue the uploads of others; a server without them makes new ones, and what was signed with the old
// ones becomes invalid. Robots are in the copy: it has only hashes of their secrets, which are random. The records of
// runs are left out because they are about the replicas of now.
func isSecret(record string) bool {
	return record == uploadKeyRecord || strings.HasPrefix(record, "auth/key/") ||
		strings.HasPrefix(record, recordOf(""))
}

// keeper returns the engine that keeps copies of the facts; false if the bytes are in the data directory, where the
// journal has its backup.
func (d *Data) keeper() (storage.Keeper, bool) {
	k, ok := d.Blobs().(storage.Keeper)
	return k, ok
}

// copyFacts makes a copy of the facts, unless the newest one is up to date, and logs an error. Nothing is copied
// after a migration: from then on the facts are those of the target.
func (d *Data) copyFacts(ctx context.Context) {
	k, ok := d.keeper()
	if !ok || d.loaded.Load().index.Sealed() != nil {
		return
	}
	if err := d.writeCopy(ctx, k, false); err != nil && ctx.Err() == nil {
		d.log.Error().Err(err).Msg("copying the facts to where the content is; trow rebuild would use an older copy")
	}
}

// writeCopy makes a copy of the facts, unless the newest one is up to date, and removes old copies. believed: the
// journal was suspected to have gone back, and an administrator has confirmed it. Errors: ErrIdentity; those of the
// engines; the journal is suspected.
func (d *Data) writeCopy(ctx context.Context, k storage.Keeper, believed bool) error {
	if err := d.trust(ctx); err != nil { // a rebuild of another registry would use a copy that lies beside its bytes
		return err
	}
	index := d.loaded.Load().index
	var all []storage.Copy
	var err error
	if believed { // the newest copy has a higher revision, which would raise the suspicion again
		all, err = storage.CopiesOf(ctx, k)
	} else {
		all, err = expectCopied(ctx, k, index)
	}
	if err != nil {
		return err
	}
	if err := index.Suspicion(); err != nil {
		// The present copies may have facts that the journal has lost, and a new copy would replace them.
		return fmt.Errorf("no copy is made: %w", err)
	}
	rev := index.Revision()
	if len(all) > 0 && all[0].Revision == rev {
		return nil
	}
	id, err := index.Record(ctx, identityRecord)
	if err != nil {
		return err
	}
	c, err := writeFacts(ctx, k, d.journal, d.options.DataDir, all, string(id), rev)
	if index.Doubt(err); err != nil {
		return err
	}
	var old []string
	for i, c := range all {
		if i >= keptCopies-1 {
			old = append(old, c.Name)
		}
	}
	d.log.Debug().Str("copy", c.Name).Msg("copied the facts to where the content is")
	return k.RemoveCopies(ctx, old...) // last: until the new copy is written, only the old ones are complete
}

// writeFacts makes a copy of a journal. others are the present copies, the newest first; the new one sorts before them.
// rev is the revision that the copy has at least: it may include commits that are made in the meantime. dir is the data
// directory, for a temporary file of the copy's length. Errors: those of the engines and of the file system.
func writeFacts(ctx context.Context, k storage.Keeper, j storage.Journal, dir string, others []storage.Copy,
	identity string, rev storage.Revision) (storage.Copy, error) {
	now := time.Now().Truncate(time.Second)            // names have whole seconds
	if len(others) > 0 && !now.After(others[0].Time) { // names must sort as the copies do, also after a clock was wrong
		now = others[0].Time.Add(time.Second)
	}
	c, h := storage.NewCopy(now, rev), storage.CopyHeader{Identity: identity, Revision: rev, Time: now}
	write := func(w io.Writer) error {
		_, err := storage.WriteFacts(ctx, w, j, h, isSecret)
		return err
	}
	if j.Traits().Shared {
		return c, k.WriteCopy(ctx, c.Name, write)
	}
	// Commits of a local journal may wait while its state is read, so it is read into a file first: they must not wait
	// for an upload to the service.
	return c, spooled(dir, write, func(r io.Reader) error {
		return k.WriteCopy(ctx, c.Name, func(w io.Writer) error { _, err := io.Copy(w, r); return err })
	})
}

// spooled calls write with a temporary file in a directory, and then read with its content. Errors: those of the file
// system, of write and of read.
func spooled(dir string, write func(io.Writer) error, read func(io.Reader) error) (err error) {
	f, err := os.CreateTemp(dir, files.TempPrefix+"facts-") // after a crash, the next start removes it (openHold)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if err := write(f); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return read(f)
}

// expectAtStart compares the journal with the newest copy. It is called before anything is committed, which would raise
// the revision and hide that the journal went back, and before anything is deleted that an earlier collection has
// condemned.
func (d *Data) expectAtStart(ctx context.Context, index *storage.Index) {
	k, ok := d.keeper()
	if !ok {
		return
	}
	if _, err := expectCopied(ctx, k, index); err != nil { // not fatal: the next collection looks again
		d.log.Error().Err(err).Msg("looking at the copies of the facts")
	}
}

// expectCopied returns the copies, the newest first. If the journal has a lower revision than the newest one, the index
// suspects from then on that the journal went back (storage.Index.Expect). Errors: those of the engines.
func expectCopied(ctx context.Context, k storage.Keeper, index *storage.Index) ([]storage.Copy, error) {
	all, err := storage.CopiesOf(ctx, k)
	if err != nil || len(all) == 0 || index.Revision() >= all[0].Revision {
		return all, err
	}
	// Copies of another journal, beside bytes that were adopted, have unrelated revisions.
	id, err := index.Record(ctx, identityRecord)
	if err != nil {
		return nil, err
	}
	h, err := headerOf(ctx, k, all[0].Name)
	switch {
	case errors.Is(err, storage.ErrCopy), errors.Is(err, storage.ErrNotFound): // damaged, or removed by another server
		return all, nil
	case err != nil:
		return nil, err
	case h.Identity != string(id):
		return all, nil
	}
	return all, index.Expect(ctx, all[0].Revision)
}

// errHeader ends the reading of a copy after its header.
var errHeader = errors.New("the header was read")

// headerOf returns the header of a copy. Errors: those of the engine; ErrCopy.
func headerOf(ctx context.Context, k storage.Keeper, name string) (storage.CopyHeader, error) {
	r, err := k.OpenCopy(ctx, name)
	if err != nil {
		return storage.CopyHeader{}, err
	}
	defer r.Close()
	h, err := storage.ReadFacts(r, func(string, []storage.Fact) error { return errHeader })
	if errors.Is(err, errHeader) {
		err = nil
	}
	return h, err
}
