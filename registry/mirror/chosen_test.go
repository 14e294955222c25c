package mirror_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/mirror"
)

// TestEvictChosen: what is being read is spared, what still is somewhere counts on, and what is gone does not.
func TestEvictChosen(t *testing.T) {
	s := newShelf()
	c := newCache(s, 1000)
	c.Look(t.Context())
	var all []digest.Digest
	for _, name := range []string{"a", "b", "c"} {
		d := s.put(name, 20)
		c.Added(d, 20)
		all = append(all, d)
	}
	if used := c.Used(all[0]); time.Since(used) > 2*time.Hour || !c.Used(contentOf("none")).IsZero() {
		t.Errorf("used %v", used)
	}
	release := c.Use(all[0])
	if !c.Reading(all) || c.Reading(all[1:]) {
		t.Error("which of them is read")
	}
	var asked []digest.Digest
	evict := func(_ context.Context, some []digest.Digest) ([]digest.Digest, error) {
		asked = append(asked, some...)
		return all[1:2], nil // c stays in another repository
	}
	spared, err := c.EvictChosen(t.Context(), append(all, contentOf("unknown")), evict)
	if err != nil || !slices.Equal(spared, all[:1]) || !slices.Equal(asked, append(all[1:], contentOf("unknown"))) {
		t.Errorf("spared %v, asked %v, %v", spared, asked, err)
	}
	if stats := c.Stats(); stats.Used != 40 || stats.Evicted != 20 || stats.Contents != 2 {
		t.Errorf("%+v", stats)
	}
	release()
	c.Use(all[2])() // it is not going any more
	failed := errors.New("no journal")
	_, err = c.EvictChosen(t.Context(), all, func(context.Context, []digest.Digest) ([]digest.Digest, error) {
		return nil, failed
	})
	if c.Use(all[0])(); !errors.Is(err, failed) || c.Stats().Used != 40 {
		t.Errorf("%v, %+v", err, c.Stats())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.EvictChosen(ctx, all, evict); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	var none *mirror.Cache
	if _, err := none.EvictChosen(t.Context(), all, evict); err != nil || none.Reading(all) ||
		!none.Used(all[0]).IsZero() {
		t.Errorf("without a cache: %v", err)
	}
}

// TestAReadWaitsForWhatIsGoing, and looks for it afterwards.
func TestAReadWaitsForWhatIsGoing(t *testing.T) {
	s := newShelf()
	c := newCache(s, 1000)
	c.Look(t.Context())
	d := s.put("a", 20)
	c.Added(d, 20)
	gone := false
	read := make(chan bool)
	_, err := c.EvictChosen(t.Context(), []digest.Digest{d}, func(context.Context, []digest.Digest) (
		[]digest.Digest, error) {
		go func() {
			release := c.Use(d)
			defer release()
			read <- gone
		}()
		select {
		case <-read:
			t.Error("it was read while it went")
		case <-time.After(50 * time.Millisecond):
		}
		gone = true
		return []digest.Digest{d}, nil
	})
	if err != nil || !<-read {
		t.Errorf("%v", err)
	}
}
