package admission_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/admission"
	trow "trow/registry"
	"trow/registry/namespace"
	"trow/registry/upstream"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// mirrored is a registry with content of other registries, as trow check sees it.
type mirrored struct {
	*testing.T
	trow.Images
	index  *storage.Index
	up     *upstream.Upstreams
	bodies map[digest.Digest][]byte // of indexes
}

const hubSite = "hub.trow.example"

func newMirrored(t *testing.T, entries ...upstream.Entry) *mirrored {
	t.Helper()
	names := namespace.NewTable([]namespace.Site{{Host: hubSite, Upstream: "docker.io"}})
	m := &mirrored{T: t, index: storagetest.OpenIndex(t, memory.NewJournal()), bodies: map[digest.Digest][]byte{}}
	m.up = upstream.New(upstream.Config{Names: names, Offline: true})
	m.set(entries...)
	m.Images = trow.StoredImages(m.index, names, m.up, func(_ context.Context, d digest.Digest) ([]byte, error) {
		if body, ok := m.bodies[d]; ok {
			return body, nil
		}
		return nil, errors.New("not there")
	})
	return m
}

func (m *mirrored) set(entries ...upstream.Entry) {
	m.Helper()
	if err := m.up.Set(entries); err != nil {
		m.Fatal(err)
	}
}

// hold records an image of one layer under a tag; cached: it came from the upstream. Without its layer it is not whole.
func (m *mirrored) hold(repo, tag, content string, cached, whole bool) digest.Digest {
	m.Helper()
	layer := digest.FromString("layer of " + content)
	return m.put(repo, tag, storage.Manifest{Digest: digest.FromString(content), Refs: []digest.Digest{layer},
		MediaType: "application/vnd.oci.image.manifest.v1+json", Cached: cached}, whole, layer)
}

func (m *mirrored) put(repo, tag string, s storage.Manifest, link bool, blobs ...digest.Digest) digest.Digest {
	m.Helper()
	storagetest.Update(m, m.index, repo, func(tx *storage.Tx) error {
		for _, d := range blobs {
			if link && s.Cached {
				tx.LinkCached(d, 1)
			} else if link {
				tx.Link(d, 1)
			}
		}
		if err := tx.PutManifest(s); err != nil || tag == "" {
			return err
		}
		return tx.SetTag(tag, s.Digest)
	})
	return s.Digest
}

// child is a part of an index.
type child struct {
	platform string // os/arch[/variant]; empty: none
	of       digest.Digest
}

// hub is an index that names its children; bytes says whether its bytes can be read.
func (m *mirrored) multi(repo, tag string, cached, bytes bool, children ...child) digest.Digest {
	m.Helper()
	var list []map[string]any
	var refs []digest.Digest
	for _, c := range children {
		o := map[string]any{"digest": c.of, "size": 1}
		if p := strings.Split(c.platform, "/"); len(p) > 1 {
			platform := map[string]any{"os": p[0], "architecture": p[1]}
			if len(p) > 2 {
				platform["variant"] = p[2]
			}
			o["platform"] = platform
		}
		list, refs = append(list, o), append(refs, c.of)
	}
	body, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": list, "annotations": tag})
	if err != nil {
		m.Fatal(err)
	}
	d := digest.FromBytes(body)
	if bytes {
		m.bodies[d] = body
	}
	return m.put(repo, tag, storage.Manifest{Digest: d, Refs: refs, Cached: cached,
		MediaType: "application/vnd.oci.image.index.v1+json"}, false)
}

func (m *mirrored) decide(o admission.PolicyOptions, image string) admission.Verdict {
	m.Helper()
	return newPolicy(m, o).Decide(m.Context(), m, image)
}

// oneImage are names of images: all names of a group mean the same one, and no name of another group does.
var oneImage = [][]string{
	{"nginx", "nginx:latest", "docker.io/nginx", "docker.io/library/nginx", "index.docker.io/nginx:latest",
		"registry-1.docker.io/library/nginx", "DOCKER.io/nginx", "docker.io:443/library/nginx",
		"docker.io:0443/nginx", host + "/f/docker.io/library/nginx", "trow:31000/f/docker.io/nginx:latest",
		"TROW:31000/f/docker.io/library/nginx", "trow:031000/f/index.docker.io/nginx",
		host + "/f/registry-1.docker.io/library/nginx", host + "/f/docker.io__443/nginx", hubSite + "/nginx",
		hubSite + "/library/nginx", hubSite + ":5000/library/nginx",
		"Hub.Trow.example/f/docker.io/library/nginx", host + "/f/" + hubSite + "/nginx"},
	{"quay.io/team/app@" + aDigest, "quay.io/team/app:1@" + aDigest, "quay.io:443/team/app@" + aDigest,
		host + "/f/quay.io/team/app@" + aDigest, host + "/f/quay.io/team/app:other@" + aDigest},
	{"lan.example:5000/app:1", "lan.example:05000/app:1", host + "/f/lan.example__5000/app:1",
		"LAN.example:5000/app:1", host + "/f/lan.example__05000/app:1"},
	{"ghcr.io/org/tool:1", host + "/f/gh/org/tool:1", host + "/f/ghcr.io/org/tool:1", "GHCR.IO/org/tool:1"}, // as: gh
	{"other.example/a:1", host + "/f/taken.example/a:1", host + "/f/other.example/a:1"},
	{"taken.example/a:1"}, // whose name here is that of other.example
	{"docker.io/library/library/nginx", host + "/f/docker.io/library/library/nginx"},
	{host + "/f/team/app:1", "trow:31000/f/team/app:1"}, // no image names such a host
	{host + "/f/trow__31000/app:1", "trow:31000/f/trow__31000/app:1"},
	{host + "/app:1", "trow:31000/app:1"},
}

var aDigest = digest.FromString("x").String()

// rulesAbout returns policies whose rules are about one image, under this name.
func rulesAbout(image string) (deny, allow map[string]admission.PolicyOptions) {
	name, _, _ := strings.Cut(image, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	first, path, _ := strings.Cut(name, "/")
	if !strings.ContainsAny(first, ".:") {
		return nil, nil // rules have a host
	}
	deny = map[string]admission.PolicyOptions{
		"deny": {Default: "Allow", Deny: []string{name}},
		"deny longest": {Default: "Allow", Allow: []string{"docker.io", hubSite, host, "quay.io"},
			Deny: []string{name}},
	}
	if strings.HasPrefix(strings.ToLower(name), "trow") {
		deny["disallow-local-prefixes"] = admission.PolicyOptions{DisallowLocalPrefixes: []string{path},
			AllowPrefixes: []string{name}}
		deny["disallow-local-images"] = admission.PolicyOptions{AllowImages: []string{image},
			DisallowLocalImages: []string{strings.TrimPrefix(image, first+"/")}}
	}
	return deny, map[string]admission.PolicyOptions{
		"allow":         {AllowPrefixes: []string{name}},
		"allow image":   {AllowImages: []string{image}},
		"allow longest": {Allow: []string{name}, Deny: []string{"docker.io", hubSite, host, "quay.io"}},
	}
}

// TestOneImageHasOneVerdict: a rule that is written for one name of an image holds for all of them.
func TestOneImageHasOneVerdict(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "ghcr.io", As: "gh"},
		upstream.Entry{Host: "other.example", As: "taken.example"})
	for n, names := range oneImage {
		for _, name := range names {
			deny, allow := rulesAbout(name)
			for what, o := range deny {
				p := newPolicy(t, o)
				for g, images := range oneImage {
					for _, image := range images {
						v := p.Decide(t.Context(), m, image)
						if v.Err != nil || (v.Reason == admission.OnDenyList) != (g == n) {
							t.Errorf("%s: a rule for %s: %s: %s, %v", what, name, image, v.Reason, v.Err)
						}
					}
				}
			}
			for what, o := range allow {
				p := newPolicy(t, o)
				for g, images := range oneImage {
					for _, image := range images {
						if v := p.Decide(t.Context(), m, image); v.Allowed != (g == n) {
							t.Errorf("%s: a rule for %s: %s: %s, allowed %v", what, name, image, v.Reason, v.Allowed)
						}
					}
				}
			}
		}
	}
}

// TestNamesFollowTheSettings: rules are about what names mean now.
func TestNamesFollowTheSettings(t *testing.T) {
	m := newMirrored(t)
	p := newPolicy(t, admission.PolicyOptions{AllowPrefixes: []string{host + "/f/q"}, Deny: []string{"quay.io/bad"}})
	allowed := func(image string) bool { return p.Decide(t.Context(), m, image).Allowed }
	if allowed("quay.io/a") || allowed(host+"/f/q/a") == false {
		t.Error("f/q is not a name of this registry alone, before quay.io has it")
	}
	m.set(upstream.Entry{Host: "quay.io", As: "q"})
	if !allowed("quay.io/a") || !allowed(host+"/f/q/a") || !allowed(host+"/f/quay.io/a") {
		t.Error("f/q is not quay.io")
	}
	if allowed("quay.io/bad") || allowed(host+"/f/q/bad") || allowed(host+"/f/quay.io/bad") {
		t.Error("a rule for quay.io is not one for f/q")
	}
	m.set(upstream.Entry{Host: "ghcr.io", As: "q"})
	if allowed("quay.io/a") || !allowed("ghcr.io/a") || !allowed(host+"/f/q/bad") || allowed(host+"/f/quay.io/bad") {
		t.Error("f/q is not ghcr.io")
	}
}

// TestRulesForTheWholeRegistry are not about other registries: they concern images that are written with its name.
func TestRulesForTheWholeRegistry(t *testing.T) {
	m := newMirrored(t)
	const nginx = "/f/docker.io/library/nginx"
	for _, rule := range []string{host, host + "/", "trow:31000/f", host + "/f/"} {
		p := newPolicy(t, admission.PolicyOptions{AllowPrefixes: []string{rule}, Deny: []string{"quay.io"}})
		for image, want := range map[string]bool{"nginx": false, hubSite + "/nginx": false, host + nginx: true,
			host + "/f/quay.io/a": false, host + "/f/team/app": true} {
			if got := p.Decide(t.Context(), m, image).Allowed; got != want {
				t.Errorf("allow %s: %s is allowed: %v", rule, image, got)
			}
		}
		for what, o := range map[string]admission.PolicyOptions{"deny": {Deny: []string{rule}},
			"disallow": {DisallowLocalPrefixes: []string{rule}}} {
			o.AllowImages, o.DisallowLocalImages = []string{"docker.io/redis"}, nil
			o.AllowPrefixes = []string{"quay.io"}
			p := newPolicy(t, o)
			// A rule for the other registry counts more than one for this one as a whole, but nothing undoes disallow.
			for image, want := range map[string]bool{"quay.io/a": true, "redis": true, host + nginx: false,
				host + "/f/quay.io/a": what == "deny", host + "/f/team/app": false} {
				if got := p.Decide(t.Context(), m, image).Allowed; got != want {
					t.Errorf("%s %s: %s is allowed: %v", what, rule, image, got)
				}
			}
		}
	}
}

// TestATwofoldName: with a mirror whose URL has the path, docker.io/f/docker.io/library/nginx is nginx, and without one
// it is another image.
func TestATwofoldName(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "ghcr.io", As: "gh"})
	p := newPolicy(t, admission.PolicyOptions{Default: "Allow", Deny: []string{"docker.io/library/nginx"}})
	for image, other := range map[string]string{"docker.io/f/docker.io/library/nginx": "docker.io/nginx",
		"f/docker.io/nginx": "docker.io/nginx", "index.docker.io/f/registry-1.docker.io/nginx:1": "docker.io/nginx",
		"ghcr.io/f/gh/a": "ghcr.io/a", "ghcr.io/f/ghcr.io/a@" + aDigest: "ghcr.io/a"} {
		v := p.Decide(t.Context(), m, image)
		if v.Allowed || v.Reason != admission.InvalidReference || !strings.HasSuffix(v.Sentence, "takes it for "+other+
			"; write that") {
			t.Errorf("%s: %s, %q", image, v.Reason, v.Sentence)
		}
	}
	for _, image := range []string{"quay.io/f/docker.io/library/nginx", "docker.io/f/quay.io/a", "docker.io/f/a", "f/a",
		"other.trow.example/f/docker.io/library/nginx"} {
		if v := p.Decide(t.Context(), m, image); !v.Allowed {
			t.Errorf("%s: %s", image, v.Sentence)
		}
	}
}

// Some states of an image here.
const (
	absent   = "absent"
	part     = "cached in part"
	cached   = "cached"
	imported = "imported"
	piece    = "imported in part"
)

// TestMayRun: rules that deny come first, then those that allow, then may-run, then default.
func TestMayRun(t *testing.T) {
	const yes = ""
	type policy = admission.PolicyOptions
	type row struct {
		mayRun upstream.MayRun
		policy policy
		want   map[string]admission.Reason // by state; "": every other one
	}
	open, rule := policy{Default: "Allow"}, policy{AllowPrefixes: []string{"docker.io/library/nginx"}}
	image := policy{AllowImages: []string{host + "/f/docker.io/library/nginx:1"}}
	denied := policy{Default: "Allow", Deny: []string{"docker.io"}, AllowDockerOfficial: false}
	type all = map[string]admission.Reason
	for i, tt := range []row{
		{"", policy{}, all{imported: admission.Held, "": admission.NotAllowed}},
		{"", open, all{imported: admission.Held, "": admission.DefaultAllow}},
		{"", rule, all{"": admission.AllowPrefixes}},
		{"", denied, all{"": admission.OnDenyList}},
		{upstream.MayRunDeny, open, all{"": admission.MayRunDeny}},
		{upstream.MayRunDeny, rule, all{"": admission.AllowPrefixes}},
		{upstream.MayRunDeny, denied, all{"": admission.OnDenyList}},
		{upstream.MayRunAllow, policy{}, all{"": admission.MayRunAllow}},
		{upstream.MayRunAllow, image, all{"": admission.AllowImages}},
		{upstream.MayRunAllow, denied, all{"": admission.OnDenyList}},
		{upstream.MayRunHeld, open, all{cached: admission.Held, imported: admission.Held, "": admission.NotHeld}},
		{upstream.MayRunHeld, policy{}, all{cached: admission.Held, imported: admission.Held, "": admission.NotHeld}},
		{upstream.MayRunHeld, image, all{"": admission.AllowImages}},
		{upstream.MayRunHeld, denied, all{"": admission.OnDenyList}},
		{upstream.MayRunFetch, policy{}, all{imported: admission.Held, "": admission.MayRunFetch}},
		{upstream.MayRunFetch, rule, all{"": admission.AllowPrefixes}},
		{upstream.MayRunFetch, denied, all{"": admission.OnDenyList}},
	} {
		m := newMirrored(t, upstream.Entry{Host: "docker.io", MayRun: tt.mayRun}, upstream.Entry{Host: "lan.example"})
		states := map[string]digest.Digest{absent: digest.FromString("nothing")}
		tags := map[string]string{absent: "0", part: "2", cached: "3", imported: "4", piece: "5"}
		for state, tag := range tags {
			if state != absent {
				states[state] = m.hold("f/docker.io/library/nginx", tag, state, state == part || state == cached,
					state == cached || state == imported)
			}
		}
		for state, tag := range tags {
			want, ok := tt.want[state]
			if !ok {
				want = tt.want[""]
			}
			o := tt.policy
			if len(o.AllowImages) > 0 {
				o.AllowImages = []string{host + "/f/docker.io/library/nginx:" + tag,
					host + "/f/docker.io/library/nginx@" + states[state].String()}
			}
			for _, name := range []string{"nginx", "docker.io/library/nginx", host + "/f/docker.io/library/nginx",
				host + "/f/docker.io/nginx", hubSite + "/nginx"} {
				for _, ref := range []string{":" + tag, "@" + states[state].String(),
					":other@" + states[state].String()} {
					v := m.decide(o, name+ref)
					expected := want
					if want == admission.NotAllowed && v.Local {
						expected = admission.NotHeld
					}
					if v.Reason != expected || v.Allowed != (v.Sentence == yes) {
						t.Errorf("%d: may-run %q, %s: %s: %s, %q; want %s", i, tt.mayRun, state, name+ref, v.Reason,
							v.Sentence, expected)
					}
					if (v.Digest != "") != (v.Reason == admission.Held) || v.Digest != "" && v.Digest != states[state] {
						t.Errorf("%d: %s: digest %q", i, name+ref, v.Digest)
					}
				}
			}
		}
	}
}

// TestMayRunOfAPartOfAnUpstream: the entry with the longest path counts, and what it excludes it does not open.
func TestMayRunOfAPartOfAnUpstream(t *testing.T) {
	m := newMirrored(t,
		upstream.Entry{Host: "quay.io", MayRun: upstream.MayRunHeld},
		upstream.Entry{Host: "quay.io", Path: "team", MayRun: upstream.MayRunAllow, Deny: []string{"team/secret/**"}},
		upstream.Entry{Host: "quay.io", Path: "team/old", MayRun: upstream.MayRunDeny},
		upstream.Entry{Host: "quay.io", Path: "team/unset"},
		upstream.Entry{Host: "docker.io", MayRun: upstream.MayRunFetch, Allow: []string{"library/*"}},
		upstream.Entry{Host: "registry.k8s.io", MayRun: upstream.MayRunHeld})
	long := strings.Repeat("a", 200)
	m.hold("f/quay.io/team/secret/x", "1", "a secret", false, true)
	for image, want := range map[string]admission.Reason{
		"quay.io/other":                     admission.NotHeld,
		"quay.io/teams/app":                 admission.NotHeld,
		"quay.io/team/app":                  admission.MayRunAllow,
		"quay.io/team":                      admission.MayRunAllow,
		"quay.io/team/secret/x":             admission.NotAllowed,
		"quay.io/team/secret/x:1":           admission.Held, // imported
		"quay.io/team/old/x":                admission.MayRunDeny,
		"quay.io/team/unset/x":              admission.NotAllowed,
		"nginx":                             admission.MayRunFetch,
		"team/app":                          admission.NotAllowed,
		"quay.io/" + long + "/" + long[:46]: admission.NotHeld, // too long to be here
		"registry.k8s.io/pause:3.10":        admission.NotHeld, // an entry counts more than the default
		"k8s.gcr.io/pause:3.1":              admission.K8sImages,
		host + "/f/registry.k8s.io/pause:3": admission.NotHeld,
		host + "/f/k8s.gcr.io/pause:3.1":    admission.K8sImages,
	} {
		if v := m.decide(admission.PolicyOptions{}, image); v.Reason != want {
			t.Errorf("%s: %s, want %s", image, v.Reason, want)
		}
	}
	// Other settings count for the next verdict.
	p := newPolicy(t, admission.PolicyOptions{})
	for _, mayRun := range []upstream.MayRun{upstream.MayRunDeny, upstream.MayRunAllow, upstream.MayRunDeny} {
		m.set(upstream.Entry{Host: "quay.io", MayRun: mayRun})
		if v := p.Decide(t.Context(), m, "quay.io/a"); v.Allowed != (mayRun == upstream.MayRunAllow) {
			t.Errorf("may-run: %s: %s", mayRun, v.Reason)
		}
	}
}

// TestSentencesOfOtherRegistries, and what to do about them.
func TestSentencesOfOtherRegistries(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "docker.io", MayRun: upstream.MayRunHeld},
		upstream.Entry{Host: "quay.io", MayRun: upstream.MayRunDeny},
		upstream.Entry{Host: "quay.io", Path: "team", MayRun: upstream.MayRunDeny})
	m.hold("f/ghcr.io/a", "1", "x", true, true)
	m.hold("f/ghcr.io/a", "2", "y", false, false)
	m.hold("f/docker.io/library/redis", "1", "z", true, false)
	for image, want := range map[string][]string{
		"nginx:1.25": {"Remote image docker.io/nginx:1.25 disallowed as not held here (may-run: held of upstream " +
			"docker.io)", "not held: pull it once through this registry (trow warm): nginx:1.25"},
		"redis:1": {"Remote image docker.io/redis:1 disallowed as not held here (may-run: held of upstream " +
			"docker.io)", "held only in part; foreign layers (urls) never are: redis:1",
			"not held: pull it once through this registry (trow warm): redis:1"},
		"nginx@" + aDigest: {"Remote image docker.io/nginx@" + aDigest + " disallowed as not held here (may-run: " +
			"held of upstream docker.io)", "not held: pull it once through this registry (trow warm)"},
		host + "/f/docker.io/nginx:1": {"Local image " + host + "/f/docker.io/nginx:1 disallowed as not held here " +
			"(may-run: held of upstream docker.io)",
			"not held: pull it once through this registry (trow warm): " + host + "/f/docker.io/nginx:1"},
		"quay.io/a": {"Remote image quay.io/a disallowed by may-run: deny of upstream quay.io; allow it by name " +
			"(allow-images), or change may-run"},
		"QUAY.io/team/a": {"Remote image quay.io/team/a disallowed by may-run: deny of upstream quay.io/team; allow " +
			"it by name (allow-images), or change may-run"},
		"ghcr.io/a:1": {remote("ghcr.io/a"), "cached here, which allows nothing: allow it, or set may-run of its " +
			"upstream: ghcr.io/a"},
		host + "/f/ghcr.io/a:1": {local(host + "/f/ghcr.io/a:1"), "cached here, which allows nothing: allow it, or " +
			"set may-run of its upstream: ghcr.io/a"},
		"ghcr.io/a:2":           {remote("ghcr.io/a"), "imported, but not here as a whole: ghcr.io/a:2"},
		"ghcr.io/a:3":           {remote("ghcr.io/a")},
		host + "/f/ghcr.io/a:3": {local(host + "/f/ghcr.io/a:3")},
		host + "/f/team/app:1": {local(host + "/f/team/app:1"), // clients may not push there
			"no registry has this name here; name the image as its own registry does: " + host + "/f/team/app:1"},
	} {
		v := m.decide(admission.PolicyOptions{}, image)
		if got := append([]string{v.Sentence}, v.Hints...); strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s:\n got %q\nwant %q", image, got, want)
		}
		for _, hint := range v.Hints {
			if len(hint) > 120 {
				t.Errorf("%s: a hint has %d characters: %s", image, len(hint), hint)
			}
		}
	}
}

// TestATagOfWhatIsHeld is what the origin says on a node that does not pull through this registry.
func TestATagOfWhatIsHeld(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "docker.io", MayRun: upstream.MayRunHeld})
	d := m.hold("f/docker.io/library/nginx", "1", "x", true, true)
	m.hold("f/quay.io/a", "1", "y", false, true)
	long := strings.Repeat("long/", 20) + "a"
	m.hold("f/quay.io/"+long, "1", "z", false, true)
	const warning = "nodes that do not pull through this registry get the tag of the origin; a digest is exact"
	w := newHook(admission.Options{Images: m, Policy: newPolicy(t, admission.PolicyOptions{})})
	for image, want := range map[string]string{
		"docker.io/nginx:1":              warning + ": docker.io/nginx:1",
		"quay.io/a:1":                    warning + ": quay.io/a:1",
		"quay.io/" + long + ":1":         warning,
		hubSite + "/nginx:1":             "",
		"docker.io/nginx@" + string(d):   "",
		"docker.io/nginx:1@" + string(d): "",
		host + "/f/docker.io/nginx:1":    "",
	} {
		r := reviewPod(t, w, podOf(image, image, image))
		if got := strings.Join(r.Warnings, "\n"); !r.Allowed || got != want || len(got) > 120 {
			t.Errorf("%s: allowed %v, %q; want %q", image, r.Allowed, got, want)
		}
	}
}

// TestHeldForThePlatforms of the cluster.
func TestHeldForThePlatforms(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "quay.io", MayRun: upstream.MayRunHeld})
	const repo = "f/quay.io/a"
	for _, cached := range []bool{true, false} {
		here := m.hold(repo, "", "here", cached, true)
		other := m.hold(repo, "", "other", cached, true)
		half := m.hold(repo, "", "half", cached, false)
		gone := digest.FromString("gone")
		amd, arm, v7 := []string{"linux/amd64"}, []string{"linux/amd64", "linux/arm64"}, []string{"linux/arm/v7"}
		for i, tt := range []struct {
			children []child
			wanted   []string
			unread   bool
			missing  string // "-": it is held
		}{
			{[]child{{"linux/amd64", here}, {"linux/arm64", gone}}, nil, false, "-"},
			{[]child{{"linux/amd64", here}, {"linux/arm64", gone}}, amd, false, "-"},
			{[]child{{"linux/amd64", here}, {"linux/arm64", gone}}, arm, false, "linux/arm64"},
			{[]child{{"linux/amd64", here}, {"linux/arm64/v8", gone}}, arm, false, "linux/arm64/v8"},
			{[]child{{"linux/amd64", here}, {"linux/arm64/v8", other}}, arm, false, "-"},
			{[]child{{"linux/amd64", here}, {"linux/arm64", half}}, arm, false, "linux/arm64"},
			{[]child{{"linux/amd64", half}, {"linux/arm64", gone}}, nil, false, "linux/amd64, linux/arm64"},
			{[]child{{"linux/amd64", here}}, arm, false, "-"}, // the upstream has no more
			{[]child{{"linux/s390x", here}}, arm, false, "linux/s390x"},
			{[]child{{"linux/x86_64", here}, {"linux/aarch64", gone}}, amd, false, "-"},
			{[]child{{"linux/arm/v6", gone}, {"linux/arm/v7", here}}, v7, false, "-"},
			{[]child{{"linux/arm/v6", gone}, {"linux/arm", here}}, v7, false, "-"},
			{[]child{{"linux/arm/v6", gone}, {"linux/arm/v7", here}}, []string{"linux/arm"}, false, "linux/arm/v6"},
			{[]child{{"unknown/unknown", here}, {"linux/amd64", gone}}, nil, false, "unknown/unknown, linux/amd64"},
			{[]child{{"unknown/unknown", here}, {"linux/amd64", gone}}, amd, false, "linux/amd64"},
			{[]child{{"unknown/unknown", gone}, {"linux/amd64", here}}, amd, false, "-"},
			{[]child{{"", gone}, {"linux/amd64", here}}, amd, false, gone.String()[:19]},
			{[]child{{"", here}}, amd, false, "-"},
			{nil, nil, false, ""},
			// One manifest under two platforms is left out under none.
			{[]child{{"unknown/unknown", gone}, {"linux/amd64", gone}, {"linux/s390x", here}}, nil, false,
				gone.String()[:19]},
			// Without the bytes of the index, everything must be here.
			{[]child{{"linux/amd64", here}, {"linux/arm64", gone}}, nil, true, gone.String()[:19]},
			{[]child{{"linux/amd64", here}, {"linux/arm64", other}}, arm, true, "-"},
			{[]child{{"linux/amd64", here}, {"linux/arm64", half}}, amd, true, half.String()[:19]},
		} {
			d := m.multi(repo, "v", cached, !tt.unread, tt.children...)
			if tt.unread {
				d = m.multi(repo, strings.Repeat("u", i), cached, false, tt.children...) // other bytes, never read
			}
			for _, o := range []admission.PolicyOptions{{Platforms: tt.wanted}} {
				v := m.decide(o, "quay.io/a@"+d.String())
				text := strings.Join(v.Hints, "\n")
				ok := v.Allowed && v.Reason == admission.Held
				if tt.missing != "-" {
					ok = !v.Allowed && v.Reason == admission.NotHeld &&
						(tt.missing == "" || strings.Contains(text, "(missing: "+tt.missing+")"))
				}
				if !ok {
					t.Errorf("%d, cached %v: %s, %q; want %q", i, cached, v.Reason, text, tt.missing)
				}
			}
		}
	}
}

// TestDamagedContentIsNotHeld, of an index and of one of its images.
func TestDamagedContentIsNotHeld(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "quay.io", MayRun: upstream.MayRunHeld})
	a, b := m.hold("f/quay.io/a", "", "a", true, true), m.hold("f/quay.io/a", "", "b", true, true)
	index := m.multi("f/quay.io/a", "v", true, true, child{"linux/amd64", a}, child{"linux/arm64", b})
	allowed := func(platforms ...string) bool {
		return m.decide(admission.PolicyOptions{Platforms: platforms}, "quay.io/a:v").Allowed
	}
	if !allowed("linux/amd64", "linux/arm64") {
		t.Fatal("it is not held")
	}
	quarantine := func(d digest.Digest) {
		if err := m.index.Quarantine(t.Context(), d, "a test"); err != nil {
			t.Fatal(err)
		}
	}
	quarantine(digest.FromString("layer of b"))
	if allowed("linux/arm64") || !allowed("linux/amd64") || !allowed() {
		t.Error("one image is damaged")
	}
	quarantine(index)
	if allowed("linux/amd64") || allowed() {
		t.Error("the index is damaged")
	}
}

// TestPlatformsAreChecked before they count.
func TestPlatformsAreChecked(t *testing.T) {
	for _, text := range []string{"linux", "linux/", "/amd64", "linux/arm/v7/x", "linux amd64", "linux/../x", "", "*"} {
		o := admission.PolicyOptions{Platforms: []string{text}}
		if err := o.Validate(); err == nil || !strings.HasPrefix(err.Error(), "platforms: ") {
			t.Errorf("%q: %v", text, err)
		}
	}
	o := admission.PolicyOptions{Platforms: []string{"Linux/AMD64", "linux/arm/v7", "linux/x86_64", "windows/amd64"}}
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
}

// TestADisallowedImageUnderItsOtherNames: also its digest, and other tags of it.
func TestADisallowedImageUnderItsOtherNames(t *testing.T) {
	m := newMirrored(t, upstream.Entry{Host: "docker.io", MayRun: upstream.MayRunAllow})
	bad := m.hold("f/docker.io/library/nginx", "1", "bad", true, true)
	m.hold("f/docker.io/library/nginx", "stable", "bad", true, true)
	m.hold("f/docker.io/library/nginx", "2", "good", true, true)
	for _, rule := range []string{"f/docker.io/library/nginx:1", "trow:31000/f/docker.io/nginx:1",
		"f/index.docker.io/nginx@" + bad.String()} {
		p := newPolicy(t, admission.PolicyOptions{DisallowLocalImages: []string{rule}})
		for _, name := range []string{"nginx", host + "/f/docker.io/library/nginx", hubSite + "/nginx"} {
			for ref, want := range map[string]bool{":1": false, ":stable": false, "@" + bad.String(): false, ":2": true,
				":3": true, ":2@" + bad.String(): false} {
				if v := p.Decide(t.Context(), m, name+ref); v.Allowed != want ||
					!want && v.Reason != admission.OnDenyList {
					t.Errorf("%s: %s: %s", rule, name+ref, v.Reason)
				}
			}
		}
	}
}

// TestARepositoryOfAnEarlierVersion has exactly the name that is written, and the registry prefers it.
func TestARepositoryOfAnEarlierVersion(t *testing.T) {
	m := newMirrored(t)
	m.hold("f/docker.io/nginx", "1", "old", false, true)
	m.hold("f/docker.io/library/nginx", "2", "new", false, true)
	for image, want := range map[string]bool{host + "/f/docker.io/nginx:1": true, host + "/f/docker.io/nginx:2": false,
		host + "/f/docker.io/library/nginx:2": true, host + "/f/docker.io/library/nginx:1": false, "nginx:1": false,
		"nginx:2": true} {
		if v := m.decide(admission.PolicyOptions{}, image); v.Allowed != want {
			t.Errorf("%s: allowed %v: %s", image, v.Allowed, v.Reason)
		}
	}
}
