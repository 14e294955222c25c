package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/registry/audit"
	"trow/registry/auth"
	"trow/storage"
)

const (
	// maxManifest bounds a manifest. The spec wants at least 4 MiB to be taken; containerd reads up to 8.
	maxManifest = 4 << 20
	// maxTags bounds the tags of one push; the spec wants at least 10.
	maxTags = 100
	// maxTold bounds the missing parts that an answer names.
	maxTold = 20
)

// getManifest answers end-3, GET and HEAD.
func (r *Registry) getManifest(w http.ResponseWriter, req *http.Request, rt route) error {
	m, ok, err := r.options.Index.Resolve(req.Context(), rt.repo, rt.ref)
	if err != nil {
		return err
	}
	if !ok || m.Damaged() != "" && m.Damaged() == m.Digest() {
		return manifestUnknown(rt.repo, rt.ref)
	}
	d := m.Digest()
	h := w.Header()
	h.Set("Docker-Content-Digest", d.String())
	etag := `"` + d.String() + `"`
	h.Set("ETag", etag)
	if rt.digest != "" {
		h.Set("Cache-Control", immutable)
	}
	if matches(req.Header, "If-None-Match", etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", m.MediaType)
	if req.Method == http.MethodHead {
		h.Set("Content-Length", strconv.FormatInt(m.Size, 10))
		w.WriteHeader(http.StatusOK)
		return nil
	}
	body, err := r.content(req.Context(), d)
	if errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrDigest) {
		rt.digest = d
		return r.missing(req.Context(), rt, manifestUnknown(rt.repo, rt.ref))
	}
	if err != nil {
		return err
	}
	write(w, req, http.StatusOK, m.MediaType, body)
	return nil
}

// immutable is the Cache-Control of what a digest names: a year, the longest that RFC 9111 caches heed.
const immutable = "max-age=31536000, immutable"

// matches tells whether a header with a list of entity tags (If-Match, If-None-Match; RFC 9110, section 13.1)
// names etag.
func matches(h http.Header, name, etag string) bool {
	for _, v := range h[name] {
		for tag := range strings.SplitSeq(v, ",") {
			if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
				return true
			}
		}
	}
	return false
}

// content returns the bytes of a manifest or a small blob, from memory if they were asked for lately. They are verified
// when they are read, since memory would keep damage alive.
func (r *Registry) content(ctx context.Context, d digest.Digest) ([]byte, error) {
	if body, ok := r.contents.get(d); ok {
		return body, nil
	}
	f, err := r.options.Blobs.Open(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("content %s: %w", d, err)
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("content %s: %w", d, err)
	}
	if d.Algorithm().FromBytes(body) != d {
		return nil, fmt.Errorf("content %s: the stored bytes are damaged: %w", d, storage.ErrDigest)
	}
	r.contents.put(d, body, len(body))
	return body, nil
}

// push is a manifest on its way in.
type push struct {
	repo    string
	digest  digest.Digest
	tags    []string
	parsed  parsed
	body    []byte
	allowed func(current string, exists bool) error // the request's conditions
}

// putManifest answers end-7.
func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request, rt route) error {
	tags, err := tagParameters(req.URL.Query())
	if err != nil {
		return err
	}
	body, err := readManifest(w, req)
	if err != nil {
		return err
	}
	p := push{repo: rt.repo, digest: rt.digest, body: body, tags: tags, allowed: conditions(req.Header)}
	if rt.digest == "" {
		p.digest, p.tags = digest.FromBytes(body), append(tags, rt.ref)
	}
	if p.parsed, err = parseManifest(req.Header.Get("Content-Type"), body); err != nil {
		return err
	}
	if err := r.push(req.Context(), p, rt.ref); err != nil {
		return err
	}
	r.annotate(req.Context(), "digest", p.digest.String())
	r.audit(req, rt, auth.Push, audit.Event{What: audit.Push, Tags: p.tags, Digest: p.digest.String()})
	h := w.Header()
	h.Set("Location", "/v2/"+p.repo+"/manifests/"+p.digest.String())
	h.Set("Docker-Content-Digest", p.digest.String())
	if p.parsed.subject != "" {
		h.Set("OCI-Subject", p.parsed.subject.String())
	}
	for _, tag := range tags {
		h.Add("OCI-Tag", tag)
	}
	for _, d := range p.parsed.elsewhere[:min(len(p.parsed.elsewhere), 3)] {
		warn(w, "layer "+d.String()+" is not distributable: whoever pulls this image fetches it from elsewhere")
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// tagParameters reads ?tag= of end-7b.
func tagParameters(q url.Values) ([]string, error) {
	tags := slices.Clone(q["tag"])
	if len(tags) > maxTags {
		return nil, (&fault{code: codeManifestInvalid, message: fmt.Sprintf("at most %d tags can be given at once", maxTags)}).
			with(http.StatusRequestURITooLong)
	}
	for _, tag := range tags {
		if !ValidTag(tag) {
			return nil, tagInvalid(tag)
		}
	}
	return tags, nil
}

// readManifest reads the body, within the limit.
func readManifest(w http.ResponseWriter, req *http.Request) ([]byte, error) {
	tooLarge := (&fault{code: codeManifestInvalid, message: fmt.Sprintf("a manifest has at most %d bytes", maxManifest)}).
		with(http.StatusRequestEntityTooLarge)
	if req.ContentLength > maxManifest {
		return nil, tooLarge
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxManifest))
	if too := (*http.MaxBytesError)(nil); errors.As(err, &too) {
		return nil, tooLarge
	}
	if err != nil {
		return nil, bodyFault(err)
	}
	return body, nil
}

// bodyFault is for a body that ends before its Content-Length, or stalls.
func bodyFault(err error) *fault {
	return &fault{code: codeSizeInvalid, cause: err, message: "the body ended early; send it again"}
}

// conditions are If-Match and If-None-Match of a write (RFC 9110, section 13.1): with them, two clients that
// read, change and write the same tag cannot overwrite each other unseen.
func conditions(h http.Header) func(current string, exists bool) error {
	return func(current string, exists bool) error {
		etag := `"` + current + `"`
		switch {
		case len(h["If-Match"]) > 0 && (!exists || !matches(h, "If-Match", etag)),
			len(h["If-None-Match"]) > 0 && exists && matches(h, "If-None-Match", etag):
			message := "the condition of the request does not hold: it does not exist"
			if exists {
				message = "the condition of the request does not hold: it is now " + current
			}
			return (&fault{code: codeDenied, message: message}).with(http.StatusPreconditionFailed)
		}
		return nil
	}
}

// push makes a manifest durable and then visible. Bytes first: facts never outlive them.
func (r *Registry) push(ctx context.Context, p push, ref string) error {
	if p.digest.Algorithm().FromBytes(p.body) != p.digest {
		return digestMismatch(p.digest, nil)
	}
	look := func(tx *storage.Tx) error { return r.admissible(tx, p, ref) }
	if r.options.Index.View(p.repo, look) != nil { // what is refused anyway leaves no bytes
		if err := r.options.Index.Update(ctx, p.repo, look); err != nil {
			return err
		}
	}
	release, err := r.store(ctx, p.repo, p.digest, p.body)
	if err != nil {
		return err
	}
	defer release()
	r.contents.remove(p.digest) // pushing again heals damage
	return r.options.Index.Update(ctx, p.repo, func(tx *storage.Tx) error {
		if err := r.admissible(tx, p, ref); err != nil {
			return err
		}
		err := tx.PutManifest(storage.Manifest{Digest: p.digest, MediaType: p.parsed.mediaType,
			Size: int64(len(p.body)), Subject: p.parsed.subject, Refs: p.parsed.refs})
		for _, tag := range p.tags {
			err = errors.Join(err, tx.SetTag(tag, p.digest))
		}
		return err
	})
}

// admissible tells whether the repository, as it is, can take the manifest.
func (r *Registry) admissible(tx *storage.Tx, p push, ref string) error {
	current, exists := tx.Tag(ref)
	if strings.Contains(ref, ":") {
		current, exists = tx.Manifest(digest.Digest(ref))
	}
	if err := p.allowed(current.Digest().String(), exists); err != nil {
		return err
	}
	for _, tag := range p.tags {
		if at, ok := tx.Tag(tag); ok && at.Digest() != p.digest && r.options.Immutable(p.repo, tag) {
			return immutableTag(tag, at.Digest())
		}
	}
	var missing []*fault
	for _, d := range p.parsed.needs {
		if tx.Whole(d) {
			continue
		}
		missing = append(missing, &fault{code: codeManifestBlobUnknown, detail: map[string]string{"digest": d.String()},
			message: "the manifest consists of this among others, and the repository does not hold it: push it first"})
		if len(missing) == maxTold {
			break
		}
	}
	if len(missing) == 0 {
		return r.withinQuota(tx, p.digest, int64(len(p.body)))
	}
	missing[0].more = missing[1:]
	return missing[0]
}

// store makes bytes durable under their digest. They stay until release is called.
func (r *Registry) store(ctx context.Context, repo string, d digest.Digest, body []byte) (release func(), err error) {
	u, err := r.options.Blobs.Create(ctx, repo, d.Algorithm())
	if err != nil {
		return nil, err
	}
	if _, err := u.Write(body); err != nil {
		return nil, errors.Join(err, u.Cancel())
	}
	return r.options.Index.Commit(ctx, u, d)
}

// deleteManifest answers end-9: of a tag, the tag alone; of a digest, the manifest and its tags.
func (r *Registry) deleteManifest(w http.ResponseWriter, req *http.Request, rt route) error {
	allowed := conditions(req.Header)
	gone := audit.Event{What: audit.Delete}
	err := r.options.Index.Update(req.Context(), rt.repo, func(tx *storage.Tx) error {
		if rt.digest != "" {
			gone.Digest, gone.Tags = rt.ref, tx.TagsOf(rt.digest)
			return r.deleteByDigest(tx, rt, allowed)
		}
		current, exists := tx.Tag(rt.ref)
		if err := allowed(current.Digest().String(), exists); err != nil {
			return err
		}
		if !exists {
			return manifestUnknown(rt.repo, rt.ref)
		}
		if r.options.Immutable(rt.repo, rt.ref) {
			return immutableTag(rt.ref, current.Digest())
		}
		gone.Digest, gone.Tags = current.Digest().String(), []string{rt.ref}
		return tx.DeleteTag(rt.ref)
	})
	if err != nil {
		return err
	}
	r.audit(req, rt, auth.Delete, gone)
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func (r *Registry) deleteByDigest(tx *storage.Tx, rt route, allowed func(string, bool) error) error {
	_, exists := tx.Manifest(rt.digest)
	if err := allowed(rt.ref, exists); err != nil {
		return err
	}
	if !exists {
		return manifestUnknown(rt.repo, rt.ref)
	}
	if by, ok := tx.ReferredBy(rt.digest); ok {
		return inUse("manifest", by)
	}
	for _, tag := range tx.TagsOf(rt.digest) {
		if r.options.Immutable(rt.repo, tag) {
			return immutableTag(tag, rt.digest)
		}
	}
	return tx.DeleteManifest(rt.digest)
}

// immutableTag refuses to change a tag that is never to change.
func immutableTag(tag string, at digest.Digest) *fault {
	return &fault{code: codeDenied, detail: map[string]string{"tag": tag, "digest": at.String()},
		message: "tag " + tag + " is immutable (the registry's setting immutable-tags) and names " + at.String() + "; push under another tag"}
}

// inUse refuses to delete a part of a manifest that the repository holds: whoever pulls that would find a hole.
func inUse(what string, by digest.Digest) *fault {
	return &fault{code: codeUnsupported, detail: map[string]string{"manifest": by.String()},
		message: "this " + what + " is a part of manifest " + by.String() + " of the same repository: delete that one first"}
}
