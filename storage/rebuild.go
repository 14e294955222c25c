package storage

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// What trow rebuild does to a journal that was empty, from a copy of the facts and the bytes. No server starts on it
// before EndRebuild has given it the identity of the bytes.

// rebuildRecord has what a rebuild was begun from, until it has ended.
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

// EndRebuild makes a journal that was rebuilt one that servers start with, and that is believed: servers that saw how
// it became empty have recorded that it went back. Errors: as Update.
func (x *Index) EndRebuild(ctx context.Context, identity string) error {
	return x.Update(ctx, storeRepo, func(tx *Tx) error {
		tx.setRecord(rebuildRecord, nil)
		tx.setRecord(wentBackRecord, nil)
		tx.setRecord(IdentityRecord, []byte(identity))
		return nil
	})
}

// NameObject records that an object, which no fact names, has the bytes of d, unless another one has. The caller has
// read them. Errors: as Update; ErrExpired for an object that is so old that it may be being removed.
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

// Nameable reports whether an object is of a name that NewPlace gives, and young enough for NameObject.
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
