package registry

import (
	"fmt"

	"github.com/spf13/pflag"
)

// ContentOptions are the settings of what new manifests may be.
type ContentOptions struct {
	// ForeignLayers accepts images with layers that the registry need not hold.
	ForeignLayers bool
	// MaxReferences bounds the descriptors of one manifest.
	MaxReferences int
}

// AddFlags registers the settings as flags.
func (o *ContentOptions) AddFlags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.ForeignLayers, "foreign-layers", true, "accept images with layers that clients get from elsewhere "+
		"(urls, or a non-distributable type); false: refuse them, so that everything that runs is here")
	fs.IntVar(&o.MaxReferences, "max-references", 10000,
		"how many layers, or manifests of an index, one manifest may name; manifests that are held already may have more")
}

// Validate reports the first invalid setting.
func (o *ContentOptions) Validate() error {
	if o.MaxReferences < 1 {
		return fmt.Errorf("max-references: %d is too low; want at least 1", o.MaxReferences)
	}
	return nil
}
