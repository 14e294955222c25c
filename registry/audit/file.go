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
	// lookEvery is how often it is looked whether the file is still where it was.
	lookEvery = time.Second
	// warnEvery is how often a failure is told.
	warnEvery = time.Minute
)

// file is a file that lines are appended to. It is opened anew when somebody has renamed or removed it.
type file struct {
	path   string
	warn   func(error)
	failed atomic.Int64 // lines

	mu     sync.Mutex // guards what follows, and keeps lines whole
	f      *os.File
	looked time.Time
	warned time.Time
	torn   bool // the last line was written in part
}

func openFile(path string, warn func(error)) (*file, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	return &file{path: path, warn: warn, f: f, looked: time.Now()}, nil
}

// open opens a regular file, and makes one for the owner alone. Anything else could keep requests waiting.
func open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Write appends a line. It never fails for its caller.
func (f *file) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.looked) >= lookEvery {
		f.looked = now
		f.follow()
	}
	if f.torn {
		line = append([]byte("\n"), line...)
	}
	n, err := f.f.Write(line)
	if err == nil {
		f.torn = false
		return len(line), nil
	}
	f.torn = f.torn || n > 0
	f.failed.Add(1)
	f.tell(err)
	return len(line), nil
}

// follow opens the file anew unless it is the one at the path. The caller has mu.
func (f *file) follow() {
	at, err := os.Stat(f.path)
	have, herr := f.f.Stat()
	switch {
	case err == nil && herr == nil && os.SameFile(at, have):
	case err == nil, errors.Is(err, fs.ErrNotExist):
		f.renew()
	default:
		f.tell(err)
	}
}

// renew opens the file anew. If that fails, the old one is written on. The caller has mu.
func (f *file) renew() {
	next, err := open(f.path)
	if err != nil {
		f.tell(err)
		return
	}
	if err := f.f.Close(); err != nil {
		f.tell(err)
	}
	f.f, f.torn = next, false
}

func (f *file) reopen() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.renew()
}

// tell tells of a failure, once a minute. The caller has mu.
func (f *file) tell(err error) {
	if now := time.Now(); now.Sub(f.warned) >= warnEvery {
		f.warned = now
		f.warn(err)
	}
}

func (f *file) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.f.Close()
}
