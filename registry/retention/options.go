package retention

import (
	"github.com/spf13/pflag"

	"trow/registry/settings"
)

// Options are the settings of this package.
type Options struct {
	Retention     []Rule
	ImmutableTags []string
}

// Rule is one rule in the configuration file.
type Rule struct {
	// Repositories are patterns of names; see package glob.
	Repositories []string `mapstructure:"repositories"`
	// KeepLast keeps this many tags, those that were set last. Where the order of tags is not known, because an earlier
	// version set them in the same second, it keeps more rather than choose.
	KeepLast int `mapstructure:"keep-last"`
	// KeepYounger keeps tags that were set less than this ago.
	KeepYounger settings.Duration `mapstructure:"keep-younger"`
	// KeepTags keeps tags that match one of these patterns.
	KeepTags []string `mapstructure:"keep-tags"`
	// DeleteUntagged removes manifests without a tag that were pushed longer ago than this.
	DeleteUntagged settings.Duration `mapstructure:"delete-untagged"`
}

// AddFlags registers the settings as flags.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	settings.FileOnly(fs, &o.Retention, "retention", "which tags and manifests are kept, by repository")
	fs.StringSliceVar(&o.ImmutableTags, "immutable-tags", nil,
		"tags that can be neither moved nor deleted once they are set: repository:tag, with * and **")
}

// Validate reports the first invalid setting.
func (o *Options) Validate() error {
	_, err := o.Policy()
	return err
}

// Policy returns what decides according to the settings. Errors: as those of Validate.
func (o *Options) Policy() (*Policy, error) { return Compile(o.Retention, o.ImmutableTags) }
