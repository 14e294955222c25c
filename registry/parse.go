package registry

import (
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/opencontainers/go-digest"

	"trow/registry/ocierror"
	"trow/storage"
)

// The media types whose form the registry knows. It accepts all others as they are.
const (
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// descriptor has the fields of an OCI descriptor that the registry uses (image spec, "Content Descriptors").
type descriptor struct {
	MediaType   string            `json:"mediaType,omitempty"`
	Digest      string            `json:"digest,omitempty"`
	Size        int64             `json:"size,omitempty"`
	URLs        nonEmpty          `json:"urls,omitempty"`
	Artifact    string            `json:"artifactType,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	BlobSum     string            `json:"blobSum,omitempty"` // Docker's schema 1
}

// descriptors is a list of descriptors. Of those without a digest it keeps the first alone. That is enough to refuse
// the manifest, and bounds the memory: a manifest of 4 MiB can have a million of them.
type descriptors []descriptor

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (l *descriptors) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*l = nil
	if dec.PeekKind() == '[' {
		*l = descriptors{}
	}
	empty := false
	var d descriptor // one for all, so that a million empty ones are not a million allocations
	return elements(dec, func() error {
		d = descriptor{}
		if err := json.UnmarshalDecode(dec, &d); err != nil {
			return err
		}
		if hasDigest := d.Digest != "" || d.BlobSum != ""; hasDigest || !empty {
			*l = append(*l, d)
			empty = empty || !hasDigest
		}
		return nil
	})
}

// nonEmpty reports whether a list of strings has an element.
type nonEmpty bool

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (a *nonEmpty) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*a = false
	var text string
	return elements(dec, func() error {
		*a = true
		return json.UnmarshalDecode(dec, &text)
	})
}

// elements calls next for each element of an array. null counts as an empty array.
func elements(dec *jsontext.Decoder, next func() error) error {
	switch kind := dec.PeekKind(); kind {
	case 'n':
		return dec.SkipValue()
	case '[':
	default:
		if err := dec.SkipValue(); err != nil {
			return err
		}
		return fmt.Errorf("want an array, not %v", kind)
	}
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() != ']' {
		if dec.PeekKind() == 0 { // invalid input; reading it returns the error
			_, err := dec.ReadToken()
			return err
		}
		if err := next(); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

// content has the fields of a manifest that the registry uses: the union of those of all known types.
type content struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Artifact      string            `json:"artifactType"`
	Config        *descriptor       `json:"config"`
	Layers        descriptors       `json:"layers"`
	Manifests     descriptors       `json:"manifests"`
	Blobs         descriptors       `json:"blobs"`    // OCI artifact manifests
	FSLayers      descriptors       `json:"fsLayers"` // Docker's schema 1
	Subject       *descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
}

// parsed is what the registry must know about a manifest.
type parsed struct {
	mediaType string
	subject   digest.Digest
	needs     []digest.Digest // the repository must hold these, as blobs or manifests, to accept the manifest
	refs      []digest.Digest // everything that it consists of, including elsewhere
	elsewhere []digest.Digest // layers that clients get from other places (urls)

	artifactType string // see content.artifactType
}

// decodeManifest decodes a manifest's JSON. It refuses duplicate names, invalid UTF-8 and numbers out of range, because
// different clients would understand such a manifest differently.
func decodeManifest(body []byte) (content, error) {
	var c content
	err := json.Unmarshal(body, &c)
	return c, err
}

// parseManifest parses a manifest that is pushed as contentType, and refuses what new manifests must not have. It is a
// pure function. Errors: MANIFEST_INVALID.
func parseManifest(contentType string, body []byte) (parsed, error) {
	p, c, err := parseContent(contentType, body)
	if err != nil {
		return p, err
	}
	p.artifactType = c.artifactType()
	if knownType(p.mediaType) {
		if err := checkNames(body); err != nil {
			return p, err
		}
	}
	return p, checkTypes(c)
}

// parseContent is parseManifest for any content, also such as was stored before there were further rules: a repair must
// not lose that. The content is zero for a manifest of another type that is not JSON.
func parseContent(contentType string, body []byte) (parsed, content, error) {
	c, err := decodeManifest(body)
	mediaType, terr := typeOf(contentType, c, err)
	if terr != nil {
		return parsed{}, c, terr
	}
	p := parsed{mediaType: mediaType}
	if knownType(mediaType) {
		if err != nil {
			return p, c, manifestInvalid("the manifest is not valid JSON: %v", brief(err))
		}
		if c.SchemaVersion != 2 {
			return p, c, manifestInvalid("schemaVersion is %d; want 2", c.SchemaVersion)
		}
		return p, c, p.parseKnown(c)
	}
	if err != nil { // a manifest of another type need not be JSON
		return p, content{}, nil
	}
	p.parseOther(c)
	return p, c, nil
}

// parseKnown parses a manifest or an index of one of the known types.
func (p *parsed) parseKnown(c content) error {
	image := p.mediaType == typeOCIManifest || p.mediaType == typeDockerManifest
	if image && c.Config == nil {
		return manifestInvalid("config is missing; an image manifest must have one")
	}
	if image && c.Manifests != nil || !image && (c.Layers != nil || c.Config != nil) {
		// Clients that look at different fields would take it for different things (CVE-2021-41190).
		return manifestInvalid("want either config and layers or manifests, not both")
	}
	if image {
		if err := p.need("config", *c.Config, false); err != nil {
			return err
		}
	}
	for i, d := range slices.Concat(c.Layers, c.Manifests) {
		name := "layers"
		if !image {
			name = "manifests"
		}
		if err := p.need(fmt.Sprintf("%s[%d]", name, i), d, image && foreign(d)); err != nil {
			return err
		}
	}
	return p.setSubject(c.Subject)
}

// need records a part of the manifest. Only layers can be foreign: an index or a config whose bytes come from elsewhere
// would decide what runs without being here.
func (p *parsed) need(where string, d descriptor, foreign bool) error {
	parsed, err := storage.ParseDigest(d.Digest)
	if err != nil || d.Size < 0 {
		return manifestInvalid("%s: want a descriptor with a sha256 or sha512 digest and a size of 0 or more", where)
	}
	p.refs = append(p.refs, parsed)
	if foreign {
		p.elsewhere = append(p.elsewhere, parsed)
	} else {
		p.needs = append(p.needs, parsed)
	}
	return nil
}

// foreign reports whether a layer is not meant to be in a registry (image spec, "Non-Distributable Layers"; Docker's
// manifest version 2, schema 2). The types are those that containerd does not push.
func foreign(d descriptor) bool {
	return bool(d.URLs) || strings.HasPrefix(d.MediaType, "application/vnd.oci.image.layer.nondistributable.") ||
		strings.HasPrefix(d.MediaType, "application/vnd.docker.image.rootfs.foreign.")
}

func (p *parsed) setSubject(subject *descriptor) error {
	if subject == nil {
		return nil
	}
	d, err := storage.ParseDigest(subject.Digest)
	if err != nil {
		return manifestInvalid("subject: want a descriptor with a sha256 or sha512 digest")
	}
	p.subject = d
	return nil
}

// parseOther records what a manifest of any other type seems to consist of, so that the Collector does not delete it.
// The repository need not hold any of it.
func (p *parsed) parseOther(c content) {
	all := slices.Concat(c.Layers, c.Manifests, c.Blobs, c.FSLayers)
	if c.Config != nil {
		all = append(all, *c.Config)
	}
	for _, d := range all {
		for _, s := range []string{d.Digest, d.BlobSum} {
			if parsed, err := storage.ParseDigest(s); err == nil {
				p.refs = append(p.refs, parsed)
			}
		}
	}
	_ = p.setSubject(c.Subject) // an invalid subject is ignored, like the rest of an unknown type
}

// ReadManifest parses stored content as a manifest of one of the known types, for a repair that has lost the facts
// about it. ok is false if it is not such a manifest. The caller sets Digest and Size.
func ReadManifest(content []byte) (m storage.Manifest, ok bool) {
	p, _, err := parseContent("", content)
	if !knownType(p.mediaType) {
		return storage.Manifest{}, false
	}
	return storage.Manifest{MediaType: p.mediaType, Subject: p.subject, Refs: p.refs}, err == nil
}

// brief bounds the text of a decoder's error, which may quote the client's input.
func brief(err error) string { return ocierror.Clip(err.Error()) }

// RecoverManifest is [ReadManifest] for a repair that has lost the facts about a manifest. parts has the size in bytes
// of every part that a repository must hold to accept the manifest, so not of foreign layers.
func RecoverManifest(content []byte) (m storage.Manifest, parts map[digest.Digest]int64, ok bool) {
	if m, ok = ReadManifest(content); !ok {
		return storage.Manifest{}, nil, false
	}
	c, _ := decodeManifest(content) // ReadManifest has decoded it without an error
	all := slices.Concat(c.Layers, c.Manifests)
	if c.Config != nil {
		all = append(all, *c.Config)
	}
	parts = map[digest.Digest]int64{}
	for _, d := range all {
		// Also children and configs that earlier versions accepted as foreign: a repair must not report them as lost.
		if !foreign(d) {
			parts[digest.Digest(d.Digest)] = d.Size
		}
	}
	return m, parts, true
}
