package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/opencontainers/go-digest"

	"trow/registry/auth"
	"trow/registry/mirror"
	"trow/registry/ocierror"
	"trow/registry/upstream"
	"trow/storage"
)

// This file is how all content and all lists are read. It knows nothing of HTTP.

// smallBlob is the size in bytes up to which a blob is kept in memory like a manifest. It covers the configs of images,
// which every node pulls; opening the file would be half of the work.
const smallBlob = 16 << 10

// manifest is a manifest that a repository holds.
type manifest struct {
	storage.Descriptor
	digest    digest.Digest
	repo, ref string // as it was asked for
	stale     error  // not nil: why the upstream of the repository may have another one
}

// lookup resolves a tag or a digest to what repo holds. It is the one way from a name to a manifest: manifest is for
// what a client asked for, and lookup alone for what a list may leave out.
func (r *Registry) lookup(ctx context.Context, repo, ref string) (storage.Descriptor, bool, error) {
	return r.options.Index.Resolve(ctx, repo, ref)
}

// manifest finds the manifest that ref, a tag or a digest, names in repo. Errors: MANIFEST_UNKNOWN, also for one whose
// own bytes are known to be damaged. One with a damaged part is returned: a client may hold that part already.
func (r *Registry) manifest(ctx context.Context, repo, ref string) (manifest, error) {
	stale, err := r.refresh(ctx, repo, ref)
	if err != nil {
		return manifest{}, err
	}
	m, ok, err := r.lookup(ctx, repo, ref)
	if err != nil {
		return manifest{}, err
	}
	if !ok {
		return manifest{}, manifestUnknown(repo, ref)
	}
	d := m.Digest()
	if m.Damaged() == d {
		return manifest{}, manifestUnknown(repo, ref)
	}
	found := manifest{m, d, repo, ref, stale}
	if m.MediaType == "" {
		return r.withLongType(ctx, found)
	}
	return found, nil
}

// targets returns what a tag names and has named, the newest first. Errors: MANIFEST_UNKNOWN.
func (r *Registry) targets(ctx context.Context, repo, tag string) ([]storage.Target, error) {
	targets, err := r.options.Index.History(ctx, repo, tag)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, manifestUnknown(repo, tag)
	}
	return targets, err
}

// withLongType completes a manifest whose media type is too long for the Index, which only earlier versions accepted.
// It comes from the manifest's bytes: a type that long was recorded only if a push had no Content-Type.
func (r *Registry) withLongType(ctx context.Context, m manifest) (manifest, error) {
	body, err := r.manifestBytes(ctx, m)
	if err != nil {
		return manifest{}, err
	}
	c, err := decodeManifest(body)
	if err != nil {
		return manifest{}, fmt.Errorf("the media type of manifest %s: %w", m.digest, err)
	}
	m.MediaType = c.MediaType
	return m, nil
}

// manifestBytes returns a manifest's content. Errors: MANIFEST_UNKNOWN if its bytes are missing or damaged.
func (r *Registry) manifestBytes(ctx context.Context, m manifest) ([]byte, error) {
	body, err := r.content(ctx, m.digest)
	if isLost(err) {
		return nil, r.lost(ctx, m.digest, manifestUnknown(m.repo, m.ref))
	}
	return body, err
}

// blob is a blob that a repository holds.
type blob struct {
	repo   string
	digest digest.Digest
	size   int64
	source mirror.Source // not nil: the bytes are on their way from an upstream
}

// close ends the reading of what is on its way.
func (b *blob) close() {
	if b.source != nil {
		_ = b.source.Close() // the download ends by itself
	}
}

// sizeOf returns the size of a blob that a repo holds.
func (r *Registry) sizeOf(ctx context.Context, repo string, d digest.Digest) (size int64, held bool, err error) {
	return r.options.Index.Blob(ctx, repo, d)
}

// blob finds a blob in repo. Errors: BLOB_UNKNOWN, also for one whose bytes are known to be damaged.
func (r *Registry) blob(ctx context.Context, repo string, d digest.Digest) (blob, error) {
	size, ok, err := r.sizeOf(ctx, repo, d)
	if err != nil {
		return blob{}, err
	}
	if !ok {
		return blob{}, blobUnknown(repo, d)
	}
	return blob{repo: repo, digest: d, size: size}, nil
}

// openBlob opens a part of a blob; the caller closes it. After that only the copying can fail. Errors: BLOB_UNKNOWN if
// the bytes are missing or, for a small blob, damaged.
func (r *Registry) openBlob(ctx context.Context, b blob, part span) (*blobPart, error) {
	if b.source != nil {
		_, err := b.source.Seek(part.start, io.SeekStart)
		return &blobPart{file: b.source, length: part.length}, err
	}
	if b.size <= smallBlob {
		return r.smallPart(ctx, b, part)
	}
	f, err := r.options.Blobs.Open(ctx, b.digest)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, r.lost(ctx, b.digest, blobUnknown(b.repo, b.digest))
	}
	if err != nil {
		return nil, err
	}
	// A file says its size at once. Otherwise a pull of a file that is cut would begin as a success, each time again.
	if file, ok := f.(interface{ Stat() (fs.FileInfo, error) }); ok {
		if info, err := file.Stat(); err == nil && info.Size() != b.size {
			return nil, errors.Join(r.lost(ctx, b.digest, blobUnknown(b.repo, b.digest)), f.Close())
		}
	}
	if part.start > 0 {
		_, err := f.Seek(part.start, io.SeekStart)
		if errors.Is(err, storage.ErrNotFound) { // an engine behind a network asks for the bytes again
			return nil, errors.Join(r.lost(ctx, b.digest, blobUnknown(b.repo, b.digest)), f.Close())
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return &blobPart{file: f, length: part.length}, nil
}

// smallPart is openBlob for a blob that fits into memory.
func (r *Registry) smallPart(ctx context.Context, b blob, part span) (*blobPart, error) {
	body, err := r.content(ctx, b.digest)
	if isLost(err) {
		return nil, r.lost(ctx, b.digest, blobUnknown(b.repo, b.digest))
	}
	if err == nil && int64(len(body)) != b.size { // part was computed from the recorded size
		err = fmt.Errorf("blob %s has %d bytes, but %d are recorded", b.digest, len(body), b.size)
	}
	if err != nil {
		return nil, err
	}
	return &blobPart{memory: body[part.start : part.start+part.length]}, nil
}

// blobPart is an open part of a blob: bytes in memory, or a file at the part's first byte.
type blobPart struct {
	memory []byte
	file   io.ReadSeekCloser
	length int64 // of the part, if it is in file
}

// WriteTo implements io.WriterTo. It fails if the file ends early.
func (p *blobPart) WriteTo(w io.Writer) (int64, error) {
	if p.file == nil {
		n, err := w.Write(p.memory)
		return int64(n), err
	}
	return io.CopyN(w, p.file, p.length) // of an *os.File: the kernel copies it to a plain TCP connection (sendfile)
}

// writePart writes a part of what is open, which is a whole blob. It fails if the file ends early.
func (p *blobPart) writePart(w io.Writer, part span) error {
	if p.file == nil {
		_, err := w.Write(p.memory[part.start : part.start+part.length])
		return err
	}
	if _, err := p.file.Seek(part.start, io.SeekStart); err != nil {
		return err
	}
	_, err := io.CopyN(w, p.file, part.length)
	return err
}

// Close closes the file, if there is one.
func (p *blobPart) Close() error {
	if p.file == nil {
		return nil
	}
	return p.file.Close()
}

// tags returns up to n tags of repo after the given one, with those of its upstream unless held is set. stale says why
// there may be others. Errors: NAME_UNKNOWN; as fetchBlob, if there is nothing here.
func (r *Registry) tags(ctx context.Context, repo, after string, n int, held bool) (tags []string, stale, err error) {
	tags, found, err := r.options.Index.Tags(ctx, repo, after, n)
	if err != nil {
		return nil, nil, err
	}
	if !held {
		var there []string
		if there, stale, err = r.upstreamTags(ctx, repo, found); err != nil {
			return nil, nil, err
		}
		from, exact := slices.BinarySearch(there, after)
		if exact {
			from++
		}
		found = found || there != nil
		// Both are sorted, so the first n of both together are among the first n of each.
		if more := there[from:min(len(there), from+n)]; len(more) > 0 {
			tags = append(tags, more...)
			slices.Sort(tags)
			tags = slices.Compact(tags)
			tags = tags[:min(len(tags), n)]
		}
	}
	if !found {
		return nil, nil, nameUnknown(repo)
	}
	return tags, stale, nil
}

// exists reports whether the repo is here.
func (r *Registry) exists(ctx context.Context, repo string) (bool, error) {
	_, found, err := r.options.Index.Tags(ctx, repo, "", 1)
	return found, err
}

// repos returns up to n repositories after the given one that are readable; a nil readable means all. It searches until
// it has n, so that only the last page is not full, however many repositories between are not readable. If more would
// have to be asked about than one request may (auth.ErrSpent), rest is the last one that was looked at, which may not
// be readable; it is empty otherwise. Errors: auth.ErrUnavailable.
func (r *Registry) repos(ctx context.Context, after string, n int, readable func(string) (bool, error)) (
	list []string, rest string, err error) {
	if readable == nil {
		list, err = r.options.Index.Repos(ctx, after, n)
		return list, "", err
	}
	list = []string{} // not nil, which JSON would show as null
	for {
		const piece = 1000 // at a time, since the Index is locked meanwhile
		next, err := r.options.Index.Repos(ctx, after, piece)
		if err != nil {
			return nil, "", err
		}
		for _, repo := range next {
			ok, err := readable(repo)
			switch {
			case errors.Is(err, auth.ErrSpent):
				return list, after, nil
			case err != nil:
				return nil, "", err
			case ok:
				list = append(list, repo)
			}
			if after = repo; len(list) >= n {
				return list, "", nil
			}
		}
		if len(next) < piece {
			return list, "", nil
		}
		if err := ctx.Err(); err != nil { // the client has gone
			return nil, "", err
		}
	}
}

// referrersFound are manifests in the order of their digests. more reports whether others follow.
type referrersFound struct {
	list []storage.Descriptor
	more bool

	omitted int   // manifests that are left out of the list, because they cannot be read
	why     error // of the first of them
}

// referrersOf returns the manifests of the repo whose subject is d, after the given one, at most maxListed.
func (r *Registry) referrersOf(ctx context.Context, repo string, d, after digest.Digest) (referrersFound, error) {
	found, err := r.options.Index.Referrers(ctx, repo, d, after, maxListed+1)
	if err != nil {
		return referrersFound{}, err
	}
	all := referrersFound{list: found}
	if err := r.addTagged(ctx, repo, d, after, &all); err != nil {
		return referrersFound{}, err
	}
	// The Index's list is asked for one more than is listed. So what addTagged has added can only come after manifests
	// that were not asked for if it is cut off here.
	if len(all.list) > maxListed {
		all.list, all.more = all.list[:maxListed], true
	}
	return all, nil
}

// content returns the bytes of a manifest or a small blob, from memory if they were read lately. They are verified when
// they are read from the disk: otherwise the cache would go on serving damaged bytes after the disk was repaired.
// Errors: ErrNotFound, ErrDigest for damaged bytes.
func (r *Registry) content(ctx context.Context, d digest.Digest) ([]byte, error) {
	if body, ok := r.contents.get(d); ok {
		return body, nil
	}
	body, err := ReadSmall(ctx, r.options.Blobs, d)
	if err == nil {
		r.contents.put(d, body, len(body))
	}
	return body, err
}

// ReadSmall reads the bytes of a manifest or a small blob, and verifies them. Errors: as content.
func ReadSmall(ctx context.Context, blobs storage.Blobs, d digest.Digest) ([]byte, error) {
	f, err := blobs.Open(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("content %s: %w", d, err)
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("content %s: %w", d, err)
	}
	if d.Algorithm().FromBytes(body) != d {
		return nil, fmt.Errorf("content %s: the stored bytes are damaged: %w", d, storage.ErrDigest)
	}
	return body, nil
}

// isLost reports whether err says that recorded bytes are missing or damaged.
func isLost(err error) bool {
	return errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrDigest)
}

// cutShort notes why an answer with a blob ends early. If that is because the stored bytes end, or cannot be read any
// more, Check finds out, and records it: otherwise each pull would be cut short, and a push of the blob would be
// answered as if its bytes were there, until the next scrub.
func (r *Registry) cutShort(ctx context.Context, b blob, err error) {
	r.annotate(ctx, "err", upstream.Explained(err).Error())
	lost, ok := r.options.Blobs.(interface{ Lost(error) bool })
	if b.source == nil && (errors.Is(err, io.EOF) || isLost(err) || ok && lost.Lost(err)) {
		if err := r.options.Check(ctx, b.digest); err != nil {
			r.annotate(ctx, "check", err.Error())
		}
	}
}

// lost returns unknown for content whose bytes are not there although the repository holds it. Either a deletion came
// in between, or the bytes are lost: Check finds out, and records it. Pushing the content again helps in both cases.
func (r *Registry) lost(ctx context.Context, d digest.Digest, unknown *ocierror.Error) error {
	unknown.Cause = r.options.Check(ctx, d) // for the log: the client's answer does not depend on it
	return unknown
}
