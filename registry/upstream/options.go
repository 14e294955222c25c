package upstream

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/spf13/pflag"

	"trow/registry/address"
	"trow/registry/namespace"
	"trow/registry/settings"
	"trow/registry/size"
)

// Options are the settings of this package.
type Options struct {
	Upstreams []Entry
	// ProxyDockerHub, HubUser and HubTokenFile, which are those of Trow 0.x, make an entry for docker.io; see Entries.
	ProxyDockerHub        bool
	HubUser, HubTokenFile string
	CacheSize             string
	// Any: a host that no entry names is an upstream too, asked without a login.
	Any bool
	// Offline: no upstream is asked.
	Offline bool
	// Internal are further networks to which only hosts that the settings name may lead.
	Internal []string
	// ProxyFilters: the proxy in the environment refuses addresses that are not of the Internet, as the guard does
	// where there is no proxy.
	ProxyFilters bool
}

// Entry is one upstream in the configuration file.
type Entry struct {
	// Host is that of the registry, as images name it. Path narrows the entry to repositories below it; the entry with
	// the longest path counts.
	Host string `mapstructure:"host"`
	Path string `mapstructure:"path"`
	// As is the name for the host in the repositories here; empty: the host, a port as __5000.
	As string `mapstructure:"as"`
	// Endpoints answer for the host, and are asked in this order; none: the host itself, over https.
	Endpoints []Endpoint `mapstructure:"endpoints"`
	// CAFile has the PEM certificates that the endpoints' certificates may be issued by, beside those of the system.
	CAFile string `mapstructure:"ca-file"`
	// Insecure permits plain HTTP.
	Insecure bool `mapstructure:"insecure"`
	// Realm are further hosts of token servers that get the login; Also are further hosts that may have any address.
	Realm []string `mapstructure:"realm"`
	Also  []string `mapstructure:"also"`
	// Fresh is how long a tag is taken for what it was; not set: 10 minutes.
	Fresh *settings.Duration `mapstructure:"fresh"`
	// Allow and Deny are patterns of repositories of the upstream, see package glob. Without Allow all are allowed.
	Allow []string `mapstructure:"allow"`
	Deny  []string `mapstructure:"deny"`
	// Read are the identities that may read, as in an auth.Rule; empty: everyone whom the upstream lets read without a
	// login.
	Read []string `mapstructure:"read"`
	// MayRun says which images of the upstream may run; empty: only the settings of the webhook decide.
	MayRun MayRun `mapstructure:"may-run"`
	// Keep is evicted last.
	Keep []Keep `mapstructure:"keep"`
}

// MayRun says which images of an upstream may run, where no rule of the webhook allows or denies them by name.
type MayRun string

// The values of MayRun.
const (
	MayRunDeny  MayRun = "deny"  // none
	MayRunAllow MayRun = "allow" // all
	MayRunHeld  MayRun = "held"  // those that the cache holds as a whole
	MayRunFetch MayRun = "fetch" // all; what is not held is fetched when a pod is created
)

// mayRuns are the values that may be set.
var mayRuns = []MayRun{MayRunDeny, MayRunAllow, MayRunHeld, MayRunFetch}

// HoldsTags reports whether a tag goes on naming what is held until the manifest that it names at the upstream is held
// as a whole, so that what was judged is what runs.
func (m MayRun) HoldsTags() bool { return m == MayRunHeld || m == MayRunDeny }

// Endpoint is a registry that answers for an upstream. At most one of PasswordFile (with Username), DockerConfig,
// Secret and Helper says where its login is; the login is sent to this endpoint only.
type Endpoint struct {
	URL          string `mapstructure:"url"`
	Username     string `mapstructure:"username"`
	PasswordFile string `mapstructure:"password-file"` // read again for each login
	DockerConfig string `mapstructure:"docker-config"` // a file of docker login
	Secret       string `mapstructure:"secret"`        // NAMESPACE/NAME of a Secret of the type dockerconfigjson
	Helper       string `mapstructure:"helper"`        // the program docker-credential-HELPER
}

// Keep names tags that are evicted last.
type Keep struct {
	Repository string   `mapstructure:"repository"`
	Tags       []string `mapstructure:"tags"` // patterns
}

// AddFlags registers the settings as flags.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	settings.FileOnly(fs, &o.Upstreams, "upstreams",
		"other registries whose images this one caches; read again when it changes")
	fs.BoolVar(&o.ProxyDockerHub, "proxy-docker-hub", false, "cache Docker Hub, as an entry of upstreams for "+
		"docker.io does")
	fs.StringVar(&o.HubUser, "hub-user", "", "the user at Docker Hub, for proxy-docker-hub; empty: no login")
	fs.StringVar(&o.HubTokenFile, "hub-token-file", "", "a file with the token or password of hub-user")
	fs.StringVar(&o.CacheSize, "cache-size", "40%",
		"how much the cache of other registries may hold: bytes (50Gi), or a percentage of the volume; read again "+
			"when it changes")
	fs.BoolVar(&o.Any, "upstream-any", false,
		"also cache registries that no entry of upstreams names, without a login")
	fs.BoolVar(&o.Offline, "upstream-offline", false, "ask no other registry: serve what the cache holds")
	fs.StringSliceVar(&o.Internal, "upstream-internal", nil, "networks (10.0.0.0/8) to which redirects and token "+
		"servers of upstreams must not lead, beside those that are not of the Internet: of nodes and pods, where "+
		"these have other addresses and the server may not list the nodes")
	fs.BoolVar(&o.ProxyFilters, "upstream-proxy-filters", false,
		"the HTTP proxy in the environment refuses internal addresses, so upstream-any is safe with it")
}

// Validate reports the first invalid setting. It reads the files that the settings name.
func (o *Options) Validate() error {
	if _, err := o.Size(); err != nil {
		return err
	}
	if o.Any && !o.ProxyFilters && hasProxy() {
		return fmt.Errorf("upstream-any: %w", errProxy)
	}
	for _, text := range o.Internal {
		if _, err := netip.ParsePrefix(text); err != nil {
			return fmt.Errorf("upstream-internal: %.80q is not a network; want one such as 203.0.113.0/24", text)
		}
	}
	if err := o.checkHub(); err != nil {
		return err
	}
	_, err := compile(o.Entries(), false)
	return err
}

// CheckFiles reports the first file that the settings name and that cannot be used. Validate does not: settings are
// also checked where the files of the server are not, as by trow check.
func (o *Options) CheckFiles() error {
	if o.HubTokenFile != "" {
		if _, err := passwordIn(o.HubTokenFile); err != nil {
			return fmt.Errorf("hub-token-file: %w", err)
		}
	}
	_, err := compile(o.Entries(), true)
	return err
}

// checkHub reports what is wrong with the settings of Docker Hub.
func (o *Options) checkHub() error {
	switch {
	case !o.ProxyDockerHub && o.HubUser+o.HubTokenFile != "":
		return fmt.Errorf("hub-user, hub-token-file: they need proxy-docker-hub; set it as well")
	case !o.ProxyDockerHub:
		return nil
	case (o.HubUser == "") != (o.HubTokenFile == ""):
		return fmt.Errorf("hub-user, hub-token-file: only one is set; set both, or none")
	}
	for i, e := range o.Upstreams {
		if host, err := namespace.Host(e.Host); err == nil && host == address.Hub {
			return fmt.Errorf("proxy-docker-hub: entry %d of upstreams is for docker.io as well; remove one of them, "+
				"and write the login as username and password-file of an endpoint of the entry", i+1)
		}
	}
	return nil
}

// Entries returns the upstreams, with that of the settings of Docker Hub.
func (o *Options) Entries() []Entry {
	if !o.ProxyDockerHub {
		return o.Upstreams
	}
	return append(slices.Clone(o.Upstreams), Entry{Host: address.Hub, Endpoints: []Endpoint{{URL: hubEndpoint,
		Username: o.HubUser, PasswordFile: o.HubTokenFile}}})
}

// Networks returns Internal. The options are valid.
func (o *Options) Networks() (all []netip.Prefix) {
	for _, text := range o.Internal {
		if p, err := netip.ParsePrefix(text); err == nil {
			all = append(all, p.Masked())
		}
	}
	return all
}

// Used reports whether any upstream may be asked.
func (o *Options) Used() bool { return len(o.Entries()) > 0 || o.Any }

// Size returns how much the cache may hold. Errors: the setting is not valid.
func (o *Options) Size() (size.Amount, error) {
	amount, err := size.ParseAmount(o.CacheSize, 1, 90)
	if err != nil {
		return amount, fmt.Errorf("cache-size: %w", err)
	}
	if amount == (size.Amount{}) {
		return amount, fmt.Errorf("cache-size: 0 is too low; want at least 1 byte, or leave out upstreams")
	}
	return amount, nil
}
