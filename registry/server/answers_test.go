package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestAnswersThatNobodyReadsGiveWay: clients that do not read a large answer keep out no other one, from another
// address or, behind a node port, from the same. What they are sent takes no more memory than there is.
func TestAnswersThatNobodyReadsGiveWay(t *testing.T) {
	t.Parallel()
	const size = 4 << 20 // more than the buffers of the sockets
	a := NewAnswers(2 * size)
	large := bytes.Repeat([]byte("a"), size)
	s, l := NewLocal(t, Options{Log: zerolog.Nop(), StallTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			keep, err := a.Take(r, size)
			if err != nil {
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			defer keep(0)
			_, _ = w.Write(large)
		})})
	go s.Serve(l)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		s.Shutdown(ctx)
	})
	for range 6 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for _, from := range []string{"127.0.0.2", "127.0.0.1"} {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c := &http.Client{Transport: &http.Transport{DialContext: d.DialContext, DisableKeepAlives: true}}
		resp, err := c.Get("http://" + l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || len(got) != size || err != nil {
			t.Errorf("%s: %s, %d bytes, %v", from, resp.Status, len(got), err)
		}
		resp.Body.Close()
	}
}

// TestAnAnswerGivesBackWhatItDoesNotNeed while it is written: the next request need not wait for its end.
func TestAnAnswerGivesBackWhatItDoesNotNeed(t *testing.T) {
	a := NewAnswers(100)
	r := httptest.NewRequest("GET", "/", nil)
	first, err := a.Take(r, 1000) // as much as there is
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan func(int64))
	go func() {
		second, err := a.Take(r, 60)
		if err != nil {
			t.Error(err)
		}
		got <- second
	}()
	first(200) // no more than it has
	first(40)
	(<-got)(0)
	if a.pool.free != 60 || a.pool.held.Len() != 1 {
		t.Errorf("%d bytes are free, %d answers are counted; want 60 and 1", a.pool.free, a.pool.held.Len())
	}
	first(0)
	if a.pool.free != 100 || a.pool.held.Len() != 0 {
		t.Errorf("%d bytes are free", a.pool.free)
	}
}

// TestTheMemoryForAnswersIsBounded, whatever the machine has.
func TestTheMemoryForAnswersIsBounded(t *testing.T) {
	if size := ReserveAnswers().pool.size; size <= 0 || size > 64<<20 {
		t.Errorf("%d", size)
	}
	var later interface{ RetryAfter() int }
	if !errors.As(error(errBusy{}), &later) || later.RetryAfter() <= 0 {
		t.Error("no time to retry after")
	}
}
