package registry_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/storage"
)

const typeOther = "application/vnd.example+json"

// hold makes the repository hold a manifest as earlier versions recorded it, under any media type.
func (w *server) hold(repo, mediaType string, body []byte) digest.Digest {
	w.Helper()
	d := digest.FromBytes(body)
	u := w.written(repo, body)
	release, err := w.index.Commit(w.Context(), u, d)
	if err != nil {
		w.Fatal(err)
	}
	defer release()
	err = w.index.Update(w.Context(), repo, func(tx *storage.Tx) error {
		return tx.PutManifest(storage.Manifest{Digest: d, MediaType: mediaType, Size: int64(len(body))})
	})
	if err != nil {
		w.Fatal(err)
	}
	return d
}

// TestMediaTypesAreBounded: each media type that the registry keeps in memory is one of RFC 6838, wherever it is from.
// 150 manifests with a mediaType of 4 MiB and no Content-Type took 1 GiB.
func TestMediaTypesAreBounded(t *testing.T) {
	w := newServer(t)
	config := []byte("{}")
	w.pushBlob("a", config)
	name := func(n int) string { return strings.Repeat("x", n) }
	for _, bad := range []string{"application/" + name(1<<20), "application/" + name(128), name(128) + "/x",
		"x", "/x", "x/",
		"application/x/y", "application/x y", "application/x\\ny", "application/ä", "application/x;charset=utf-8",
		"application/.x", "*/*", "application/*"} {
		for where, body := range map[string]string{
			"mediaType":    `{"mediaType":"` + bad + `"}`,
			"artifactType": `{"mediaType":"` + typeOther + `","artifactType":"` + bad + `"}`,
			"config.mediaType": `{"schemaVersion":2,"mediaType":"` + typeManifest + `","layers":[],"config":` +
				string(desc(bad, config)) + `}`,
		} {
			w.do("PUT", "/v2/a/manifests/v", []byte(body)).code(400, "MANIFEST_INVALID").contains(where + " is ")
		}
	}
	longest := name(127) + "/" + name(127)
	body := []byte(`{"mediaType":"application/` + name(127) + `","artifactType":"` + longest + `"}`)
	w.do("PUT", "/v2/a/manifests/v", body).is(201)
	w.do("GET", "/v2/a/manifests/v", nil).is(200).has("Content-Type", "application/"+name(127))
}

// TestALongMediaTypeThatIsHeldIsServed: a journal of an earlier version may have such types. They must not fill the
// memory at each start, and clients get what was recorded.
func TestALongMediaTypeThatIsHeldIsServed(t *testing.T) {
	blobs, journal := inMemory()
	w := serve(t, blobs, journal)
	long := "application/" + strings.Repeat("x", 300)
	subject := digest.FromString("subject")
	body := []byte(`{"mediaType":"` + long + `","subject":{"digest":"` + subject.String() + `"}}`)
	d := w.hold("a", long, body)
	text := []byte(`hello`)
	plain := w.hold("a", "text/plain", text)
	w = serve(t, blobs, journal) // again, from the journal
	if m, ok, err := w.index.Resolve(t.Context(), "a", d.String()); err != nil || !ok || m.MediaType != "" {
		t.Errorf("in memory: %.20q, %v, %v", m.MediaType, ok, err)
	}
	w.do("GET", "/v2/a/manifests/"+d.String(), nil).is(200).has("Content-Type", long).equals(string(body))
	w.do("HEAD", "/v2/a/manifests/"+d.String(), nil).is(200).has("Content-Type", long)
	w.do("GET", "/v2/a/manifests/"+plain.String(), nil).is(200).has("Content-Type", "text/plain").equals("hello")
	tagged := `{"schemaVersion":2,"mediaType":"` + typeIndex + `","manifests":[` + desc(typeOther, body) + `]}`
	w.do("PUT", "/v2/a/manifests/"+strings.Replace(subject.String(), ":", "-", 1), []byte(tagged)).is(201)
	w.do("GET", "/v2/a/referrers/"+subject.String(), nil).is(200).contains(`"mediaType":"` + long + `"`)
}

// TestContentTypesOfManifests: a Content-Type that a browser would interpret, or that does not say what the manifest
// is, was stored and served.
func TestContentTypesOfManifests(t *testing.T) {
	w := newServer(t)
	config, layer := []byte("{}"), []byte("l")
	w.pushBlob("a", config)
	w.pushBlob("a", layer)
	img, idx := string(image(config, layer)), string(index())
	c := desc("application/vnd.oci.image.config.v1+json", config)
	bare := `{"schemaVersion":2,"config":` + c + `,"layers":[]}`
	const jsonType, bytesType = "application/json", "application/octet-stream"
	for _, row := range []struct{ contentType, body, want string }{ // want "": refused
		{"", img, typeManifest},
		{"", `{"mediaType":"` + typeOther + `"}`, typeOther},
		{jsonType, img, typeManifest},
		{jsonType + "; charset=utf-8", idx, typeIndex},
		{bytesType, img, typeManifest},
		{bytesType, bare, typeManifest},
		{jsonType, `{"schemaVersion":2,"manifests":[]}`, typeIndex},
		{jsonType, `{"schemaVersion":2,"mediaType":"` + typeDockerManifest + `","config":` + c + `,"layers":[]}`,
			typeDockerManifest},
		{strings.ToUpper(typeManifest), img, typeManifest},
		{typeManifest + ";charset=utf-8", img, typeManifest},
		{typeOther, `{}`, typeOther},
		{"application/vnd.in-toto+json", `hello`, "application/vnd.in-toto+json"},
		{"", strings.Replace(img, typeManifest, strings.ToUpper(typeManifest), 1), typeManifest},

		{jsonType, `{}`, ""},
		{jsonType, `{"mediaType":"` + typeOther + `"}`, ""},
		{jsonType, `{"config":` + c + `}`, ""},
		{jsonType, `{"schemaVersion":2,"config":` + c + `,"layers":[],"manifests":[]}`, ""},
		{bytesType, `hello`, ""},
		{"", `{"mediaType":"application/json"}`, ""},
		{"", `{"mediaType":"text/html"}`, ""},
		{"*/*", img, ""},
		{"application/*", img, ""},
		{"text/plain", img, ""},
		{"text/html", `<script>`, ""},
		{"image/svg+xml", `<svg/>`, ""},
		{typeManifest + ", " + typeIndex, img, ""},
		{typeManifest + " " + typeIndex, img, ""},
		{"multipart/form-data; boundary=x", img, ""},
		{"application/x-www-form-urlencoded", img, ""},
		{"application", img, ""},
		{typeManifest + "; charset", img, ""},
		{typeManifest + "/x", img, ""},
	} {
		a := w.do("PUT", "/v2/a/manifests/v", []byte(row.body), "Content-Type", row.contentType)
		if row.want == "" {
			named, _, _ := strings.Cut(row.contentType, ";")
			a.code(400, "MANIFEST_INVALID").contains(named)
			continue
		}
		a.is(201)
		w.do("HEAD", "/v2/a/manifests/v", nil).is(200).has("Content-Type", row.want)
		w.do("DELETE", "/v2/a/manifests/"+digest.FromString(row.body).String(), nil).is(202)
	}
	w.do("PUT", "/v2/a/manifests/v", []byte(img), "Content-Type", typeManifest, "Content-Type", typeOther).
		code(400, "MANIFEST_INVALID").contains(typeOther) // two headers are a list
}

// TestAHeldManifestKeepsItsMediaType: the same bytes with another Content-Type changed what an immutable tag names.
func TestAHeldManifestKeepsItsMediaType(t *testing.T) {
	w := newServer(t, func(o *registry.Options) { o.Immutable = func(string, string) bool { return true } })
	body := []byte(`{"x":1}`)
	d := digest.FromBytes(body)
	w.do("PUT", "/v2/a/manifests/v", body, "Content-Type", typeOther).is(201)
	for _, ref := range []string{"v", "w", d.String(), d.String() + "?tag=x"} {
		w.do("PUT", "/v2/a/manifests/"+ref, body, "Content-Type", typeSchema1).code(409, "MANIFEST_INVALID").
			contains(typeOther).contains(typeSchema1)
	}
	w.do("GET", "/v2/a/manifests/w", nil).is(404)
	w.do("GET", "/v2/a/manifests/v", nil).is(200).has("Content-Type", typeOther)
	w.do("PUT", "/v2/b/manifests/v", body, "Content-Type", typeSchema1).is(201) // another repository

	for i, held := range []string{"text/plain", "application/json", "*/*", "x",
		"application/" + strings.Repeat("x", 300)} {
		body := fmt.Appendf(nil, `{"n":%d}`, i)
		ref := w.hold("a", held, body).String()
		if len(held) < 255 {
			w.do("GET", "/v2/a/manifests/"+ref, nil).is(200).has("Content-Type", held)
		}
		w.do("PUT", "/v2/a/manifests/"+ref, body, "Content-Type", typeOther).is(201) // corrected
		w.do("PUT", "/v2/a/manifests/"+ref, body, "Content-Type", typeSchema1).code(409, "MANIFEST_INVALID")
		w.do("GET", "/v2/a/manifests/"+ref, nil).is(200).has("Content-Type", typeOther)
	}
}
