package maintenance

import (
	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// Retained is the outcome of the job retention.
type Retained struct {
	Removed int  `json:"removed"` // tags and manifests
	Rules   bool `json:"rules"`   // whether there are any
}

// Found is the outcome of the job scrub.
type Found struct {
	storage.Scrubbed
	Damages map[digest.Digest]storage.Damage `json:"damages"` // all that is known, not only what this scrub found
}
