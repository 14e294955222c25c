package server_test

import (
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"

	"trow/registry/server"
)

// TestAClientThatDoesNotWaitForAnswersTakesTurns: of two clients that have sent all their requests at once, one was
// served for 10 ms before the other one.
func TestAClientThatDoesNotWaitForAnswersTakesTurns(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const clients, requests = 2, 300
	var mu sync.Mutex
	var served []string
	var all sync.WaitGroup
	all.Add(clients * requests)
	s, l := server.NewLocal(t, server.Options{Log: zerolog.Nop(),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			served = append(served, r.RemoteAddr)
			mu.Unlock()
			_, _ = io.WriteString(w, "ok")
			all.Done()
		})})
	for range clients { // before the server accepts the first one
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, strings.Repeat("GET / HTTP/1.1\r\nHost: x\r\n\r\n", requests)); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	all.Wait()
	both := slices.IndexFunc(served, func(from string) bool { return from != served[0] }) // when the other was accepted
	longest, run := 0, 0
	for i, from := range served[both:] {
		if run++; from != served[both+i-1] {
			run = 1
		}
		longest = max(longest, run)
	}
	if most := 30; longest > most {
		t.Errorf("one client was served %d times in a row, want at most %d", longest, most)
	}
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
