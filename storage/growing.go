package storage

import "io"

// Growing is an optional interface of an Upload whose bytes can be read while it grows.
type Growing interface {
	// Follow opens the bytes of the upload, those that Write has returned for and those still to come. It does not
	// hinder the writer. It stays readable when the upload has ended, in whichever way. The caller closes it. Errors:
	// ErrClosed.
	Follow() (Follower, error)
}

// Grows is an optional interface of Blobs: all its uploads are Growing, and one that CreateAs has made and Close keeps
// takes nothing but the room of its bytes until Expire.
type Grows interface {
	Blobs
	UploadsGrow()
}

// Follower reads an upload that may still grow. ReadAt returns io.EOF where it has no more bytes yet. It is safe for
// concurrent use.
type Follower interface {
	io.ReaderAt
	io.Closer
}
