package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/opencontainers/go-digest"

	"trow/registry/auth"
	"trow/registry/ocierror"
	"trow/storage"
)

// This file is what an identity that may create, and not push, can do to tags: set new ones, and let a companion grow;
// and how a companion under an immutable tag grows, and ends. A companion is a tag under which clients keep what
// belongs to a manifest: sha256-<hex>, the index of its referrers (distribution spec, "Referrers Tag Schema"), and
// sha256-<hex>.sig, .att and .sbom (cosign); of a sha512, sha512-<first half of the hex>.

// creation is a push by an identity that may create and not push.
type creation struct {
	why error // an ErrCreateOnly, with the remedy
}

// growth has, for each manifest that a companion names and that was compared with the pushed one, whether the pushed
// one has everything of it. Bytes are read to know that, which must not happen inside an Update.
type growth map[digest.Digest]bool

// notCompared: the pushed manifest must be compared with this one, which a companion names, before it can be decided.
type notCompared struct{ storage.Descriptor }

func (e *notCompared) Error() string { return "manifest " + e.Digest().String() + " was not compared" }

// pushAs is push with what c's identity may do. Errors: also those of an Authorizer, in their form for clients.
func (r *Registry) pushAs(req *http.Request, c *call, p *push) error {
	if c.create != nil {
		p.create = &creation{why: c.create}
	}
	// Each round is lost to another client that changes the companion between the comparison and the Update.
	const rounds = 10
	for range rounds {
		err := r.push(req.Context(), p)
		var next *notCompared
		switch {
		case errors.As(err, &next):
			if p.growth == nil { // most pushes need none
				p.growth = growth{}
			}
			if p.growth[next.Digest()], err = r.grows(req.Context(), next.Descriptor, p); err != nil {
				return err
			}
			continue
		case errors.Is(err, auth.ErrUnauthorized), errors.Is(err, auth.ErrDenied):
			return r.refusal(req, c, err)
		}
		return err
	}
	return &ocierror.Error{Code: ocierror.TooManyRequests, Header: ocierror.RetryAfter(1),
		Message: "other clients change the same tag all the time; fetch it, and retry"}
}

// allows reports why a push would change what others run. It is part of admissible, which decides inside the Update:
// of two clients that create one tag, the second sees the tag of the first. Errors: ErrCreateOnly; notCompared.
func (n *creation) allows(tx *storage.Tx, p *push) error {
	if n == nil {
		return nil
	}
	// Under another type, clients would take the same bytes for something else.
	if held, ok := tx.Manifest(p.digest); ok && held.MediaType != p.parsed.mediaType {
		return fmt.Errorf("manifest %s exists as %s, and changing that requires the push permission: %w", p.digest,
			held.MediaType, n.why)
	}
	for _, tag := range p.tags {
		at, exists := tx.Tag(tag)
		if !exists || at.Digest() == p.digest { // the same digest again is not a move
			continue
		}
		remedy := "push another tag, or "
		if mayGrow(tx, tag, at) {
			grows, err := p.growth.of(at)
			if err != nil {
				return err
			}
			if grows {
				continue
			}
			remedy = "fetch it and add to it, or "
		}
		return fmt.Errorf("tag %s exists and names %s; %smove it with the push permission: %w", tag, at.Digest(),
			remedy, n.why)
	}
	return nil
}

// of reports whether the pushed manifest has everything of the one at a companion. Errors: notCompared.
func (g growth) of(at storage.Descriptor) (bool, error) {
	grows, compared := g[at.Digest()]
	if !compared {
		return false, &notCompared{at}
	}
	return grows, nil
}

// checkImmutable refuses to move a tag that must not change, except a companion that grows: a second signature, or a
// further referrer, adds to what is there. Errors: notCompared.
func (r *Registry) checkImmutable(tx *storage.Tx, p *push) error {
	for _, tag := range p.tags {
		at, ok := tx.Tag(tag)
		if !ok || at.Digest() == p.digest || !r.isImmutable(p.who, p.repo, tag) {
			continue
		}
		if !mayGrow(tx, tag, at) {
			return immutableTag(tag, at.Digest())
		}
		grows, err := p.growth.of(at)
		if err != nil {
			return err
		}
		if !grows {
			e := immutableTag(tag, at.Digest())
			e.Message += ", or fetch it and add to it"
			return e
		}
	}
	return nil
}

// isFixed reports whether who must not delete a tag. A companion can be deleted when its manifest is no longer here.
func (r *Registry) isFixed(tx *storage.Tx, who *auth.Identity, repo, tag string) bool {
	if !r.isImmutable(who, repo, tag) {
		return false
	}
	_, named, held := accompanied(tx, tag)
	return !named || held
}

// companions are the ends of the names of companions.
var companions = []string{"", ".sig", ".att", ".sbom"}

// mayGrow reports whether a tag, which names at, is a companion that may grow. A tag sha256-<hex> that names this
// manifest itself is not one, whatever its name: cosign copy sets one for each image, and people run what it names.
func mayGrow(tx *storage.Tx, tag string, at storage.Descriptor) bool {
	d, _, held := accompanied(tx, tag)
	return held && d != at.Digest()
}

// accompanied returns the manifest in the name of a companion, and whether the repository holds it. named reports
// whether the tag has the name of a companion at all. Of a sha512 such a name has the first half (distribution spec,
// "Referrers Tag Schema"), and then d is known only of a manifest that is held.
func accompanied(tx *storage.Tx, tag string) (d digest.Digest, named, held bool) {
	const hex = 64
	alg, rest, _ := strings.Cut(tag, "-")
	if len(rest) < hex || !slices.Contains(companions, rest[hex:]) {
		return "", false, false
	}
	start := rest[:hex]
	d, err := storage.ParseDigest("sha256:" + start) // the first half of a sha512 has the same form
	switch {
	case err != nil:
		return "", false, false
	case alg == "sha256":
		_, held = tx.Manifest(d)
		return d, true, held
	case alg == "sha512":
		d, held = tx.ManifestBySHA512(start)
		return d, true, held
	}
	return "", false, false
}

// grows reports whether the pushed manifest has everything of the old one: type, subject, and each layer or child. An
// old manifest whose bytes are lost cannot be compared, and so does not grow. Errors: those of reading it.
func (r *Registry) grows(ctx context.Context, old storage.Descriptor, p *push) (bool, error) {
	switch old.MediaType {
	case typeOCIManifest, typeDockerManifest, typeOCIIndex, typeDockerList:
	default: // what such a manifest consists of is not known
		return false, nil
	}
	if old.MediaType != p.parsed.mediaType {
		return false, nil
	}
	body, err := r.content(ctx, old.Digest())
	if isLost(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	was, is := partsOf(body), partsOf(p.body)
	return was != nil && is != nil && is.include(was), nil
}

// parts are what a manifest consists of, as whole descriptors in canonical JSON (RFC 8785): cosign keeps a signature in
// the annotations of a layer, and several signatures share one digest.
type parts struct {
	subject string
	set     map[string]bool
}

// partsOf returns the parts of a manifest of a known type; nil if it is not one.
func partsOf(body []byte) *parts {
	var m struct {
		Layers    []jsontext.Value `json:"layers"`
		Manifests []jsontext.Value `json:"manifests"`
		Subject   jsontext.Value   `json:"subject"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return nil
	}
	p := &parts{set: map[string]bool{}}
	for _, d := range slices.Concat(m.Layers, m.Manifests) {
		if d.Canonicalize() != nil {
			return nil
		}
		p.set[string(d)] = true
	}
	if m.Subject != nil && m.Subject.Canonicalize() != nil {
		return nil
	}
	p.subject = string(m.Subject)
	return p
}

// include reports whether p has everything of old.
func (p *parts) include(old *parts) bool {
	if p.subject != old.subject {
		return false
	}
	for d := range old.set {
		if !p.set[d] {
			return false
		}
	}
	return true
}
