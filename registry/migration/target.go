package migration

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"trow/registry/maintenance"
	"trow/storage"
	"trow/storage/migrate"
)

// targetOf parses and validates the target in a query, whose parameters have the names of a server's settings. source
// is the data directory of the server.
func targetOf(q url.Values, source string) (t maintenance.Engines, err error) {
	t = maintenance.Engines{DataDir: q.Get("data"), Journal: q.Get("journal"), Blobs: q.Get("blobs"),
		JournalCA: q.Get("journal-ca-file"), JournalCert: q.Get("journal-cert-file"),
		JournalKey:  q.Get("journal-key-file"),
		JournalUser: q.Get("journal-user"), JournalPassword: q.Get("journal-password-file"),
		BlobsCA: q.Get("blobs-ca-file")}
	switch {
	case t.DataDir == "" && t.Journal == "" && t.Blobs == "":
		return t, errors.New("the target is missing; want --to-journal etcd://HOST:PORT/PREFIX and " +
			"--to-blobs s3://BUCKET/PREFIX?endpoint=https://HOST, or --to-data DIR")
	case t.DataDir != "" && t.Journal != "":
		return t, errors.New("to-data: a data directory has a journal already; leave out --to-journal, or --to-data")
	case t.DataDir == "" && t.Journal == "":
		return t, errors.New("to-journal: the bytes would be in S3, and the facts nowhere; add --to-journal, or " +
			"--to-data for a journal in a directory")
	case t.DataDir != "" && !filepath.IsAbs(t.DataDir):
		return t, fmt.Errorf("to-data: %q is not an absolute path", t.DataDir)
	case t.DataDir != "" && sameDir(t.DataDir, source):
		return t, errors.New("to-data: this is the data directory of the server; want another one")
	}
	return t, t.ValidateEngines("to-")
}

// sameDir reports whether two paths lead to the same directory, also by links; false if one does not exist.
func sameDir(a, b string) bool {
	i, err1 := os.Stat(a)
	j, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(i, j)
}

// exists reports whether the target can be opened without creating files: it has a journal, or is not a directory.
func exists(t maintenance.Engines) bool {
	if t.DataDir == "" {
		return true
	}
	_, err := os.Stat(filepath.Join(t.DataDir, "journal.db"))
	return err == nil
}

// open opens the target. The caller closes the pair with close. Errors: those of the engines, with the remedy.
func (m *Migration) open(ctx context.Context, t maintenance.Engines) (migrate.Side, *maintenance.Pair, error) {
	p, err := t.Open(ctx, maintenance.Use{Memory: m.Memory, Warn: m.warn}, nil, storage.IndexOptions{Migration: true})
	if err != nil {
		return migrate.Side{}, nil, fmt.Errorf("open the target: %w", err)
	}
	return migrate.Side{Name: t.Settings(), Journal: p.Journal, Index: p.Index, Blobs: p.Blobs}, p, nil
}

// close closes the target, and logs an error: what was moved is durable by then.
func (m *Migration) close(p *maintenance.Pair) {
	if err := p.Close(); err != nil {
		m.warn(err)
	}
}
