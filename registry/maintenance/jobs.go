package maintenance

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/retention"
	"trow/registry/size"
	"trow/storage"
)

// Retained is the outcome of the job retention.
type Retained struct {
	Removed int  `json:"removed"` // tags and manifests
	Rules   bool `json:"rules"`   // whether there are any
}

// Found is the outcome of the job scrub.
type Found struct {
	storage.Scrubbed
	Damages map[digest.Digest]storage.Damage `json:"damages"` // all that is known, not only what this scrub found
}

// Jobs are what an administrator can ask for, by the last element of their path below /admin/. Load must have returned
// before one is called.
func (d *Data) Jobs() map[string]http.Handler {
	return map[string]http.Handler{
		"gc":             d.writing(d.turn(taskCollect, d.gcJob)),
		"scrub":          d.writing(d.turn(taskScrub, d.scrubJob)),
		"retention":      d.writing(d.turn(taskCollect, d.retentionJob)),
		"retention-hold": http.HandlerFunc(d.holdRetention),
		"repositories":   http.HandlerFunc(d.listRepositories),
	}
}

// listRepositories answers with what each repository holds, a line of JSON for each: of all, or of those that the
// query names. One that does not exist has no line.
func (d *Data) listRepositories(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed; allowed: GET, HEAD", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	index, out := d.loaded.Load().index, json.NewEncoder(w)
	names := req.URL.Query()["repository"]
	if len(names) == 0 {
		names = index.Names()
	}
	begun := false
	for _, name := range names {
		held, found, err := index.Holdings(req.Context(), name)
		if err != nil && !begun {
			w.Header().Set("Retry-After", "5")
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		if err == nil && found {
			begun = true
			err = out.Encode(held)
		}
		if err != nil {
			panic(http.ErrAbortHandler) // a clean end would make a short list look complete
		}
	}
}

// gcJob collects, with a grace of its own if one is given.
func (d *Data) gcJob(ctx context.Context, q url.Values, report func(any)) (any, error) {
	c := d.loaded.Load().collector
	grace := c.Grace
	if text := q.Get("grace"); text != "" {
		var err error
		if grace, err = time.ParseDuration(text); err != nil || grace < 0 {
			return nil, fmt.Errorf("grace: %.40q is not a valid duration; write it as 30m or 6h", text)
		}
	}
	dry := q.Has("dry-run")
	progress := func(done storage.Collected) { report(done) }
	done, err := d.collectTrusted(ctx, func() (storage.Collected, error) {
		if q.Has("all") && !dry {
			return d.collectAll(ctx, grace, progress)
		}
		return c.RunWith(ctx, grace, dry, progress)
	})
	if !dry {
		d.countCollected(ctx, done, err)
	}
	return done, err
}

// retentionJob applies the rules, and reports each removal. It removes at once, whatever hold says.
func (d *Data) retentionJob(ctx context.Context, q url.Values, report func(any)) (any, error) {
	l, n := d.loaded.Load(), 0
	dry := q.Has("dry-run")
	if err := l.index.Resting(); err != nil && !dry {
		return nil, err
	}
	if !dry {
		d.hold.runs.Lock()
		defer d.hold.runs.Unlock()
	}
	run := d.hold.begin()
	err := l.retention.Apply(ctx, l.index, dry, nil, func(r retention.Removal) {
		n++
		if !dry {
			d.removed(r)
		}
		report(r)
	})
	if err == nil && !dry && l.retention.Rules() {
		err = run.removed()
	}
	return Retained{Removed: n, Rules: l.retention.Rules()}, err
}

// scrubJob examines everything, and reads as fast as possible unless a rate is given.
func (d *Data) scrubJob(ctx context.Context, q url.Values, report func(any)) (any, error) {
	how := storage.Scrub{All: q.Has("all"), Read: q.Has("read")}
	if text := q.Get("rate"); text != "" {
		var err error
		if how.Rate, err = size.Parse(text); err != nil {
			return nil, fmt.Errorf("rate: %w", err)
		}
	}
	l := d.loaded.Load()
	done, err := l.scrubber.RunWith(ctx, how, d.found, func(done storage.Scrubbed) { report(done) })
	err = d.noteScrub(err)
	return Found{Scrubbed: done, Damages: l.index.Damages()}, err
}
