package engines

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/migration"
	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
	"trow/storage/migrate"
	"trow/storage/s3"
	"trow/storage/storagetest"
)

// side opens a journal, an index and blobs, as a server does.
func side(t *testing.T, name string, j storage.Journal, placed bool,
	blobs func(*storage.Index) storage.Blobs) migrate.Side {
	t.Helper()
	x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{Placed: placed, Grace: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Close)
	return migrate.Side{Name: name, Journal: j, Index: x, Blobs: blobs(x)}
}

func directory(t *testing.T, dir string) migrate.Side {
	t.Helper()
	j, err := bolt.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	b, err := disk.Open(dir, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return side(t, dir, j, false, func(*storage.Index) storage.Blobs { return b })
}

// store is what a push of bytes comes to.
func store(ctx context.Context, s migrate.Side, repo string, body []byte,
	name func(*storage.Tx, digest.Digest) error) error {
	u, err := s.Blobs.Create(ctx, repo, digest.SHA256)
	if err != nil {
		return err
	}
	if _, err := u.Write(body); err != nil {
		return err
	}
	d := digest.FromBytes(body)
	release, err := s.Index.Commit(ctx, u, d)
	if err != nil {
		return err
	}
	defer release()
	return s.Index.Update(ctx, repo, func(tx *storage.Tx) error { return name(tx, d) })
}

// image pushes a layer and a manifest.
func image(ctx context.Context, s migrate.Side, repo, tag string, n, size int) error {
	layer := bytes.Repeat(fmt.Appendf(nil, "layer %d\n", n), size/10+1)
	err := store(ctx, s, repo, layer, func(tx *storage.Tx, d digest.Digest) error {
		tx.Link(d, int64(len(layer)))
		return nil
	})
	if err != nil {
		return err
	}
	body := fmt.Appendf(nil, "manifest %d", n)
	return store(ctx, s, repo, body, func(tx *storage.Tx, d digest.Digest) error {
		m := storage.Manifest{Digest: d, MediaType: "application/a", Size: int64(len(body)),
			Refs: []digest.Digest{digest.FromBytes(layer)}}
		return errors.Join(tx.PutManifest(m), tx.SetTag(tag, d))
	})
}

// holds is what clients see: every tag with its place in the order, its history, and every content that is whole.
func holds(t *testing.T, s migrate.Side) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, repo := range s.Index.Names() {
		held, _, err := s.Index.Holdings(t.Context(), repo)
		if err != nil {
			t.Fatal(err)
		}
		var tags []storage.HeldTag
		for _, m := range held.Manifests {
			for _, tag := range m.Tags {
				all[repo+":"+tag.Name] = fmt.Sprint(m.Digest, tag.Order)
				history, err := s.Index.History(t.Context(), repo, tag.Name)
				if err != nil {
					t.Fatal(err)
				}
				all["history of "+repo+":"+tag.Name] = fmt.Sprint(history)
			}
			tags = append(tags, m.Tags...)
		}
		for i, group := range storage.TagsInOrder(tags) {
			for _, tag := range group {
				all["order of "+repo+":"+tag.Name] = fmt.Sprint(i)
			}
		}
	}
	for d := range s.Index.Contents() {
		body, err := storagetest.Read(t.Context(), s.Blobs, d)
		all[d.String()] = fmt.Sprint(err, digest.FromBytes(body) == d)
		if err != nil || digest.FromBytes(body) != d {
			t.Errorf("%s: %d bytes, %v", d, len(body), err)
		}
	}
	return all
}

// migrateBy asks the job of a server, as trow migrate does.
func migrateBy(t *testing.T, from migrate.Side, query url.Values) migrate.Progress {
	t.Helper()
	w := httptest.NewServer(&migration.Migration{From: func() migrate.Side { return from },
		Socket: func(*http.Request) bool { return true }, ReadOnly: func() bool { return false }})
	defer w.Close()
	resp, err := http.Post(w.URL+"?"+query.Encode(), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(answer)), "\n")
	var last struct {
		Done  migration.Outcome
		Error string
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Done.Moved == nil {
		t.Fatalf("%s: %v", answer, err)
	}
	return *last.Done.Moved
}

// TestMigrate moves a data directory with a few hundred images to etcd and S3 and back, while a client pushes.
func TestMigrate(t *testing.T) {
	g, c := startGateway(t), startEtcd(t, 1)
	first := directory(t, t.TempDir())
	const images = 300
	for i := range images {
		repo, tag := fmt.Sprint("team/app", i%20), fmt.Sprint("v", i/40)
		if err := image(t.Context(), first, repo, tag, i, 200<<(i%12)); err != nil {
			t.Fatal(err)
		}
	}
	prefix := newPrefix()
	places := url.Values{"journal": {"etcd://" + strings.Join(c.endpoints(), ",") + "/" + prefix},
		"blobs": {"s3://bucket/moved?path-style=true&region=us-east-1&endpoint=" + url.QueryEscape(g.endpoint)}}
	moveInUse(t, first, images, func() migrate.Progress { return migrateBy(t, first, places) })

	j := c.open(t, prefix)
	o, err := s3.ParseURL(places.Get("blobs"))
	if err != nil {
		t.Fatal(err)
	}
	second := side(t, "etcd and S3", j, true, func(x *storage.Index) storage.Blobs {
		o.Records = x
		return open(t, o)
	})
	wantSame(t, first, second)
	last := filepath.Join(t.TempDir(), "last")
	moveInUse(t, second, 2*images, func() migrate.Progress { return migrateBy(t, second, url.Values{"data": {last}}) })
	wantSame(t, second, directory(t, last))
	if _, err := os.Stat(filepath.Join(last, "journal.db")); err != nil {
		t.Error(err)
	}
}

// moveInUse runs a migration while a client pushes and retags, until it is refused.
func moveInUse(t *testing.T, from migrate.Side, n int, run func() migrate.Progress) {
	t.Helper()
	pushed := make(chan int)
	go func() {
		r, i := rand.New(rand.NewPCG(1, uint64(n))), 0
		defer func() { pushed <- i }()
		for i < 5000 {
			repo, tag := fmt.Sprint("team/app", r.IntN(25)), fmt.Sprint("v", r.IntN(10))
			err := image(t.Context(), from, repo, tag, n+r.IntN(n), 1000)
			if sealed := (*storage.SealedError)(nil); errors.As(err, &sealed) && sealed.Moved() {
				return
			}
			if err != nil {
				t.Errorf("a push meanwhile: %v", err)
				return
			}
			i++
		}
	}()
	done := run()
	t.Logf("moved %d contents, %d bytes and %d facts in %v; %d pushes meanwhile; writes were refused for %v of it",
		done.Copied, done.Sent, done.Facts, done.Took.Round(time.Millisecond), <-pushed,
		done.Refused.Round(time.Millisecond))
}

func wantSame(t *testing.T, from, to migrate.Side) {
	t.Helper()
	a, b := holds(t, from), holds(t, to)
	if len(a) < 900 || !maps.Equal(a, b) {
		for _, k := range slices.Sorted(maps.Keys(a)) {
			if a[k] != b[k] {
				t.Errorf("%s: %s became %s", k, a[k], b[k])
			}
		}
		t.Errorf("%d things became %d", len(a), len(b))
	}
}
