package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/client"
	"trow/registry/inventory"
	"trow/registry/namespace"
)

// Copied is an image to copy from one repository to another, of the same or of another registry.
type Copied struct {
	FromRepo, From string // From is a tag or a digest
	ToRepo, ToTag  string // ToTag is empty for an image that gets no tag
}

// CopyOptions say what else is copied.
type CopyOptions struct {
	Options
	// Referrers copies signatures and other referrers of each manifest, and what cosign keeps under tags of its own.
	Referrers bool
}

// companions are the endings of the tags under which cosign keeps what belongs to a digest.
var companions = []string{".sig", ".att", ".sbom"}

// Copy copies images between two running registries: all platforms, everything that they consist of, and then the tag.
// What is there already is not copied, so a copy that was cut short continues when it is run again; within one registry
// blobs are mounted. Of an image that the source has for some of its platforms, those are copied, with a note, if the
// destination accepts that. It returns the digest of the last image. Errors: those of the registries; that there were
// problems, after everything else was copied.
func Copy(ctx context.Context, from, to *client.Client, all []Copied, o CopyOptions) (d digest.Digest, p Progress,
	err error) {
	i := &importer{counter: counter{options: o.Options}, to: remote{to}, copies: true, sparse: true}
	i.add(func(p *Progress) { p.TotalItems = len(all) })
	for _, c := range all {
		var problem error
		if d, problem = i.copy(ctx, remote{from}, c, o.Referrers); len(all) == 1 {
			err = problem
			break
		}
		if err = i.report(c.ToRepo+":"+c.ToTag, problem); err != nil {
			break
		}
		i.add(func(p *Progress) { p.Items++ })
	}
	p, err = i.end("copied", err)
	return d, p, err
}

// copy copies one image.
func (i *importer) copy(ctx context.Context, from remote, c Copied, referrers bool) (digest.Digest, error) {
	desc, err := from.Resolve(ctx, c.FromRepo, c.From)
	if missing(err) {
		return "", problemf("the source has no %s; trow tags lists what it has", name(c.FromRepo, c.From))
	} else if err != nil {
		return "", err
	}
	if from.URL() == i.to.URL() {
		i.mountFrom = c.FromRepo
	}
	s := &running{ctx: ctx, from: from, repo: c.FromRepo, count: i.add, blobs: map[digest.Digest]int64{}}
	if namespace.Within(c.ToRepo) { // what its upstream has is not there
		ctx = client.OnlyHeld(ctx)
	}
	body, desc, err := i.manifest(ctx, s, c.ToRepo, desc, map[digest.Digest]bool{})
	if err != nil {
		return "", err
	}
	if referrers {
		if err := i.referrers(ctx, s, c.ToRepo, desc, map[digest.Digest]bool{}); err != nil {
			return "", err
		}
	}
	if c.ToTag == "" {
		return desc.Digest, nil
	}
	// The tag comes last, so that a client that finds it finds everything.
	now, err := i.to.manifest(ctx, c.ToRepo, c.ToTag)
	if err == nil && now != desc.Digest {
		err = pushed(i.to.PushManifest(ctx, c.ToRepo, c.ToTag, desc, body))
	}
	return desc.Digest, err
}

// referrers copies what refers to a manifest and to its platforms, and what refers to that.
func (i *importer) referrers(ctx context.Context, from *running, repo string, desc v1.Descriptor,
	done map[digest.Digest]bool) error {
	if done[desc.Digest] {
		return nil
	}
	done[desc.Digest] = true
	next, err := from.children(desc.Digest)
	if missing(err) {
		return nil // a platform that the source does not have
	}
	if err != nil {
		return err
	}
	err = from.from.Referrers(from.ctx, from.repo, desc, func(page []v1.Descriptor) error {
		for _, r := range page {
			_, pushed, err := i.manifest(ctx, from, repo,
				v1.Descriptor{MediaType: r.MediaType, Digest: r.Digest, Size: r.Size},
				done)
			if err != nil {
				return fmt.Errorf("referrer %s: %w", r.Digest, err)
			}
			next = append(next, pushed)
		}
		return nil
	})
	if err != nil && !missing(err) {
		return err
	}
	for _, tag := range companionTags(desc.Digest) {
		if err := i.companion(ctx, from, repo, tag); err != nil {
			return err
		}
	}
	for _, d := range next {
		if err := i.referrers(ctx, from, repo, d, done); err != nil {
			return err
		}
	}
	return nil
}

// companionTags are the tags under which cosign keeps what belongs to a manifest. Of a sha512 they have the first half:
// a tag has no room for more (distribution spec, "Referrers Tag Schema").
func companionTags(d digest.Digest) (tags []string) {
	start := d.Encoded()[:min(len(d.Encoded()), 64)]
	for _, suffix := range companions {
		tags = append(tags, d.Algorithm().String()+"-"+start+suffix)
	}
	return tags
}

// name is a reference to a manifest. ref is a tag or a digest.
func name(repo, ref string) string {
	if strings.Contains(ref, ":") {
		return repo + "@" + ref
	}
	return repo + ":" + ref
}

// companion copies a tag if there is one.
func (i *importer) companion(ctx context.Context, from *running, repo, tag string) error {
	desc, err := from.from.Resolve(from.ctx, from.repo, tag)
	if missing(err) {
		return nil
	} else if err != nil {
		return err
	}
	body, desc, err := i.manifest(ctx, from, repo, desc, map[digest.Digest]bool{})
	if err != nil {
		return err
	}
	now, err := i.to.manifest(ctx, repo, tag)
	if err == nil && now != desc.Digest {
		err = pushed(i.to.PushManifest(ctx, repo, tag, desc, body))
	}
	return err
}

// running is a repository of a running registry as the source of a copy. It implements [source]: what it opens that no
// manifest before it has called a blob is a manifest.
type running struct {
	ctx   context.Context // of the copy, for which alone it is made: a source is opened without one
	from  remote
	repo  string
	count func(func(*Progress))

	mu        sync.Mutex // guards the maps
	blobs     map[digest.Digest]int64
	manifests map[digest.Digest][]v1.Descriptor // the children of those that were opened
}

// open ignores the repository that it is asked for, which is that of the destination.
func (r *running) open(_ string, d digest.Digest) (io.ReadCloser, int64, error) {
	ctx := r.ctx
	r.mu.Lock()
	size, isBlob := r.blobs[d]
	r.mu.Unlock()
	if isBlob {
		body, err := r.from.Blob(ctx, r.repo, d, size)
		if err != nil {
			return nil, 0, err
		}
		return &counted{body, r.count}, size, nil
	}
	_, body, err := r.from.Manifest(ctx, r.repo, d.String())
	if err != nil {
		return nil, 0, err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	if err != nil {
		return nil, 0, err
	}
	var c inventory.Parts
	_ = json.Unmarshal(text, &c) // without JSON it has no parts
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range c.NotManifests() {
		r.blobs[b.Digest] = b.Size
	}
	if r.manifests == nil {
		r.manifests = map[digest.Digest][]v1.Descriptor{}
	}
	r.manifests[d] = c.Manifests
	return io.NopCloser(bytes.NewReader(text)), int64(len(text)), nil
}

// children returns the children of a manifest that was opened.
func (r *running) children(d digest.Digest) ([]v1.Descriptor, error) {
	r.mu.Lock()
	all, ok := r.manifests[d]
	r.mu.Unlock()
	if ok {
		return append([]v1.Descriptor(nil), all...), nil
	}
	body, _, err := r.open("", d)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]v1.Descriptor(nil), r.manifests[d]...), nil
}

// counted counts what is read, so that the progress of a large blob shows.
type counted struct {
	io.ReadCloser
	count func(func(*Progress))
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.count(func(now *Progress) { now.Read += int64(n) })
	return n, err
}
