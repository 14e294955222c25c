package storage

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Records are small values by name that are not content: robots, keys, the uploads of a Placed engine. They are facts,
// so that every process that shares a journal has them.

// Record returns the value of a record, nil if it does not exist. A miss is confirmed with the Journal. Errors: as
// Resolve.
func (x *Index) Record(ctx context.Context, name string) ([]byte, error) {
	if value := x.record(name); value != nil {
		return value, nil
	}
	if news, err := x.confirm(ctx); err != nil || !news {
		return nil, err
	}
	return x.record(name), nil
}

// SetRecord replaces the value of a record, and deletes it if value is nil. Errors: ErrConflict unless the value was
// old (nil: there was none); as Update.
func (x *Index) SetRecord(ctx context.Context, name string, old, value []byte) error {
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		if now := tx.record(name); !same(now, old) {
			return fmt.Errorf("record %q: %w", name, ErrConflict)
		}
		tx.setRecord(name, value)
		return nil
	})
}

// Records lists the records whose names start with prefix, in order.
func (x *Index) Records(prefix string) iter.Seq2[string, []byte] {
	x.mu.RLock()
	found := map[string][]byte{}
	var names []string
	for name, value := range x.state.records {
		if strings.HasPrefix(name, prefix) {
			found[name] = value
			names = append(names, name)
		}
	}
	x.mu.RUnlock()
	slices.Sort(names)
	return func(yield func(string, []byte) bool) {
		for _, name := range names {
			if !yield(name, found[name]) {
				return
			}
		}
	}
}

// same reports whether two values are equal; nil, unlike an empty value, stands for a fact that does not exist.
func same(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }

func (x *Index) record(name string) []byte {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state.records[name]
}

func (s *state) setRecord(name string, value []byte) {
	s.noteReplica(name, value)
	s.noteReserved(name, value)
	s.memory -= memOfRecord(name, s.records[name])
	if value == nil {
		delete(s.records, name)
		return
	}
	s.records[name] = bytes.Clone(value) // the journal may reuse its buffer
	s.memory += memOfRecord(name, value)
}

// memOfRecord is what a record takes: 90 bytes are its place in the map.
func memOfRecord(name string, value []byte) int64 {
	if value == nil {
		return 0
	}
	return 90 + memText(len(name)) + memText(len(value))
}

// Record returns the value of a record, nil if it does not exist, and makes the change depend on it: the change is
// committed only while the record is so.
func (tx *Tx) Record(name string) []byte {
	value, changed := tx.storeFact(kindRecord, name)
	if changed {
		return value
	}
	value = tx.committedRecord(name)
	if tx.x.shared {
		tx.require(storeRepo, kindRecord, name, value)
	}
	return value
}

// record returns a record as the change sees it.
func (tx *Tx) record(name string) []byte {
	if v, ok := tx.storeFact(kindRecord, name); ok {
		return v
	}
	return tx.committedRecord(name)
}

// committedRecord returns a record as it was when the change first read it. Another process's commit may show at any
// moment: what the change has decided with one value must not be committed on the condition of another one.
func (tx *Tx) committedRecord(name string) []byte {
	if v, ok := tx.read[name]; ok {
		return v
	}
	v := tx.x.record(name)
	if tx.x.shared {
		if tx.read == nil {
			tx.read = map[string][]byte{}
		}
		tx.read[name] = v
	}
	return v
}

// setRecord changes a record, on the condition that it is as the change sees it.
func (tx *Tx) setRecord(name string, value []byte) {
	tx.setStore(kindRecord, name, value, tx.committedRecord(name))
}

// storeFact looks a fact about content itself up among the changes of this commit.
func (tx *Tx) storeFact(kind Kind, name string) (value []byte, changed bool) {
	if tx.repo == storeRepo {
		return tx.fact(kind, name)
	}
	k := factKey{kind, name}
	if v, ok := tx.ownStore[k]; ok {
		return v, true
	}
	v, ok := tx.store[k]
	return v, ok
}

// setStore changes a fact about content itself, on the condition that its committed value is this one (nil: it does not
// exist).
func (tx *Tx) setStore(kind Kind, name string, value, committed []byte) {
	if tx.x.shared {
		if _, changed := tx.storeFact(kind, name); !changed {
			tx.require(storeRepo, kind, name, committed)
		}
	}
	if tx.repo == storeRepo {
		tx.set(kind, name, value)
		return
	}
	if tx.ownStore == nil {
		tx.ownStore = overlay{}
	}
	tx.ownStore[factKey{kind, name}] = value
}

// readQuotas reads the records of guardQuotas before the change adds up what is used: a commit that shows in between
// must be in conflict with it.
func (tx *Tx) readQuotas() {
	if !tx.x.shared {
		return
	}
	for _, name := range tx.quotasOf(tx.repo) {
		tx.committedRecord(quotaRecord + name)
	}
}

// quotasOf returns the names of the quotas of a repo.
func (tx *Tx) quotasOf(repo string) (names []string) {
	q := tx.growth.quotas
	if len(q.all) == 0 {
		return nil
	}
	tx.x.mu.RLock()
	defer tx.x.mu.RUnlock()
	for _, i := range q.ofRepo(repo) {
		names = append(names, q.all[i].Name)
	}
	return names
}

// guardQuotas makes changes that add to the same quota conflict with each other, whatever their repos are, so that two
// processes do not exceed it together.
func (tx *Tx) guardQuotas() {
	if !tx.x.shared || tx.added <= 0 {
		return
	}
	for _, name := range tx.quotasOf(tx.repo) {
		tx.moveQuota(name)
	}
}

// moveQuota changes the record of a quota. Its value is random: what is used is the sum of the facts, and of what is
// open.
func (tx *Tx) moveQuota(name string) {
	tx.moveRecord(quotaRecord + name)
}

// moveRecord changes a record whose value says nothing but that it has changed.
func (tx *Tx) moveRecord(name string) {
	var value [8]byte
	rand.Read(value[:]) // never fails
	tx.setRecord(name, value[:])
}

const quotaRecord = "quota/"
