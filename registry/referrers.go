package registry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// maxReferrers bounds the bytes of one list of referrers, which carry annotations of any size. The rest is
// linked to.
const maxReferrers = 2 << 20

// referrer is a manifest's descriptor in the list of its subject's referrers.
type referrer struct {
	artifactType string
	json         []byte
}

// listReferrers answers end-12: an image index of the manifests whose subject is the digest. Also for a
// digest or a repository that is not there, whose list is empty.
func (r *Registry) listReferrers(w http.ResponseWriter, req *http.Request, rt route) error {
	q := req.URL.Query()
	after := digest.Digest(q.Get("last"))
	if _, err := storage.ParseDigest(string(after)); err != nil && after != "" {
		return digestInvalid(string(after))
	}
	found, err := r.referring(req.Context(), rt, after)
	if err != nil {
		return err
	}
	filter := q.Get("artifactType")
	if filter != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	body := lists.Get().(*bytes.Buffer)
	defer func() {
		if body.Cap() <= maxListKept {
			body.Reset()
			lists.Put(body)
		}
	}()
	next, err := r.renderReferrers(req.Context(), body, found, filter)
	if err != nil {
		return err
	}
	if next != "" {
		q.Set("last", next.String())
		w.Header().Set("Link", "</v2/"+rt.repo+"/referrers/"+rt.ref+"?"+q.Encode()+`>; rel="next"`)
	}
	write(w, req, http.StatusOK, typeOCIIndex, body.Bytes())
	return nil
}

// referring finds the manifests whose subject is the digest, after the given one.
func (r *Registry) referring(ctx context.Context, rt route, after digest.Digest) ([]storage.Descriptor, error) {
	if rt.hidden {
		return nil, nil
	}
	found, err := r.options.Index.Referrers(ctx, rt.repo, rt.digest, after)
	if err != nil {
		return nil, err
	}
	return r.addTagged(ctx, rt, found, after)
}

// lists keeps the buffers that lists were made in, up to maxListKept bytes each.
var lists = sync.Pool{New: func() any { return new(bytes.Buffer) }}

const maxListKept = 256 << 10

// renderReferrers makes the index. next is the last one in it if there are more.
func (r *Registry) renderReferrers(ctx context.Context, buf *bytes.Buffer, found []storage.Descriptor, filter string) (next digest.Digest, err error) {
	buf.WriteString(`{"schemaVersion":2,"mediaType":"` + typeOCIIndex + `","manifests":[`)
	empty := true
	for i, m := range found {
		ref, err := r.referrer(ctx, m)
		if err != nil {
			return "", err
		}
		if filter != "" && filter != ref.artifactType {
			continue
		}
		if !empty && buf.Len()+len(ref.json) > maxReferrers {
			next = found[i-1].Digest()
			break
		}
		if !empty {
			buf.WriteByte(',')
		}
		buf.Write(ref.json)
		empty = false
	}
	buf.WriteString("]}")
	return next, nil
}

// referrer describes a manifest as the list has it.
func (r *Registry) referrer(ctx context.Context, m storage.Descriptor) (referrer, error) {
	if ref, ok := r.referrers.get(m); ok {
		return ref, nil
	}
	d := m.Digest()
	body, err := r.content(ctx, d)
	if err != nil {
		return referrer{}, err
	}
	c, err := decodeManifest(body)
	if err != nil {
		return referrer{}, fmt.Errorf("referrer %s: %w", d, err)
	}
	artifact := c.Artifact
	if artifact == "" && c.Config != nil {
		artifact = c.Config.MediaType
	}
	desc := descriptor{MediaType: m.MediaType, Digest: d.String(), Size: m.Size, Artifact: artifact, Notes: c.Annotations}
	js, err := json.Marshal(desc)
	if err != nil {
		return referrer{}, fmt.Errorf("referrer %s: %w", d, err)
	}
	ref := referrer{artifact, js}
	r.referrers.put(m, ref, len(js)+len(artifact))
	return ref, nil
}

// addTagged adds what an index under the fallback tag lists (distribution spec, "Referrers Tag Schema"), as far
// as the repository holds it and its subject has not listed it already. Clients keep such an index with
// registries that had no list of referrers.
func (r *Registry) addTagged(ctx context.Context, rt route, found []storage.Descriptor, after digest.Digest) ([]storage.Descriptor, error) {
	m, ok, err := r.options.Index.Resolve(ctx, rt.repo, fallbackTag(rt.digest))
	if err != nil || !ok || m.MediaType != typeOCIIndex {
		return found, err
	}
	body, err := r.content(ctx, m.Digest())
	if err != nil {
		return nil, err
	}
	c, err := decodeManifest(body)
	if err != nil {
		return nil, err
	}
	seen := map[storage.Descriptor]bool{}
	for _, m := range found {
		seen[m] = true
	}
	for _, listed := range c.Manifests {
		d, err := storage.ParseDigest(listed.Digest)
		if err != nil || d <= after {
			continue
		}
		m, ok, err := r.options.Index.Resolve(ctx, rt.repo, d.String())
		if err != nil {
			return nil, err
		}
		if ok && !seen[m] {
			seen[m] = true
			found = append(found, m)
		}
	}
	slices.SortFunc(found, func(a, b storage.Descriptor) int { return cmp.Compare(a.Digest(), b.Digest()) })
	return found, nil
}

// fallbackTag is the tag under which clients keep the referrers of d.
func fallbackTag(d digest.Digest) string {
	const most = 64 // characters of the hash
	encoded := d.Encoded()
	return strings.ToLower(d.Algorithm().String()) + "-" + encoded[:min(len(encoded), most)]
}
