package cluster_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"trow/admission/cluster"
	"trow/manifests/kube"
)

// api is an API server that knows reviews. It is the transport of a client, so that requests are HTTP, but use no
// network.
type api struct {
	mu       sync.Mutex
	tokens   map[string]authenticationv1.TokenReviewStatus
	rules    map[string]bool // user verb namespace name
	reviews  int
	accesses int
	inside   int                                         // requests in progress
	most     int                                         // the highest number of these
	broken   func(*http.Request) (*http.Response, error) // replaces the answer
	slow     time.Duration
}

// newAPI accepts these tokens.
func newAPI(tokens ...string) *api {
	a := &api{tokens: map[string]authenticationv1.TokenReviewStatus{}, rules: map[string]bool{}}
	for _, token := range tokens {
		a.tokens[token] = authenticated("system:serviceaccount:team:app", kube.Audience)
	}
	return a
}

func authenticated(user string, audiences ...string) authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: audiences,
		User: authenticationv1.UserInfo{Username: user, UID: "1", Groups: []string{"system:serviceaccounts"},
			Extra: map[string]authenticationv1.ExtraValue{"authentication.kubernetes.io/pod-name": {"p"}}}}
}

// RoundTrip implements http.RoundTripper.
func (a *api) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	a.inside++
	a.most = max(a.most, a.inside)
	broken, slow := a.broken, a.slow
	a.mu.Unlock()
	defer func() { a.mu.Lock(); a.inside--; a.mu.Unlock() }()
	select {
	case <-time.After(slow):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if broken != nil {
		return broken(r)
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	return w.Result(), nil
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var answer any
	switch r.Method + " " + r.URL.Path {
	case "POST /apis/authentication.k8s.io/v1/tokenreviews":
		var review authenticationv1.TokenReview
		if err := decode(r.Body, &review); err != nil || !slices.Equal(review.Spec.Audiences, []string{kube.Audience}) {
			http.Error(w, fmt.Sprintf("%v, %v", err, review.Spec.Audiences), http.StatusBadRequest)
			return
		}
		a.reviews++
		review.Status = a.tokens[review.Spec.Token]
		answer = review
	case "POST /apis/authorization.k8s.io/v1/subjectaccessreviews":
		var review authorizationv1.SubjectAccessReview
		if err := decode(r.Body, &review); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		a.accesses++
		at := review.Spec.ResourceAttributes
		review.Status.Allowed = a.rules[strings.Join([]string{review.Spec.User, at.Verb, at.Namespace, at.Name},
			" ")] &&
			at.Group == "trow.io" && at.Resource == "repositories" && len(review.Spec.Groups) == 1 &&
			len(review.Spec.Extra) == 1
		answer = review
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(answer)
}

// decode reads an object, in any form that the client may choose.
func decode(r io.Reader, into runtime.Object) error {
	b, err := io.ReadAll(r)
	if err == nil {
		_, _, err = scheme.Codecs.UniversalDeserializer().Decode(b, nil, into)
	}
	return err
}

// set changes what the API server does.
func (a *api) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

// counts returns the numbers of token reviews and access reviews so far.
func (a *api) counts() (int, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reviews, a.accesses
}

// reviewer returns a Reviewer that asks this API server.
func (a *api) reviewer(t *testing.T) *cluster.Reviewer {
	t.Helper()
	return a.logging(t, zerolog.Nop())
}

func (a *api) logging(t *testing.T, log zerolog.Logger) *cluster.Reviewer {
	t.Helper()
	client, err := kube.New(&rest.Config{Host: "https://api.test", Transport: a, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return cluster.NewReviewer(client, kube.Audience, log)
}

// down is an API server that cannot be reached.
func down(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") }

// token returns a token with these claims, which are JSON.
func token(format string, args ...any) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256"}`)) + "." + encode(fmt.Appendf(nil, format, args...)) + "." +
		encode([]byte("the signature of it"))
}

// lasting returns a token for our audience that expires after d.
func lasting(d time.Duration) string {
	return token(`{"aud":[%q],"exp":%d}`, kube.Audience, time.Now().Add(d).Unix())
}

// outcome is the result of a review.
type outcome int

const (
	accepted outcome = iota
	refused
	unavailable
)

func (o outcome) String() string { return [...]string{"accepted", "refused", "unavailable"}[o] }

// review returns the result of a review, with the name of the token's owner or the reason.
func review(ctx context.Context, r *cluster.Reviewer, token string) (result outcome, user, reason string) {
	got, ok, why, err := r.Review(ctx, token, nil)
	switch {
	case errors.Is(err, cluster.ErrUnavailable) && !ok && why == "":
		return unavailable, got.Username, err.Error()
	case err == nil && ok && why == "":
		return accepted, got.Username, ""
	case err == nil && !ok && why != "":
		return refused, got.Username, why
	}
	panic(fmt.Sprintf("contradiction: %v, %q, %v", ok, why, err))
}

// wants fails unless a review has this result, with this text in the reason and no part of the token.
func wants(t *testing.T, r *cluster.Reviewer, token, user string, want outcome, text string) {
	t.Helper()
	got, name, reason := review(t.Context(), r, token)
	if name != user || got != want || !strings.Contains(reason, text) {
		t.Errorf("got %q, %v: %s; want %q, %v with %q", name, got, reason, user, want, text)
	}
	for _, part := range strings.Split(token, ".") {
		if len(part) > 3 && strings.Contains(reason, part) {
			t.Errorf("the token is in the reason: %s", reason)
		}
	}
}

const ours = "system:serviceaccount:team:app"

func TestReview(t *testing.T) {
	good, elsewhere := lasting(time.Hour), token(`{"aud":"https://kubernetes.default.svc"}`)
	deleted, deaf, nameless := lasting(2*time.Hour), lasting(3*time.Hour), lasting(4*time.Hour)
	a := newAPI(good)
	a.tokens[deaf] = authenticated(ours)
	a.tokens[nameless] = authenticated("", kube.Audience)
	other := lasting(5 * time.Hour)
	a.tokens[other] = authenticated(ours, "elsewhere")
	r := a.reviewer(t)
	user, ok, why, err := r.Review(t.Context(), good, nil)
	if !ok || why != "" || err != nil || user.Username != ours || user.UID != "1" || len(user.Groups) != 1 ||
		len(user.Extra) != 1 {
		t.Errorf("a good token: %+v, %v, %q, %v", user, ok, why, err)
	}
	wants(t, r, elsewhere, "", refused, "--audience=trow")
	wants(t, r, deleted, "", refused, "deleted")
	wants(t, r, deaf, "", refused, "audience trow")
	wants(t, r, other, "", refused, "audience trow")
	wants(t, r, nameless, "", refused, "no name")
	asked, _ := a.counts()
	for _, row := range []struct{ token, text string }{
		{"", "not a JWT"},
		{"opaque", "not a JWT"},
		{token(`{"aud":"https://kubernetes.default.svc","sub":"x"}`), "--audience=trow"},
		{token(`{"aud":["a","b"]}`), "--audience=trow"},
		{"sha256~abcdefgh", "not a JWT"},
		{"aaaa.bbbb", "not a JWT"},
		{"aaaa.!!!!.cccc", "not a JWT"},
		{token(`[]`), "not a JWT"},
		{token(`{"aud":1}`), "not a JWT"},
		{token(`{"exp":"soon"}`), "not a JWT"},
		{token(`{"aud":[1]}`), "not a JWT"},
		{good + ".more", "not a JWT"},
		{token(`{"x":%q}`, strings.Repeat("x", 16<<10)), "more than 16384 bytes"},
		{token(`{"exp":%d}`, time.Now().Unix()-1), "expired"},
		{token(`{"exp":-1e300}`), "expired"},
		{token(`{"exp":1e300}`), "expired"}, // it overflows
	} {
		wants(t, r, row.token, "", refused, row.text)
	}
	if now, _ := a.counts(); now != asked {
		t.Errorf("the API server was asked %d times about tokens that are invalid in any case", now-asked)
	}
}

// TestLifeOfAnIdentity is a minute, and never longer than that of the token.
func TestLifeOfAnIdentity(t *testing.T) {
	bubble(t, func(t *testing.T) {
		long, short, endless := lasting(time.Hour), lasting(90*time.Second), token(`{"aud":"trow"}`)
		a := newAPI(long, short, endless)
		r := a.reviewer(t)
		asks := func(when string, want int, tokens ...string) {
			t.Helper()
			for _, token := range tokens {
				before, _ := a.counts()
				wants(t, r, token, ours, accepted, "")
				if after, _ := a.counts(); after-before != want {
					t.Errorf("%s: asked %d times, want %d", when, after-before, want)
				}
			}
		}
		asks("at first", 1, long, short, endless)
		asks("again", 0, long, short, endless)
		time.Sleep(59 * time.Second)
		asks("within a minute", 0, long, short, endless)
		time.Sleep(2 * time.Second)
		asks("after a minute", 1, long, short, endless)
		a.set(func() { a.broken = down })
		time.Sleep(28 * time.Second)
		asks("before its end", 0, short)
		time.Sleep(2 * time.Second)
		wants(t, r, short, "", refused, "expired")
	})
}

func TestLifeOfARefusal(t *testing.T) {
	bubble(t, func(t *testing.T) {
		token := lasting(time.Hour)
		a := newAPI()
		r := a.reviewer(t)
		for range 3 {
			wants(t, r, token, "", refused, "does not know")
		}
		if n, _ := a.counts(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		a.set(func() { a.tokens[token] = authenticated(ours, kube.Audience) })
		time.Sleep(11 * time.Second)
		wants(t, r, token, ours, accepted, "")
		a.set(func() { delete(a.tokens, token) }) // revoked
		time.Sleep(6 * time.Minute)
		wants(t, r, token, "", refused, "deleted")
		a.set(func() { a.broken = down })
		time.Sleep(11 * time.Second)
		wants(t, r, token, "", unavailable, "connection refused") // and not the answer from before the revocation
	})
}

// TestWithoutTheAPIServer checks that reviewed tokens are accepted for an hour, within their life, and no others.
func TestWithoutTheAPIServer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		long, short := lasting(24*time.Hour), lasting(20*time.Minute)
		a := newAPI(long, short)
		r := a.reviewer(t)
		wants(t, r, long, ours, accepted, "")
		wants(t, r, short, ours, accepted, "")
		begin := time.Now()
		a.set(func() { a.broken = down })
		stranger := lasting(time.Hour)
		for time.Since(begin) < 19*time.Minute {
			wants(t, r, long, ours, accepted, "")
			wants(t, r, short, ours, accepted, "")
			wants(t, r, stranger, "", unavailable, "connection refused")
			time.Sleep(time.Minute)
		}
		time.Sleep(2 * time.Minute)
		wants(t, r, short, "", refused, "expired")
		time.Sleep(38 * time.Minute)
		wants(t, r, long, ours, accepted, "")
		time.Sleep(2 * time.Minute)
		wants(t, r, long, "", unavailable, "connection refused")
		a.set(func() { a.broken = nil })
		wants(t, r, long, ours, accepted, "")
	})
}

// TestAnAPIServerThatHangs checks that no review takes longer than five seconds, and that one of a reviewed token waits
// only once in five seconds.
func TestAnAPIServerThatHangs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		known := lasting(time.Hour)
		a := newAPI(known)
		r := a.reviewer(t)
		wants(t, r, known, ours, accepted, "")
		time.Sleep(6 * time.Minute)
		a.set(func() { a.slow = time.Hour })
		took := func(token, user string, is outcome) time.Duration {
			begin := time.Now()
			wants(t, r, token, user, is, "")
			return time.Since(begin)
		}
		if d := took(lasting(30*time.Minute), "", unavailable); d != 5*time.Second {
			t.Errorf("a new token waits for %s", d)
		}
		for range 2 {
			if d := took(known, ours, accepted); d != 5*time.Second {
				t.Errorf("a known token waits for %s, want the time limit of one question", d)
			}
			if d := took(known, ours, accepted); d != 0 {
				t.Errorf("a known token waits for %s although the API server is known to hang", d)
			}
			time.Sleep(6 * time.Second)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		got, _, reason := review(ctx, r, lasting(31*time.Minute))
		if got != unavailable || time.Since(begin) != time.Second {
			t.Errorf("a client that gives up gets %v, %s, after %s", got, reason, time.Since(begin))
		}
		time.Sleep(10 * time.Second) // the question ends on its own
	})
}

// TestConcurrentReviewsShareAQuestion also when the caller that asked first gives up.
func TestConcurrentReviewsShareAQuestion(t *testing.T) {
	bubble(t, func(t *testing.T) {
		token := lasting(time.Hour)
		a := newAPI(token)
		a.slow = time.Second
		r := a.reviewer(t)
		first, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if got, _, reason := review(first, r, token); got != unavailable {
				t.Errorf("the caller that gave up: %v, %s", got, reason)
			}
		})
		synctest.Wait()
		for range 50 {
			wg.Go(func() { wants(t, r, token, ours, accepted, "") })
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		if n, _ := a.counts(); n != 1 {
			t.Errorf("asked %d times", n)
		}
	})
}

// TestMadeUpTokens checks that only a few are reviewed at a time, that the others fail at once, and that neither these
// questions nor their answers affect known tokens.
func TestMadeUpTokens(t *testing.T) {
	bubble(t, func(t *testing.T) {
		known := lasting(2 * time.Hour)
		a := newAPI(known)
		r := a.reviewer(t)
		wants(t, r, known, ours, accepted, "")
		for i := range 5000 { // more than the cache holds
			wants(t, r, token(`{"aud":"trow","jti":"%d"}`, i), "", refused, "")
		}
		before, _ := a.counts()
		wants(t, r, known, ours, accepted, "")
		wants(t, r, token(`{"aud":"trow","jti":"4999"}`), "", refused, "")
		if after, _ := a.counts(); after != before {
			t.Errorf("made-up tokens have evicted a known one, or are not cached: %d more questions", after-before)
		}
		wants(t, r, token(`{"aud":"trow","jti":"0"}`), "", refused, "")
		if after, _ := a.counts(); after != before+1 {
			t.Error("the cache has no bound")
		}

		time.Sleep(6 * time.Minute) // the known token has to be reviewed again
		a.set(func() { a.slow, a.most = 900*time.Millisecond, 0 })
		var wg sync.WaitGroup
		var mu sync.Mutex
		asked, busy := 0, 0
		for i := range 1000 {
			wg.Go(func() {
				begin := time.Now()
				got, _, reason := review(t.Context(), r, token(`{"aud":"trow","jti":"again %d"}`, i))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case got == refused:
					asked++
				case got == unavailable && strings.Contains(reason, "too many") && time.Since(begin) == 0:
					busy++
				case got != unavailable:
					t.Errorf("%v", got)
				}
				if time.Since(begin) > 5*time.Second {
					t.Errorf("waited for %s", time.Since(begin))
				}
			})
		}
		synctest.Wait()
		begin := time.Now()
		wants(t, r, known, ours, accepted, "")
		if time.Since(begin) != 900*time.Millisecond {
			t.Errorf("the known token waits for %s", time.Since(begin))
		}
		wg.Wait()
		synctest.Wait()
		if a.most != 9 || asked != 40 || busy != 1000-256-8 {
			t.Errorf("%d at once, %d reviewed, %d failed at once", a.most, asked, busy)
		}
	})
}

// TestWhatTheAPIServerRepeats of a question is not passed on, because it may hold the token.
func TestWhatTheAPIServerRepeats(t *testing.T) {
	secret := lasting(time.Hour)
	for name, row := range map[string]struct {
		broken func(*http.Request) (*http.Response, error)
		text   string
	}{
		"a status":  {respond(422, "application/json", status(422, metav1.StatusReasonInvalid, secret)), "422 Invalid"},
		"no status": {respond(500, "text/plain", "what is "+secret+"?"), "500 InternalError"},
		"no JSON":   {respond(201, "application/json", "{"+secret), ""},
		"an error":  {fails(errors.New("dial " + secret)), "dial (the token)"},
		"forbidden": {respond(403, "application/json", status(403, "Forbidden", secret)), "apply the manifest"},
		"unknown":   {respond(401, "application/json", status(401, "Unauthorized", secret)), "401 Unauthorized"},
		"nothing":   {respond(201, "application/json", ""), ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(secret)
			a.broken = row.broken
			wants(t, a.reviewer(t), secret, "", unavailable, row.text)
		})
	}
}

func fails(err error) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

// respond answers each request in this way.
func respond(code int, mediaType, body string) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		w.Header().Set("Content-Type", mediaType)
		w.WriteHeader(code)
		_, _ = w.WriteString(body)
		return w.Result(), nil
	}
}

func status(code int32, reason metav1.StatusReason, message string) string {
	b, err := json.Marshal(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status: "Failure", Code: code, Reason: reason, Message: message})
	if err != nil {
		panic(err) // impossible: strings can be encoded
	}
	return string(b)
}

func TestAccess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a := newAPI()
		a.rules[ours+" get team back/end"] = true
		r := a.reviewer(t)
		user := authenticated(ours, "trow").User
		may := func(verb, namespace, repository string, want bool, is error) string {
			t.Helper()
			allowed, reason, err := r.Access(t.Context(), user, verb, namespace, repository)
			if allowed != want || !errors.Is(err, is) {
				t.Errorf("%s %s: %v, %q, %v", verb, repository, allowed, reason, err)
			}
			return reason
		}
		asked := func(want int) {
			t.Helper()
			if _, n := a.counts(); n != want {
				t.Errorf("asked %d times, want %d", n, want)
			}
		}
		for range 2 {
			may("get", "team", "back/end", true, nil)
			want := ours + ` may not update repositories.trow.io "back/end" in namespace "team"`
			if why := may("update", "team", "back/end", false, nil); why != want {
				t.Errorf("the reason: %s", why)
			}
			may("get", "team", "back", false, nil)
			if why := may("get", "", "team", false, nil); why != ours+` may not get repositories.trow.io "team"` {
				t.Errorf("the reason: %s", why)
			}
		}
		asked(4)
		user.Groups = append(user.Groups, "another") // another identity, for the rules
		may("get", "team", "back/end", false, nil)
		asked(5)
		user.Groups = user.Groups[:1]
		time.Sleep(29 * time.Second)
		may("get", "team", "back/end", true, nil)
		asked(5)
		may("update", "team", "back/end", false, nil)
		asked(6)
		a.set(func() { a.broken = down })
		time.Sleep(50 * time.Minute)
		may("get", "team", "back/end", true, nil)
		may("update", "team", "back/end", false, cluster.ErrUnavailable)
		time.Sleep(11 * time.Minute)
		may("get", "team", "back/end", false, cluster.ErrUnavailable)
		a.set(func() { a.broken = nil; clear(a.rules) })
		may("get", "team", "back/end", false, nil)
	})
}

// TestReviewsOnANetwork uses TLS, and a server that goes away.
func TestReviewsOnANetwork(t *testing.T) {
	known := lasting(time.Hour)
	server := httptest.NewTLSServer(newAPI(known))
	defer server.Close()
	client, err := kube.New(&rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	r := cluster.NewReviewer(client, kube.Audience, zerolog.Nop())
	wants(t, r, known, ours, accepted, "")
	wants(t, r, lasting(2*time.Hour), "", refused, "does not know")
	server.Close()
	wants(t, r, known, ours, accepted, "")
	wants(t, r, lasting(3*time.Hour), "", unavailable, "")
}

// TestADeletedAccount is believed for a minute from when the question was sent, however slow the answer was.
func TestADeletedAccount(t *testing.T) {
	bubble(t, func(t *testing.T) {
		token := lasting(time.Hour)
		a := newAPI(token)
		a.slow = 4 * time.Second
		r := a.reviewer(t)
		begin := time.Now()
		wants(t, r, token, ours, accepted, "")
		a.set(func() { delete(a.tokens, token); a.slow = 0 })
		time.Sleep(time.Minute - time.Since(begin) - time.Millisecond)
		wants(t, r, token, ours, accepted, "")
		time.Sleep(time.Millisecond)
		wants(t, r, token, "", refused, "deleted")
		// The answer before the deletion must not come back when the API server goes down.
		a.set(func() { a.broken = down })
		time.Sleep(11 * time.Second)
		wants(t, r, token, "", unavailable, "")
	})
}

// TestWhatIsLogged is each refusal once in ten seconds, and each failure once in five, without the token.
func TestWhatIsLogged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		made, expired := lasting(time.Hour), lasting(-time.Hour)
		a := newAPI()
		var log bytes.Buffer
		r := a.logging(t, zerolog.New(&log))
		lines := func(want ...string) {
			t.Helper()
			got := strings.Split(strings.TrimSpace(log.String()), "\n")
			if len(got) != len(want) {
				t.Fatalf("logged %d lines, want %d: %s", len(got), len(want), log.String())
			}
			for i, line := range got {
				if !strings.Contains(line, want[i]) || !strings.Contains(line, `"error":"`) {
					t.Errorf("logged %s, want %q", line, want[i])
				}
			}
			if strings.Contains(log.String(), strings.Split(made, ".")[1]) {
				t.Errorf("the token is in the log: %s", log.String())
			}
			log.Reset()
		}
		for range 3 {
			wants(t, r, made, "", refused, "does not know")
			wants(t, r, expired, "", refused, "expired")
		}
		const message = `"message":"ServiceAccount token refused"`
		lines(message, message)
		time.Sleep(11 * time.Second)
		wants(t, r, expired, "", refused, "expired")
		lines(message)

		a.set(func() { a.broken = down })
		user := authenticated(ours, "trow").User
		for range 3 {
			wants(t, r, made, "", unavailable, "refused")
			if _, _, err := r.Access(t.Context(), user, "get", "team", "app"); !errors.Is(err, cluster.ErrUnavailable) {
				t.Errorf("access: %v", err)
			}
		}
		lines(`"message":"cannot review token"`, `"message":"cannot review access"`)
	})
}
