package mirror

import (
	"errors"
	"io"

	"trow/registry/upstream"
)

// unbroken is a Source whose download may fail because the disk is full. Its client does not notice: it gets what is
// missing from the upstream, and that is not stored.
type unbroken struct {
	Source
	through func(size int64) (Source, error) // see [upstream.Fetcher.Through]; nil: the Source is one
	size    int64
	begin   int64 // where reading began
}

// Seek implements io.Seeker.
func (u *unbroken) Seek(offset int64, whence int) (at int64, err error) {
	u.begin, err = u.Source.Seek(offset, whence)
	return u.begin, err
}

// Read implements io.Reader.
func (u *unbroken) Read(p []byte) (int, error) {
	n, err := u.Source.Read(p)
	if u.through == nil || !errors.Is(err, upstream.ErrNoRoom) {
		return n, err
	}
	at, err := u.Source.Seek(0, io.SeekCurrent)
	if err != nil {
		return n, err
	}
	rest, err := u.through(u.size)
	if err != nil {
		return n, err
	}
	if u.begin == 0 { // all of it is read again: of a part, the digest cannot be verified
		_, err = io.CopyN(io.Discard, rest, at)
	} else {
		_, err = rest.Seek(at, io.SeekStart)
	}
	if err != nil {
		return n, errors.Join(err, rest.Close())
	}
	err = u.Close()
	u.Source, u.through = rest, nil
	return n, err
}
