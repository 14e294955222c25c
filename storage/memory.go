package storage

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Memory keeps blobs in memory, for tests. The zero value is empty and ready.
type Memory struct {
	mu      sync.Mutex // guards all below
	blobs   map[digest.Digest]memoryBlob
	uploads map[string]*memoryUpload
}

type memoryBlob struct {
	data []byte
	info BlobInfo
}

// memoryUpload is the state of one upload; writers come and go.
type memoryUpload struct {
	repo   string
	data   []byte
	used   time.Time
	writer *memoryWriter // the one whose turn it is
}

type memoryWriter struct {
	m  *Memory
	id string
	u  *memoryUpload
}

func (m *Memory) blob(d digest.Digest) (memoryBlob, error) {
	if _, err := ParseDigest(string(d)); err != nil {
		return memoryBlob{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[d]
	if !ok {
		return memoryBlob{}, fmt.Errorf("blob %s: %w", d, ErrNotFound)
	}
	return b, nil
}

// Stat implements Blobs.
func (m *Memory) Stat(_ context.Context, d digest.Digest) (BlobInfo, error) {
	b, err := m.blob(d)
	return b.info, err
}

// Open implements Blobs.
func (m *Memory) Open(_ context.Context, d digest.Digest) (io.ReadSeekCloser, error) {
	b, err := m.blob(d)
	if err != nil {
		return nil, err
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{bytes.NewReader(b.data), io.NopCloser(nil)}, nil
}

// Create implements Blobs.
func (m *Memory) Create(_ context.Context, repo string, alg digest.Algorithm) (Upload, error) {
	if !Supported(alg) {
		return nil, fmt.Errorf("upload: %w: algorithm %.30q", ErrDigest, alg)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.uploads == nil {
		m.uploads = map[string]*memoryUpload{}
	}
	id := newUploadID()
	u := &memoryUpload{repo: repo, used: time.Now()}
	u.writer = &memoryWriter{m, id, u}
	m.uploads[id] = u
	return u.writer, nil
}

// Resume implements Blobs.
func (m *Memory) Resume(_ context.Context, repo, id string, offset int64) (Upload, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.uploads[id]
	if u == nil || u.repo != repo {
		return nil, fmt.Errorf("upload %.40q: %w", id, ErrNotFound)
	}
	if offset >= 0 && offset != int64(len(u.data)) {
		return nil, fmt.Errorf("upload %s: %w: it has %d bytes, not %d", id, ErrOffset, len(u.data), offset)
	}
	u.writer = &memoryWriter{m, id, u}
	return u.writer, nil
}

// Expire implements Blobs.
func (m *Memory) Expire(_ context.Context, before time.Time) (freed int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.uploads, func(_ string, u *memoryUpload) bool {
		if !u.used.Before(before) {
			return false
		}
		freed += int64(len(u.data))
		u.writer = nil
		return true
	})
	return freed, nil
}

// Delete implements Blobs.
func (m *Memory) Delete(_ context.Context, d digest.Digest) error {
	if _, err := ParseDigest(string(d)); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.blobs[d]; !ok {
		return fmt.Errorf("blob %s: %w", d, ErrNotFound)
	}
	delete(m.blobs, d)
	return nil
}

// All implements Blobs.
func (m *Memory) All(context.Context) iter.Seq2[BlobInfo, error] {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.blobs))
	m.mu.Unlock()
	return func(yield func(BlobInfo, error) bool) {
		for _, b := range all {
			if !yield(b.info, nil) {
				return
			}
		}
	}
}

// turn makes sure that w still is the writer; the caller has mu.
func (w *memoryWriter) turn() error {
	if w.u.writer != w {
		return fmt.Errorf("upload %s: %w", w.id, ErrClosed)
	}
	w.u.used = time.Now()
	return nil
}

func (w *memoryWriter) Write(p []byte) (int, error) {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if err := w.turn(); err != nil {
		return 0, err
	}
	w.u.data = append(w.u.data, p...)
	return len(p), nil
}

func (w *memoryWriter) ID() string { return w.id }

func (w *memoryWriter) Size() int64 {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	return int64(len(w.u.data))
}

func (w *memoryWriter) Commit(_ context.Context, d digest.Digest) error {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if err := w.turn(); err != nil {
		return err
	}
	w.u.writer = nil
	delete(w.m.uploads, w.id)
	if _, err := ParseDigest(string(d)); err != nil {
		return err
	}
	if got := d.Algorithm().FromBytes(w.u.data); got != d {
		return fmt.Errorf("upload: %w: content is %s, not %s", ErrDigest, got, d)
	}
	if w.m.blobs == nil {
		w.m.blobs = map[digest.Digest]memoryBlob{}
	}
	info := BlobInfo{Digest: d, Size: int64(len(w.u.data)), ModTime: time.Now()}
	w.m.blobs[d] = memoryBlob{w.u.data, info}
	return nil
}

func (w *memoryWriter) Cancel() error {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if err := w.turn(); err != nil {
		return err
	}
	w.u.writer = nil
	delete(w.m.uploads, w.id)
	return nil
}

func (w *memoryWriter) Close() error {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if w.u.writer == w {
		w.u.writer = nil
	}
	return nil
}

// MemoryJournal keeps facts in memory, for tests. The zero value is empty and ready.
type MemoryJournal struct {
	fanout
	repos map[string]*memoryRepo
}

type memoryRepo struct {
	revision Revision
	facts    overlay
}

// Commit implements Journal.
func (j *MemoryJournal) Commit(_ context.Context, batches ...Batch) (Revision, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return 0, fmt.Errorf("journal: %w", ErrClosed)
	}
	for _, b := range batches {
		if r := j.repos[b.Repo]; r != nil && r.revision != b.Base || r == nil && b.Base != 0 {
			return 0, fmt.Errorf("journal: repository %q: %w", b.Repo, ErrConflict)
		}
	}
	rev := Revision(j.head.Load()) + 1
	for _, b := range batches {
		j.put(b, rev)
	}
	j.publish(rev, batches)
	return rev, nil
}

func (j *MemoryJournal) put(b Batch, rev Revision) {
	if j.repos == nil {
		j.repos = map[string]*memoryRepo{}
	}
	r := j.repos[b.Repo]
	if r == nil {
		r = &memoryRepo{facts: overlay{}}
		j.repos[b.Repo] = r
	}
	r.revision = rev
	for _, f := range b.Facts {
		if f.Value == nil {
			delete(r.facts, factKey{f.Kind, f.Name})
		} else {
			r.facts[factKey{f.Kind, f.Name}] = f.Value
		}
	}
	if len(r.facts) == 0 {
		delete(j.repos, b.Repo)
	}
}

// Watch implements Journal.
func (j *MemoryJournal) Watch(ctx context.Context, apply func(Update) error) error {
	return j.follow(ctx, j.load, apply)
}

func (j *MemoryJournal) load(apply func(Update) error) error {
	u := Update{Revision: Revision(j.head.Load()), Synced: true}
	for name, r := range j.repos {
		u.Batches = append(u.Batches, Batch{Repo: name, Base: r.revision, Facts: r.facts.facts()})
	}
	slices.SortFunc(u.Batches, func(a, b Batch) int { return strings.Compare(a.Repo, b.Repo) })
	return apply(u)
}

// Head implements Journal.
func (j *MemoryJournal) Head(context.Context) (Revision, error) { return Revision(j.head.Load()), nil }

// Close ends every Watch.
func (j *MemoryJournal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.end()
	return nil
}
