package bolt

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	bbolt "go.etcd.io/bbolt"

	"trow/storage"
)

// putHistory records a fact of a history.
func putHistory(tx *bbolt.Tx, repo string, f storage.Fact) error {
	history, err := tx.CreateBucketIfNotExists(bucketHistory)
	if err != nil {
		return err
	}
	k := factKey(repo, f.Kind, f.Name)
	switch {
	case f.Value != nil:
	case strings.HasSuffix(f.Name, "\x00"):
		return deleteAll(history, k)
	default:
		return history.Delete(k)
	}
	return history.Put(k, f.Value)
}

// raiseFormat raises the format of the data to the one that a kind of facts needs, in the transaction that sets the
// first such fact: an earlier version of the program must not open what it does not understand.
func raiseFormat(tx *bbolt.Tx, f storage.Fact) error {
	meta, need := tx.Bucket(bucketMeta), uint64(f.Kind.Format())
	if f.Value == nil || need == storage.FirstFormat || parseNumber(meta.Get(keyFormat)) >= need {
		return nil
	}
	return meta.Put(keyFormat, number(need))
}

// deleteAll deletes the records whose keys start with start. It seeks anew after each: a deletion moves a cursor.
func deleteAll(b *bbolt.Bucket, start []byte) error {
	for k, _ := b.Cursor().Seek(start); bytes.HasPrefix(k, start); k, _ = b.Cursor().Seek(start) {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// History implements [storage.Journal].
func (j *Journal) History(_ context.Context, repo, start string) (facts []storage.Fact, err error) {
	j.feed.Lock()
	defer j.feed.Unlock() // db must not be replaced meanwhile
	if j.feed.Closed() {
		return nil, fmt.Errorf("journal: %w", storage.ErrClosed)
	}
	if j.damage != nil {
		return nil, fmt.Errorf("journal %s: %w", j.path, j.damage)
	}
	err = view(j.db, func(tx *bbolt.Tx) error {
		history := tx.Bucket(bucketHistory)
		if history == nil {
			return nil
		}
		c, from := history.Cursor(), factKey(repo, storage.KindHistory, start)
		for k, v := c.Seek(from); bytes.HasPrefix(k, from); k, v = c.Next() {
			name := string(k[len(from)-len(start):])
			facts = append(facts, storage.Fact{Kind: storage.KindHistory, Name: name, Value: bytes.Clone(v)})
		}
		return nil
	})
	if j.noteDamage(err); err != nil {
		return nil, fmt.Errorf("journal %s: %w", j.path, err)
	}
	return facts, nil
}
