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
	imageCount = 100 // different manifests that the tags are shared among
	layerCount = 20  // different layers that the images consist of, three each
	maxLayer   = 60 << 10
	referrers  = 100
	holderTag  = "blobs" // of the image that keeps the blobs from being collected
)

// piece is content with its digest. A manifest has a media type.
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

// content is what the server must hold.
type content struct {
	repo         string
	scale        Scale
	large, small piece
	empty        piece   // the specification's empty descriptor
	blobs        []piece // layers and configurations of the images
	images       []piece
	holder       piece
	referrers    []piece // of images[0]
	minimal      piece   // what the many repositories hold
	tags         []string
}

// newContent makes it from the seed.
func newContent(o Options) (*content, error) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], o.Seed)
	source := rand.NewChaCha8(seed)
	random := func(n int) []byte {
		b := make([]byte, n)
		source.Read(b) // never fails
		return b
	}
	c := &content{repo: o.Repository, scale: o.Scale, large: newPiece("", random(o.large)), small: newPiece("", random(smallBlob)),
		empty: newPiece("", []byte("{}"))}
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

// addImage makes an image of three of the layers, with a configuration of its own.
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
	c.holder, err = manifest(v1.Manifest{Config: nothing, ArtifactType: "application/octet-stream",
		Layers: []v1.Descriptor{c.large.descriptor("application/octet-stream"), c.small.descriptor("application/octet-stream")}})
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
	c.minimal, err = manifest(v1.Manifest{Config: nothing, Layers: []v1.Descriptor{nothing}, ArtifactType: "application/octet-stream"})
	return err
}

func manifest(m v1.Manifest) (piece, error) {
	m.Versioned, m.MediaType = specs.Versioned{SchemaVersion: 2}, v1.MediaTypeImageManifest
	b, err := json.Marshal(m)
	return newPiece(v1.MediaTypeImageManifest, b), err
}

// configuration is an image's, made unique by its id, which comes last.
func configuration(id string) []byte {
	return []byte(configurationStart + id + configurationEnd)
}

const (
	configurationStart = `{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"],` +
		`"Cmd":["/bin/sh"]},"rootfs":{"type":"layers","diff_ids":[]},"history":[{"created_by":"trow bench"}],"author":"`
	configurationEnd = `"}`
)

// tagged is what a tag points to.
func (c *content) tagged(i int) piece { return c.images[i%len(c.images)] }

func (c *content) repoName(i int) string { return fmt.Sprintf("%s/c%05d", c.repo, i) }

// ---- Content that is new each time

// tailSize is what is appended to a mould.
const tailSize = 32

// runID makes what is pushed differ from every earlier run's; sequence from what this run has pushed.
var (
	runID    = func() (id [8]byte) { crand.Read(id[:]); return }()
	sequence atomic.Uint64
)

// newTail is unique: 32 hexadecimal digits.
func newTail() (tail [tailSize]byte) {
	var b [16]byte
	copy(b[:], runID[:])
	binary.BigEndian.PutUint64(b[8:], sequence.Add(1))
	hex.Encode(tail[:], b[:])
	return tail
}

// mould is what many contents begin with, and the state of the hash behind it: each is then hashed at the price of
// its end.
type mould struct {
	base  []byte
	end   string // behind the tail
	state hash.Cloner
}

func newMould(base []byte, end string) mould {
	h := sha256.New()
	h.Write(base)
	return mould{base, end, h.(hash.Cloner)}
}

func (m *mould) size() int { return len(m.base) + tailSize + len(m.end) }

// fresh is content that no one has seen: base and tail are its bytes.
type fresh struct {
	base, tail []byte
	digest     string
}

// cast makes one.
func (m *mould) cast() (fresh, error) {
	tail := newTail()
	f := fresh{base: m.base, tail: append(tail[:], m.end...)}
	h, err := m.state.Clone()
	if err != nil {
		return f, err
	}
	h.Write(f.tail)
	f.digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return f, nil
}

// moulds are those of what is pushed: the large blob, an image's configuration, and its layers.
type moulds struct {
	large, config mould
	layers        [3]mould
}

func newMoulds(c *content) moulds {
	from := func(at, size int) mould { return newMould(c.large.bytes[at:at+size-tailSize], "") }
	sizes := [3]int{smallBlob, 17 << 10, maxLayer}
	m := moulds{large: from(0, len(c.large.bytes)), config: newMould([]byte(configurationStart), configurationEnd)}
	for i, size := range sizes {
		m.layers[i] = from(i<<16, size)
	}
	return m
}

// ---- A review

//go:embed review.json
var reviewTemplate []byte

const reviewUID = "705ab4f5-6393-11e8-b7cc-42010a800004" // in review.json

// review is an AdmissionReview of a pod with three of the images, as the API server sends it.
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
		return nil, errors.New("review.json has another uid")
	}
	return []byte(strings.NewReplacer(names...).Replace(compact.String())), nil
}
