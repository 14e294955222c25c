package upstream

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// spoolPrefix begins the names of spool files: spool-ALGORITHM-DIGEST-FROM-RANDOM. Digest and upstream find what was
// received again after a restart.
const spoolPrefix = "spool-"

// spool is a file with the bytes of an upload that cannot be read while it grows, for the readers of a download. It is
// a storage.Follower. Each download has a file of its own, so that one that is about to end writes into no other.
type spool struct {
	*os.File
	fetcher  *Fetcher
	reserved int64 // bytes; guarded by Fetcher.mu
	closed   atomic.Bool
}

// openSpool creates a file for a content.
func openSpool(f *Fetcher, k key) (*spool, error) {
	file, err := os.CreateTemp(f.options.Dir,
		strings.Join([]string{spoolPrefix + k.digest.Algorithm().String(), k.digest.Encoded(), k.from, "*"}, "-"))
	if err != nil {
		return nil, err
	}
	return &spool{File: file, fetcher: f}, nil
}

// openLeft opens a file that an earlier download has left, and returns how many bytes it has.
func openLeft(f *Fetcher, path string) (*spool, int64, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return &spool{File: file, fetcher: f}, info.Size(), nil
}

// spoolKey returns the key in the name of a spool file. ok is false for another file, such as one of a version whose
// names had no upstream.
func spoolKey(path string) (k key, ok bool) {
	name, ok := strings.CutPrefix(filepath.Base(path), spoolPrefix)
	parts := strings.Split(name, "-")
	if !ok || len(parts) != 4 {
		return k, false
	}
	k = key{digest.NewDigestFromEncoded(digest.Algorithm(parts[0]), parts[1]), parts[2]}
	return k, k.digest.Validate() == nil
}

// grow makes sure that n bytes of the spool are reserved, before they are written. To make room, it drops what earlier
// downloads have left. Errors: ErrNoRoom.
func (s *spool) grow(n int64) error {
	f := s.fetcher
	for {
		f.mu.Lock()
		if n <= s.reserved || n-s.reserved <= f.options.Spool-f.spooled {
			if n > s.reserved {
				f.spooled += n - s.reserved
				s.reserved = n
			}
			f.mu.Unlock()
			return nil
		}
		f.mu.Unlock()
		if !f.dropOldest(true) {
			return &Error{Kind: ErrNoRoom, Reason: "the spool of downloads is full"}
		}
	}
}

// remove removes the name of the file; readers can still read it.
func (s *spool) remove() { _ = os.Remove(s.Name()) } // what stays is found at the next start

// Close closes the file and gives its bytes back. Further calls do nothing. It is called after the last reader: until
// then the file takes space on the disk.
func (s *spool) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.fetcher.mu.Lock()
	s.fetcher.spooled -= s.reserved
	s.reserved = 0
	s.fetcher.mu.Unlock()
	return s.File.Close()
}
