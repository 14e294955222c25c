package upstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/disk"
)

// line is an upstream that gives a content piece by piece, as the test sends it.
type line struct {
	*testing.T
	content []byte
	digest  digest.Digest
	size    int64 // that it says; -1: none

	opened []int64 // the offsets
	parts  chan []byte
	fails  map[int]error // of the n-th opening, from 1
	begins int64         // where an answer begins if it does not continue; -1: it continues
}

func newLine(t *testing.T, size int) *line {
	content := make([]byte, size)
	_, _ = rand.Read(content[:min(size, 1<<20)])
	return &line{T: t, content: content, digest: digest.FromBytes(content), size: int64(size), parts: make(chan []byte),
		fails: map[int]error{}, begins: -1}
}

var errCut = errors.New("connection reset")

func (l *line) open(ctx context.Context, from int64, _ string) (*Blob, error) {
	l.opened = append(l.opened, from)
	if err := l.fails[len(l.opened)]; err != nil {
		return nil, err
	}
	if l.begins >= 0 && from > 0 {
		from = l.begins
	}
	return &Blob{Body: &lineBody{l, ctx, nil}, From: from, Size: l.size}, nil
}

// lineBody is the body of an answer. A nil part cuts the connection, an empty one ends it.
type lineBody struct {
	l    *line
	ctx  context.Context
	rest []byte
}

func (b *lineBody) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		select {
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		case b.rest = <-b.l.parts:
		}
		if b.rest == nil {
			return 0, errCut
		}
		if len(b.rest) == 0 {
			return 0, io.EOF
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}

func (b *lineBody) Close() error { return nil }

// send gives a part of the content, and the end after the last one.
func (l *line) send(from, to int) {
	l.parts <- l.content[from:to]
	if to == len(l.content) {
		l.parts <- []byte{}
	}
}

// store is a storage: disk, whose uploads can be read while they grow, or one whose uploads cannot.
func store(t *testing.T, grows bool) (create func(context.Context) (storage.Upload, error),
	held func(digest.Digest) bool) {
	t.Helper()
	b, err := disk.Open(t.TempDir(), disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context) (storage.Upload, error) {
			u, err := b.Create(ctx, "f/up.example/a", digest.SHA256)
			if err != nil || grows {
				return u, err
			}
			return struct{ storage.Upload }{u}, nil
		}, func(d digest.Digest) bool {
			_, err := b.Stat(context.Background(), d)
			return err == nil
		}
}

// each runs a test for both kinds of storage.
func each(t *testing.T, o FetcherOptions, test func(t *testing.T, f *Fetcher, l *line, d Download)) {
	t.Helper()
	for _, grows := range []bool{true, false} {
		t.Run(fmt.Sprintf("grows=%t", grows), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if o.Dir = t.TempDir(); o.Spool == 0 {
					o.Spool = 1 << 30
				}
				f := NewFetcher(o)
				create, held := store(t, grows)
				l := newLine(t, 1<<20)
				test(t, f, l, Download{Digest: l.digest, Size: l.size, Open: l.open, Create: create,
					Held: func() bool { return held(l.digest) }})
				f.Close()
				if f.spooled != 0 || f.active.taken != 0 || len(f.flights) != 0 {
					t.Errorf("left behind: %d bytes in the spool, %d downloads", f.spooled, f.active.taken)
				}
				if left, err := os.ReadDir(o.Dir); err != nil || len(left) > 0 {
					t.Errorf("files left behind: %v, %v", left, err)
				}
			})
		})
	}
}

func join(t *testing.T, f *Fetcher, d Download) *Reader {
	t.Helper()
	r, err := f.Join(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// result is what a reader of all got.
type result struct {
	n    atomic.Int64
	body []byte
	err  error
	done chan struct{}
}

// readAll reads all, and notes how much has come.
func readAll(r *Reader) *result {
	got := &result{done: make(chan struct{})}
	go func() {
		defer close(got.done)
		defer r.Close()
		var b bytes.Buffer
		_, got.err = io.Copy(&b, io.TeeReader(struct{ io.Reader }{r}, counter{&got.n}))
		got.body = b.Bytes()
	}()
	return got
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) { c.n.Add(int64(len(p))); return len(p), nil }

// TestReadersFollowOneDownload: bytes come as they arrive, the last ones when the digest is right, also to those who
// come late, and to those who want a part.
func TestReadersFollowOneDownload(t *testing.T) {
	each(t, FetcherOptions{}, func(t *testing.T, f *Fetcher, l *line, d Download) {
		var all []*result
		for range 10 {
			all = append(all, readAll(join(t, f, d)))
		}
		l.send(0, 1000)
		synctest.Wait()
		for _, r := range all {
			if r.n.Load() != 1000 {
				t.Errorf("a reader has %d bytes of 1000", r.n.Load())
			}
		}
		wrong := d
		wrong.Size--
		if _, err := f.Join(t.Context(), wrong); !errors.Is(err, ErrDamaged) {
			t.Errorf("with another size: %v", err)
		}
		late := join(t, f, d)
		if size, err := late.Size(); err != nil || size != l.size {
			t.Errorf("the size is %d, %v", size, err)
		}
		if at, err := late.Seek(-10, io.SeekEnd); err != nil || at != l.size-10 {
			t.Errorf("%d, %v", at, err)
		}
		all = append(all, readAll(join(t, f, d)))
		end := readAll(late)
		l.parts <- l.content[1000:] // all but the end of the answer
		synctest.Wait()
		for _, r := range all {
			if r.n.Load() != l.size-HeldBack {
				t.Errorf("before the digest is known to be right a reader has %d bytes", r.n.Load())
			}
		}
		if end.n.Load() != 0 {
			t.Error("the last bytes came before the digest was right")
		}
		l.parts <- []byte{}
		for _, r := range all {
			if <-r.done; r.err != nil || !bytes.Equal(r.body, l.content) {
				t.Errorf("%d bytes, %v", len(r.body), r.err)
			}
		}
		if <-end.done; end.err != nil || !bytes.Equal(end.body, l.content[len(l.content)-10:]) {
			t.Errorf("%d bytes, %v", len(end.body), end.err)
		}
		if len(l.opened) != 1 {
			t.Errorf("%d downloads", len(l.opened))
		}
		if _, err := f.Join(t.Context(), d); !errors.Is(err, ErrHeld) {
			t.Errorf("after it has arrived: %v", err)
		}
	})
}

// TestAContentOfUnknownLength arrives like any other.
func TestAContentOfUnknownLength(t *testing.T) {
	var reserved, released atomic.Int64
	o := FetcherOptions{Reserve: func(n int64) (func(), bool) {
		reserved.Add(n)
		return func() { released.Add(n) }, true
	}}
	each(t, o, func(t *testing.T, f *Fetcher, l *line, d Download) {
		reserved.Store(0)
		released.Store(0)
		l.size, d.Size = -1, -1
		r := readAll(join(t, f, d))
		l.send(0, len(l.content))
		if <-r.done; r.err != nil || !bytes.Equal(r.body, l.content) {
			t.Errorf("%d bytes, %v", len(r.body), r.err)
		}
		f.running.Wait()
		if reserved.Load() != reserveStep || released.Load() != reserveStep {
			t.Errorf("%d bytes reserved, %d released", reserved.Load(), released.Load())
		}
	})
}

// TestWhatHasArrivedIsStored, also if its length was not known, and everybody leaves while it is.
func TestWhatHasArrivedIsStored(t *testing.T) {
	each(t, FetcherOptions{}, func(t *testing.T, f *Fetcher, l *line, d Download) {
		l.size, d.Size = -1, -1
		d.Commit = func(ctx context.Context, u storage.Upload) error {
			time.Sleep(2 * max(lingerTime, stallTime)) // a slow disk
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return u.Commit(ctx, l.digest)
		}
		r := join(t, f, d)
		l.send(0, len(l.content))
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if f.running.Wait(); !d.Held() {
			t.Error("it is not kept")
		}
	})
}

// TestADamagedContentIsGivenToNobody, and kept nowhere.
func TestADamagedContentIsGivenToNobody(t *testing.T) {
	for name, c := range map[string]struct {
		change func(l *line, d *Download)
		want   string
	}{
		"another digest": {func(l *line, _ *Download) { l.content[500000] ^= 1 }, "another digest"},
		"too many bytes": {func(l *line, d *Download) { l.size, d.Size = -1, int64(len(l.content)-1) }, "more than"},
		"another length": {func(_ *line, d *Download) { d.Size-- }, "the upstream has 1048576 bytes, and not 1048575"},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, FetcherOptions{}, func(t *testing.T, f *Fetcher, l *line, d Download) {
				c.change(l, &d)
				a, b := readAll(join(t, f, d)), readAll(join(t, f, d))
				go func() {
					select {
					case l.parts <- l.content:
					case <-f.ctx.Done():
						return
					}
					select {
					case l.parts <- []byte{}:
					case <-f.ctx.Done():
					}
				}()
				for _, r := range []*result{a, b} {
					if <-r.done; !errors.Is(r.err, ErrDamaged) || !strings.Contains(r.err.Error(), c.want) ||
						len(r.body) > len(l.content)-HeldBack {
						t.Errorf("%d bytes, %v", len(r.body), r.err)
					}
				}
				if d.Held() {
					t.Error("it is kept")
				}
				if r, err := f.Join(t.Context(), d); err != nil {
					t.Errorf("the next one gets %v", err)
				} else if err := r.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestAnInterruptedDownloadGoesOn where it was, also with an upstream that starts over once, and not with one that does
// so again.
func TestAnInterruptedDownloadGoesOn(t *testing.T) {
	for name, c := range map[string]struct {
		begins int64
		cuts   int
		want   error
	}{
		"continued":            {-1, 3, nil},
		"started over":         {0, 1, nil},
		"started over twice":   {0, 2, ErrDamaged},
		"elsewhere":            {1, 1, ErrDamaged},
		"interrupted for long": {-1, maxInterruptions + 1, ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, FetcherOptions{}, func(t *testing.T, f *Fetcher, l *line, d Download) {
				l.begins = c.begins
				l.fails[3] = &Error{Kind: ErrUnavailable} // it is not there for a moment
				r := readAll(join(t, f, d))
				go func() {
					at := 0
					give := func(p []byte) {
						select {
						case l.parts <- p:
						case <-f.ctx.Done():
						}
					}
					for i := range c.cuts {
						to := (i + 1) * 10000
						give(l.content[at:to])
						give(nil)
						if at = to; c.begins >= 0 {
							at = int(c.begins)
						}
					}
					give(l.content[at:])
					give([]byte{})
				}()
				<-r.done
				if !errors.Is(r.err, c.want) || c.want == nil && !bytes.Equal(r.body, l.content) {
					t.Errorf("%d bytes, %v; opened at %v", len(r.body), r.err, l.opened)
				}
				if c.want == nil && c.begins < 0 && fmt.Sprint(l.opened) != "[0 10000 20000 20000 30000]" {
					t.Errorf("opened at %v", l.opened)
				}
			})
		})
	}
}

// TestAnUpstreamThatStopsIsBrokenOff after 30 seconds without a byte, and no sooner.
func TestAnUpstreamThatStopsIsBrokenOff(t *testing.T) {
	each(t, FetcherOptions{}, func(t *testing.T, f *Fetcher, l *line, d Download) {
		r := readAll(join(t, f, d))
		for i := range 5 {
			time.Sleep(stallTime - time.Millisecond)
			l.send(i*1000, (i+1)*1000)
		}
		start := time.Now()
		<-r.done
		if took := time.Since(start); !errors.Is(r.err, ErrUnavailable) || took != stallTime || r.n.Load() != 5000 ||
			!strings.Contains(r.err.Error(), "sent nothing for 30s") {
			t.Errorf("%v after %s and %d bytes", r.err, took, r.n.Load())
		}
		if f.running.Wait(); d.Held() {
			t.Error("it is kept")
		}
	})
}

// sink is an upload that stores nothing: its bytes are those of the line.
type sink struct {
	storage.Upload
	content []byte
}

func (*sink) Write(p []byte) (int, error)         { return len(p), nil }
func (*sink) Cancel(context.Context) error        { return nil }
func (s *sink) Follow() (storage.Follower, error) { return follower{s.content}, nil }

type follower struct{ content []byte }

func (f follower) ReadAt(p []byte, at int64) (int, error) { return copy(p, f.content[at:]), nil }
func (follower) Close() error                             { return nil }

// TestWhoLeavesDoesNotStopOthers, nor a download that is nearly done; nor one to which somebody comes back.
func TestWhoLeavesDoesNotStopOthers(t *testing.T) {
	for name, c := range map[string]struct {
		size, before int  // bytes in all, and those that come before the readers leave
		stays, back  bool // another reader stays; one comes back
		goesOn       bool
	}{
		"others read":          {16 << 20, 1000, true, false, true},
		"nobody reads":         {16 << 20, 1000, false, false, false},
		"one comes back":       {16 << 20, 1000, false, true, true},
		"nearly done":          {40 << 20, 30 << 20, false, false, true},
		"not nearly":           {40 << 20, 30<<20 - 1, false, false, false},
		"little is missing":    {8 << 20, 1000, false, false, true},
		"nothing has come yet": {8 << 20, 0, false, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, FetcherOptions{}, func(t *testing.T, f *Fetcher, _ *line, _ Download) {
				l := newLine(t, c.size)
				committed := false
				d := Download{Digest: l.digest, Size: l.size, Open: l.open,
					Create: func(context.Context) (storage.Upload, error) { return &sink{content: l.content}, nil },
					Commit: func(context.Context, storage.Upload) error {
						committed = true
						return nil
					}}
				first := join(t, f, d)
				var other *result
				if c.stays {
					other = readAll(join(t, f, d))
				}
				if c.before > 0 {
					l.send(0, c.before)
				}
				synctest.Wait()
				if err := first.Close(); err != nil || first.Close() != nil {
					t.Error(err)
				}
				if _, err := first.Read(make([]byte, 1)); err == nil {
					t.Error("a closed reader reads")
				}
				time.Sleep(lingerTime - time.Millisecond)
				if c.back {
					other = readAll(join(t, f, d))
				}
				time.Sleep(2 * time.Millisecond)
				synctest.Wait()
				if f.active.taken == 1 != c.goesOn {
					t.Errorf("it goes on: %t, want %t", f.active.taken == 1, c.goesOn)
				}
				if !c.goesOn {
					return
				}
				l.send(c.before, c.size)
				f.running.Wait()
				if !committed || len(l.opened) != 1 {
					t.Errorf("committed %t after %d downloads", committed, len(l.opened))
				}
				if other != nil {
					if <-other.done; other.err != nil || !bytes.Equal(other.body, l.content) {
						t.Errorf("%d bytes, %v", len(other.body), other.err)
					}
				}
			})
		})
	}
}

// TestDownloadsAreBounded: their number, their bytes in the cache, and those in the spool.
func TestDownloadsAreBounded(t *testing.T) {
	var room atomic.Int64
	o := FetcherOptions{Downloads: 1, Spool: 1 << 19, Reserve: func(n int64) (func(), bool) {
		if room.Add(-n) < 0 {
			room.Add(n)
			return nil, false
		}
		return func() { room.Add(n) }, true
	}}
	each(t, o, func(t *testing.T, f *Fetcher, l *line, d Download) {
		room.Store(l.size - 1)
		r := readAll(join(t, f, d))
		if <-r.done; !errors.Is(r.err, ErrNoRoom) || room.Load() != l.size-1 {
			t.Errorf("%v; %d bytes left", r.err, room.Load())
		}
		f.running.Wait()
		room.Store(l.size)
		r = readAll(join(t, f, d))
		synctest.Wait()
		if f.active.taken == 0 { // the spool is too small for it
			if <-r.done; !errors.Is(r.err, ErrNoRoom) || !strings.Contains(r.err.Error(), "spool") ||
				room.Load() != l.size {
				t.Errorf("%v", r.err)
			}
			return
		}
		other := d
		other.Digest = digest.FromString("another")
		_, err := f.Join(t.Context(), other)
		if wait, ok := RetryAfter(err); !ok || wait != time.Second {
			t.Errorf("%v", err)
		}
		l.send(0, len(l.content))
		if <-r.done; r.err != nil {
			t.Error(r.err)
		}
		if f.running.Wait(); room.Load() != l.size {
			t.Errorf("%d bytes are still reserved", l.size-room.Load())
		}
	})
}

// narrow is an upload on a disk that has room for so many bytes.
type narrow struct {
	storage.Upload
	room int
}

func (n *narrow) Write(p []byte) (int, error) {
	if n.room -= len(p); n.room < 0 {
		return 0, fmt.Errorf("upload: %w", storage.ErrFull)
	}
	return n.Upload.Write(p)
}

// TestADiskThatIsFull breaks one download off. Those of contents that are as large do not begin for a while: their
// clients get them unstored.
func TestADiskThatIsFull(t *testing.T) {
	each(t, FetcherOptions{}, func(t *testing.T, f *Fetcher, l *line, d Download) {
		create, created := d.Create, 0
		d.Create = func(ctx context.Context) (storage.Upload, error) {
			created++
			u, err := create(ctx)
			return &narrow{u, 100_000}, err
		}
		r := readAll(join(t, f, d))
		l.parts <- l.content[:100_000]
		l.parts <- l.content[100_000:200_000]
		if <-r.done; !errors.Is(r.err, ErrNoRoom) {
			t.Errorf("%v", r.err)
		}
		f.running.Wait()
		none := func() {
			t.Helper()
			r := join(t, f, d)
			if _, err := r.Size(); !errors.Is(err, ErrNoRoom) || created != 1 {
				t.Errorf("%v; %d uploads", err, created)
			}
			r.Close()
			f.running.Wait()
		}
		none()
		small := newLine(t, 1000)
		other := readAll(join(t, f, Download{Digest: small.digest, Size: small.size, Open: small.open, Create: create}))
		small.send(0, 1000)
		if <-other.done; other.err != nil {
			t.Errorf("a small content: %v", other.err)
		}
		time.Sleep(fullFor - time.Second)
		none()
		time.Sleep(2 * time.Second)
		d.Create = create
		r = readAll(join(t, f, d))
		l.send(0, len(l.content))
		if <-r.done; r.err != nil {
			t.Errorf("when there is room again: %v", r.err)
		}
	})
}

// TestWhatTheUpstreamDoesNotGive is known before a byte is sent: the readers get the error of the upstream.
func TestWhatTheUpstreamDoesNotGive(t *testing.T) {
	each(t, FetcherOptions{}, func(t *testing.T, f *Fetcher, l *line, d Download) {
		for _, want := range []error{ErrNotFound, ErrUnauthorized, ErrUnavailable, ErrRefused} {
			l.fails[len(l.opened)+1] = &Error{Kind: want, Reason: "so"}
			r := join(t, f, d)
			if _, err := r.Size(); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			f.running.Wait()
		}
		r := join(t, f, d)
		defer r.Close()
		if _, err := r.Seek(-1, io.SeekStart); err == nil {
			t.Error("a position before the beginning")
		}
		f.Close()
	})
}

// TestAReaderLeavesWithItsContext, and a server that ends ends all downloads.
func TestAReaderLeavesWithItsContext(t *testing.T) {
	each(t, FetcherOptions{}, func(t *testing.T, f *Fetcher, l *line, d Download) {
		ctx, leave := context.WithCancel(t.Context())
		r, err := f.Join(ctx, d)
		if err != nil {
			t.Fatal(err)
		}
		gone, stays := readAll(r), readAll(join(t, f, d))
		l.send(0, 10)
		synctest.Wait()
		leave()
		if <-gone.done; !errors.Is(gone.err, context.Canceled) {
			t.Errorf("%v", gone.err)
		}
		f.Close()
		if <-stays.done; !errors.Is(stays.err, ErrUnavailable) || stays.n.Load() != 10 {
			t.Errorf("%d bytes, %v", stays.n.Load(), stays.err)
		}
		if _, err := f.Join(t.Context(), d); !errors.Is(err, ErrUnavailable) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// TestFiftyClientsAndOneUpstreamDownload over real connections: the first byte comes before the last one has left, a
// connection that breaks is continued, and every client gets the same bytes.
func TestFiftyClientsAndOneUpstreamDownload(t *testing.T) {
	content := make([]byte, 2<<20)
	_, _ = rand.Read(content)
	d := digest.FromBytes(content)
	var asked []string
	var mu sync.Mutex
	firstByte := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		asked = append(asked, req.Header.Get("Range"))
		first := len(asked) == 1
		mu.Unlock()
		w.Header().Set("ETag", `"v"`)
		if !first {
			http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(content))
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content[:1<<20])
		w.(http.Flusher).Flush()
		<-firstByte // a client has it before the rest leaves
		panic(http.ErrAbortHandler)
	}))
	defer up.Close()
	host := strings.TrimPrefix(up.URL, "http://")
	u := New(Config{})
	if err := u.Set([]Entry{{Host: host, As: "up", Insecure: true, Endpoints: []Endpoint{{URL: up.URL}}}}); err != nil {
		t.Fatal(err)
	}
	at, repo, err := u.Find(host, "a")
	if err != nil {
		t.Fatal(err)
	}
	create, held := store(t, true)
	f := NewFetcher(FetcherOptions{})
	defer f.Close()
	down := Download{Digest: d, Size: int64(len(content)), Create: create, Held: func() bool { return held(d) },
		Open: func(ctx context.Context, from int64, etag string) (*Blob, error) {
			return at.Blob(ctx, repo, d, from, etag)
		}}
	var once sync.Once
	var clients sync.WaitGroup
	for i := range 50 {
		r := join(t, f, down)
		clients.Go(func() {
			defer r.Close()
			from := int64(i) << 10
			if _, err := r.Seek(from, io.SeekStart); err != nil {
				t.Error(err)
			}
			b := make([]byte, 1)
			if _, err := io.ReadFull(r, b); err != nil {
				t.Error(err)
			}
			once.Do(func() { close(firstByte) })
			rest, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(append(b, rest...), content[from:]) {
				t.Errorf("%d bytes, %v", len(rest)+1, err)
			}
		})
	}
	clients.Wait()
	if len(asked) != 2 || asked[0] != "" || !strings.HasPrefix(asked[1], "bytes=") || asked[1] == "bytes=0-" {
		t.Errorf("the upstream was asked for %q", asked)
	}
	if f.running.Wait(); !held(d) {
		t.Error("it is not stored")
	}
}
