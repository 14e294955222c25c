package upstream

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// breakAfter is how many requests in a row must fail until an endpoint is left alone.
	breakAfter = 3
	// minBreak and maxBreak are for how long, doubling with each further failure: short enough that a registry that is
	// back is noticed within a minute.
	minBreak = 2 * time.Second
	maxBreak = time.Minute
	// maxPause bounds for how long an endpoint is left alone that asked for it: Retry-After may say a day.
	maxPause = 5 * time.Minute
	// defaultPause is for a 429 that does not say how long.
	defaultPause = 10 * time.Second
)

// breaker leaves an endpoint alone that does not answer, so that those who wait for it are answered at once. After a
// while one request finds out whether it is back.
type breaker struct {
	mu       sync.Mutex // guards all below
	failures int        // in a row
	until    time.Time
	probing  bool
	// paused are the ends of the pauses that the endpoint asked for, by kind of request: a limit on manifests must not
	// stop the blobs of images that are being pulled (Docker Hub counts manifests only).
	paused map[string]time.Time
}

// allow reports whether the endpoint may be asked now, and if not, after which time. Each call that is allowed is
// followed by one of done.
func (b *breaker) allow(kind string) (time.Duration, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if wait := b.paused[kind].Sub(now); wait > 0 {
		return wait, false
	}
	if b.failures < breakAfter {
		return 0, true
	}
	if wait := b.until.Sub(now); wait > 0 {
		return wait, false
	}
	if b.probing {
		return time.Second, false
	}
	b.probing = true
	return 0, true
}

// outcome is what a request says about its endpoint.
type outcome int

const (
	unknown outcome = iota // the client that asked has left
	alive
	down
)

// done records what a request has shown.
func (b *breaker) done(o outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
	switch o {
	case alive:
		b.failures = 0
	case down:
		if b.failures >= breakAfter && time.Now().Before(b.until) {
			return // asked before the others failed: one outage is no reason for a long pause
		}
		b.failures++
		shift := max(min(b.failures-breakAfter, 10), 0)
		b.until = time.Now().Add(jittered(min(minBreak<<shift, maxBreak)))
	}
}

// pause leaves requests of a kind alone for a time that the endpoint asked for.
func (b *breaker) pause(kind string, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.paused == nil {
		b.paused = map[string]time.Time{}
	}
	b.paused[kind] = time.Now().Add(min(wait, maxPause))
}

// jittered returns a time between three and five quarters of d, so that those who wait do not come back together.
func jittered(d time.Duration) time.Duration { return d - d/4 + rand.N(d/2+1) }

// retryAfter returns how long an answer asks to wait (RFC 9110, section 10.2.3): seconds or a date; 0 if it does not
// say.
func retryAfter(h http.Header) time.Duration {
	text := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(text); err == nil {
		return time.Duration(min(max(seconds, 0), int(maxPause/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return min(max(time.Until(at), 0), maxPause)
	}
	return 0
}

// Rate is how many manifests an upstream still gives, as it says (Docker Hub).
type Rate struct {
	Limit, Remaining int
	Window           time.Duration // within which Limit counts
	At               time.Time     // when it said so; zero: it never has
}

// reserve is the part of a limit that polling leaves to pulls.
const reserve = 4

// low reports whether so little is left that only pulls should use it.
func (r Rate) low() bool {
	return !r.At.IsZero() && time.Since(r.At) < r.Window && r.Remaining < max(r.Limit/reserve, 1)
}

// parseRate reads ratelimit-limit and ratelimit-remaining in the form N;w=SECONDS. ok is false without them.
func parseRate(h http.Header) (r Rate, ok bool) {
	limit, window, ok := parseLimit(h.Get("RateLimit-Limit"))
	if !ok {
		return r, false
	}
	remaining, w, ok := parseLimit(h.Get("RateLimit-Remaining"))
	return Rate{limit, remaining, max(window, w), time.Now()}, ok
}

func parseLimit(text string) (n int, window time.Duration, ok bool) {
	number, parameters, _ := strings.Cut(text, ";")
	n, err := strconv.Atoi(strings.TrimSpace(number))
	if err != nil || n < 0 {
		return 0, 0, false
	}
	for p := range strings.SplitSeq(parameters, ";") {
		if v, found := strings.CutPrefix(strings.TrimSpace(p), "w="); found {
			seconds, err := strconv.ParseUint(v, 10, 31)
			if err != nil {
				return 0, 0, false
			}
			window = time.Duration(seconds) * time.Second
		}
	}
	return n, window, true
}

// open reports whether the endpoint has failed so often that it is left alone.
func (b *breaker) open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failures >= breakAfter
}
