package cluster_test

import (
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

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"trow/admission/cluster"
	"trow/manifests/kube"
)

// api is an API server as far as reviews go, at the end of a client's transport: what passes is HTTP, on no network.
type api struct {
	mu       sync.Mutex
	tokens   map[string]authenticationv1.TokenReviewStatus
	rules    map[string]bool // user verb namespace name
	reviews  int
	accesses int
	inside   int // how many are being answered, and the most at once
	most     int
	broken   func(*http.Request) (*http.Response, error) // what happens instead
	slow     time.Duration
}

// newAPI knows some tokens.
func newAPI(tokens ...string) *api {
	a := &api{tokens: map[string]authenticationv1.TokenReviewStatus{}, rules: map[string]bool{}}
	for _, token := range tokens {
		a.tokens[token] = authenticated("system:serviceaccount:team:app", cluster.Audience)
	}
	return a
}

func authenticated(user string, audiences ...string) authenticationv1.TokenReviewStatus {
	return authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: audiences, User: authenticationv1.UserInfo{Username: user, UID: "1",
		Groups: []string{"system:serviceaccounts"}, Extra: map[string]authenticationv1.ExtraValue{"authentication.kubernetes.io/pod-name": {"p"}}}}
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
		if err := decode(r.Body, &review); err != nil || !slices.Equal(review.Spec.Audiences, []string{cluster.Audience}) {
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
		review.Status.Allowed = a.rules[strings.Join([]string{review.Spec.User, at.Verb, at.Namespace, at.Name}, " ")] &&
			at.Group == "trow.io" && at.Resource == "repositories" && len(review.Spec.Groups) == 1 && len(review.Spec.Extra) == 1
		answer = review
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(answer)
}

// decode reads an object, in whatever form the client prefers.
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

// counts are the token reviews and the access reviews so far.
func (a *api) counts() (int, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reviews, a.accesses
}

// reviewer asks this API server.
func (a *api) reviewer(t *testing.T) *cluster.Reviewer {
	t.Helper()
	client, err := kube.New(&rest.Config{Host: "https://api.test", Transport: a, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	return cluster.NewReviewer(client, cluster.Audience)
}

// down is an API server that is not there.
func down(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") }

// token is one with these claims, as the text of JSON.
func token(format string, args ...any) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256"}`)) + "." + encode(fmt.Appendf(nil, format, args...)) + "." + encode([]byte("the signature of it"))
}

// lasting is a token for us that lasts from now on.
func lasting(d time.Duration) string {
	return token(`{"aud":[%q],"exp":%d}`, cluster.Audience, time.Now().Add(d).Unix())
}

// wants fails unless the review says so, and tells if a part of the token is in what it says.
func wants(t *testing.T, r *cluster.Reviewer, token, user string, is error, text string) {
	t.Helper()
	got, err := r.Review(t.Context(), token)
	if got.Username != user || !errors.Is(err, is) || err != nil && !strings.Contains(err.Error(), text) {
		t.Errorf("got %q, %v, want %q, %v with %q", got.Username, err, user, is, text)
	}
	for _, part := range strings.Split(token, ".") {
		if err != nil && len(part) > 3 && strings.Contains(err.Error(), part) {
			t.Errorf("the token is in the error: %v", err)
		}
	}
}

const ours = "system:serviceaccount:team:app"

func TestWhoseATokenIs(t *testing.T) {
	good, elsewhere := lasting(time.Hour), token(`{"aud":"https://kubernetes.default.svc"}`)
	deleted, deaf, nameless := lasting(2*time.Hour), lasting(3*time.Hour), lasting(4*time.Hour)
	a := newAPI(good)
	a.tokens[deaf] = authenticated(ours)
	a.tokens[nameless] = authenticated("", cluster.Audience)
	other := lasting(5 * time.Hour)
	a.tokens[other] = authenticated(ours, "elsewhere")
	r := a.reviewer(t)
	user, err := r.Review(t.Context(), good)
	if err != nil || user.Username != ours || user.UID != "1" || len(user.Groups) != 1 || len(user.Extra) != 1 {
		t.Errorf("a good one: %+v, %v", user, err)
	}
	wants(t, r, elsewhere, "", cluster.ErrToken, "--audience=trow")
	wants(t, r, deleted, "", cluster.ErrToken, "deleted")
	wants(t, r, deaf, "", cluster.ErrToken, "audience trow")
	wants(t, r, other, "", cluster.ErrToken, "audience trow")
	wants(t, r, nameless, "", cluster.ErrToken, "no name")
	asked, _ := a.counts()
	for _, row := range []struct{ token, text string }{
		{"", "no JWT"},
		{"opaque", "no JWT"},
		{"sha256~abcdefgh", "no JWT"},
		{"aaaa.bbbb", "no JWT"},
		{"aaaa.!!!!.cccc", "no JWT"},
		{token(`[]`), "no JWT"},
		{token(`{"aud":1}`), "no JWT"},
		{token(`{"exp":"soon"}`), "no JWT"},
		{token(`{"aud":[1]}`), "no JWT"},
		{good + ".more", "no JWT"},
		{token(`{"x":%q}`, strings.Repeat("x", 16<<10)), "more than 16384 bytes"},
		{token(`{"exp":%d}`, time.Now().Unix()-1), "expired"},
		{token(`{"exp":-1e300}`), "expired"},
		{token(`{"exp":1e300}`), "expired"}, // it overflows
	} {
		wants(t, r, row.token, "", cluster.ErrToken, row.text)
	}
	if now, _ := a.counts(); now != asked {
		t.Errorf("the API server was asked %d times about what can be no token", now-asked)
	}
}

// TestHowLongAnIdentityHolds: for a minute, and never longer than the token.
func TestHowLongAnIdentityHolds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		long, short, endless := lasting(time.Hour), lasting(90*time.Second), token(`{"aud":"trow"}`)
		a := newAPI(long, short, endless)
		r := a.reviewer(t)
		asks := func(when string, want int, tokens ...string) {
			t.Helper()
			for _, token := range tokens {
				before, _ := a.counts()
				wants(t, r, token, ours, nil, "")
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
		wants(t, r, short, "", cluster.ErrToken, "expired")
	})
}

func TestARefusalHoldsTenSeconds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		token := lasting(time.Hour)
		a := newAPI()
		r := a.reviewer(t)
		for range 3 {
			wants(t, r, token, "", cluster.ErrToken, "does not know")
		}
		if n, _ := a.counts(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		a.set(func() { a.tokens[token] = authenticated(ours, cluster.Audience) })
		time.Sleep(11 * time.Second)
		wants(t, r, token, ours, nil, "")
		a.set(func() { delete(a.tokens, token) }) // revoked
		time.Sleep(6 * time.Minute)
		wants(t, r, token, "", cluster.ErrToken, "deleted")
		a.set(func() { a.broken = down })
		time.Sleep(11 * time.Second)
		wants(t, r, token, "", cluster.ErrUnavailable, "connection refused") // and not what was before
	})
}

// TestWithoutTheAPIServer: who is known goes on, for an hour and within the token's life; others have to wait.
func TestWithoutTheAPIServer(t *testing.T) {
	bubble(t, func(t *testing.T) {
		long, short := lasting(24*time.Hour), lasting(20*time.Minute)
		a := newAPI(long, short)
		r := a.reviewer(t)
		wants(t, r, long, ours, nil, "")
		wants(t, r, short, ours, nil, "")
		begin := time.Now()
		a.set(func() { a.broken = down })
		stranger := lasting(time.Hour)
		for time.Since(begin) < 19*time.Minute {
			wants(t, r, long, ours, nil, "")
			wants(t, r, short, ours, nil, "")
			wants(t, r, stranger, "", cluster.ErrUnavailable, "connection refused")
			time.Sleep(time.Minute)
		}
		time.Sleep(2 * time.Minute)
		wants(t, r, short, "", cluster.ErrToken, "expired")
		time.Sleep(38 * time.Minute)
		wants(t, r, long, ours, nil, "")
		time.Sleep(2 * time.Minute)
		wants(t, r, long, "", cluster.ErrUnavailable, "connection refused")
		a.set(func() { a.broken = nil })
		wants(t, r, long, ours, nil, "")
	})
}

// TestAnAPIServerThatHangs: nobody waits longer than five seconds, and who is known waits once in a while.
func TestAnAPIServerThatHangs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		known := lasting(time.Hour)
		a := newAPI(known)
		r := a.reviewer(t)
		wants(t, r, known, ours, nil, "")
		time.Sleep(6 * time.Minute)
		a.set(func() { a.slow = time.Hour })
		took := func(token, user string, is error) time.Duration {
			begin := time.Now()
			wants(t, r, token, user, is, "")
			return time.Since(begin)
		}
		if d := took(lasting(30*time.Minute), "", cluster.ErrUnavailable); d != 5*time.Second {
			t.Errorf("somebody new waits for %s", d)
		}
		for range 2 {
			if d := took(known, ours, nil); d != 5*time.Second {
				t.Errorf("it is asked again for %s", d)
			}
			if d := took(known, ours, nil); d != 0 {
				t.Errorf("somebody known waits for %s although it is known to hang", d)
			}
			time.Sleep(6 * time.Second)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err := r.Review(ctx, lasting(31*time.Minute)); !errors.Is(err, cluster.ErrUnavailable) || time.Since(begin) != time.Second {
			t.Errorf("a client that gives up gets %v after %s", err, time.Since(begin))
		}
		time.Sleep(10 * time.Second) // the question ends by itself
	})
}

// TestOneQuestionForAllWhoWait also when the one who asked first gives up.
func TestOneQuestionForAllWhoWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		token := lasting(time.Hour)
		a := newAPI(token)
		a.slow = time.Second
		r := a.reviewer(t)
		first, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := r.Review(first, token); !errors.Is(err, cluster.ErrUnavailable) {
				t.Errorf("the one who gave up: %v", err)
			}
		})
		synctest.Wait()
		for range 50 {
			wg.Go(func() { wants(t, r, token, ours, nil, "") })
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		if n, _ := a.counts(); n != 1 {
			t.Errorf("asked %d times", n)
		}
	})
}

// TestMadeUpTokens: they are asked about a few at a time, those too many are refused at once, and neither these nor
// the memory of them is in the way of who is known.
func TestMadeUpTokens(t *testing.T) {
	bubble(t, func(t *testing.T) {
		known := lasting(2 * time.Hour)
		a := newAPI(known)
		r := a.reviewer(t)
		wants(t, r, known, ours, nil, "")
		for i := range 5000 { // more than are kept
			wants(t, r, token(`{"aud":"trow","jti":"%d"}`, i), "", cluster.ErrToken, "")
		}
		before, _ := a.counts()
		wants(t, r, known, ours, nil, "")
		wants(t, r, token(`{"aud":"trow","jti":"4999"}`), "", cluster.ErrToken, "")
		if after, _ := a.counts(); after != before {
			t.Errorf("they pushed out who is known, or are not kept themselves: %d more", after-before)
		}
		wants(t, r, token(`{"aud":"trow","jti":"0"}`), "", cluster.ErrToken, "")
		if after, _ := a.counts(); after != before+1 {
			t.Error("all of them are kept: there is no bound")
		}

		time.Sleep(6 * time.Minute) // who is known has to be asked about
		a.set(func() { a.slow, a.most = 900*time.Millisecond, 0 })
		var wg sync.WaitGroup
		var mu sync.Mutex
		asked, busy := 0, 0
		for i := range 1000 {
			wg.Go(func() {
				begin := time.Now()
				_, err := r.Review(t.Context(), token(`{"aud":"trow","jti":"again %d"}`, i))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case errors.Is(err, cluster.ErrToken):
					asked++
				case errors.Is(err, cluster.ErrUnavailable) && strings.Contains(err.Error(), "too many") && time.Since(begin) == 0:
					busy++
				case !errors.Is(err, cluster.ErrUnavailable):
					t.Errorf("%v", err)
				}
				if time.Since(begin) > 5*time.Second {
					t.Errorf("waited for %s", time.Since(begin))
				}
			})
		}
		synctest.Wait()
		begin := time.Now()
		wants(t, r, known, ours, nil, "")
		if time.Since(begin) != 900*time.Millisecond {
			t.Errorf("who is known waits for %s", time.Since(begin))
		}
		wg.Wait()
		synctest.Wait()
		if a.most != 9 || asked != 40 || busy != 1000-256-8 {
			t.Errorf("%d at once, %d asked about, %d refused at once", a.most, asked, busy)
		}
	})
}

// TestWhatTheAPIServerRepeats of a question is not passed on.
func TestWhatTheAPIServerRepeats(t *testing.T) {
	secret := lasting(time.Hour)
	for name, row := range map[string]struct {
		broken func(*http.Request) (*http.Response, error)
		text   string
	}{
		"a status":  {respond(422, "application/json", status(422, metav1.StatusReasonInvalid, secret)), "422 Invalid"},
		"no status": {respond(500, "text/plain", "what is "+secret+"?"), "500 InternalError"},
		"no JSON":   {respond(201, "application/json", "{"+secret), ""},
		"an error":  {func(*http.Request) (*http.Response, error) { return nil, errors.New("dial " + secret) }, "dial (the token)"},
		"forbidden": {respond(403, "application/json", status(403, metav1.StatusReasonForbidden, secret)), "apply the manifest"},
		"unknown":   {respond(401, "application/json", status(401, metav1.StatusReasonUnauthorized, secret)), "401 Unauthorized"},
		"nothing":   {respond(201, "application/json", ""), ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(secret)
			a.broken = row.broken
			wants(t, a.reviewer(t), secret, "", cluster.ErrUnavailable, row.text)
		})
	}
}

// respond answers everything with this.
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
	b, err := json.Marshal(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: code, Reason: reason, Message: message})
	if err != nil {
		panic(err) // text encodes
	}
	return string(b)
}

func TestWhoMayDoWhat(t *testing.T) {
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
			if why := may("update", "team", "back/end", false, nil); why != ours+` may not update repositories.trow.io "back/end" in namespace "team"` {
				t.Errorf("the reason: %s", why)
			}
			may("get", "team", "back", false, nil)
			if why := may("get", "", "team", false, nil); why != ours+` may not get repositories.trow.io "team"` {
				t.Errorf("the reason: %s", why)
			}
		}
		asked(4)
		user.Groups = append(user.Groups, "another") // somebody else, for the rules
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

// TestReviewsOnANetwork: the same by TLS, to a server that goes away.
func TestReviewsOnANetwork(t *testing.T) {
	known := lasting(time.Hour)
	server := httptest.NewTLSServer(newAPI(known))
	defer server.Close()
	client, err := kube.New(&rest.Config{Host: server.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	r := cluster.NewReviewer(client, cluster.Audience)
	wants(t, r, known, ours, nil, "")
	wants(t, r, lasting(2*time.Hour), "", cluster.ErrToken, "does not know")
	server.Close()
	wants(t, r, known, ours, nil, "")
	wants(t, r, lasting(3*time.Hour), "", cluster.ErrUnavailable, "")
}
