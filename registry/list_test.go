package registry_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestTags(t *testing.T) {
	w := newServer(t)
	w.do("GET", "/v2/a/tags/list", nil).code(404, "NAME_UNKNOWN")
	w.pushBlob("a", []byte("x"))
	w.do("GET", "/v2/a/tags/list", nil).is(200).equals(`{"name":"a","tags":[]}`)
	for _, tag := range []string{"b", "a", "C", "_x", "1.0"} {
		w.pushImage("a", tag, "x")
	}
	w.pushImage("ab", "other", "x") // another repository with the same prefix
	list := func(query string) *answer { return w.do("GET", "/v2/a/tags/list"+query, nil).is(200) }
	list("").has("Content-Type", "application/json", "Link", "").equals(`{"name":"a","tags":["1.0","C","_x","a","b"]}`)
	list("?n=2").has("Link", `</v2/a/tags/list?last=C&n=2>; rel="next"`).equals(`{"name":"a","tags":["1.0","C"]}`)
	list("?n=2&last=C").has("Link", `</v2/a/tags/list?last=a&n=2>; rel="next"`).equals(`{"name":"a","tags":["_x","a"]}`)
	list("?n=2&last=a").has("Link", "").equals(`{"name":"a","tags":["b"]}`)
	list("?n=5").has("Link", "")
	list("?n=0").has("Link", "").equals(`{"name":"a","tags":[]}`)
	list("?n=99999999999999999999").has("Link", "").equals(`{"name":"a","tags":["1.0","C","_x","a","b"]}`)
	list("?last=D").equals(`{"name":"a","tags":["_x","a","b"]}`) // last need not exist
	list("?last=zzz").equals(`{"name":"a","tags":[]}`)
	for _, n := range []string{"-1", "x", "", "1.5"} {
		w.do("GET", "/v2/a/tags/list?n="+n, nil).code(400, "UNSUPPORTED")
	}
	w.do("HEAD", "/v2/a/tags/list", nil).is(200)
}

func TestCatalog(t *testing.T) {
	w := newServer(t)
	w.do("GET", "/v2/_catalog", nil).is(200).equals(`{"repositories":[]}`)
	for _, repo := range []string{"b/c", "a", "b", "a/b"} {
		w.pushImage(repo, "x", repo)
	}
	w.pushBlob("blobs-alone", nil)
	w.do("GET", "/v2/_catalog", nil).is(200).equals(`{"repositories":["a","a/b","b","b/c"]}`)
	w.do("GET", "/v2/_catalog?n=3", nil).is(200).
		has("Link", `</v2/_catalog?last=b&n=3>; rel="next"`).equals(`{"repositories":["a","a/b","b"]}`)
	w.do("GET", "/v2/_catalog?n=3&last=b", nil).is(200).has("Link", "").equals(`{"repositories":["b/c"]}`)
	w.do("GET", "/v2/_catalog?n=x", nil).code(400, "UNSUPPORTED")
}

func TestReferrers(t *testing.T) {
	w := newServer(t)
	subject, d := w.pushImage("a", "v", "x")
	config := []byte("{}")
	w.pushBlob("a", config)
	empty := `{"schemaVersion":2,"mediaType":"` + typeIndex + `","manifests":[]}`
	list := func(repo, query string) *answer {
		return w.do("GET", "/v2/"+repo+"/referrers/"+d.String()+query, nil).is(200).has("Content-Type", typeIndex)
	}
	list("a", "").equals(empty)
	list("nowhere", "").equals(empty)
	s := `,"subject":` + desc(typeManifest, subject)
	sbom := []byte(`{"schemaVersion":2,"mediaType":"` + typeManifest + `","artifactType":"x/sbom","config":` +
		desc("application/vnd.oci.empty.v1+json", config) + `,"layers":[]` + s + `,"annotations":{"k":"v"}}`)
	sig := []byte(`{"schemaVersion":2,"mediaType":"` + typeManifest + `","config":` + desc("x/signature", config) +
		`,"layers":[]` + s + `}`)
	plain := []byte(`{"schemaVersion":2,"mediaType":"` + typeIndex + `","manifests":[]` + s + `}`)
	w.do("PUT", "/v2/a/manifests/"+digest.FromBytes(sbom).String(), sbom, "Content-Type", typeManifest).is(201).
		has("OCI-Subject", d.String())
	w.do("PUT", "/v2/a/manifests/sig", sig, "Content-Type", typeManifest).is(201).has("OCI-Subject", d.String())
	w.do("PUT", "/v2/a/manifests/plain", plain, "Content-Type", typeIndex).is(201).has("OCI-Subject", d.String())

	type descriptor struct {
		MediaType, Digest, ArtifactType string
		Size                            int
		Annotations                     map[string]string
	}
	parse := func(a *answer) map[string]descriptor {
		var idx struct {
			SchemaVersion int
			MediaType     string
			Manifests     []descriptor
		}
		if err := json.Unmarshal(a.body, &idx); err != nil || idx.SchemaVersion != 2 || idx.MediaType != typeIndex {
			t.Fatalf("%v: %s", err, a.body)
		}
		m := map[string]descriptor{}
		for _, d := range idx.Manifests {
			m[d.Digest] = d
		}
		return m
	}
	want := map[string]descriptor{
		digest.FromBytes(sbom).String(): {typeManifest, digest.FromBytes(sbom).String(), "x/sbom", len(sbom),
			map[string]string{"k": "v"}},
		digest.FromBytes(sig).String():   {typeManifest, digest.FromBytes(sig).String(), "x/signature", len(sig), nil},
		digest.FromBytes(plain).String(): {typeIndex, digest.FromBytes(plain).String(), "", len(plain), nil},
	}
	if got := parse(list("a", "").has("OCI-Filters-Applied", "")); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("referrers are %v, want %v", got, want)
	}
	filtered := parse(list("a", "?artifactType=x/sbom").has("OCI-Filters-Applied", "artifactType"))
	if len(filtered) != 1 || filtered[digest.FromBytes(sbom).String()].ArtifactType != "x/sbom" {
		t.Errorf("filtered are %v", filtered)
	}
	if got := parse(list("a", "?artifactType=none")); len(got) != 0 {
		t.Errorf("filtered are %v", got)
	}
	list("b", "").equals(empty) // the subject is in another repository
	w.do("DELETE", "/v2/a/manifests/"+digest.FromBytes(sbom).String(), nil).is(202)
	if got := parse(list("a", "")); len(got) != 2 {
		t.Errorf("after a delete they are %v", got)
	}
	w.do("GET", "/v2/a/referrers/"+d.String()+"?last=x", nil).code(400, "DIGEST_INVALID")

	// An index under the fallback tag is merged in, as far as the repository holds its entries.
	other, o := w.pushImage("a", "other", "other")
	tagged := `{"schemaVersion":2,"mediaType":"` + typeIndex + `","manifests":[` + desc(typeManifest, other) + `,` +
		desc(typeManifest, sig) + `]}`
	fallback := strings.Replace(d.String(), ":", "-", 1)
	w.do("PUT", "/v2/a/manifests/"+fallback, []byte(tagged), "Content-Type", typeIndex).is(201)
	if got := parse(list("a", "")); len(got) != 3 || got[o.String()].Digest == "" {
		t.Errorf("with the fallback tag they are %v", got)
	}
}

func TestPagesOfReferrers(t *testing.T) {
	w := newServer(t)
	d := digest.FromString("subject")
	config := []byte("{}")
	w.pushBlob("a", config)
	want := map[string]bool{}
	for i := range 5 {
		body := fmt.Appendf(nil,
			`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[],`+
				`"subject":{"digest":%q,"size":1,"mediaType":"x/y"},"annotations":{"n":"%d","x":%q}}`,
			typeManifest, desc("x/y", config), d, i, strings.Repeat("y", 900<<10))
		w.do("PUT", "/v2/a/manifests/v", body, "Content-Type", typeManifest).is(201)
		want[digest.FromBytes(body).String()] = true
	}
	pages := 0
	for path := "/v2/a/referrers/" + d.String() + "?artifactType=x/y"; path != ""; pages++ {
		a := w.do("GET", path, nil).is(200).has("OCI-Filters-Applied", "artifactType")
		if len(a.body) > 3<<20 {
			t.Errorf("a page of %d bytes", len(a.body))
		}
		var idx struct{ Manifests []struct{ Digest string } }
		if err := json.Unmarshal(a.body, &idx); err != nil {
			t.Fatal(err)
		}
		for _, m := range idx.Manifests {
			if !want[m.Digest] {
				t.Errorf("%s is listed twice, or should not be listed", m.Digest)
			}
			delete(want, m.Digest)
		}
		path, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
	}
	if len(want) != 0 || pages < 2 {
		t.Errorf("after %d pages these are missing: %v", pages, want)
	}
}
