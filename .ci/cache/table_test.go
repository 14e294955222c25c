package cache

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// peer is a cache that is compared.
type peer struct {
	name  string
	start func(t *testing.T, o *origin) *client
}

var peers = []peer{
	{"Trow", func(t *testing.T, o *origin) *client {
		return trow(t, "20Gi", o.entry("origin.example")).client("origin.example")
	}},
	{"Distribution", func(t *testing.T, o *origin) *client {
		return newClient(t, distribution(t, t.TempDir(), "proxy: {remoteurl: \"http://"+o.addr+"\"}\n").url)
	}},
	{"zot", func(t *testing.T, o *origin) *client {
		return newClient(t, zot(t, `,"extensions":{"sync":{"enable":true,"registries":[{"urls":["http://`+
			o.addr+`"],"onDemand":true,"tlsVerify":false,"content":[{"prefix":"**"}]}]}}`).url)
	}},
}

// zotProgram is empty where zot cannot be had.
var zotProgram = os.Getenv("CACHE_ZOT")

// zot starts zot with an empty directory. more are further members of its configuration.
func zot(t *testing.T, more string) *process {
	t.Helper()
	dir, err := os.MkdirTemp("", "zot") // the sync of zot takes no path with a comma, as that of t.TempDir has it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	addr := freeAddress(t)
	host, port, _ := strings.Cut(addr, ":")
	config := write(t, filepath.Join(t.TempDir(), "config.json"), fmt.Sprintf(`{"distSpecVersion":"1.1.1",
"storage":{"rootDirectory":%q},"http":{"address":%q,"port":%q},"log":{"level":"error"}%s}`, dir, host, port, more))
	return run(t, "http://"+addr, zotProgram, "serve", config)
}

// originRate is how many bytes per second the origin sends in each answer, as over a network: on loopback nothing would
// show who waits for the whole of an image.
const originRate = 100 << 20

// row is a line of the table.
type row struct {
	about   string
	measure func(t *testing.T, p peer) string
}

// TestTable measures Trow beside other caches of the same origin, and writes the table for registry/README.md to the
// file that CACHE_TABLE names. Without it, it only shows that everything can be measured.
func TestTable(t *testing.T) {
	rounds, n := size(1, 3), size(8<<20, 32<<20)
	sizes := []int{n, n, n, n}
	var seed uint64 = 9000
	// each measures a cache that holds nothing, several times, and returns the medians.
	each := func(t *testing.T, p peer, f func(c *client, o *origin, i *image) (time.Duration, time.Duration)) (
		a, b string, bytes int64) {
		var x, y []time.Duration
		o := openOrigin(t)
		for range rounds {
			seed++
			i := newImage(seed, sizes...)
			o.push("team/app", i, fmt.Sprint("v", seed))
			o.slow(originRate)
			c := p.start(t, o)
			o.reset()
			one, other := f(c, o, i)
			x, y, bytes = append(x, one), append(y, other), o.counted(".*").bytes
		}
		return inMS(median(x)), inMS(median(y)), bytes
	}
	tag := func() string { return fmt.Sprint("v", seed) }
	one := func(c *client) *pulled { return c.pulls("team/app", tag(), true) }
	rows := []row{
		{"cold, one client: until its first byte of a layer / until it has all; MB from the origin",
			func(t *testing.T, p peer) string {
				first, all, bytes := each(t, p, func(c *client, o *origin, i *image) (time.Duration, time.Duration) {
					got := one(c)
					return got.first, got.took
				})
				return fmt.Sprintf("%s / %s ms; %d MB", first, all, bytes/1e6)
			}},
		{fmt.Sprintf("cold, %d clients at once: until all have all; MB from the origin", clients),
			func(t *testing.T, p peer) string {
				_, all, bytes := each(t, p, func(c *client, o *origin, i *image) (time.Duration, time.Duration) {
					begin, wrong := time.Now(), many(t, func() *client { return c }, tag(), "", nil)
					if wrong > 0 {
						t.Logf("%s: %d of %d pulls failed", p.name, wrong, clients)
					}
					return 0, time.Since(begin)
				})
				return fmt.Sprintf("%s ms; %d MB", all, bytes/1e6)
			}},
		{"a HEAD of the tag of a cold image: MB from the origin", func(t *testing.T, p peer) string {
			_, took, bytes := each(t, p, func(c *client, o *origin, i *image) (time.Duration, time.Duration) {
				begin := time.Now()
				c.want(http.StatusOK, http.MethodHead, "team/app/manifests/"+tag(), nil, "Accept", accepted)
				took := time.Since(begin)
				time.Sleep(time.Second) // what goes on behind the answer counts as well
				return 0, took
			})
			return fmt.Sprintf("%s ms; %.1f MB", took, float64(bytes)/1e6)
		}},
		{"warm, one client: until its first byte of a layer / until it has all", func(t *testing.T, p peer) string {
			first, all, _ := each(t, p, func(c *client, o *origin, i *image) (time.Duration, time.Duration) {
				one(c)
				awaitQuiet(o)
				return best(func() *pulled { return one(c) })
			})
			return fmt.Sprintf("%s / %s ms", first, all)
		}},
		{"the same, the origin being stopped", func(t *testing.T, p peer) string {
			first, all, _ := each(t, p, func(c *client, o *origin, i *image) (time.Duration, time.Duration) {
				one(c)
				awaitQuiet(o)
				o.stop()
				defer o.start()
				return best(func() *pulled { return one(c) })
			})
			return fmt.Sprintf("%s / %s ms", first, all)
		}},
	}
	text := "| pull of an image of 4 layers of " + fmt.Sprint(sizes[0]>>20) + " MiB"
	head := "|---"
	for _, p := range peers {
		text += " | " + p.name
		head += "|---"
	}
	text += " |\n" + head + "|\n"
	for _, r := range rows {
		text += "| " + r.about
		for _, p := range peers {
			cell := "–"
			if p.name != "zot" || zotProgram != "" {
				ok := t.Run(r.about+" "+p.name, func(t *testing.T) { cell = r.measure(t, p) })
				if !ok {
					cell = "failed"
				}
			}
			text += " | " + cell
		}
		text += " |\n"
	}
	if zotProgram == "" {
		text += "\nzot could not be measured: its Go module was not to be had.\n"
	}
	t.Logf("\n%s", text)
	if file := os.Getenv("CACHE_TABLE"); file != "" {
		write(t, file, text)
	}
}

// many pulls with many clients at once, and returns how many fail: an error, a client that hangs, another manifest than
// digest, unless that is empty. began is that of pull.
func many(t *testing.T, c func() *client, tag, digest string, began func(string)) (wrong int) {
	t.Helper()
	var all sync.WaitGroup
	var mu sync.Mutex
	ctx, moved := untilHung(t)
	for range clients {
		c := *c()
		c.moved = moved
		all.Go(func() {
			p, err := c.pull(ctx, "team/app", tag, true, began)
			if err == nil && digest != "" && sha(p.manifest) != digest {
				err = fmt.Errorf("another manifest: %s", p.manifest)
			}
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if wrong++; wrong == 1 {
				t.Log(err) // it has the cause of ctx
			}
		})
	}
	all.Wait()
	return wrong
}

// awaitQuiet waits until the origin is asked for nothing any more: some caches store after they have answered.
func awaitQuiet(o *origin) {
	for last := int64(-1); ; {
		now := o.counted(".*").bytes
		if now == last {
			return
		}
		last = now
		time.Sleep(500 * time.Millisecond)
	}
}

// best returns the medians of some pulls.
func best(pull func() *pulled) (first, all time.Duration) {
	var x, y []time.Duration
	for range 5 {
		p := pull()
		x, y = append(x, p.first), append(y, p.took)
	}
	return median(x), median(y)
}

func inMS(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f", float64(d.Microseconds())/1000)
	}
	return fmt.Sprint(d.Milliseconds())
}
