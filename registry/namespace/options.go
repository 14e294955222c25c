package namespace

import (
	"fmt"

	"github.com/spf13/pflag"

	"trow/registry/settings"
)

// Options are the settings of this package.
type Options struct {
	// Sites are host names of this registry that stand for a namespace.
	Sites []Site
}

// Site is an entry of the setting namespaces.
type Site struct {
	// Host is a host[:port] under which clients reach this registry; without a port it is for all ports. It is not one
	// of the names of the registry.
	Host string `mapstructure:"host"`
	// Upstream is the registry for which it stands.
	Upstream string `mapstructure:"upstream"`
}

// AddFlags registers the settings as flags.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	settings.FileOnly(fs, &o.Sites, "namespaces",
		"host names of this registry that stand for another registry, for registry-mirrors of Docker")
}

// Validate reports the first invalid setting.
func (o *Options) Validate() error {
	seen := map[string]bool{}
	for i, s := range o.Sites {
		host, err := Host(s.Host)
		if err == nil && seen[host] {
			err = fmt.Errorf("an earlier entry has %s", host)
		}
		if err != nil {
			return fmt.Errorf("namespaces: entry %d: host: %w", i+1, err)
		}
		seen[host] = true
		upstream, err := Host(s.Upstream)
		if err == nil {
			_, err = Element(upstream)
		}
		if err == nil && upstream == host {
			err = fmt.Errorf("it is the host itself; want the registry whose repositories it has, such as docker.io")
		}
		if err != nil {
			return fmt.Errorf("namespaces: entry %d: upstream: %w", i+1, err)
		}
	}
	return nil
}

// CheckNames refuses sites and namespaces that are names of this registry: the repository that a request means would be
// ambiguous. The options are valid.
func (o *Options) CheckNames(all []string) error {
	names := map[string]bool{}
	for _, name := range all {
		if host, err := Host(name); err == nil {
			names[host] = true
		}
	}
	for i, s := range o.Sites {
		host, _ := Host(s.Host)
		upstream, _ := Host(s.Upstream)
		switch {
		case names[host]:
			return fmt.Errorf("namespaces: entry %d: host: %s is one of names, under which clients push; give the "+
				"mirror a host name of its own", i+1, host)
		case names[upstream]:
			return fmt.Errorf("namespaces: entry %d: upstream: %s is one of names, which is this registry",
				i+1, upstream)
		}
	}
	return nil
}
