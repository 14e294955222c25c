package registry

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/opencontainers/go-digest"

	"trow/registry/ocierror"
	"trow/storage"
)

// maxReferrers bounds a list of referrers, in bytes, because their annotations can have any size. The list links to the
// rest.
const maxReferrers = 2 << 20

// These bound the work for one list, which links to the rest, also if nothing of it passed the filter. The manifests
// that no cache has are read and decoded, at most maxDecoded bytes of them; each counts as decodeCost more, for the
// rest of that work. That is about 2,000 manifests of signatures, or 50 ms.
const (
	maxListed  = 10_000 // manifests looked at
	maxDecoded = 8 << 20
	decodeCost = 4 << 10
)

// referrer is a manifest's descriptor in the list of its subject's referrers.
type referrer struct {
	artifactType string
	json         []byte
}

// omit leaves a manifest out because of err. It reports false if err is not about the manifest, but about the registry:
// then the list fails, and its client retries. One bad manifest must not hide all others for ever.
func (f *referrersFound) omit(err error) bool {
	bad := (*badManifest)(nil)
	if !errors.As(err, &bad) {
		return false
	}
	if f.omitted++; f.omitted == 1 {
		f.why = err
	}
	return true
}

// badManifest is a manifest that a list cannot show: its bytes are gone, damaged or not JSON.
type badManifest struct {
	digest digest.Digest
	cause  error
}

func (e *badManifest) Error() string { return "manifest " + e.digest.String() + ": " + e.cause.Error() }
func (e *badManifest) Unwrap() error { return e.cause }

// referrersQuery is what a client asks for: referrers after a digest, of one artifact type if that is not empty.
type referrersQuery struct {
	values       url.Values
	after        digest.Digest
	artifactType string
}

func parseReferrersQuery(q url.Values) (referrersQuery, error) {
	after := q.Get("last")
	if after != "" {
		if _, err := parseDigest(after); err != nil {
			return referrersQuery{}, err
		}
	}
	return referrersQuery{q, digest.Digest(after), q.Get("artifactType")}, nil
}

// listReferrers answers end-12: an image index of the manifests whose subject is the digest. The list of a digest or a
// repository that does not exist is empty.
func (r *Registry) listReferrers(w http.ResponseWriter, req *http.Request, c *call) error {
	q, err := parseReferrersQuery(req.URL.Query())
	if err != nil {
		return err
	}
	// Before the first look: a list may take megabytes and much of a second, and so may the manifests that it is made
	// of.
	keep, err := r.reserveAnswer(req, maxReferrers+maxManifest)
	if err != nil {
		return err
	}
	defer keep(0)
	var stale error
	if !onlyHeld(req, c) {
		stale = r.refreshReferrers(req.Context(), c.repo, c.digest)
	}
	found, err := r.referrersOf(req.Context(), c.repo, c.digest, q.after)
	if err != nil {
		return err
	}
	if stale != nil && len(found.list) == 0 && q.after == "" {
		// An empty list would say that there are none, such as signatures.
		return mirrorError(manifestUnknown(c.repo, c.digest.String()), stale)
	}
	r.warnStale(w, req, stale)
	return r.writeReferrers(w, req, c, q, found, keep)
}

// lists keeps the buffers in which lists were rendered, up to maxListKept bytes each.
var lists = sync.Pool{New: func() any { return new(bytes.Buffer) }}

const maxListKept = 256 << 10

// writeReferrers answers with the list of the manifests found.
func (r *Registry) writeReferrers(w http.ResponseWriter, req *http.Request, c *call, q referrersQuery,
	found referrersFound, keep func(int64)) error {
	body := lists.Get().(*bytes.Buffer)
	defer func() {
		if body.Cap() <= maxListKept { // one large list must not keep its memory
			body.Reset()
			lists.Put(body)
		}
	}()
	next, err := r.renderReferrers(req.Context(), body, c.repo, &found, q.artifactType)
	if err != nil {
		return err
	}
	keep(max(int64(body.Cap()), 1))
	if found.omitted > 0 { // one line for each request, so that the log is bounded
		r.annotate(req.Context(), "err", fmt.Sprintf("%d manifests left out of the list of referrers: %v",
			found.omitted,
			found.why))
		// A client that takes the list for a complete one might say that an image has no signature.
		warn(w, fmt.Sprintf("%d manifests are left out of this list because the registry cannot read them; push them "+
			"again",
			found.omitted))
	}
	if q.artifactType != "" { // not earlier: an error applies no filter
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	if next != "" {
		q.values.Set("last", next.String())
		setNextLink(w.Header(), r.path(c, "/referrers/"+c.ref), q.values)
	}
	write(w, req, typeOCIIndex, body.Bytes())
	return nil
}

// renderReferrers writes the image index to buf. next is the last manifest that was looked at if there are more.
func (r *Registry) renderReferrers(ctx context.Context, buf *bytes.Buffer, repo string, found *referrersFound,
	artifactType string) (next digest.Digest, err error) {
	buf.WriteString(`{"schemaVersion":2,"mediaType":"` + typeOCIIndex + `","manifests":[`)
	empty, work := true, int64(0)
	for i, m := range found.list {
		// One is always looked at: otherwise there would be no progress.
		if i > 0 && work > maxDecoded {
			found.list, found.more = found.list[:i], true
			break
		}
		if artifactType != "" {
			if known, ok := r.artifactTypes.get(m); ok && known != artifactType {
				continue
			}
		}
		ref, cost, err := r.referrer(ctx, repo, m)
		work += cost
		if err != nil && found.omit(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		if artifactType != "" && artifactType != ref.artifactType {
			continue
		}
		if !empty && buf.Len()+len(ref.json) > maxReferrers { // the first always fits, for the same reason
			found.list, found.more = found.list[:i], true
			break
		}
		if !empty {
			buf.WriteByte(',')
		}
		buf.Write(ref.json)
		empty = false
	}
	buf.WriteString("]}")
	if found.more {
		next = found.list[len(found.list)-1].Digest()
	}
	return next, nil
}

// referrer returns a manifest's descriptor in the list, and what it cost, also if it failed; 0 if it was in memory.
func (r *Registry) referrer(ctx context.Context, repo string, m storage.Descriptor) (ref referrer, cost int64,
	err error) {
	if ref, ok := r.referrers.get(m); ok {
		return ref, 0, nil
	}
	d := m.Digest()
	c, err := r.decoded(ctx, repo, m)
	if err != nil {
		return referrer{}, m.Size + decodeCost, err
	}
	js, err := ocierror.JSON(descriptor{MediaType: cmp.Or(m.MediaType, c.MediaType), Digest: d.String(), Size: m.Size,
		Artifact: c.artifactType(), Annotations: c.Annotations})
	if err != nil {
		return referrer{}, 0, fmt.Errorf("referrer %s: %w", d, err)
	}
	ref = referrer{c.artifactType(), js}
	r.referrers.put(m, ref, len(js)+len(ref.artifactType))
	r.artifactTypes.put(m, ref.artifactType, len(ref.artifactType))
	return ref, m.Size + decodeCost, nil
}

// artifactType returns what a list of referrers shows and is filtered by (distribution spec, "Listing Referrers").
func (c *content) artifactType() string {
	if c.Artifact == "" && c.Config != nil {
		return c.Config.MediaType
	}
	return c.Artifact
}

// pushedReferrer keeps the artifact type of a manifest that was just pushed, so that lists with a filter need not read
// the manifest. Only lists use it: an error leaves the work to them.
func (r *Registry) pushedReferrer(ctx context.Context, p *push) {
	if p.parsed.subject == "" {
		return
	}
	if m, ok, err := r.lookup(ctx, p.repo, p.digest.String()); ok && err == nil {
		r.artifactTypes.put(m, p.parsed.artifactType, len(p.parsed.artifactType))
	}
}

// decoded reads and decodes a manifest that a list is made of. Errors: badManifest; others are the registry's own, as
// the client has not asked for this manifest.
func (r *Registry) decoded(ctx context.Context, repo string, m storage.Descriptor) (content, error) {
	d := m.Digest()
	body, err := r.manifestBytes(ctx, manifest{Descriptor: m, digest: d, repo: repo, ref: d.String()})
	// EIO is the disk's word for a sector that it cannot read; it will say the same the next time.
	if e := ocierror.As(err); e != nil && e.Code == ocierror.ManifestUnknown || errors.Is(err, syscall.EIO) {
		return content{}, &badManifest{d, err}
	}
	if err != nil {
		return content{}, internal(fmt.Errorf("referrers: manifest %s: %w", d, err))
	}
	c, err := decodeManifest(body)
	if err != nil {
		return content{}, &badManifest{d, err}
	}
	return c, nil
}

// addTagged adds the manifests that an index under the fallback tag lists (distribution spec, "Referrers Tag
// Schema"), if the repository holds them and all does not have them yet. Clients keep such an index for registries
// without a list of referrers, and copy it to this one.
func (r *Registry) addTagged(ctx context.Context, repo string, subject, after digest.Digest,
	all *referrersFound) error {
	index, ok, err := r.lookup(ctx, repo, fallbackTag(subject))
	if err != nil || !ok || index.MediaType != typeOCIIndex {
		return err
	}
	if index.Digest() == subject { // cosign copy tags the image itself so, and its platforms do not refer to it
		return nil
	}
	c, err := r.decoded(ctx, repo, index)
	if err != nil && all.omit(err) {
		return nil
	}
	if err != nil {
		return err
	}
	found := all.list
	seen := map[storage.Descriptor]bool{}
	for _, m := range found {
		seen[m] = true
	}
	for _, listed := range c.Manifests {
		d, err := storage.ParseDigest(listed.Digest)
		if err != nil || d <= after {
			continue
		}
		m, ok, err := r.lookup(ctx, repo, d.String())
		if err != nil {
			return err
		}
		if ok && !seen[m] {
			seen[m] = true
			found = append(found, m)
		}
	}
	// Pages continue after a digest, so the two lists must become one order. Digests are rendered once, not for each
	// comparison, because there may be thousands.
	digests := make(map[storage.Descriptor]digest.Digest, len(found))
	for _, m := range found {
		digests[m] = m.Digest()
	}
	slices.SortFunc(found, func(a, b storage.Descriptor) int { return cmp.Compare(digests[a], digests[b]) })
	all.list = found
	return nil
}

// fallbackTag is the tag under which clients keep the referrers of d.
func fallbackTag(d digest.Digest) string {
	const maxHash = 64 // the spec truncates the hash to so many characters
	encoded := d.Encoded()
	return strings.ToLower(d.Algorithm().String()) + "-" + encoded[:min(len(encoded), maxHash)]
}
