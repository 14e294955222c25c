package limit

import (
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"

	"trow/registry/settings"
)

// Options are the settings of this package.
type Options struct {
	Limits []Rule
	Quotas []Quota
	// MaxRequests is how many pushing requests are served at once, and how many others.
	MaxRequests int
}

// Rule is one limit in the configuration file. A number of 0 means: not bounded.
type Rule struct {
	// Who are the identities that it is about, as in an auth.Rule.
	Who []string `mapstructure:"who"`
	// ByAddress: the limit is about clients without a login as well, for each address separately.
	ByAddress bool `mapstructure:"by-address"`
	// Requests is how many requests each may make in a second on average, and Burst how many at once; 0: twice
	// Requests.
	Requests int `mapstructure:"requests"`
	Burst    int `mapstructure:"burst"`
	// PullRate and PushRate are bytes per second, for all connections of an identity together.
	PullRate resource.Quantity `mapstructure:"pull-rate"`
	PushRate resource.Quantity `mapstructure:"push-rate"`
	// Uploads is how many requests that bring bytes of blobs each may have under way.
	Uploads int `mapstructure:"uploads"`
}

// Quota bounds what some repositories hold together, in the configuration file. A repository that several quotas name
// counts for each of them.
type Quota struct {
	Repositories []string          `mapstructure:"repositories"`
	Bytes        resource.Quantity `mapstructure:"bytes"`
}

// AddFlags registers the settings as flags.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	settings.FileOnly(fs, &o.Limits, "limits", "how much each identity may use; read again when it changes")
	settings.FileOnly(fs, &o.Quotas, "quotas", "how many bytes repositories may hold together; read again when it "+
		"changes")
	fs.IntVar(&o.MaxRequests, "max-requests", 1000,
		"how many pushing requests are served at once, and how many others, of one client as many as are free at "+
			"most; further ones are answered 429")
}

// Validate reports the first invalid setting.
func (o *Options) Validate() error {
	if o.MaxRequests < 1 {
		return fmt.Errorf("max-requests: %d is too low; want at least 1", o.MaxRequests)
	}
	if _, err := compile(o.Limits); err != nil {
		return err
	}
	_, err := Quotas(o.Quotas)
	return err
}
