package maintenance

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"syscall"

	"trow/registry/admin"
	"trow/storage"
)

// A data directory that cannot be written to, but read, is served all the same: pulls and verdicts need no more. A
// cluster whose volume has come back read-only after an error of the disk can so go on starting pods.

// errReadOnly refuses the work of an administrator.
var errReadOnly = errors.New("the registry is read-only: it writes nothing to its data directory; " +
	"restart it where it may write there, and without the setting read-only")

// open opens the directory to write to it, or only to read it.
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

// ReadOnlyCheck is a line of /readyz?verbose if nothing is written to the directory.
func (d *Data) ReadOnlyCheck() (ok bool, text string) {
	if d.readOnly == "" {
		return true, ""
	}
	return false, "read-only, pulls and verdicts alone: " + d.readOnly
}

// writing is a job that changes the data, unless it is to report alone.
func (d *Data) writing(job admin.Job) http.Handler {
	return admin.Job(func(ctx context.Context, q url.Values, report func(any)) (any, error) {
		if d.readOnly != "" && !q.Has("dry-run") {
			return nil, errReadOnly
		}
		return job(ctx, q, report)
	})
}
