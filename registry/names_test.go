package registry

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/ocierror"
)

// asGo are the digests that a client with encoding/json finds in a manifest.
func asGo(t *testing.T, body []byte) (all []digest.Digest) {
	t.Helper()
	var m struct {
		v1.Manifest
		Manifests []v1.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	if m.Config.Digest != "" {
		all = append(all, m.Config.Digest)
	}
	for _, d := range append(m.Layers, m.Manifests...) {
		all = append(all, d.Digest)
	}
	return all
}

// variants are a name in other cases, and with the letters of Unicode that encoding/json takes for ASCII ones.
func variants(name string) []string {
	all := []string{strings.ToUpper(name), strings.ToUpper(name[:1]) + name[1:], strings.ToLower(name),
		name[:1] + strings.ToUpper(name[1:]), strings.ReplaceAll(name, "s", "ſ"),
		strings.ReplaceAll(name, "k", "\u212a")}
	all = append(all, strings.ReplaceAll(strings.ToUpper(name), "S", `\u017f`)) // the same, escaped
	return slices.DeleteFunc(all, func(s string) bool { return s == name })
}

// TestNamesThatDifferByCase: the registry checked "layers", and clients in Go ran "Layers".
func TestNamesThatDifferByCase(t *testing.T) {
	d := func(s string) string { return `{"digest":"` + digest.FromString(s).String() + `","size":1}` }
	pair := []byte(`{"schemaVersion":2,"config":` + d("c") + `,"layers":[` + d("A") + `],"Layers":[` + d("B") + `]}`)
	if got := asGo(t, pair); !slices.Contains(got, digest.FromString("B")) {
		t.Fatalf("encoding/json reads %v: this test proves nothing", got)
	}
	refused := func(mediaType, body string) {
		t.Helper()
		_, err := parseManifest(mediaType, []byte(body))
		if e := ocierror.As(err); e == nil || e.Code != ocierror.ManifestInvalid ||
			!strings.Contains(e.Message, "but for case") {
			t.Errorf("%s: %v", body, err)
		}
		if _, ok := ReadManifest([]byte(strings.Replace(body, "{", `{"mediaType":"`+mediaType+`",`, 1))); !ok {
			t.Errorf("a repair would lose %s", body)
		}
	}
	refused(typeOCIManifest, string(pair))
	image := func(config, layer, more string) string {
		return `{"schemaVersion":2,"config":` + config + `,"layers":[` + layer + `]` + more + `}`
	}
	index := func(child, more string) string { return `{"schemaVersion":2,"manifests":[` + child + `]` + more + `}` }
	with := func(object, member string) string { return strings.TrimSuffix(object, "}") + "," + member + "}" }
	for _, mediaType := range []string{typeOCIManifest, typeDockerManifest, typeOCIIndex, typeDockerList} {
		images := mediaType == typeOCIManifest || mediaType == typeDockerManifest
		for _, name := range []string{"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests",
			"subject", "annotations"} {
			for _, v := range variants(name) {
				if member := `,"` + v + `":null`; images {
					refused(mediaType, image(d("c"), d("l"), member))
				} else {
					refused(mediaType, index(d("m"), member))
				}
			}
		}
		names := []string{"mediaType", "digest", "size", "urls", "annotations", "data", "artifactType", "platform"}
		platform := []string{"architecture", "os", "os.version", "os.features", "variant"}
		var members []string
		for _, name := range names {
			for _, v := range variants(name) {
				members = append(members, `"`+v+`":null`)
			}
		}
		for _, name := range platform {
			for _, v := range variants(name) {
				members = append(members, `"platform":{"`+v+`":null}`)
			}
		}
		for _, member := range members {
			if images {
				refused(mediaType, image(with(d("c"), member), d("l"), ""))
				refused(mediaType, image(d("c"), d("k")+","+with(d("l"), member), ""))
				refused(mediaType, image(d("c"), d("l"), `,"subject":`+with(d("s"), member)))
			} else {
				refused(mediaType, index(d("k")+","+with(d("m"), member), ""))
				refused(mediaType, index(d("m"), `,"subject":`+with(d("s"), member)))
			}
		}
	}
	for _, body := range []string{
		image(d("c"), d("l"), `,"annotations":{"Layers":"","layers":"","DIGEST":""}`),
		image(with(d("c"), `"annotations":{"Digest":""}`), d("l"), `,"x":{"Layers":[]},"layer":[],"lay-ers":1,"ſ":1`),
		image(with(d("c"), `"platform":null`), with(d("l"), `"platform":[[{"OS":1}]]`), ""),
		image(d("c"), d("l"), `,"`+strings.Repeat("ſ", 1000)+`":1`),
	} {
		if _, err := parseManifest(typeOCIManifest, []byte(body)); err != nil {
			t.Errorf("%s: %v", body, err)
		}
	}
	if _, err := parseManifest("application/vnd.example+json", []byte(`{"Layers":[],"layers":[]}`)); err != nil {
		t.Errorf("a manifest of another type: %v", err)
	}
}
