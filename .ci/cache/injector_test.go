package cache

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"
)

// injector is a proxy in front of an origin. It counts what clients ask for and what they get, and fails on demand.
type injector struct {
	t         *testing.T
	target    *url.URL
	addr      string // host:port; it stays while the injector is stopped
	transport *http.Transport
	ended     chan struct{} // closed at the end of the test

	mu      sync.Mutex // guards all below
	server  *http.Server
	fails   failure
	storage string              // not empty: blobs are redirected to this host:port
	renames func(string) string // not nil: what a reference is called at the origin
	rate    int                 // not 0: bytes per second of each answer
	gates   map[string]*gate    // by digest
	parts   map[string]*count   // by kind, method and reference: "GET blobs sha256:…"
}

// failure is what an injector does instead of asking the origin.
type failure struct {
	status int  // not 0: the answer
	hangs  bool // there is no answer
}

// count is what was asked for under one name.
type count struct {
	requests int
	bytes    int64     // of bodies, as sent
	ranges   []string  // headers Range
	last     time.Time // when the last byte was sent
}

// gate holds a body back at an offset until it is opened.
type gate struct {
	at   int64
	open chan struct{}
	once func() // opens it
}

func newInjector(t *testing.T, origin string) *injector {
	t.Helper()
	target, err := url.Parse(origin)
	if err != nil {
		t.Fatal(err)
	}
	i := &injector{t: t, target: target, addr: freeAddress(t), ended: make(chan struct{}),
		transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}, gates: map[string]*gate{},
		parts: map[string]*count{}}
	i.start()
	t.Cleanup(func() {
		close(i.ended)
		i.stop()
		i.transport.CloseIdleConnections()
	})
	return i
}

// start accepts connections, for the first time or after stop.
func (i *injector) start() {
	i.t.Helper()
	i.server = i.listen(i.addr, i)
}

func (i *injector) listen(addr string, h http.Handler) *http.Server {
	i.t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		i.t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }()
	return s
}

// stop refuses connections from now on, and cuts those that are open.
func (i *injector) stop() { i.server.Close() }

// redirect lets blobs be redirected to another host, which it starts.
func (i *injector) redirect() {
	i.t.Helper()
	addr := freeAddress(i.t)
	s := i.listen(addr, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Query().Get("signature") != "s3cret" || req.Header.Get("Authorization") != "" {
			http.Error(w, "not signed, or with a login", http.StatusForbidden)
			return
		}
		i.forward(w, req)
	}))
	i.t.Cleanup(func() { s.Close() })
	i.mu.Lock()
	defer i.mu.Unlock()
	i.storage = addr
}

// fail sets what the injector does from now on. The zero failure asks the origin.
func (i *injector) fail(f failure) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.fails = f
}

// rename sets what references of clients are called at the origin.
func (i *injector) rename(f func(ref string) string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.renames = f
}

// slow bounds the bytes per second of each answer.
func (i *injector) slow(rate int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rate = rate
}

// hold holds the body of a blob back at an offset, until open is called.
func (i *injector) hold(digest string, at int64) (open func()) {
	g := &gate{at: at, open: make(chan struct{})}
	g.once = sync.OnceFunc(func() { close(g.open) })
	i.mu.Lock()
	defer i.mu.Unlock()
	i.gates[digest] = g
	return g.once
}

// reset forgets what was counted.
func (i *injector) reset() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.parts = map[string]*count{}
}

// counted returns the sum for the names that match.
func (i *injector) counted(pattern string) (sum count) {
	name := regexp.MustCompile("^(?:" + pattern + ")$")
	i.mu.Lock()
	defer i.mu.Unlock()
	for n, c := range i.parts {
		if name.MatchString(n) {
			sum.requests += c.requests
			sum.bytes += c.bytes
			sum.ranges = append(sum.ranges, c.ranges...)
			if c.last.After(sum.last) {
				sum.last = c.last
			}
		}
	}
	return sum
}

// apiPath matches what is below a repository.
var apiPath = regexp.MustCompile(`^/v2/.+/(manifests|blobs|referrers|tags)/([^/]+)$`)

func (i *injector) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	i.mu.Lock()
	f, storage := i.fails, i.storage
	i.mu.Unlock()
	switch m := apiPath.FindStringSubmatch(req.URL.Path); {
	case f.hangs:
		select {
		case <-i.ended:
		case <-req.Context().Done():
		}
	case f.status != 0:
		i.note(req, nil)
		w.Header().Set("Content-Type", "application/json")
		http.Error(w, `{"errors":[{"code":"UNKNOWN","message":"injected"}]}`, f.status)
	case storage != "" && m != nil && m[1] == "blobs":
		resp, err := i.ask(req, http.MethodHead) // only for those to whom the origin itself gives it
		if err == nil && resp.StatusCode == http.StatusOK {
			resp.Body.Close()
			http.Redirect(w, req, "http://"+storage+req.URL.Path+"?signature=s3cret", http.StatusTemporaryRedirect)
			return
		}
		answer(w, resp, err)
	default:
		i.forward(w, req)
	}
}

// note counts a request, and f changes its count.
func (i *injector) note(req *http.Request, f func(*count)) {
	name := req.Method + " " + req.URL.Path
	if m := apiPath.FindStringSubmatch(req.URL.Path); m != nil {
		name = req.Method + " " + m[1] + " " + m[2]
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	c := i.parts[name]
	if c == nil {
		c = &count{}
		i.parts[name] = c
	}
	if f == nil {
		f = func(c *count) {
			c.requests++
			if r := req.Header.Get("Range"); r != "" {
				c.ranges = append(c.ranges, r)
			}
		}
	}
	f(c)
}

// ask sends a request on to the origin.
func (i *injector) ask(req *http.Request, method string) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.Method = method
	out.RequestURI, out.URL.Scheme, out.URL.Host = "", i.target.Scheme, i.target.Host
	i.mu.Lock()
	renames := i.renames
	i.mu.Unlock()
	if m := apiPath.FindStringSubmatchIndex(out.URL.Path); m != nil && renames != nil {
		out.URL.Path = out.URL.Path[:m[4]] + renames(out.URL.Path[m[4]:])
	}
	if q := out.URL.Query(); q.Has("signature") {
		q.Del("signature")
		out.URL.RawQuery = q.Encode()
		out.SetBasicAuth(originUser, originPassword) // the storage has no logins of its own
	}
	return i.transport.RoundTrip(out)
}

// answer passes on the header of an answer of the origin, and a body of an error.
func answer(w http.ResponseWriter, resp *http.Response, err error) bool {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return false
	}
	for k, all := range resp.Header {
		w.Header()[k] = all
	}
	w.WriteHeader(resp.StatusCode)
	if resp.StatusCode >= 400 {
		_, _ = io.Copy(w, resp.Body)
		resp.Body.Close()
		return false
	}
	return true
}

// forward answers with what the origin answers.
func (i *injector) forward(w http.ResponseWriter, req *http.Request) {
	i.note(req, nil)
	resp, err := i.ask(req, req.Method)
	if !answer(w, resp, err) {
		return
	}
	defer resp.Body.Close()
	i.mu.Lock()
	rate := i.rate
	var g *gate
	if m := apiPath.FindStringSubmatch(req.URL.Path); m != nil && req.Method == http.MethodGet {
		g = i.gates[m[2]]
	}
	i.mu.Unlock()
	at := rangeStart(req)
	if g != nil && at < g.at {
		if !i.copy(w, req, io.LimitReader(resp.Body, g.at-at), rate) {
			return
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-g.open:
		case <-i.ended:
			panic(http.ErrAbortHandler)
		case <-req.Context().Done():
			return
		}
	}
	i.copy(w, req, resp.Body, rate)
}

func rangeStart(req *http.Request) (n int64) {
	_, _ = fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &n)
	return n
}

// copy copies a body, and counts it. It reports false if either side has gone.
func (i *injector) copy(w io.Writer, req *http.Request, from io.Reader, rate int) bool {
	begin, sent := time.Now(), int64(0)
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return false
			}
			sent += int64(n)
			i.note(req, func(c *count) { c.bytes, c.last = c.bytes+int64(n), time.Now() })
		}
		if err != nil {
			return err == io.EOF
		}
		if rate > 0 {
			early := time.Duration(float64(sent)/float64(rate)*float64(time.Second)) - time.Since(begin)
			wait(req.Context(), early)
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
