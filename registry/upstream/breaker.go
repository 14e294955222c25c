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
	// breakAfter is how many requests in a row must fail until an endpoint gets no requests for a while.
	breakAfter = 3
	// minBreak and maxBreak bound that time, which doubles with each further failure: at most a minute, so that an
	// endpoint that works again is noticed soon.
	minBreak = 2 * time.Second
	maxBreak = time.Minute
	// maxPause bounds the pause that an endpoint can ask for: Retry-After may be a day.
	maxPause = 5 * time.Minute
	// defaultPause is the pause after a 429 without Retry-After.
	defaultPause = 10 * time.Second
)

// breaker is a circuit breaker: while an endpoint does not answer, requests to it fail at once instead of waiting.
// After a while one request is let through as a probe.
type breaker struct {
	mu       sync.Mutex // guards all below
	failures int        // in a row
	until    time.Time  // no request before that, once failures has reached breakAfter
	probing  bool       // a probe is under way
	// paused are the ends of the pauses that the endpoint asked for, by what is limited: a limit on manifests must not
	// stop the blobs of images that are being pulled (Docker Hub counts manifests only).
	paused map[string]time.Time
}

// permit is the right to send one request.
type permit int

const (
	none    permit = iota
	regular        // the endpoint answers
	probe          // the one request after a break
)

// allow returns a permit to send a request now, or none and the time after which to ask again. The caller calls done
// once for each request that is allowed.
func (b *breaker) allow(kind string) (permit, time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if wait := b.paused[kind].Sub(now); wait > 0 {
		return none, wait
	}
	if b.failures < breakAfter {
		return regular, 0
	}
	if wait := b.until.Sub(now); wait > 0 {
		return none, wait
	}
	if b.probing {
		return none, time.Second
	}
	b.probing = true
	return probe, 0
}

// outcome is what a request has shown about its endpoint.
type outcome int

const (
	unknown outcome = iota // the request was cancelled
	alive
	down
)

// done records what a request has shown.
func (b *breaker) done(p permit, o outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	// Only the probe ends the probe. Requests that were sent before the break may fail much later: with a probe for
	// each of them, an endpoint that hangs would get one after the other.
	if p == probe {
		b.probing = false
	}
	switch o {
	case alive: // also by a request from before the break: the endpoint answers now
		b.failures = 0
	case down:
		if b.failures >= breakAfter && p != probe {
			return // sent before the break: requests at the same time are one failure, not several
		}
		b.failures++
		shift := max(min(b.failures-breakAfter, 10), 0)
		b.until = time.Now().Add(jittered(min(minBreak<<shift, maxBreak)))
	}
}

// pause allows no requests of a kind for the time that the endpoint has asked for, up to maxPause.
func (b *breaker) pause(kind string, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.paused == nil {
		b.paused = map[string]time.Time{}
	}
	b.paused[kind] = time.Now().Add(min(wait, maxPause))
}

// jittered returns a random time between three and five quarters of d, so that callers that wait do not retry together.
func jittered(d time.Duration) time.Duration { return d - d/4 + rand.N(d/2+1) }

// retryAfter returns the Retry-After of an answer, seconds or a date (RFC 9110, section 10.2.3), up to maxPause; 0 if
// there is none.
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

// Rate is how many manifests an upstream still serves, by the headers of its last answer (Docker Hub).
type Rate struct {
	Limit, Remaining int
	Window           time.Duration // within which Limit counts
	At               time.Time     // when it answered; zero: it has sent no such headers
}

// reserve divides a limit: that part of it is for pulls alone.
const reserve = 4

// low reports whether what is left is for pulls alone.
func (r Rate) low() bool {
	return !r.At.IsZero() && time.Since(r.At) < r.Window && r.Remaining < max(r.Limit/reserve, 1)
}

// parseRate parses ratelimit-limit and ratelimit-remaining, of the form N;w=SECONDS. ok is false without them.
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

// open reports whether the endpoint has failed so often that it gets only probes.
func (b *breaker) open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failures >= breakAfter
}
