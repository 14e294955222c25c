package cache

import (
	"fmt"
	"net/http"
	"testing"
	"time"
)

// failures are the ways in which an origin is down. Each returns what brings it back.
var failures = []struct {
	name string
	open bool // a short run tries it with the origin without a login alone
	fail func(*origin) (back func())
}{
	{"stopped", false, func(o *origin) func() { o.stop(); return o.start }},
	{"429", true, status(http.StatusTooManyRequests)},
	{"500", true, status(http.StatusInternalServerError)},
	{"503", false, status(http.StatusServiceUnavailable)},
	{"401", true, status(http.StatusUnauthorized)},
	{"hung", false, func(o *origin) func() {
		o.fail(failure{hangs: true})
		return func() { o.fail(failure{}) }
	}},
}

func status(code int) func(*origin) func() {
	return func(o *origin) func() {
		o.fail(failure{status: code})
		return func() { o.fail(failure{}) }
	}
}

// slower is how much longer a pull of what is held may take while the origin is down.
const slower = 1.1

// TestAnOriginThatIsDown delays no pull of what is held, and changes none of its bytes. What is not held gets an error
// that does not say that it does not exist. Pulls are compared with those from another server, whose origin is up.
func TestAnOriginThatIsDown(t *testing.T) {
	for name, start := range origins {
		t.Run(name, func(t *testing.T) {
			o := start(t)
			i := newImage(300, layers()[0], layers()[0]/2)
			o.push("team/app", i, "v1")
			// Of one host tags are fresh for 10 minutes, of the other never.
			upstreams := o.entry("fresh.example") + o.entry("old.example", "fresh: 1ms")
			up := filled(trow(t, "4Gi", upstreams))
			other := o.again(t)
			for _, f := range failures {
				if f.open && name != "distribution" && !long {
					continue
				}
				t.Run(f.name, func(t *testing.T) {
					s := filled(trow(t, "4Gi", other.entry("fresh.example")+other.entry("old.example", "fresh: 1ms")))
					back := f.fail(other)
					defer back()
					for _, host := range []string{"old.example", "fresh.example"} {
						for _, ref := range []string{"v1", i.digest()} {
							down(t, up, s, i, host, ref)
						}
					}
					if f.name != "hung" || long { // an answer to what is not held takes 25 s then
						absent(t, s)
					}
				})
			}
		})
	}
}

// filled pulls the image, so that the server holds it.
func filled(s *server) *server {
	for _, host := range []string{"fresh.example", "old.example"} {
		s.client(host).pulls("team/app", "v1", true)
	}
	return s
}

// down compares pulls from a server whose origin is down with those from one whose origin is up.
func down(t *testing.T, up, s *server, i *image, host, ref string) {
	t.Helper()
	from := func(s *server) func() time.Duration {
		c := s.client(host)
		c.t = t
		return func() (sum time.Duration) {
			for range 2 {
				p := c.pulls("team/app", ref, false)
				if sha(p.manifest) != i.digest() {
					t.Error("another manifest")
				}
				sum += p.took
			}
			return sum
		}
	}
	old := host == "old.example" && ref == "v1"
	begin := time.Now()
	p := s.client(host).pulls("team/app", ref, true)
	if p.stale != old {
		t.Errorf("%s %.7s: stale is %v", host, ref, p.stale)
	}
	what := fmt.Sprintf("%s %.7s (the first pull took %v)", host, ref, time.Since(begin))
	compare(t, what, slower, from(up), from(s))
}

// absent asks for what is not held.
func absent(t *testing.T, s *server) {
	t.Helper()
	for _, at := range []string{"team/app/manifests/absent", "team/absent/manifests/v1", "team/app/blobs/" + sha(nil)} {
		begin := time.Now()
		c := s.client("fresh.example")
		c.t = t
		resp, body := c.ask(http.MethodGet, at, nil, "Accept", accepted)
		if resp.StatusCode < 400 || resp.StatusCode == http.StatusNotFound {
			t.Errorf("%s: %s: %s", at, resp.Status, body)
		}
		if took := time.Since(begin); took > hangs {
			t.Errorf("%s: answered after %v", at, took)
		}
	}
}
