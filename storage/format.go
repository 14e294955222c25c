package storage

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Where several processes share a journal, an update of the program replaces one after the other, so that two versions
// read the same facts. So a version writes a kind of fact that an earlier one does not know only when no process of the
// earlier one is left: each has a record with the format that it knows (see Beat), and another record has the common
// format, which all of them know, and which only grows. A process that does not know the common format does not join. A
// kind whose letter is upper case may be written at any time: a version that does not know it ignores it.

// formatRecord is the name of the record of the common format: the format, and a random text by which a process that
// joins is in conflict with one that raises the format at the same time.
const formatRecord = "format"

// sharedFormat is the format of a shared journal without that record.
const sharedFormat = 3

// replicaEnd is how long a process that does not renew its record keeps the format from being raised.
const replicaEnd = 5 * BeatInterval

// ErrFormat: there are facts of a format that this version of the program does not know.
var ErrFormat = errors.New("the data is of a newer format: use the newer version that wrote it")

// optional reports whether a version that does not know a kind ignores facts of it.
func (k Kind) optional() bool { return 'A' <= k && k <= 'Z' }

// unknown returns the error for a fact of a kind that is not known here: nil if it can be ignored, ErrFormat if a newer
// version can have written it, otherwise errFact.
func (s *state) unknown(k Kind) error {
	switch {
	case k.optional() || k.Format() <= s.format:
		return nil
	case s.format == 0:
		return errFact
	}
	return fmt.Errorf("%w: its kind is %q", ErrFormat, k)
}

func formatValue(format int) []byte {
	return appendString(binary.AppendUvarint(nil, uint64(format)), rand.Text())
}

// commonFormat returns the format that all processes know, as the change sees it.
func (tx *Tx) commonFormat() int {
	r := reader{buf: tx.record(formatRecord)}
	if n := r.length(); r.err == nil {
		return int(n)
	}
	return sharedFormat
}

// May reports whether the change may set facts of a kind, because all processes that share the journal know it. Without
// a shared journal it is always true. The common format only grows, so the change need not depend on it.
func (tx *Tx) May(k Kind) bool {
	return !tx.x.shared || k.optional() || k.Format() <= tx.commonFormat()
}

// checkFormats refuses a change with a fact that another process would not understand. Such a change is a bug in this
// package: code that sets such a fact must call May first.
func (tx *Tx) checkFormats() error {
	for _, changes := range []overlay{tx.own, tx.ownStore} {
		for f, value := range changes {
			if value != nil && f.kind.Format() > sharedFormat && !tx.May(f.kind) {
				return fmt.Errorf("a fact of kind %q needs format %d, and another replica knows less", f.kind,
					f.kind.Format())
			}
		}
	}
	return nil
}

// agree raises the common format once all processes know a newer one. A process that joins sets the record again
// instead: so it conflicts with a process that raises the format at the same time without knowing of it. Error:
// ErrFormat, if this process does not know the common format.
func (tx *Tx) agree(name string) error {
	common, own := tx.commonFormat(), tx.x.format()
	if common > own {
		return fmt.Errorf("%w; it is format %d, and this version knows formats up to %d", ErrFormat, common, own)
	}
	if tx.record(replicaRecord+name) == nil {
		tx.setRecord(formatRecord, formatValue(common))
		return nil
	}
	if all := tx.x.leastFormat(own); all > common {
		tx.setRecord(formatRecord, formatValue(all))
	}
	return nil
}

// format returns the newest format that this process knows.
func (x *Index) format() int { return max(Format, x.options.Format) }

// leastFormat returns the newest format that this process and all others know.
func (x *Index) leastFormat(own int) int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	for name, r := range x.state.replicas {
		if name != x.name && time.Since(r.seen) <= replicaEnd {
			own = min(own, r.format)
		}
	}
	return own
}
