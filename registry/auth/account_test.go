package auth_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"

	"trow/registry/auth"
)

// info is an account as the Kubernetes API describes it.
func info(who *auth.Identity) authenticationv1.UserInfo {
	return authenticationv1.UserInfo{Username: who.Name, Groups: who.Groups}
}

// reviewer is a Kubernetes API that knows the tokens of team-a's ci. It accepts no token if why is set.
type reviewer struct {
	asked atomic.Int64
	why   string
	err   error
	user  authenticationv1.UserInfo

	slow       string // in a token's claims: its review waits for hold
	hold, held chan struct{}
}

// turn is what a Reviewer calls before it asks about a token.
type turn = func(context.Context) (done func(bool, error), err error)

func (r *reviewer) Review(_ context.Context, token string, _ turn) (authenticationv1.UserInfo, bool, string, error) {
	r.asked.Add(1)
	if claims, _ := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1]); r.slow != "" &&
		strings.Contains(string(claims), r.slow) {
		r.held <- struct{}{}
		<-r.hold
	}
	if r.err != nil || r.why != "" {
		return authenticationv1.UserInfo{}, false, r.why, r.err
	}
	if r.user.Username != "" {
		return r.user, true, "", nil
	}
	return info(account("team-a", "ci")), true, "", nil
}

// clusterToken returns a token that looks like one of a cluster. Only the cluster itself can see that it is not.
func clusterToken(claims string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256"}`)) + "." + encode([]byte(claims)) + "." + encode([]byte("signature"))
}

func TestTokensOfTheCluster(t *testing.T) {
	r := &reviewer{}
	g := guard(t, auth.Options{User: "u", Password: "p", Reviewer: r})
	token := clusterToken(`{"iss":"https://kubernetes.default.svc","sub":"x"}`)
	for range 3 {
		for _, req := range []struct{ user, password string }{{"serviceaccount", token}, {"", token}} {
			if user, err := may(g, withLogin(req.user, req.password), "a",
				auth.Pull); user != "system:serviceaccount:team-a:ci" || err != nil {
				t.Errorf("as a password of %q: %q, %v", req.user, user, err)
			}
		}
		if user, err := may(g, request("Authorization", "Bearer "+token), "a",
			auth.Pull); user != "system:serviceaccount:team-a:ci" || err != nil {
			t.Errorf("as a bearer: %q, %v", user, err)
		}
	}
	asked := r.asked.Load()
	// The API is not asked about what cannot be a token of a cluster.
	for _, none := range []string{"a.b", "a.b.c", "a.b.c.d", clusterToken(`{"iss":"trow"}`), clusterToken(`[]`),
		clusterToken(`"x"`), clusterToken(`{"iss":1}`)} {
		if _, err := may(g, withLogin("x", none), "a", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("%s: %v", none, err)
		}
		if _, err := may(g, request("Authorization", "Bearer "+none), "a", auth.Pull); !errors.Is(err,
			auth.ErrUnauthorized) {
			t.Errorf("%s: %v", none, err)
		}
	}
	if n := r.asked.Load(); n != asked {
		t.Errorf("the API was asked about tokens of another form, %d times", n-asked)
	}
}

func TestNamesThatTheClusterMustNotVouchFor(t *testing.T) {
	for _, name := range []string{"", "robot:ci"} {
		r := &reviewer{user: authenticationv1.UserInfo{Username: name, Groups: []string{"x"}}}
		if name == "" {
			r.why = "unknown"
		}
		g := guard(t, auth.Options{User: "u", Password: "p", Reviewer: r})
		if _, err := may(g, withLogin("x", clusterToken(`{}`)), "a", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("%q: %v", name, err)
		}
	}
	// A user of the cluster with the owner's name is not the owner.
	g := guard(t, auth.Options{User: "u", Password: "p",
		Reviewer: &reviewer{user: authenticationv1.UserInfo{Username: "u"}}})
	if _, err := may(g, withLogin("x", clusterToken(`{}`)), "a", auth.Push); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("%v", err)
	}
}

// TestTheReviewerIsAskedAtEachCall: the Reviewer caches its answers. A second cache here would double the time for
// which a deleted ServiceAccount can log in.
func TestTheReviewerIsAskedAtEachCall(t *testing.T) {
	r := &reviewer{}
	g := guard(t, auth.Options{Reviewer: r})
	token := clusterToken(`{}`)
	requests := []func() *http.Request{
		func() *http.Request { return request("Authorization", "Bearer "+token) },
		func() *http.Request { return withLogin("x", token) },
	}
	identify := func(want error) {
		t.Helper()
		for _, req := range requests {
			if _, err := g.Identify(req()); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
	}
	identify(nil)
	r.why = "the account is deleted"
	identify(auth.ErrUnauthorized)
	r.why, r.err = "", errors.New("connection refused")
	identify(auth.ErrUnavailable)
	r.err = nil
	identify(nil)
}

// TestMadeUpTokensDelayNoAccount: the Reviewer keeps unknown tokens apart from known accounts; a queue in front of it
// would put them together again.
func TestMadeUpTokensDelayNoAccount(t *testing.T) {
	const strangers = 100
	r := &reviewer{slow: "stranger", hold: make(chan struct{}), held: make(chan struct{})}
	g := guard(t, auth.Options{Reviewer: r})
	var wg sync.WaitGroup
	for i := range strangers {
		wg.Go(func() { _, _ = g.Identify(withLogin("x", clusterToken(fmt.Sprintf(`{"sub":"stranger %d"}`, i)))) })
	}
	for range strangers { // all of them are at the Reviewer at once
		select {
		case <-r.held:
		case <-time.After(10 * time.Second):
			t.Fatal("there is a queue in front of the Reviewer")
		}
	}
	for _, sub := range []string{"a", "b"} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if _, err := g.Identify(withLogin("x", clusterToken(`{"sub":"`+sub+`"}`)).WithContext(ctx)); err != nil {
			t.Errorf("account %s: %v", sub, err)
		}
		cancel()
	}
	close(r.hold)
	wg.Wait()
}

// TestATokenForAnAccountEndsAfterFiveMinutes, however long the API vouches for the account.
func TestATokenForAnAccountEndsAfterFiveMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reviewer{}
		g := guard(t, auth.Options{Reviewer: r})
		got := ask(t, g, tokenGET("x", clusterToken(`{}`), "repository:a:pull"), 200)
		if got.ExpiresIn != 300 {
			t.Errorf("the token is valid for %d s", got.ExpiresIn)
		}
		if who, err := g.Identify(bearer(got.Token)); err != nil || !who.Cluster {
			t.Errorf("%+v, %v", who, err)
		}
		time.Sleep(5*time.Minute + 6*time.Second) // the leeway is 5 s
		if _, err := g.Identify(bearer(got.Token)); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("after five minutes: %v", err)
		}
		r.why = "the account is deleted"
		ask(t, g, tokenGET("x", clusterToken(`{}`)), 401)
	})
}
