package auth_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"trow/registry/auth"
)

// reviewer is a Kubernetes API that knows the tokens of team-a's ci.
type reviewer struct {
	asked atomic.Int64
	err   error
	who   auth.Identity
}

func (r *reviewer) Review(_ context.Context, token string) (auth.Identity, error) {
	r.asked.Add(1)
	if r.err != nil {
		return auth.Identity{}, r.err
	}
	if r.who.Name != "" {
		return r.who, nil
	}
	return *account("team-a", "ci"), nil
}

// clusterToken is a token as a cluster signs it, as far as anybody but the cluster can see.
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
			if user, err := may(g, withLogin(req.user, req.password), "a", auth.Pull); user != "system:serviceaccount:team-a:ci" || err != nil {
				t.Errorf("as a password of %q: %q, %v", req.user, user, err)
			}
		}
		if user, err := may(g, request("Authorization", "Bearer "+token), "a", auth.Pull); user != "system:serviceaccount:team-a:ci" || err != nil {
			t.Errorf("as a bearer: %q, %v", user, err)
		}
	}
	if n := r.asked.Load(); n != 1 {
		t.Errorf("the API was asked %d times about one token", n)
	}
	// What cannot be the cluster's is not taken there.
	for _, none := range []string{"a.b", "a.b.c", "a.b.c.d", clusterToken(`{"iss":"trow"}`), clusterToken(`[]`), clusterToken(`"x"`), clusterToken(`{"iss":1}`)} {
		if _, err := may(g, withLogin("x", none), "a", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("%s: %v", none, err)
		}
		if _, err := may(g, request("Authorization", "Bearer "+none), "a", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("%s: %v", none, err)
		}
	}
	if n := r.asked.Load(); n != 1 {
		t.Errorf("the API was asked about what is no token of a cluster, %d times", n)
	}
}

func TestWhatTheClusterMustNotSay(t *testing.T) {
	for _, name := range []string{"", "robot:ci"} {
		r := &reviewer{who: auth.Identity{Name: name, Groups: []string{"x"}}}
		if name == "" {
			r.who, r.err = auth.Identity{}, auth.ErrUnauthorized
		}
		g := guard(t, auth.Options{User: "u", Password: "p", Reviewer: r})
		if _, err := may(g, withLogin("x", clusterToken(`{}`)), "a", auth.Pull); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("%q: %v", name, err)
		}
	}
	// Somebody in the cluster who is called like the owner is not the owner.
	g := guard(t, auth.Options{User: "u", Password: "p", Reviewer: &reviewer{who: auth.Identity{Name: "u"}}})
	if _, err := may(g, withLogin("x", clusterToken(`{}`)), "a", auth.Push); !errors.Is(err, auth.ErrDenied) {
		t.Errorf("%v", err)
	}
}

// TestTheClusterIsAway: who was known stays known for five minutes, and nobody else comes in.
func TestTheClusterIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reviewer{}
		g := guard(t, auth.Options{Reviewer: r})
		known := request("Authorization", "Bearer "+clusterToken(fmt.Sprintf(`{"exp":%d}`, time.Now().Add(time.Hour).Unix())))
		short := request("Authorization", "Bearer "+clusterToken(fmt.Sprintf(`{"exp":%d}`, time.Now().Add(2*time.Minute).Unix())))
		other := request("Authorization", "Bearer "+clusterToken(`{"sub":"other"}`))
		for _, req := range []string{known.Header.Get("Authorization"), short.Header.Get("Authorization")} {
			if _, err := g.Identify(request("Authorization", req)); err != nil {
				t.Fatal(err)
			}
		}
		r.err = errors.New("connection refused")
		time.Sleep(3 * time.Minute)
		if _, err := g.Identify(known); err != nil {
			t.Errorf("known: %v", err)
		}
		if _, err := g.Identify(short); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("one that has ended: %v", err)
		}
		if _, err := g.Identify(other); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("another: %v", err)
		}
		time.Sleep(2*time.Minute + time.Second)
		if _, err := g.Identify(known); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("known for too long: %v", err)
		}
		r.err = auth.ErrUnauthorized
		if _, err := g.Identify(known); !errors.Is(err, auth.ErrUnauthorized) {
			t.Errorf("revoked: %v", err)
		}
		n := r.asked.Load()
		if _, err := g.Identify(known); !errors.Is(err, auth.ErrUnauthorized) || r.asked.Load() != n {
			t.Errorf("a refusal is not remembered: %v", err)
		}
		r.err = nil
		time.Sleep(11 * time.Second)
		if _, err := g.Identify(known); err != nil {
			t.Errorf("a refusal is remembered for too long: %v", err)
		}
	})
}
