package service

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"trow/registry"
	"trow/registry/maintenance"
	"trow/registry/mirror"
	"trow/registry/server"
	"trow/registry/upstream"
	"trow/storage/files"
)

// cache holds the parts that fetch and bound the content of other registries. A nil cache does nothing.
type cache struct {
	upstreams *upstream.Upstreams
	fetcher   *upstream.Fetcher
	ahead     func(ctx context.Context) error // fetches ahead; nil until the index is loaded
	networks  *networks
	platforms []mirror.Platform // of the nodes; none: all
	bound     *mirror.Cache
	data      *maintenance.Data
}

// spoolShare divides the cache's bound: downloads may take that part of it in addition, on the disk of the data
// directory, if the engine of the blobs cannot read an upload while it grows.
const spoolShare = 4

// openCache makes the cache. The data must be open. Errors: settings that cannot be used; those of the file system.
func (s *Service) openCache() error {
	o := s.options.Upstream
	guard := upstream.NewGuard()
	n := &networks{guard: guard, own: o.Networks(), s: s}
	guard.Refuse(n.own...)
	var secrets upstream.Secrets
	if s.options.Cluster != nil {
		secrets = s.options.Cluster.Secret
	}
	up := upstream.New(upstream.Config{Names: s.names, Guard: guard, Secrets: secrets, Any: o.Any,
		Offline: o.Offline || s.data.ReadOnly(), ProxyFilters: o.ProxyFilters, Memory: server.Memory() / 16})
	if err := o.CheckFiles(); err != nil {
		return err
	}
	if err := up.Set(o.Entries()); err != nil {
		return err
	}
	// Also where nothing can be stored: who may read what is held is as before.
	s.options.Auth.Readers, s.options.Auth.Restricted, s.options.Auth.Learn = up.Readers, up.Restricted, up.Learn
	if s.data.ReadOnly() {
		s.cache = &cache{upstreams: up}
		return nil
	}
	bytes, err := s.cacheSize(&o)
	if err != nil {
		return err
	}
	dir := filepath.Join(s.options.Data.DataDir, "spool")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("directory of downloads: %w", err)
	}
	c := &cache{upstreams: up, bound: mirror.NewCache(bytes), data: s.data, networks: n, platforms: s.options.Platforms}
	c.fetcher = upstream.NewFetcher(upstream.FetcherOptions{Dir: dir, Spool: bytes / spoolShare,
		Reserve: c.bound.Reserve})
	s.cache = c
	return nil
}

// cacheSize returns the setting cache-size in bytes. Errors: a percentage of a volume that does not exist.
func (s *Service) cacheSize(o *upstream.Options) (int64, error) {
	amount, err := o.Size()
	if err != nil {
		return 0, err
	}
	var volume int64
	if amount.Percent() {
		switch volume, err = s.data.Volume(); {
		case err != nil && !o.Used(): // nothing will be cached
			return 0, nil
		case err != nil:
			return 0, fmt.Errorf("cache-size: %w; write a number of bytes, such as 50Gi", err)
		}
	}
	return amount.Of(volume), nil
}

// networksInterval is the time between two questions for the networks of the cluster: nodes come and go.
const networksInterval = 5 * time.Minute

// networks keeps a guard up to date with the networks of the cluster.
type networks struct {
	guard *upstream.Guard
	own   []netip.Prefix // refused in any case
	s     *Service
	said  string // the last failure that was logged
}

// follow asks for the networks of the cluster until ctx is done. Until they are known, only addresses of the Internet
// are allowed, which nodes and pods of most clusters do not have.
func (n *networks) follow(ctx context.Context) {
	cluster := n.s.options.Cluster
	if cluster == nil || !n.s.options.Upstream.Used() {
		return
	}
	tick := time.NewTicker(networksInterval)
	defer tick.Stop()
	for {
		switch all, err := cluster.Networks(ctx); {
		case err == nil:
			n.guard.Refuse(slices.Concat(n.own, all)...)
			n.said = ""
		case ctx.Err() == nil && err.Error() != n.said:
			n.said = err.Error()
			n.s.log.Warn().Err(err).Msg("the networks of nodes and pods are not known: if they have addresses of the " +
				"Internet, upstreams can lead to them")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// into sets the options of a registry that are about upstreams.
func (c *cache) into(o *registry.Options, s *Service) {
	if c == nil {
		return
	}
	o.Upstreams, o.Fetcher, o.Cache = c.upstreams, c.fetcher, c.bound
	o.Platforms = c.platforms
	o.FetchFailed = func(of string, err error) {
		s.log.Warn().Err(upstream.Explained(err)).Str("upstream", of).Msg("not all that keep: names could be " +
			"fetched ahead; it is tried again after fresh:")
	}
	if c.bound == nil {
		return
	}
	if name := s.data.Replica(); name != "" {
		c.bound.Share(name)
	}
	o.Drop = func(ctx context.Context, all []digest.Digest) error { return s.data.Drop(ctx, all) }
}

// taskPoll is the task of the replica that polls the upstreams.
const taskPoll = "poll"

// load notes the registry, once the index is loaded.
func (c *cache) load(api *registry.Registry, s *Service) {
	if c == nil {
		return
	}
	c.ahead = func(ctx context.Context) error {
		return api.FetchAhead(ctx, func(ctx context.Context, do func(context.Context) error) error {
			return s.data.Alone(ctx, taskPoll, do)
		})
	}
}

// run runs the bound of the cache, see [mirror.Cache.Run], and fetches ahead until ctx is done. One replica at a time
// evicts, and one fetches ahead.
func (c *cache) run(ctx context.Context) error {
	if c == nil || c.bound == nil {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.bound.Run(ctx) })
	if c.bound.Shared() {
		g.Go(func() error { c.data.Lead(ctx, maintenance.TaskCache, c.bound.Lead); return nil })
	}
	g.Go(func() error { return c.ahead(ctx) })
	g.Go(func() error { c.networks.follow(ctx); return nil })
	g.Go(func() error { c.followFiles(ctx); return nil })
	return g.Wait()
}

// followFiles applies changes of the files that upstreams name, such as a mounted Secret, until ctx is done.
func (c *cache) followFiles(ctx context.Context) {
	changed := false
	files.FollowFunc(ctx, func() ([][]byte, error) { return c.upstreams.Files(), nil }, nil,
		func([][]byte) (err error) { changed, err = c.upstreams.Reread(); return err },
		func(err error) {
			switch log := c.networks.s.log; {
			case err != nil:
				log.Error().Err(err).Msg("a file that upstreams names has changed and cannot be used; what was in it " +
					"stays in effect")
			case changed: // and not only the settings, which are in effect already
				log.Info().Msg("a file that upstreams names has changed, and is in effect")
			}
		})
}

// setCache replaces the upstreams and the bound of the cache. Errors: those of the settings; then nothing has changed.
func (s *Service) setCache(o *upstream.Options) error {
	c := s.cache
	if c == nil {
		return nil
	}
	if err := o.CheckFiles(); err != nil {
		return err
	}
	if c.bound == nil {
		return c.upstreams.Set(o.Entries())
	}
	bytes, err := s.cacheSize(o)
	if err == nil {
		err = c.upstreams.Set(o.Entries())
	}
	if err != nil {
		return err
	}
	c.bound.SetLimit(bytes)
	c.fetcher.SetSpool(bytes / spoolShare)
	return nil
}

// close ends the downloads, and returns when they have ended.
func (c *cache) close() {
	if c != nil && c.fetcher != nil {
		c.fetcher.Close()
	}
}

// The metrics of the cache.
var (
	cacheLimit = prometheus.NewDesc("trow_cache_limit_bytes",
		"How much the content of other registries may take.", nil, nil)
	cacheUsed     = prometheus.NewDesc("trow_cache_bytes", "How much the content of other registries takes.", nil, nil)
	cacheReserved = prometheus.NewDesc("trow_cache_reserved_bytes",
		"How much is reserved for downloads under way.", nil, nil)
	cacheEvicted = prometheus.NewDesc("trow_cache_evicted_bytes_total", "How much was evicted.", nil, nil)
)

func (c *cache) describe(to chan<- *prometheus.Desc) {
	if c == nil {
		return
	}
	c.upstreams.Describe(to)
	for _, d := range []*prometheus.Desc{cacheLimit, cacheUsed, cacheReserved, cacheEvicted} {
		to <- d
	}
}

func (c *cache) collect(to chan<- prometheus.Metric) {
	if c == nil {
		return
	}
	c.upstreams.Collect(to)
	if c.bound == nil {
		return
	}
	stats := c.bound.Stats()
	to <- prometheus.MustNewConstMetric(cacheLimit, prometheus.GaugeValue, float64(stats.Limit))
	to <- prometheus.MustNewConstMetric(cacheUsed, prometheus.GaugeValue, float64(stats.Used))
	to <- prometheus.MustNewConstMetric(cacheReserved, prometheus.GaugeValue, float64(stats.Reserved))
	to <- prometheus.MustNewConstMetric(cacheEvicted, prometheus.CounterValue, float64(stats.Evicted))
}
