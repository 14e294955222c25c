package engines

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/etcd"
	"trow/storage/memory"
)

const (
	imagesOfRepo = 5
	blobsOfImage = 4 // a config and three layers, its own
	// factsOfRepo: of each image, its manifest, links to its blobs, a place of each of these, a tag and what it has
	// named.
	factsOfRepo = imagesOfRepo * (1 + blobsOfImage + 1 + blobsOfImage + 2)
	fillers     = 4 // processes that fill etcd
)

func repoOf(n int) string { return fmt.Sprintf("team%04d/app-%07d", n%1000, n) }

// batches returns the facts of a repo, as the Index writes them.
func batches(t *testing.T, repo string) []storage.Batch {
	j := memory.NewJournal()
	x, err := storage.OpenIndex(t.Context(), j, storage.IndexOptions{})
	if err != nil {
		t.Error(err)
		return nil
	}
	defer x.Close()
	err = x.Update(t.Context(), repo, func(tx *storage.Tx) (err error) {
		for i := range imagesOfRepo {
			m := storage.Manifest{Digest: digest.FromString(fmt.Sprint(repo, i)), MediaType: manifestType, Size: 1500}
			for k := range blobsOfImage {
				d := digest.FromString(fmt.Sprint(repo, i, k))
				tx.Link(d, 1<<20)
				m.Refs = append(m.Refs, d)
			}
			err = errors.Join(err, tx.PutManifest(m), tx.SetTag(fmt.Sprintf("v1.0.%05d", i), m.Digest))
		}
		return err
	})
	facts, historyErr := j.History(t.Context(), repo, "")
	if err = errors.Join(err, historyErr); err != nil {
		t.Error(err)
		return nil
	}
	all := []storage.Batch{{Repo: repo, Facts: facts}, {Repo: "_", Detached: true}}
	ctx, cancel := context.WithCancel(t.Context())
	_ = j.Watch(ctx, func(u storage.Update) error {
		for _, b := range u.Batches {
			all[0].Facts = append(all[0].Facts, b.Facts...)
		}
		cancel()
		return nil
	})
	for _, f := range all[0].Facts {
		if f.Kind == storage.KindLink || f.Kind == storage.KindManifest {
			place := make([]byte, 17) // a generation and 16 random bytes: see storage/place.go
			_, _ = rand.Read(place[1:])
			all[1].Facts = append(all[1].Facts, storage.Fact{Kind: 'o', Name: f.Name, Value: place})
		}
	}
	if got := len(all[0].Facts) + len(all[1].Facts); got != factsOfRepo {
		t.Errorf("a repo has %d facts, want %d", got, factsOfRepo)
	}
	return all
}

// fillRepos writes the facts of n repos.
func (l *lab) fillRepos(prefix string, n int) {
	l.t.Helper()
	var endpoints []string
	for _, m := range l.etcd.members {
		endpoints = append(endpoints, m.addr)
	}
	var next atomic.Int64
	var all sync.WaitGroup
	for range fillers {
		j := openWith(l.t, etcd.Options{Endpoints: endpoints, Prefix: prefix})
		most := j.Traits().Operations / (factsOfRepo + 1)
		all.Go(func() {
			for !l.t.Failed() {
				var b []storage.Batch
				contents := storage.Batch{Repo: "_", Detached: true}
				for range most {
					i := int(next.Add(1)) - 1
					if i >= n {
						break
					}
					repo := batches(l.t, repoOf(i))
					b, contents.Facts = append(b, repo[0]), append(contents.Facts, repo[1].Facts...)
				}
				if len(b) == 0 {
					return
				}
				if _, err := j.Commit(l.t.Context(), append(b, contents)...); err != nil {
					l.t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// sizeInUse returns the bytes that the facts take in a member of etcd, without what a compaction removes.
func (l *lab) sizeInUse() int64 {
	l.t.Helper()
	l.etcd.compact()
	s, err := l.etcd.admin.Status(l.t.Context(), l.etcd.members[0].addr)
	if err != nil {
		l.t.Fatal(err)
	}
	return s.DbSizeInUse
}

// load measures how long a server takes to load n facts from etcd, and what it takes of memory.
func (l *lab) load(n int) {
	repos := n / factsOfRepo
	n = repos * factsOfRepo
	prefix := fmt.Sprint("load", n)
	args := l.shared(prefix, l.gateway.endpoint)
	empty := l.serve(args...) // makes the place
	idle := resident(l.t, empty.cmd, "VmRSS")
	empty.end()
	before := l.sizeInUse()
	begin := time.Now()
	l.fillRepos(prefix, repos)
	filled := time.Since(begin)
	each := float64(l.sizeInUse()-before) / float64(n)
	var took []time.Duration
	var memory, peak []float64
	for range l.rounds {
		begin := time.Now()
		p := l.serve(args...)
		l.await("HEAD", fmt.Sprintf("%s/v2/%s/manifests/v1.0.%05d", p.url, repoOf(repos-1), imagesOfRepo-1))
		took = append(took, time.Since(begin))
		memory = append(memory, resident(l.t, p.cmd, "VmRSS"))
		peak = append(peak, resident(l.t, p.cmd, "VmHWM"))
		p.end()
	}
	l.facts, l.values.load, l.bytes, l.memory, l.idle = float64(n), median(took).Seconds(), each, median(memory), idle
	l.member = resident(l.t, l.etcd.members[0].cmd, "VmRSS")
	what := fmt.Sprintf("%s facts: %s images of %d blobs in %s repositories", short(float64(n)),
		short(float64(repos*imagesOfRepo)), blobsOfImage, short(float64(repos)))
	l.line(what+", from exec to the first answer", "–", short(median(took).Seconds())+" s",
		fmt.Sprintf("written in %s s", short(filled.Seconds())))
	l.line("memory of a server with them, loaded / at its peak", "–",
		short(median(memory))+" / "+short(median(peak))+" MB",
		fmt.Sprintf("without them %s MB; a member of etcd %s MB", short(idle), short(l.member)))
	l.line("bytes of a fact in etcd, in use after a compaction", "–", short(each),
		fmt.Sprintf("%s million facts in 8 GiB", short(float64(8<<30)/each/1e6)))
}
