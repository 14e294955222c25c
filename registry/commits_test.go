package registry_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/audit"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// etcdBounds are those of an etcd with its defaults.
var etcdBounds = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 3 << 19}

// tired is a journal that fails after some commits.
type tired struct {
	storage.Journal
	left *atomic.Int32
}

func (j tired) Commit(ctx context.Context, b ...storage.Batch) (storage.Revision, error) {
	if j.left.Add(-1) < 0 {
		return 0, errors.New("the network is down")
	}
	return j.Journal.Commit(ctx, b...)
}

// bounding runs a registry over a journal that refuses commits beyond the bounds of etcd.
func bounding(t *testing.T, options ...option) (w *server, left *atomic.Int32) {
	left = new(atomic.Int32)
	left.Store(math.MaxInt32)
	journal := memory.NewJournal()
	journal.Is = etcdBounds
	x := storagetest.OpenIndexWith(t, tired{journal, left}, storage.IndexOptions{Placed: true, Grace: time.Hour})
	all := func(string) bool { return true }
	x.SetQuotas([]storage.Quota{{Name: "one", Match: all, Bytes: 1 << 30}, {Name: "two", Match: all, Bytes: 1 << 30}})
	blobs := &memory.Objects{Service: memory.NewService(), Records: x}
	w = serve(t, memory.NewBlobs(), memory.NewJournal(), append(options,
		func(o *registry.Options) { o.Blobs, o.Index = blobs, x })...)
	w.index = x
	return w, left
}

// longRepo is as long as the name of a repository may be.
var longRepo = "app/" + strings.Repeat("a", 255-len("app/"))

// tagMany gives a manifest n tags; some of them have a long history.
func tagMany(t *testing.T, x *storage.Index, d digest.Digest, n int) (tags []string) {
	t.Helper()
	for i := range n {
		tags = append(tags, fmt.Sprintf("tag-%03d", i))
	}
	other := digest.FromString("other")
	err := storage.InSteps(tags, func(tags []string) error {
		return x.Update(t.Context(), longRepo, func(tx *storage.Tx) error {
			var errs []error
			for i, tag := range tags {
				for range 1 + i%7*5 {
					errs = append(errs, tx.SetTag(tag, other), tx.SetTag(tag, d))
				}
			}
			return errors.Join(errs...)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return tags
}

// TestAManifestWithMoreTagsThanACommitTakes is deleted in steps. One that is interrupted has removed some, and the next
// DELETE goes on.
func TestAManifestWithMoreTagsThanACommitTakes(t *testing.T) {
	var removed []string
	w, left := bounding(t, func(o *registry.Options) {
		o.Audit = func(_ context.Context, e audit.Event) {
			if e.What == audit.Delete && e.Outcome == audit.OK {
				removed = append(removed, e.Tags...)
			}
		}
	})
	body := []byte(`{"schemaVersion":2,"mediaType":"` + typeOther + `"}`)
	d := digest.FromBytes(body)
	path := "/v2/" + longRepo + "/manifests/"
	w.do("PUT", path+"first", body, "Content-Type", typeOther).is(201)
	w.do("PUT", path+"other", []byte("other"), "Content-Type", typeOther).is(201)
	tags := append(tagMany(t, w.index, d, 500), "first")
	left.Store(3)
	w.do("DELETE", path+d.String(), nil).is(500)
	left.Store(math.MaxInt32)
	w.do("GET", path+d.String(), nil).is(200) // the manifest goes last
	if n := len(removed); n == 0 || n > 480 {
		t.Errorf("%d tags are removed before the interruption", n)
	}
	w.do("DELETE", path+d.String(), nil).is(202)
	w.do("GET", path+d.String(), nil).is(404)
	slices.Sort(tags)
	slices.Sort(removed)
	if !slices.Equal(removed, tags) {
		t.Errorf("%d tags are removed: %v", len(removed), removed)
	}
	if got := w.do("GET", "/v2/"+longRepo+"/tags/list", nil).is(200); !strings.Contains(string(got.body), `["other"]`) {
		t.Errorf("left: %s", got.body)
	}
}

// TestAPushWithMoreTagsThanACommitTakes is refused with the limit, and one at the limit is accepted, whatever the names
// and the identity.
func TestAPushWithMoreTagsThanACommitTakes(t *testing.T) {
	w, _ := bounding(t)
	most := w.index.MaxTags() - 1 // one is in the path
	query := func(n int) string {
		q := url.Values{}
		for i := range n {
			q.Add("tag", fmt.Sprintf("%0128d", i))
		}
		return "?" + q.Encode()
	}
	path := "/v2/" + longRepo + "/manifests/latest"
	body := func(s string) []byte {
		return []byte(`{"schemaVersion":2,"mediaType":"` + typeOther + `","annotations":{"is":"` + s + `"}}`)
	}
	if most < 10 || most >= 100 {
		t.Fatalf("%d tags; the spec demands 10", most)
	}
	got := w.do("PUT", path+query(most+1), body("a"), "Content-Type", typeOther).is(414)
	if !strings.Contains(string(got.body), fmt.Sprintf("at most %d in one request", most)) {
		t.Errorf("%s", got.body)
	}
	for _, s := range []string{"a", "b"} {
		w.do("PUT", path+query(most), body(s), "Content-Type", typeOther).is(201)
	}
	// No setting lets a push through that the journal would refuse.
	unbounded := newServer(t)
	unbounded.do("PUT", path+query(100), body("a"), "Content-Type", typeOther).is(201)
	unbounded.do("PUT", path+query(101), body("a"), "Content-Type", typeOther).is(414)
}

// TestAManifestWithMostReferences can be pushed and deleted, also with the longest digests; one more is refused with
// the limit.
func TestAManifestWithMostReferences(t *testing.T) {
	w, _ := bounding(t, func(o *registry.Options) { o.MaxReferences = 1_000_000 })
	most := w.index.MaxReferences()
	body := func(n int) []byte {
		var b strings.Builder
		b.WriteString(`{"schemaVersion":2,"mediaType":"` + typeOther + `","layers":[`)
		for i := range n {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, `{"digest":"sha512:%0128x"}`, i)
		}
		b.WriteString("]}")
		return []byte(b.String())
	}
	if most < 10_000 {
		t.Errorf("at most %d references, fewer than max-references", most)
	}
	path := "/v2/" + longRepo + "/manifests/"
	got := w.do("PUT", path+"v", body(most+1), "Content-Type", typeOther).is(400)
	if !strings.Contains(string(got.body), fmt.Sprintf("at most %d are accepted (what the registry's journal", most)) {
		t.Errorf("%s", got.body)
	}
	d := digest.SHA512.FromBytes(body(most))
	w.do("PUT", path+d.String()+"?tag=v", body(most), "Content-Type", typeOther).is(201)
	w.do("GET", path+"v", nil).is(200)
	w.do("DELETE", path+d.String(), nil).is(202)
	w.do("GET", path+"v", nil).is(404)
}
