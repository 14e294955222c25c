package upstream

import (
	"errors"
	"os"
)

// spool keeps the bytes of an upload that cannot be read while it grows, for the readers of a download.
type spool struct {
	*os.File
	fetcher  *Fetcher
	reserved int64 // bytes
}

// openSpool makes a file without a name: a crash leaves nothing behind.
func openSpool(f *Fetcher) (*spool, error) {
	file, err := os.CreateTemp(f.options.Dir, "spool-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &spool{File: file, fetcher: f}, nil
}

// grow makes sure that room for n bytes is reserved. Errors: ErrNoRoom.
func (s *spool) grow(n int64) error {
	f := s.fetcher
	f.mu.Lock()
	defer f.mu.Unlock()
	if n > s.reserved {
		if n-s.reserved > f.options.Spool-f.spooled {
			return &Error{Kind: ErrNoRoom, Reason: "the spool of downloads is full"}
		}
		f.spooled += n - s.reserved
		s.reserved = n
	}
	return nil
}

// Close gives the room back. It is called when the last reader has gone: until then the file takes it.
func (s *spool) Close() error {
	s.fetcher.mu.Lock()
	s.fetcher.spooled -= s.reserved
	s.reserved = 0
	s.fetcher.mu.Unlock()
	return s.File.Close()
}
