package maintenance

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"trow/registry/admin"
	"trow/storage"
)

// A data directory that can be read but not written to is served all the same: pulls and verdicts need no more. So a
// cluster whose volume has become read-only after a disk error can go on starting pods.

// errReadOnly refuses jobs of an administrator that write.
var errReadOnly = errors.New("the registry is read-only: it writes nothing to its data directory; " +
	"restart it where it may write there, and without the setting read-only")

// open opens the directory for writing, or only for reading if it cannot be written to. Errors: as openParts.
func (d *Data) open() error {
	if d.options.ReadOnly {
		d.readOnly = "setting read-only"
		return d.openParts()
	}
	err := d.openParts()
	if err == nil || !unwritable(err) {
		return err
	}
	d.readOnly = err.Error()
	if d.openParts() != nil {
		return err // it cannot be read either, or there is nothing in it: the first error has the remedy
	}
	d.log.Warn().Err(err).Msg("the data directory cannot be written to: pulls and verdicts are served, " +
		"and everything that changes anything is refused, until a restart where it can")
	return nil
}

// unwritable reports whether an error of the file system can mean that the directory may only be read.
func unwritable(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) || errors.Is(err, storage.ErrReadOnly)
}

// ReadOnly reports whether nothing is written to the directory. It does not change while the server runs.
func (d *Data) ReadOnly() bool { return d.readOnly != "" }

// writable is implemented by engines on a file system, which may become read-only. Writable tries to write.
type writable interface{ Writable() error }

// stillWritable asks the file system whether the directory can be written to. Tests replace it.
var stillWritable = writable.Writable

// ReadOnlyCheck is a line of /readyz?verbose if nothing is written to the directory, or nothing can be any more.
func (d *Data) ReadOnlyCheck() (ok bool, text string) {
	if d.readOnly != "" {
		return false, "read-only, pulls and verdicts alone: " + d.readOnly
	}
	if err := d.unwritable.Load(); err != nil {
		return false, "the data directory has become read-only, pulls and verdicts go on: " + (*err).Error()
	}
	return true, ""
}

// writableInterval is the time between two tries to write to the directory: each costs the disk a write or two.
const writableInterval = 30 * time.Second

// watchWritable checks whether the directory can still be written to. It logs once that it cannot, and once that it can
// again. A full disk is not counted: watchSpace logs that.
func (d *Data) watchWritable(context.Context) {
	b, ok := d.Blobs().(writable)
	if !ok {
		return
	}
	err := stillWritable(b)
	if errors.Is(err, storage.ErrFull) {
		err = nil
	}
	switch known := d.unwritable.Load() != nil; {
	case err != nil:
		if d.unwritable.Store(&err); known {
			return
		}
		d.log.Error().Err(err).Msg("the data directory has become read-only, as after an error of the disk: pulls " +
			"and verdicts go on, and everything that changes anything fails; look at the volume, then restart the " +
			"server")
	case known:
		d.unwritable.Store(nil)
		d.log.Info().Msg("the data directory can be written to again")
	}
}

// writing returns the handler of a job that writes; a read-only server accepts only its dry run.
func (d *Data) writing(job admin.Job) http.Handler {
	return admin.Job(func(ctx context.Context, q url.Values, report func(any)) (any, error) {
		if d.readOnly != "" && !q.Has("dry-run") {
			return nil, errReadOnly
		}
		return job(ctx, q, report)
	})
}
