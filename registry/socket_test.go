package registry_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
	"trow/registry/auth/authtest"
	"trow/registry/limit"
)

// withSocket runs a registry with a Guard that lets no client without a login in, and returns it once as clients on the
// network reach it, and once as the administration socket does.
func withSocket(t *testing.T, options ...option) (network, socket *server) {
	t.Helper()
	g := authtest.New(t, auth.Options{User: "owner", Password: "owner",
		Rules: []auth.Rule{{Who: []string{"*"}, May: []string{"none"}}}})
	options = append([]option{func(o *registry.Options) { o.Auth = g }}, options...)
	network = newServer(t, options...)
	s := httptest.NewUnstartedServer(network.registry)
	s.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context { return auth.WithSocket(ctx) }
	s.Start()
	t.Cleanup(s.Close)
	copied := *network
	socket = &copied
	socket.url = s.URL
	return network, socket
}

var asOwner = []string{"Authorization", "Basic b3duZXI6b3duZXI="}

func TestTheSocketNeedsNoLogin(t *testing.T) {
	e := &events{}
	network, socket := withSocket(t, func(o *registry.Options) { o.Audit = e.audit })
	body, d := socket.pushImage("a", "v", "x")
	socket.do("GET", "/v2/", nil).is(200)
	socket.do("GET", "/v2/a/manifests/v", nil).is(200).equals(string(body))
	socket.do("GET", "/v2/a/tags/list", nil).is(200).equals(`{"name":"a","tags":["v"]}`)
	socket.do("GET", "/v2/_catalog", nil).is(200).equals(`{"repositories":["a"]}`)
	socket.do("GET", "/v2/a/referrers/"+d.String(), nil).is(200)
	mount := "/v2/b/blobs/uploads/?from=a&mount=" + digest.FromString("layer x").String()
	socket.do("POST", mount, nil).is(201)
	socket.do("DELETE", "/v2/a/manifests/"+d.String(), nil).is(202)
	socket.do("DELETE", "/v2/b/blobs/"+digest.FromString("layer x").String(), nil).is(202)
	short, layer := d.String()[:14], digest.FromString("layer x").String()[:14]
	e.want(t, "push ok socket/ 127.0.0.1 push a [v] "+short+" ",
		"delete ok socket/ 127.0.0.1 delete a [v] "+short+" ",
		"delete ok socket/ 127.0.0.1 delete b [] "+layer+" ")

	network.do("GET", "/v2/a/tags/list", nil).is(401)
	network.do("POST", "/v2/a/blobs/uploads/", nil).is(401)
	network.do("DELETE", "/v2/a/manifests/v", nil).is(401)
}

func TestTheSocketHasNoLimits(t *testing.T) {
	limits := &limit.Limits{}
	err := limits.Set([]limit.Rule{{Who: []string{"*"}, ByAddress: true, Requests: 1, Burst: 1, Uploads: 1}})
	if err != nil {
		t.Fatal(err)
	}
	network, socket := withSocket(t, func(o *registry.Options) { o.Limits = limits })
	for range 5 {
		socket.do("POST", "/v2/a/blobs/uploads/", nil).is(202)
	}
	network.do("GET", "/v2/", nil, asOwner...).is(200)
	network.do("GET", "/v2/", nil, asOwner...).is(429)
}

func TestTheSocketHasNoQuotas(t *testing.T) {
	network, socket := withSocket(t)
	quotas(t, network, limit.Quota{Repositories: []string{"**"}, Bytes: quantity(1)})
	socket.pushImage("team/a", "v1", "x")
	at := socket.begin("team/a")
	socket.do("PATCH", at, []byte("chunk")).is(202)
	socket.do("PUT", at+"?digest="+digest.FromString("chunk").String(), nil).is(201)
	socket.do("POST", "/v2/team/b/blobs/uploads/?from=team/a&mount="+digest.FromString("chunk").String(), nil).is(201)
	network.do("POST", "/v2/team/a/blobs/uploads/", nil, asOwner...).is(403)
}

func TestTheSocketChangesImmutableTags(t *testing.T) {
	network, socket := withSocket(t, func(o *registry.Options) {
		o.Immutable = func(string, string) bool { return true }
	})
	socket.pushImage("a", "v", "x")
	other, d := socket.pushImage("a", "v", "y") // moves it
	put := append([]string{"Content-Type", typeManifest}, asOwner...)
	network.do("PUT", "/v2/a/manifests/w", other, put...).is(201)
	network.do("DELETE", "/v2/a/manifests/v", nil, asOwner...).is(403)
	network.do("DELETE", "/v2/a/manifests/"+d.String(), nil, asOwner...).is(403)
	socket.do("DELETE", "/v2/a/manifests/v", nil).is(202)
	socket.do("DELETE", "/v2/a/manifests/"+d.String(), nil).is(202)
	socket.do("GET", "/v2/a/manifests/w", nil).is(404)
}

// TestTheSocketGetsAPlaceWhenAllAreTaken holds one request of each kind, and with it the only place.
func TestTheSocketGetsAPlaceWhenAllAreTaken(t *testing.T) {
	hold, held := make(chan struct{}), make(chan struct{}, 1)
	release := sync.OnceFunc(func() { close(hold) })
	network, socket := withSocket(t, func(o *registry.Options) {
		o.MaxRequests = 1
		o.Annotate = func(_ context.Context, key, value string) {
			if key == "user" && value == "owner" { // the request has its place
				held <- struct{}{}
				<-hold
			}
		}
	})
	t.Cleanup(release) // a server cannot close while it serves a request
	done := make(chan struct{}, 2)
	for _, request := range [][2]string{{"GET", "/v2/"}, {"POST", "/v2/a/blobs/uploads/"}} {
		go func() {
			network.do(request[0], request[1], nil, asOwner...)
			done <- struct{}{}
		}()
		<-held
	}
	busy := func(method, path string, headers ...string) {
		t.Helper()
		network.do(method, path, nil, headers...).code(429, "TOOMANYREQUESTS").has("Retry-After", "1")
	}
	busy("GET", "/v2/", asOwner...)
	busy("POST", "/v2/a/blobs/uploads/", asOwner...)
	busy("GET", "/v2/")
	socket.do("GET", "/v2/_catalog", nil).is(200)
	socket.pushImage("a", "v", "x")
	socket.do("GET", "/v2/a/manifests/v", nil, "Authorization", "Basic eDp5").is(200) // credentials mean nothing here
	release()
	<-done
	<-done
	network.do("GET", "/v2/a/manifests/v", nil, append(asOwner, "Accept", "*/*")...).is(200)
}

// TestNoCredentialIsVerifiedForAPlace: when all places are taken, a request is refused before the work of its login.
func TestNoCredentialIsVerifiedForAPlace(t *testing.T) {
	a := &counting{Authorizer: open{}, hold: make(chan struct{}), held: make(chan struct{})}
	w := newServer(t, func(o *registry.Options) { o.Auth, o.MaxRequests = a, 1 })
	release := sync.OnceFunc(func() { close(a.hold) })
	t.Cleanup(release) // a server cannot close while it serves a request
	done := make(chan struct{})
	go func() {
		w.do("GET", "/v2/", nil, "Authorization", "first")
		close(done)
	}()
	<-a.held
	for range 3 {
		w.do("GET", "/v2/", nil, "Authorization", "more").is(429)
	}
	if a.verified != 0 {
		t.Errorf("%d credentials were verified for requests without a place", a.verified)
	}
	release()
	<-done
}

// counting counts the credentials that it verifies, and holds the first request.
type counting struct {
	auth.Authorizer
	hold, held chan struct{}
	verified   int
}

func (c *counting) Identify(r *http.Request) (*auth.Identity, error) {
	switch r.Header.Get("Authorization") {
	case "first":
		close(c.held)
		<-c.hold
	case "":
	default:
		c.verified++
	}
	return c.Authorizer.Identify(r)
}

func TestLoading(t *testing.T) {
	s := httptest.NewServer(registry.Loading)
	t.Cleanup(s.Close)
	w := &server{T: t, url: s.URL}
	for _, path := range []string{"/v2/", "/v2/a/manifests/v"} {
		w.do("GET", path, nil).code(503, "UNAVAILABLE").has("Retry-After", "1")
		w.do("HEAD", path, nil).is(503).has("Retry-After", "1").equals("")
	}
	// A client that is still sending gets the answer as well.
	body := io.LimitReader(endless{}, 8<<20)
	w.send("PUT", "/v2/a/blobs/uploads/x?digest="+digest.FromString("x").String(), body).code(503, "UNAVAILABLE")
}

// endless is a body of zeros.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
