package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// statInterval is how often a write checks whether the file is still at its path.
	statInterval = time.Second
	// warnInterval is how often a failure is reported.
	warnInterval = time.Minute
)

// file is a file to which lines are appended. It is reopened when another program has renamed or removed it.
type file struct {
	path   string
	warn   func(error)
	failed atomic.Int64 // lines

	mu     sync.Mutex // guards what follows, and keeps lines from being mixed
	f      *os.File
	stat   time.Time // of the last check of the path
	warned time.Time
	torn   bool // the last line was written in part
}

func openFile(path string, warn func(error)) (*file, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	return &file{path: path, warn: warn, f: f, stat: time.Now()}, nil
}

// open opens a regular file, or creates one that only the owner can read. Writing to anything else could block
// requests. O_NONBLOCK keeps the call itself from blocking, if the path is a FIFO.
func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Write appends a line. It never returns an error, so that a full disk does not fail requests.
func (f *file) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.stat) >= statInterval {
		f.stat = now
		f.follow()
	}
	if f.torn { // or this line would be appended to the part, and both would be unreadable
		line = append([]byte("\n"), line...)
	}
	n, err := f.f.Write(line)
	if err == nil {
		f.torn = false
		return len(line), nil
	}
	f.torn = f.torn || n > 0
	f.failed.Add(1)
	f.report(err)
	return len(line), nil
}

// follow reopens the file unless it is the one at the path. The caller holds mu.
func (f *file) follow() {
	at, err := os.Stat(f.path)
	have, herr := f.f.Stat()
	switch {
	case err == nil && herr == nil && os.SameFile(at, have):
	case err == nil, errors.Is(err, fs.ErrNotExist):
		f.renew()
	default:
		f.report(err)
	}
}

// renew reopens the file. If that fails, lines still go to the old one. The caller holds mu.
func (f *file) renew() {
	next, err := open(f.path)
	if err != nil {
		f.report(err)
		return
	}
	if err := f.f.Close(); err != nil {
		f.report(err)
	}
	f.f, f.torn = next, false
}

// reopen reopens the file at once.
func (f *file) reopen() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.renew()
}

// report reports a failure, once a minute. The caller holds mu.
func (f *file) report(err error) {
	if now := time.Now(); now.Sub(f.warned) >= warnInterval {
		f.warned = now
		f.warn(err)
	}
}

func (f *file) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.f.Close()
}
