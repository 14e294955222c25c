package client_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry/client"
)

// TestMarks: requests to the API have what their context says, and what the registry redirects to has not.
func TestMarks(t *testing.T) {
	var asked []string
	record := func(req *http.Request) {
		asked = append(asked, req.URL.RequestURI()+" "+req.Header.Get("Cache-Control"))
	}
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { record(req) }))
	t.Cleanup(other.Close)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		record(req)
		http.Redirect(w, req, other.URL+"/v2/x", http.StatusTemporaryRedirect)
	}))
	t.Cleanup(s.Close)
	c, err := client.New(client.Options{URL: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromString("x")
	ctx := client.OnlyHeld(client.ForNamespace(t.Context(), "quay.io:8443"))
	if client.NamespaceOf(ctx) != "quay.io:8443" || !client.IsOnlyHeld(ctx) || client.IsOnlyHeld(t.Context()) {
		t.Error("the marks of the context")
	}
	_, _ = c.ResolveBlob(ctx, "a/b", d)
	_, _ = c.ResolveBlob(t.Context(), "a/b", d)
	at := "/v2/a/b/blobs/" + d.String()
	want := []string{at + "?ns=quay.io%3A8443 only-if-cached", "/v2/x ", at + " ", "/v2/x "}
	if !slices.Equal(asked, want) {
		t.Errorf("%q, want %q", asked, want)
	}
}
