package storage

import "github.com/opencontainers/go-digest"

// Descriptor describes a manifest of a repo, as the OCI image spec's descriptor does. It is a small value that a
// look-up returns without allocating; its digest is rendered only on request.
type Descriptor struct {
	MediaType string // as pushed; "": longer than 255 bytes, see the mediaType in the manifest
	Size      int64  // bytes
	sum       sum
	damaged   key
}

// Digest returns the textual form of the manifest's digest.
func (d Descriptor) Digest() digest.Digest { return d.sum.digest() }

// Damaged returns the manifest itself or a part of it that is quarantined, or "". A part that the
// repo does not hold, such as a foreign layer, does not count.
func (d Descriptor) Damaged() digest.Digest { return d.damaged.digest() }

// Damage is what was found wrong with the bytes of a content.
type Damage struct {
	Reason string `json:"reason"`
	Time   int64  `json:"time"` // when it was found, Unix seconds
}
