package registry_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
)

// The tests in this file are clients that want to keep the others out.

// named allows every client everything, under the name in a header.
type named struct{ open }

func (named) Identify(r *http.Request) (*auth.Identity, error) {
	return auth.Named(r.Header.Get("X-User"), nil), nil
}

// honest pushes and pulls an image, which must not take longer than a second.
func (w *server) honest(repo string) {
	w.Helper()
	begin := time.Now()
	config, layer := []byte("{}"), []byte("layer of "+repo)
	for _, content := range [][]byte{config, layer} {
		l := w.begin(repo)
		w.do("PATCH", l, content).is(202)
		w.do("PUT", l+"?digest="+digest.FromBytes(content).String(), nil).is(201)
	}
	w.do("PUT", "/v2/"+repo+"/manifests/v", image(config, layer), "Content-Type", typeManifest).is(201)
	w.do("GET", "/v2/"+repo+"/blobs/"+digest.FromBytes(layer).String(), nil).is(200)
	if took := time.Since(begin); took > time.Second {
		w.Errorf("a push and a pull took %v", took)
	} else {
		w.Logf("a push and a pull took %v", took)
	}
}

// TestEmptyUploadsStopNoPush: 10,000 uploads without bytes took all places, until upload-timeout and over restarts.
func TestEmptyUploadsStopNoPush(t *testing.T) {
	const attack, places, clients = 10_000, 4, 4
	dir := t.TempDir()
	blobs, journal, closeJournal := bounded(t, dir, places)
	w := serve(t, blobs, journal)
	begin := time.Now()
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range attack / clients {
				resp, err := http.Post(w.url+"/v2/a/blobs/uploads/", "", nil)
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != 202 {
					t.Errorf("status %d", resp.StatusCode)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d uploads were begun in %v", attack, time.Since(begin))
	w.honest("b")
	if n := entries(t, dir, "uploads"); n != 0 {
		t.Errorf("%d uploads are stored", n)
	}
	w.index.Close()
	if err := closeJournal(); err != nil {
		t.Fatal(err)
	}
	blobs, journal, _ = bounded(t, dir, places)
	serve(t, blobs, journal).honest("c")
}

// TestAFullPoolStopsNoManifest: the bytes of a manifest waited for a place among the uploads of clients.
func TestAFullPoolStopsNoManifest(t *testing.T) {
	blobs, journal, _ := bounded(t, t.TempDir(), 1)
	w := serve(t, blobs, journal)
	body, feed := io.Pipe()
	done := make(chan *answer)
	first, l := w.begin("a"), w.begin("b")
	go func() { done <- w.send("PATCH", first, body) }()
	for n := 0; ; n++ { // until the server has taken the place for the first one
		if _, err := feed.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		a := w.do("PATCH", l, []byte("x"))
		if a.status == 429 {
			a.code(429, "TOOMANYREQUESTS").has("Retry-After", "5")
			break
		}
		a.is(202)
		w.do("DELETE", l, nil) // unless it has given way to the first one
		if l = w.begin("b"); n == 1000 {
			t.Fatal("an upload that is being written to has given way")
		}
	}
	w.pushImage("b", "v", "content") // its blobs come in one request each
	empty := digest.FromString("").String()
	w.do("PUT", w.begin("b")+"?digest="+empty, nil).is(201) // has no bytes to keep
	w.do("GET", "/v2/b/blobs/"+empty, nil).is(200).equals("")
	feed.Close()
	(<-done).is(202)
	w.do("PATCH", l, []byte("x")).is(202) // that one is idle now, and gives way
}

// TestClientsThatFillAllPlacesKeepNoneOut: each is within its share.
func TestClientsThatFillAllPlacesKeepNoneOut(t *testing.T) {
	const clients, share = 5, 4
	blobs, journal, _ := bounded(t, t.TempDir(), clients*share)
	w := serve(t, blobs, journal, func(o *registry.Options) { o.Auth, o.MaxUploadsPerClient = named{}, share })
	stored := func(user string) string {
		l := w.begin("a")
		w.do("PATCH", l, []byte("x"), "X-User", user).is(202)
		return l
	}
	var held []string
	for i := range clients * share {
		held = append(held, stored(fmt.Sprint("eve", i%clients)))
	}
	alices := []string{stored("alice"), stored("alice")}
	for i, l := range held { // the oldest of those who held most: eve0 held less than the others after the first
		if i < len(alices) {
			w.do("GET", l, nil).code(404, "BLOB_UPLOAD_UNKNOWN")
		} else {
			w.do("GET", l, nil).is(204)
		}
	}
	for range 3 * clients * share { // alice has less than the others all the time
		stored("eve1")
		stored("eve2")
	}
	for _, l := range alices {
		w.do("PATCH", l, []byte("more"), "Content-Range", "1-4").is(202)
	}
}

// TestAClientsOwnUploadsGiveWay checks that uploads of other clients, and those with a request under way, stay.
func TestAClientsOwnUploadsGiveWay(t *testing.T) {
	const share = 3
	blobs, journal, _ := bounded(t, t.TempDir(), 100)
	w := serve(t, blobs, journal, func(o *registry.Options) { o.Auth, o.MaxUploadsPerClient = named{}, share })
	stored := func(user string) string {
		l := w.begin("a")
		w.do("PATCH", l, []byte("x"), "X-User", user).is(202)
		return l
	}
	bobs := stored("bob")
	var mine []string
	for range share {
		mine = append(mine, stored("eve"))
	}
	w.do("GET", mine[0], nil, "X-User", "eve").is(204) // is used, so the next one is the oldest
	mine = append(mine, stored("eve"))
	w.do("GET", mine[1], nil).code(404, "BLOB_UPLOAD_UNKNOWN")
	w.do("PATCH", mine[1], []byte("x")).code(404, "BLOB_UPLOAD_UNKNOWN") // and it does not begin anew
	for _, l := range []string{bobs, mine[0], mine[2], mine[3]} {
		w.do("GET", l, nil).is(204).has("Range", "0-0")
	}

	// All are being written to.
	var ends []func()
	for _, l := range []string{mine[0], mine[2], mine[3]} {
		body, feed := io.Pipe()
		done := make(chan *answer)
		// The body follows when the server reads it: from then on the upload is under way, and cannot give way.
		go func() { done <- w.send("PATCH", l, body, "X-User", "eve", "Expect", "100-continue") }()
		if _, err := feed.Write([]byte("more")); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, func() { feed.Close(); (<-done).is(202) })
	}
	l := w.begin("a")
	eventually(t, "no upload can give way", func() bool {
		a := w.do("PATCH", l, []byte("x"), "X-User", "eve")
		if a.status == 202 { // before the server has begun to read the last of them
			w.do("DELETE", l, nil).is(204)
			l = w.begin("a")
			return false
		}
		a.code(429, "TOOMANYREQUESTS").has("Retry-After", "5").contains("eve has 3 uploads under way").
			contains("max-uploads-per-client")
		return true
	})
	stored("bob")
	for _, end := range ends {
		end()
	}
	w.do("PATCH", l, []byte("x"), "X-User", "eve").is(202) // the session is kept, and now one gives way
	w.do("GET", bobs, nil).is(204)
}

// TestStalledReadersStopNoOtherClient: clients that did not read their answers held all places.
func TestStalledReadersStopNoOtherClient(t *testing.T) {
	const places, attack = 16, 60
	w := newServer(t, func(o *registry.Options) { o.Auth, o.MaxRequests = named{}, places })
	d := w.pushBlob("a", random(t, 8<<20)) // more than the buffers of a connection take
	small := "/v2/a/blobs/" + w.pushBlob("a", []byte("small")).String()
	status := map[int]int{}
	for range attack {
		conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() }) // before the server is closed
		fmt.Fprintf(conn, "GET /v2/a/blobs/%s HTTP/1.1\r\nHost: x\r\n\r\n", d)
		resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 512), nil) // and reads no more
		if err != nil {
			t.Fatal(err)
		}
		if status[resp.StatusCode]++; resp.StatusCode == 429 && resp.Header.Get("Retry-After") != "1" {
			t.Errorf("%v", resp.Header)
		}
	}
	if status[200] != places/2 || status[429] != attack-places/2 {
		t.Errorf("%v; want half of the %d places taken", status, places)
	}
	w.do("GET", small, nil).code(429, "TOOMANYREQUESTS").contains("127.0.0.1 has as many requests under way")
	begin := time.Now()
	w.do("GET", small, nil, "X-User", "alice").is(200).equals("small") // a login from the same address
	elsewhere := &http.Client{Transport: &http.Transport{
		DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}).DialContext}}
	defer elsewhere.CloseIdleConnections()
	resp, err := elsewhere.Get(w.url + small)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if took := time.Since(begin); resp.StatusCode != 200 || took > time.Second {
		t.Errorf("a pull from another address: %d; both took %v", resp.StatusCode, took)
	}
	w.pushImage("b", "v", "x") // pushes have places of their own
}

// TestUnverifiedCredentialsStopNoOtherClient: until credentials are verified, their owner is not known.
func TestUnverifiedCredentialsStopNoOtherClient(t *testing.T) {
	const places, attack = 8, 20
	a := &slowAuth{hold: make(chan struct{})}
	w := newServer(t, func(o *registry.Options) { o.Auth, o.MaxRequests = a, places })
	release := sync.OnceFunc(func() { close(a.hold) })
	t.Cleanup(release) // a server cannot close while it serves a request
	var wg sync.WaitGroup
	var refused atomic.Int64
	for range attack {
		wg.Go(func() {
			if w.do("GET", "/v2/", nil, "Authorization", "Bearer x").status == 429 {
				refused.Add(1)
			}
		})
	}
	eventually(t, "half of the places are taken", func() bool { return refused.Load() == attack-places/2 })
	w.do("GET", "/v2/", nil).is(200)
	release()
	wg.Wait()
}

// slowAuth cannot verify credentials until hold is closed.
type slowAuth struct {
	open
	hold chan struct{}
}

func (s *slowAuth) Identify(r *http.Request) (*auth.Identity, error) {
	if r.Header.Get("Authorization") != "" {
		<-s.hold
	}
	return s.open.Identify(r)
}

// TestAMountWithoutASourceAsksNoReviewer: asking about each repository that holds the blob took time, and sent requests
// to the Kubernetes API.
func TestAMountWithoutASourceAsksNoReviewer(t *testing.T) {
	a := &asking{}
	w := newServer(t, func(o *registry.Options) { o.Auth = a })
	var d string
	for i := range 50 {
		d = w.pushBlob(fmt.Sprint("holder/", i), []byte("x")).String()
	}
	a.some.Store(true)
	a.asked.Store(0)
	w.do("POST", "/v2/to/blobs/uploads/?mount="+d, nil).is(202)
	if n := a.asked.Load(); n != 1 {
		t.Errorf("%d questions, want one: whether the client may push", n)
	}
	w.do("POST", "/v2/to/blobs/uploads/?from=&mount="+d, nil).is(202)
	w.do("POST", "/v2/to/blobs/uploads/?from=holder/3&mount="+d, nil).is(201)
	a.some.Store(false)
	w.do("POST", "/v2/to2/blobs/uploads/?mount="+d, nil).is(201) // may pull from all
}

// asking counts questions.
type asking struct {
	open
	some  atomic.Bool // clients may not pull from all repositories
	asked atomic.Int64
}

func (a *asking) Authorize(context.Context, *auth.Identity, string, auth.Action) error {
	a.asked.Add(1)
	return nil
}

func (a *asking) Readable(context.Context, *auth.Identity) func(string) (bool, error) {
	if !a.some.Load() {
		return nil
	}
	return func(string) (bool, error) { a.asked.Add(1); return true, nil }
}

// TestAnUploadWithoutBytes is one like any other for its client, and not stored.
func TestAnUploadWithoutBytes(t *testing.T) {
	w, dir := onDisk(t)
	l := w.begin("a")
	if len(l) > len("/v2/a/blobs/uploads/")+64 ||
		strings.Trim(l[len("/v2/a/blobs/uploads/"):], "abcdefghijklmnopqrstuvwxyz"+
			"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
		t.Errorf("Location %s", l)
	}
	id := strings.TrimPrefix(l, "/v2/a/blobs/uploads/")
	same := []string{"Location", l, "Docker-Upload-UUID", id, "Range", "0-0"}
	w.do("GET", l, nil).is(204).has(same...)
	w.do("PATCH", l, nil).is(202).has(same...)
	w.do("PATCH", l, []byte("xyz"), "Content-Range", "3-5").code(416, "BLOB_UPLOAD_INVALID").has(same...)
	broken := struct{ io.Reader }{iotestErr{}}
	if req, err := http.NewRequest("PATCH", w.url+l, broken); err == nil {
		if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
			resp.Body.Close()
		}
	}
	w.do("GET", l, nil).is(204).has(same...)
	if n := entries(t, dir, "uploads"); n != 0 {
		t.Errorf("%d uploads are stored", n)
	}
	w.do("PATCH", l, []byte("abc"), "Content-Range", "0-2").is(202).
		has("Location", l, "Docker-Upload-UUID", id, "Range", "0-2")
	if n := entries(t, dir, "uploads"); n != 1 {
		t.Errorf("%d uploads are stored", n)
	}
	w.do("PATCH", l, []byte("d"), "Content-Range", "3-3").is(202).has("Location", l, "Range", "0-3")
	w.do("PUT", l+"?digest="+digest.FromString("abcd").String(), nil).is(201)
	w.do("DELETE", w.begin("a"), nil).is(204)
}

type iotestErr struct{}

func (iotestErr) Read([]byte) (int, error) { return 0, errors.New("the client has gone") }

// TestAnEndedUploadDoesNotStartAgain: its ID is still valid, but the upload no longer exists.
func TestAnEndedUploadDoesNotStartAgain(t *testing.T) {
	dir := t.TempDir()
	blobs, journal, closeJournal := engines(t, dir)
	w := serve(t, blobs, journal)
	x := digest.FromString("x").String()
	ended := map[string]string{}
	for how, end := range map[string]func(l string){
		"cancelled without bytes": func(l string) { w.do("DELETE", l, nil).is(204) },
		"cancelled": func(l string) {
			w.do("PATCH", l, []byte("x")).is(202)
			w.do("DELETE", l, nil).is(204)
		},
		"completed": func(l string) { w.do("PUT", l+"?digest="+x, []byte("x")).is(201) },
		"completed without bytes": func(l string) {
			w.do("PUT", l+"?digest="+digest.FromString("").String(), nil).is(201)
		},
		"wrong digest":        func(l string) { w.do("PUT", l+"?digest="+x, []byte("y")).is(400) },
		"wrong without bytes": func(l string) { w.do("PUT", l+"?digest="+x, nil).is(400) },
		"completed in chunks": func(l string) {
			w.do("PATCH", l, []byte("x")).is(202)
			w.do("PUT", l+"?digest="+x, nil).is(201)
		},
		"cancelled by its UUID": func(l string) { // the form of earlier versions
			w.do("PATCH", l, []byte("x")).is(202)
			w.do("DELETE", l[:strings.LastIndex(l, ".")], nil).is(204)
		},
	} {
		ended[how] = w.begin("a")
		end(ended[how])
	}
	begun := w.begin("a")
	kept := w.begin("a")
	w.do("PATCH", kept, []byte("x")).is(202)
	unknown := func(w *server, how, l string) {
		t.Helper()
		for _, method := range []string{"GET", "PATCH", "PUT", "DELETE"} {
			if a := w.do(method, l+"?digest="+x, []byte("x")); a.status != 404 ||
				a.errors()[0].Code != "BLOB_UPLOAD_UNKNOWN" {
				t.Errorf("%s: %s: %d %s", how, method, a.status, a.body)
			}
		}
	}
	for how, l := range ended {
		unknown(w, how, l)
	}
	unknown(w, "another repository", strings.Replace(begun, "/v2/a/", "/v2/b/", 1))
	unknown(w, "another repository, with bytes", strings.Replace(kept, "/v2/a/", "/v2/b/", 1))
	unknown(w, "its UUID alone", begun[:strings.LastIndex(begun, ".")])
	for i := len("/v2/a/blobs/uploads/"); i < len(begun); i++ { // made up
		other := "0"
		if begun[i] == '0' {
			other = "1"
		}
		if a := w.do("GET", begun[:i]+other+begun[i+1:], nil); a.status != 404 {
			t.Errorf("with another character at %d: %d", i, a.status)
		}
	}
	w.do("GET", begun, nil).is(204)

	w.index.Close()
	if err := closeJournal(); err != nil {
		t.Fatal(err)
	}
	blobs, journal, _ = engines(t, dir)
	w = serve(t, blobs, journal)
	for how, l := range ended {
		unknown(w, how+", after a restart", l)
	}
	unknown(w, "without bytes, after a restart", begun)
	w.do("PATCH", kept, []byte("y"), "Content-Range", "1-1").is(202).has("Range", "0-1", "Location", kept)
	w.do("GET", kept[:strings.LastIndex(kept, ".")], nil).is(204).has("Range", "0-1") // the form of earlier versions
}

// TestAnUploadWithoutBytesExpires after upload-timeout; one with bytes does when it was idle for that long.
func TestAnUploadWithoutBytesExpires(t *testing.T) {
	w := newServer(t, func(o *registry.Options) { o.UploadTimeout = 300 * time.Millisecond })
	empty, kept := w.begin("a"), w.begin("a")
	w.do("PATCH", kept, []byte("x")).is(202)
	w.do("GET", empty, nil).is(204)
	eventually(t, "the upload has expired", func() bool { return w.do("GET", empty, nil).status == 404 })
	w.do("PATCH", empty, []byte("x")).code(404, "BLOB_UPLOAD_UNKNOWN")
	w.do("PATCH", kept, []byte("y")).is(202).has("Range", "0-1")
}

// TestTwoRequestsBeginOneUpload: of two requests that send the first byte, one is refused, and their bytes are not
// mixed.
func TestTwoRequestsBeginOneUpload(t *testing.T) {
	w, _ := onDisk(t)
	for range 50 {
		l := w.begin("a")
		var wg sync.WaitGroup
		var taken atomic.Int64
		for range 4 {
			wg.Go(func() {
				a := w.do("PATCH", l, []byte("abc"), "Content-Range", "0-2")
				switch a.status {
				case 202:
					taken.Add(1)
				case 409, 416:
				default:
					t.Errorf("%d %s", a.status, a.body)
				}
			})
		}
		wg.Wait()
		if taken.Load() != 1 {
			t.Errorf("%d of 4 first chunks were taken", taken.Load())
		}
		w.do("PUT", l+"?digest="+digest.FromString("abc").String(), nil).is(201)
	}
}
