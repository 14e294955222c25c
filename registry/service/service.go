// Package service is a registry that runs: the data directory, the audit log, logins, limits and the distribution API,
// opened in the order in which they need each other. What listens in front of it, and what decides on images, is not
// here.
//
// # Words
//
//   - socket: the administration socket in the data directory. Its clients may do everything.
//   - loading: the time between [Open] and the end of [Service.Load], in which the index is read from the journal.
//
// # Invariants
//
//  1. The lock of the data directory is taken before anything is written into it.
//  2. Requests are answered from the moment the listener is open: until the index is loaded, with 503 and the request
//     to come again. Nothing is called unknown before it is known.
//  3. A changed configuration file changes rules, limits, quotas, upstreams and cache-size together, or none of them.
//
// # What it does not do
//
// It knows nothing of Kubernetes, of certificates or of the webhook: the program hands in what it needs of them.
package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"trow/registry"
	"trow/registry/admin"
	"trow/registry/audit"
	"trow/registry/auth"
	"trow/registry/limit"
	"trow/registry/maintenance"
	"trow/registry/migration"
	"trow/registry/mirror"
	"trow/registry/namespace"
	"trow/registry/retention"
	"trow/registry/server"
	"trow/registry/settings"
	"trow/registry/upstream"
	"trow/storage"
)

// Options are the settings of the parts of a registry.
type Options struct {
	Data      maintenance.Options
	Auth      auth.Options
	Limit     limit.Options
	Content   registry.ContentOptions
	Retention retention.Options
	Audit     audit.Options
	// Namespaces are hosts of ours that stand for other registries.
	Namespaces namespace.Options
	// Upstream is the cache of other registries.
	Upstream upstream.Options

	// Names are the host[:port] under which clients know the registry; at least one. Set by the program, as is Log.
	Names []string
	// Files are the configuration files that the settings come from. Optional.
	Files *settings.Files
	// Platforms are those of the cluster's nodes: see [registry.Options]. Empty: all platforms; for trow warm, that of
	// this server.
	Platforms []mirror.Platform
	// Cluster is the cluster in which the registry runs. Optional.
	Cluster Cluster
	Log     zerolog.Logger
}

// Cluster is what the cache of other registries needs of a cluster.
type Cluster interface {
	// Secret returns the .dockerconfigjson of a Secret with a login.
	Secret(ctx context.Context, namespace, name string) ([]byte, error)
	// Networks returns the networks of nodes and pods, which no upstream may lead to.
	Networks(ctx context.Context) ([]netip.Prefix, error)
}

// AddFlags registers the settings as flags.
func (o *Options) AddFlags(fs *pflag.FlagSet) {
	o.Data.AddFlags(fs)
	o.Auth.AddFlags(fs)
	o.Limit.AddFlags(fs)
	o.Content.AddFlags(fs)
	o.Retention.AddFlags(fs)
	o.Audit.AddFlags(fs)
	o.Namespaces.AddFlags(fs)
	o.Upstream.AddFlags(fs)
}

// Validate reports the first invalid setting.
func (o *Options) Validate() error {
	for _, validate := range []func() error{
		o.Data.Validate, o.Auth.Validate, o.Limit.Validate, o.Content.Validate, o.Retention.Validate, o.Audit.Validate,
		o.Namespaces.Validate, o.Upstream.Validate} {
		if err := validate(); err != nil {
			return err
		}
	}
	return nil
}

// Service is a registry that runs. Make it with [Open]; then call [Service.Load] once, and [Service.Run].
type Service struct {
	options   Options
	log       zerolog.Logger
	trail     *audit.Log
	data      *maintenance.Data
	socket    net.Listener // nil where the file system has no sockets
	guard     *auth.Guard
	names     *namespace.Table
	cache     *cache // nil if nothing is cached
	limits    limit.Limits
	api       *server.Pending
	images    registry.Images
	ahead     ahead
	migration migration.Migration
	index     *storage.Index     // nil until Load has returned
	registry  *registry.Registry // as index
	warming   *semaphore.Weighted
}

// Open opens the parts. The caller closes the Service. Errors: another process uses the data directory; a file or a
// setting that cannot be used, with the remedy.
func Open(o Options) (s *Service, err error) {
	if err := o.Namespaces.CheckNames(o.Names); err != nil {
		return nil, err
	}
	s = &Service{options: o, log: o.Log, api: server.NewPending(registry.Loading),
		names: namespace.NewTable(o.Namespaces.Sites), warming: semaphore.NewWeighted(allWarming)}
	defer func() {
		if err != nil {
			s.Close()
			s = nil
		}
	}()
	// The data comes first, because it takes the lock (invariant 1); the audit log may lie in its directory. Nothing is
	// recorded before Run.
	if err := o.Files.Problem(); err != nil {
		o.Log.Error().Err(err).Msg("the configuration files cannot be used; the last good ones are in use")
	}
	o.Data.Log, o.Data.Audit = o.Log, func(e audit.Event) { s.trail.Record(context.Background(), e) }
	if s.data, err = maintenance.Open(o.Data); err != nil {
		return s, err
	}
	o.Audit.RequestID = server.RequestID
	if s.trail, err = audit.Open(o.Audit, o.Log); err != nil {
		if s.data.ReadOnly() {
			err = fmt.Errorf("%w; the data directory is read-only: set a file elsewhere", err)
		}
		return s, fmt.Errorf("audit-log: %w", err)
	}
	if s.data.ReadOnly() {
		o.Log.Warn().Msg("no administration socket, because the data directory is read-only: use --server with a login")
	} else if s.socket, err = admin.Listen(o.Data.DataDir); err != nil {
		o.Log.Warn().Err(err).Msg("no administration socket: trow gc, scrub, token and the like are not available")
	}
	if err := s.openCache(); err != nil {
		return s, err
	}
	o.Auth.Readers, o.Auth.Restricted, o.Auth.Learn = s.options.Auth.Readers, s.options.Auth.Restricted,
		s.options.Auth.Learn
	o.Auth.Dir, o.Auth.Name, o.Auth.Log = filepath.Join(o.Data.DataDir, "auth"), o.Names[0], o.Log
	o.Auth.ReadOnly, o.Auth.Namespaces = s.data.ReadOnly(), s.names
	if !o.Auth.AccessReview {
		o.Auth.Accesses = nil
	}
	o.Auth.Forms = server.NewBodies(server.Memory() / 64)
	o.Auth.Annotate, o.Auth.Audit = server.Annotate, s.trail.Record
	if s.guard, err = auth.New(o.Auth); err != nil {
		return s, err
	}
	return s, s.limits.Set(o.Limit.Limits)
}

// Close releases what Open has opened. No request may be under way.
func (s *Service) Close() {
	var errs []error
	s.ahead.stop()
	s.cache.close() // before the data, into which it writes
	s.ahead.wait()  // for the same reason, and after the cache, which ends the downloads
	if s.socket != nil {
		_ = s.socket.Close() // ServeAuxiliary may have closed it
	}
	if s.data != nil {
		errs = append(errs, s.data.Close())
	}
	if s.trail != nil {
		errs = append(errs, s.trail.Close())
	}
	if err := errors.Join(errs...); err != nil {
		s.log.Error().Err(err).Msg("closing the registry")
	}
}

// Load loads the index; from then on requests are answered from it. Errors: those of the journal, of
// maintenance.Data.UploadKey and of auth.Guard.Load.
func (s *Service) Load(ctx context.Context) (*storage.Index, error) {
	keep, err := s.options.Retention.Policy()
	if err != nil {
		return nil, err
	}
	quotas, err := limit.Quotas(s.options.Limit.Quotas)
	if err != nil {
		return nil, err
	}
	if s.index, err = s.data.Load(ctx, keep, quotas); err != nil {
		return nil, err
	}
	uploadKey, err := s.data.UploadKey(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.guard.Load(ctx, s.index, s.data.Backup); err != nil {
		return nil, err
	}
	if s.cache != nil {
		s.cache.upstreams.Load(s.index)
	}
	parts := registry.Options{Blobs: s.data.Blobs(), Index: s.index, Auth: s.guard, Names: s.options.Names,
		Namespaces: s.names, Prefix: s.options.Auth.Prefix(), Redirected: s.options.Data.Redirected(),
		Check: s.data.Check, Immutable: keep.Immutable, MaxRequests: s.options.Limit.MaxRequests, Limits: &s.limits,
		Sparse: s.options.Content.Sparse(), ReadOnly: s.data.ReadOnly(),
		RefuseForeign: !s.options.Content.ForeignLayers, MaxReferences: s.options.Content.MaxReferences,
		UploadKey: uploadKey, UploadTimeout: s.options.Data.UploadTimeout,
		MaxUploadsPerClient: s.options.Data.UploadsPerClient(), Bodies: server.ReserveBodies(),
		Answers:  server.ReserveAnswers(),
		Annotate: server.Annotate, RequestID: server.RequestID, Audit: s.trail.Record}
	s.cache.into(&parts, s)
	api := registry.New(parts)
	s.images = api.Images()
	s.cache.load(api, s)
	s.migration.From, s.migration.ReadOnly, s.migration.Log = s.data.Side, s.data.ReadOnly, s.log
	s.registry = api
	s.migration.DataDir, s.migration.Memory = s.options.Data.DataDir, maintenance.Memory() // the server goes on serving
	s.migration.Socket = func(req *http.Request) bool {
		who, err := s.guard.Identify(req)
		return err == nil && who.Unlimited()
	}
	s.api.Set(api)
	s.images.LearnPlatforms(ctx)
	s.logMirrored()
	return s.index, nil
}

// logMirrored names the repositories below f/ into which something was pushed: requests for other registries are
// answered from there, also from those that were pushed before that was so.
func (s *Service) logMirrored() {
	all := s.index.Names()
	all = slices.DeleteFunc(all, func(repo string) bool { return !namespace.Within(repo) || !s.index.HasPushed(repo) })
	if len(all) == 0 {
		return
	}
	const most = 20 // named in one line
	s.log.Info().Int("count", len(all)).Strs("repositories", all[:min(len(all), most)]).Msg("repositories below f/ " +
		"answer pulls from other registries through this one, their images may run under the names of those, and " +
		"only mirror may change them; delete with trow rm what was pushed for another purpose")
}

// Run does the work beside the requests until ctx is done. Load must have returned.
func (s *Service) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, run := range []func(context.Context) error{s.data.Run, s.guard.Run, s.trail.Run, s.cache.run} {
		g.Go(func() error { return run(ctx) })
	}
	return g.Wait()
}

// ServeSocket answers on the administration socket until ctx is done.
func (s *Service) ServeSocket(ctx context.Context) error {
	return server.ServeAuxiliary(ctx, s.socket, s.Administration(), auth.WithSocket)
}

// Follow notes that the server has started with its configuration files, and from then on applies the rules, limits and
// quotas of the files whenever they change, and logs the outcome, until ctx is done. load returns the settings as they
// are now, valid. Load must have returned.
func (s *Service) Follow(ctx context.Context, load func() (*Options, error)) {
	keep := s.options.Data.DataDir
	if s.data.ReadOnly() {
		keep = ""
	}
	if err := s.options.Files.Started(keep); err != nil {
		s.log.Warn().Err(err).Msg("a mistake in the configuration files would keep the server from starting again")
	}
	s.options.Files.Follow(ctx, keep, func() error {
		o, err := load()
		if err != nil {
			return err
		}
		return s.reload(o)
	}, s.logReload)
}

// reload applies the rules, limits, quotas, upstreams and the cache-size of changed options, which are valid; see
// invariant 3. Other settings count at the next start. Errors: those of Validate; then nothing has changed.
func (s *Service) reload(o *Options) error {
	quotas, err := limit.Quotas(o.Limit.Quotas)
	if err != nil {
		return err
	}
	if err := s.setCache(&o.Upstream); err != nil {
		return err
	}
	if err := s.guard.SetRules(o.Auth.Rules, o.Auth.Anonymous); err != nil {
		return err
	}
	if err := s.limits.Set(o.Limit.Limits); err != nil {
		return err
	}
	s.index.SetQuotas(quotas)
	return nil
}

// logReload logs the outcome of a change of the configuration file.
func (s *Service) logReload(err error) {
	if err != nil {
		s.log.Error().Err(err).Msg("the configuration file has changed and cannot be used; the previous rules stay " +
			"in effect")
		return
	}
	s.log.Info().Int("rules", s.guard.Policy().Rules()).Msg("the configuration file has changed: " +
		"its rules, limits, quotas, upstreams and cache-size are in effect; others will be after the next start")
}

// Images are what the registry holds, for the webhook. Load must have returned.
func (s *Service) Images() Images { return Images{s.images, &s.ahead} }

// ReadOnly reports whether the data directory is read-only.
func (s *Service) ReadOnly() bool { return s.data.ReadOnly() }

// API is the distribution API, below /v2.
func (s *Service) API() http.Handler { return s.api }

// Guard decides who may do what.
func (s *Service) Guard() *auth.Guard { return s.guard }

// Audit is the audit log.
func (s *Service) Audit() *audit.Log { return s.trail }

// Administration are the jobs below /admin/, and the API. The caller protects it: on the socket by its mode, elsewhere
// by Guard.
func (s *Service) Administration() http.Handler {
	r := chi.NewRouter()
	for _, jobs := range []map[string]http.Handler{s.data.Jobs(), s.guard.Jobs(), s.cacheJobs()} {
		for name, job := range jobs {
			r.Handle("/admin/"+name, s.whenLoaded(job))
		}
	}
	r.Handle("/admin/migrate", s.whenLoaded(&s.migration))
	r.MethodNotAllowed(server.MethodNotAllowed(s.api))
	r.NotFound(server.NotFound("jobs are at /admin/, the registry is at /v2/"))
	r.Handle("/v2", s.api)
	r.Handle("/v2/*", s.api)
	return r
}

// whenLoaded refuses jobs until the index is loaded, which they need.
func (s *Service) whenLoaded(job http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if s.api.Ready() {
			job.ServeHTTP(w, req)
			return
		}
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the registry is loading its index; retry in a moment", http.StatusServiceUnavailable)
	})
}

// Checks are the lines of /readyz?verbose.
func (s *Service) Checks() []server.Check {
	return []server.Check{s.options.Files.Check, s.data.ReadOnlyCheck, s.data.SpaceCheck, s.data.JournalCheck,
		s.data.BlobsCheck, s.data.ContentCheck, s.data.IndexCheck, s.data.RetentionCheck, s.data.CollectorCheck,
		s.data.ScrubCheck, s.data.MigrationCheck}
}

// Summary says what is stored, and what is allowed without a login.
func (s *Service) Summary() (data, anonymous string) {
	stats := s.index.Stats()
	only := ""
	if s.data.ReadOnly() {
		only = "; read-only"
	}
	return fmt.Sprintf("%s (%d repositories, %d tags%s)", s.options.Data.Where(), stats.Repos, stats.Tags, only),
		s.guard.Summary()
}

// Describe implements prometheus.Collector.
func (s *Service) Describe(to chan<- *prometheus.Desc) {
	s.data.Describe(to)
	s.trail.Describe(to)
	s.cache.describe(to)
	s.options.Files.Describe(to)
}

// Collect implements prometheus.Collector.
func (s *Service) Collect(to chan<- prometheus.Metric) {
	s.data.Collect(to)
	s.trail.Collect(to)
	s.cache.collect(to)
	s.options.Files.Collect(to)
}
