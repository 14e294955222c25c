package storage_test

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// otherList is an engine that counts what is read, and lists objects with other sizes, or none at all.
type otherList struct {
	storage.Placed
	opened int
	sizes  map[string]int64
	more   []storage.Object // that nothing names
	err    error
}

func (s *otherList) Open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	s.opened++
	return s.Placed.Open(ctx, d)
}

func (s *otherList) Objects(ctx context.Context) iter.Seq2[storage.Object, error] {
	return func(yield func(storage.Object, error) bool) {
		if s.err != nil {
			yield(storage.Object{}, s.err)
			return
		}
		for o, err := range s.Placed.Objects(ctx) {
			if size, ok := s.sizes[o.Place]; ok {
				o.Size = size
			}
			for range 2 { // a service may list one twice
				if !yield(o, err) {
					return
				}
			}
		}
		for _, o := range s.more {
			if !yield(o, nil) {
				return
			}
		}
	}
}

// justBefore returns the name of an object that comes just before another one.
func justBefore(place string) string {
	at := strings.LastIndexAny(place, "123456789abcdef")
	digit := strings.IndexByte("0123456789abcdef", place[at]) - 1
	return place[:at] + "0123456789abcdef"[digit:digit+1] + place[at+1:]
}

// TestAScrubOfAServiceComparesItsList reads nothing but what the list shows otherwise than the facts, and all if that
// is asked for.
func TestAScrubOfAServiceComparesItsList(t *testing.T) {
	service := memory.NewService()
	x := storagetest.OpenIndexWith(t, memory.NewJournal(), storage.IndexOptions{Placed: true})
	const n = 20
	pushObjects(t, x, service, "content", n)
	var total int64
	for i := range n {
		total += int64(len(fmt.Sprint("content", i)))
	}
	blobs := &otherList{Placed: &memory.Objects{Service: service, Records: x}, sizes: map[string]int64{}}
	s := &storage.Scrubber{Blobs: blobs, Index: x}
	run := func(how storage.Scrub) (done storage.Scrubbed, found map[digest.Digest]string, first storage.Scrubbed) {
		t.Helper()
		blobs.opened, found = 0, map[digest.Digest]string{}
		reports := 0
		done, err := s.RunWith(t.Context(), how, func(f storage.Finding) { found[f.Digest] = f.Reason },
			func(now storage.Scrubbed) {
				if reports++; reports == 1 {
					first = now
				}
			})
		if err != nil {
			t.Fatal(err)
		}
		return done, found, first
	}
	if done, found, _ := run(storage.Scrub{}); !done.Listed || done.Blobs != n || done.Bytes != 0 ||
		done.Total != total || blobs.opened != 0 || len(found) != 0 {
		t.Errorf("all is well: %+v, %v, %d were read", done, found, blobs.opened)
	}
	done, found, first := run(storage.Scrub{Read: true})
	if done.Listed || done.Blobs != n || done.Bytes != total || blobs.opened != n || len(found) != 0 {
		t.Errorf("all is read: %+v, %v, %d were read", done, found, blobs.opened)
	}
	if first.Blobs != 0 || first.Contents != n || first.Total != total {
		t.Errorf("before it reads, it says %+v", first)
	}

	var lost, short digest.Digest
	for o := range blobs.Objects(t.Context()) { // what nothing names stands for nothing that is lost
		blobs.more = append(blobs.more, storage.Object{Place: justBefore(o.Place), Size: o.Size})
	}
	for d, place := range x.Places() {
		switch {
		case lost == "":
			if lost = d; blobs.Remove(t.Context(), place) != nil {
				t.Fatal("an object cannot be removed")
			}
		case short == "":
			short = d
			blobs.sizes[place] = 1 // a list that is wrong: the bytes decide
		}
	}
	done, found, _ = run(storage.Scrub{})
	if done.Damaged != 1 || len(found) != 1 || found[lost] != "its bytes are missing" || !x.Quarantined(lost) ||
		x.Quarantined(short) || done.Blobs != n {
		t.Errorf("one is lost: %+v, %v", done, found)
	}
	// What is quarantined is read each time, so that it is noticed when it is back.
	pushObjects(t, x, service, "content", n)
	if err := x.Quarantine(t.Context(), short, "test"); err != nil {
		t.Fatal(err)
	}
	clear(blobs.sizes)
	if done, found, _ = run(storage.Scrub{}); done.Healed != 1 || blobs.opened != 1 || x.Quarantined(short) {
		t.Errorf("intact again: %+v, %v, %d were read", done, found, blobs.opened)
	}
	// A service that lists nothing says nothing about the content.
	blobs.err = io.ErrUnexpectedEOF
	if done, err := s.Run(t.Context(), 0, nil, nil); err == nil || done.Blobs != 0 || x.Stats().Quarantined != 0 {
		t.Errorf("without a list: %+v, %v", done, err)
	}
}
