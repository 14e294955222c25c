package client_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"trow/registry/client"
)

// TestHeldTags: a list for commands says that it is about what is held; a list for a copy does not.
func TestHeldTags(t *testing.T) {
	var said []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		said = append(said, req.Header.Get("Cache-Control"))
		_, _ = w.Write([]byte(`{"name":"a","tags":["v"]}`))
	}))
	t.Cleanup(s.Close)
	c, err := client.New(client.Options{URL: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	var tags []string
	each := func(page []string) error { tags = append(tags, page...); return nil }
	if err := c.HeldTags(t.Context(), "a", each); err != nil {
		t.Fatal(err)
	}
	if err := c.Tags(t.Context(), "a", each); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(said, []string{"only-if-cached", ""}) || !slices.Equal(tags, []string{"v", "v"}) {
		t.Errorf("%q, %q", said, tags)
	}
}
