package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"trow/registry/address"

	"github.com/rs/zerolog"
)

// keeper is a server whose handler keeps bodies of at most 64 KiB, and answers with their length.
type keeper struct {
	*Bodies
	address string
	errs    chan error
	wait    time.Duration // that the handler takes
	most    atomic.Int64  // the most bytes of bodies that were processed at once
	now     atomic.Int64
}

func (k *keeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var buf bytes.Buffer
	release, err := k.Read(&buf, w, r, 64<<10, 2)
	if err != nil {
		k.errs <- err
		var later interface{ RetryAfter() int }
		if errors.As(err, &later) {
			w.WriteHeader(http.StatusServiceUnavailable)
		} else {
			w.WriteHeader(http.StatusBadRequest)
		}
		return
	}
	defer release()
	n := k.now.Add(int64(buf.Len()))
	defer k.now.Add(-int64(buf.Len()))
	for most := k.most.Load(); n > most && !k.most.CompareAndSwap(most, n); most = k.most.Load() {
	}
	time.Sleep(k.wait)
	fmt.Fprint(w, buf.Len())
}

func newKeeper(t *testing.T, size int64) *keeper {
	t.Helper()
	k := &keeper{Bodies: NewBodies(size), errs: make(chan error, 1000)}
	s, l := NewLocal(t, Options{Handler: k, Log: zerolog.Nop(), StallTimeout: time.Minute})
	go s.Serve(l)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		s.Shutdown(ctx)
	})
	k.address = l.Addr().String()
	return k
}

// post sends a body of n bytes from an address. It returns the status.
func (k *keeper) post(t *testing.T, from string, n int) int {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c := &http.Client{Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}}
	resp, err := c.Post("http://"+k.address, "text/plain", strings.NewReader(strings.Repeat("a", n)))
	if err != nil {
		t.Errorf("a request from %s: %v", from, err)
		return 0
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode == 200 && string(b) != fmt.Sprint(n) {
		t.Errorf("%s of %d bytes", b, n)
	}
	return resp.StatusCode
}

// hold sends headers and one byte of a body.
func (k *keeper) hold(t *testing.T, from string, length string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", k.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n1", length)
	return c
}

// whole waits until nothing is held any more.
func (k *keeper) whole(t *testing.T) {
	t.Helper()
	free := func(p *pool) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.free == p.size && p.waiting.Len() == 0 && p.held.Len() == 0
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if free(&k.small) && free(&k.large) && free(&k.light) && free(&k.heavy) {
			return
		}
		if time.Now().After(end) {
			t.Fatal("memory was not given back")
		}
	}
}

// TestHeldBackBodiesGiveWay: bodies of which only the first byte arrives do not keep out others, from other addresses
// or, behind a node port, from the same one. They are refused with a time to retry after.
func TestHeldBackBodiesGiveWay(t *testing.T) {
	t.Parallel()
	for _, length := range []string{"Content-Length: 60000", "Content-Length: 2000",
		"Transfer-Encoding: chunked\r\nX: y"} {
		t.Run(length, func(t *testing.T) {
			t.Parallel()
			k := newKeeper(t, 256<<10)
			var all []net.Conn
			for range 100 {
				all = append(all, k.hold(t, "127.0.0.1", length))
			}
			begin := time.Now()
			for _, from := range []string{"127.0.0.2", "127.0.0.1"} {
				for _, n := range []int{60000, 2000} {
					if got := k.post(t, from, n); got != 200 {
						t.Errorf("%d bytes from %s: %d", n, from, got)
					}
				}
			}
			if took := time.Since(begin); took > 8*time.Second { // four requests, each of which waits for readGrace
				t.Errorf("took %s", took)
			}
			if err := <-k.errs; err != (errBusy{}) && !strings.Contains(length, "chunked") {
				t.Errorf("one that gave way: %v", err)
			}
			for _, c := range all {
				c.Close()
			}
			k.whole(t)
		})
	}
}

// TestBodiesAreBoundedTogether: however many requests come at once, no more is processed than there is memory for, and
// each is answered.
func TestBodiesAreBoundedTogether(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, 256<<10)
	k.Bodies.patience = time.Minute
	var all sync.WaitGroup
	var served atomic.Int64
	k.wait = 5 * time.Millisecond
	for i := range 40 {
		all.Go(func() {
			if k.post(t, fmt.Sprintf("127.0.0.%d", 1+i%3), 30000) == 200 {
				served.Add(1)
			}
		})
	}
	all.Wait()
	if most := k.most.Load(); most > 128<<10/2 || served.Load() < 20 {
		t.Errorf("%d bytes at once, %d served", most, served.Load())
	}
	k.whole(t)
}

// TestABodyThatDribblesEnds: one byte within each stall timeout is not enough.
func TestABodyThatDribblesEnds(t *testing.T) {
	t.Parallel()
	k := newKeeper(t, 1<<20)
	k.patience = 300 * time.Millisecond
	c := k.hold(t, "127.0.0.1", "Content-Length: 1000")
	go func() {
		for range 500 {
			if _, err := c.Write([]byte("1")); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	select {
	case err := <-k.errs:
		if err.Error() != "the body came too slowly" {
			t.Error(err)
		}
	case <-time.After(4 * time.Second):
		t.Error("it goes on")
	}
	k.whole(t)
}

func TestABodyThatIsTooLarge(t *testing.T) {
	b := NewBodies(1 << 20)
	for _, chunked := range []bool{false, true} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(strings.Repeat("a", 1001)))
		if chunked {
			r.ContentLength = -1
		}
		var tooLarge *http.MaxBytesError
		_, err := b.Read(new(bytes.Buffer), httptest.NewRecorder(), r, 1000, 2)
		if !errors.As(err, &tooLarge) {
			t.Error(err)
		}
	}
}

// TestTooManyWaitForMemory: the one that has waited the longest of the address that waits most is refused.
func TestTooManyWaitForMemory(t *testing.T) {
	t.Parallel()
	var p pool
	p.init(100)
	from := address.Network(client(httptest.NewRequest("GET", "/", nil)))
	first, err := p.take(t.Context(), from, 1000, nil)
	if err != nil {
		t.Fatal(err)
	}
	var refused atomic.Int64
	var all sync.WaitGroup
	for range maxBodiesWaiting + 50 {
		all.Go(func() {
			h, err := p.take(context.Background(), from, 1, nil)
			if err != nil {
				refused.Add(1)
				return
			}
			h.release()
		})
	}
	end := time.Now().Add(2 * time.Second)
	for ; refused.Load() < 50 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	first.release()
	all.Wait()
	if refused.Load() != 50 || p.free != 100 {
		t.Errorf("%d refused, %d free", refused.Load(), p.free)
	}
}
