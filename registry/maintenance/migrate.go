package maintenance

import (
	"trow/storage/migrate"
)

// Side is what the server works on, for a migration to somewhere else. Load must have returned.
func (d *Data) Side() migrate.Side {
	return migrate.Side{Name: d.options.Settings(), Journal: d.journal, Index: d.loaded.Load().index, Blobs: d.Blobs()}
}

// resting reports whether nothing is collected or removed now, because of a migration, and logs it.
func (d *Data) resting() bool {
	err := d.loaded.Load().index.Resting()
	if err != nil {
		d.log.Warn().Err(err).Msg("no collection")
	}
	return err != nil
}

// MigrationCheck is a line of /readyz?verbose while a migration is unfinished, or after one.
func (d *Data) MigrationCheck() (ok bool, text string) {
	l := d.loaded.Load()
	if l == nil {
		return true, ""
	}
	if err := l.index.Sealed(); err != nil {
		return false, "migration: " + err.Error()
	}
	if m, found := l.index.Migrating(); found {
		return false, "migration: one to " + m.To + " has not finished; nothing is collected meanwhile"
	}
	return true, ""
}
