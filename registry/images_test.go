package registry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/namespace"
	"trow/storage"
	"trow/storage/storagetest"
)

// platformIndex returns an index with these platforms, os/arch[/variant], and its manifests.
func platformIndex(platforms ...string) (body []byte, of []digest.Digest) {
	var list []string
	for i, text := range platforms {
		name, platform, _ := strings.Cut(text, "=")
		d := digest.FromString(name)
		if platform == "" {
			d, platform = digest.FromString(fmt.Sprint(i)), name
		}
		if !slices.Contains(of, d) {
			of = append(of, d)
		}
		p := strings.Split(platform+"//", "/")
		entry := fmt.Sprintf(`{"digest":%q,"size":1}`, d)
		if platform != "-" {
			entry = fmt.Sprintf(`{"digest":%q,"size":1,"platform":{"os":%q,"architecture":%q,"variant":%q}}`, d, p[0],
				p[1], p[2])
		}
		list = append(list, entry)
	}
	return []byte(`{"schemaVersion":2,"manifests":[` + strings.Join(list, ",") + `]}`), of
}

// TestThePlatformsOfAnIndex, also of one that names a manifest twice.
func TestThePlatformsOfAnIndex(t *testing.T) {
	for _, c := range [][2]string{
		{"linux/amd64 linux/arm/v7 -", "linux/amd64 linux/arm/v7 "},
		{"a=linux/amd64 b=linux/arm64 a=linux/amd64", "linux/amd64 linux/arm64"},
		{"a=unknown/unknown b=linux/arm64 a=linux/amd64", " linux/arm64"}, // it is left out with neither
		{"a=linux/amd64 a=-", ""},
	} {
		body, of := platformIndex(strings.Fields(c[0])...)
		read := func(context.Context, digest.Digest) ([]byte, error) { return body, nil }
		i := registry.StoredImages(nil, nil, nil, read)
		if got := strings.Join(i.Platforms(digest.FromBytes(body), of), " "); got != c[1] {
			t.Errorf("%s: %q, want %q", c[0], got, c[1])
		}
		slices.Reverse(of)
		want := strings.Split(c[1], " ")
		slices.Reverse(want)
		if got := i.Platforms(digest.FromBytes(body), of); !slices.Equal(got, want) {
			t.Errorf("%s, reversed: %q, want %q", c[0], got, want)
		}
	}
	large := `{"a":"` + strings.Repeat("x", 64<<10) + `"}`
	for what, body := range map[string]string{"no JSON": "{", "too large": large} {
		i := registry.StoredImages(nil, nil, nil, func(context.Context, digest.Digest) ([]byte, error) {
			return []byte(body), nil
		})
		if got := i.Platforms("sha256:x", []digest.Digest{"sha256:y"}); len(got) != 1 || got[0] != "" {
			t.Errorf("%s: %q", what, got)
		}
	}
}

// slowBlobs are read when a test says so.
type slowBlobs struct {
	storage.Blobs
	mu    sync.Mutex
	asked int
	goOn  chan error
}

func (b *slowBlobs) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	b.mu.Lock()
	b.asked++
	b.mu.Unlock()
	if err := <-b.goOn; err != nil {
		return nil, err
	}
	return b.Blobs.Open(ctx, d)
}

// TestAVerdictDoesNotWaitForPlatforms: what is not in memory is read for the next one, a few at once.
func TestAVerdictDoesNotWaitForPlatforms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		blobs, journal := inMemory()
		slow := &slowBlobs{Blobs: blobs, goOn: make(chan error)}
		r := registry.New(registry.Options{Blobs: slow, Index: storagetest.OpenIndex(t, journal), Auth: open{}})
		i := r.Images()
		body, of := platformIndex("linux/amd64")
		put := func(body []byte) digest.Digest {
			u, err := blobs.Create(t.Context(), "f/quay.io/a", digest.SHA256)
			if err == nil {
				_, err = u.Write(body)
			}
			d := digest.FromBytes(body)
			if err == nil {
				err = u.Commit(t.Context(), d)
			}
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		d := put(body)
		asked := func() int { synctest.Wait(); slow.mu.Lock(); defer slow.mu.Unlock(); return slow.asked }
		for range 3 {
			if got := i.Platforms(d, of); got[0] != "" {
				t.Fatalf("%q", got)
			}
		}
		if n := asked(); n != 1 {
			t.Errorf("read %d times at once", n)
		}
		slow.goOn <- errors.New("the disk is gone")
		synctest.Wait()
		i.Platforms(d, of) // read again
		asked()
		slow.goOn <- nil
		synctest.Wait()
		if got := i.Platforms(d, of); got[0] != "linux/amd64" || asked() != 2 {
			t.Errorf("%q, read %d times", got, asked())
		}
		for n := range 10 {
			i.Platforms(digest.FromString(fmt.Sprint(n)), of)
		}
		if n := asked(); n != 2+4 {
			t.Errorf("%d are read at once", n-2)
		}
		close(slow.goOn)
		synctest.Wait()
	})
}

// TestThePlatformsAreKnown of what is stored below f/, and at the start.
func TestThePlatformsAreKnown(t *testing.T) {
	blobs, journal := inMemory()
	options := func(o *registry.Options) {
		o.Namespaces, o.Sparse = namespace.NewTable(nil), func(string) bool { return true }
	}
	w := serve(t, blobs, journal, options)
	child, d := w.pushImage("f/quay.io/a", "one", "x")
	body := []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, typeIndex, desc(typeManifest,
		child, `,"platform":{"os":"linux","architecture":"s390x"}`)))
	w.do("PUT", "/v2/f/quay.io/a/manifests/v", body, "Content-Type", typeIndex).is(201)
	index, of := digest.FromBytes(body), []digest.Digest{d}
	if got := w.registry.(*registry.Registry).Images().Platforms(index, of); got[0] != "linux/s390x" {
		t.Errorf("after the push: %q", got)
	}
	next := serve(t, blobs, journal, options).registry.(*registry.Registry).Images()
	next.LearnPlatforms(t.Context())
	if got := next.Platforms(index, of); got[0] != "linux/s390x" {
		t.Errorf("at the start: %q", got)
	}
}
