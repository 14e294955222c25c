package admission

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	// maxFetches bounds the images that are fetched for verdicts at the same time, and maxFetchesOf those of one
	// namespace of the cluster: those who may create pods choose what is fetched. What exceeds them is fetched by the
	// pull.
	maxFetches   = 32
	maxFetchesOf = 4

	// fetchTime bounds one of these fetches. The pull fetches what is missing then.
	fetchTime = 15 * time.Minute
)

// The outcomes of fetching an image, as the metric names them.
const (
	fetchDone    = "done"
	fetchFailed  = "failed"
	fetchDropped = "dropped" // too many are under way
)

// ahead fetches the images of pods that were just allowed, so that the pull finds them under way or done. A nil *ahead
// fetches nothing.
type ahead struct {
	images fetcher
	count  func(outcome string)
	log    zerolog.Logger

	mu    sync.Mutex            // guards all below
	under map[fetchedImage]bool // under way
	of    map[string]int        // how many are under way, by namespace of the cluster; an entry of 0 is deleted
}

// fetchedImage names a manifest here.
type fetchedImage struct{ repo, ref string }

// newAhead returns an ahead, nil if the images cannot be fetched.
func newAhead(o *Options) *ahead {
	f, ok := o.Images.(fetcher)
	if !ok {
		return nil
	}
	return &ahead{images: f, count: o.Metrics.fetched, log: o.Log, under: map[fetchedImage]bool{},
		of: map[string]int{}}
}

// fetchAhead starts to fetch what the verdicts of a decision allow to be fetched, and notes it in the decision. It does
// so for a pod that will be created, never for a dry run, and only if the call certainly comes from the API server:
// otherwise any client could make the registry download any image.
func (w *Webhook) fetchAhead(ctx context.Context, call *http.Request, k kind, d *Decision) {
	if w.ahead == nil || d.DryRun || !d.Allowed || k.template || call == nil || w.hints == nil ||
		!w.hints.callers.Authenticate() {
		return
	}
	for i := range d.Verdicts {
		v := &d.Verdicts[i]
		if v.fetch && w.ahead.start(ctx, d.Namespace, fetchedImage{v.repo, v.Reference.Ref()}) {
			d.Fetching = append(d.Fetching, v.Image)
		}
	}
	d.Fetching = atMostAudit(d.Fetching) // many images may be one that is under way: it has as many names as tags
}

// noteUses notes that the images of a pod that will be created are about to be pulled. What may run because it is held
// would not, had it been evicted before the pull.
func (w *Webhook) noteUses(k kind, d *Decision) {
	o, ok := w.images.(others)
	if !ok || d.DryRun || !d.Allowed || k.template {
		return
	}
	for i := range d.Verdicts {
		if v := &d.Verdicts[i]; v.whole && v.Allowed {
			o.Used(v.repo, v.at)
		}
	}
}

// start fetches an image without waiting for it. It reports whether the image is under way.
func (a *ahead) start(ctx context.Context, namespace string, image fetchedImage) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.under[image] {
		return true
	}
	if len(a.under) >= maxFetches || a.of[namespace] >= maxFetchesOf {
		a.count(fetchDropped)
		return false
	}
	a.under[image] = true
	a.of[namespace]++
	go func() {
		// Not cancelled with the review, which is answered long before.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
		defer cancel()
		a.end(namespace, image, a.fetch(ctx, image))
	}()
	return true
}

// fetch fetches an image. A panic is an error: it must not end the process.
func (a *ahead) fetch(ctx context.Context, image fetchedImage) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return a.images.Fetch(ctx, image.repo, image.ref)
}

func (a *ahead) end(namespace string, image fetchedImage, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.under, image)
	if a.of[namespace]--; a.of[namespace] == 0 {
		delete(a.of, namespace)
	}
	if err != nil {
		a.count(fetchFailed)
		a.log.Info().Err(err).Str("repo", image.repo).Str("ref", image.ref).Str("namespace", namespace).
			Msg("an image of a new pod could not be fetched ahead of its pull")
		return
	}
	a.count(fetchDone)
}
