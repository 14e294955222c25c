package auth_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/rs/zerolog"

	"trow/registry/auth"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// far is a journal behind a network: it counts the questions, and may not answer.
type far struct {
	*memory.Journal
	heads  atomic.Int64
	silent atomic.Bool
}

func (j *far) Head(ctx context.Context) (storage.Revision, error) {
	j.heads.Add(1)
	if j.silent.Load() {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return j.Journal.Head(ctx)
}

// lag is how late each replica hears of a change.
const lag = 150 * time.Millisecond

func (j *far) Watch(ctx context.Context, apply func(storage.Update) error) error {
	if !j.Is.Shared {
		return j.Journal.Watch(ctx, apply)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	on := make(chan storage.Update, 1000) // the journal does not wait for a replica
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(on)
	wg.Go(func() {
		for u := range on {
			time.Sleep(lag)
			if err := apply(u); err != nil {
				cancel(err)
			}
		}
	})
	return j.Journal.Watch(ctx, func(u storage.Update) error { on <- u; return context.Cause(ctx) })
}

func shared() *far {
	j := &far{Journal: memory.NewJournal()}
	j.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 1 << 20}
	return j
}

// replica makes a Guard over a journal that others share.
func replica(t *testing.T, j storage.Journal, o auth.Options) *auth.Guard {
	t.Helper()
	g, err := auth.New(o)
	if err == nil {
		err = g.Load(t.Context(), storagetest.OpenIndex(t, j), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// forged is a token of a key with any id.
func forged(t *testing.T, kid string, key any) string {
	return auth.Sign(t, jwt.SigningMethodEdDSA, kid, key, map[string]any{"iss": "trow", "sub": "",
		"aud": []string{"example.com"}, "exp": time.Now().Add(time.Hour).Unix()})
}

// ways are all the ways in which a robot's secret is sent. Each returns whether it was accepted.
func ways(t *testing.T, g *auth.Guard, secret string) map[string]error {
	all := map[string]error{"basic": second(g.Identify(withLogin("x", secret))),
		"bearer": second(g.Identify(bearer(secret)))}
	for name, form := range map[string]url.Values{"refresh token": {"grant_type": {"refresh_token"},
		"refresh_token": {secret}}, "password": {"grant_type": {"password"}, "username": {"x"}, "password": {secret}}} {
		w := httptest.NewRecorder()
		g.ServeToken(w, tokenPOST(form))
		switch all[name] = nil; w.Code {
		case 401:
			all[name] = auth.ErrUnauthorized
		case 503:
			all[name] = auth.ErrUnavailable
			if w.Header().Get("Retry-After") == "" {
				t.Errorf("%s: 503 without Retry-After", name)
			}
		}
	}
	return all
}

// TestReplicasAcceptTheSameCredentials, each at once: what one has not heard of it asks the journal for.
func TestReplicasAcceptTheSameCredentials(t *testing.T) {
	for name, o := range map[string]auth.Options{"with users": {User: "owner", Password: "p"},
		"robots alone": {Anonymous: "pull"}} {
		synctest.Test(t, func(t *testing.T) {
			j := shared()
			all := []*auth.Guard{replica(t, j, o), replica(t, j, o)}
			for i := range 4 {
				here, there := all[i%2], all[(i+1)%2]
				secret := create(t, here, robot(fmt.Sprint("ci", i), "pull,push", "**"))
				for way, err := range ways(t, there, secret) {
					if err != nil {
						t.Errorf("%s: robot %d, %s: %v", name, i, way, err)
					}
				}
				token := ask(t, here, tokenGET("x", secret, "repository:a:push"), 200).Token
				if _, err := may(there, bearer(token), "a", auth.Push); err != nil {
					t.Errorf("%s: the token of robot %d: %v", name, i, err)
				}
				if n := len(there.Robots(t.Context())); n != i+1 {
					t.Errorf("%d robots, want %d", n, i+1)
				}
			}
		})
	}
}

// TestARobotIsRevokedEverywhere within a second, with its tokens, whichever replica does it; also one that has just
// been replaced.
func TestARobotIsRevokedEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, o := shared(), auth.Options{User: "owner", Password: "p"}
		a, b := replica(t, j, o), replica(t, j, o)
		secret := create(t, a, robot("ci", "pull", "**"))
		token := ask(t, b, tokenGET("x", secret, "repository:a:pull"), 200).Token
		accepted := func(g *auth.Guard, ok bool) {
			t.Helper()
			all := ways(t, g, secret)
			all["token"] = second(g.Identify(bearer(token)))
			for way, err := range all {
				if (err == nil) != ok || !ok && !errors.Is(err, auth.ErrUnauthorized) {
					t.Errorf("%s: %v", way, err)
				}
			}
		}
		accepted(a, true)
		accepted(b, true)
		if err := b.RevokeRobot(t.Context(), "ci"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		accepted(b, false)
		accepted(a, false)
		if err := a.RevokeRobot(t.Context(), "ci"); err == nil || !strings.Contains(err.Error(), "does not exist") {
			t.Errorf("revoked twice: %v", err)
		}

		old := create(t, b, robot("ci", "pull", "**"))
		var err error
		if secret, err = a.ReplaceRobot(t.Context(), robot("ci", "pull", "**")); err != nil {
			t.Fatal(err)
		}
		token = ask(t, a, tokenGET("x", secret, "repository:a:pull"), 200).Token
		accepted(b, true)
		secret = old
		if err := second(b.Identify(withLogin("x", old))); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("the one before the replacement: %v", err)
		}
	})
}

// TestOneOfTwoRobotsOfAName is created.
func TestOneOfTwoRobotsOfAName(t *testing.T) { synctest.Test(t, testOneOfTwoRobots) }

func testOneOfTwoRobots(t *testing.T) {
	j, o := shared(), auth.Options{User: "owner", Password: "p"}
	all := []*auth.Guard{replica(t, j, o), replica(t, j, o)}
	for round := range 8 {
		var wg sync.WaitGroup
		var secrets [2]string
		var errs [2]error
		for i, g := range all {
			wg.Go(func() {
				secrets[i], errs[i] = g.CreateRobot(t.Context(), robot(fmt.Sprint("ci", round), "pull", "**"))
			})
		}
		wg.Wait()
		won := 0
		if errs[0] != nil {
			won = 1
		}
		if errs[won] != nil || errs[1-won] == nil || !strings.Contains(errs[1-won].Error(), "already exists") {
			t.Fatal(errs)
		}
		for i := range all {
			if _, err := all[i].Identify(bearer(secrets[won])); err != nil {
				t.Errorf("the robot that was created: %v", err)
			}
		}
		for i := range all {
			wg.Go(func() { // replacements at the same moment: each is made, and one is the last
				secrets[i], errs[i] = all[i].ReplaceRobot(t.Context(), robot(fmt.Sprint("ci", round), "pull", "**"))
			})
		}
		wg.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * lag) // until then a replica accepts its own replacement, though it is not the last
		good := 0
		for _, s := range secrets {
			if _, err := all[0].Identify(bearer(s)); err == nil {
				good++
			}
		}
		if good != 1 {
			t.Errorf("%d of two replacements are valid", good)
		}
	}
}

// TestReplicasThatRotateAtTheSameMoment accept each other's tokens, before and after, and end with one key.
func TestReplicasThatRotateAtTheSameMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, o := shared(), auth.Options{User: "owner", Password: "p", TokenLifetime: 24 * time.Hour}
		all := []*auth.Guard{replica(t, j, o), replica(t, j, o)}
		if all[1].Keys() != 1 {
			t.Errorf("the second replica makes a key although there is one: %d", all[1].Keys())
		}
		var tokens []string
		check := func(when string) {
			t.Helper()
			for _, g := range all {
				for i, token := range tokens {
					if _, err := may(g, bearer(token), "a", auth.Pull); err != nil {
						t.Errorf("%s, token %d: %v", when, i, err)
					}
				}
			}
		}
		issue := func() {
			for _, g := range all {
				tokens = append(tokens, ask(t, g, tokenGET("owner", "p", "repository:a:pull"), 200).Token)
			}
		}
		time.Sleep(30*24*time.Hour - time.Minute)
		issue()
		time.Sleep(time.Minute)
		var wg sync.WaitGroup
		for _, g := range all {
			wg.Go(func() {
				if err := g.RotateKeys(time.Now()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		issue()
		check("after it")
		synctest.Wait()
		first, _ := all[0].Key()
		if second, _ := all[1].Key(); first != second {
			t.Errorf("they sign with %s and %s", first, second)
		}
		time.Sleep(23 * time.Hour)
		tokens = tokens[2:]
		check("while they are valid")
		time.Sleep(25 * time.Hour)
		tokens = nil
		issue()
		for _, g := range all {
			wg.Go(func() {
				if err := g.RotateKeys(time.Now()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		check("after the overlap")
		for _, g := range all {
			synctest.Wait()
			if g.Keys() != 1 {
				t.Errorf("%d keys", g.Keys())
			}
		}
	})
}

// TestAMissThatTheJournalDoesNotConfirm is no refusal: the robot or key may exist. What is known is accepted.
func TestAMissThatTheJournalDoesNotConfirm(t *testing.T) {
	for name, o := range map[string]auth.Options{"with users": {User: "owner", Password: "p"},
		"robots alone": {Anonymous: "pull"}} {
		synctest.Test(t, func(t *testing.T) {
			j := shared()
			a, b := replica(t, j, o), replica(t, j, o)
			j.silent.Store(true)
			for way, err := range ways(t, a, "trow_"+strings.Repeat("A", 52)) {
				if !errors.Is(err, auth.ErrUnavailable) {
					t.Errorf("%s, %s: %v", name, way, err)
				}
			}
			if _, err := b.CreateRobot(t.Context(), robot("ci", "pull", "**")); !errors.Is(err,
				storage.ErrUnavailable) {
				t.Errorf("%s: created: %v", name, err)
			}
			if err := b.RevokeRobot(t.Context(), "ci"); !errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("%s: revoked: %v", name, err)
			}
			j.silent.Store(false)
			time.Sleep(2 * time.Second)
			secret := create(t, a, robot("ci", "pull", "**"))
			token := ask(t, a, tokenGET("x", secret, "repository:a:pull"), 200).Token
			if _, err := may(b, bearer(token), "a", auth.Pull); err != nil {
				t.Error(err)
			}
			j.silent.Store(true)
			for _, r := range []*http.Request{withLogin("x", secret), bearer(secret), bearer(token)} {
				if _, err := b.Identify(r); err != nil {
					t.Errorf("%s: what is known: %v", name, err)
				}
			}
			// A token of an unknown key, with a signature of one that is known.
			_, key := a.Key()
			token = forged(t, "unknown", key)
			if _, err := b.Identify(bearer(token)); !errors.Is(err, auth.ErrUnavailable) {
				t.Errorf("%s: an unknown key: %v", name, err)
			}
			j.silent.Store(false)
			time.Sleep(2 * time.Second)
			if _, err := b.Identify(bearer(token)); !errors.Is(err, auth.ErrUnauthorized) {
				t.Errorf("%s: an unknown key that was confirmed: %v", name, err)
			}
			if len(b.Robots(t.Context())) != 1 {
				t.Error("no robot is listed")
			}
		})
	}
}

// TestAFloodOfUnknownCredentials costs the journal ten questions a second, and a miss costs none with a journal of our
// own. Who leaves does not wait.
func TestAFloodOfUnknownCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := shared()
		g := replica(t, j, auth.Options{User: "owner", Password: "p"})
		_, key := g.Key()
		var refused atomic.Int64
		begin, before := time.Now(), j.heads.Load()
		for i := range 100 {
			go func() {
				for n := 0; time.Since(begin) < 2*time.Second; n++ {
					r := bearer(fmt.Sprintf("trow_%d-%d", i, n))
					if i%2 == 0 {
						r = bearer(forged(t, fmt.Sprintf("k%d-%d", i, n), key))
					}
					if _, err := g.Identify(r); !errors.Is(err, auth.ErrUnauthorized) {
						t.Errorf("%v", err)
					}
					refused.Add(1)
				}
			}()
		}
		time.Sleep(3 * time.Second)
		if n := j.heads.Load() - before; n > 21 || n < 15 || refused.Load() < 1000 {
			t.Errorf("%d questions for %d requests", n, refused.Load())
		}
		// One that comes alone does not wait.
		time.Sleep(time.Second)
		at := time.Now()
		if _, err := g.Identify(bearer("trow_x")); !errors.Is(err, auth.ErrUnauthorized) || time.Since(at) != 0 {
			t.Errorf("after %v: %v", time.Since(at), err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := g.Identify(bearer("trow_x").WithContext(ctx)); !errors.Is(err, context.Canceled) {
			t.Errorf("who has left: %v", err)
		}

		own := &far{Journal: memory.NewJournal()}
		g = replica(t, own, auth.Options{User: "owner", Password: "p"})
		before, at = own.heads.Load(), time.Now()
		for range 100 {
			if _, err := g.Identify(bearer("trow_x")); !errors.Is(err, auth.ErrUnauthorized) {
				t.Error(err)
			}
		}
		if own.heads.Load() != before || time.Since(at) != 0 {
			t.Errorf("a journal of our own is asked %d times, in %v", own.heads.Load()-before, time.Since(at))
		}
	})
}

// TestAnExpiredRobotIsNoMiss: it is known, so that a machine that goes on with it asks for nothing.
func TestAnExpiredRobotIsNoMiss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := shared()
		g := replica(t, j, auth.Options{User: "owner", Password: "p"})
		r := robot("short", "pull", "**")
		r.Expires = time.Now().Add(2 * time.Minute)
		secret := create(t, g, r)
		time.Sleep(3 * time.Minute)
		before := j.heads.Load()
		for way, err := range ways(t, g, secret) {
			if !errors.Is(err, auth.ErrUnauthorized) {
				t.Errorf("%s: %v", way, err)
			}
		}
		if n := j.heads.Load() - before; n != 0 {
			t.Errorf("the journal is asked %d times", n)
		}
	})
}

// TestBeforeTheRecordsAreLoaded robots and tokens are neither accepted nor refused; users are known.
func TestBeforeTheRecordsAreLoaded(t *testing.T) {
	for _, o := range []auth.Options{{User: "owner", Password: "p"}, {Anonymous: "pull"}} {
		g, err := auth.New(o)
		if err != nil {
			t.Fatal(err)
		}
		for way, err := range ways(t, g, "trow_x") {
			if !errors.Is(err, auth.ErrUnavailable) {
				t.Errorf("%s: %v", way, err)
			}
		}
		if o.User == "" {
			if who, err := g.Identify(withLogin("some", "body")); err != nil || !who.Anonymous() {
				t.Errorf("where there are no users: %v", err)
			}
		} else if who, err := g.Identify(withLogin("owner", "p")); err != nil || who.Name != "owner" {
			t.Errorf("the user: %v", err)
		}
		w := httptest.NewRecorder()
		g.ServeToken(w, tokenGET(o.User, o.Password))
		if w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("a token without a key: %d %s", w.Code, w.Body)
		}
		if _, err := g.CreateRobot(t.Context(), robot("ci", "pull", "**")); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("a robot is created: %v", err)
		}
		if len(g.Robots(t.Context())) != 0 {
			t.Error("robots are listed")
		}
	}
}

// TestRecordsThatCannotBeRead count as none, are logged once, and a robot's can be replaced and revoked.
func TestRecordsThatCannotBeRead(t *testing.T) {
	x := storagetest.OpenIndex(t, memory.NewJournal())
	set := func(name, value string) {
		t.Helper()
		if err := x.SetRecord(t.Context(), name, nil, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	zeros := strings.Repeat("0", 64)
	set("auth/robot/a", "{")
	set("auth/robot/b", `{"name":"c","sha256":"`+zeros+`"}`)
	set("auth/robot/d", `{"name":"d","sha256":"`+zeros+`","repositories":["a:b"]}`)
	set("auth/key/x", "{")
	set("auth/key/y", `{"id":"y","seed":"AA=="}`)
	set("auth/key/z", `{"id":"zz","seed":"`+strings.Repeat("A", 43)+`="}`)
	set("auth/other", "of a later version")
	var log bytes.Buffer
	g, err := auth.New(auth.Options{User: "owner", Password: "p", Log: zerolog.New(&log)})
	if err == nil {
		err = g.Load(t.Context(), x, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	if g.Keys() != 1 || len(g.Robots(t.Context())) != 0 {
		t.Errorf("%d keys, %v", g.Keys(), g.Robots(t.Context()))
	}
	set("auth/other2", "a change, after which the records are read again")
	if g.Keys() != 1 {
		t.Errorf("%d keys", g.Keys())
	}
	for _, name := range []string{`robot \"a\"`, `robot \"b\"`, `robot \"d\"`, `tokens \"x\"`, `tokens \"y\"`,
		`tokens \"z\"`} {
		if strings.Count(log.String(), name) != 1 {
			t.Errorf("%s is not logged once:\n%s", name, &log)
		}
	}
	log.Reset()
	secret, err := g.ReplaceRobot(t.Context(), robot("a", "pull", "**"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Identify(withLogin("x", secret)); err != nil {
		t.Error(err)
	}
	if _, err := g.CreateRobot(t.Context(), robot("b", "pull", "**")); err == nil {
		t.Error("a robot whose record cannot be read is overwritten")
	}
	if err := g.RevokeRobot(t.Context(), "b"); err != nil {
		t.Error(err)
	}
	if strings.Contains(log.String(), "robot") {
		t.Errorf("logged again:\n%s", &log)
	}
}

// full is a journal's index on which no change succeeds.
type full struct {
	*storage.Index
	refuse atomic.Bool
	tried  atomic.Int64
}

var errFull = errors.New("no space")

func (f *full) SetRecord(ctx context.Context, name string, old, value []byte) error {
	f.tried.Add(1)
	if f.refuse.Load() {
		return errFull
	}
	return f.Index.SetRecord(ctx, name, old, value)
}

// TestAKeyThatCannotBeRecorded is made when it can, a minute later at most; the server starts.
func TestAKeyThatCannotBeRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		x := &full{Index: storagetest.OpenIndex(t, memory.NewJournal())}
		x.refuse.Store(true)
		g, err := auth.New(auth.Options{User: "owner", Password: "p", Log: zerolog.New(&log)})
		if err == nil {
			err = g.Load(t.Context(), x, nil)
		}
		if err != nil || !strings.Contains(log.String(), "no space") {
			t.Fatalf("%v, %s", err, &log)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- g.Run(ctx) }()
		token := func() int {
			w := httptest.NewRecorder()
			g.ServeToken(w, tokenGET("owner", "p"))
			return w.Code
		}
		if code := token(); code != 503 {
			t.Errorf("a token without a key: %d", code)
		}
		time.Sleep(90 * time.Second)
		x.refuse.Store(false)
		time.Sleep(time.Minute)
		if code := token(); code != 200 {
			t.Errorf("a minute later: %d", code)
		}
		tried := x.tried.Load()
		time.Sleep(29 * 24 * time.Hour)
		if x.tried.Load() != tried {
			t.Errorf("%d changes in a month", x.tried.Load()-tried)
		}
		time.Sleep(25 * time.Hour)
		if g.Keys() != 2 {
			t.Errorf("%d keys after 30 days", g.Keys())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestWhichRecordsAreKeys: those with an ID of at most 64 printable characters, none of them a space.
func TestWhichRecordsAreKeys(t *testing.T) {
	seed := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for id, want := range map[string]bool{"a": true, "!": true, "~": true, strings.Repeat("k", 64): true, "": false,
		strings.Repeat("k", 65): false, "a b": false, "a\t": false, "a\x7f": false, "a\u0080": false} {
		x := storagetest.OpenIndex(t, memory.NewJournal())
		value, err := json.Marshal(map[string]any{"id": id, "made": time.Now(), "seed": seed})
		if err == nil {
			err = x.SetRecord(t.Context(), "auth/key/"+id, nil, value)
		}
		if err != nil {
			t.Fatal(err)
		}
		g, err := auth.New(auth.Options{User: "owner", Password: "p"})
		if err == nil {
			err = g.Load(t.Context(), x, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		if used, _ := g.Key(); (used == id) != want {
			t.Errorf("%q: the key that signs is %q", id, used)
		}
	}
}

// TestAKeyOfTheFutureIsDropped as well, which is sorted after the one that signs: a clock was set back.
func TestAKeyOfTheFutureIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := storagetest.OpenIndex(t, memory.NewJournal())
		seed := base64.StdEncoding.EncodeToString(make([]byte, 32))
		for id, made := range map[string]time.Time{"old": time.Now().Add(-8 * 24 * time.Hour), "signs": time.Now().
			Add(-7 * 24 * time.Hour),
			"future": time.Now().Add(100 * 24 * time.Hour)} {
			value, err := json.Marshal(map[string]any{"id": id, "made": made, "seed": seed})
			if err == nil {
				err = x.SetRecord(t.Context(), "auth/key/"+id, nil, value)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		g, err := auth.New(auth.Options{User: "owner", Password: "p"})
		if err == nil {
			err = g.Load(t.Context(), x, nil)
		}
		if err == nil {
			err = g.RotateKeys(time.Now())
		}
		if id, _ := g.Key(); err != nil || g.Keys() != 1 || id != "signs" {
			t.Errorf("%d keys, %q signs; %v", g.Keys(), id, err)
		}
	})
}
