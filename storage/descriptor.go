package storage

import "github.com/opencontainers/go-digest"

// Descriptor describes a manifest of a repo, as the OCI image spec's descriptor does. It is a small value
// that a look-up returns without allocating; its digest is rendered only when asked for.
type Descriptor struct {
	MediaType string // as pushed
	Size      int64  // bytes
	sum       sum
	damaged   key
}

// Digest returns the textual form of the manifest's digest.
func (d Descriptor) Digest() digest.Digest { return d.sum.digest() }

// AppendDigest appends the manifest's digest to b.
func (d *Descriptor) AppendDigest(b []byte) []byte { return d.sum.appendDigest(b) }

// Damaged names something that the manifest consists of, or the manifest itself, whose bytes were found damaged or
// missing and that nobody has pushed again since; empty if all is well.
func (d Descriptor) Damaged() digest.Digest { return d.damaged.digest() }

// Damage is what was found wrong with a content's bytes.
type Damage struct {
	Reason string `json:"reason"`
	Time   int64  `json:"time"` // when it was found, Unix seconds
}
