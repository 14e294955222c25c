package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
)

// broken is an upstream that gives content until it is cut, once.
type broken struct {
	content []byte
	cut     int64 // no answer goes beyond it; 0: none is cut
	whole   bool  // it knows no ranges
	opened  []int64
}

func (b *broken) open(_ context.Context, from int64, _ string) (*Blob, error) {
	b.opened = append(b.opened, from)
	if b.whole {
		from = 0
	}
	end, size := int64(len(b.content)), int64(len(b.content))
	var body io.Reader = bytes.NewReader(b.content[from:end])
	if b.cut > 0 {
		body = io.MultiReader(bytes.NewReader(b.content[from:b.cut]), failing{})
	}
	return &Blob{Body: io.NopCloser(body), From: from, Size: size}, nil
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errCut }

// fetchOf downloads from b to the end, and reads nothing.
func fetchOf(t *testing.T, f *Fetcher, blobs storage.Blobs, b *broken, d digest.Digest) error {
	t.Helper()
	r, err := f.Join(t.Context(), Download{Digest: d, Size: -1, Open: b.open,
		Create: func(ctx context.Context) (storage.Upload, error) { return blobs.Create(ctx, "a", d.Algorithm()) }})
	if err != nil {
		t.Fatal(err)
	}
	err = r.Wait(func(int64, int64) {})
	return errors.Join(err, r.Close())
}

// cutAt leaves the first cut bytes of a content in the spool of a Fetcher that ends.
func cutAt(t *testing.T, o FetcherOptions, content []byte, cut int64) digest.Digest {
	t.Helper()
	d := digest.FromBytes(content)
	f := NewFetcher(o)
	b := &broken{content: content, cut: cut}
	release := make(chan struct{})
	r, err := f.Join(t.Context(), Download{Digest: d, Size: -1,
		Open: func(ctx context.Context, from int64, etag string) (*Blob, error) {
			if len(b.opened) > 0 { // until the end of the server
				close(release)
				<-ctx.Done()
				return nil, &Error{Kind: ErrUnavailable, Cause: ctx.Err()}
			}
			return b.open(ctx, from, etag)
		},
		Create: func(ctx context.Context) (storage.Upload, error) {
			return memory.NewBlobs().Create(ctx, "a", d.Algorithm())
		}})
	if err != nil {
		t.Fatal(err)
	}
	<-release
	f.Close()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestWhatWasReceivedIsContinued after the server has ended, with one byte more that was asked for again; what the
// upstream gives from the beginning is taken once; and what was kept and is wrong is thrown away.
func TestWhatWasReceivedIsContinued(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 256<<10) // 4 MiB
	const cut = 3 << 20
	for name, c := range map[string]struct {
		whole  bool
		kept   []byte // nil: what was received
		opened []int64
	}{
		"continued":       {false, nil, []int64{cut - 1}},
		"without ranges":  {true, nil, []int64{cut - 1}},
		"damaged":         {false, content[1:cut], []int64{cut - 2, 0}},
		"all is there":    {false, content, []int64{4<<20 - 1}},
		"more than it is": {false, append(bytes.Clone(content), 'x'), []int64{4 << 20, 0}},
	} {
		var reserved int64
		o := FetcherOptions{Dir: t.TempDir(), Spool: 1 << 30}
		d := cutAt(t, o, content, cut)
		paths, _ := filepath.Glob(filepath.Join(o.Dir, "*"))
		if len(paths) != 1 {
			t.Fatalf("%s: left %v", name, paths)
		}
		if c.kept != nil {
			if err := os.WriteFile(paths[0], c.kept, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		o.Reserve = func(n int64) (func(), bool) { reserved += n; return func() { reserved -= n }, true }
		f := NewFetcher(o)
		blobs := memory.NewBlobs()
		b := &broken{content: content, whole: c.whole}
		if err := fetchOf(t, f, blobs, b, d); err != nil || !slices.Equal(b.opened, c.opened) {
			t.Errorf("%s: %v; opened at %v, want %v", name, err, b.opened, c.opened)
		}
		f.Close()
		if info, err := blobs.Stat(t.Context(), d); err != nil || info.Size != int64(len(content)) {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
		if paths, _ = filepath.Glob(filepath.Join(o.Dir, "*")); len(paths) != 0 || reserved != 0 || f.spooled != 0 {
			t.Errorf("%s: left %v; %d reserved, %d spooled", name, paths, reserved, f.spooled)
		}
	}
}

// TestLeftoversAreBounded in number, bytes and time, and give way to downloads.
func TestLeftoversAreBounded(t *testing.T) {
	o := FetcherOptions{Dir: t.TempDir(), Spool: 1 << 30}
	for i := range 4 {
		cutAt(t, o, bytes.Repeat([]byte{byte(i)}, 4<<20), 2<<20)
	}
	for _, name := range []string{"spool-x", "spool-sha256-short-1"} {
		if err := os.WriteFile(filepath.Join(o.Dir, name), make([]byte, 2<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	paths := func() []string { all, _ := filepath.Glob(filepath.Join(o.Dir, "*")); return all }
	o.Spool = 5 << 20
	f := NewFetcher(o)
	if n := len(paths()); n != 2 || f.spooled != 4<<20 {
		t.Fatalf("after a start %d are left, with %d bytes", n, f.spooled)
	}
	// A download that needs the room gets it.
	content := bytes.Repeat([]byte("other"), 800_000)
	if err := fetchOf(t, f, memory.NewBlobs(), &broken{content: content}, digest.FromBytes(content)); err != nil {
		t.Error(err)
	}
	if n := len(paths()); n != 0 || f.spooled != 0 {
		t.Errorf("%d are left, with %d bytes", n, f.spooled)
	}
	f.Close()
	// What is old is swept.
	cutAt(t, o, bytes.Repeat([]byte("old!"), 1<<20), 2<<20)
	f = NewFetcher(o)
	f.mu.Lock()
	for _, l := range f.left {
		l.at = time.Now().Add(-keepFor)
	}
	f.mu.Unlock()
	f.sweepLeft()
	if n := len(paths()); n != 0 || len(f.left) != 0 || f.spooled != 0 {
		t.Errorf("%d are left", n)
	}
	f.Close()
	// The room in the cache that a leftover has kept is given back when it is needed.
	free := int64(6 << 20)
	o.Spool = 1 << 30
	o.Reserve = func(n int64) (func(), bool) {
		if n > free {
			return nil, false
		}
		free -= n
		return func() { free += n }, true
	}
	f = NewFetcher(o)
	defer f.Close()
	release, _ := o.Reserve(4 << 20)
	f.keep(&leftover{key: key{digest: digest.FromString("left")}, at: time.Now(), path: filepath.Join(o.Dir, "left"),
		releases: []func(){release}})
	err := fetchOf(t, f, memory.NewBlobs(), &broken{content: content}, digest.FromBytes(content))
	if err != nil || free != 6<<20 {
		t.Errorf("%v; %d are free", err, free)
	}
}
