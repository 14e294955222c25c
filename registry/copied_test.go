package registry_test

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
)

// The tags that cosign copy sets: each image and each image of an index gets a tag sha256-<hex> that names this
// manifest itself, which has the name of a companion.

// copied pushes an index with one image and the tags of cosign copy, and returns both and what they would grow to.
func (w *server) copied(repo string) (list, img, longer, larger []byte) {
	w.Helper()
	img, other := w.build(repo, "1"), w.build(repo, "2")
	list, longer = index(img), index(other, img)
	layer := `"layers":[`
	larger = []byte(strings.Replace(string(img), layer, layer+desc("application/vnd.oci.image.layer.v1.tar",
		[]byte("layer 2"))+",", 1))
	for _, m := range [][]byte{img, list} {
		w.put(repo, own(m), m).is(201)
		w.put(repo, own(m), m).is(201) // the second copy
	}
	w.put(repo, digest.FromBytes(other).String(), other).is(201)
	return list, img, longer, larger
}

// own returns the tag that cosign copy sets.
func own(m []byte) string { return strings.Replace(digest.FromBytes(m).String(), ":", "-", 1) }

// TestATagOfItsOwnManifestDoesNotGrow: a client that may only create put a layer on top of an image that others pull by
// such a tag, or an image before those of an index, as if that were the index of its referrers.
func TestATagOfItsOwnManifestDoesNotGrow(t *testing.T) {
	created, _ := creating(t, auth.Options{})
	immutable := newServer(t, func(o *registry.Options) {
		o.Immutable = func(_, tag string) bool { return strings.HasPrefix(tag, "sha256-") }
	})
	for _, w := range []*server{created, immutable} {
		list, img, longer, larger := w.copied("app")
		for _, push := range [][2][]byte{{list, longer}, {img, larger}} {
			tag := own(push[0])
			a := w.put("app", tag, push[1]).code(403, "DENIED")
			if strings.Contains(string(a.body), "add to it") {
				t.Errorf("the remedy is to grow: %s", a.body)
			}
			w.do("HEAD", "/v2/app/manifests/"+tag, nil, "Accept", "*/*").is(200).
				has("Docker-Content-Digest", digest.FromBytes(push[0]).String())
		}
		// A signature of it still grows.
		config, payload := []byte("{}"), []byte(`{"critical":{}}`)
		w.pushBlob("app", config)
		w.pushBlob("app", payload)
		alice, bob := signature(payload, "alice"), signature(payload, "bob")
		w.put("app", own(list)+".sig", signatures(config, alice)).is(201)
		w.put("app", own(list)+".sig", signatures(config, alice, bob)).is(201)
	}
	list, img, _, _ := immutable.copied("other")
	for _, m := range [][]byte{list, img} {
		immutable.do("DELETE", "/v2/other/manifests/"+own(m), nil).code(403, "DENIED")
	}
}

// TestThePlatformsOfAnIndexAreNotItsReferrers: the index under the tag of its own digest was taken for one of
// referrers.
func TestThePlatformsOfAnIndexAreNotItsReferrers(t *testing.T) {
	w := newServer(t)
	list, img, _, _ := w.copied("app")
	path := "/v2/app/referrers/" + digest.FromBytes(list).String()
	if a := w.do("GET", path, nil).is(200); !strings.Contains(string(a.body), `"manifests":[]`) {
		t.Errorf("the referrers are %s", a.body)
	}
	referrer := []byte(strings.Replace(string(img), `"config"`, `"subject":`+desc(typeIndex, list)+`,"config"`, 1))
	w.do("PUT", "/v2/app/manifests/signed", referrer, "Content-Type", typeManifest).is(201)
	if a := w.do("GET", path, nil).is(200); strings.Count(string(a.body), `"digest"`) != 1 {
		t.Errorf("the referrers are %s", a.body)
	}
}
