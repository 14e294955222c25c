package registry

import (
	"context"
	"errors"
	"slices"

	"github.com/opencontainers/go-digest"

	"trow/registry/auth"
	"trow/registry/namespace"
	"trow/registry/ocierror"
	"trow/storage"
)

// push is a manifest that a client pushes.
type push struct {
	repo       string
	who        *auth.Identity
	tag        string // that the request addresses; empty if it addresses the digest
	tags       []string
	digest     digest.Digest
	parsed     parsed
	body       []byte
	conditions conditions
	create     *creation // not nil: it may create and not move
	growth     growth    // nil: nothing was compared
	refused    error     // why the manifest would be refused if it were new; see Registry.parse
	changed    bool      // set by push: the repository did not hold the manifest intact, or a tag was new or moved
}

// manifest is what is recorded of it.
func (p *push) manifest() storage.Manifest {
	return storage.Manifest{Digest: p.digest, MediaType: p.parsed.mediaType, Size: int64(len(p.body)),
		Subject: p.parsed.subject, Refs: p.parsed.refs}
}

// push makes a manifest durable, then visible. Bytes come before facts: a fact must never outlive its bytes.
func (r *Registry) push(ctx context.Context, p *push) error {
	if p.digest.Algorithm().FromBytes(p.body) != p.digest {
		return digestMismatch(p.digest, nil)
	}
	if err := r.foresee(ctx, p); err != nil {
		return err
	}
	release, err := r.store(ctx, p)
	if err != nil {
		return err
	}
	defer release()             // until the facts are committed, the Collector must leave the bytes alone
	r.contents.remove(p.digest) // pushing again repairs damaged content: read it from the disk next time
	return r.options.Index.Update(ctx, p.repo, func(tx *storage.Tx) error {
		if err := r.admissible(tx, p); err != nil {
			return err
		}
		// The function may run more than once; the last run is the one that is committed.
		p.changed = p.changes(tx)
		tx.As(p.who.Label())
		err := tx.PutManifest(p.manifest())
		for _, tag := range p.tags {
			err = errors.Join(err, tx.SetTag(tag, p.digest))
		}
		return err
	})
}

// changes reports whether the push changes anything in the repository, as tx sees it before the push.
func (p *push) changes(tx *storage.Tx) bool {
	held, ok := tx.Manifest(p.digest)
	return !ok || held.Damaged() != "" || held.MediaType != p.parsed.mediaType ||
		slices.ContainsFunc(p.tags, func(tag string) bool {
			at, ok := tx.Tag(tag)
			return !ok || at.Digest() != p.digest
		})
}

// foresee refuses a push that the repository cannot accept, so that it leaves no bytes. A View is quick but may miss
// what another process has just committed: so an Update, which confirms that with the Journal, has the last word.
func (r *Registry) foresee(ctx context.Context, p *push) error {
	look := func(tx *storage.Tx) error {
		if err := r.admissible(tx, p); err != nil {
			return err
		}
		return tx.Fits(p.manifest(), p.tags...) // the Update that records them asks again
	}
	if r.options.Index.View(p.repo, look) == nil {
		return nil
	}
	return r.options.Index.Update(ctx, p.repo, look)
}

// admissible reports why the repository, as tx sees it, cannot accept the manifest. It runs up to three times for a
// push: in a View, before bytes are stored for a push that is refused; in an Update, if the View refuses, to confirm
// that; and in the Update that records the manifest, because the repository changes meanwhile. Only the last decides.
func (r *Registry) admissible(tx *storage.Tx, p *push) error {
	held, isHeld := tx.Manifest(p.digest)
	// Asked again, because it was asked in a View: another client, or another process, may have deleted it meanwhile.
	if p.refused != nil && (!isHeld || held.MediaType != p.parsed.mediaType) {
		return p.refused
	}
	current, exists := held, isHeld
	if p.tag != "" {
		current, exists = tx.Tag(p.tag)
	}
	if err := p.conditions.check(current.Digest(), exists); err != nil {
		return err
	}
	if err := r.checkImmutable(tx, p); err != nil {
		return err
	}
	// The type is a part of what a tag and a digest name: another one could make clients take the same bytes for
	// something else. One that could not be stored today may be corrected, and then stays.
	if isHeld && held.MediaType != p.parsed.mediaType && storable(held.MediaType) {
		return mediaTypeHeld(p.digest, held.MediaType, p.parsed.mediaType)
	}
	// Each reference is an entry of the Index. What is held already is there, and may be pushed again.
	if !isHeld {
		if err := r.checkReferences(len(p.parsed.refs)); err != nil {
			return err
		}
	}
	if err := p.create.allows(tx, p); err != nil {
		return err
	}
	if err := missingParts(tx, p.parsed.needs); err != nil && !r.acceptsSparse(tx, p) {
		return err
	}
	return withinQuota(tx, p.who, p.digest, int64(len(p.body)))
}

// checkReferences refuses a manifest with more references than the setting allows, or than the journal can record.
func (r *Registry) checkReferences(n int) error {
	if most := r.options.MaxReferences; most > 0 && n > most {
		return tooManyReferences(n, most, "setting max-references")
	}
	if most := r.options.Index.MaxReferences(); most > 0 && n > most {
		return tooManyReferences(n, most, "what the registry's journal can record at once")
	}
	return nil
}

// acceptsSparse reports whether the repository accepts the manifest although it does not hold all of it: it is an
// index, of which something is here. What is not here is referenced and not present, as a foreign layer is: pulls of it
// get 404, until it is pushed. Images of other registries may be here for some platforms only.
func (r *Registry) acceptsSparse(tx *storage.Tx, p *push) bool {
	index := p.parsed.mediaType == typeOCIIndex || p.parsed.mediaType == typeDockerList
	return index && slices.ContainsFunc(p.parsed.needs, tx.Whole) &&
		(p.who.Unlimited() || namespace.Within(p.repo) || r.options.Sparse(p.repo))
}

// missingParts reports which of the needed parts the repository does not hold intact, at most maxMissing.
func missingParts(tx *storage.Tx, needs []digest.Digest) error {
	var missing []*ocierror.Error
	for _, d := range needs {
		if tx.Whole(d) {
			continue
		}
		if missing = append(missing, partMissing(d)); len(missing) == maxMissing {
			break
		}
	}
	if len(missing) == 0 {
		return nil
	}
	missing[0].More = missing[1:]
	return missing[0]
}

// isImmutable reports whether who must not move or delete a tag.
func (r *Registry) isImmutable(who *auth.Identity, repo, tag string) bool {
	return !who.Unlimited() && r.options.Immutable(repo, tag)
}

// store makes a manifest's bytes durable. The Collector leaves them alone until release is called.
func (r *Registry) store(ctx context.Context, p *push) (release func(), err error) {
	s, err := r.create(ctx, p.repo, p.digest.Algorithm(), r.unbounded(p.who, p.repo, p.digest))
	if err != nil {
		return nil, err
	}
	defer s.end(ctx, &err)
	s.drop = true // no client knows of this session
	if _, err := s.Write(p.body); err != nil {
		return nil, uploadError(s.ID(), p.digest, err)
	}
	release, err = s.commit(ctx, p.digest)
	if err == nil && namespace.Within(p.repo) && indexType(p.parsed.mediaType) {
		r.platforms.learn(p.digest, p.body) // verdicts on images of other registries ask for them
	}
	return release, err
}
