package mirror

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// usedRecord begins the names of the records of last uses. There is one for each first byte of the digests, so that a
// change rewrites only a part of them.
const usedRecord = "cache/used/"

// usedLength is the length of one last use in bytes: the first 8 bytes of the digest, and the hour in 4. Two digests
// with the same 8 bytes would share an hour, which does no harm.
const usedLength = 12

// usedOf returns the first bytes of a digest; ok is false if it is too short or not in hexadecimal.
func usedOf(d digest.Digest) (key [usedLength - 4]byte, ok bool) {
	encoded := d.Encoded()
	if len(encoded) < 2*len(key) {
		return key, false
	}
	_, err := hex.Decode(key[:], []byte(encoded[:2*len(key)]))
	return key, err == nil
}

// Save writes the records of last uses that have changed. If another replica has changed one of them, the uses of both
// are written. Errors: those of the journal; ErrConflict if others change them all the time.
func (c *Cache) Save(ctx context.Context) (err error) {
	const tries = 5
	for range tries {
		if err = c.save(ctx); !errors.Is(err, storage.ErrConflict) {
			return err
		}
		c.restore()
	}
	return err
}

func (c *Cache) save(ctx context.Context) error {
	uses := map[string][][]byte{}
	c.mu.Lock()
	for e := c.order.Front(); e != nil; e = e.Next() {
		if key, ok := usedOf(e.Value.(*item).digest); ok {
			name := usedRecord + hex.EncodeToString(key[:1])
			uses[name] = append(uses[name], binary.BigEndian.AppendUint32(key[:], e.Value.(*item).hour))
		}
	}
	old := maps.Clone(c.written)
	c.mu.Unlock()
	shards := map[string][]byte{}
	for name := range old {
		shards[name] = nil // deleted, unless some of its contents are still cached
	}
	for name, all := range uses {
		slices.SortFunc(all, bytes.Compare) // in a fixed order, so that equal uses are an equal record
		shards[name] = bytes.Join(all, nil)
	}
	var errs []error
	for name, value := range shards {
		if bytes.Equal(old[name], value) {
			continue
		}
		if err := c.store.SetRecord(ctx, name, old[name], value); err != nil {
			errs = append(errs, err)
			continue
		}
		c.mu.Lock()
		c.written[name] = value
		c.mu.Unlock()
	}
	return errors.Join(errs...)
}

// restore reads the last uses from the journal. Of two times of one content, the later one counts.
func (c *Cache) restore() {
	hours := map[[usedLength - 4]byte]uint32{}
	written := map[string][]byte{}
	for name, value := range c.store.Records(usedRecord) {
		written[name] = value
		for ; len(value) >= usedLength; value = value[usedLength:] {
			hours[[usedLength - 4]byte(value)] = binary.BigEndian.Uint32(value[usedLength-4:])
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.written = written
	var all []*list.Element
	for e := c.order.Front(); e != nil; e = e.Next() {
		if key, ok := usedOf(e.Value.(*item).digest); ok {
			e.Value.(*item).hour = max(e.Value.(*item).hour, hours[key])
		}
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b *list.Element) int {
		return cmp.Compare(b.Value.(*item).hour, a.Value.(*item).hour)
	})
	for _, e := range all { // the latest first, so the latest stays in front
		c.order.MoveToBack(e)
	}
}
