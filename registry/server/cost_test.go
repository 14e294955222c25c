package server

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// resident returns the memory of the process, in bytes.
func resident(t *testing.T) int64 {
	t.Helper()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// TestTheCostOfAConnection measures idleCost and headCost, within a factor of two. Half of the measured memory of an
// idle connection may be that of the client, which is in this process too.
func TestTheCostOfAConnection(t *testing.T) {
	if testing.Short() {
		t.Skip("measures the memory of the process")
	}
	const n = 400
	s, l := NewLocal(t, Options{Handler: http.NotFoundHandler(), Log: zerolog.Nop(), TLSConfig: LocalTLS(),
		MaxConnections: 8 * n})
	go s.Serve(l)
	defer s.http.Close()
	var all []*tls.Conn
	dial := func() {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := io.ReadFull(c, make([]byte, 15)); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	for range 20 { // what all connections share
		dial()
	}
	before := resident(t)
	for range n {
		dial()
	}
	idle := resident(t)
	heads := min(n, headsLimit(8*n, Memory()))
	var sent sync.WaitGroup
	for _, c := range all[:heads] {
		sent.Go(func() { fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("a", maxHeader-1000)) })
	}
	sent.Wait()
	time.Sleep(500 * time.Millisecond) // the server reads on
	full := resident(t)
	for what, c := range map[string]struct{ got, want int64 }{
		"an idle connection": {(idle - before) / n, idleCost}, "headers": {(full - idle) / int64(heads), headCost},
	} {
		t.Logf("%s: %d bytes", what, c.got)
		if !raceEnabled && (c.got < c.want/2 || c.got > 2*c.want) {
			t.Errorf("%s: %d bytes, want about %d", what, c.got, c.want)
		}
	}
}

// TestConnectionsFollowFromTheMemory of the process.
func TestConnectionsFollowFromTheMemory(t *testing.T) {
	for memory, want := range map[int64][2]int{
		256 << 20: {1194, 85}, 1 << 30: {4778, 341}, 24 << 30: {10000, 1250}, 1 << 20: {64, 8},
	} {
		n := defaultConnections(memory)
		if heads := headsLimit(n, memory); n != want[0] || heads != want[1] {
			t.Errorf("%d MiB: %d connections, %d with large headers; want %v", memory>>20, n, heads, want)
		}
		if n > 64 && int64(n)*idleCost+int64(headsLimit(n, memory))*headCost > memory/4 {
			t.Errorf("%d MiB: more than a quarter", memory>>20)
		}
	}
}

// TestRequestsAreNoMoreThanConnections: with little memory there were more places for requests than connections, so
// that one client, which gets half of the places, could take all connections.
func TestRequestsAreNoMoreThanConnections(t *testing.T) {
	few := Options{MaxConnections: 10}
	if n := few.Requests(1000); n != 10 {
		t.Errorf("%d requests on 10 connections", n)
	}
	if n := few.Requests(5); n != 5 {
		t.Errorf("%d requests, want 5", n)
	}
	follows := Options{}
	if n, most := follows.Requests(1<<30), connectionLimit(0, zerolog.Nop()); n != most {
		t.Errorf("%d requests on %d connections", n, most)
	}
}

// TestUnfinishedHeadersAreBounded: of many connections with large headers that are not complete few stay, on new
// connections and on those that had a request. Requests with large headers are served.
func TestUnfinishedHeadersAreBounded(t *testing.T) {
	t.Parallel()
	s, l := NewLocal(t, Options{Handler: http.NotFoundHandler(), Log: zerolog.Nop(), MaxConnections: 500})
	go s.Serve(l)
	defer s.http.Close()
	limit := headsLimit(500, Memory())
	var open atomic.Int64
	for i := range 2 * limit {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open.Add(1)
		if i%2 == 1 {
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			if _, err := io.ReadFull(c, make([]byte, 15)); err != nil {
				t.Fatal(err)
			}
		}
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("a", 2*heavyHead))
		go func() {
			_, _ = io.Copy(io.Discard, c)
			open.Add(-1)
		}()
	}
	for end := time.Now().Add(5 * time.Second); open.Load() > int64(limit); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections with unfinished headers are open, want %d", open.Load(), limit)
		}
	}
	r, _ := http.NewRequest("GET", "http://"+l.Addr().String(), nil)
	r.Header.Set("X", strings.Repeat("a", 2*heavyHead))
	resp, err := http.DefaultClient.Do(r)
	if err != nil || resp.StatusCode != 404 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
}
