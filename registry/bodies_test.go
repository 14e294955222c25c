package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	front "trow/registry/server"
)

// noMemory is a Bodies without memory.
type noMemory struct{ error }

func (noMemory) RetryAfter() int { return 7 }

func (n noMemory) Read(*bytes.Buffer, http.ResponseWriter, *http.Request, int64, int) (func(), error) {
	return nil, n
}

// TestAManifestForWhichThereIsNoMemory is refused as too many requests, and can be pushed again.
func TestAManifestForWhichThereIsNoMemory(t *testing.T) {
	w := newServer(t, func(o *registry.Options) { o.Bodies = noMemory{errors.New("no memory; retry")} })
	w.do("PUT", "/v2/app/manifests/v", []byte("{}"), "Content-Type", "application/x").
		code(429, "TOOMANYREQUESTS").has("Retry-After", "7").contains("no memory; retry")
}

// TestManifestsAreReadWithinMemory: a push works with a Bodies, gives its memory back, and has the same limit.
func TestManifestsAreReadWithinMemory(t *testing.T) {
	w := newServer(t, func(o *registry.Options) { o.Bodies = front.NewBodies(64 << 10) })
	for i := range 20 {
		w.pushImage("app", fmt.Sprint("v", i), fmt.Sprint(i))
	}
	w.do("PUT", "/v2/app/manifests/v", make([]byte, 4<<20+1), "Content-Type", "application/x").
		code(413, "MANIFEST_INVALID")
}

// TestARefusedBodyThatDribblesEnds: what is read of a body after its request was refused ends by a deadline, although a
// byte comes within each stall timeout.
func TestARefusedBodyThatDribblesEnds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 10 s")
	}
	t.Parallel()
	s, err := front.New(front.Options{Handler: newServer(t).registry})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	defer s.Shutdown(context.Background())
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "PUT /v2/app/blobs/uploads/x?digest=%s HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n",
		digest.FromString("x"))
	begin, ended := time.Now(), make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}()
	for time.Since(begin) < 20*time.Second {
		select {
		case <-ended:
			if took := time.Since(begin); took > 13*time.Second {
				t.Errorf("took %s", took)
			}
			return
		case <-time.After(50 * time.Millisecond):
			_, _ = c.Write([]byte("1"))
		}
	}
	t.Error("the body is still being read after 20 s")
}
