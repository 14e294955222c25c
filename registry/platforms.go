package registry

import (
	"encoding/json"
	"slices"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/storage"
)

// Images is the index of a registry, which also knows the platforms of what it has served lately.
type Images struct {
	*storage.Index
	registry *Registry
}

// Images returns the images for the webhook.
func (r *Registry) Images() Images { return Images{r.options.Index, r} }

// maxPlatformIndex bounds the index of an image that Platforms reads, in bytes: verdicts wait for it. Those of real
// images have some thousand.
const maxPlatformIndex = 64 << 10

// Platforms returns the platforms, as os/arch[/variant], that an index names for these manifests, in this order. What
// is not known is empty: it comes from the bytes that are in memory, because a verdict must not wait for the disk.
func (i Images) Platforms(index digest.Digest, of []digest.Digest) []string {
	names := make([]string, len(of))
	body, ok := i.registry.contents.get(index)
	var all struct {
		Manifests []struct {
			Digest   digest.Digest
			Platform *v1.Platform
		}
	}
	if !ok || len(body) > maxPlatformIndex || json.Unmarshal(body, &all) != nil {
		return names
	}
	for _, m := range all.Manifests {
		if at := slices.Index(of, m.Digest); at >= 0 && m.Platform != nil {
			names[at] = m.Platform.OS + "/" + m.Platform.Architecture
			if m.Platform.Variant != "" {
				names[at] += "/" + m.Platform.Variant
			}
		}
	}
	return names
}
