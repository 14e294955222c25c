package engines

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestFiguresOfReplicas compares a server on its data directory with servers on etcd and S3. It writes a table to the
// file that ENGINES_TABLE names, and what follows from it for a large cluster to FILE.paper: see .ci/figures. All
// figures of a row are measured in turns.
func TestFiguresOfReplicas(t *testing.T) {
	table := os.Getenv("ENGINES_TABLE")
	if table == "" {
		t.Skip("ENGINES_TABLE names no file for the table; run bash .ci/run figures")
	}
	l := newLab(t)
	l.lines = []string{"| what | data directory | etcd and S3 | |", "|---|---|---|---|"}
	embedded := l.serve()
	l.populate(embedded)
	replicas := []*process{l.serve(l.shared("figures", l.gateway.endpoint)...)}
	l.populate(replicas[0])
	l.compare(embedded, replicas[0])
	for range 2 {
		replicas = append(replicas, l.serve(l.shared("figures", l.gateway.endpoint)...))
	}
	l.replicas(replicas)
	l.quota(replicas)
	l.spread(replicas)
	l.requests()
	for _, p := range append(replicas, embedded) {
		p.end()
	}
	for _, n := range strings.Split(os.Getenv("ENGINES_FACTS"), ",") {
		l.load(number(t, n))
	}
	for name, text := range map[string]string{table: strings.Join(l.lines, "\n") + "\n", table + ".paper": l.paper()} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// rows are compared between a data directory and the shared engines.
var rows = []struct {
	about, scenario string
	connections     int
	unit            string // same, per s: the rate; MB/s; ms: the latency; tag: the latency, and the calls of Head
}{
	{"verdicts on a pod of three images, 8 at once", "admission", 8, "same"},
	{"GET of a manifest by digest, 8 at once", "manifest-get-digest", 8, "same"},
	{"GET of a blob of 4 KiB, 8 at once", "blob-get-4KiB", 8, "same"},
	{"GET of a blob of 64 MiB, 8 at once", "blob-get-64MiB", 8, "MB/s"},
	{"GET of a manifest by tag, 1 at once", "manifest-get-tag", 1, "tag"},
	{"GET of a manifest by tag, 8 at once", "manifest-get-tag", 8, "tag"},
	{"GET of a manifest by tag, 64 at once", "manifest-get-tag", 64, "tag"},
	{"a commit (mount of a blob), 1 at once", "mount", 1, "ms"},
	{"push of a small image, 1 at once", "image-push-small", 1, "ms"},
	{"push of a small image, 8 at once", "image-push-small", 8, "per s"},
}

// series has the figures of one side of a row, in the order of the rounds.
type series struct{ rate, bandwidth, p50, p99, cpu, heads []float64 }

func (s *series) add(r result, u usage) {
	s.rate, s.cpu = append(s.rate, r.OpsPerSecond), append(s.cpu, *r.CPU)
	s.bandwidth = append(s.bandwidth, r.Bandwidth/1e6)
	s.p50, s.p99 = append(s.p50, r.P50), append(s.p99, r.P99)
	s.heads = append(s.heads, u.reads/u.requests)
}

// ratio is the median of the ratios of each round.
func ratio(a, b []float64) string {
	var all []float64
	for i := range a {
		all = append(all, a[i]/b[i])
	}
	return fmt.Sprintf("%.2f", median(all))
}

func (l *lab) compare(embedded, shared *process) {
	both := []*process{embedded, shared}
	measured := make([][2]series, len(rows))
	for round := range l.rounds {
		for i, row := range rows {
			turns, duration := 1, l.phase
			if row.unit == "same" { // a small difference counts, so more and shorter turns
				turns, duration = 4, l.phase/3
			}
			for k := range 2 * turns {
				side := (k + k/2 + round) % 2 // neither is always the first one
				before := l.usage(both[side])
				r := l.bench(both[side], row.scenario, row.connections, "--duration", duration.String())
				measured[i][side].add(r, l.usage(both[side]).since(before))
			}
		}
	}
	for i, row := range rows {
		a, b := measured[i][0], measured[i][1]
		times := func(s series) string { return "p50 " + ms(median(s.p50)) + ", p99 " + ms(median(s.p99)) + " ms" }
		switch {
		case row.scenario == "admission":
			l.verdict = median(b.cpu)
		case row.scenario == "manifest-get-digest":
			l.digest = median(b.cpu)
		case row.scenario == "blob-get-64MiB":
			l.layer = median(b.cpu)
		case row.unit == "tag" && row.connections == 1:
			l.head = (median(b.p50) - median(a.p50)) / 1000
		case row.unit == "tag" && row.connections == 64:
			l.tag, l.waiting = median(b.cpu), 1/median(b.heads)
		}
		rate := func(s series) string { return short(median(s.rate)) + " per s" }
		cpu := fmt.Sprintf("processor time of the server %s → %s µs", short(median(a.cpu)), short(median(b.cpu)))
		switch row.unit {
		case "same", "per s":
			l.line(row.about, rate(a), rate(b), ratio(b.rate, a.rate)+"; "+cpu)
		case "MB/s":
			l.line(row.about, short(median(a.bandwidth))+" MB/s", short(median(b.bandwidth))+" MB/s",
				ratio(b.bandwidth, a.bandwidth)+"; "+cpu)
		case "ms":
			l.line(row.about, times(a)+"; "+rate(a), times(b)+"; "+rate(b), ratio(b.rate, a.rate))
		case "tag":
			l.line(row.about, times(a), times(b), fmt.Sprintf("added: %s, %s ms; a `Head` for %s requests",
				ms(median(b.p50)-median(a.p50)), ms(median(b.p99)-median(a.p99)), short(1/median(b.heads))))
		}
	}
	for _, p := range both {
		if n := l.metric(p.url, `trow_admission_reviews_total{verdict="(?:denied|warned|error|skipped)"}`); n > 0 {
			l.t.Errorf("%s: %v verdicts did not allow images that are here", p.url, n)
		}
	}
}

// idleTime is how long the servers are left alone, to know what they use without requests.
const idleTime = 5 * time.Second

// replicas measures reads through a round robin in front of 1, 2 and 3 servers.
func (l *lab) replicas(servers []*process) {
	robins := make([]*process, len(servers))
	for i := range servers {
		robins[i] = l.robin(servers[:i+1]...)
	}
	idle := l.usage(servers...)
	time.Sleep(idleTime)
	idle = l.usage(servers...).since(idle)
	for _, row := range []struct{ about, scenario string }{
		{"by digest", "manifest-get-digest"}, {"by tag", "manifest-get-tag"}} {
		var rates, cpu, etcd [3][]float64
		var head []float64
		for round := range l.rounds {
			for k := range robins {
				i := (k + round) % 3
				begin, before := time.Now(), l.usage(servers...)
				r := l.bench(robins[i], row.scenario, 8)
				u, idleShare := l.usage(servers...).since(before), time.Since(begin).Seconds()/idleTime.Seconds()
				each := func(used, idle time.Duration) float64 {
					return (float64(used.Microseconds()) - idleShare*float64(idle.Microseconds())) / u.requests
				}
				rates[i] = append(rates[i], r.OpsPerSecond)
				head = append(head, each(u.etcd, idle.etcd)*u.requests/u.reads)
				cpu[i], etcd[i] = append(cpu[i], each(u.servers, idle.servers)),
					append(etcd[i], each(u.etcd, idle.etcd))
			}
		}
		l.headCPU = median(head) // of the last row
		three := func(all [3][]float64) string {
			return short(median(all[0])) + " / " + short(median(all[1])) + " / " + short(median(all[2]))
		}
		l.line("GET of a manifest "+row.about+", 8 at once, through a round robin in front of 1 / 2 / 3 replicas", "–",
			three(rates)+" per s", "processor time of a request: replicas "+three(cpu)+" µs, etcd "+three(etcd)+" µs")
	}
	percent := func(d time.Duration) string { return short(100 * d.Seconds() / idleTime.Seconds()) }
	l.line("processor time of three idle replicas / of three members of etcd", "–", percent(idle.servers)+" / "+
		percent(idle.etcd)+" % of a core", "subtracted above")
}

// quota measures pushes to repositories of one quota, and without a quota, at three replicas.
func (l *lab) quota(servers []*process) {
	robin := l.robin(servers...)
	repos := []string{"free/images", "capped/images"}
	var rates [2][]float64
	for round := range l.rounds {
		for k := range repos {
			i := (k + round) % 2
			r := l.bench(robin, "image-push-small", 8, "--repository", repos[i])
			rates[i] = append(rates[i], r.OpsPerSecond)
		}
	}
	l.images = median(rates[0])
	l.line("push of small images to three replicas, 8 at once, without a quota / all under one quota", "–",
		short(median(rates[0]))+" / "+short(median(rates[1]))+" per s", ratio(rates[1], rates[0]))
}

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	changes      = 201 // a multiple of three
)

// push pushes a blob as clients do.
func (l *lab) push(server *process, repo string, content []byte) digest.Digest {
	l.t.Helper()
	resp, err := l.client.Post(server.url+"/v2/"+repo+"/blobs/uploads/", "", nil)
	if err != nil {
		l.t.Fatal(err)
	}
	resp.Body.Close()
	at, err := resp.Location()
	if err != nil {
		l.t.Fatal(err)
	}
	d, query := digest.FromBytes(content), at.Query()
	query.Set("digest", string(d))
	at.RawQuery = query.Encode()
	if code, body := l.ask("PUT", at.String(), content, "Content-Type", "application/octet-stream"); code != 201 {
		l.t.Fatalf("%d: %s", code, body)
	}
	return d
}

// manifestOf returns a manifest of a config and layers.
func manifestOf(config digest.Digest, note string, layers ...digest.Digest) []byte {
	part := func(d digest.Digest) string {
		return fmt.Sprintf(`{"mediaType":"application/octet-stream","digest":"%s","size":%d}`, d, len(note))
	}
	var all []string
	for _, d := range layers {
		all = append(all, part(d))
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s],"annotations":{"n":%q}}`,
		manifestType, part(config), strings.Join(all, ","), note)
}

// spread measures how long a change at one replica takes to show at the others.
func (l *lab) spread(servers []*process) {
	config := l.push(servers[0], "spread", []byte("0000"))
	var tag, gone []time.Duration
	stale := 0
	// others calls f for all servers but one at once, and returns how long the last took since begin.
	others := func(i int, begin time.Time, f func(p *process)) time.Duration {
		var all sync.WaitGroup
		for k, p := range servers {
			if k != i {
				all.Go(func() { f(p) })
			}
		}
		all.Wait()
		return time.Since(begin)
	}
	var mu sync.Mutex // guards stale
	for n := range changes {
		i := n % len(servers)
		body := manifestOf(config, fmt.Sprintf("%04d", n), config)
		d, at := digest.FromBytes(body), "/v2/spread/manifests/"
		if code, text := l.ask("PUT", servers[i].url+at+"latest", body, "Content-Type", manifestType); code != 201 {
			l.t.Fatalf("%d: %s", code, text)
		}
		tag = append(tag, others(i, time.Now(), func(p *process) {
			_, got := l.ask("GET", p.url+at+"latest", nil)
			if !bytes.Equal(got, body) {
				mu.Lock()
				stale++
				mu.Unlock()
			}
		}))
		if code, text := l.ask("DELETE", servers[i].url+at+string(d), nil); code != 202 {
			l.t.Fatalf("%d: %s", code, text)
		}
		begin := time.Now()
		gone = append(gone, others(i, begin, func(p *process) {
			for code := 0; code != http.StatusNotFound; {
				code, _ = l.ask("GET", p.url+at+string(d), nil)
				if time.Since(begin) > time.Minute {
					l.t.Errorf("%s still has %s after a minute", p.url, d)
					return
				}
			}
		}))
	}
	if stale > 0 {
		l.t.Errorf("%d of %d reads by tag did not show an acknowledged change", stale, 2*changes)
	}
	l.line(fmt.Sprintf("a tag is moved at one replica, until the other two answered with it; %d changes", changes), "–",
		"p50 "+msOf(median(tag))+", p99 "+msOf(percentile(tag, 0.99))+" ms",
		fmt.Sprintf("%d answers were older than the change", stale))
	l.line("a manifest is deleted at one replica, until the other two, which ask nobody, answer 404 by digest", "–",
		"p50 "+msOf(median(gone))+", p99 "+msOf(percentile(gone, 0.99))+" ms", "")
}

// requests counts what pulls and pushes ask of the engines.
func (l *lab) requests() {
	var s3 counter
	p := l.serve(l.shared("figures", s3.start(l))...)
	last := l.usage()
	count := func(n float64) string {
		now := l.usage()
		u := now.since(last)
		last = now
		l.writes, l.commits = float64(s3.writes.Swap(0))/n, u.commits/n // of the last row
		return fmt.Sprintf("S3: %s reads, %s writes; etcd: %s reads, %s commits", short(float64(s3.reads.Swap(0))/n),
			short(l.writes), short(u.reads/n), short(l.commits))
	}
	count(1)
	l.pull(p, "t00000")
	l.line("the first pull of an image of 4 small blobs from a replica", "–", count(1), "")
	const pulls = 50
	for range pulls {
		l.pull(p, "t00000")
	}
	l.line("each further pull of it", "–", count(pulls), "")
	s3.bytes.Store(0)
	size := l.pull(p, "blobs")
	l.line("a pull of a layer of 64 MiB", "–", count(1), fmt.Sprintf("%s bytes from S3 for each byte to the client",
		short(float64(s3.bytes.Load())/float64(size))))
	const pushes = 50
	for n := range pushes {
		var parts []digest.Digest
		for k := range 4 {
			parts = append(parts, l.push(p, "counted", fmt.Appendf(nil, "%04d", 4*n+k)))
		}
		body := manifestOf(parts[0], fmt.Sprintf("%04d", n), parts[1:]...)
		code, text := l.ask("PUT", fmt.Sprint(p.url, "/v2/counted/manifests/", n), body, "Content-Type", manifestType)
		if code != 201 {
			l.t.Fatalf("%d: %s", code, text)
		}
	}
	l.line("a push of an image of 4 small blobs of its own", "–", count(pushes), "")
	p.end()
}

// pull gets a manifest by tag, and its blobs, and returns the number of bytes.
func (l *lab) pull(p *process, tag string) (size int) {
	l.t.Helper()
	code, body := l.ask("GET", p.url+"/v2/bench/manifests/"+tag, nil, "Accept", manifestType)
	var m struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	if err := json.Unmarshal(body, &m); code != 200 || err != nil {
		l.t.Fatalf("%d, %v: %s", code, err, body)
	}
	size = len(body)
	for _, part := range append(m.Layers, m.Config) {
		code, body := l.ask("GET", p.url+"/v2/bench/blobs/"+part.Digest, nil)
		if code != 200 || digest.FromBytes(body).String() != part.Digest {
			l.t.Fatalf("%d for %s", code, part.Digest)
		}
		size += len(body)
	}
	return size
}
