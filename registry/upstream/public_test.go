package upstream_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"trow/registry/namespace"
	"trow/registry/upstream"
	"trow/storage"
)

// journal keeps records in memory, and counts what is written.
type journal struct {
	mu      sync.Mutex
	records map[string][]byte
	writes  int
	cached  map[string][]storage.CachedContent
}

func (j *journal) Records(prefix string) iter.Seq2[string, []byte] {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := maps.Clone(j.records)
	maps.DeleteFunc(all, func(name string, _ []byte) bool { return !strings.HasPrefix(name, prefix) })
	return maps.All(all)
}

func (j *journal) CachedContents(repo string) []storage.CachedContent { return j.cached[repo] }

func (j *journal) SetRecord(_ context.Context, name string, old, value []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if string(j.records[name]) != string(old) {
		return errors.New("another value")
	}
	if j.writes++; value == nil {
		delete(j.records, name)
	} else {
		j.records[name] = value
	}
	return nil
}

// reads reports who may read a repository of up.example: everybody, or nobody without a login at the upstream.
func reads(t *testing.T, u *upstream.Upstreams, repo string) string {
	t.Helper()
	who, up, ok := u.Readers("f/up.example/" + repo)
	switch {
	case !ok || !strings.HasPrefix(up, "up.example"):
		return "rules"
	case who.All():
		return "everybody"
	case len(who) == 0:
		return "nobody"
	}
	return "some"
}

// TestWhoMayReadWithoutALogin is what the upstream gives without one; it is asked once for each repository.
func TestWhoMayReadWithoutALogin(t *testing.T) {
	o := newOrigin(t)
	for _, c := range []struct{ repo, kind, ref, want string }{
		{"open", "manifests", "v", "everybody"}, {"private", "manifests", "v", "nobody"},
		{"open", "", "", "everybody"}, {"private", "", "", "nobody"}, // the list of tags
	} {
		j := &journal{records: map[string][]byte{}}
		u := o.upstreams(upstream.Config{}, o.entry())
		u.Load(j)
		if got := reads(t, u, c.repo); got != "nobody" {
			t.Errorf("%s may be read by %s before it is known", c.repo, got)
		}
		for range 3 {
			if err := u.Learn(t.Context(), "f/up.example/"+c.repo, c.kind, c.ref); err != nil {
				t.Fatal(err)
			}
		}
		if got := reads(t, u, c.repo); got != c.want {
			t.Errorf("%s may be read by %s, want %s", c.repo, got, c.want)
		}
		if _, err := o.find(u, c.repo).Head(t.Context(), c.repo, "v"); err != nil { // with the login
			t.Error(err)
		}
		if public := map[string]int{"everybody": 1}[c.want]; j.writes != 1+public || len(j.records) != 1+public {
			t.Errorf("%s: %d records after %d writes", c.repo, len(j.records), j.writes) // one: it has a login
		}
	}
}

// TestReadersOfOtherEntries: read: decides alone; without a login at the upstream, everybody may; and of what no entry
// names, the rules decide.
func TestReadersOfOtherEntries(t *testing.T) {
	o := newOrigin(t)
	some := o.entry()
	some.Path, some.Read = "team", []string{"user:alice"}
	open := o.entry()
	open.Path, open.Endpoints[0].Username, open.Endpoints[0].PasswordFile = "open", "", ""
	u := o.upstreams(upstream.Config{}, some, open)
	for repo, want := range map[string]string{"team/a": "some", "open": "everybody", "other": "rules"} {
		if err := u.Learn(t.Context(), "f/up.example/"+repo, "manifests", "v"); err != nil {
			t.Error(err)
		}
		if got := reads(t, u, repo); got != want {
			t.Errorf("%s may be read by %s, want %s", repo, got, want)
		}
	}
	if _, _, ok := u.Readers("team/app"); ok {
		t.Error("a repository of this registry has readers of an upstream")
	}
	// What came from an upstream that the settings no longer name: nobody, whatever the rules are.
	u.Load(&journal{records: map[string][]byte{},
		cached: map[string][]storage.CachedContent{"f/gone.example/a": {{Size: 1}}}})
	if who, _, ok := u.Readers("f/gone.example/a"); !ok || len(who) > 0 {
		t.Errorf("may be read by %v", who)
	}
	if _, _, ok := u.Readers("f/gone.example/imported"); ok {
		t.Error("what was imported has readers of an upstream")
	}
}

// TestReadersAfterAChange of the settings: what is held with a login, or was for some, is not for everybody because the
// setting is gone; and what one endpoint gives to everybody says nothing about another one.
func TestReadersAfterAChange(t *testing.T) {
	o := newOrigin(t)
	bare, some := o.entry(), o.entry()
	bare.Endpoints = []upstream.Endpoint{{URL: o.registry.URL}}
	some.Endpoints, some.Read = bare.Endpoints, []string{"user:alice"}
	other, path := bare, o.entry()
	other.Host, path.Path = "other.example", "private"
	for name, c := range map[string]struct{ before, after []upstream.Entry }{
		"the login":        {[]upstream.Entry{o.entry()}, []upstream.Entry{bare}},
		"read:":            {[]upstream.Entry{some}, []upstream.Entry{bare}},
		"the entry":        {[]upstream.Entry{o.entry()}, []upstream.Entry{other}},
		"all entries":      {[]upstream.Entry{o.entry()}, nil},
		"that of the path": {[]upstream.Entry{bare, path}, []upstream.Entry{bare}},
	} {
		j := &journal{records: map[string][]byte{},
			cached: map[string][]storage.CachedContent{"f/up.example/private": {{Size: 1}}}}
		u := o.upstreams(upstream.Config{Any: true}, c.before...)
		u.Load(j)
		check := func(when string) {
			t.Helper()
			if !u.Restricted() {
				t.Errorf("%s, %s: not restricted", name, when)
			}
			for _, repo := range []string{"private", "open"} {
				err := u.Learn(t.Context(), "f/up.example/"+repo, "manifests", "v")
				want := "nobody"
				if repo == "open" && len(c.after) > 0 && c.after[0].Host == "up.example" {
					want = "everybody"
				}
				if got := reads(t, u, repo); got != want {
					t.Errorf("%s, %s: %s may be read by %s, want %s (%v)", name, when, repo, got, want, err)
				}
			}
		}
		if err := u.Set(c.after); err != nil {
			t.Fatal(err)
		}
		check("changed")
		u = o.upstreams(upstream.Config{Any: true}, c.after...)
		u.Load(j)
		check("after a restart")
	}

	// Another endpoint: at once, and also while it cannot be asked.
	public := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer public.Close()
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	entry := func(at string) []upstream.Entry {
		e := o.entry()
		e.Insecure, e.Endpoints[0].URL = true, at
		return []upstream.Entry{e}
	}
	j := &journal{records: map[string][]byte{}}
	u := o.upstreams(upstream.Config{}, entry(public.URL)...)
	u.Load(j)
	for _, c := range []struct{ at, before, after string }{{public.URL, "nobody", "everybody"},
		{down.URL, "nobody", "nobody"}, {o.registry.URL, "nobody", "nobody"}, {public.URL, "everybody", "everybody"}} {
		if err := u.Set(entry(c.at)); err != nil {
			t.Fatal(err)
		}
		if got := reads(t, u, "private"); got != c.before {
			t.Errorf("%s: may be read by %s before it is asked, want %s", c.at, got, c.before)
		}
		err := u.Learn(t.Context(), "f/up.example/private", "manifests", "v")
		if got := reads(t, u, "private"); got != c.after {
			t.Errorf("%s: may be read by %s, want %s (%v)", c.at, got, c.after, err)
		}
	}
}

// TestWhatIsKnownOfReaders: for how long, and what counts where the upstream cannot be asked.
func TestWhatIsKnownOfReaders(t *testing.T) {
	var status, asked atomic.Int64
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(int(status.Load()))
	}))
	defer origin.Close()
	entry := upstream.Entry{Host: "up.example", Insecure: true, Endpoints: []upstream.Endpoint{{URL: origin.URL,
		Username: "alice", PasswordFile: write(t, "password", "p4ssw0rd")}}}
	j := &journal{records: map[string][]byte{}}
	start := func() *upstream.Upstreams {
		u := upstream.New(upstream.Config{Names: namespace.NewTable(nil)})
		if err := u.Set([]upstream.Entry{entry}); err != nil {
			t.Fatal(err)
		}
		u.Load(j)
		return u
	}
	u := start()
	learn := func(answer int, ref, want string, unavailable bool) {
		t.Helper()
		status.Store(int64(answer))
		err := u.Learn(t.Context(), "f/up.example/a", "manifests", ref)
		if errors.Is(err, upstream.ErrUnavailable) != unavailable || !unavailable && err != nil {
			t.Errorf("%d: %v", answer, err)
		}
		if got := reads(t, u, "a"); got != want {
			t.Errorf("%d: may be read by %s, want %s", answer, got, want)
		}
	}
	learn(500, "v", "nobody", true)
	learn(404, "misspelled", "nobody", false) // says nothing of other tags
	learn(200, "v", "everybody", false)
	before := asked.Load()
	learn(401, "w", "everybody", false) // for a day
	if asked.Load() != before {
		t.Error("asked again")
	}
	u = start()
	learn(500, "v", "everybody", false) // what was known before the restart counts
	u = start()
	learn(403, "v", "nobody", false)
	if len(j.records) != 1 {
		t.Error("the record of a repository that is not public any more is still there")
	}
	u = start()
	learn(500, "v", "nobody", true)
}

// TestAnAnswerCountsForADay.
func TestAnAnswerCountsForADay(t *testing.T) {
	entry := upstream.Entry{Host: "up.example", Insecure: true,
		Endpoints: []upstream.Endpoint{{URL: "http://127.0.0.1:1",
			Username: "alice", PasswordFile: write(t, "password", "p4ssw0rd")}}}
	synctest.Test(t, func(t *testing.T) {
		asked := sha256.Sum256([]byte("http://127.0.0.1:1 true\n"))
		j := &journal{records: map[string][]byte{"upstream/public/f/up.example/a": fmt.Appendf(nil, "%x", asked[:8])}}
		u := upstream.New(upstream.Config{Names: namespace.NewTable(nil), Offline: true})
		if err := u.Set([]upstream.Entry{entry}); err != nil {
			t.Fatal(err)
		}
		u.Load(j)
		for range 3 { // the upstream cannot be asked, so what was known counts for a minute, again and again
			if err := u.Learn(t.Context(), "f/up.example/a", "manifests", "v"); err != nil {
				t.Fatal(err)
			}
			if got := reads(t, u, "a"); got != "everybody" {
				t.Errorf("may be read by %s", got)
			}
			time.Sleep(time.Minute)
			if got := reads(t, u, "a"); got != "nobody" {
				t.Errorf("after a minute, may be read by %s before it is asked again", got)
			}
		}
	})
}

// TestAReaderDoesNotWaitForAnUpstreamThatHangs if the last answer was that everybody may read; otherwise it waits for
// the answer.
func TestAReaderDoesNotWaitForAnUpstreamThatHangs(t *testing.T) {
	asked, answers := make(chan struct{}, 4), make(chan struct{})
	release := sync.OnceFunc(func() { close(answers) })
	var hangs atomic.Bool
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if hangs.Load() {
			asked <- struct{}{}
			<-answers
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer origin.Close()
	defer release()
	records := &journal{records: map[string][]byte{}}
	start := func() *upstream.Upstreams {
		u := upstream.New(upstream.Config{Names: namespace.NewTable(nil)})
		if err := u.Set([]upstream.Entry{{Host: "up.example", Insecure: true, Endpoints: []upstream.Endpoint{
			{URL: origin.URL, Username: "alice", PasswordFile: write(t, "password", "p4ssw0rd")}}}}); err != nil {
			t.Fatal(err)
		}
		u.Load(records)
		return u
	}
	if err := start().Learn(t.Context(), "f/up.example/a", "manifests", "v"); err != nil {
		t.Fatal(err)
	}
	hangs.Store(true)
	u := start() // after a restart
	if err := u.Learn(t.Context(), "f/up.example/a", "manifests", "v"); err != nil {
		t.Fatal(err)
	}
	if got := reads(t, u, "a"); got != "everybody" {
		t.Errorf("may be read by %s", got)
	}
	<-asked
	other := make(chan error, 1)
	go func() { other <- u.Learn(t.Context(), "f/up.example/b", "manifests", "v") }()
	<-asked
	release()
	if err := <-other; err != nil || reads(t, u, "b") != "nobody" {
		t.Errorf("%v; may be read by %s", err, reads(t, u, "b"))
	}
	for reads(t, u, "a") != "nobody" { // the answer counts when it comes
		time.Sleep(time.Millisecond)
	}
}

// TestLimitsWithoutTheLogin are not those of the login: an upstream that lets nobody read without one, because this
// address has used up its rate, serves the login as before, and what is left for that is as it has said.
func TestLimitsWithoutTheLogin(t *testing.T) {
	o := newOrigin(t)
	o.registry.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		remaining, login := "0;w=21600", strings.HasSuffix(req.Header.Get("Authorization"), "alice")
		if login {
			remaining = "150;w=21600"
		}
		w.Header().Set("RateLimit-Limit", "200;w=21600")
		if req.URL.Path != "/token" && req.Header.Get("Authorization") != "" {
			w.Header().Set("RateLimit-Remaining", remaining)
			if !login {
				w.Header().Set("Retry-After", "60")
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
		}
		o.ServeHTTP(w, req)
	})
	u := o.upstreams(upstream.Config{}, o.entry())
	up := o.find(u, "open")
	if _, err := up.Head(t.Context(), "open", "v"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second one finds the pause
		err := u.Learn(t.Context(), "f/up.example/open", "manifests", "v")
		if !errors.Is(err, upstream.ErrUnavailable) {
			t.Errorf("who may read: %v", err)
		}
	}
	if _, err := up.Head(t.Context(), "open", "v"); err != nil {
		t.Errorf("with the login: %v", err)
	}
	for host, r := range up.Rates() {
		if r.Remaining != 150 || !up.MayPoll() {
			t.Errorf("%s: %d are left, and polls may ask: %t", host, r.Remaining, up.MayPoll())
		}
	}
}
