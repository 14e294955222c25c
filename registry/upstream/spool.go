package upstream

import (
	"errors"
	"os"
)

// spool is a file with the bytes of an upload that cannot be read while it grows, for the readers of a download. It is
// a storage.Follower.
type spool struct {
	*os.File
	fetcher  *Fetcher
	reserved int64 // bytes; guarded by Fetcher.mu
}

// openSpool creates a file and removes its name at once, so that the file system frees it even after a crash.
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

// grow makes sure that n bytes of the spool are reserved, before they are written. Errors: ErrNoRoom.
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

// Close closes the file and gives its bytes back. It is called once, after the last reader: until then the file takes
// space on the disk.
func (s *spool) Close() error {
	s.fetcher.mu.Lock()
	s.fetcher.spooled -= s.reserved
	s.reserved = 0
	s.fetcher.mu.Unlock()
	return s.File.Close()
}
