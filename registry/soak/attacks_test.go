//go:build abuse

package soak

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/crypto/bcrypt"
)

// attack is one way to abuse the server, from one client unless it says otherwise.
type attack struct {
	name        string
	short, full int // how many of what it does or opens
	// args are settings of the server; a short attack lowers the bound that it exceeds.
	args   func(t *testing.T, n int) []string
	login  bool          // the honest client logs in
	closed bool          // the honest client is refused
	beside func(*server) // what else happens during the attack, if not nil
	run    func(a *attacker, n int)
}

// attacks is what the server must withstand, one line each.
var attacks = []attack{
	{name: "none", short: 1, full: 1, run: (*attacker).nothing},
	{name: "long media types", short: 100, full: 150, run: (*attacker).longMediaTypes},
	{name: "tags", short: 600, full: 10_000, run: (*attacker).tags},
	{name: "references", short: 40, full: 400, run: (*attacker).references},
	{name: "digests that are alike", short: 8, full: 400, run: (*attacker).alike},
	{name: "held-back manifests", short: 95, full: 950, run: (*attacker).heldManifests},
	{name: "held-back reviews", short: 1500, full: 2500, run: (*attacker).heldReviews},
	{name: "manifests but a byte", short: 120, full: 950, run: (*attacker).manifestsButAByte},
	{name: "reviews but a byte", short: 1200, full: 5000, run: (*attacker).reviewsButAByte},
	{name: "unfinished headers", short: 2000, full: 6000, run: (*attacker).unfinishedHeaders},
	{name: "large headers", short: 750, full: 6000, run: (*attacker).largeHeaders},
	{name: "bodies that do not come", short: 1000, full: 9900, args: setting("max-connections"),
		run: (*attacker).bodiesThatDoNotCome},
	{name: "large reviews", short: 4, full: 4, run: (*attacker).largeReviews},
	{name: "silent TLS", short: 1000, full: 9900, args: setting("max-connections"), run: (*attacker).silentTLS},
	{name: "silent TCP", short: 1000, full: 9900, args: setting("max-connections"), run: (*attacker).silentTCP},
	{name: "empty uploads", short: 1000, full: 10_000, args: setting("max-uploads"), run: (*attacker).emptyUploads},
	{name: "stalled readers", short: 200, full: 1000, args: setting("max-requests"), run: (*attacker).stalledReaders},
	{name: "readers that send on", short: 1200, full: 2300, run: (*attacker).readersThatSendOn},
	{name: "stalled manifests", short: 200, full: 1000, run: (*attacker).stalledManifests},
	{name: "lists of referrers", short: 200, full: 500, run: (*attacker).listsOfReferrers},
	{name: "audit flood", short: 15_000, full: 500_000, run: (*attacker).auditFlood},
	{name: "mounts without from", short: 2000, full: 30_000, run: (*attacker).mountsWithoutFrom},
	{name: "bodies that dribble", short: 200, full: 2000, args: half("max-requests"), run: (*attacker).dribble},
	{name: "250 addresses guess", short: 250, full: 250, args: withLogins, login: true, run: (*attacker).guess},
}

// setting returns the arguments that set a bound to nine tenths of the number of an attack; half sets it to the half.
func setting(name string) func(t *testing.T, n int) []string {
	return func(_ *testing.T, n int) []string { return []string{fmt.Sprintf("--%s=%d", name, n*9/10)} }
}

func half(name string) func(t *testing.T, n int) []string {
	return func(_ *testing.T, n int) []string { return []string{fmt.Sprintf("--%s=%d", name, n/2)} }
}

// The users that the honest client and the guessing addresses know.
const (
	abuseUsers    = 64
	abusePassword = "correct horse"
)

// withLogins returns the arguments for a server with users. Comparing a password takes as long as with htpasswd -B -C
// 10.
func withLogins(t *testing.T, _ int) []string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(abusePassword), 10)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for i := range abuseUsers {
		fmt.Fprintf(&text, "user%d:%s\n", i, hash)
	}
	path := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--htpasswd=" + path, "--anonymous=pull"}
}

// attacker is the client that attacks. It has an address of its own.
type attacker struct {
	ctx  context.Context // ends with the time of the attack
	url  string
	host string // host:port
	tls  *tls.Config
	wait time.Duration // how long it keeps what it has opened

	mu       sync.Mutex // guards outcomes
	outcomes map[string]int
}

const attackerAddress = "127.0.66.1"

// TestAttacks prints how the memory is limited, the head of the table of figures, and the names of the attacks, for
// .ci/abuse.
func TestAttacks(t *testing.T) {
	fmt.Printf("limit: %v\nhead: %s\n", newCell(t, containerLimit(t)), tableHead)
	for _, a := range attacks {
		fmt.Println("attack: " + a.name)
	}
}

// TestAttacker is not a test: it is the process of an attacker, which TestAbuse starts.
func TestAttacker(t *testing.T) {
	name := os.Getenv("SOAK_ATTACK")
	if name == "" {
		t.Skip("TestAbuse runs this")
	}
	n, err := strconv.Atoi(os.Getenv("SOAK_ATTACK_COUNT"))
	within, err2 := time.ParseDuration(os.Getenv("SOAK_ATTACK_TIME"))
	hold, err3 := time.ParseDuration(os.Getenv("SOAK_ATTACK_HOLD"))
	pem, err4 := os.ReadFile(os.Getenv("SOAK_ATTACK_CA"))
	if err := errors.Join(err, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	a := &attacker{ctx: ctx, url: os.Getenv("SOAK_ATTACK_URL"), wait: hold, outcomes: map[string]int{}}
	a.host = strings.TrimPrefix(a.url, "https://")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	// The cheapest handshakes for the attacker, so that it opens as many connections as possible.
	a.tls = &tls.Config{RootCAs: pool, ServerName: "127.0.0.1", ClientSessionCache: tls.NewLRUClientSessionCache(0),
		CurvePreferences: []tls.CurveID{tls.X25519}}
	i := slices.IndexFunc(attacks, func(a attack) bool { return a.name == name })
	if i < 0 { // the attack of TestAbuseIsNoticed
		a.nothing(n)
	} else {
		attacks[i].run(a, n)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var text []string
	for _, what := range slices.Sorted(maps.Keys(a.outcomes)) {
		text = append(text, fmt.Sprintf("%d %s", a.outcomes[what], what))
	}
	fmt.Println("outcome: " + strings.Join(text, ", "))
}

// count counts an outcome: a status, or an error in a few words.
func (a *attacker) count(status int, err error) {
	what := fmt.Sprint("times ", status)
	if err != nil {
		what = "broken off"
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.outcomes[what]++
}

// each calls do n times, atOnce of them concurrently, until the time is over.
func (a *attacker) each(n, atOnce int, do func(i int)) {
	var all sync.WaitGroup
	var next atomic.Int64
	for range atOnce {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && a.ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	all.Wait()
}

// hold keeps everything open for a while.
func (a *attacker) hold() { time.Sleep(a.wait) }

// client returns a client with connections of its own from an address.
func (a *attacker) client(from string) *client {
	dialer := &net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return &client{&http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: dialer.DialContext,
		TLSClientConfig: a.tls.Clone()}}, a.url}
}

// send sends a request and counts the answer.
func (a *attacker) send(c *client, method, path string, body []byte, headers ...string) {
	got, err := c.do(a.ctx, method, path, body, headers...)
	a.count(got.status, err)
}

// tcp opens a connection.
func (a *attacker) tcp() (*net.TCPConn, error) {
	dialer := &net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(attackerAddress)}}
	conn, err := dialer.DialContext(a.ctx, "tcp", a.host)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// line opens a connection with TLS.
func (a *attacker) line(receive int) (*line, error) {
	tcp, err := a.tcp()
	if err != nil {
		return nil, err
	}
	if receive > 0 {
		if err := tcp.SetReadBuffer(receive); err != nil {
			return nil, err
		}
	}
	conn := tls.Client(tcp, a.tls)
	if err := conn.HandshakeContext(a.ctx); err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	return &line{conn, tcp, bufio.NewReaderSize(conn, 1<<10)}, nil
}

// open opens n connections, writes to each, and keeps them for a while. It counts those that the server has closed or
// answered until then.
func (a *attacker) open(n int, write func(i int, l *line) error) {
	lines := make([]*line, n)
	a.each(n, 32, func(i int) {
		l, err := a.line(0)
		if err == nil {
			err = write(i, l)
		}
		if lines[i] = l; err != nil {
			a.count(0, err)
			lines[i] = nil
		}
	})
	a.hold()
	a.examine(lines)
}

// examine counts what became of connections, and closes them.
func (a *attacker) examine(lines []*line) {
	var all sync.WaitGroup
	for part := range slices.Chunk(lines, 50) {
		all.Go(func() {
			for _, l := range part {
				if l != nil {
					a.examined(l)
				}
			}
		})
	}
	all.Wait()
}

// examined counts what became of a connection, and closes it.
func (a *attacker) examined(l *line) {
	defer l.abort(true)
	_ = l.SetReadDeadline(time.Now().Add(time.Millisecond)) // if it cannot be set, reading fails
	resp, err := http.ReadResponse(l.read, nil)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.outcomes["still open"]++
		return
	}
	status := 0
	if err == nil {
		status = resp.StatusCode
	}
	a.count(status, err)
}

// nothing is the attack that shows what the figures are without one.
func (a *attacker) nothing(int) { a.hold() }

// maxManifest is the size of the largest manifest, in bytes.
const maxManifest = 4 << 20

// longMediaTypes pushes manifests whose media type, which only the body has, is nearly 4 MiB long.
func (a *attacker) longMediaTypes(n int) {
	c := a.client(attackerAddress)
	long := strings.Repeat("a", maxManifest-200)
	a.each(n, 2, func(i int) {
		body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/%d.%s"}`, i, long)
		a.send(c, "PUT", fmt.Sprintf("/v2/attack/media/manifests/t%d", i), body)
	})
}

// pushImage pushes the smallest image and returns its manifest.
func (a *attacker) pushImage(c *client, repo string) []byte {
	config := []byte("{}")
	a.send(c, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+digest.FromBytes(config).String(), config)
	d := describe(typeConfig, config)
	return document{MediaType: typeManifest, Config: &d, Layers: []descriptor{}}.encode()
}

// tags sets a hundred tags with each request.
func (a *attacker) tags(n int) {
	c := a.client(attackerAddress)
	manifest := a.pushImage(c, "attack/tags")
	path := "/v2/attack/tags/manifests/" + digest.FromBytes(manifest).String()
	long := strings.Repeat("a", 100)
	a.each(n, 1, func(i int) {
		var query strings.Builder
		for k := range 100 {
			fmt.Fprintf(&query, "%stag=%s%d.%d", string("?&"[min(k, 1)]), long, i, k)
		}
		a.send(c, "PUT", path+query.String(), manifest, "Content-Type", typeManifest)
	})
}

// references pushes indexes with 38,000 references each, to content that is elsewhere.
func (a *attacker) references(n int) {
	c := a.client(attackerAddress)
	a.each(n, 2, func(i int) {
		var body bytes.Buffer
		body.WriteString(`{"schemaVersion":2,"mediaType":"` + typeIndex + `","manifests":[`)
		sums := make([]byte, 38_000*32)
		rand.Read(sums) // never fails
		for k := 0; k < len(sums); k += 32 {
			fmt.Fprintf(&body, `{"digest":"sha256:%x","size":1,"urls":["x"]},`, sums[k:k+32])
		}
		body.Truncate(body.Len() - 1)
		body.WriteString("]}")
		a.send(c, "PUT", fmt.Sprintf("/v2/attack/references/manifests/t%d", i), body.Bytes(), "Content-Type", typeIndex)
	})
}

// alike pushes manifests with 10,000 references each, to made-up digests with the same first half.
func (a *attacker) alike(n int) {
	c := a.client(attackerAddress)
	a.each(n, 2, func(i int) {
		var body bytes.Buffer
		body.WriteString(`{"schemaVersion":2,"mediaType":"application/vnd.example","layers":[`)
		for k := range 10_000 {
			fmt.Fprintf(&body, `{"digest":"sha512:%0128x"},`, i*10_000+k)
		}
		body.Truncate(body.Len() - 1)
		body.WriteString("]}")
		a.send(c, "PUT", fmt.Sprintf("/v2/attack/alike/manifests/t%d", i), body.Bytes(), "Content-Type",
			"application/vnd.example")
	})
}

// heldManifests announces manifests of 4 MiB and sends a byte of each.
func (a *attacker) heldManifests(n int) {
	a.open(n, func(i int, l *line) error {
		return l.begin("PUT", fmt.Sprintf("/v2/attack/held/manifests/t%d", i), maxManifest, []byte("{"))
	})
}

// heldReviews announces reviews that are small enough not to wait for a turn, and sends a byte of each.
func (a *attacker) heldReviews(n int) {
	a.open(n, func(_ int, l *line) error {
		_, err := fmt.Fprintf(l, "POST /validate HTTP/1.1\r\nHost: trow\r\nContent-Type: application/json\r\n"+
			"Content-Length: %d\r\n\r\n{", 256<<10)
		return err
	})
}

// manifestsButAByte sends manifests of 4 MiB without their last byte.
func (a *attacker) manifestsButAByte(n int) {
	body := bytes.Repeat([]byte(" "), maxManifest-1)
	a.open(n, func(i int, l *line) error {
		return l.begin("PUT", fmt.Sprintf("/v2/attack/held/manifests/t%d", i), maxManifest, body)
	})
}

// reviewsButAByte sends reviews that need not wait for a turn without their last byte.
func (a *attacker) reviewsButAByte(n int) {
	body := bytes.Repeat([]byte(" "), 256<<10-1)
	a.open(n, func(_ int, l *line) error {
		_, err := fmt.Fprintf(l, "POST /validate HTTP/1.1\r\nHost: trow\r\nContent-Type: application/json\r\n"+
			"Content-Length: %d\r\n\r\n%s", 256<<10, body)
		return err
	})
}

// unfinishedHeaders sends headers without an end.
func (a *attacker) unfinishedHeaders(n int) {
	long := strings.Repeat("a", 60<<10)
	a.open(n, func(_ int, l *line) error {
		_, err := fmt.Fprintf(l, "GET /v2/ HTTP/1.1\r\nHost: trow\r\nX-A: %s", long)
		return err
	})
}

// largeHeaders sends reviews without an end whose headers are as large as they may be: one line, as many short lines as
// fit, and such lines that come with the body of the request before.
func (a *attacker) largeHeaders(n int) {
	var lines strings.Builder
	for i := 0; lines.Len() < 60<<10; i++ {
		fmt.Fprintf(&lines, "%s:\r\n", strconv.FormatInt(int64(i), 36))
	}
	post := func(lines string) string {
		return "POST /validate HTTP/1.1\r\nHost: trow\r\nContent-Type: application/json\r\n" + lines +
			"Content-Length: 3000\r\n\r\n"
	}
	texts := []string{post("X: "+strings.Repeat("a", 60<<10)+"\r\n") + "{", post(lines.String()) + "{",
		post("") + strings.Repeat(" ", 3000) + post(lines.String()[:4000]) + "{"}
	a.open(n, func(i int, l *line) error {
		_, err := io.WriteString(l, texts[i%len(texts)])
		return err
	})
}

// bodiesThatDoNotCome holds back a body on each connection: one that nobody waits for, a small review, and a form.
func (a *attacker) bodiesThatDoNotCome(n int) {
	a.open(n, func(i int, l *line) error {
		_, err := fmt.Fprintf(l, "POST /%s HTTP/1.1\r\nHost: trow\r\nContent-Length: 3000\r\n\r\n{",
			[]string{"nothing", "validate", "token"}[i%3])
		return err
	})
}

// largeReviews sends the most expensive reviews again and again, n at once.
func (a *attacker) largeReviews(n int) {
	const size = 6900 << 10
	pod := string(review("x"))
	before, after, _ := strings.Cut(pod, `{"name":"c","image":"x"}`)
	var names strings.Builder
	for i := 0; names.Len() < size; i++ {
		fmt.Fprintf(&names, `"%x":0,`, i)
	}
	bodies := [][]byte{
		[]byte(before + strings.Repeat("{},", size/3) + "{}" + after),
		[]byte(before + "{" + names.String()[:strings.LastIndex(names.String()[:size], ",")] + "}" + after),
		[]byte(before + strings.Repeat("null,", size/5) + "{}" + after),
		[]byte(before + strings.Repeat(`{"image":"a"},`, size/14) + "{}" + after),
	}
	ctx, cancel := context.WithTimeout(a.ctx, a.wait)
	defer cancel()
	c := a.client(attackerAddress)
	a.each(n, n, func(i int) {
		for k := i; ctx.Err() == nil; k++ {
			a.send(c, "POST", "/validate", bodies[k%len(bodies)], "Content-Type", "application/json")
		}
	})
}

// silentTLS opens connections and sends no request.
func (a *attacker) silentTLS(n int) {
	a.open(n, func(int, *line) error { return nil })
}

// silentTCP opens connections and sends nothing.
func (a *attacker) silentTCP(n int) {
	lines := make([]*line, n)
	a.each(n, 32, func(i int) {
		tcp, err := a.tcp()
		if err != nil {
			a.count(0, err)
			return
		}
		lines[i] = &line{tcp, tcp, bufio.NewReaderSize(tcp, 16)}
	})
	a.hold()
	a.examine(lines)
}

// emptyUploads starts uploads and leaves them.
func (a *attacker) emptyUploads(n int) {
	c := a.client(attackerAddress)
	a.each(n, 8, func(i int) { a.send(c, "POST", fmt.Sprintf("/v2/attack/u%d/blobs/uploads/", i%100), nil) })
	a.hold()
}

// stalledReaders downloads a large blob without reading it.
func (a *attacker) stalledReaders(n int) {
	c := a.client(attackerAddress)
	blob := bytes.Repeat([]byte("0123456789abcdef"), 4<<20)
	d := digest.FromBytes(blob).String()
	a.send(c, "POST", "/v2/attack/blob/blobs/uploads/?digest="+d, blob, "Content-Type", "application/octet-stream")
	lines := make([]*line, n)
	a.each(n, 32, func(i int) {
		l, err := a.line(4 << 10)
		if err == nil {
			err = l.begin("GET", "/v2/attack/blob/blobs/"+d, 0, nil)
		}
		if lines[i] = l; err != nil {
			a.count(0, err)
			lines[i] = nil
		}
	})
	a.hold()
	a.examine(lines)
}

// readersThatSendOn asks for a large blob, reads nothing, and sends further requests until no more are taken.
func (a *attacker) readersThatSendOn(n int) {
	c := a.client(attackerAddress)
	blob := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	d := digest.FromBytes(blob).String()
	a.send(c, "POST", "/v2/attack/blob/blobs/uploads/?digest="+d, blob, "Content-Type", "application/octet-stream")
	further := []byte(strings.Repeat("GET /v2/attack/blob/tags/list HTTP/1.1\r\nHost: attack\r\n\r\n", 100))
	lines := make([]*line, n)
	a.each(n, 64, func(i int) {
		l, err := a.line(4 << 10)
		if err == nil {
			err = l.tcp.SetWriteBuffer(4 << 10) // what it does not take is not of the server's memory
		}
		if err == nil {
			err = l.begin("GET", "/v2/attack/blob/blobs/"+d, 0, nil)
		}
		if lines[i] = l; err != nil {
			a.count(0, err)
			lines[i] = nil
			return
		}
		_ = l.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)) // if it cannot be set, the attack takes its time
		for err == nil {
			_, err = l.Write(further)
		}
	})
	a.hold()
	a.examine(lines)
}

// stalledManifests gets the largest manifests without reading them, and each is another one.
func (a *attacker) stalledManifests(n int) {
	c := a.client(attackerAddress)
	long := strings.Repeat("a", maxManifest-200)
	lines := make([]*line, n)
	a.each(n, 4, func(i int) {
		body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.attack","annotations":{"%d":"%s"}}`,
			i, long)
		path := "/v2/attack/stalled/manifests/" + digest.FromBytes(body).String()
		a.send(c, "PUT", path, body, "Content-Type", "application/vnd.attack")
		l, err := a.line(4 << 10)
		if err == nil {
			err = l.begin("GET", path, 0, nil)
		}
		if lines[i] = l; err != nil {
			a.count(0, err)
			lines[i] = nil
		}
	})
	a.hold()
	a.examine(lines)
}

// listsOfReferrers asks n times at once for a list of more referrers than the registry keeps in memory.
func (a *attacker) listsOfReferrers(n int) {
	c := a.client(attackerAddress)
	c.http.Transport.(*http.Transport).MaxIdleConnsPerHost = n
	subject := digest.FromString("subject").String()
	long := strings.Repeat("a", 2000)
	a.each(4000, 16, func(i int) {
		body := fmt.Appendf(nil,
			`{"schemaVersion":2,"mediaType":"application/vnd.attack","artifactType":"application/x",`+
				`"annotations":{"%d":"%s"},"subject":{"mediaType":"application/x","size":7,"digest":"%s"}}`, i,
			long, subject)
		a.send(c, "PUT", "/v2/attack/list/manifests/"+digest.FromBytes(body).String(), body,
			"Content-Type", "application/vnd.attack")
	})
	ctx, cancel := context.WithTimeout(a.ctx, a.wait)
	defer cancel()
	a.each(n, n, func(int) {
		for ctx.Err() == nil {
			a.send(c, "GET", "/v2/attack/list/referrers/"+subject, nil)
		}
	})
}

// auditFlood has the audit log record as much as it can: reviews that a forger wrote, with many images, and requests
// that are refused.
func (a *attacker) auditFlood(n int) {
	c := a.client(attackerAddress)
	c.http.Transport.(*http.Transport).MaxIdleConnsPerHost = 8
	images := make([]string, 200)
	for i := range images {
		images[i] = fmt.Sprintf(`{"name":"c","image":"docker.io/%s/%d"}`, strings.Repeat("a", 200), i)
	}
	forged := bytes.Replace(review("x"), []byte(`{"name":"c","image":"x"}`), []byte(strings.Join(images, ",")), 1)
	a.each(n, 8, func(i int) {
		switch {
		case i%10 == 0:
			a.send(c, "POST", "/validate", forged, "Content-Type", "application/json")
		default:
			a.send(c, "DELETE", fmt.Sprintf("/v2/attack/%s/manifests/t%d", strings.Repeat("a", 200), i), nil)
		}
	})
}

// mountsWithoutFrom mounts a blob from wherever it is, and from nowhere, into more and more repositories.
func (a *attacker) mountsWithoutFrom(n int) {
	c := a.client(attackerAddress)
	c.http.Transport.(*http.Transport).MaxIdleConnsPerHost = 8
	a.pushImage(c, "attack/mount")
	held, missing := digest.FromString("{}").String(), digest.FromString("missing").String()
	a.each(n, 8, func(i int) {
		d := held
		if i%10 == 0 {
			d = missing
		}
		a.send(c, "POST", fmt.Sprintf("/v2/attack/m%d/blobs/uploads/?mount=%s", i, d), nil)
	})
}

// dribble sends bodies of blobs, manifests and reviews a byte at a time, so that none of them stalls.
func (a *attacker) dribble(n int) {
	ctx, cancel := context.WithTimeout(a.ctx, 2*a.wait)
	defer cancel()
	var all sync.WaitGroup
	a.each(n, 32, func(i int) {
		l, err := a.line(0)
		if err == nil {
			err = a.dribbled(i, l)
		}
		if err != nil {
			a.count(0, err)
			return
		}
		all.Go(func() {
			for err == nil && ctx.Err() == nil {
				time.Sleep(500 * time.Millisecond)
				_, err = l.Write([]byte("a"))
			}
			a.examine([]*line{l})
		})
	})
	all.Wait()
}

// dribbled begins the body of request i.
func (a *attacker) dribbled(i int, l *line) error {
	switch i % 4 {
	case 0:
		return l.begin("PUT", fmt.Sprintf("/v2/attack/dribble/manifests/t%d", i), maxManifest, nil)
	case 1:
		_, err := io.WriteString(l, "POST /validate HTTP/1.1\r\nHost: trow\r\nContent-Type: application/json\r\n"+
			"Content-Length: 100000\r\n\r\n")
		return err
	}
	return l.begin("POST", "/v2/attack/dribble/blobs/uploads/?digest="+digest.FromString(fmt.Sprint(i)).String(),
		1<<20, nil)
}

// guess has n addresses guess passwords of the users, each over three connections.
func (a *attacker) guess(n int) {
	ctx, cancel := context.WithTimeout(a.ctx, 2*a.wait)
	defer cancel()
	a.each(3*n, 3*n, func(i int) {
		c := a.client(fmt.Sprintf("127.0.66.%d", i/3+1))
		for k := 0; ctx.Err() == nil; k++ {
			req := http.Request{Header: http.Header{}}
			req.SetBasicAuth(fmt.Sprintf("user%d", (i+k)%abuseUsers), fmt.Sprintf("guess %d", k))
			a.send(c, "GET", "/v2/honest/app/tags/list", nil, "Authorization", req.Header.Get("Authorization"))
		}
	})
}
