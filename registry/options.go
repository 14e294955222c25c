package registry

import (
	"fmt"

	"github.com/spf13/pflag"

	"trow/registry/glob"
)

// ContentOptions are the settings of what new manifests may be.
type ContentOptions struct {
	// ForeignLayers accepts images with layers that the registry need not hold.
	ForeignLayers bool
	// MaxReferences bounds the descriptors of one manifest.
	MaxReferences int
	// SparseIndexes are the repositories, as patterns, that accept an index of which only some manifests are here.
	SparseIndexes []string
}

// AddFlags registers the settings as flags.
func (o *ContentOptions) AddFlags(fs *pflag.FlagSet) {
	fs.BoolVar(&o.ForeignLayers, "foreign-layers", true, "accept images with layers that clients get from elsewhere "+
		"(urls, or a non-distributable type); false: refuse them, so that everything that runs is here")
	fs.IntVar(&o.MaxReferences, "max-references", 10000,
		"how many layers, or manifests of an index, one manifest may name; manifests that are held already may have "+
			"more")
	fs.StringSliceVar(&o.SparseIndexes, "sparse-indexes", nil, "repositories, with * and **, that accept an index of "+
		"which only some manifests are here, such as an image for some of its platforms; trow import always may push "+
		"one")
}

// Sparse returns whether a repository accepts an index of which only some manifests are here. The options are valid.
func (o *ContentOptions) Sparse() func(repo string) bool {
	all, _ := glob.Compile(o.SparseIndexes...)
	return all.Match
}

// Validate reports the first invalid setting.
func (o *ContentOptions) Validate() error {
	if o.MaxReferences < 1 {
		return fmt.Errorf("max-references: %d is too low; want at least 1", o.MaxReferences)
	}
	if _, err := glob.Compile(o.SparseIndexes...); err != nil {
		return fmt.Errorf("sparse-indexes: %w", err)
	}
	return nil
}
