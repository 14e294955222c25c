package registry

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"trow/registry/platform"
)

const (
	// maxPlatformIndex bounds the index of an image whose platforms are known, in bytes. Those of real images have a
	// few thousand.
	maxPlatformIndex = 64 << 10

	// platformCacheSize bounds what is known, in bytes. It has room for some 2,000 indexes.
	platformCacheSize = 4 << 20

	// maxPlatformReads bounds the indexes that are read at the same time because a verdict has asked.
	maxPlatformReads = 4

	// platformReadTime bounds the read of an index, and platformStart that of all when the registry starts.
	platformReadTime = 30 * time.Second
	platformStart    = 2 * time.Second
)

// ReadContent returns the bytes of a content.
type ReadContent func(ctx context.Context, d digest.Digest) ([]byte, error)

// platforms knows which platforms the indexes of images name for their manifests. Verdicts need them, but must not wait
// for the disk or the network: what is not known is read in the background, for the next verdict.
type platforms struct {
	known *cache[digest.Digest, []indexed] // by index
	peek  func(d digest.Digest) ([]byte, bool)
	read  ReadContent
	wait  bool // read at once instead: callers may wait

	mu    sync.Mutex
	under map[digest.Digest]bool // being read
}

// indexed is a manifest of an index, with the platform that the index names for it.
type indexed struct {
	digest digest.Digest
	name   string // os/arch[/variant]; empty if the index names none, or several
}

// newPlatforms returns platforms that know nothing yet. peek returns bytes that are in memory; nil: none are.
func newPlatforms(peek func(digest.Digest) ([]byte, bool), read ReadContent, wait bool) *platforms {
	if peek == nil {
		peek = func(digest.Digest) ([]byte, bool) { return nil, false }
	}
	return &platforms{known: newCache[digest.Digest, []indexed](platformCacheSize), peek: peek, read: read, wait: wait,
		under: map[digest.Digest]bool{}}
}

// learn notes the platforms of an index. It notes nothing if body is not an index or has more than maxPlatformIndex
// bytes.
func (p *platforms) learn(index digest.Digest, body []byte) []indexed {
	var all struct {
		Manifests []struct {
			Digest   digest.Digest
			Platform *v1.Platform
		}
	}
	if len(body) > maxPlatformIndex || json.Unmarshal(body, &all) != nil {
		return nil
	}
	list := make([]indexed, 0, len(all.Manifests))
	seen := make(map[digest.Digest]int, len(all.Manifests))
	size := 0
	for _, m := range all.Manifests {
		name := platform.Text(m.Platform)
		at, again := seen[m.Digest]
		if again {
			if list[at].name != name { // one manifest for several platforms is not left out with any of them
				list[at].name = ""
			}
			continue
		}
		seen[m.Digest] = len(list)
		list = append(list, indexed{m.Digest, name})
		size += 32 + len(m.Digest) + len(name) // two strings and their headers
	}
	p.known.put(index, list, size)
	return list
}

// of returns what is known of an index. If nothing is, it starts to read the index, and returns nil; with wait set, it
// returns once the index was read.
func (p *platforms) of(index digest.Digest) []indexed {
	list, ok := p.known.get(index)
	if ok {
		return list
	}
	if body, ok := p.peek(index); ok {
		return p.learn(index, body)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wait {
		return p.load(context.Background(), index)
	}
	if !p.under[index] && len(p.under) < maxPlatformReads {
		p.under[index] = true
		go func() {
			p.load(context.Background(), index)
			p.mu.Lock()
			delete(p.under, index)
			p.mu.Unlock()
		}()
	}
	return nil
}

// load reads an index. One that cannot be read stays unknown.
func (p *platforms) load(ctx context.Context, index digest.Digest) []indexed {
	ctx, cancel := context.WithTimeout(ctx, platformReadTime)
	defer cancel()
	body, err := p.read(ctx, index)
	if err != nil {
		return nil
	}
	return p.learn(index, body)
}

// Platforms returns the platforms, as os/arch[/variant], that an index names for these manifests, in this order. A
// platform that is not known in memory is empty; its index is then read, so that it is known a moment later.
func (i Images) Platforms(index digest.Digest, of []digest.Digest) []string {
	names := make([]string, len(of))
	list := i.platforms.of(index)
	for at, d := range of {
		if at < len(list) && list[at].digest == d {
			names[at] = list[at].name
			continue
		}
		for _, m := range list {
			if m.digest == d {
				names[at] = m.name
				break
			}
		}
	}
	return names
}

// LearnPlatforms reads the indexes of images of other registries, so that the first verdicts on them know their
// platforms. It takes some seconds at most; what it does not get to is read when a verdict asks.
func (i Images) LearnPlatforms(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, platformStart)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * maxPlatformReads)
	for h, err := range upstreamHoldings(ctx, i.Index, func(string) bool { return true }) {
		if err != nil {
			break
		}
		for _, m := range h.Manifests {
			if indexType(m.MediaType) {
				g.Go(func() error {
					i.platforms.load(ctx, m.Digest)
					return ctx.Err()
				})
			}
		}
	}
	_ = g.Wait() // ctx is done
}
