package registry

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/registry/audit"
	"trow/registry/namespace"
	"trow/registry/ocierror"
	"trow/storage"
)

const (
	// maxManifest bounds a manifest. The spec demands at least 4 MiB; containerd reads up to 8.
	maxManifest = 4 << 20
	// maxTags bounds the tags of one push; the spec demands at least 10.
	maxTags = 100
	// maxMissing bounds the missing parts that one answer lists.
	maxMissing = 20
	// maxWarnings bounds the layers that one answer warns about.
	maxWarnings = 3
)

// getManifest answers end-3, GET and HEAD.
func (r *Registry) getManifest(w http.ResponseWriter, req *http.Request, c *call) error {
	m, release, err := r.usedManifest(req.Context(), c.repo, c.ref)
	if err != nil {
		return err
	}
	defer release()
	etag := `"` + m.digest.String() + `"`
	unchanged := matches(req.Header["If-None-Match"], etag)
	var body []byte
	if !unchanged && req.Method != http.MethodHead {
		keep, err := r.reserveAnswer(req, answerFactor*m.Size)
		if err != nil {
			return err
		}
		defer keep(0)
		if body, err = r.manifestBytes(req.Context(), m); err != nil {
			return err
		}
		keep(int64(len(body)))
	}
	// Nothing below can fail with an answer.
	r.warnStale(w, req, m.stale)
	h := w.Header()
	h.Set("Docker-Content-Digest", m.digest.String())
	h.Set("ETag", etag)
	if c.digest != "" {
		h.Set("Cache-Control", immutable)
	}
	switch {
	case unchanged:
		w.WriteHeader(http.StatusNotModified)
	case req.Method == http.MethodHead:
		h.Set("Content-Type", m.MediaType)
		h.Set("Content-Length", strconv.FormatInt(m.Size, 10))
		w.WriteHeader(http.StatusOK)
	default:
		write(w, req, m.MediaType, body)
	}
	return nil
}

// putManifest answers end-7.
func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request, c *call) error {
	tags, err := tagParameters(req.URL.RawQuery, r.maxTags())
	if err != nil {
		return err
	}
	body, release, err := r.readManifestBody(w, req)
	if err != nil {
		return err
	}
	defer release()
	p := &push{repo: c.repo, who: c.who, digest: c.digest, tags: tags, body: body, conditions: conditionsOf(req.Header)}
	if c.digest == "" {
		p.digest, p.tag, p.tags = digest.FromBytes(body), c.ref, append(tags, c.ref)
	}
	if err := r.parse(req.Context(), p, strings.Join(req.Header["Content-Type"], ", ")); err != nil {
		return err
	}
	if err := r.pushAs(req, c, p); err != nil {
		return err
	}
	r.pushedReferrer(req.Context(), p)
	r.annotate(req.Context(), "digest", p.digest.String())
	if p.changed { // a client that repeats a push must not fill the log
		r.audit(req, c, audit.Event{What: audit.Push, Tags: p.tags, Digest: p.digest.String()})
	}
	h := w.Header()
	h.Set("Location", r.location(c, "/manifests/"+p.digest.String()))
	h.Set("Docker-Content-Digest", p.digest.String())
	if p.parsed.subject != "" {
		h.Set("OCI-Subject", p.parsed.subject.String())
	}
	for _, tag := range tags { // those of ?tag=, not that of the path
		h.Add("OCI-Tag", tag)
	}
	for _, d := range r.absentLayers(req.Context(), p) {
		warn(w, "layer "+d.String()+" is not distributable: clients that pull this image get it from elsewhere")
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// absentLayers returns the foreign layers that the repository does not hold, at most maxWarnings. Others are served
// from here. The push has succeeded: what cannot be known now is left out.
func (r *Registry) absentLayers(ctx context.Context, p *push) (absent []digest.Digest) {
	for _, d := range p.parsed.elsewhere {
		_, err := r.blob(ctx, p.repo, d)
		if e := ocierror.As(err); e == nil || e.Code != ocierror.BlobUnknown {
			continue
		}
		if absent = append(absent, d); len(absent) == maxWarnings {
			break
		}
	}
	return absent
}

// parse parses the body of a push, and refuses what new manifests must not have. The same bytes under the media type
// under which the repository holds them are not new: a push of them heals damaged content, whatever the rules are
// today. Whether they are held here only predicts what admissible decides. Errors: also those of Resolve.
func (r *Registry) parse(ctx context.Context, p *push, contentType string) (err error) {
	p.parsed, err = parseManifest(contentType, p.body)
	if err == nil && r.options.RefuseForeign && len(p.parsed.elsewhere) > 0 {
		err = foreignRefused(p.parsed.elsewhere[0])
	}
	if err == nil {
		return nil
	}
	again, c, cerr := parseContent(contentType, p.body)
	if again.artifactType = c.artifactType(); cerr != nil { // what it refers to is recorded already
		again = parsed{}
		again.mediaType, _ = parseContentType(contentType)
	}
	switch held, isHeld, herr := r.lookup(ctx, p.repo, p.digest.String()); {
	case herr != nil:
		return herr
	case !isHeld || held.MediaType != again.mediaType:
		return err
	}
	p.parsed, p.refused = again, err
	return nil
}

// maxTags returns how many tags ?tag= may have, beside that in the path: so many that the push is one commit.
func (r *Registry) maxTags() int {
	if most := r.options.Index.MaxTags(); most > 0 {
		return min(maxTags, max(most-1, 0))
	}
	return maxTags
}

// tagParameters returns the tags in ?tag= of end-7b. A query that cannot be read is refused: without its tags the push
// would succeed, and set others than the client has asked for.
// most is how many there may be.
func tagParameters(query string, most int) ([]string, error) {
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, queryInvalid(err)
	}
	tags := slices.Clone(q["tag"])
	if len(tags) > most {
		return nil, tooManyTags(most)
	}
	for _, tag := range tags {
		if !namespace.ValidTag(tag) {
			return nil, tagInvalid(tag)
		}
	}
	return tags, nil
}

// conditions are If-Match and If-None-Match of a write (RFC 9110, section 13.1). With them, a client that changes a tag
// cannot overwrite another client's change without noticing.
type conditions struct{ match, noneMatch []string }

func conditionsOf(h http.Header) conditions { return conditions{h["If-Match"], h["If-None-Match"]} }

// check refuses a write whose conditions do not hold. current is what the request addresses; exists is false if there
// is no such manifest.
func (c conditions) check(current digest.Digest, exists bool) error {
	etag := `"` + current.String() + `"`
	switch {
	case len(c.match) > 0 && !exists:
		return conditionFailed("")
	case len(c.match) > 0 && !matches(c.match, etag), exists && matches(c.noneMatch, etag):
		return conditionFailed(current)
	}
	return nil
}

// deleteManifest answers end-9. It deletes a tag alone, or a manifest with all its tags.
func (r *Registry) deleteManifest(w http.ResponseWriter, req *http.Request, c *call) error {
	conditions := conditionsOf(req.Header)
	var gone audit.Event
	remove := func(what func(*storage.Tx) (audit.Event, error)) error {
		err := r.options.Index.Update(req.Context(), c.repo, func(tx *storage.Tx) (err error) {
			gone, err = what(tx) // it may run more than once; the last run is the one that is committed
			return err
		})
		if err == nil {
			r.audit(req, c, gone)
		}
		return err
	}
	all := func(tx *storage.Tx) (audit.Event, error) { return r.deleteByDigest(tx, c, conditions) }
	if c.digest == "" {
		all = func(tx *storage.Tx) (audit.Event, error) { return r.deleteTag(tx, c, conditions) }
	}
	err := remove(all)
	for errors.Is(err, storage.ErrTooLarge) && c.digest != "" && len(gone.Tags) > 0 {
		// There are more tags than one commit can take. They go first, so that each step leaves a manifest with its
		// other tags, and a DELETE that is repeated after it was interrupted goes on; then the manifest, with what was
		// tagged meanwhile.
		err = storage.InSteps(gone.Tags, func(tags []string) error {
			return remove(func(tx *storage.Tx) (audit.Event, error) { return r.untag(tx, c, conditions, tags) })
		})
		if err == nil {
			err = remove(all)
		}
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func (r *Registry) deleteTag(tx *storage.Tx, c *call, conditions conditions) (gone audit.Event, err error) {
	current, exists := tx.Tag(c.ref)
	if err := conditions.check(current.Digest(), exists); err != nil {
		return gone, err
	}
	if !exists {
		return gone, manifestUnknown(c.repo, c.ref)
	}
	if r.isFixed(tx, c.who, c.repo, c.ref) {
		return gone, immutableTag(c.ref, current.Digest())
	}
	gone = audit.Event{What: audit.Delete, Digest: current.Digest().String(), Tags: []string{c.ref}}
	return gone, tx.DeleteTag(c.ref)
}

func (r *Registry) deleteByDigest(tx *storage.Tx, c *call, conditions conditions) (gone audit.Event, err error) {
	tags, err := r.deletable(tx, c, conditions)
	if err != nil {
		return gone, err
	}
	gone = audit.Event{What: audit.Delete, Digest: c.ref, Tags: tags}
	return gone, tx.DeleteManifest(c.digest)
}

// untag deletes those of some tags that name a manifest which is about to be deleted.
func (r *Registry) untag(tx *storage.Tx, c *call, conditions conditions, tags []string) (gone audit.Event, err error) {
	if _, err := r.deletable(tx, c, conditions); err != nil {
		return gone, err
	}
	gone = audit.Event{What: audit.Delete, Digest: c.ref}
	for _, tag := range tags {
		if at, ok := tx.Tag(tag); !ok || at.Digest() != c.digest { // moved or deleted meanwhile
			continue
		}
		if err := tx.DeleteTag(tag); err != nil {
			return gone, err
		}
		gone.Tags = append(gone.Tags, tag)
	}
	return gone, nil
}

// deletable returns the tags of a manifest, or why it must not be deleted.
func (r *Registry) deletable(tx *storage.Tx, c *call, conditions conditions) (tags []string, err error) {
	_, exists := tx.Manifest(c.digest)
	if err := conditions.check(c.digest, exists); err != nil {
		return nil, err
	}
	if !exists {
		return nil, manifestUnknown(c.repo, c.ref)
	}
	if by, ok := tx.ReferredBy(c.digest); ok {
		return nil, inUse("manifest", by)
	}
	tags = tx.TagsOf(c.digest)
	for _, tag := range tags {
		if r.isFixed(tx, c.who, c.repo, tag) {
			return nil, immutableTag(tag, c.digest)
		}
	}
	return tags, nil
}

// warn adds a warning, which clients show to their users (distribution spec, "Warnings"; RFC 7234, section 5.5).
func warn(w http.ResponseWriter, text string) {
	const maxText = 512 // the spec allows 4096 bytes for all warnings of an answer
	if len(text) > maxText {
		text = text[:maxText]
	}
	text = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\r", " ", "\n", " ").Replace(text)
	w.Header().Add("Warning", `299 - "`+text+`"`)
}
