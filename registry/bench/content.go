package bench

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync/atomic"

	crand "crypto/rand"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	smallBlob  = 4 << 10
	imageCount = 100 // manifests; the tags are distributed over them
	layerCount = 20  // layers; each image has three of them
	maxLayer   = 60 << 10
	referrers  = 100
	holderTag  = "blobs" // of the image that protects the blobs from garbage collection
)

// piece is a blob or a manifest with its digest. Only manifests have a media type.
type piece struct {
	mediaType string
	digest    string
	bytes     []byte
}

func newPiece(mediaType string, b []byte) piece {
	return piece{mediaType, digest.FromBytes(b).String(), b}
}

func (p piece) descriptor(mediaType string) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digest.Digest(p.digest), Size: int64(len(p.bytes))}
}

// content is what the server must hold before it can be read.
type content struct {
	repo         string
	scale        Scale
	large, small piece
	empty        piece   // the blob of the specification's empty descriptor
	blobs        []piece // layers and configurations of the images
	images       []piece
	holder       piece
	referrers    []piece // of images[0]
	minimal      piece   // the manifest in each of the many repositories
	tags         []string
}

// newContent derives the content from the seed.
func newContent(o Options) (*content, error) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], o.Seed)
	source := rand.NewChaCha8(seed)
	random := func(n int) []byte {
		b := make([]byte, n)
		source.Read(b) // never fails
		return b
	}
	c := &content{repo: o.Repository, scale: o.Scale, empty: newPiece("", []byte("{}"))}
	// The order of these calls is part of what the seed means: another order is other content.
	c.large = newPiece("", random(o.large))
	c.small = newPiece("", random(smallBlob))
	for i := range o.Scale.Tags {
		c.tags = append(c.tags, fmt.Sprintf("t%05d", i))
	}
	for i := range layerCount {
		c.blobs = append(c.blobs, newPiece("", random(smallBlob+i*(maxLayer-smallBlob)/(layerCount-1))))
	}
	for i := range imageCount {
		if err := c.addImage(i, random(32)); err != nil {
			return nil, err
		}
	}
	return c, c.addRest()
}

// addImage adds an image of three of the layers, with its own config.
func (c *content) addImage(i int, id []byte) error {
	config := newPiece("", configuration(hex.EncodeToString(id)))
	c.blobs = append(c.blobs, config)
	var layers []v1.Descriptor
	for k := range 3 {
		layers = append(layers, c.blobs[(i+k*7)%layerCount].descriptor(v1.MediaTypeImageLayerGzip))
	}
	image, err := manifest(v1.Manifest{Config: config.descriptor(v1.MediaTypeImageConfig), Layers: layers})
	c.images = append(c.images, image)
	return err
}

func (c *content) addRest() (err error) {
	nothing := c.empty.descriptor(v1.MediaTypeEmptyJSON)
	const octets = "application/octet-stream"
	c.holder, err = manifest(v1.Manifest{Config: nothing, ArtifactType: octets,
		Layers: []v1.Descriptor{c.large.descriptor(octets), c.small.descriptor(octets)}})
	if err != nil {
		return err
	}
	subject := c.images[0].descriptor(v1.MediaTypeImageManifest)
	for i := range referrers {
		p, err := manifest(v1.Manifest{Config: nothing, Layers: []v1.Descriptor{nothing}, Subject: &subject,
			ArtifactType: "application/vnd.example.bench", Annotations: map[string]string{"number": fmt.Sprint(i)}})
		if err != nil {
			return err
		}
		c.referrers = append(c.referrers, p)
	}
	c.minimal, err = manifest(v1.Manifest{Config: nothing, Layers: []v1.Descriptor{nothing}, ArtifactType: octets})
	return err
}

func manifest(m v1.Manifest) (piece, error) {
	m.Versioned, m.MediaType = specs.Versioned{SchemaVersion: 2}, v1.MediaTypeImageManifest
	b, err := json.Marshal(m)
	return newPiece(v1.MediaTypeImageManifest, b), err
}

// configuration returns the config of an image. The id makes it unique; it is near the end, see [template].
func configuration(id string) []byte {
	return []byte(configurationStart + id + configurationEnd)
}

const (
	configurationStart = `{"architecture":"amd64","os":"linux","config":{` +
		`"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"],"Cmd":["/bin/sh"]},` +
		`"rootfs":{"type":"layers","diff_ids":[]},"history":[{"created_by":"trow bench"}],"author":"`
	configurationEnd = `"}`
)

// tagged returns the manifest of tag i.
func (c *content) tagged(i int) piece { return c.images[i%len(c.images)] }

func (c *content) repoName(i int) string { return fmt.Sprintf("%s/c%05d", c.repo, i) }

// tailSize is the length of the unique end of a new blob.
const tailSize = 32

// Together these two make each tail unique: runID among all runs, sequence within this run.
var (
	runID    = func() (id [8]byte) { crand.Read(id[:]); return }()
	sequence atomic.Uint64
)

// newTail returns 32 hexadecimal digits that were never returned before.
func newTail() (tail [tailSize]byte) {
	var b [16]byte
	copy(b[:], runID[:])
	binary.BigEndian.PutUint64(b[8:], sequence.Add(1))
	hex.Encode(tail[:], b[:])
	return tail
}

// template is the common start of many blobs, with the state of the hash after it: only the end of each blob must be
// hashed, so that the timed part measures the server and not SHA-256.
type template struct {
	base  []byte
	end   string // after the tail
	state hash.Cloner
}

func newTemplate(base []byte, end string) template {
	h := sha256.New()
	h.Write(base)
	return template{base, end, h.(hash.Cloner)}
}

func (m *template) size() int { return len(m.base) + tailSize + len(m.end) }

// newBlob is a blob that no server has. Its bytes are base and tail.
type newBlob struct {
	base, tail []byte
	digest     string
}

// make returns a new blob.
func (m *template) make() (newBlob, error) {
	tail := newTail()
	f := newBlob{base: m.base, tail: append(tail[:], m.end...)}
	h, err := m.state.Clone()
	if err != nil {
		return f, err
	}
	h.Write(f.tail)
	f.digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return f, nil
}

// templates are the templates of the large blob, of an image's config, and of its layers.
type templates struct {
	large, config template
	layers        [3]template
}

func newTemplates(c *content) templates {
	from := func(at, size int) template { return newTemplate(c.large.bytes[at:at+size-tailSize], "") }
	sizes := [3]int{smallBlob, 17 << 10, maxLayer}
	m := templates{large: from(0, len(c.large.bytes)),
		config: newTemplate([]byte(configurationStart), configurationEnd)}
	for i, size := range sizes {
		m.layers[i] = from(i<<16, size)
	}
	return m
}

//go:embed review.json
var reviewTemplate []byte

const reviewUID = "705ab4f5-6393-11e8-b7cc-42010a800004" // in review.json

// review returns an AdmissionReview of a pod with three of the images, as the API server sends it. registry is the URL
// of the server.
func (c *content) review(registry string) ([]byte, error) {
	u, err := url.Parse(registry)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, 6)
	for i, container := range []string{"web", "worker", "proxy"} {
		names = append(names, "IMAGE-"+container, u.Host+"/"+c.repo+":"+c.tags[i%len(c.tags)])
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, reviewTemplate); err != nil {
		return nil, err
	}
	if !strings.Contains(compact.String(), reviewUID) {
		return nil, errors.New("review.json does not have uid " + reviewUID)
	}
	return []byte(strings.NewReplacer(names...).Replace(compact.String())), nil
}
