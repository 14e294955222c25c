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
}

// Read implements io.Reader.
func (u *unbroken) Read(p []byte) (int, error) {
	n, err := u.Source.Read(p)
	if u.through == nil || !errors.Is(err, upstream.ErrNoRoom) {
		return n, err
	}
	at, err := u.Seek(0, io.SeekCurrent)
	if err != nil {
		return n, err
	}
	rest, err := u.through(u.size)
	if err != nil {
		return n, err
	}
	// From the beginning: of a part, the digest cannot be verified.
	if _, err := io.CopyN(io.Discard, rest, at); err != nil {
		return n, errors.Join(err, rest.Close())
	}
	err = u.Close()
	u.Source, u.through = rest, nil
	return n, err
}
