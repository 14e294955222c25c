package migration

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
	"trow/storage/etcd"
	"trow/storage/migrate"
	"trow/storage/s3"
)

// target is where a migration goes. The fields are those of the query, and named as the settings of a server.
type target struct {
	dir, journal, blobs     string
	journalCA, cert, key    string
	user, password, blobsCA string // the second is a file
	memory                  int64  // see Migration.Memory
}

// targetOf reads the target of a query, and checks it. source is the data directory of the server.
func targetOf(q url.Values, source string) (*target, error) {
	t := &target{dir: q.Get("data"), journal: q.Get("journal"), blobs: q.Get("blobs"),
		journalCA: q.Get("journal-ca-file"), cert: q.Get("journal-cert-file"), key: q.Get("journal-key-file"),
		user: q.Get("journal-user"), password: q.Get("journal-password-file"), blobsCA: q.Get("blobs-ca-file")}
	_, etcdErr := etcd.ParseURL(t.journal)
	_, s3Err := s3.ParseURL(t.blobs)
	switch {
	case t.dir == "" && t.journal == "" && t.blobs == "":
		return nil, errors.New("the target is missing; want --to-journal etcd://HOST:PORT/PREFIX and " +
			"--to-blobs s3://BUCKET/PREFIX?endpoint=https://HOST, or --to-data DIR")
	case t.dir != "" && t.journal != "":
		return nil, errors.New("to-data: a data directory has a journal already; leave out --to-journal, or --to-data")
	case t.dir == "" && t.journal == "":
		return nil, errors.New("to-journal: the bytes would be in S3, and the facts nowhere; add --to-journal, or " +
			"--to-data for a journal in a directory")
	case t.dir == "" && t.blobs == "":
		return nil, errors.New("to-blobs: a journal in etcd is for several servers, and a data directory is of one: " +
			"another server would not find the bytes; add --to-blobs s3://BUCKET/PREFIX?endpoint=https://HOST")
	case t.journal != "" && etcdErr != nil:
		return nil, fmt.Errorf("to-journal: %w", etcdErr)
	case t.blobs != "" && s3Err != nil:
		return nil, fmt.Errorf("to-blobs: %w", s3Err)
	case t.dir != "" && !filepath.IsAbs(t.dir):
		return nil, fmt.Errorf("to-data: %q is not an absolute path", t.dir)
	case t.dir != "" && sameDir(t.dir, source):
		return nil, errors.New("to-data: this is the data directory of the server; want another one")
	}
	return t, nil
}

func sameDir(a, b string) bool {
	i, err1 := os.Stat(a)
	j, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(i, j)
}

// name says where the target is: as the settings of a server there. It has no credentials, because no URL has any.
func (t *target) name() string {
	switch {
	case t.journal != "":
		return "journal " + t.journal + " with blobs " + t.blobs
	case t.blobs != "":
		return "data directory " + t.dir + " with blobs " + t.blobs
	}
	return "data directory " + t.dir
}

// exists reports whether opening the target makes nothing that stays.
func (t *target) exists() bool {
	if t.dir == "" {
		return true
	}
	_, err := os.Stat(filepath.Join(t.dir, "journal.db"))
	return err == nil
}

// open is a target that is open.
type open struct {
	migrate.Side
	closers []func() error // in the order in which they were opened
}

// open opens the target. Errors: those of the engines, with the remedy.
func (t *target) open(ctx context.Context, warn func(error)) (o *open, err error) {
	o = &open{Side: migrate.Side{Name: t.name()}}
	defer func() {
		if err != nil {
			o.close(warn)
			o, err = nil, fmt.Errorf("open the target: %w", err)
		}
	}()
	if err := t.openJournal(ctx, o, warn); err != nil {
		return o, err
	}
	o.Index, err = storage.OpenIndex(ctx, o.Journal,
		storage.IndexOptions{Placed: t.blobs != "", Migration: true, Warn: warn})
	if err != nil {
		return o, err
	}
	o.closers = append(o.closers, func() error { o.Index.Close(); return nil })
	if t.blobs == "" {
		b, err := disk.Open(t.dir, disk.Options{})
		if err == nil {
			o.Blobs = b
		}
		return o, err
	}
	options, err := s3.ParseURL(t.blobs)
	if err != nil {
		return o, err
	}
	options.CAFile, options.Records, options.Warn = cmp.Or(t.blobsCA, options.CAFile), o.Index, warn
	options.Memory = max(t.memory, 2*options.PartSize)
	b, err := s3.Open(ctx, options)
	if err == nil {
		o.Blobs = b
	}
	return o, err
}

func (t *target) openJournal(ctx context.Context, o *open, warn func(error)) error {
	if t.dir != "" {
		j, err := bolt.Open(t.dir)
		if err != nil {
			return err
		}
		o.Journal, o.closers = j, append(o.closers, j.Close)
		return nil
	}
	options, err := etcd.ParseURL(t.journal)
	if err != nil {
		return err
	}
	options.CAFile, options.CertFile, options.KeyFile = t.journalCA, t.cert, t.key
	options.User, options.PasswordFile, options.Warn = t.user, t.password, warn
	j, err := etcd.Open(ctx, options)
	if err != nil {
		return err
	}
	o.Journal, o.closers = j, append(o.closers, j.Close)
	return nil
}

// close closes the index, and then the journal.
func (o *open) close(warn func(error)) {
	for i := len(o.closers) - 1; i >= 0; i-- {
		if err := o.closers[i](); err != nil {
			warn(err)
		}
	}
}
