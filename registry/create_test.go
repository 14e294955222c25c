package registry_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
	"trow/registry/auth/authtest"
)

// creating runs a registry whose clients without a login may create.
func creating(t *testing.T, o auth.Options) (*server, *auth.Guard) {
	t.Helper()
	if len(o.Rules) == 0 {
		o.Anonymous = "create"
	}
	g := authtest.New(t, o)
	return newServer(t, func(o *registry.Options) { o.Auth = g }), g
}

// token gets a token as Docker's clients do. headers may have credentials.
func (w *server) token(g *auth.Guard, scope string, headers ...string) []string {
	w.Helper()
	r := httptest.NewRequest("GET", "/token?"+url.Values{"scope": {scope}}.Encode(), nil)
	r.Host = strings.TrimPrefix(w.url, "http://")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	g.ServeToken(rec, r)
	var body struct{ Token string }
	if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil || body.Token == "" {
		w.Fatalf("%d %s", rec.Code, rec.Body)
	}
	return []string{"Authorization", "Bearer " + body.Token}
}

// put pushes a manifest, whose blobs are here.
func (w *server) put(repo, ref string, manifest []byte, headers ...string) *answer {
	w.Helper()
	mediaType := typeManifest
	if strings.Contains(string(manifest), typeIndex) {
		mediaType = typeIndex
	}
	return w.do("PUT", "/v2/"+repo+"/manifests/"+ref, manifest,
		append([]string{"Content-Type", mediaType}, headers...)...)
}

// build makes an image whose blobs it pushes as Docker does: HEAD, POST, PATCH, PUT.
func (w *server) build(repo, content string, headers ...string) []byte {
	w.Helper()
	config, layer := []byte(`{"c":"`+content+`"}`), []byte("layer "+content)
	for _, b := range [][]byte{config, layer} {
		d := digest.FromBytes(b).String()
		if w.do("HEAD", "/v2/"+repo+"/blobs/"+d, nil, headers...).status == 200 {
			continue
		}
		at := w.do("POST", "/v2/"+repo+"/blobs/uploads/", nil, headers...).is(202).header.Get("Location")
		at = w.do("PATCH", at, b, headers...).is(202).header.Get("Location")
		w.do("PUT", at+"?digest="+d, nil, headers...).is(201)
	}
	return image(config, layer)
}

// TestAnonymousPushOverwroteWhatRuns: under anonymous: create new tags are accepted, and nothing that exists is
// changed.
func TestAnonymousPushOverwroteWhatRuns(t *testing.T) {
	w, _ := creating(t, auth.Options{})
	w.do("GET", "/v2/", nil).is(200)
	first, second := w.build("app", "1"), w.build("app", "2")
	d := digest.FromBytes(first).String()
	w.put("app", "v1", first).is(201)
	w.put("app", "v1", first).is(201)                                        // the same digest is no move
	w.put("app", digest.FromBytes(second).String(), second).is(201)          // by digest it is no tag
	w.put("app", d+"?tag=v2&tag=v3", first).is(201).has("OCI-Tag", "v2, v3") // end-7b
	moves := []string{"v1", "v1?tag=new", "new?tag=v1", digest.FromBytes(second).String() + "?tag=new&tag=v1"}
	for _, ref := range moves {
		w.put("app", ref, second).code(403, "DENIED").contains("tag v1 exists and names " + d).
			contains("trow token create NAME --repository app --actions pull,push")
	}
	w.do("GET", "/v2/app/manifests/v1", nil).is(200).has("Docker-Content-Digest", d)
	w.do("GET", "/v2/app/manifests/new", nil).is(404) // all tags of a push, or none
	w.do("DELETE", "/v2/app/manifests/v1", nil).code(403, "DENIED").contains("trow token create")
	w.do("DELETE", "/v2/app/manifests/"+d, nil).code(403, "DENIED")
	w.do("DELETE", "/v2/app/blobs/"+digest.FromString("layer 1").String(), nil).code(403, "DENIED")
}

// TestTheTypeOfAManifestIsNotChanged by pushing the same bytes under another type: clients would take it for something
// else.
func TestTheTypeOfAManifestIsNotChanged(t *testing.T) {
	w, _ := creating(t, auth.Options{})
	untyped := []byte(strings.Replace(string(w.build("app", "1")), `"mediaType":"`+typeManifest+`",`, "", 1))
	w.put("app", "v1", untyped).is(201)
	for _, ref := range []string{"v1", "v2", digest.FromBytes(untyped).String()} {
		w.do("PUT", "/v2/app/manifests/"+ref, untyped, "Content-Type", "application/x").code(409, "MANIFEST_INVALID")
	}
	w.do("GET", "/v2/app/manifests/v1", nil).is(200).has("Content-Type", typeManifest)
}

func TestARefusalNamesTheCommandThatGivesAccess(t *testing.T) {
	const command = "kubectl -n kube-public exec trow-0 -- /trow"
	w, g := creating(t, auth.Options{Program: command})
	first, second := w.build("team/app", "1"), w.build("team/app", "2")
	w.put("team/app", "v1", first).is(201)
	w.put("team/app", "v1", second).code(403, "DENIED").
		contains(command + " token create NAME --repository team/app --actions pull,push")
	secret, err := g.CreateRobot(t.Context(), auth.Robot{Name: "ci", Repositories: []string{"**"},
		Actions: []auth.Action{"push"}})
	if err != nil {
		t.Fatal(err)
	}
	// Now there is a login, and clients are asked for it.
	w.do("GET", "/v2/", nil).code(401, "UNAUTHORIZED")
	w.put("team/app", "v1", second).code(401, "UNAUTHORIZED").contains("tag v1 exists").
		has("Www-Authenticate",
			fmt.Sprintf(`Bearer realm="%s/token",service="%s",scope="repository:team/app:pull,push", `+
				`Basic realm="trow", charset="UTF-8"`, w.url, strings.TrimPrefix(w.url, "http://")))
	anonymous := w.token(g, "repository:team/app:pull,push")
	w.put("team/app", "v2", second, anonymous...).is(201)
	w.put("team/app", "v1", second, anonymous...).code(403, "DENIED").contains("log in (docker login)")
	r := httptest.NewRequest("GET", "/", nil)
	r.SetBasicAuth("ci", secret)
	w.put("team/app", "v1", second, "Authorization", r.Header.Get("Authorization")).is(201)
	w.put("team/app", "v1", first, w.token(g, "repository:team/app:pull,push", "Authorization",
		r.Header.Get("Authorization"))...).is(201)
}

// TestTwoCreatorsOfOneTag at the same time: exactly one wins, unless they push the same.
func TestTwoCreatorsOfOneTag(t *testing.T) {
	w, _ := creating(t, auth.Options{})
	const clients = 8
	var images [clients][]byte
	for i := range images {
		images[i] = w.build("app", fmt.Sprint(i))
	}
	race := func(tag string, image func(int) []byte) (created int) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for i := range clients {
			wg.Go(func() {
				a := w.put("app", tag, image(i))
				mu.Lock()
				defer mu.Unlock()
				switch a.status {
				case 201:
					created++
				default:
					a.code(403, "DENIED")
				}
			})
		}
		wg.Wait()
		return created
	}
	for n := range 20 {
		if got := race(fmt.Sprint("different-", n), func(i int) []byte { return images[i] }); got != 1 {
			t.Errorf("%d clients have created one tag", got)
		}
		if got := race(fmt.Sprint("same-", n), func(int) []byte { return images[n%clients] }); got != clients {
			t.Errorf("%d of %d clients have pushed the same", got, clients)
		}
	}
}

// signature returns a layer as cosign writes it: the signature is an annotation, and all have the same payload.
func signature(payload []byte, by string) string {
	return desc("application/vnd.dev.cosign.simplesigning.v1+json", payload,
		`,"annotations":{"dev.cosignproject.cosign/signature":"`+by+`"}`)
}

func signatures(config []byte, layers ...string) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, typeManifest,
		desc("application/vnd.oci.image.config.v1+json", config), strings.Join(layers, ","))
}

// TestASignatureIsAddedAndNotTakenAway: companions of a manifest that is here may grow.
func TestASignatureIsAddedAndNotTakenAway(t *testing.T) {
	for _, end := range []string{".sig", ".att", ".sbom", ""} {
		w, _ := creating(t, auth.Options{})
		subject := w.build("app", "1")
		w.put("app", "v1", subject).is(201)
		config, payload := []byte("{}"), []byte(`{"critical":{}}`)
		w.pushBlob("app", config)
		w.pushBlob("app", payload)
		alice, bob, eve := signature(payload, "alice"), signature(payload, "bob"), signature(payload, "eve")
		reordered := strings.Replace(alice, `"mediaType"`, `"x":1,"mediaType"`, 1)
		tag := strings.Replace(digest.FromBytes(subject).String(), ":", "-", 1) + end
		w.put("app", tag, signatures(config, alice)).is(201)
		w.put("app", tag, signatures(config, alice)).is(201)
		w.put("app", tag, signatures(config, alice, bob)).is(201)
		for what, body := range map[string][]byte{
			"one is missing":   signatures(config, alice),
			"none is left":     signatures(config),
			"one was replaced": signatures(config, alice, eve),
			"another field":    signatures(config, reordered, bob),
			"another type":     index(subject),
			"another subject": []byte(strings.Replace(string(signatures(config, alice, bob)), `"config"`,
				`"subject":`+desc(typeManifest, subject)+`,"config"`, 1)),
		} {
			a := w.put("app", tag, body)
			if a.status != 403 || !strings.Contains(string(a.body), "add to it") {
				t.Errorf("%s: %s: %d %s", end, what, a.status, a.body)
			}
		}
		w.put("app", tag, signatures(config, eve, bob, alice)).is(201)
		// A manifest that is not here has no companions.
		orphan := "sha256-" + zeros + end
		w.put("app", orphan, signatures(config, alice)).is(201)
		w.put("app", orphan, signatures(config, alice, bob)).code(403, "DENIED")
		for _, other := range []string{tag + "x", "sha512-" + tag[7:], tag[:70] + ".sig"} {
			w.put("app", other, signatures(config, alice)).is(201)
			w.put("app", other, signatures(config, alice, bob)).code(403, "DENIED")
		}
	}
}

// TestTheIndexOfReferrersGrows: clients for registries without a list of referrers keep one under sha256-<hex>.
func TestTheIndexOfReferrersGrows(t *testing.T) {
	w, _ := creating(t, auth.Options{})
	subject, a, b := w.build("app", "1"), w.build("app", "a"), w.build("app", "b")
	tag := strings.Replace(digest.FromBytes(subject).String(), ":", "-", 1)
	for _, m := range [][]byte{subject, a, b} {
		w.put("app", digest.FromBytes(m).String(), m).is(201)
	}
	w.put("app", tag, index(a)).is(201)
	w.put("app", tag, index(a, b)).is(201)
	w.put("app", tag, index(b)).code(403, "DENIED")
}

// TestManySignersAtOnce: each adds its own to what it has read, and nothing is lost.
func TestManySignersAtOnce(t *testing.T) {
	w, _ := creating(t, auth.Options{})
	subject, config, payload := w.build("app", "1"), []byte("{}"), []byte(`{"critical":{}}`)
	w.put("app", "v1", subject).is(201)
	w.pushBlob("app", config)
	w.pushBlob("app", payload)
	path := "/v2/app/manifests/" + strings.Replace(digest.FromBytes(subject).String(), ":", "-", 1) + ".sig"
	const signers = 6
	var wg sync.WaitGroup
	for i := range signers {
		wg.Go(func() {
			for range 100 { // as a person would: refused, it reads again
				var old struct{ Layers []json.RawMessage }
				if a := w.do("GET", path, nil); a.status == 200 {
					if err := json.Unmarshal(a.body, &old); err != nil {
						t.Error(err)
					}
				}
				layers := []string{}
				for _, l := range old.Layers {
					layers = append(layers, string(l))
				}
				layers = append(layers, signature(payload, fmt.Sprint(i)))
				if a := w.do("PUT", path, signatures(config, layers...), "Content-Type",
					typeManifest); a.status == 201 {
					return
				} else if a.status != 403 {
					t.Errorf("%d %s", a.status, a.body)
				}
			}
			t.Errorf("signer %d has no success", i)
		})
	}
	wg.Wait()
	body := string(w.do("GET", path, nil).is(200).body)
	for i := range signers {
		if !strings.Contains(body, fmt.Sprintf(`"dev.cosignproject.cosign/signature":"%d"`, i)) {
			t.Errorf("the signature of %d is lost: %s", i, body)
		}
	}
}

// TestWhatClientsCallUnderCreate plays the requests of clients; the table in README.md has the answers.
func TestWhatClientsCallUnderCreate(t *testing.T) {
	for _, login := range []bool{false, true} { // whether the registry has logins, so that clients get a token first
		w, g := creating(t, auth.Options{})
		headers := func() []string { return nil }
		if login {
			if _, err := g.CreateRobot(t.Context(), auth.Robot{Name: "ci", Repositories: []string{"**"},
				Actions: []auth.Action{"push"}}); err != nil {
				t.Fatal(err)
			}
			headers = func() []string { return w.token(g, "repository:app:pull,push") }
		}
		w.do("GET", "/v2/", nil).is(map[bool]int{false: http.StatusOK, true: http.StatusUnauthorized}[login])
		h := headers()

		// docker push, of a new tag and of the same tag after a build.
		v1, v2 := w.build("app", "1", h...), w.build("app", "2", h...)
		d := digest.FromBytes(v1)
		w.put("app", "v1", v1, h...).is(201)
		w.put("app", "v1", v2, h...).code(403, "DENIED")

		// skopeo copy of what is here: its blobs exist, and the tag names the same digest.
		w.build("app", "1", h...)
		w.put("app", "v1", v1, h...).is(201)

		// cosign sign, by two people: it reads the companion, and pushes it with one more layer.
		sig := strings.Replace(d.String(), ":", "-", 1) + ".sig"
		config, payload := []byte("{}"), []byte(`{"critical":{}}`)
		w.do("GET", "/v2/app/manifests/"+sig, nil, h...).is(404)
		for _, b := range [][]byte{config, payload} {
			w.do("POST", "/v2/app/blobs/uploads/?digest="+digest.FromBytes(b).String(), b, h...).is(201)
		}
		w.put("app", sig, signatures(config, signature(payload, "alice")), h...).is(201)
		w.do("GET", "/v2/app/manifests/"+sig, nil, h...).is(200)
		w.put("app", sig, signatures(config, signature(payload, "alice"), signature(payload, "bob")), h...).is(201)

		// oras attach: the manifest has a subject, and is pushed by digest.
		attached := image(config, payload, `,"subject":`+desc(typeManifest, v1))
		w.put("app", digest.FromBytes(attached).String(), attached, h...).is(201).has("OCI-Subject", d.String())
		w.do("GET", "/v2/app/referrers/"+d.String(), nil, h...).is(200).contains(digest.FromBytes(attached).String())

		// buildx --cache-to type=registry: the first export sets the tag, the next one would move it.
		w.put("app", "cache", w.build("app", "cache 1", h...), h...).is(201)
		w.put("app", "cache", w.build("app", "cache 2", h...), h...).code(403, "DENIED")

		// Cross-repository mount, as docker and buildx try it.
		other := "/v2/other/blobs/uploads/?from=app&mount=" + digest.FromString("layer 1").String()
		if login {
			h = w.token(g, "repository:other:pull,push repository:app:pull")
		}
		w.do("POST", other, nil, h...).is(201)
	}
}

// TestRulesAndRobotsThatMayCreate: create is an action like others; push includes it.
func TestRulesAndRobotsThatMayCreate(t *testing.T) {
	w, g := creating(t, auth.Options{Rules: []auth.Rule{
		{Who: []string{"anonymous"}, May: []string{"pull", "create"}, Repositories: []string{"open/**"}},
		{Who: []string{"robot:ci"}, May: []string{"pull", "push"}}}})
	login := func(name string, actions ...auth.Action) []string {
		secret, err := g.CreateRobot(t.Context(), auth.Robot{Name: name, Repositories: []string{"**"},
			Actions: actions})
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.SetBasicAuth(name, secret)
		return []string{"Authorization", r.Header.Get("Authorization")}
	}
	ci := login("ci", "pull", "create")
	v1, v2 := w.build("open/app", "1"), w.build("open/app", "2")
	w.put("open/app", "v1", v1).is(201)
	w.put("open/app", "v1", v2, ci...).code(403, "DENIED").contains("robot:ci may create here, but not push")
	w.put("open/app", "v2", v2, ci...).is(201)
	w.do("POST", "/v2/closed/blobs/uploads/", nil).code(401, "UNAUTHORIZED")
	w.do("POST", "/v2/closed/blobs/uploads/", nil, ci...).is(202)
	both := w.token(g, "repository:open/app:pull,push", ci...)
	w.put("open/app", "v3", v2, both...).is(201)
	w.put("open/app", "v1", v2, both...).code(403, "DENIED")
	w.put("open/app", "v4", v2, w.token(g, "repository:open/app:pull", ci...)...).code(401, "UNAUTHORIZED")
	w.put("open/app", "v4", v2, w.token(g, "repository:open/app:create", ci...)...).is(201)
}

// TestACompanionOfASHA512 has the first half of the digest in its name.
func TestACompanionOfASHA512(t *testing.T) {
	for _, end := range []string{"", ".sig", ".att", ".sbom"} {
		t.Run(end, func(t *testing.T) { companionOfASHA512(t, end) })
	}
}

func companionOfASHA512(t *testing.T, end string) {
	w := newServer(t, func(o *registry.Options) { o.Immutable = func(repo, _ string) bool { return repo == "prod" } })
	subject, other := w.build("prod", "1"), w.build("prod", "2")
	d := digest.SHA512.FromBytes(subject)
	tag := "sha512-" + d.Encoded()[:64] + end
	for _, body := range [][]byte{subject, other} {
		w.put("prod", digest.FromBytes(body).String(), body).is(201)
	}
	w.put("prod", tag, index(subject)).is(201)
	w.put("prod", tag, index(subject, other)).code(403, "DENIED") // the manifest with that digest is not here
	w.do("DELETE", "/v2/prod/manifests/"+tag, nil).is(202)
	w.put("prod", d.String(), subject).is(201)
	w.put("prod", tag, index(subject)).is(201)
	w.put("prod", tag, index(subject, other)).is(201)
	w.put("prod", tag, index(other)).code(403, "DENIED").contains("add to it")
	w.do("DELETE", "/v2/prod/manifests/"+tag, nil).code(403, "DENIED")
	w.do("DELETE", "/v2/prod/manifests/"+d.String(), nil).is(202)
	w.do("DELETE", "/v2/prod/manifests/"+tag, nil).is(202)
}

// TestACompanionUnderAnImmutableTag: the second signature of an image was refused, and so was the index of its
// referrers.
func TestACompanionUnderAnImmutableTag(t *testing.T) {
	for _, end := range []string{".sig", ".att", ".sbom", ""} {
		w := newServer(t, func(o *registry.Options) {
			o.Immutable = func(repo, _ string) bool { return repo == "prod" }
		})
		subject := w.build("prod", "1")
		d := digest.FromBytes(subject).String()
		w.put("prod", d, subject).is(201) // without a tag, which would be immutable as well
		config, payload := []byte("{}"), []byte(`{"critical":{}}`)
		w.pushBlob("prod", config)
		w.pushBlob("prod", payload)
		alice, bob, eve := signature(payload, "alice"), signature(payload, "bob"), signature(payload, "eve")
		tag := strings.Replace(d, ":", "-", 1) + end
		w.put("prod", tag, signatures(config, alice)).is(201)
		w.put("prod", tag, signatures(config, alice, bob)).is(201)
		for what, body := range map[string][]byte{"one is missing": signatures(config, alice),
			"one was replaced": signatures(config, alice, eve), "another type": index(subject)} {
			if a := w.put("prod", tag, body); a.status != 403 || !strings.Contains(string(a.body), "add to it") {
				t.Errorf("%s: %s: %d %s", end, what, a.status, a.body)
			}
		}
		// It ends when its manifest ends, and not before.
		w.do("DELETE", "/v2/prod/manifests/"+tag, nil).code(403, "DENIED")
		w.do("DELETE", "/v2/prod/manifests/"+digest.FromBytes(signatures(config, alice, bob)).String(), nil).
			code(403, "DENIED")
		w.do("DELETE", "/v2/prod/manifests/"+d, nil).is(202)
		w.put("prod", tag, signatures(config, alice, bob, eve)).code(403, "DENIED") // of nothing that is here
		w.do("DELETE", "/v2/prod/manifests/"+tag, nil).is(202)
	}
}
