package registry_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
	"trow/registry/auth/authtest"
	"trow/storage"
	"trow/storage/storagetest"
)

// late is a shared journal as a replica sees it that gets nothing new between hold and release.
type late struct {
	storage.Journal
	mu      sync.Mutex // guards what follows
	held    chan struct{}
	noticed chan struct{} // closed once the replica knows that there is something new
}

func (j *late) hold() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.held, j.noticed = make(chan struct{}), make(chan struct{})
}

// release waits until the replica has noticed, or has answered without.
func (j *late) release(answered <-chan struct{}) (noticed bool) {
	select {
	case <-j.noticed:
		noticed = true
	case <-answered:
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	close(j.held)
	j.held = nil
	return noticed
}

func (j *late) notice() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.held == nil {
		return
	}
	select {
	case <-j.noticed:
	default:
		close(j.noticed)
	}
}

func (j *late) Head(ctx context.Context) (storage.Revision, error) {
	defer j.notice()
	return j.Journal.Head(ctx)
}

func (j *late) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	rev, err := j.Journal.Commit(ctx, b...)
	if errors.Is(err, storage.ErrConflict) {
		j.notice()
	}
	return rev, err
}

func (j *late) Watch(ctx context.Context, apply func(storage.Update) error) error {
	updates, failed := make(chan storage.Update, 1000), make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case u := <-updates:
				j.mu.Lock()
				held := j.held
				j.mu.Unlock()
				if held != nil {
					select {
					case <-held:
					case <-ctx.Done():
						return
					}
				}
				if err := apply(u); err != nil {
					failed <- err
					cancel()
					return
				}
			}
		}
	})
	err := j.Journal.Watch(ctx, func(u storage.Update) error { updates <- u; return nil })
	select {
	case err = <-failed:
	default:
	}
	return err
}

// rule is one of integrity. first makes what both replicas know; then one changes it, and the other, which does not
// know that yet, gets a request, whose answer must be that of the changed registry.
type rule struct {
	create bool // clients may create and not push
	first  func(w *server)
	change func(w *server)
	ask    func(w *server) *answer
	status int
	text   string // in the answer
}

// TestRulesHoldOverReplicas: each rule of integrity is decided by what is committed, not by what the replica that is
// asked has seen, in both directions: nothing is accepted because of what is no longer so, or refused.
func TestRulesHoldOverReplicas(t *testing.T) {
	for name, r := range rulesOverReplicas() {
		t.Run(name, func(t *testing.T) {
			var options []option
			if r.create {
				g := authtest.New(t, auth.Options{Anonymous: "create"})
				options = append(options, func(o *registry.Options) { o.Auth = g })
			}
			options = append(options, func(o *registry.Options) {
				o.MaxReferences = 4
				o.Immutable = func(repo, _ string) bool { return repo == "fixed" }
			})
			var journals [2]*late
			all := replicasOver(t, func(i int, j storage.Journal) storage.Journal {
				journals[i] = &late{Journal: j}
				return journals[i]
			}, options...)
			r.first(all[0])
			for _, w := range all { // both know it
				w.do("GET", "/v2/_catalog", nil).is(200)
			}
			journals[1].hold()
			r.change(all[0])
			answered := make(chan struct{})
			var a *answer
			go func() {
				defer close(answered)
				a = r.ask(all[1])
			}()
			noticed := journals[1].release(answered)
			<-answered
			if !noticed {
				t.Error("the answer is of what the replica knew, and was not confirmed with the journal")
			}
			if a.status != r.status || !strings.Contains(string(a.body), r.text) {
				t.Errorf("%s: %d %s; want %d and %q", a.what, a.status, a.body, r.status, r.text)
			}
			if a.status >= 400 {
				a.is(r.status) // in the form of an error
			}
		})
	}
}

// update changes a repository whatever the rules are.
func (w *server) update(repo string, fn func(tx *storage.Tx) error) {
	w.Helper()
	storagetest.Update(w.T, w.index, repo, fn)
}

func rulesOverReplicas() map[string]rule {
	const fixed, open = "fixed", "open"
	one, two := image([]byte(`{"c":"1"}`), []byte("layer 1")), image([]byte(`{"c":"2"}`), []byte("layer 2"))
	d := digest.FromBytes(one)
	other := []byte(`{"x":1}`)
	config, payload := []byte("{}"), []byte(`{"critical":{}}`)
	alice, bob, eve := signature(payload, "alice"), signature(payload, "bob"), signature(payload, "eve")
	sig := strings.Replace(d.String(), ":", "-", 1) + ".sig"
	doubled := []byte(`{"schemaVersion":2,"config":` + desc("x/y", config) + `,"layers":[],"Layers":[]}`)
	many := []byte(`{"schemaVersion":2,"config":` + desc("x/y", config) + `,"layers":[` +
		strings.TrimSuffix(strings.Repeat(desc("x/y", config)+",", 5), ",") + `]}`)

	prepare := func(repo string) func(*server) {
		return func(w *server) {
			w.build(repo, "1")
			w.build(repo, "2")
			w.pushBlob(repo, config)
			w.pushBlob(repo, payload)
			w.put(repo, d.String(), one).is(201)
		}
	}
	put := func(repo, ref string, body []byte, headers ...string) func(*server) *answer {
		return func(w *server) *answer { return w.put(repo, ref, body, headers...) }
	}
	done := func(ask func(*server) *answer) func(*server) { return func(w *server) { ask(w).is(201) } }
	both := func(all ...func(*server)) func(*server) {
		return func(w *server) {
			for _, f := range all {
				f(w)
			}
		}
	}
	as := func(mediaType string) func(*server) *answer {
		return func(w *server) *answer {
			return w.do("PUT", "/v2/open/manifests/"+digest.FromBytes(other).String(), other, "Content-Type", mediaType)
		}
	}
	remove := func(path string) func(*server) *answer {
		return func(w *server) *answer { return w.do("DELETE", "/v2/open/"+path, nil) }
	}
	gone := func(repo string, m []byte) func(*server) {
		return func(w *server) {
			w.update(repo, func(tx *storage.Tx) error { return tx.DeleteManifest(digest.FromBytes(m)) })
		}
	}
	untagged := func(repo, tag string) func(*server) {
		return func(w *server) { w.update(repo, func(tx *storage.Tx) error { return tx.DeleteTag(tag) }) }
	}
	older := func(body []byte) func(*server) { return func(w *server) { w.hold(open, typeManifest, body) } }
	signed := func(layers ...string) []byte { return signatures(config, layers...) }

	all := map[string]rule{
		"an immutable tag was set": {false, prepare(fixed), done(put(fixed, "v", one)), put(fixed, "v", two), 403,
			"immutable"},
		"an immutable tag was deleted": {false, both(prepare(fixed), done(put(fixed, "v", one))), untagged(fixed, "v"),
			put(fixed, "v", two), 201, ""},
		"a manifest got an immutable tag": {false, prepare(fixed), done(put(fixed, "v", one)),
			func(w *server) *answer {
				return w.do("DELETE", "/v2/fixed/manifests/"+d.String(), nil)
			}, 403, "immutable"},
		"a tag was set, create": {true, prepare(open), done(put(open, "v", one)), put(open, "v", two), 403,
			"tag v exists and names " + d.String()},
		"the same tag was set, create": {true, prepare(open), done(put(open, "v", one)), put(open, "v", one), 201, ""},
		"a tag was deleted, create": {true, both(prepare(open), done(put(open, "v", one))), untagged(open, "v"),
			put(open, "v", two), 201, ""},
		"a manifest was recorded under a type": {false, prepare(open), done(as(typeOther)), as(typeSchema1), 409,
			typeOther},
		"a manifest was deleted, and gets a type": {false, both(prepare(open), done(as(typeOther))), gone(open, other),
			as(typeSchema1), 201, ""},
		"a manifest was recorded under a type, create": {true, prepare(open), done(as(typeOther)), as(typeSchema1), 409,
			typeOther},
		"an old type was corrected": {false, both(prepare(open), func(w *server) { w.hold(open, "text/plain", other) }),
			done(as(typeOther)), as(typeSchema1), 409, typeOther},
		"a part was deleted": {false, both(prepare(open), gone(open, one)),
			func(w *server) {
				remove("blobs/" + digest.FromString("layer 2").String())(w).is(202)
			}, put(open, "v", two), 404,
			"MANIFEST_BLOB_UNKNOWN"},
		"a part was pushed": {false, both(prepare(open), func(w *server) {
			remove("blobs/" + digest.FromString("layer 2").String())(w).is(202)
		}), func(w *server) { w.pushBlob(open, []byte("layer 2")) }, put(open, "v", two), 201, ""},
		"a blob is part of a manifest": {false, prepare(open), done(put(open, "v", two)),
			remove("blobs/" + digest.FromString("layer 2").String()), 405, "is part of manifest"},
		"a manifest is part of an index": {false, prepare(open), done(put(open, "i", index(one))),
			remove("manifests/" + d.String()), 405, "is part of manifest"},
		"If-Match": {false, both(prepare(open), done(put(open, "v", one))), done(put(open, "v", two)),
			put(open, "v", signed(alice), "If-Match", `"`+d.String()+`"`), 412, "the manifest is now"},
		"If-None-Match": {false, prepare(open), done(put(open, "v", one)),
			put(open, "v", two, "If-None-Match", "*"), 412,
			"the manifest is now"},
		"a manifest that is refused today was deleted": {false, both(prepare(open), older(doubled)),
			gone(open, doubled),
			put(open, "v", doubled), 400, "but for case"},
		"one was deleted, by digest": {false, both(prepare(open), older(doubled)), gone(open, doubled),
			put(open, digest.FromBytes(doubled).String(), doubled), 400, "but for case"},
		"a manifest that is refused today is held": {false, prepare(open), older(doubled),
			put(open, "v", doubled), 201, ""},
		"a manifest with many references was deleted": {false, both(prepare(open), older(many)), gone(open, many),
			put(open, "v", many), 400, "max-references"},
	}
	for kind, repo := range map[string]string{"create": open, "immutable": fixed} {
		create := repo == open
		begun := both(prepare(repo), done(put(repo, sig, signed(alice))))
		all["a companion has grown, "+kind] = rule{create, begun, done(put(repo, sig, signed(alice, bob))),
			put(repo, sig, signed(alice, eve)), 403, "add to it"}
		all["a companion that has grown grows, "+kind] = rule{create, begun, done(put(repo, sig, signed(alice, bob))),
			put(repo, sig, signed(alice, bob, eve)), 201, ""}
		all["a companion was set, "+kind] = rule{create, prepare(repo), done(put(repo, sig, signed(alice))),
			put(repo, sig, signed(bob)), 403, "add to it"}
		all["a companion was replaced, "+kind] = rule{create, begun, func(w *server) {
			w.put(repo, digest.FromBytes(signed(bob)).String(), signed(bob)).is(201)
			w.update(repo, func(tx *storage.Tx) error { return tx.SetTag(sig, digest.FromBytes(signed(bob))) })
		}, put(repo, sig, signed(alice, eve)), 403, "add to it"}
		all["the manifest of a companion was deleted, "+kind] = rule{create, begun, gone(repo, one),
			put(repo, sig, signed(alice, bob)), 403, fmt.Sprint("names ", digest.FromBytes(signed(alice)))}
		all["the manifest of a companion was pushed, "+kind] = rule{create, both(begun, gone(repo, one)),
			done(put(repo, d.String(), one)), put(repo, sig, signed(alice, bob)), 201, ""}
	}
	return all
}

// TestTwoCreatorsAtTwoReplicas: of clients that create one tag at the same time, one wins, wherever they push.
func TestTwoCreatorsAtTwoReplicas(t *testing.T) {
	g := authtest.New(t, auth.Options{Anonymous: "create"})
	all := replicasOver(t, func(_ int, j storage.Journal) storage.Journal { return j },
		func(o *registry.Options) { o.Auth = g })
	const clients = 6
	var images [clients][]byte
	for i := range images {
		images[i] = all[i%2].build("app", fmt.Sprint(i))
	}
	for n := range 10 {
		var wg sync.WaitGroup
		var answers [clients]*answer
		for i := range clients {
			wg.Go(func() { answers[i] = all[i%2].put("app", fmt.Sprint("v", n), images[i]) })
		}
		wg.Wait()
		var won digest.Digest
		for i, a := range answers {
			switch {
			case a.status != 201:
				a.code(403, "DENIED")
			case won != "":
				t.Errorf("v%d: two clients have created it", n)
			default:
				won = digest.FromBytes(images[i])
			}
		}
		for _, w := range all {
			w.do("GET", "/v2/app/manifests/"+fmt.Sprint("v", n), nil).is(200).has("Docker-Content-Digest", won.String())
		}
	}
}
