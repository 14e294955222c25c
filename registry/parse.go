package registry

import (
	"fmt"
	"mime"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// The media types whose form is known. Others are taken as they are.
const (
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// descriptor is what is read of an OCI descriptor (image spec, "Content Descriptors").
type descriptor struct {
	MediaType string            `json:"mediaType,omitempty"`
	Digest    string            `json:"digest,omitempty"`
	Size      int64             `json:"size,omitempty"`
	URLs      anything          `json:"urls,omitempty"`
	Artifact  string            `json:"artifactType,omitempty"`
	Notes     map[string]string `json:"annotations,omitempty"`
	BlobSum   string            `json:"blobSum,omitempty"` // Docker's schema 1
}

// descriptors is a list of them. Of those that name nothing, which a manifest of 4 MiB could have a million of, it
// keeps the first alone: that is enough to refuse a manifest for it.
type descriptors []descriptor

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (l *descriptors) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*l = nil
	if dec.PeekKind() == '[' {
		*l = descriptors{}
	}
	empty := false
	var d descriptor // one for all: a million empty ones must not be a million allocations
	return elements(dec, func() error {
		d = descriptor{}
		if err := json.UnmarshalDecode(dec, &d); err != nil {
			return err
		}
		if named := d.Digest != "" || d.BlobSum != ""; named || !empty {
			*l = append(*l, d)
			empty = empty || !named
		}
		return nil
	})
}

// anything tells whether a list of text has any element.
type anything bool

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (a *anything) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*a = false
	var text string
	return elements(dec, func() error {
		*a = true
		return json.UnmarshalDecode(dec, &text)
	})
}

// elements calls next for each element of an array; null is an empty one.
func elements(dec *jsontext.Decoder, next func() error) error {
	switch kind := dec.PeekKind(); kind {
	case 'n':
		return dec.SkipValue()
	case '[':
	default:
		if err := dec.SkipValue(); err != nil {
			return err
		}
		return fmt.Errorf("an array is expected, not %v", kind)
	}
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() != ']' {
		if dec.PeekKind() == 0 { // the input is broken, and says so when it is read
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

// content is what is read of a manifest, of whatever type: the union of what the known ones have.
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

// parsed is a manifest as the registry sees it.
type parsed struct {
	mediaType string
	subject   digest.Digest
	needs     []digest.Digest // must be held, as a blob or a manifest, when the manifest is taken
	refs      []digest.Digest // all that it consists of, also what may be elsewhere
	elsewhere []digest.Digest // layers that are fetched from other places (urls)
}

func manifestInvalid(format string, args ...any) *fault {
	return &fault{code: codeManifestInvalid, message: fmt.Sprintf(format, args...)}
}

// decodeManifest reads a manifest's JSON. Names that come twice, invalid UTF-8 and numbers out of range are
// errors: two clients would read such a manifest differently.
func decodeManifest(body []byte) (content, error) {
	var c content
	err := json.Unmarshal(body, &c)
	return c, err
}

// parseManifest understands a manifest that was sent as contentType. It is a pure function of its arguments.
func parseManifest(contentType string, body []byte) (parsed, error) {
	c, err := decodeManifest(body)
	mediaType, ferr := typeOf(contentType, c, err)
	if ferr != nil {
		return parsed{}, ferr
	}
	p := parsed{mediaType: mediaType}
	switch mediaType {
	case typeOCIManifest, typeDockerManifest, typeOCIIndex, typeDockerList:
		if err != nil {
			return p, manifestInvalid("the manifest is not valid JSON: %v", brief(err))
		}
		if c.SchemaVersion != 2 {
			return p, manifestInvalid("schemaVersion is %d, and must be 2", c.SchemaVersion)
		}
		return p, p.known(c)
	}
	if err == nil {
		p.unknown(c)
	}
	return p, nil
}

// typeOf decides on the media type: what the client says, without parameters; the body must not contradict.
func typeOf(contentType string, c content, decodeErr error) (string, error) {
	mediaType := strings.ToLower(strings.TrimSpace(contentType))
	if t, _, err := mime.ParseMediaType(contentType); err == nil {
		mediaType = t
	}
	switch {
	case mediaType == "" && decodeErr != nil:
		return "", manifestInvalid("the manifest has no Content-Type and is not valid JSON: %v", brief(decodeErr))
	case mediaType == "" && c.MediaType != "":
		return c.MediaType, nil
	case mediaType == "" && c.Manifests != nil:
		return typeOCIIndex, nil
	case mediaType == "" && c.Config != nil:
		return typeOCIManifest, nil
	case mediaType == "":
		return "", manifestInvalid("the manifest has neither a Content-Type nor a mediaType")
	case len(mediaType) > maxName || strings.ContainsFunc(mediaType, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", manifestInvalid("the Content-Type is not a media type")
	case c.MediaType != "" && !strings.EqualFold(c.MediaType, mediaType):
		return "", manifestInvalid("Content-Type is %q, but the manifest says mediaType %q", mediaType, clip(c.MediaType))
	}
	return mediaType, nil
}

// known takes a manifest or index of one of the known types.
func (p *parsed) known(c content) error {
	image := p.mediaType == typeOCIManifest || p.mediaType == typeDockerManifest
	if image && c.Config == nil {
		return manifestInvalid("an image manifest must have a config")
	}
	if image && c.Manifests != nil || !image && (c.Layers != nil || c.Config != nil) {
		return manifestInvalid("a manifest has either layers or manifests: of which kind it is must not be in doubt")
	}
	if image {
		if err := p.need("config", *c.Config); err != nil {
			return err
		}
	}
	for i, d := range slices.Concat(c.Layers, c.Manifests) {
		name := "layers"
		if !image {
			name = "manifests"
		}
		if err := p.need(fmt.Sprintf("%s[%d]", name, i), d); err != nil {
			return err
		}
	}
	return p.refersTo(c.Subject)
}

// need notes a part of the manifest.
func (p *parsed) need(where string, d descriptor) error {
	parsed, err := storage.ParseDigest(d.Digest)
	if err != nil || d.Size < 0 {
		return manifestInvalid("%s: a descriptor must have a digest, sha256 or sha512, and a size that is not negative", where)
	}
	p.refs = append(p.refs, parsed)
	if foreign(d) {
		p.elsewhere = append(p.elsewhere, parsed)
	} else {
		p.needs = append(p.needs, parsed)
	}
	return nil
}

// foreign tells whether content is by its nature not in a registry (image spec, "Non-Distributable Layers").
func foreign(d descriptor) bool {
	return bool(d.URLs) || strings.Contains(d.MediaType, ".nondistributable.") || strings.Contains(d.MediaType, ".foreign.")
}

func (p *parsed) refersTo(subject *descriptor) error {
	if subject == nil {
		return nil
	}
	d, err := storage.ParseDigest(subject.Digest)
	if err != nil {
		return manifestInvalid("subject: a descriptor must have a digest, sha256 or sha512")
	}
	p.subject = d
	return nil
}

// unknown takes what a manifest of any other type seems to consist of, so that it is kept alive; nothing of
// it is required.
func (p *parsed) unknown(c content) {
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
	_ = p.refersTo(c.Subject) // a malformed one is none
}

// ReadManifest reads stored content as a manifest of one of the known types. It leaves Digest and Size to the caller.
func ReadManifest(content []byte) (m storage.Manifest, ok bool) {
	p, err := parseManifest("", content)
	switch p.mediaType {
	case typeOCIManifest, typeDockerManifest, typeOCIIndex, typeDockerList:
		return storage.Manifest{MediaType: p.mediaType, Subject: p.subject, Refs: p.refs}, err == nil
	}
	return storage.Manifest{}, false
}

// RecoverManifest is [ReadManifest] for a repair that has lost the facts about a manifest. parts has the size in bytes of
// every part that a repository must hold to accept the manifest, so not of foreign layers.
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
		if !foreign(d) {
			parts[digest.Digest(d.Digest)] = d.Size
		}
	}
	return m, parts, true
}

// brief bounds a decoder's error, which may quote what was sent.
func brief(err error) string { return clip(err.Error()) }
