package storage

import "github.com/opencontainers/go-digest"

// Descriptor describes a manifest of a repo, as the OCI image spec's descriptor does. It is a small value
// that a look-up returns without allocating; its digest is rendered only when asked for.
type Descriptor struct {
	MediaType string // as pushed
	Size      int64  // bytes
	key       key
}

// Digest returns the textual form of the manifest's digest.
func (d Descriptor) Digest() digest.Digest { return d.key.digest() }
