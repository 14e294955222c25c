package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/opencontainers/go-digest"
)

const (
	linearRepos = 3
	// perRepo is how many clients work on one repo: enough for every pair of operations to run concurrently, and few
	// enough for the checker, whose work grows with the number of concurrent operations.
	perRepo = 4
	// roundTime bounds a history: the checker's memory grows with its square.
	roundTime = 4 * time.Second
	// checkTime bounds the checker's search. A correct history takes seconds; the search in a wrong one may not end.
	checkTime = 2 * time.Minute
)

// world is the content behind the numbers of the model.
type world struct {
	config    []byte
	manifests [manifestCount][]byte
	digests   [manifestCount]digest.Digest
	types     [manifestCount]string
}

func newWorld() *world {
	w := &world{config: []byte("{}")}
	config := describe(typeConfig, w.config)
	var first descriptor
	for m := range manifestCount {
		d := document{MediaType: typeManifest, Config: &config, Layers: []descriptor{},
			Annotations: map[string]string{"n": fmt.Sprint(m)}}
		switch m {
		case referrer:
			d.Subject = &first
		case index:
			d = document{MediaType: typeIndex, Manifests: []descriptor{first}}
		}
		w.manifests[m], w.types[m] = d.encode(), d.MediaType
		w.digests[m] = digest.FromBytes(w.manifests[m])
		if m == child {
			first = describe(typeManifest, w.manifests[m])
		}
	}
	return w
}

// manifest returns the number of a digest. For an unknown digest it is a number that the model does not have.
func (w *world) manifest(d digest.Digest) int {
	if m := slices.Index(w.digests[:], d); m >= 0 {
		return m
	}
	return manifestCount
}

func tagName(tag int) string { return string(rune('a' + tag)) }

// ref returns the tag or digest that a request addresses.
func (w *world) ref(i input) string {
	if i.tag == none {
		return string(w.digests[i.manifest])
	}
	return tagName(i.tag)
}

// request returns the HTTP request for an operation.
func (w *world) request(i input, head bool) (method, path string, body []byte, headers []string) {
	path = "/v2/" + i.repo + "/manifests/" + w.ref(i)
	switch i.action {
	case put:
		method, body, headers = http.MethodPut, w.manifests[i.manifest], []string{"Content-Type", w.types[i.manifest]}
		for n, tag := range tagsOf(i.more) {
			path += string("?&"[min(n, 1)]) + "tag=" + tagName(tag)
		}
	case deleteTag, deleteManifest:
		method = http.MethodDelete
	case getTag, getManifest:
		method = http.MethodGet
		if head {
			method = http.MethodHead
		}
	case listTags:
		method, path = http.MethodGet, "/v2/"+i.repo+"/tags/list"
	case listReferrers:
		method, path = http.MethodGet, "/v2/"+i.repo+"/referrers/"+string(w.digests[child])
	}
	switch i.when {
	case ifAny:
		headers = append(headers, "If-Match", "*")
	case ifNone:
		headers = append(headers, "If-None-Match", "*")
	case ifManifest:
		headers = append(headers, "If-Match", `"`+string(w.digests[i.expect])+`"`)
	case ifOther:
		headers = append(headers, "If-None-Match", `"`+string(w.digests[i.expect])+`"`)
	}
	return method, path, body, headers
}

// read returns the output for an answer. Errors: the answer contradicts itself.
func (w *world) read(i input, method string, a answer) (output, error) {
	o := answered(a.status)
	if a.status != http.StatusOK {
		return o, nil
	}
	switch i.action {
	case getTag, getManifest:
		o.manifest = w.manifest(a.digest())
		if method == http.MethodGet && digest.FromBytes(a.body) != a.digest() {
			return o, fmt.Errorf("the body has the digest %s, the header says %s", digest.FromBytes(a.body), a.digest())
		}
	case listTags:
		var list struct{ Tags []string }
		if err := json.Unmarshal(a.body, &list); err != nil {
			return o, err
		}
		for tag := range tagCount {
			if slices.Contains(list.Tags, tagName(tag)) {
				o.list |= 1 << tag
			}
		}
	case listReferrers:
		var list document
		if err := json.Unmarshal(a.body, &list); err != nil {
			return o, err
		}
		for _, d := range list.Manifests {
			o.list |= 1 << w.manifest(d.Digest)
		}
	}
	return o, nil
}

// choose returns a random operation. Half of them are reads: only they show what the writes did.
func choose(r *rand.Rand, repo string) input {
	i := input{repo: repo, tag: r.IntN(tagCount), manifest: r.IntN(manifestCount)}
	switch n := r.IntN(20); {
	case n < 6:
		i.action = put
		if r.IntN(4) == 0 {
			i.tag = none
		}
		if r.IntN(3) == 0 {
			i.more = uint8(r.IntN(1 << tagCount))
		}
		if r.IntN(2) == 0 {
			i.condition(r)
		}
	case n < 8:
		i.action, i.manifest = deleteTag, 0
		if r.IntN(2) == 0 {
			i.condition(r)
		}
	case n < 10:
		i.action, i.tag = deleteManifest, none
	case n < 15:
		i.action, i.manifest = getTag, 0
	case n < 17:
		i.action, i.tag = getManifest, none
	case n < 19:
		i.action, i.tag, i.manifest = listTags, 0, 0
	default:
		i.action, i.tag, i.manifest = listReferrers, 0, 0
	}
	return i
}

func (i *input) condition(r *rand.Rand) {
	i.when = []condition{ifAny, ifNone, ifManifest, ifOther}[r.IntN(4)]
	i.expect = r.IntN(manifestCount)
	if i.when == ifAny || i.when == ifNone {
		i.expect = 0
	}
}

// writes reports whether the operation changes something, so that it matters whether a lost one happened.
func (i input) writes() bool {
	return i.action == put || i.action == deleteTag || i.action == deleteManifest
}

// recorder is the history of a round.
type recorder struct {
	*world
	t         *testing.T
	newClient func() *client
	now       func() int64            // the time of an operation
	replicas  bool                    // there are several: see perform
	death     func(after int64) int64 // when an operation that was sent before had happened, or never will

	mu      sync.Mutex // guards all below
	history []porcupine.Operation
	lost    int
}

// perform sends an operation and records it. It reports whether the answer arrived.
func (rec *recorder) perform(ctx context.Context, id int, c *client, i input, head bool) bool {
	method, path, body, headers := rec.request(i, head)
	call := rec.now()
	a, err := c.do(ctx, method, path, body, headers...)
	end := rec.now()
	if dial := (*net.OpError)(nil); errors.As(err, &dial) && dial.Op == "dial" {
		time.Sleep(5 * time.Millisecond) // no server: the operation was not sent, so it is not recorded
		return false
	}
	o := output{lost: true}
	if err == nil && a.header.Get("Trow-Stale") != "" && !i.writes() {
		return true // it says that it may be old
	}
	if rec.replicas && err == nil && i.action == getManifest && method == http.MethodGet && a.status == http.StatusOK {
		// Content that a replica has by its digest is served without asking whether another one has deleted it. That it
		// has none is asked, and so is a HEAD.
		return true
	}
	if err == nil && a.status < 500 {
		if o, err = rec.read(i, method, a); err != nil {
			rec.t.Errorf("%v: %v: %v", i, a, err)
		}
	}
	if o.lost && !i.writes() {
		return false
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if o.lost {
		rec.lost++
	}
	rec.history = append(rec.history, porcupine.Operation{ClientId: id, Input: i, Output: o, Call: call, Return: end})
	return !o.lost
}

// work is one client until ctx ends. It often repeats a lost operation once, as clients do.
func (rec *recorder) work(ctx context.Context, id int, repo string, r *rand.Rand) {
	c := rec.newClient()
	for ctx.Err() == nil {
		i := choose(r, repo)
		// Not with ctx: at the end of a round every client would lose an answer.
		if !rec.perform(context.WithoutCancel(ctx), id, c, i, r.IntN(2) == 0) && r.IntN(2) == 0 {
			rec.perform(context.WithoutCancel(ctx), id, c, i, false)
		}
	}
}

// complete sets the end of lost operations to the time when their process was dead. Which process that was is not
// certain, because net/http repeats a request that it could not write. So it takes the first death after the client
// gave up. The test kills the last process, so there always is one.
func (rec *recorder) complete() []porcupine.Operation {
	for n := range rec.history {
		if o := &rec.history[n]; o.Output.(output).lost {
			o.Return = rec.death(o.Return)
		}
	}
	return rec.history
}

// round has clients work on fresh repos for a while, and returns the history.
func round(t *testing.T, s *server, n int, length time.Duration) *recorder {
	rec := &recorder{t: t, world: newWorld(), now: s.now, death: s.death,
		newClient: func() *client { return &client{s.newClient(), s.url} }}
	return rec.run(n, length, func(ctx context.Context) {
		s.restarts(ctx, 3, length)
	}, func() {
		s.stop(syscall.SIGKILL) // lost operations have happened by now, or never will
		s.run()
	})
}

// run has clients work on fresh repos for a while, beside a disturbance. end makes sure that nothing is under way.
func (rec *recorder) run(n int, length time.Duration, disturb func(context.Context), end func()) *recorder {
	t := rec.t
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var repos []string
	for i := range linearRepos {
		repo := fmt.Sprintf("linear/r%d-%d", n, i)
		repos = append(repos, repo)
		path := "/v2/" + repo + "/blobs/uploads/?digest=" + string(digest.FromBytes(rec.config))
		// Again while the last round's disturbance shows.
		a, err := rec.newClient().do(t.Context(), http.MethodPost, path, rec.config)
		for end := time.Now().Add(time.Minute); err == nil && a.status == 503 && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
			a, err = rec.newClient().do(t.Context(), http.MethodPost, path, rec.config)
		}
		if err != nil || a.status != http.StatusCreated {
			t.Fatalf("%v %v", a, err)
		}
	}
	var wg sync.WaitGroup
	for id := range linearRepos * perRepo {
		wg.Go(func() { rec.work(ctx, id, repos[id%linearRepos], random(n<<16|id)) })
	}
	disturb(ctx)
	wg.Wait()
	end()
	last := rec.newClient()
	for _, repo := range repos { // the final state shows most of what happened
		for tag := range tagCount {
			rec.perform(t.Context(), linearRepos*perRepo, last,
				input{repo: repo, action: getTag, tag: tag}, false)
		}
	}
	return rec
}

func TestLinearizable(t *testing.T) {
	// The Collector runs all the time, so that the bytes of deleted manifests vanish and return with the next push.
	s := start(t, "--gc-interval", "1s")
	operations, lost := 0, 0
	for n := 0; n == 0 || n < int(settings.time/roundTime); n++ {
		rec := round(t, s, n, min(roundTime, settings.time))
		operations += rec.judge(n)
		lost += rec.lost
	}
	t.Logf("%d operations, %d of them lost, %d processes", operations, lost, s.started)
	if operations < 100 {
		t.Errorf("%d operations are too few to show anything", operations)
	}
}

// judge fails the test unless the history of round n is one of a registry that carries out one operation after the
// other, and returns its length.
func (rec *recorder) judge(n int) int {
	history := rec.complete()
	if result := porcupine.CheckOperationsTimeout(model, history, checkTime); result != porcupine.Ok {
		rec.t.Fatalf("round %d: the history is %s; see %s; it ends with:\n%s", n, result, visualize(rec.t, history),
			describeHistory(history))
	}
	wrong := spoil(history)
	// The search for an order that does not exist may take longer than it is worth; one that is found is wrong.
	if result := porcupine.CheckOperationsTimeout(model, wrong, checkTime/8); result == porcupine.Ok {
		rec.t.Fatalf("round %d: the history with a wrong answer at its end is %s", n, result)
	}
	return len(history)
}

// spoil returns the history with its last operation, a read, once more, but with another answer, although nothing was
// written in between.
func spoil(history []porcupine.Operation) []porcupine.Operation {
	wrong := history[len(history)-1]
	wrong.Call, wrong.Return = wrong.Return+1, wrong.Return+2
	if o := wrong.Output.(output); o.manifest == none {
		wrong.Output = found(0)
	} else {
		wrong.Output = found(none)
	}
	return append(slices.Clone(history), wrong)
}

// visualize writes a page for a browser, outside of the test's directories, because those are deleted.
func visualize(t *testing.T, history []porcupine.Operation) string {
	_, info := porcupine.CheckOperationsVerbose(model, history, 10*time.Second)
	path := filepath.Join(os.TempDir(), fmt.Sprintf("linearizable-%d.html", os.Getpid()))
	if err := porcupine.VisualizePath(model, info, path); err != nil {
		t.Error(err)
	}
	return path
}
