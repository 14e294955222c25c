package storage

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// What trow rebuild needs to fill an empty journal from a copy of the facts and the bytes. No server starts with the
// journal before EndRebuild has given it the identity of the bytes.

// rebuildRecord is the name of the record of what a rebuild was begun from, until the rebuild has ended.
const rebuildRecord = "rebuild"

// Rebuilding returns what a rebuild that has not ended was begun from.
func (x *Index) Rebuilding() (from string, unfinished bool) {
	v := x.record(rebuildRecord)
	return string(v), v != nil
}

// BeginRebuild records what a rebuild begins from. Errors: as SetRecord.
func (x *Index) BeginRebuild(ctx context.Context, from string) error {
	return x.SetRecord(ctx, rebuildRecord, nil, []byte(from))
}

// EndRebuild lets servers start with a journal that was rebuilt. It also ends the suspicion against it, which processes
// that saw it become empty have recorded, or record later; see wentback.go. Errors: as Update.
func (x *Index) EndRebuild(ctx context.Context, identity string) error {
	return x.believe(ctx, func(tx *Tx) {
		tx.setRecord(rebuildRecord, nil)
		tx.setRecord(IdentityRecord, []byte(identity))
	})
}

// NameObject records that an object has the bytes of d, unless a fact names another object for d. The caller has read
// the bytes, so d is right. Errors: as Update; ErrNotFound for a malformed name; ErrExpired for an object that is so
// old that a Collector may be removing it.
func (x *Index) NameObject(ctx context.Context, d digest.Digest, object string) error {
	p, ok := parsePlace(object)
	if _, err := ParseDigest(string(d)); err != nil || !ok {
		return fmt.Errorf("object %q of %s: %w", object, d, ErrNotFound)
	}
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		if _, named := x.placeOf(keyOf(d)); named {
			return nil
		}
		return tx.name(keyOf(d), p, nil)
	})
}

// Nameable reports whether the name of an object has the form that NewPlace gives, and is young enough for NameObject.
func (x *Index) Nameable(object string) bool {
	p, ok := parsePlace(object)
	generation, _ := parseGeneration(x.record(generationRecord))
	return ok && p.generation+1 >= generation
}

// LinkLost links content whose bytes are not there, for a repo that has held it. The caller quarantines it. Errors: as
// Update.
func (x *Index) LinkLost(ctx context.Context, repo string, d digest.Digest, size int64) error {
	k := keyOf(d)
	if k == "" {
		return fmt.Errorf("link to a malformed digest %.150q: %w", d, ErrDigest)
	}
	return x.Update(ctx, repo, func(tx *Tx) error {
		if _, linked := tx.linkedSize(d); !linked {
			tx.copied = true
			tx.set(KindLink, string(k), linkValue(size, tx.now, false))
		}
		return nil
	})
}
