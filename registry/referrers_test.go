package registry_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
)

// opened counts how often content is opened.
type opened struct {
	storage.Blobs
	n atomic.Int64
}

func (o *opened) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	o.n.Add(1)
	return o.Blobs.Open(ctx, d)
}

// referrers makes the repository hold n referrers of a subject. Every thousandth has the artifact type x/rare.
func (w *server) referrers(repo string, subject digest.Digest, n int) (rare map[string]bool) {
	w.Helper()
	rare = map[string]bool{}
	all := make([]storage.Manifest, n)
	for i := range all {
		artifact := "x/common"
		if i%1000 == 0 {
			artifact = "x/rare"
		}
		body := fmt.Appendf(nil, `{"mediaType":%q,"artifactType":%q,"subject":{"digest":%q},"annotations":{"n":"%d"}}`,
			typeOther, artifact, subject, i)
		d := digest.FromBytes(body)
		if err := w.written(repo, body).Commit(w.Context(), d); err != nil {
			w.Fatal(err)
		}
		all[i] = storage.Manifest{Digest: d, MediaType: typeOther, Size: int64(len(body)), Subject: subject}
		if artifact == "x/rare" {
			rare[d.String()] = true
		}
	}
	err := w.index.Update(w.Context(), repo, func(tx *storage.Tx) (err error) {
		for _, m := range all {
			err = errors.Join(err, tx.PutManifest(m))
		}
		return err
	})
	if err != nil {
		w.Fatal(err)
	}
	return rare
}

// pages reads a list of referrers to its end. each is called for every page.
func (w *server) pages(path string, each func(bytes int)) (digests []string) {
	w.Helper()
	for path != "" {
		a := w.do("GET", path, nil).is(200)
		var idx struct{ Manifests []struct{ Digest string } }
		if err := json.Unmarshal(a.body, &idx); err != nil {
			w.Fatal(err)
		}
		for _, m := range idx.Manifests {
			digests = append(digests, m.Digest)
		}
		each(len(a.body))
		path, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
	}
	return digests
}

// TestAFilteredListOfManyReferrers: one request read and decoded all 6,000 manifests, although none passed the filter,
// and so did the next one.
func TestAFilteredListOfManyReferrers(t *testing.T) {
	memory, journal := inMemory()
	blobs := &opened{Blobs: memory}
	w := serve(t, blobs, journal)
	subject := digest.FromString("subject")
	rare := w.referrers("a", subject, 6000)
	// A fallback tag adds manifests in between.
	body := []byte(`{"mediaType":"` + typeOther + `","artifactType":"x/rare"}`)
	w.do("PUT", "/v2/a/manifests/tagged", body).is(201)
	rare[digest.FromBytes(body).String()] = true
	fallback := `{"schemaVersion":2,"mediaType":"` + typeIndex + `","manifests":[` + desc(typeOther, body) + `]}`
	w.do("PUT", "/v2/a/manifests/"+strings.Replace(subject.String(), ":", "-", 1), []byte(fallback)).is(201)

	list := func(what, query string, want int, most int64) {
		t.Helper()
		pages, before, begin := 0, blobs.n.Load(), time.Now()
		digests := w.pages("/v2/a/referrers/"+subject.String()+query, func(int) {
			pages++
			now := blobs.n.Load()
			if now-before > most {
				t.Errorf("%s: %d manifests read for one page", what, now-before)
			}
			before = now
		})
		seen := map[string]bool{}
		for _, d := range digests {
			if seen[d] {
				t.Errorf("%s: %s is listed twice", what, d)
			}
			seen[d] = true
			if want == len(rare) && !rare[d] {
				t.Errorf("%s: %s should not be listed", what, d)
			}
		}
		if len(digests) != want {
			t.Errorf("%s: %d listed, want %d", what, len(digests), want)
		}
		t.Logf("%s: %d pages, %s each", what, pages, time.Since(begin)/time.Duration(pages))
	}
	const page = 8 << 20 >> 12 // as many as fit into maxDecoded
	list("cold", "?artifactType=x/rare", len(rare), page)
	list("warm", "?artifactType=x/rare", len(rare), 0)
	list("none", "?artifactType=x/none", 0, 0)
	list("all", "", 6001, page)
	w = serve(t, blobs, journal)
	list("none, cold", "?artifactType=x/none", 0, page)
}

// TestAPushedReferrerIsNotReadForAFilter: the push knows its artifact type.
func TestAPushedReferrerIsNotReadForAFilter(t *testing.T) {
	memory, journal := inMemory()
	blobs := &opened{Blobs: memory}
	w := serve(t, blobs, journal)
	subject := digest.FromString("subject")
	for i := range 5 {
		body := fmt.Sprintf(`{"mediaType":%q,"artifactType":"x/y","subject":{"digest":%q},"n":%d}`,
			typeOther, subject, i)
		w.do("PUT", "/v2/a/manifests/v", []byte(body)).is(201)
	}
	before := blobs.n.Load()
	w.do("GET", "/v2/a/referrers/"+subject.String()+"?artifactType=x/z", nil).is(200).has("Link", "")
	if n := blobs.n.Load() - before; n != 0 {
		t.Errorf("%d manifests were read", n)
	}
	w.do("GET", "/v2/a/referrers/"+subject.String()+"?artifactType=x/y", nil).is(200).contains(`"artifactType":"x/y"`)
}

// TestPagesOfReferrersOfManyManifests: more manifests than one list looks at, with all in memory.
func TestPagesOfReferrersOfManyManifests(t *testing.T) {
	w := newServer(t)
	subject := digest.FromString("subject")
	w.referrers("a", subject, 10_500)
	for range 2 {
		got := w.pages("/v2/a/referrers/"+subject.String(), func(bytes int) {
			if bytes > 2<<20+100 {
				t.Errorf("a page of %d bytes", bytes)
			}
		})
		if len(got) != 10_500 {
			t.Errorf("%d listed", len(got))
		}
	}
}

// TestABadManifestDoesNotHideOtherReferrers: the whole list failed for ever, for one that was no JSON or whose bytes
// were gone, under the fallback tag or not.
func TestABadManifestDoesNotHideOtherReferrers(t *testing.T) {
	dir := t.TempDir()
	blobs, journal, _ := engines(t, dir)
	w := serve(t, blobs, journal)
	subject := digest.FromString("subject")
	fallback := "/v2/a/manifests/" + strings.Replace(subject.String(), ":", "-", 1)
	list := func(n int, warning string) {
		t.Helper()
		for range 2 {
			for _, query := range []string{"", "?artifactType=x/y"} {
				a := w.do("GET", "/v2/a/referrers/"+subject.String()+query, nil).is(200)
				var idx struct{ Manifests []struct{ Digest string } }
				if err := json.Unmarshal(a.body, &idx); err != nil || len(idx.Manifests) != n ||
					!strings.Contains(a.header.Get("Warning"), warning) ||
					(warning == "") != (a.header.Get("Warning") == "") {
					t.Errorf("%s: %s, Warning %q; want %d, %q", query, a.body, a.header.Get("Warning"), n, warning)
				}
			}
		}
	}
	referrer := func(n int) []byte {
		body := fmt.Appendf(nil, `{"mediaType":%q,"artifactType":"x/y","subject":{"digest":%q},"n":%d}`,
			typeOther, subject,
			n)
		w.do("PUT", fmt.Sprintf("/v2/a/manifests/v%d", n), body).is(201)
		return body
	}
	good, lost := referrer(1), referrer(2)
	noJSON := []byte("no JSON")
	w.do("PUT", "/v2/a/manifests/v3", noJSON, "Content-Type", typeOther).is(201)
	list(2, "")
	w.do("PUT", fallback, []byte(`{"schemaVersion":2,"mediaType":"`+typeIndex+`","manifests":[`+
		desc(typeOther, noJSON)+","+desc(typeOther, good)+`]}`)).is(201)
	list(2, "1 manifests")
	if note, _ := w.notes.Load("err"); !strings.Contains(fmt.Sprint(note), digest.FromBytes(noJSON).String()) {
		t.Errorf("the log has %v", note)
	}
	if err := os.Remove(filepath.Join(dir, "blobs", "sha256", digest.FromBytes(lost).Encoded())); err != nil {
		t.Fatal(err)
	}
	w = serve(t, blobs, journal) // without the caches
	list(1, "2 manifests")
	// The index under the fallback tag is no JSON, as earlier versions have recorded.
	d := w.hold("a", typeIndex, []byte("{"))
	err := w.index.Update(w.Context(), "a", func(tx *storage.Tx) error {
		return tx.SetTag(strings.Replace(subject.String(), ":", "-", 1), d)
	})
	if err != nil {
		t.Fatal(err)
	}
	list(1, "2 manifests")
}
