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

// Where the bytes are elsewhere, a copy of all facts lies beside them, from which trow rebuild makes a journal: etcd,
// or the data directory with the journal, may be lost alone.

const (
	// copyInterval is the greatest age of the copy, while something changes.
	copyInterval = time.Hour
	// keptCopies is how many copies stay: the newest one may turn out to be damaged.
	keptCopies = 2
)

// isSecret reports whether a record is left out of copies. With the keys, who may read the bucket could make tokens and
// go on with uploads of others; a server without them makes new ones, and what was signed with the old ones ends.
// Robots are in the copy: of their secrets, which are random, it has hashes.
func isSecret(record string) bool {
	return record == uploadKeyRecord || strings.HasPrefix(record, "auth/key/") ||
		strings.HasPrefix(record, recordOf(""))
}

// keeper returns what keeps copies of the facts. With all in the data directory, the journal has its backup there.
func (d *Data) keeper() (storage.Keeper, bool) {
	k, ok := d.Blobs().(storage.Keeper)
	return k, ok
}

// copyFacts makes a copy of the facts, unless the newest one knows everything.
func (d *Data) copyFacts(ctx context.Context) {
	k, ok := d.keeper()
	if !ok || d.loaded.Load().index.Sealed() != nil {
		return
	}
	if err := d.writeCopy(ctx, k, false); err != nil && ctx.Err() == nil {
		d.log.Error().Err(err).Msg("copying the facts to where the content is; trow rebuild would use an older copy")
	}
}

// writeCopy makes a copy of the facts, unless the newest one knows everything. believed: the journal was suspected, and
// an administrator has said since that it is to be believed as it is.
func (d *Data) writeCopy(ctx context.Context, k storage.Keeper, believed bool) error {
	if err := d.trust(ctx); err != nil { // beside the bytes of another registry it would be taken for that one's
		return err
	}
	index := d.loaded.Load().index
	var all []storage.Copy
	var err error
	if believed { // the newest copy is of what the journal does not know any more
		all, err = storage.CopiesOf(ctx, k)
	} else {
		all, err = expectCopied(ctx, k, index)
	}
	if err != nil {
		return err
	}
	if err := index.Suspicion(); err != nil {
		// The copies there are may know what the journal does not know any more, and a new one would drive them out.
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
	return k.RemoveCopies(ctx, old...) // last: until here, those that are whole are the old ones
}

// writeFacts makes a copy of a journal that is newer than all others, which are in order. rev is what it has at least:
// it has what comes meanwhile as well. dir is the data directory, for a file of its length.
func writeFacts(ctx context.Context, k storage.Keeper, j storage.Journal, dir string, others []storage.Copy,
	identity string, rev storage.Revision) (storage.Copy, error) {
	now := time.Now().Truncate(time.Second)            // as in its name
	if len(others) > 0 && !now.After(others[0].Time) { // as when a clock was wrong: the names tell the order
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
	// Commits of a local journal may wait while its state is read: for the disk, not for a service.
	return c, spooled(dir, write, func(r io.Reader) error {
		return k.WriteCopy(ctx, c.Name, func(w io.Writer) error { _, err := io.Copy(w, r); return err })
	})
}

// spooled calls write with a file in a directory, and then read with what is in it.
func spooled(dir string, write func(io.Writer) error, read func(io.Reader) error) (err error) {
	f, err := os.CreateTemp(dir, files.TempPrefix+"facts-") // the start removes one that a crash leaves
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

// expectAtStart compares the journal with the newest copy before anything is committed that raises its revision, and
// before what an earlier collection has condemned is deleted.
func (d *Data) expectAtStart(ctx context.Context, index *storage.Index) {
	k, ok := d.keeper()
	if !ok {
		return
	}
	if _, err := expectCopied(ctx, k, index); err != nil { // not fatal: the next collection looks again
		d.log.Error().Err(err).Msg("looking at the copies of the facts")
	}
}

// expectCopied returns the copies, the newest first. It makes the index suspect a journal that is older than the newest
// one. Errors: those of the engines.
func expectCopied(ctx context.Context, k storage.Keeper, index *storage.Index) ([]storage.Copy, error) {
	all, err := storage.CopiesOf(ctx, k)
	if err != nil || len(all) == 0 || index.Revision() >= all[0].Revision {
		return all, err
	}
	// Those of another journal, beside bytes that were adopted, say nothing.
	id, err := index.Record(ctx, identityRecord)
	if err != nil {
		return nil, err
	}
	h, err := headerOf(ctx, k, all[0].Name)
	switch {
	case errors.Is(err, storage.ErrCopy), errors.Is(err, storage.ErrNotFound): // or another server has removed it
		return all, nil
	case err != nil:
		return nil, err
	case h.Identity != string(id):
		return all, nil
	}
	return all, index.Expect(ctx, all[0].Revision)
}

// errHeader ends the reading of a copy behind its header.
var errHeader = errors.New("the header was read")

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
