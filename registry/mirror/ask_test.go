package mirror_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/mirror"
	"trow/registry/namespace"
	"trow/registry/upstream"
	"trow/storage"
)

// evicting is a Store of one manifest, which it holds until a tag is to name it.
type evicting struct {
	mirror.Store
	held   bool
	tagged int
}

func (s *evicting) Resolve(_ context.Context, _, ref string) (mirror.Held, bool, error) {
	d := digest.Digest(ref)
	return mirror.Held{Digest: d}, s.held && d.Validate() == nil, nil
}

func (s *evicting) Record(_ context.Context, _, tag string, d digest.Digest, m *upstream.Manifest) error {
	if m == nil {
		s.held = false
		return fmt.Errorf("manifest %s: %w", d, storage.ErrNotFound)
	}
	s.held = true
	if tag == "v" {
		s.tagged++
	}
	return nil
}

// TestAManifestThatIsEvictedBeforeItsTagIsSet is fetched again: the client has asked for a tag that its upstream has.
func TestAManifestThatIsEvictedBeforeItsTagIsSet(t *testing.T) {
	body := []byte(`{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `","config":{},"layers":[]}`)
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(body).String())
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body)
	}))
	defer origin.Close()
	names := namespace.NewTable(nil)
	up := upstream.New(upstream.Config{Names: names})
	if err := up.Set([]upstream.Entry{{Host: "up.example", Insecure: true,
		Endpoints: []upstream.Endpoint{{URL: origin.URL}}}}); err != nil {
		t.Fatal(err)
	}
	s := &evicting{held: true}
	m := mirror.New(mirror.Options{Names: names, Upstreams: up, Store: s})
	defer m.Close()
	if stale, err := m.Refresh(t.Context(), "f/up.example/a", "v"); stale != nil || err != nil || s.tagged != 1 {
		t.Errorf("%v, %v; tagged %d times", stale, err, s.tagged)
	}
}
