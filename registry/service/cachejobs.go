package service

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"trow/registry"
	"trow/registry/admin"
	"trow/registry/mirror"
	"trow/registry/platform"
	"trow/registry/upstream"
)

// The names of the jobs about images of other registries. The registry must be loaded before one is called.
const (
	jobWarm   = "warm"
	jobCached = "cached"
	jobEvict  = "evict"
)

// AllPlatforms stands for all platforms that an image has, as a parameter of the job warm.
const AllPlatforms = "all"

// Warming is the progress of the job warm, in bytes of one image.
type Warming struct {
	Here  int64 `json:"here"`
	Known int64 `json:"known"` // to be needed, so far
}

// Warmed is the outcome of the job warm.
type Warmed struct {
	registry.Warmed
	Platforms []string `json:"platforms,omitempty"` // that were fetched; none: all
}

// cacheJobs are what an administrator can ask for about images of other registries. Parameters: image, and platform
// (os/arch[/variant], or all), which may be repeated, of warm; image, which may be repeated, below and before (RFC
// 3339) of cached and evict, see registry.Selection; and dry-run of evict. cached and evict report images, and warm a
// Warming each second.
func (s *Service) cacheJobs() map[string]http.Handler {
	return map[string]http.Handler{
		jobWarm: admin.Job(func(ctx context.Context, q url.Values, report func(any)) (any, error) {
			return s.warm(ctx, q, report)
		}),
		jobCached: admin.Job(func(ctx context.Context, q url.Values, report func(any)) (any, error) {
			sel, err := selection(q)
			if err != nil {
				return nil, err
			}
			return s.registry.HeldImages(ctx, sel, func(i registry.HeldImage) { report(i) })
		}),
		jobEvict: admin.Job(func(ctx context.Context, q url.Values, report func(any)) (any, error) {
			sel, err := selection(q)
			if err != nil {
				return nil, err
			}
			return s.registry.EvictImages(ctx, sel, q.Has("dry-run"), func(i registry.EvictedImage) { report(i) })
		}),
	}
}

func selection(q url.Values) (sel registry.Selection, err error) {
	sel = registry.Selection{Below: q.Get("below"), Images: q["image"]}
	if text := q.Get("before"); text != "" {
		if sel.Before, err = time.Parse(time.RFC3339, text); err != nil {
			return sel, fmt.Errorf("before: %.40q is not a valid time; want RFC 3339", text)
		}
	}
	return sel, nil
}

// warm fetches one image.
func (s *Service) warm(ctx context.Context, q url.Values, report func(any)) (done Warmed, err error) {
	image := q.Get("image")
	if image == "" {
		return done, errors.New("image is missing")
	}
	platforms, names, err := s.platforms(q["platform"])
	if err != nil {
		return done, err
	}
	var last time.Time
	done.Platforms = names
	fetch := func(share int64) error {
		if err := s.warming.Acquire(ctx, share); err != nil {
			return err
		}
		defer s.warming.Release(share)
		done.Warmed, err = s.registry.Warm(ctx, image, platforms, func(here, known int64) {
			if now := time.Now(); now.Sub(last) >= time.Second || here == known {
				last = now
				report(Warming{here, known})
			}
		})
		return err
	}
	if err = fetch(1); errors.Is(err, upstream.ErrNoRoom) {
		err = fetch(allWarming) // alone: images that are fetched at the same time keep each other's from being evicted
	}
	return done, err
}

// allWarming is the weight of all images that are fetched at the same time, one of which has the weight 1.
const allWarming = 1 << 20

// platforms returns the platforms that an administrator asks for. Without any it is those of the nodes or, if these are
// not known, that of this server, which runs on one of them. Errors: one is not valid.
func (s *Service) platforms(texts []string) (all []mirror.Platform, names []string, err error) {
	switch {
	case slices.Contains(texts, AllPlatforms):
		return nil, nil, nil
	case len(texts) > 0:
		all, err = platform.ParseAll(texts)
		return all, texts, err
	case len(s.options.Platforms) > 0:
		all = s.options.Platforms
	default:
		all = []mirror.Platform{platform.Server()}
	}
	for _, p := range all {
		names = append(names, platform.Text(&p))
	}
	return all, names, nil
}
