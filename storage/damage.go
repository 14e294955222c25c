package storage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"runtime/debug"
)

// ErrDamaged: the journal's file cannot be read as it was written. The server does not start on it; trow rebuild
// makes it anew.
var ErrDamaged = errors.New("the journal is damaged")

// guard runs something that reads the journal's file. bbolt reads through a memory map and trusts what it finds: a
// page that makes no sense is a panic there, and one that the disk cannot read, or that is beyond the end of the file,
// is a fault of the process (SIGBUS), which we ask to be a panic as well. Both are ErrDamaged here.
func guard(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch p := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }: // a fault at an address; its own text speaks of nil pointers
			err = fmt.Errorf("%w: a page of it cannot be read, since the disk fails or the file was cut", ErrDamaged)
		default:
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return do()
}

// tally says what the facts of a journal add up to, whatever their order: how many there are, and a sum over all of
// them. It is kept with each commit and compared when the journal is loaded, since bbolt does not notice when a page is
// lost or is an older one. It is no protection against somebody who means it, and none against the loss of the page
// that says which commit is the last: bbolt then takes the one before, as it must when the power fails in a commit.
type tally struct {
	count, sum uint64
}

// add takes a fact in, or with sign -1 out.
func (t *tally) add(sign int, k, v []byte) {
	h := fnv.New64a()
	var length [binary.MaxVarintLen64]byte
	_, _ = h.Write(binary.AppendUvarint(length[:0], uint64(len(k))))
	_, _ = h.Write(k)
	_, _ = h.Write(v)
	t.count += uint64(sign)
	t.sum += uint64(sign) * h.Sum64()
}

func (t tally) bytes() []byte { return append(number(t.count), number(t.sum)...) }

func parseTally(b []byte) (t tally, ok bool) {
	if len(b) != 16 {
		return tally{}, false
	}
	return tally{parseNumber(b[:8]), parseNumber(b[8:])}, true
}
