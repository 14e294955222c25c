package registry

import (
	"github.com/opencontainers/go-digest"

	"trow/registry/auth"
	"trow/storage"
)

// withinQuota refuses content d, of size bytes, if it does not fit into a quota. d is empty if it is not known yet. It
// decides only inside the Update that names the content: there no other push can take the room meanwhile.
func withinQuota(tx *storage.Tx, who *auth.Identity, d digest.Digest, size int64) error {
	if who.Unlimited() {
		return nil
	}
	if e, over := tx.Excess(d, size); over {
		return overQuota(e)
	}
	return nil
}

// roomFor refuses an upload that does not fit into a quota or the index as they are now: have bytes of it are here, and
// coming ones are announced. It only saves work, because quotas fill up meanwhile, and it is asked where that work
// begins:
//
//   - before a session is opened, so that a full quota takes no sessions;
//   - before the body of a chunk is read, because a layer can have gigabytes;
//   - before complete bytes become a blob, because what was not announced is known only then, and only the Collector
//     would delete the blob again.
func (r *Registry) roomFor(who *auth.Identity, repo string, d digest.Digest, have, coming int64) error {
	coming = max(coming, 0)
	if have == 0 {
		coming = max(coming, 1) // 0 bytes fit always, but an upload rarely stays empty
	}
	return r.options.Index.View(repo, func(tx *storage.Tx) error {
		if err := tx.Room(d); err != nil {
			return err
		}
		return withinQuota(tx, who, d, coming) // what is here counts already
	})
}

// unbounded reports whether an upload of d must not fail because of a quota. It counts all the same. What is held
// already is a manifest, which is small, or damaged content, which the upload heals.
func (r *Registry) unbounded(who *auth.Identity, repo string, d digest.Digest) bool {
	if who.Unlimited() {
		return true
	}
	held := false
	_ = r.options.Index.View(repo, func(tx *storage.Tx) error { // fn returns no error
		_, held = tx.Manifest(d)
		held = held || tx.Linked(d) && !tx.Whole(d)
		return nil
	})
	return held
}
