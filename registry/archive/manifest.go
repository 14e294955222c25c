package archive

import (
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// content is what an import reads of a manifest or index of any type: the descriptors of its parts. Package registry
// reads more and is strict; an import must get along with what other registries have accepted, and leaves it to the
// server to refuse a manifest.
type content struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        *v1.Descriptor  `json:"config"`
	Layers        []v1.Descriptor `json:"layers"`
	Manifests     []v1.Descriptor `json:"manifests"`
	Blobs         []v1.Descriptor `json:"blobs"` // OCI artifact manifests
	Subject       *v1.Descriptor  `json:"subject"`
}

// blobs returns the descriptors of the parts that are not manifests.
func (c *content) blobs() []v1.Descriptor {
	all := append(c.Layers[:len(c.Layers):len(c.Layers)], c.Blobs...)
	if c.Config != nil {
		all = append(all, *c.Config)
	}
	return all
}
