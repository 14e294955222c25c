package registry_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry/auth"
)

// The requests of clients that .ci/clients and .ci/logins do not run, and .ci/matrix only in part, to a registry with
// anonymous: create, with and without logins. README.md has what these clients say about the answers.

// caller sends the requests of one client.
type caller struct {
	*server
	repo    string
	headers []string // a token, where the registry has logins
}

// callers runs a client without a login twice: where there are no logins, and where there are.
func callers(t *testing.T, run func(t *testing.T, c *caller)) {
	t.Helper()
	for _, logins := range []bool{false, true} {
		t.Run(map[bool]string{false: "no logins", true: "logins"}[logins], func(t *testing.T) {
			w, g := creating(t, auth.Options{})
			c := &caller{server: w, repo: "team/app"}
			want := http.StatusOK
			if logins {
				robot := auth.Robot{Name: "ci", Repositories: []string{"**"}, Actions: []auth.Action{"push"}}
				if _, err := g.CreateRobot(t.Context(), robot); err != nil {
					t.Fatal(err)
				}
				c.headers, want = w.token(g, "repository:team/app:pull,push"), http.StatusUnauthorized
			}
			w.do("GET", "/v2/", nil).is(want)
			run(t, c)
		})
	}
}

func (c *caller) call(method, path string, body []byte, headers ...string) *answer {
	c.Helper()
	return c.do(method, "/v2/"+c.repo+path, body, append(headers, c.headers...)...)
}

// blob pushes a blob, if it is not here. A stream is a PATCH and an empty PUT (go-containerregistry); otherwise the PUT
// has the bytes (containerd, oras-go).
func (c *caller) blob(content []byte, stream bool) {
	c.Helper()
	d := digest.FromBytes(content).String()
	if c.call("HEAD", "/blobs/"+d, nil).status == http.StatusOK {
		return
	}
	at := c.call("POST", "/blobs/uploads/", nil).is(202).header.Get("Location")
	if stream {
		at = c.do("PATCH", at, content, c.headers...).is(202).header.Get("Location")
		content = nil
	}
	c.do("PUT", at+"?digest="+d, content, c.headers...).is(201)
}

// tag pushes a manifest by a tag, unless the tag names it already, and returns the answer to the PUT, or to the HEAD.
func (c *caller) tag(tag, mediaType string, manifest []byte) *answer {
	c.Helper()
	head := c.call("HEAD", "/manifests/"+tag, nil, "Accept", mediaType)
	if head.header.Get("Docker-Content-Digest") == digest.FromBytes(manifest).String() {
		return head
	}
	return c.call("PUT", "/manifests/"+tag, manifest, "Content-Type", mediaType)
}

// refused checks that the answer is the refusal of a move, and that the tag is where it was.
func (c *caller) refused(a *answer, tag string, at []byte) {
	c.Helper()
	a.code(403, "DENIED").contains("tag " + tag + " exists and names " + digest.FromBytes(at).String())
	c.call("HEAD", "/manifests/"+tag, nil).is(200).has("Docker-Content-Digest", digest.FromBytes(at).String())
}

// TestBuildxUnderCreate is docker buildx build --push --cache-to type=registry,mode=max, for two builds: an index with
// an image and its attestation, and the cache, as an index of layers (image-manifest=false) and as an image.
func TestBuildxUnderCreate(t *testing.T) {
	callers(t, func(t *testing.T, c *caller) {
		build := func(n string) []byte {
			config, layer, statement := []byte(`{"c":"`+n+`"}`), []byte("layer "+n), []byte(`{"in-toto":"`+n+`"}`)
			for _, b := range [][]byte{config, layer, statement} {
				c.blob(b, false)
			}
			list := index(image(config, layer), image(config, statement))
			for _, child := range [][]byte{image(config, layer), image(config, statement)} {
				c.tag(digest.FromBytes(child).String(), typeManifest, child).is(201)
			}
			return list
		}
		first, second := build("1"), build("2")
		c.tag("v1", typeIndex, first).is(201)
		c.tag("v1", typeIndex, first).is(200)
		c.refused(c.tag("v1", typeIndex, second), "v1", first)
		c.tag("v2", typeIndex, second).is(201)

		const layerType = "application/vnd.oci.image.layer.v1.tar+gzip"
		const cacheType = "application/vnd.buildkit.cacheconfig.v0"
		cache := func(n string) (list, img []byte) {
			config, one, two := []byte(`{"layers":"`+n+`"}`), []byte("layer 1"), []byte("only cached "+n)
			for _, b := range [][]byte{config, one, two} {
				c.blob(b, false)
			}
			layers := desc(layerType, one) + "," + desc(layerType, two)
			return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s,%s]}`, typeIndex, layers,
					desc(cacheType, config)),
				fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, typeManifest,
					desc(cacheType, config), layers)
		}
		list1, image1 := cache("1")
		list2, image2 := cache("2")
		for _, row := range []struct {
			tag, mediaType string
			first, second  []byte
		}{{"cache-index", typeIndex, list1, list2}, {"cache-image", typeManifest, image1, image2}} {
			c.tag(row.tag, row.mediaType, row.first).is(201)
			c.tag(row.tag, row.mediaType, row.first).is(200) // nothing was built anew
			c.refused(c.tag(row.tag, row.mediaType, row.second), row.tag, row.first)
		}
	})
}

// TestHelmUnderCreate is helm push of a chart with a provenance file, of the same chart, and of another one with the
// same version. The time in the manifest is that of the file.
func TestHelmUnderCreate(t *testing.T) {
	callers(t, func(t *testing.T, c *caller) {
		push := func(chart string) ([]byte, *answer) {
			config, content, provenance := []byte(`{"name":"app"}`), []byte(chart), []byte("signed "+chart)
			for _, b := range [][]byte{config, content, provenance} {
				c.blob(b, false)
			}
			m := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s,%s],`+
				`"annotations":{"a":%q}}`, typeManifest, desc("application/vnd.cncf.helm.config.v1+json", config),
				desc("application/vnd.cncf.helm.chart.content.v1.tar+gzip", content),
				desc("application/vnd.cncf.helm.chart.provenance.v1.prov", provenance), chart)
			c.tag(digest.FromBytes(m).String(), typeManifest, m)
			return m, c.call("PUT", "/manifests/1.0.0", m, "Content-Type", typeManifest)
		}
		first, a := push("a chart")
		a.is(201)
		_, a = push("a chart")
		a.is(201)
		_, a = push("another chart")
		c.refused(a, "1.0.0", first)
	})
}

// TestKanikoUnderCreate: the executor first starts an upload, to see whether it may push, and cancels it. A layer of
// its cache has the tag of its key; a second build with that key pulls it, or pushes what it has built itself.
func TestKanikoUnderCreate(t *testing.T) {
	callers(t, func(t *testing.T, c *caller) {
		check := func() {
			t.Helper()
			at := c.call("POST", "/blobs/uploads/", nil).is(202).header.Get("Location")
			c.do("DELETE", at, nil, c.headers...).is(204)
		}
		push := func(tag, n string) ([]byte, *answer) {
			t.Helper()
			config, layer := []byte(`{"c":"`+n+`"}`), []byte("layer "+n)
			c.blob(config, true)
			c.blob(layer, true)
			return image(config, layer), c.tag(tag, typeManifest, image(config, layer))
		}
		key := strings.Repeat("0123456789abcdef", 4)
		for _, tag := range []string{"v1", key} {
			check()
			first, a := push(tag, "1")
			a.is(201)
			_, a = push(tag, "1")
			a.is(200)
			_, a = push(tag, "2")
			c.refused(a, tag, first)
		}
	})
}

// TestCosignUnderCreate is cosign sign and cosign attest, twice each by two people, then with the same key again, with
// attest --replace, and clean; at last sign of version 3, which pushes a referrer. The config changes with each layer.
func TestCosignUnderCreate(t *testing.T) {
	callers(t, func(t *testing.T, c *caller) {
		config, layer := []byte(`{"c":"1"}`), []byte("layer 1")
		c.blob(config, true)
		c.blob(layer, true)
		subject := image(config, layer)
		c.tag("v1", typeManifest, subject).is(201)
		prefix := strings.Replace(digest.FromBytes(subject).String(), ":", "-", 1)
		write := func(tag string, layers ...string) ([]byte, *answer) {
			t.Helper()
			c.call("GET", "/manifests/"+tag, nil)
			config := fmt.Appendf(nil, `{"rootfs":{"diff_ids":%d}}`, len(layers))
			c.blob(config, true)
			m := signatures(config, layers...)
			return m, c.tag(tag, typeManifest, m)
		}
		payload := []byte(`{"critical":{}}`)
		c.blob(payload, true)
		envelope := func(by string) string {
			content := []byte(`{"payload":"` + by + `"}`)
			c.blob(content, true)
			return desc("application/vnd.dsse.envelope.v1+json", content,
				`,"annotations":{"dev.cosignproject.cosign/signature":"",`+
					`"predicateType":"https://slsa.dev/provenance/v1"}`)
		}
		for tag, layers := range map[string][2]string{
			prefix + ".sig": {signature(payload, "alice"), signature(payload, "bob")},
			prefix + ".att": {envelope("alice"), envelope("bob")},
		} {
			_, a := write(tag, layers[0])
			a.is(201)
			both, a := write(tag, layers[0], layers[1])
			a.is(201)
			_, a = write(tag, layers[0], layers[1]) // the signature of the same key is found
			a.is(200)
			_, a = write(tag, layers[1]) // attest --replace, or two people at the same moment
			c.refused(a, tag, both)
			c.call("DELETE", "/manifests/"+tag, nil).is(map[bool]int{true: 403, false: 401}[c.headers == nil])
		}
		bundle := []byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}`)
		c.blob(bundle, true)
		c.blob([]byte("{}"), true)
		referrer := image([]byte("{}"), bundle, `,"subject":`+desc(typeManifest, subject))
		for range 2 {
			c.call("PUT", "/manifests/"+digest.FromBytes(referrer).String(), referrer, "Content-Type", typeManifest).
				is(201).
				has("OCI-Subject", digest.FromBytes(subject).String())
		}
	})
}
