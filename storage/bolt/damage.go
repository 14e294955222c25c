package bolt

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"runtime/debug"

	"trow/storage"
)

// guard runs something that reads the journal's file, and turns panics into ErrDamaged. bbolt reads through a memory
// map and trusts what it finds: a page that makes no sense is a panic. A page that the disk cannot read, or that is
// beyond the end of the file, is a fault of the process (SIGBUS), which we ask the runtime to turn into a panic as
// well.
func guard(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch p := recover().(type) {
		case nil:
		case interface{ Addr() uintptr }: // a fault at an address; its own text speaks of nil pointers
			err = fmt.Errorf("%w: a page of it cannot be read: the disk fails, or the file was cut", storage.ErrDamaged)
		default:
			err = fmt.Errorf("%w: %v", storage.ErrDamaged, p)
		}
	}()
	return do()
}

// tally is what the facts of a journal add up to, in any order: their number, and a sum over all of them. It is kept
// with each commit and compared when the journal is loaded, because bbolt does not notice when a page is lost or is an
// older one.
type tally struct {
	count, sum uint64
}

// add adds a fact; with sign -1 it removes one.
func (t *tally) add(sign int, k, v []byte) {
	h := fnv.New64a()
	// The length separates key and value, so that moving a byte from one to the other changes the sum.
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
