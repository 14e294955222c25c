package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

// slot is a tag that only one client changes at a time, so that it is known what it names. Other clients read it.
type slot struct {
	mu        sync.RWMutex // guards all below; pulls hold it for reading
	repo, tag string
	image     *image // nil: none
	tagged    bool
	referrers []*image

	doubt []*image // while an operation has no answer: the images that may be there
	stays bool     // the tag names an image whether the operation happens or not
}

// begin records, before an operation, what may be there until its answer arrives.
func (s *slot) begin(stays bool, doubt ...*image) {
	s.doubt, s.stays = doubt, stays
}

// end records that the operation is complete.
func (s *slot) end() { s.doubt = nil }

// image is a manifest with its content.
type image struct {
	mediaType string
	body      []byte
	blobs     []descriptor
	children  []*image
}

func (i *image) digest() digest.Digest { return digest.FromBytes(i.body) }

// stock is what clients push: images with a few layers that many of them share, into a few repos.
type stock struct {
	blobs map[digest.Digest][]byte // bytes of all layers and configs
	pool  []descriptor
	slots []*slot

	pushes, pulls, deletes, mounts atomic.Int64
	gap                            atomic.Int64 // the longest time from HEAD to PUT, in ns
	mu                             sync.Mutex   // guards broken
	broken                         []string
}

const (
	poolBlobs = 40
	repos     = 3
	slots     = 24
)

func newStock(r *rand.Rand) *stock {
	w := &stock{blobs: map[digest.Digest][]byte{}}
	for range poolBlobs {
		w.pool = append(w.pool, w.blob(r, typeLayer, 1+r.IntN(64<<10)))
	}
	w.pool = append(w.pool, w.blob(r, typeConfig, 2)) // many images share it
	for n := range slots {
		w.slots = append(w.slots, &slot{repo: fmt.Sprintf("repo/%d", n%repos), tag: fmt.Sprintf("tag-%d", n)})
	}
	return w
}

func (w *stock) blob(r *rand.Rand, mediaType string, size int) descriptor {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	d := describe(mediaType, b)
	w.blobs[d.Digest] = b
	return d
}

// complain records a violation.
func (w *stock) complain(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (w *stock) newImage(r *rand.Rand, subject *image) *image {
	config := w.pool[r.IntN(len(w.pool))]
	d := document{MediaType: typeManifest, Config: &config, Annotations: map[string]string{"n": fmt.Sprint(r.Uint64())}}
	for range 1 + r.IntN(3) {
		d.Layers = append(d.Layers, w.pool[r.IntN(len(w.pool))])
	}
	if subject != nil {
		to := describe(subject.mediaType, subject.body)
		d.Subject = &to
	}
	return &image{mediaType: typeManifest, body: d.encode(), blobs: append(d.Layers, config)}
}

func (w *stock) newIndex(r *rand.Rand) *image {
	d := document{MediaType: typeIndex, Annotations: map[string]string{"n": fmt.Sprint(r.Uint64())}}
	i := &image{mediaType: typeIndex}
	for range 2 {
		child := w.newImage(r, nil)
		i.children = append(i.children, child)
		d.Manifests = append(d.Manifests, describe(typeManifest, child.body))
	}
	i.body = d.encode()
	return i
}

// errNoAnswer: the operation may or may not have happened.
var errNoAnswer = errors.New("no answer")

// expect sends a request whose answer must have one of the statuses.
func (w *stock) expect(ctx context.Context, c *client, method, path string, body []byte, mediaType string,
	statuses ...int) (answer, error) {
	a, err := c.do(ctx, method, path, body, "Content-Type", mediaType)
	if err != nil || a.status == 503 {
		return a, fmt.Errorf("%w: %s %s: %v", errNoAnswer, method, path, err)
	}
	if age := a.header.Get("Trow-Stale"); age != "" {
		return a, fmt.Errorf("%w: %s %s: the answer says that it is stale: %s", errNoAnswer, method, path, age)
	}
	if !slices.Contains(statuses, a.status) {
		w.complain("%s %s: %v, not %v", method, path, a, statuses)
		return a, fmt.Errorf("%s %s: %v", method, path, a)
	}
	return a, nil
}

// pushBlob pushes a blob in one of the ways of clients, unless the repo holds it.
func (w *stock) pushBlob(ctx context.Context, c *client, r *rand.Rand, repo string, d digest.Digest) error {
	a, err := w.expect(ctx, c, "HEAD", "/v2/"+repo+"/blobs/"+d.String(), nil, "", 200, 404)
	if err != nil || a.status == 200 {
		return err
	}
	content := w.blobs[d]
	start := "/v2/" + repo + "/blobs/uploads/"
	switch r.IntN(3) {
	case 0:
		_, err = w.expect(ctx, c, "POST", start+"?digest="+d.String(), content, "application/octet-stream", 201)
		return err
	case 1:
		w.mounts.Add(1)
		start += fmt.Sprintf("?mount=%s&from=repo/%d", d, r.IntN(repos))
	}
	a, err = w.expect(ctx, c, "POST", start, nil, "", 201, 202)
	if err != nil || a.status == 201 {
		return err
	}
	half := len(content) / 2
	a, err = w.expect(ctx, c, "PATCH", a.header.Get("Location"), content[:half], "application/octet-stream", 202)
	if err != nil {
		return err
	}
	_, err = w.expect(ctx, c, "PUT", a.header.Get("Location")+"?digest="+d.String(), content[half:],
		"application/octet-stream", 201)
	return err
}

// pushImage pushes the content of an image, and then its manifest, under a tag or its digest.
func (w *stock) pushImage(ctx context.Context, c *client, r *rand.Rand, repo, ref string, i *image) error {
	for _, child := range i.children {
		if err := w.pushImage(ctx, c, r, repo, child.digest().String(), child); err != nil {
			return err
		}
	}
	begin := time.Now()
	for _, b := range i.blobs {
		if err := w.pushBlob(ctx, c, r, repo, b.Digest); err != nil {
			return err
		}
	}
	_, err := w.expect(ctx, c, "PUT", "/v2/"+repo+"/manifests/"+ref, i.body, i.mediaType, 201)
	for gap := int64(time.Since(begin)); ; {
		longest := w.gap.Load()
		if gap <= longest || w.gap.CompareAndSwap(longest, gap) {
			break
		}
	}
	w.pushes.Add(1)
	return err
}

// remove deletes manifests, an index before its children.
func (w *stock) remove(ctx context.Context, c *client, repo string, i *image) error {
	_, err := w.expect(ctx, c, "DELETE", "/v2/"+repo+"/manifests/"+i.digest().String(), nil, "", 202, 404)
	for _, child := range i.children {
		if err == nil {
			err = w.remove(ctx, c, repo, child)
		}
	}
	w.deletes.Add(1)
	return err
}

// change changes a slot that the caller has locked. Errors: errNoAnswer, with the slot's doubt set; violations, which
// are recorded already.
func (w *stock) change(ctx context.Context, c *client, r *rand.Rand, s *slot) error {
	old := s.image
	switch n := r.IntN(10); {
	case old == nil || n < 5:
		return w.replace(ctx, c, r, s)
	case n == 5 && s.tagged:
		s.begin(false, old)
		if _, err := w.expect(ctx, c, "DELETE", "/v2/"+s.repo+"/manifests/"+s.tag, nil, "", 202); err != nil {
			return err
		}
		s.tagged = false
	case n == 6: // the same again
		s.begin(s.tagged, old)
		if _, err := w.expect(ctx, c, "PUT", "/v2/"+s.repo+"/manifests/"+s.tag, old.body, old.mediaType,
			201); err != nil {
			return err
		}
		s.tagged = true
	case n == 7:
		referrer := w.newImage(r, old)
		s.begin(s.tagged, old, referrer)
		if err := w.pushImage(ctx, c, r, s.repo, referrer.digest().String(), referrer); err != nil {
			return err
		}
		s.referrers = append(slices.Clone(s.referrers), referrer)
	default:
		return w.clear(ctx, c, s)
	}
	s.end()
	return nil
}

// replace pushes another image under the slot's tag, and then deletes the one before.
func (w *stock) replace(ctx context.Context, c *client, r *rand.Rand, s *slot) error {
	next := w.newImage(r, nil)
	if r.IntN(3) == 0 {
		next = w.newIndex(r)
	}
	s.begin(s.tagged, append([]*image{next}, s.all()...)...)
	if err := w.pushImage(ctx, c, r, s.repo, s.tag, next); err != nil {
		return err
	}
	olds := s.all()
	s.image, s.tagged, s.referrers = next, true, nil
	for _, old := range olds {
		if err := w.remove(ctx, c, s.repo, old); err != nil {
			return err
		}
	}
	s.end()
	return nil
}

// all returns the manifests of a slot that are pushed and deleted separately.
func (s *slot) all() []*image {
	if s.image == nil {
		return s.referrers
	}
	return append([]*image{s.image}, s.referrers...)
}

// clear deletes everything that a slot has.
func (w *stock) clear(ctx context.Context, c *client, s *slot) error {
	s.begin(false, s.all()...)
	for _, i := range s.doubt {
		if err := w.remove(ctx, c, s.repo, i); err != nil {
			return err
		}
	}
	s.image, s.tagged, s.referrers = nil, false, nil
	s.end()
	return nil
}

// pull reads everything of a slot, which the caller has locked for reading, and records what is missing or wrong.
func (w *stock) pull(ctx context.Context, c *client, s *slot) error {
	if s.image == nil {
		return nil
	}
	refs := []string{s.image.digest().String()}
	if s.tagged {
		refs = append(refs, s.tag)
	}
	for _, ref := range refs {
		if err := w.pullImage(ctx, c, s.repo, ref, s.image); err != nil {
			return err
		}
	}
	for _, referrer := range s.referrers {
		if err := w.pullImage(ctx, c, s.repo, referrer.digest().String(), referrer); err != nil {
			return err
		}
	}
	return w.pullReferrers(ctx, c, s)
}

// pullReferrers checks the list of the manifests whose subject is the slot's image.
func (w *stock) pullReferrers(ctx context.Context, c *client, s *slot) error {
	a, err := w.expect(ctx, c, "GET", "/v2/"+s.repo+"/referrers/"+s.image.digest().String(), nil, "", 200)
	if err != nil {
		return err
	}
	var list document
	if err := json.Unmarshal(a.body, &list); err != nil || len(list.Manifests) != len(s.referrers) {
		w.complain("referrers of %s in %s: %v %s, not %d", s.image.digest(), s.repo, err, a.body, len(s.referrers))
	}
	return nil
}

func (w *stock) pullImage(ctx context.Context, c *client, repo, ref string, i *image) error {
	a, err := w.expect(ctx, c, "GET", "/v2/"+repo+"/manifests/"+ref, nil, "", 200)
	if err != nil {
		return err
	}
	if string(a.body) != string(i.body) || a.header.Get("Content-Type") != i.mediaType {
		w.complain("%s:%s is another manifest than %s", repo, ref, i.digest())
	}
	for _, child := range i.children {
		if err := w.pullImage(ctx, c, repo, child.digest().String(), child); err != nil {
			return err
		}
	}
	for _, b := range i.blobs {
		a, err := w.expect(ctx, c, "GET", "/v2/"+repo+"/blobs/"+b.Digest.String(), nil, "", 200)
		if err != nil {
			return err
		}
		if digest.FromBytes(a.body) != b.Digest {
			w.complain("blob %s of %s:%s has other bytes", b.Digest, repo, ref)
		}
	}
	w.pulls.Add(1)
	return nil
}

// work is one client: it changes and pulls until ctx is done or the server does not answer.
func (w *stock) work(ctx context.Context, c *client, r *rand.Rand) {
	for ctx.Err() == nil {
		s := w.slots[r.IntN(len(w.slots))]
		var err error
		if r.IntN(2) == 0 && s.mu.TryLock() {
			if s.doubt == nil {
				err = w.change(context.WithoutCancel(ctx), c, r, s)
			}
			s.mu.Unlock()
		} else {
			s.mu.RLock()
			if s.doubt == nil {
				err = w.pull(context.WithoutCancel(ctx), c, s)
			}
			s.mu.RUnlock()
		}
		if errors.Is(err, errNoAnswer) {
			return
		}
	}
}

// names returns the digests of all content of the slots.
func (w *stock) names() map[digest.Digest]bool {
	all := map[digest.Digest]bool{}
	var add func(i *image)
	add = func(i *image) {
		all[i.digest()] = true
		for _, b := range i.blobs {
			all[b.Digest] = true
		}
		for _, child := range i.children {
			add(child)
		}
	}
	for _, s := range w.slots {
		for _, i := range s.all() {
			add(i)
		}
	}
	return all
}
