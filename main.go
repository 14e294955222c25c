// Trow is an OCI registry that lives inside a Kubernetes cluster, and the admission webhook that decides which
// images may run there: one process, one listener, one index of what the registry holds.
//
// This file has the commands, the settings and the wiring; each part lives in its own package. Only this
// package knows them all.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/go-chi/chi/v5"
	"github.com/go-viper/mapstructure/v2"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/spf13/viper"
	"golang.org/x/sync/errgroup"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"trow/admission"
	"trow/admission/cluster"
	"trow/manifests"
	"trow/manifests/node"
	"trow/manifests/node/credential"
	"trow/registry"
	"trow/registry/admin"
	"trow/registry/admin/commands"
	"trow/registry/audit"
	"trow/registry/auth"
	"trow/registry/bench"
	"trow/registry/limit"
	"trow/registry/maintenance"
	"trow/registry/retention"
	"trow/registry/server"
	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
	trowtls "trow/tls"
)

// version is the release that this is, or comes before.
const version = "0.1.0"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program, for main and for tests. The code is 0 for success, 1 for a denial found by check, damage
// found by scrub or a scenario failed in bench, and 2 for an error, which is told in one line.
func run(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{in: in, out: out, err: errOut}
	root := &cobra.Command{
		Use:           "trow",
		Short:         "An OCI registry inside a Kubernetes cluster, and the webhook that decides which images may run there",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       versionLine(),
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(a.serveCommand(), a.checkCommand(), a.manifestCommand(), a.nodeCommand(), credential.Command(), bench.Command(), a.versionCommand())
	root.AddCommand(cluster.Commands(a.out)...)
	root.AddCommand(program().Commands()...)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	switch err := root.ExecuteContext(ctx); {
	case err == nil:
		return 0
	case errors.Is(err, errDenied), errors.Is(err, commands.ErrDenied), errors.Is(err, commands.ErrDamaged), errors.Is(err, bench.ErrFailed):
		return 1
	default:
		fmt.Fprintln(errOut, "trow:", err)
		return 2
	}
}

// app is what the commands share.
type app struct {
	in       io.Reader
	out, err io.Writer
}

// ---- Settings

// config is what the settings say.
type config struct {
	Listen        string        `mapstructure:"listen"`
	DataDir       string        `mapstructure:"data-dir"`
	Names         []string      `mapstructure:"names"`
	NoTLS         bool          `mapstructure:"no-tls"`
	TLSCert       string        `mapstructure:"tls-cert"`
	TLSKey        string        `mapstructure:"tls-key"`
	TLSNames      []string      `mapstructure:"tls-names"`
	User          string        `mapstructure:"user"`
	Password      string        `mapstructure:"password"`
	PasswordFile  string        `mapstructure:"password-file"`
	Htpasswd      string        `mapstructure:"htpasswd"`
	Anonymous     string        `mapstructure:"anonymous"`
	PublicURL     string        `mapstructure:"public-url"`
	ClientCA      string        `mapstructure:"client-ca"`
	MetricsLogin  bool          `mapstructure:"metrics-login"`
	AuditLog      string        `mapstructure:"audit-log"`
	UploadTimeout time.Duration `mapstructure:"upload-timeout"`
	MaxUploads    int           `mapstructure:"max-uploads"`
	MaxRequests   int           `mapstructure:"max-requests"`
	MaxConns      int           `mapstructure:"max-connections"`
	Reserve       string        `mapstructure:"reserve"`
	GCInterval    time.Duration `mapstructure:"gc-interval"`
	GCGrace       time.Duration `mapstructure:"gc-grace"`
	Immutable     []string      `mapstructure:"immutable-tags"`
	ScrubInterval time.Duration `mapstructure:"scrub-interval"`
	ScrubRate     string        `mapstructure:"scrub-rate"`

	Rules        []auth.Rule      `mapstructure:"rules"`
	Limits       []limit.Rule     `mapstructure:"limits"`
	Quotas       []limit.Quota    `mapstructure:"quotas"`
	Retention    []retention.Rule `mapstructure:"retention"`
	StallTimeout time.Duration    `mapstructure:"stall-timeout"`
	LogLevel     string           `mapstructure:"log-level"`
	DebugListen  string           `mapstructure:"debug-listen"`

	Webhook          string        `mapstructure:"webhook"`
	ExemptNamespaces []string      `mapstructure:"exempt-namespaces"`
	CAOverlap        time.Duration `mapstructure:"ca-overlap"`
	TokenAudience    string        `mapstructure:"token-audience"`
	AccessReview     bool          `mapstructure:"access-review"`
	ValidateCA       string        `mapstructure:"validate-client-ca"`
	ValidateNames    []string      `mapstructure:"validate-client-names"`
	ValidateToken    string        `mapstructure:"validate-token-file"`

	AllowPrefixes         []string `mapstructure:"allow-prefixes"`
	AllowImages           []string `mapstructure:"allow-images"`
	AllowDockerOfficial   bool     `mapstructure:"allow-docker-official"`
	DenyK8sImages         bool     `mapstructure:"deny-k8s-images"`
	DisallowLocalPrefixes []string `mapstructure:"disallow-local-prefixes"`
	DisallowLocalImages   []string `mapstructure:"disallow-local-images"`
	Default               string   `mapstructure:"default"`
	Allow                 []string `mapstructure:"allow"`
	Deny                  []string `mapstructure:"deny"`
	EnforceTemplates      bool     `mapstructure:"enforce-templates"`
}

// setting is one key: of the configuration file, of a flag --key and of the environment TROW_KEY.
type setting struct {
	key, short string
	value      any // the default; its type is the setting's
	usage      string
	policy     bool // also of check
}

// settings is the schema. README's table is compared with it.
var settings = []setting{
	{"listen", "l", ":8443", "address and port to listen on", false},
	{"data-dir", "d", "./data", "directory of everything that is kept", false},
	{"names", "n", []string{}, "local names, host[:port]: images of these hosts are looked up in this registry (default: see README)", true},
	{"no-tls", "", false, "speak plain HTTP, for those behind a TLS terminator", false},
	{"tls-cert", "", "", "certificate (PEM) served beside the own one, for the names it covers", false},
	{"tls-key", "", "", "its key; empty: in the same file", false},
	{"tls-names", "", []string{}, "further names and IP addresses for the own certificate", false},
	{"user", "u", "", "the user who may do everything", false},
	{"password", "p", "", "the user's password; other processes may see it, better use --password-file", false},
	{"password-file", "", "", "file with the user's password", false},
	{"htpasswd", "", "", "file of further users, with bcrypt hashes (htpasswd -B); read again when it changes", false},
	{"anonymous", "", "", "what may be done without a login: pull, push or none (default: push, with users none)", false},
	{"rules", "", []auth.Rule{}, "who may do what, by repository; in the configuration file, read again when it changes", false},
	{"public-url", "", "", "how clients reach the registry, https://host[:port], if a proxy in front ends TLS or changes the host", false},
	{"client-ca", "", "", "file of CAs (PEM) whose certificates clients may show to log in; reloaded when it changes", false},
	{"limits", "", []limit.Rule{}, "how much each identity may take; in the configuration file, read again when it changes", false},
	{"quotas", "", []limit.Quota{}, "how many bytes repositories may hold together; in the configuration file, read again when it changes", false},
	{"audit-log", "", "", "file for who did what; empty: the ordinary log, in lines with the message audit", false},
	{"metrics-login", "", false, "let only those see /metrics who may do metrics", false},
	{"upload-timeout", "", 6 * time.Hour, "how long an upload may be idle before it is dropped", false},
	{"max-uploads", "", 10000, "how many uploads may be open at once; more are answered 429", false},
	{"max-requests", "", 1000, "how many requests may push at once, and how many others do anything else; more are answered 429", false},
	{"max-connections", "", 10000, "how many connections there may be; idle ones give way, and if none is, more are answered 503", false},
	{"reserve", "", "5%,1Gi", "space that uploads leave free, in bytes or percent; of several the smallest; 0: none", false},
	{"gc-interval", "", time.Hour, "how often what nothing needs any more is collected; 0: never by itself", false},
	{"gc-grace", "", 6 * time.Hour, "how long a blob that no manifest needs is kept for a push that may come", false},
	{"retention", "", []retention.Rule{}, "what is kept of tags and manifests, by repository; in the configuration file", false},
	{"immutable-tags", "", []string{}, "tags that never change once they are set, repository:tag, with * and **", false},
	{"scrub-interval", "", 7 * 24 * time.Hour, "how often all content is read and compared with its digest; 0: never by itself", false},
	{"scrub-rate", "", "16Mi", "bytes per second of that reading; 0: as fast as it goes", false},
	{"stall-timeout", "", time.Minute, "how long a transfer may make no progress before it is cut", false},
	{"log-level", "", "info", "error, warn, info or debug", false},
	{"debug-listen", "", "", "address and port of a listener for profiles (/debug/pprof/), best 127.0.0.1:6060; empty: none", false},

	{"webhook", "", "", "in a pod of the manifest: off, audit or enforce; certificates are kept in the Secret then", false},
	{"exempt-namespaces", "", []string{}, "namespaces whose pods are not judged, beside kube-system and the own one", false},
	{"ca-overlap", "", 24 * time.Hour, "how long a new CA is told to clients before it signs, and the old one after", false},
	{"token-audience", "", "", "in a cluster: take ServiceAccounts' tokens of this audience as logins; empty: none", false},
	{"access-review", "", false, "let RBAC decide what ServiceAccounts may do that no rule decides", false},

	{"validate-client-ca", "", "", "file of CAs (PEM): whoever calls the webhook must show a certificate of one of them", false},
	{"validate-client-names", "", []string{}, "common names that such a certificate may have; empty: any", false},
	{"validate-token-file", "", "", "file with a token that whoever calls the webhook must bring, if he shows no such certificate", false},

	{"allow-prefixes", "", []string{}, "remote images allowed, by host[/path], whole path elements", true},
	{"allow-images", "", []string{}, "images allowed by host/name[:tag][@digest]", true},
	{"allow-docker-official", "", false, "allow Docker Hub's official images (docker.io/library/)", true},
	{"deny-k8s-images", "", false, "do not allow registry.k8s.io/ and k8s.gcr.io/", true},
	{"disallow-local-prefixes", "", []string{}, "local images denied although they are here, by prefix", true},
	{"disallow-local-images", "", []string{}, "local images denied although they are here, by name[:tag]", true},
	{"default", "", "Deny", "Deny or Allow remote images that no rule names", true},
	{"allow", "", []string{}, "prefixes allowed; the longest of allow and deny wins", true},
	{"deny", "", []string{}, "prefixes denied; of two equally long ones deny wins", true},
	{"enforce-templates", "", false, "deny workloads with such images at once, instead of warning", true},
}

// addSettings makes flags of the settings. Their defaults are empty: viper has the real ones.
func addSettings(cmd *cobra.Command, policyOnly bool) {
	f := cmd.Flags()
	f.StringP("config", "c", "", "configuration file (YAML); its keys are the names of these flags")
	for _, s := range settings {
		if policyOnly && !s.policy {
			continue
		}
		switch v := s.value.(type) {
		case string:
			f.StringP(s.key, s.short, v, s.usage)
		case int:
			f.IntP(s.key, s.short, v, s.usage)
		case bool:
			f.BoolP(s.key, s.short, v, s.usage)
		case time.Duration:
			f.DurationP(s.key, s.short, v, s.usage)
		case []string:
			f.StringSliceP(s.key, s.short, v, s.usage)
		}
	}
}

// loadConfig puts together defaults, file, environment and flags; each overrules those before it.
func loadConfig(cmd *cobra.Command) (config, error) {
	v := viper.New()
	v.SetEnvPrefix("TROW")
	v.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	v.AutomaticEnv()
	for _, s := range settings {
		v.SetDefault(s.key, s.value)
		if f := cmd.Flags().Lookup(s.key); f != nil {
			if err := v.BindPFlag(s.key, f); err != nil {
				return config{}, err
			}
		}
	}
	if err := checkEnvironment(os.Environ()); err != nil {
		return config{}, err
	}
	if err := readFile(v, cmd); err != nil {
		return config{}, err
	}
	var c config
	hooks := mapstructure.ComposeDecodeHookFunc(splitLists, mapstructure.StringToTimeDurationHookFunc(), mapstructure.TextUnmarshallerHookFunc())
	if err := v.UnmarshalExact(&c, viper.DecodeHook(hooks)); err != nil {
		return config{}, fmt.Errorf("settings: %s", oneLine(err))
	}
	return c, c.check()
}

// configFile is the configuration file's path, empty if there is none.
func configFile(cmd *cobra.Command) string {
	if path, _ := cmd.Flags().GetString("config"); path != "" {
		return path
	}
	return os.Getenv("TROW_CONFIG")
}

// readFile reads the configuration file and names keys that do not exist.
func readFile(v *viper.Viper, cmd *cobra.Command) error {
	path := configFile(cmd)
	if path == "" {
		return nil
	}
	v.SetConfigFile(path)
	v.SetConfigType("yaml")
	if err := v.ReadInConfig(); err != nil {
		return fmt.Errorf("configuration file %s: %s", path, oneLine(err))
	}
	for _, key := range v.AllKeys() {
		if !isSetting(key) {
			return fmt.Errorf("configuration file %s: there is no setting %q; the settings are those of trow serve --help", path, key)
		}
	}
	return nil
}

func isSetting(key string) bool {
	return slices.ContainsFunc(settings, func(s setting) bool { return s.key == key })
}

// checkEnvironment names TROW_ variables that set nothing. Those that Kubernetes makes up for a Service called
// trow (TROW_PORT, TROW_SERVICE_HOST, …) are no mistake.
func checkEnvironment(environ []string) error {
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		rest, ok := strings.CutPrefix(name, "TROW_")
		if !ok || rest == "CONFIG" || rest == "PORT" || strings.HasPrefix(rest, "PORT_") || strings.HasPrefix(rest, "SERVICE_") {
			continue
		}
		if key := strings.ToLower(strings.ReplaceAll(rest, "_", "-")); !isSetting(key) {
			return fmt.Errorf("environment: %s sets nothing, since there is no setting %q; the settings are those of trow serve --help", name, key)
		}
	}
	return nil
}

// splitLists makes lists of strings: separated by commas or white space, in the environment as in a list's
// elements.
func splitLists(_, to reflect.Type, v any) (any, error) {
	if to != reflect.TypeFor[[]string]() {
		return v, nil
	}
	var text []string
	switch v := v.(type) {
	case string:
		text = []string{v}
	case []string:
		text = v
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("%v is not text; put it in quotes", e)
			}
			text = append(text, s)
		}
	default:
		return v, nil
	}
	return strings.FieldsFunc(strings.Join(text, ","), func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' }), nil
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// check finds what contradicts itself, and reads the password's file.
func (c *config) check() error {
	switch {
	case c.NoTLS && (c.TLSCert != "" || c.TLSKey != ""):
		return errors.New("no-tls: there is nothing to do for tls-cert and tls-key without TLS")
	case c.NoTLS && (c.ClientCA != "" || c.ValidateCA != ""):
		return errors.New("no-tls: without TLS nobody can show a certificate; leave client-ca and validate-client-ca out")
	case c.ValidateCA == "" && len(c.ValidateNames) > 0:
		return errors.New("validate-client-names: certificates need a CA; add validate-client-ca")
	case c.AuditLog == "-":
		return errors.New("audit-log: - is no file; leave it empty, and it goes to the ordinary log, on standard error")
	case c.Password != "" && c.PasswordFile != "":
		return errors.New("password-file: there is a password already; give one of the two")
	case c.UploadTimeout < time.Minute:
		return fmt.Errorf("upload-timeout: %s is too short; at least 1m", c.UploadTimeout)
	case c.MaxUploads < 1:
		return fmt.Errorf("max-uploads: %d is too few; at least 1", c.MaxUploads)
	case c.MaxRequests < 1:
		return fmt.Errorf("max-requests: %d is too few; at least 1", c.MaxRequests)
	case c.MaxConns < 1:
		return fmt.Errorf("max-connections: %d is too few; at least 1", c.MaxConns)
	case c.GCInterval < 0 || c.GCInterval > 0 && c.GCInterval < time.Second:
		return fmt.Errorf("gc-interval: %s is too short; at least 1s, or 0 for never", c.GCInterval)
	case c.GCGrace < time.Second:
		return fmt.Errorf("gc-grace: %s is too short; at least 1s, and for real clients minutes", c.GCGrace)
	case c.ScrubInterval < 0 || c.ScrubInterval > 0 && c.ScrubInterval < time.Minute:
		return fmt.Errorf("scrub-interval: %s is too short; at least 1m, or 0 for never", c.ScrubInterval)
	case c.StallTimeout < time.Second:
		return fmt.Errorf("stall-timeout: %s is too short; at least 1s", c.StallTimeout)
	case c.CAOverlap < 10*time.Second:
		return fmt.Errorf("ca-overlap: %s is too short; at least 10s", c.CAOverlap)
	case c.Webhook != "" && c.NoTLS:
		return errors.New("webhook: the API server calls with TLS alone; leave no-tls out, or register the webhook yourself")
	case c.Webhook == "" && len(c.ExemptNamespaces) > 0:
		return errors.New("exempt-namespaces: without the setting webhook nothing is registered that could leave them out")
	case c.TokenAudience != strings.TrimSpace(c.TokenAudience) || len(c.TokenAudience) > 256:
		return fmt.Errorf("token-audience: %.80q is none; the manifest's is %s", c.TokenAudience, cluster.Audience)
	case c.AccessReview && c.TokenAudience == "":
		return errors.New("access-review: without the setting token-audience no ServiceAccount can log in; add token-audience: " + cluster.Audience)
	}
	if _, err := parseReserve(c.Reserve); err != nil {
		return err
	}
	if _, err := parseSize("scrub-rate", c.ScrubRate); err != nil {
		return err
	}
	if _, err := retention.Compile(c.Retention, c.Immutable); err != nil {
		return err
	}
	if c.Webhook != "" {
		if _, err := cluster.ParseMode(c.Webhook); err != nil {
			return fmt.Errorf("webhook: %w", err)
		}
	}
	for _, n := range c.ExemptNamespaces {
		if msg := validation.IsDNS1123Label(n); len(msg) > 0 {
			return fmt.Errorf("exempt-namespaces: %.80q: %s", n, msg[0])
		}
	}
	if c.PasswordFile != "" {
		b, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return fmt.Errorf("password-file: %w", err)
		}
		c.Password = strings.TrimRight(string(b), "\r\n")
		if c.Password == "" {
			return fmt.Errorf("password-file: %s is empty", c.PasswordFile)
		}
	}
	return c.checkRules()
}

// checkRules decides what holds without rules, and finds what contradicts them.
func (c *config) checkRules() error {
	if _, err := auth.Compile(c.Rules, auth.PolicyOptions{}); err != nil {
		return err
	}
	if err := limit.Check(c.Limits); err != nil {
		return err
	}
	if _, err := limit.Quotas(c.Quotas); err != nil {
		return err
	}
	switch {
	case len(c.Rules) > 0 && c.Anonymous != "":
		return errors.New("anonymous: there are rules, and what they do not allow is denied; say it with a rule of who: [anonymous], or take the rules away")
	case c.Anonymous == "" && (c.User != "" || c.Htpasswd != "" || c.ClientCA != "" || len(c.Rules) > 0):
		c.Anonymous = "none"
	case c.Anonymous == "":
		c.Anonymous = "push"
	}
	return nil
}

// parseSize reads a number of bytes as Kubernetes writes it.
func parseSize(key, text string) (int64, error) {
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return 0, fmt.Errorf("%s: %.40q is no number of bytes; write it as 500Mi or 2Gi", key, text)
	}
	return q.Value(), nil
}

// parseReserve reads a list of sizes and percentages of a file system; the smallest counts.
func parseReserve(text string) (func(size int64) int64, error) {
	var percents, sizes []int64
	for _, part := range strings.Split(text, ",") {
		part = strings.TrimSpace(part)
		if number, ok := strings.CutSuffix(part, "%"); ok {
			n, err := strconv.Atoi(number)
			if err != nil || n < 0 || n > 50 {
				return nil, fmt.Errorf("reserve: %.40q is no percentage from 0%% to 50%%", part)
			}
			percents = append(percents, int64(n))
			continue
		}
		n, err := parseSize("reserve", part)
		if err != nil {
			return nil, err
		}
		sizes = append(sizes, n)
	}
	return func(size int64) int64 {
		least := slices.Clone(sizes)
		for _, p := range percents {
			least = append(least, size/100*p)
		}
		return slices.Min(least)
	}, nil
}

// defaultNames are the local names of a registry that listens on port: the tutorial's, and this machine's.
// Inside a cluster, loopback with the listening port is left out: on a node it is whatever listens there.
func defaultNames(port string, inCluster bool) []string {
	names := []string{"trow.kube-public:31000", "trow:31000"}
	ports := []string{"31000"}
	if !inCluster && port != "31000" {
		ports = append(ports, port)
	}
	for _, p := range ports {
		for _, host := range []string{"localhost", "127.0.0.1", "::1"} {
			names = append(names, net.JoinHostPort(host, p))
		}
	}
	return names
}

func (c *config) policyOptions() admission.PolicyOptions {
	return admission.PolicyOptions{
		Names: c.Names, AllowPrefixes: c.AllowPrefixes, AllowImages: c.AllowImages,
		AllowDockerOfficial: c.AllowDockerOfficial, DenyK8sImages: c.DenyK8sImages,
		DisallowLocalPrefixes: c.DisallowLocalPrefixes, DisallowLocalImages: c.DisallowLocalImages,
		Default: c.Default, Allow: c.Allow, Deny: c.Deny,
	}
}

// nameList decides on the local names, once the port is known.
func (c *config) nameList(port string) {
	if len(c.Names) == 0 {
		c.Names = defaultNames(port, os.Getenv("KUBERNETES_SERVICE_HOST") != "")
	}
	for i, name := range c.Names {
		c.Names[i] = strings.ToLower(name)
	}
}

// ---- serve

func (a *app) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the registry and the webhook",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file := configFile(cmd)
			seen, _ := os.ReadFile(file) // the next line says what is wrong with it
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			return a.serve(cmd.Context(), c, &rulesFile{file, seen, func() (config, error) { return loadConfig(cmd) }})
		},
	}
	addSettings(cmd, false)
	return cmd
}

const (
	// shutdownTimeout is what requests under way may take after a stop was asked for. Kubernetes kills 30 s
	// after it asked.
	shutdownTimeout = 25 * time.Second
	// expireEvery is how often idle uploads are looked for, if a quarter of upload-timeout is not shorter: they must not
	// be later than that.
	expireEvery = 10 * time.Minute
	// backupEvery is how old the copy of the journal can get.
	backupEvery = time.Hour
	// settle is how long a start waits with what can wait, so that it is all there for those who have waited for it.
	settle = time.Minute
	// spaceEvery is how often the free space is looked at for the log; uploads look for themselves.
	spaceEvery = 5 * time.Second
)

// instance is one running server.
type instance struct {
	config      config
	file        *rulesFile
	guard       *auth.Guard
	limits      limit.Limits
	auditLog    *audit.Log
	callers     *admission.Callers // nil: everybody may call the webhook
	callerToken []byte             // what the token's file held at the start
	log         zerolog.Logger
	listener    net.Listener
	journal     *bolt.Journal
	blobs       *disk.Blobs
	socket      net.Listener     // for administration
	debug       net.Listener     // for profiles; nil: none
	keeper      *trowtls.Keeper  // nil without TLS
	cluster     *cluster.Cluster // nil outside of a cluster
	metrics     *prometheus.Registry
	verdicts    *prometheus.CounterVec

	parts atomic.Pointer[parts] // nil until the index is loaded
	ready atomic.Bool
	full  atomic.Bool // uploads are refused for want of space, and the log has said so

	collected, freed prometheus.Counter
}

// parts are what answers when the index is loaded.
type parts struct {
	index     *storage.Index
	retention *retention.Policy
	collector *storage.Collector
	scrubber  *storage.Scrubber
	registry  *registry.Registry
	webhook   *admission.Webhook
}

// rulesFile is the configuration file of a running server, whose rules are followed.
type rulesFile struct {
	path   string // empty: there is none
	seen   []byte // what was in it at the start
	reload func() (config, error)
}

// serve runs until ctx ends.
func (a *app) serve(ctx context.Context, c config, file *rulesFile) error {
	defer server.TuneMemory()()
	level, err := zerolog.ParseLevel(c.LogLevel)
	if err != nil || level == zerolog.NoLevel {
		return fmt.Errorf("log-level: %q is none of error, warn, info, debug", c.LogLevel)
	}
	s := &instance{config: c, file: file, log: zerolog.New(a.err).Level(level).With().Timestamp().Logger(), metrics: prometheus.NewRegistry()}
	defer s.close()
	if err := s.open(ctx); err != nil {
		return err
	}
	policy, err := admission.NewPolicy(s.config.policyOptions())
	if err != nil {
		return errors.New(oneLine(err))
	}
	if err := s.openGuard(); err != nil {
		return err
	}
	if err := s.openCallers(); err != nil {
		return err
	}
	front, err := s.front()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return front.Serve(s.listener) })
	beside := []*http.Server{s.beside(g, s.socket, s.office()), s.beside(g, s.debug, profiles())}
	g.Go(func() error {
		<-ctx.Done()
		err := s.stop(front)
		for _, b := range beside {
			err = errors.Join(err, b.Close())
		}
		return err
	})
	g.Go(func() error {
		if err := s.load(ctx, policy); err != nil {
			return err
		}
		a.welcome(s)
		s.loops(ctx, g)
		return nil
	})
	return g.Wait()
}

// beside serves a handler on a listener of its own, if there is one, until the server is closed.
func (s *instance) beside(g *errgroup.Group, l net.Listener, h http.Handler) *http.Server {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	if l == nil {
		return server
	}
	g.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return server
}

// profiles is what the debug listener has: whoever reaches it sees into the process, but not its command line, where a
// password may stand.
func profiles() http.Handler {
	r := http.NewServeMux()
	r.HandleFunc("/debug/pprof/", pprof.Index)
	r.HandleFunc("/debug/pprof/profile", pprof.Profile)
	r.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	r.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return r
}

// open takes hold of everything that can fail at the start: the address, the data, the certificates.
func (s *instance) open(ctx context.Context) (err error) {
	if s.listener, err = net.Listen("tcp", s.config.Listen); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	_, port, _ := net.SplitHostPort(s.listener.Addr().String())
	s.config.nameList(port)
	if s.journal, err = bolt.Open(s.config.DataDir); err != nil { // the lock of the directory first
		return err
	}
	reserve, err := parseReserve(s.config.Reserve)
	if err != nil {
		return err
	}
	o := disk.Options{Reserve: reserve, MaxUploads: s.config.MaxUploads}
	if s.blobs, err = disk.Open(s.config.DataDir, o); err != nil {
		return err
	}
	if s.socket, err = admin.Listen(s.config.DataDir); err != nil { // not all file systems have sockets
		s.log.Warn().Err(err).Msg("going on without the commands gc, retention and scrub")
	}
	if s.auditLog, err = audit.Open(s.config.AuditLog, s.log); err != nil {
		return fmt.Errorf("audit-log: %w", err)
	}
	if err := s.limits.Set(s.config.Limits); err != nil {
		return err
	}
	if s.config.DebugListen != "" {
		if s.debug, err = net.Listen("tcp", s.config.DebugListen); err != nil {
			return fmt.Errorf("debug-listen: %w", err)
		}
	}
	if s.config.NoTLS {
		return nil
	}
	return s.openCertificates(ctx)
}

// openCertificates reads the certificates: in a cluster from the Secret, elsewhere from the data directory.
func (s *instance) openCertificates(ctx context.Context) error {
	o := trowtls.Options{Names: append(trowtls.DefaultNames(), s.config.Names...), ExtraNames: s.config.TLSNames, Log: s.log,
		CAFile: filepath.Join(s.config.DataDir, "ca.crt"), CertFile: s.config.TLSCert, KeyFile: s.config.TLSKey, Overlap: s.config.CAOverlap,
		ClientCA: s.config.ClientCA, CallerCA: s.config.ValidateCA}
	if s.config.Webhook == "" {
		store, err := trowtls.OpenDir(filepath.Join(s.config.DataDir, "tls"))
		if err != nil {
			return err
		}
		s.keeper, err = trowtls.Open(ctx, store, o)
		return err
	}
	client, namespace, err := cluster.Inside()
	if err != nil {
		return fmt.Errorf("webhook: %w; outside of a cluster leave this setting out", err)
	}
	pod, err := os.Hostname()
	if err != nil {
		return err
	}
	s.cluster = cluster.New(cluster.Options{Client: client, Namespace: namespace, Pod: pod,
		Mode: cluster.Mode(s.config.Webhook), Exempt: s.config.ExemptNamespaces, Notify: s.clusterEvent, Ready: s.ready.Load,
		CA:     func() []byte { return s.keeper.CA() },
		Rotate: func(ctx context.Context) error { return s.keeper.Rotate(ctx) }})
	o.Published = s.cluster.Published
	o.Wait = true
	s.keeper, err = trowtls.Open(ctx, cluster.NewSecret(client, namespace), o)
	return err
}

// loopback tells whether nobody but this machine can reach the listener.
func (s *instance) loopback() bool { return isLoopback(s.listener.Addr().String()) }

func isLoopback(addr string) bool {
	a, err := netip.ParseAddrPort(addr)
	return err == nil && a.Addr().Unmap().IsLoopback()
}

// openGuard makes what decides who may do what.
func (s *instance) openGuard() (err error) {
	o, err := s.config.authOptions(s.loopback())
	if err != nil {
		return err
	}
	options := auth.Options{Dir: filepath.Join(s.config.DataDir, "auth"), User: s.config.User, Password: s.config.Password,
		Htpasswd: s.config.Htpasswd, Rules: s.config.Rules, PolicyOptions: o, URL: s.config.PublicURL, Name: s.config.Names[0],
		Annotate: server.Annotate, Audit: s.record}
	if s.config.ClientCA != "" {
		options.Certificate = func(r *http.Request) *x509.Certificate { return s.keeper.Certificate(r, trowtls.ForClient) }
	}
	if s.config.TokenAudience != "" {
		client, _, err := cluster.Inside()
		if err != nil {
			return fmt.Errorf("token-audience: %w; outside of a cluster leave this setting out", err)
		}
		r := reviews{cluster.NewReviewer(client, s.config.TokenAudience), s.log}
		options.Reviewer = r
		if s.config.AccessReview {
			options.Accesses = r
		}
	}
	s.guard, err = auth.New(options)
	return err
}

// openCallers makes what decides who may call the webhook, if anything does.
func (s *instance) openCallers() error {
	if s.config.ValidateCA == "" && s.config.ValidateToken == "" {
		return nil
	}
	s.callers = &admission.Callers{Names: s.config.ValidateNames, Refused: func(r *http.Request, why string) {
		s.record(r.Context(), audit.Event{What: audit.Request, Outcome: audit.Denied, Kind: "unknown", From: audit.From(r.RemoteAddr), Action: "validate", Reason: why})
	}}
	if s.config.ValidateCA != "" {
		s.callers.Certificate = func(r *http.Request) *x509.Certificate { return s.keeper.Certificate(r, trowtls.ForCaller) }
	}
	if s.config.ValidateToken == "" {
		return nil
	}
	token, err := os.ReadFile(s.config.ValidateToken)
	if err == nil {
		err = s.callers.SetToken(token)
	}
	if err != nil {
		return fmt.Errorf("validate-token-file: %w", err)
	}
	s.callerToken = token
	return nil
}

// record writes an event into the audit log.
func (s *instance) record(ctx context.Context, e audit.Event) {
	e.Request = server.RequestID(ctx)
	s.auditLog.Write(e)
}

// reviews is how the registry asks the cluster: neither knows the other.
type reviews struct {
	*cluster.Reviewer
	log zerolog.Logger
}

// Review implements auth.Reviewer. A client is told that a token is wrong; the log says why.
func (r reviews) Review(ctx context.Context, token string) (auth.Identity, error) {
	user, err := r.Reviewer.Review(ctx, token)
	switch {
	case errors.Is(err, cluster.ErrToken):
		r.log.Info().Err(err).Msg("a ServiceAccount's token is refused")
		return auth.Identity{}, fmt.Errorf("%w: %w", auth.ErrUnauthorized, err)
	case err != nil:
		return auth.Identity{}, r.unavailable(err)
	}
	return auth.Identity{Name: user.Username, Groups: user.Groups, Cluster: true}, nil
}

// Access implements auth.AccessReviewer.
func (r reviews) Access(ctx context.Context, who auth.Identity, verb, namespace, repository string) (bool, string, error) {
	allowed, reason, err := r.Reviewer.Access(ctx, authenticationv1.UserInfo{Username: who.Name, Groups: who.Groups}, verb, namespace, repository)
	if err != nil {
		return false, "", r.unavailable(err)
	}
	return allowed, reason, nil
}

func (r reviews) unavailable(err error) error {
	r.log.Warn().Err(err).Msg("whose a token is, or what it is good for, cannot be told now")
	return fmt.Errorf("%w: %w", auth.ErrUnavailable, err)
}

// authOptions are what holds beside the rules.
func (c *config) authOptions(loopback bool) (auth.PolicyOptions, error) {
	level, err := auth.ParseLevel(c.Anonymous)
	if err != nil {
		return auth.PolicyOptions{}, fmt.Errorf("anonymous: %w", err)
	}
	return auth.PolicyOptions{Anonymous: level, AnonymousDelete: loopback, Access: c.AccessReview}, nil
}

// takeRules takes over rules, limits and quotas of the configuration file when it has changed, and only them.
func (s *instance) takeRules([]byte) error {
	c, err := s.file.reload()
	if err != nil {
		return err
	}
	o, err := c.authOptions(s.loopback())
	if err != nil {
		return err
	}
	quotas, err := limit.Quotas(c.Quotas)
	if err == nil {
		err = s.guard.SetRules(c.Rules, o)
	}
	if err == nil {
		err = s.limits.Set(c.Limits)
	}
	if err == nil {
		s.parts.Load().index.SetQuotas(quotas)
	}
	return err
}

// rulesTaken logs what came of it.
func (s *instance) rulesTaken(err error) {
	if err != nil {
		s.log.Error().Err(err).Msg("the configuration file has changed and cannot be used: the rules before stay")
		return
	}
	s.log.Info().Int("rules", s.guard.Policy().Rules()).Msg("the configuration file has changed: its rules count from now on, as do its limits and quotas, and its other settings with the next start")
}

// guardEvent logs what became of users and keys.
func (s *instance) guardEvent(what string, err error) {
	if err != nil {
		s.log.Error().Err(err).Str("what", what).Msg("who may log in: what was before stays")
		return
	}
	s.log.Info().Str("what", what).Msg("who may log in has changed")
}

// robotEvent logs what became of a robot.
func (s *instance) robotEvent(what string, r auth.Robot) {
	s.log.Info().Str("robot", r.Name).Str("event", what).Msg("token")
}

// front is the HTTP server with all its routes.
func (s *instance) front() (*server.Server, error) {
	s.verdicts = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "trow_admission_reviews_total",
		Help: "Admission reviews answered, by verdict: allowed, warned (allowed, though an image is not), denied, skipped (no image was judged), error."}, []string{"verdict"})
	for _, verdict := range []string{"allowed", "warned", "denied", "skipped", "error"} {
		s.verdicts.WithLabelValues(verdict)
	}
	s.metrics.MustRegister(s.verdicts, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.registerGauges()

	r := chi.NewRouter()
	r.Get("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	r.Get("/readyz", s.readyz)
	r.Get("/ca.crt", s.caCertificate)
	metrics, validate := promhttp.HandlerFor(s.metrics, promhttp.HandlerOpts{}), http.Handler(http.HandlerFunc(s.validate))
	if s.config.MetricsLogin {
		metrics = s.guard.Protect(auth.Metrics, metrics)
	}
	if s.callers != nil {
		validate = s.callers.Protect(validate)
	}
	r.Handle("/metrics", metrics)
	r.Handle("/validate", validate)
	r.Handle("/validate-image", validate)
	r.HandleFunc(auth.TokenPath, s.guard.ServeToken)
	r.Handle("/admin/*", s.guard.Protect(auth.Admin, s.office()))
	r.HandleFunc("/v2", s.registry)
	r.HandleFunc("/v2/*", s.registry)
	r.MethodNotAllowed(func(w http.ResponseWriter, req *http.Request) { // also for methods that nobody knows
		if req.URL.Path == "/v2" || strings.HasPrefix(req.URL.Path, "/v2/") {
			s.registry(w, req) // says so in the registry's way
			return
		}
		http.Error(w, "this path does not know the method", http.StatusMethodNotAllowed)
	})
	r.NotFound(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "nothing here: the registry is at /v2/, the webhook at /validate, the CA at /ca.crt", http.StatusNotFound)
	})
	var config *tls.Config
	if s.keeper != nil {
		config = s.keeper.Config()
	}
	return server.New(server.Options{Handler: r, Log: s.log, Registerer: s.metrics, TLSConfig: config, StallTimeout: s.config.StallTimeout,
		MaxConnections: s.config.MaxConns, Vital: []string{"/validate", "/validate-image"}})
}

// registerGauges exports what the index counts, and when certificates end.
func (s *instance) registerGauges() {
	gauge := func(name, help string, value func() float64) {
		s.metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	count := func(what, help string, of func(storage.Stats) int) {
		gauge("trow_index_"+what, help, func() float64 {
			if p := s.parts.Load(); p != nil {
				return float64(of(p.index.Stats()))
			}
			return 0
		})
	}
	count("repositories", "Repositories that hold anything.", func(s storage.Stats) int { return s.Repos })
	count("manifests", "Manifests, counted in each repository.", func(s storage.Stats) int { return s.Manifests })
	count("tags", "Tags.", func(s storage.Stats) int { return s.Tags })
	count("blobs", "Blobs, counted in each repository that holds them.", func(s storage.Stats) int { return s.Links })
	count("quarantined", "Contents whose bytes were found damaged or missing, and that nobody has pushed again.",
		func(s storage.Stats) int { return s.Quarantined })
	space := func(of func(disk.Space) int64) func() float64 {
		return func() float64 {
			if space, err := s.blobs.Space(); err == nil {
				return float64(of(space))
			}
			return math.NaN()
		}
	}
	gauge("trow_storage_size_bytes", "Size of the file system with the data.", space(func(s disk.Space) int64 { return s.Size }))
	gauge("trow_storage_free_bytes", "What is free on it.", space(func(s disk.Space) int64 { return s.Free }))
	gauge("trow_storage_reserve_bytes", "What uploads leave free: below, they are refused.", space(func(s disk.Space) int64 { return s.Reserve }))
	gauge("trow_uploads_open", "Uploads that are begun and not ended.", func() float64 { return float64(s.blobs.Uploads()) })
	s.collected = prometheus.NewCounter(prometheus.CounterOpts{Name: "trow_gc_deleted_total", Help: "Blobs that were collected."})
	s.freed = prometheus.NewCounter(prometheus.CounterOpts{Name: "trow_gc_freed_bytes_total", Help: "Bytes that were collected."})
	s.metrics.MustRegister(s.collected, s.freed)
	if s.keeper != nil {
		s.metrics.MustRegister(s.keeper)
	}
	s.metrics.MustRegister(quotaMetrics{s})
	counter := func(name, help string, value func() int64) {
		s.metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value()) }))
	}
	counter("trow_audit_left_out_total", "Events that got no line in the audit log, since there were too many of a kind.", s.auditLog.LeftOut)
	counter("trow_audit_failed_total", "Lines of the audit log that could not be written.", s.auditLog.Failed)
	if s.cluster != nil {
		gauge("trow_webhook_enforcing", "1 if no pod starts without the webhook's consent, else 0.", func() float64 {
			if s.cluster.State().Mode == cluster.Enforce {
				return 1
			}
			return 0
		})
	}
}

// quotaMetrics tells how full quotas are, by their number in the setting.
type quotaMetrics struct{ *instance }

var (
	quotaUsed  = prometheus.NewDesc("trow_quota_used_bytes", "What the repositories of a quota hold.", []string{"quota"}, nil)
	quotaBytes = prometheus.NewDesc("trow_quota_bytes", "What they may hold.", []string{"quota"}, nil)
)

// Describe implements prometheus.Collector.
func (q quotaMetrics) Describe(to chan<- *prometheus.Desc) { to <- quotaUsed; to <- quotaBytes }

// Collect implements prometheus.Collector.
func (q quotaMetrics) Collect(to chan<- prometheus.Metric) {
	p := q.parts.Load()
	if p == nil {
		return
	}
	for i, u := range p.index.Quotas() {
		number := strconv.Itoa(i + 1)
		to <- prometheus.MustNewConstMetric(quotaUsed, prometheus.GaugeValue, float64(u.Used), number)
		to <- prometheus.MustNewConstMetric(quotaBytes, prometheus.GaugeValue, float64(u.Bytes), number)
	}
}

// load brings the index up and makes the parts that need it.
func (s *instance) load(ctx context.Context, policy *admission.Policy) error {
	index, err := storage.OpenIndex(ctx, s.journal, storage.IndexOptions{
		Progress: func(facts int) { s.log.Info().Int("facts", facts).Msg("loading the index") },
		Warn:     func(err error) { s.log.Error().Err(err).Msg("storage") },
	})
	if err != nil {
		return err
	}
	keep, err := retention.Compile(s.config.Retention, s.config.Immutable)
	if err != nil {
		return err
	}
	quotas, err := limit.Quotas(s.config.Quotas)
	if err != nil {
		return err
	}
	index.SetQuotas(quotas)
	o := registry.Options{Blobs: s.blobs, Index: index, Auth: s.guard, Names: s.config.Names, MaxRequests: s.config.MaxRequests,
		Check: s.lookInto, Annotate: server.Annotate, RequestID: server.RequestID, Limits: &s.limits, Audit: s.record}
	o.Immutable = keep.Immutable // whom this stops has the socket
	p := &parts{
		index:     index,
		retention: keep,
		collector: &storage.Collector{Blobs: s.blobs, Index: index, Grace: s.config.GCGrace},
		scrubber:  &storage.Scrubber{Blobs: s.blobs, Index: index},
		registry:  registry.New(o),
		webhook: admission.New(admission.Options{Images: index, Policy: policy,
			EnforceTemplates: s.config.EnforceTemplates, Audit: s.audit, Observe: s.observe}),
	}
	if err := p.collector.Finish(ctx); err != nil { // not fatal: the next collection tries again
		s.log.Error().Err(err).Msg("finishing the last collection")
	}
	s.parts.Store(p)
	s.ready.Store(true)
	return nil
}

// loops are what goes on beside the requests.
func (s *instance) loops(ctx context.Context, g *errgroup.Group) {
	if s.keeper != nil {
		g.Go(func() error { return s.keeper.Run(ctx) })
	}
	if s.cluster != nil {
		g.Go(func() error { return s.cluster.Run(ctx) })
	}
	every := func(interval, first time.Duration, do func(context.Context)) {
		if interval > 0 {
			g.Go(func() error { repeat(ctx, interval, first, do); return nil })
		}
	}
	every(min(expireEvery, s.config.UploadTimeout/4), 0, s.expire)
	every(spaceEvery, 0, s.watchSpace)
	every(backupEvery, settle, s.backup)
	every(s.config.GCInterval, settle, s.collect)
	every(s.config.ScrubInterval, settle, s.scrub)
	g.Go(func() error { s.guard.Run(ctx, s.guardEvent); return nil })
	g.Go(func() error { s.auditLog.Run(ctx); return nil })
	if s.callerToken != nil {
		g.Go(func() error {
			auth.Follow(ctx, s.config.ValidateToken, s.callerToken, s.callers.SetToken, func(err error) { s.guardEvent("the webhook's token", err) })
			return nil
		})
	}
	if s.file.path != "" {
		g.Go(func() error { auth.Follow(ctx, s.file.path, s.file.seen, s.takeRules, s.rulesTaken); return nil })
	}
}

// repeat does something now and then, until ctx ends: for the first time after first, or an interval that is shorter.
func repeat(ctx context.Context, interval, first time.Duration, do func(context.Context)) {
	t := time.NewTimer(min(first, interval))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		start := time.Now()
		do(ctx)
		t.Reset(interval - time.Since(start)) // at once if it took longer
	}
}

// backup keeps a copy of the journal, for trow rebuild.
func (s *instance) backup(context.Context) {
	if err := s.journal.Backup(); err != nil {
		s.log.Error().Err(err).Msg("storage")
	}
}

// watchSpace says once that uploads are refused for want of space, and once that they are taken again.
func (s *instance) watchSpace(context.Context) {
	space, err := s.blobs.Space()
	switch {
	case err != nil:
		s.log.Error().Err(err).Msg("looking at the free space")
	case space.Full() && !s.full.Swap(true):
		s.log.Error().Int64("free", space.Free).Int64("reserve", space.Reserve).
			Msg("the storage is full: uploads are refused, everything else goes on; delete tags, or enlarge the volume")
	case !space.Full() && s.full.Swap(false):
		s.log.Info().Int64("free", space.Free).Msg("there is space again: uploads are taken")
	}
}

// collect takes away what has had its time, and what nothing needs any more.
func (s *instance) collect(ctx context.Context) {
	if err := s.parts.Load().retention.Apply(ctx, s.parts.Load().index, false, s.removed); err != nil && ctx.Err() == nil {
		s.log.Error().Err(err).Msg("retention")
	}
	done, err := s.parts.Load().collector.Run(ctx, false, nil)
	s.countCollected(ctx, done, err)
}

// removed logs what went by a rule.
func (s *instance) removed(r retention.Removal) {
	s.log.Info().Str("repo", r.Repo).Str("tag", r.Tag).Stringer("digest", r.Digest).Str("why", r.Why).Msg("removed by retention")
	e := audit.Event{What: audit.Delete, Outcome: audit.OK, Kind: "retention", Action: string(auth.Delete), Repo: r.Repo, Digest: r.Digest.String(), Reason: r.Why}
	if r.Tag != "" {
		e.Tags = []string{r.Tag}
	}
	s.auditLog.Write(e)
}

func (s *instance) countCollected(ctx context.Context, done storage.Collected, err error) {
	s.collected.Add(float64(done.Deleted))
	s.freed.Add(float64(done.Freed))
	line := s.log.Debug()
	switch {
	case err != nil && ctx.Err() == nil:
		line = s.log.Error().Err(err)
	case done.Unlinked+done.Deleted > 0:
		line = s.log.Info()
	}
	line.Int("unlinked", done.Unlinked).Int("deleted", done.Deleted).Int64("freed", done.Freed).Msg("collected")
}

// scrub reads all content and compares it with its digests.
func (s *instance) scrub(ctx context.Context) {
	rate, _ := parseSize("scrub-rate", s.config.ScrubRate) // checked with the settings
	done, err := s.parts.Load().scrubber.Run(ctx, rate, s.found, nil)
	if err != nil && ctx.Err() == nil {
		s.log.Error().Err(err).Msg("scrub")
		return
	}
	s.log.Info().Int("blobs", done.Blobs).Int64("bytes", done.Bytes).Int("damaged", done.Damaged).Int("failed", done.Failed).Msg("scrubbed")
}

// found logs what a scrub has found.
func (s *instance) found(f storage.Finding) {
	switch {
	case f.Err != nil:
		s.log.Error().Err(f.Err).Stringer("digest", f.Digest).Msg("content cannot be read; trying again with the next scrub")
	case f.Reason != "":
		s.log.Error().Stringer("digest", f.Digest).Str("why", f.Reason).Msg("damaged content: quarantined until it is pushed again")
	default:
		s.log.Info().Stringer("digest", f.Digest).Msg("content is whole again")
	}
}

// lookInto checks content that a pull has not found as it should be.
func (s *instance) lookInto(ctx context.Context, d digest.Digest) error {
	f, err := s.parts.Load().scrubber.Check(ctx, d)
	if f != nil {
		s.found(*f)
	}
	return err
}

// expire drops idle uploads.
func (s *instance) expire(ctx context.Context) {
	freed, err := s.blobs.Expire(ctx, time.Now().Add(-s.config.UploadTimeout))
	switch {
	case err != nil && ctx.Err() == nil:
		s.log.Error().Err(err).Msg("looking for idle uploads")
	case freed > 0:
		s.log.Info().Int64("bytes", freed).Msg("dropped idle uploads")
	}
}

// clusterEvent logs what happened in the cluster.
func (s *instance) clusterEvent(e cluster.Event) {
	line := s.log.Info()
	switch e.Kind {
	case cluster.Failed:
		line = s.log.Error().Err(e.Err)
	case cluster.HeldBack, cluster.Risk, cluster.Restored:
		line = s.log.Warn()
	}
	if e.Why != "" {
		line.Str("why", e.Why)
	}
	line.Str("event", string(e.Kind)).Str("mode", string(e.Mode)).Msg("webhook")
}

// audit tells whether the webhook denies nothing for the time being.
func (s *instance) audit() bool { return s.cluster != nil && s.cluster.State().Mode == cluster.Audit }

// observe counts a verdict, and writes it down: what failed in the log, all in the audit log.
func (s *instance) observe(ctx context.Context, d admission.Decision) {
	verdict, line := audit.Allowed, s.log.Debug()
	switch {
	case d.Err != nil:
		verdict, line = "error", s.log.Error().Err(d.Err)
	case !d.Allowed:
		verdict = audit.Denied
	case d.Skipped != "":
		verdict = audit.Skipped
	case len(d.Denied) > 0:
		verdict = audit.Warned
	}
	s.record(ctx, audit.Event{What: audit.Verdict, Outcome: verdict, User: d.User, Kind: "cluster", From: audit.From(server.RemoteAddr(ctx)), Action: "validate", Reason: d.Skipped,
		Object: audit.Object{Kind: d.Kind, Namespace: d.Namespace, Name: d.Name, Operation: d.Operation, UID: d.UID, DryRun: d.DryRun,
			Images: d.Images, Denied: d.Denied}})
	s.verdicts.WithLabelValues(string(verdict)).Inc()
	line.Str("verdict", string(verdict)).Str("kind", d.Kind).Str("namespace", d.Namespace).Str("name", d.Name).
		Str("operation", d.Operation).Str("user", d.User).Str("uid", d.UID).Bool("dryRun", d.DryRun).
		Strs("denied", d.Denied).Strs("images", d.Images).Msg("admission")
}

// registry serves /v2.
func (s *instance) registry(w http.ResponseWriter, r *http.Request) {
	if p := s.parts.Load(); p != nil {
		p.registry.ServeHTTP(w, r)
		return
	}
	registry.Loading.ServeHTTP(w, r)
}

// validate serves the webhook. While the index is loading nothing is known, and so nothing is denied: a failed
// call leaves it to the webhook's failurePolicy.
func (s *instance) validate(w http.ResponseWriter, r *http.Request) {
	server.Annotate(r.Context(), "route", "validate")
	if p := s.parts.Load(); p != nil {
		p.webhook.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Retry-After", "1")
	http.Error(w, "the registry is loading its index; try again in a moment", http.StatusServiceUnavailable)
}

// office is what answers on the socket in the data directory: whoever can open that may do everything.
func (s *instance) office() http.Handler {
	r := chi.NewRouter()
	r.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if s.parts.Load() == nil {
				http.Error(w, "the registry is loading its index; try again in a moment", http.StatusServiceUnavailable)
				return
			}
			next.ServeHTTP(w, req)
		})
	})
	r.Handle("/admin/gc", admin.Job(s.gcJob))
	r.Handle("/admin/scrub", admin.Job(s.scrubJob))
	r.Handle("/admin/retention", admin.Job(s.retentionJob))
	for name, job := range auth.Jobs(s.guard, s.robotEvent) {
		r.Handle("/admin/"+name, job)
	}
	r.Get("/admin/repositories", s.repositories)
	v2 := func(w http.ResponseWriter, req *http.Request) {
		s.parts.Load().registry.ServeHTTP(w, req.WithContext(auth.WithSocket(req.Context())))
	}
	r.HandleFunc("/v2", v2)
	r.HandleFunc("/v2/*", v2)
	return r
}

// repositories lists what each repository holds, a line of JSON for each.
func (s *instance) repositories(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	index, out := s.parts.Load().index, json.NewEncoder(w)
	for _, name := range index.Names() {
		held, found, err := index.Holdings(req.Context(), name)
		if err == nil && found {
			err = out.Encode(held)
		}
		if err != nil {
			panic(http.ErrAbortHandler) // so that a short list does not look whole
		}
	}
}

// gcJob collects, with a grace of its own if it is given one.
func (s *instance) gcJob(ctx context.Context, q url.Values, report func(any)) (any, error) {
	c := s.parts.Load().collector
	grace := c.Grace
	if text := q.Get("grace"); text != "" {
		var err error
		if grace, err = time.ParseDuration(text); err != nil || grace < 0 {
			return nil, fmt.Errorf("grace: %.40q is no time", text)
		}
	}
	dry := q.Has("dry-run")
	done, err := c.RunWith(ctx, grace, dry, func(done storage.Collected) { report(done) })
	if !dry {
		s.countCollected(ctx, done, err)
	}
	return done, err
}

// retentionJob applies the rules, and reports each removal.
func (s *instance) retentionJob(ctx context.Context, q url.Values, report func(any)) (any, error) {
	p, n := s.parts.Load(), 0
	dry := q.Has("dry-run")
	err := p.retention.Apply(ctx, p.index, dry, func(r retention.Removal) {
		n++
		if !dry {
			s.removed(r)
		}
		report(r)
	})
	return maintenance.Retained{Removed: n, Rules: p.retention.Rules()}, err
}

// scrubJob reads everything, as fast as it goes unless told otherwise.
func (s *instance) scrubJob(ctx context.Context, q url.Values, report func(any)) (any, error) {
	var rate int64
	if text := q.Get("rate"); text != "" {
		var err error
		if rate, err = parseSize("rate", text); err != nil {
			return nil, err
		}
	}
	p := s.parts.Load()
	done, err := p.scrubber.Run(ctx, rate, s.found, func(done storage.Scrubbed) { report(done) })
	return maintenance.Found{Scrubbed: done, Damages: p.index.Damages()}, err
}

// readyz tells whether requests are welcome. With ?verbose it says what that rests on.
func (s *instance) readyz(w http.ResponseWriter, r *http.Request) {
	server.Annotate(r.Context(), "route", "probe")
	ready := s.ready.Load()
	if !ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if r.URL.Query().Has("verbose") {
		mark := map[bool]string{true: "+", false: "-"}
		fmt.Fprintf(w, "[%s]index loaded\n[%s]not stopping\n", mark[s.parts.Load() != nil], mark[ready || s.parts.Load() == nil])
		if p := s.parts.Load(); p != nil {
			if space, err := s.blobs.Space(); err == nil {
				fmt.Fprintf(w, "[%s]space for uploads: %s free of %s, %s reserved\n", mark[!space.Full()], humanize.IBytes(uint64(space.Free)), humanize.IBytes(uint64(space.Size)), humanize.IBytes(uint64(space.Reserve)))
			}
			n := p.index.Stats().Quarantined
			fmt.Fprintf(w, "[%s]content whole: %d quarantined\n", mark[n == 0], n)
		}
		if s.cluster != nil {
			state := s.cluster.State()
			fmt.Fprintf(w, "[%s]webhook %s %s\n", mark[state.Mode == cluster.Mode(s.config.Webhook)], state.Mode, state.Why)
		}
	}
	if !ready {
		fmt.Fprintln(w, "not ready")
		return
	}
	fmt.Fprintln(w, "ok")
}

// caCertificate hands out the CA's certificate, for clients to trust. Compare its fingerprint.
func (s *instance) caCertificate(w http.ResponseWriter, _ *http.Request) {
	if s.keeper == nil {
		http.Error(w, "this server speaks plain HTTP and has no CA", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	w.Write(s.keeper.CA())
}

// stop ends the serving: not ready, finish what is under way.
func (s *instance) stop(front *server.Server) error {
	s.ready.Store(false)
	s.log.Info().Msg("stopping")
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	if err := front.Shutdown(ctx); err != nil {
		s.log.Warn().Err(err).Msg("requests were cut off")
	}
	return nil
}

// close lets go of what open took.
func (s *instance) close() {
	if p := s.parts.Load(); p != nil {
		p.index.Close()
	}
	if s.journal != nil {
		if err := s.journal.Close(); err != nil {
			s.log.Error().Err(err).Msg("closing the journal")
		}
	}
	if s.auditLog != nil {
		if err := s.auditLog.Close(); err != nil {
			s.log.Error().Err(err).Msg("closing the audit log")
		}
	}
	for _, l := range []net.Listener{s.listener, s.socket, s.debug} {
		if l != nil {
			l.Close()
		}
	}
}

// welcome says in a few lines what runs and what to do next.
func (a *app) welcome(s *instance) {
	scheme, port := "https", s.listener.Addr().(*net.TCPAddr).Port
	if s.keeper == nil {
		scheme = "http"
	}
	host := fmt.Sprintf("localhost:%d", port)
	stats := s.parts.Load().index.Stats()
	var b bytes.Buffer
	fmt.Fprintf(&b, "Trow %s is ready.\n\n", version)
	fmt.Fprintf(&b, "  listens on   %s://%s\n", scheme, s.listener.Addr())
	fmt.Fprintf(&b, "  data         %s (%d repositories, %d tags)\n", s.config.DataDir, stats.Repos, stats.Tags)
	fmt.Fprintf(&b, "  local names  %s\n", strings.Join(s.config.Names, ", "))
	fmt.Fprintf(&b, "  may run      %s\n", s.config.allowedText())
	fmt.Fprintf(&b, "  no login     %s\n", s.anonymousText())
	if s.keeper != nil {
		fmt.Fprintf(&b, "  CA           %s://%s/ca.crt\n               SHA-256 %s\n", scheme, host, s.keeper.Fingerprint())
	}
	fmt.Fprintf(&b, "\n%s", s.firstSteps(scheme, host))
	a.out.Write(b.Bytes())
}

func (c *config) allowedText() string {
	text := "images that this registry holds"
	rules := slices.Concat(c.AllowPrefixes, c.AllowImages, c.Allow)
	if c.AllowDockerOfficial {
		rules = append(rules, "docker.io/library/")
	}
	if !c.DenyK8sImages {
		rules = append(rules, "registry.k8s.io/", "k8s.gcr.io/")
	}
	if strings.EqualFold(c.Default, "Allow") {
		rules = append(rules, "all other remote images (default: Allow)")
	}
	if len(rules) > 0 {
		text += "; and " + strings.Join(rules, ", ")
	}
	if denied := slices.Concat(c.DisallowLocalPrefixes, c.DisallowLocalImages, c.Deny); len(denied) > 0 {
		text += "; never " + strings.Join(denied, ", ")
	}
	return text
}

// anonymousText ends the sentence: no login …
func (s *instance) anonymousText() string {
	level, rest := s.config.Anonymous, "needs one"
	if !s.guard.Logins() {
		rest = "is for nobody, as there is no user"
	}
	switch n := s.guard.Policy().Rules(); {
	case n > 0:
		return fmt.Sprintf("is judged by the %d rules of the configuration file; ask with trow can-i", n)
	case level == "none":
		return "is needed for nothing: everything needs one"
	case level == "pull":
		return "is needed for pulling; all else " + rest
	case s.loopback():
		return "is needed for anything (only this machine can connect)"
	}
	return "is needed for pulling and pushing, for anybody who can connect; deleting " + rest
}

// firstSteps are the commands to trust the registry and to push a first image.
func (s *instance) firstSteps(scheme, host string) string {
	if scheme == "http" {
		return "Push a first image:\n" +
			"  skopeo copy --dest-tls-verify=false docker://docker.io/library/nginx:1.21.0 docker://" + host + "/nginx:1.21.0\n"
	}
	if s.cluster != nil {
		return "Push to " + s.config.Names[0] + " from a machine that trusts the CA (ConfigMap " + cluster.ConfigMapName + ").\n"
	}
	ca := filepath.Join(s.config.DataDir, "ca.crt")
	return "Trust it (podman, skopeo, buildah; for docker the directory is /etc/docker/certs.d):\n" +
		"  sudo mkdir -p /etc/containers/certs.d/" + host + " && sudo cp " + ca + " /etc/containers/certs.d/" + host + "/\n" +
		"Push a first image:\n" +
		"  skopeo copy docker://docker.io/library/nginx:1.21.0 docker://" + host + "/nginx:1.21.0\n"
}

// ---- check

// errDenied ends a check that found an image that may not run.
var errDenied = errors.New("denied")

func (a *app) checkCommand() *cobra.Command {
	var files []string
	var data, url, ca, token string
	cmd := &cobra.Command{
		Use:   "check -f FILE",
		Short: "Tell what the webhook would say of manifests: exit code 1 if it denies one",
		Long: "check judges every pod and workload in the files as the webhook would, by the images in a data directory\n" +
			"(--data, of a server that is stopped) or by asking a server (--server, whose settings count then).",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			judge, done, err := a.judge(cmd.Context(), c, data, url, ca, token)
			if err != nil {
				return err
			}
			defer done()
			return a.check(cmd.Context(), files, judge)
		},
	}
	f := cmd.Flags()
	f.StringSliceVarP(&files, "filename", "f", nil, "file with manifests, YAML or JSON; - for standard input")
	f.StringVar(&data, "data", "", "data directory of a server that is stopped")
	f.StringVar(&url, "server", "", "URL of a running server")
	f.StringVar(&ca, "cacert", "", "file with the CA's certificate (PEM) that the server's is checked against")
	f.StringVar(&token, "token-file", "", "with --server: file with the token of the server's setting validate-token-file")
	cmd.MarkFlagsMutuallyExclusive("data", "server")
	cmd.MarkFlagsOneRequired("data", "server")
	_ = cmd.MarkFlagRequired("filename")
	addSettings(cmd, true)
	return cmd
}

// judge is who answers a review.
type judge func(context.Context, *admissionv1.AdmissionReview) (*admissionv1.AdmissionResponse, error)

func (a *app) judge(ctx context.Context, c config, data, url, ca, token string) (judge, func(), error) {
	if url != "" {
		j, err := remoteJudge(url, ca, token)
		return j, func() {}, err
	}
	if _, err := os.Stat(data); err != nil {
		return nil, nil, fmt.Errorf("data: %w", err)
	}
	c.nameList("8443")
	policy, err := admission.NewPolicy(c.policyOptions())
	if err != nil {
		return nil, nil, errors.New(oneLine(err))
	}
	journal, err := bolt.Open(data)
	if err != nil {
		return nil, nil, err
	}
	index, err := storage.OpenIndex(ctx, journal, storage.IndexOptions{})
	if err != nil {
		journal.Close()
		return nil, nil, err
	}
	// A check asks what would run, so workloads count as their pods do.
	w := admission.New(admission.Options{Images: index, Policy: policy, EnforceTemplates: true})
	return func(ctx context.Context, r *admissionv1.AdmissionReview) (*admissionv1.AdmissionResponse, error) {
		return w.Judge(ctx, r.Request)
	}, func() { index.Close(); journal.Close() }, nil
}

// remoteJudge asks a server.
func remoteJudge(url, ca, tokenFile string) (judge, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("cacert: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("cacert: %s has no certificate in PEM", ca)
		}
	}
	var token []byte
	if tokenFile != "" {
		var err error
		if token, err = os.ReadFile(tokenFile); err != nil {
			return nil, fmt.Errorf("token-file: %w", err)
		}
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment}}
	return func(ctx context.Context, r *admissionv1.AdmissionReview) (*admissionv1.AdmissionResponse, error) {
		return ask(ctx, client, strings.TrimRight(url, "/")+"/validate", string(bytes.TrimSpace(token)), r)
	}, nil
}

func ask(ctx context.Context, client *http.Client, url, token string, r *admissionv1.AdmissionReview) (*admissionv1.AdmissionResponse, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("server: %s: %.200s", resp.Status, strings.TrimSpace(string(answer)))
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(answer, &review); err != nil || review.Response == nil {
		return nil, fmt.Errorf("server: %s does not answer as a webhook does", url)
	}
	return review.Response, nil
}

// check prints a line for each object, and what there is to say about it.
func (a *app) check(ctx context.Context, files []string, judge judge) error {
	denied, checked := 0, 0
	for _, file := range files {
		docs, err := a.documents(file)
		if err != nil {
			return err
		}
		for _, d := range docs {
			where := fmt.Sprintf("%s:%d %s/%s", file, d.Line, d.Kind, d.Name)
			if d.Review == nil {
				fmt.Fprintf(a.out, "skipped  %s: has no images\n", where)
				continue
			}
			resp, err := judge(ctx, d.Review)
			if err != nil {
				return fmt.Errorf("%s: %w", where, err)
			}
			checked++
			if !a.tell(where, resp) {
				denied++
			}
		}
	}
	fmt.Fprintf(a.out, "%d checked, %d denied\n", checked, denied)
	if denied > 0 {
		return errDenied
	}
	return nil
}

// tell prints a verdict. A server that does not enforce templates answers with warnings for what its pods
// would be denied for; these count here.
func (a *app) tell(where string, resp *admissionv1.AdmissionResponse) (allowed bool) {
	allowed = resp.Allowed && resp.AuditAnnotations["decision"] != "warned"
	if allowed {
		fmt.Fprintf(a.out, "allowed  %s\n", where)
	} else if resp.Result != nil && resp.Result.Message != "" {
		fmt.Fprintf(a.out, "denied   %s: %s\n", where, resp.Result.Message)
	} else {
		fmt.Fprintf(a.out, "denied   %s\n", where)
	}
	for _, w := range resp.Warnings {
		fmt.Fprintf(a.out, "         %s\n", w)
	}
	return allowed
}

func (a *app) documents(file string) ([]admission.Document, error) {
	in := a.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	docs, err := admission.ReadDocuments(in)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return docs, nil
}

// dataDir adds the flags that say which server a command is about, and returns what finds its data directory.
func dataDir(cmd *cobra.Command) func() (string, error) {
	f := cmd.Flags()
	f.StringP("config", "c", "", "the server's configuration file, for its data-dir")
	f.StringP("data-dir", "d", "", "the server's data directory (default: as the server's)")
	return func() (string, error) {
		c, err := loadConfig(cmd)
		return c.DataDir, err
	}
}

// ---- token, can-i, pull-secret

// program is what the commands need from the program.
func program() commands.Program {
	return commands.Program{Servers: []string{"trow.kube-public:31000", "127.0.0.1:31000"}, DataDir: dataDir,
		Policy: func(cmd *cobra.Command) (*auth.Policy, string, error) {
			c, err := loadConfig(cmd)
			if err != nil {
				return nil, "", err
			}
			o, err := c.authOptions(isLoopback(c.Listen))
			if err != nil {
				return nil, "", err
			}
			p, err := auth.Compile(c.Rules, o)
			return p, c.User, err
		},
	}
}

// ---- node

func (a *app) nodeCommand() *cobra.Command {
	o := node.Options{Host: "trow.kube-public", Port: 31000, Root: "/host", NodeName: os.Getenv("NODE_NAME")}
	var flavour, ca string
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Make this machine reach and trust the registry (in the manifest's DaemonSet)",
		Long: "node listens on loopback, leads to the registry, and tells the container runtime so.\n" +
			"With --print it only prints what to do by hand, where a DaemonSet may not write to the node.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if flavour != "" {
				return a.printNode(flavour, ca, o)
			}
			return a.node(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Host, "host", o.Host, "name of the registry in image names")
	f.IntVar(&o.Port, "port", o.Port, "node port of the registry; the next one is listened on as well")
	f.StringVar(&o.Root, "root", o.Root, "where the node's directories are mounted")
	f.StringVar(&flavour, "print", "", "print what to do by hand: "+strings.Join(node.Flavours(), ", "))
	f.StringVar(&ca, "ca", "", "with --print: file with the CA's certificate (ca.crt of ConfigMap "+cluster.ConfigMapName+"); - for standard input")
	return cmd
}

// node runs until ctx ends.
func (a *app) node(ctx context.Context, o node.Options) (err error) {
	log := zerolog.New(a.err).With().Timestamp().Str("node", o.NodeName).Logger()
	if o.Client, o.Namespace, err = cluster.Inside(); err != nil {
		return fmt.Errorf("%w; trow node runs in a pod of the manifest, and --print tells what to do by hand", err)
	}
	if host, port := os.Getenv("TROW_SERVICE_HOST"), os.Getenv("TROW_SERVICE_PORT"); host != "" && port != "" {
		o.Service = net.JoinHostPort(host, port)
	}
	o.Notify = func(e node.Event) {
		line := log.Info()
		if e.Warning() {
			line = log.Warn()
		}
		if e.Err != nil {
			line.Err(e.Err)
		}
		line.Str("event", string(e.Kind)).Str("what", e.Message).Msg("node")
	}
	n, err := node.New(o)
	if err != nil {
		return err
	}
	return n.Run(ctx)
}

func (a *app) printNode(flavour, file string, o node.Options) error {
	in := a.in
	switch file {
	case "":
		return errors.New("ca: the CA's certificate is needed: kubectl -n kube-public get configmap " + cluster.ConfigMapName +
			` -o jsonpath='{.data.ca\.crt}' | trow node --print ` + flavour + " --ca -")
	case "-":
	default:
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("ca: %w", err)
		}
		defer f.Close()
		in = f
	}
	pem, err := io.ReadAll(io.LimitReader(in, 1<<20))
	if err != nil {
		return fmt.Errorf("ca: %w", err)
	}
	text, err := node.Print(flavour, node.PrintOptions{Host: o.Host, Port: o.Port, CA: string(pem)})
	if err != nil {
		return err
	}
	_, err = io.WriteString(a.out, text)
	return err
}

// ---- manifest, version

func (a *app) manifestCommand() *cobra.Command {
	o := manifests.Defaults(version)
	noNode := false
	cmd := &cobra.Command{
		Use:   "manifest",
		Short: "Print the Kubernetes manifest that installs Trow",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			o.Node = !noNode
			text, err := manifests.Render(o)
			if err != nil {
				return errors.New(oneLine(err))
			}
			_, err = a.out.Write(text)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Namespace, "namespace", o.Namespace, "namespace; made unless it is kube-public")
	f.StringVar(&o.Host, "host", o.Host, "name of the registry on nodes and workstations (default trow.<namespace>)")
	f.IntVar(&o.NodePort, "node-port", o.NodePort, "port of the registry on every node")
	f.StringVar(&o.Image, "image", o.Image, "Trow's own image, from a place that the nodes can pull from")
	f.StringVar(&o.Storage, "storage", o.Storage, "pvc: a volume that stays; empty: none, the images go with the pod")
	f.StringVar(&o.StorageClass, "storage-class", o.StorageClass, "of the volume (default: the cluster's default)")
	f.StringVar(&o.Size, "size", o.Size, "of the volume")
	f.BoolVar(&o.Login, "login", o.Login, "make a user with a random password, and close the registry to others; ServiceAccounts may pull")
	f.BoolVar(&o.AccessReview, "access-review", o.AccessReview, "with --login: RBAC decides what ServiceAccounts may pull, push and delete")
	f.StringVar(&o.Webhook, "webhook", o.Webhook, "off, audit (only warn) or enforce")
	f.StringSliceVar(&o.ExemptNamespaces, "exempt-namespaces", nil, "namespaces whose pods are not judged, beside kube-system and the own one")
	f.BoolVar(&noNode, "no-node", false, "leave the nodes alone: no DaemonSet; see trow node --print")
	f.StringSliceVar(&o.NodeDir, "node-dir", o.NodeDir, "directories of the nodes in which runtimes look for registries")
	return cmd
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run:   func(*cobra.Command, []string) { fmt.Fprintln(a.out, versionLine()) },
	}
}

// versionLine is the version with the commit it was built from, if the toolchain has noted that.
func versionLine() string {
	line := "trow " + version
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return line
	}
	var notes []string
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" || s.Key == "vcs.modified" && s.Value == "true" {
			notes = append(notes, strings.TrimPrefix(s.Key, "vcs.")+" "+s.Value)
		}
	}
	sort.Strings(notes)
	notes = append(notes, runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH)
	return line + " (" + strings.Join(notes, ", ") + ")"
}
