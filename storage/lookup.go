package storage

import (
	"hash/maphash"
	"slices"

	"github.com/opencontainers/go-digest"

	"trow/storage/internal/slab"
)

// The look-ups of a state. Those that find something allocate nothing.

// hash returns the hash of a digest, of all its bytes: a manifest may refer to digests without content, and a client
// can make those up so that any part of them is the same.
func (s *state) hash(k []byte) uint32 { return uint32(maphash.Bytes(s.seed, k)) }

func (s *state) hashTag(name string) uint32 { return uint32(maphash.String(s.seed, name)) }

// equalDigest reports whether k is the digest of a content.
func (s *state) equalDigest(i slab.ID, k []byte) bool {
	if string(s.contents.At(i).sum[:]) != string(k[1:shortKey]) {
		return false
	}
	tail, long := s.tails[i]
	return !long && len(k) == shortKey || long && string(tail[:]) == string(k[shortKey:])
}

// keyOf returns the digest of a content.
func (s *state) keyOf(i slab.ID) (k sum) {
	k[0] = algSHA256
	copy(k[1:], s.contents.At(i).sum[:])
	if tail, long := s.tails[i]; long {
		k[0] = algSHA512
		copy(k[shortKey:], tail[:])
	}
	return k
}

func (s *state) digest(content slab.ID) digest.Digest { return s.keyOf(content).digest() }

// lookup returns the content with the digest k, or 0. k is empty for a malformed digest.
func (s *state) lookup(k []byte) slab.ID {
	if len(k) == 0 {
		return 0
	}
	return s.byDigest.Find(s.hash(k), func(i slab.ID) bool { return s.equalDigest(i, k) })
}

// find returns a repo's entry for the digest k, or 0. k is empty for a malformed digest.
func (s *state) find(r *repo, k []byte) slab.ID {
	if r == nil || len(k) == 0 {
		return 0
	}
	return s.findHash(r, k, s.hash(k))
}

// findHash is find for a caller that looks k up in many repos.
func (s *state) findHash(r *repo, k []byte, hash uint32) slab.ID {
	return r.entries.Find(hash, func(i slab.ID) bool { return s.equalDigest(s.entries.At(i).content, k) })
}

// manifest returns a repo's entry for the digest k if it is a manifest, or 0.
func (s *state) manifest(r *repo, k []byte) slab.ID {
	if i := s.find(r, k); i != 0 && s.entries.At(i).manifest != 0 {
		return i
	}
	return 0
}

func (s *state) findTag(r *repo, name string) slab.ID {
	return r.tags.Find(s.hashTag(name), func(i slab.ID) bool { return s.tags.At(i).name == name })
}

// tagsOf calls f for every tag that names a manifest.
func (s *state) tagsOf(m *manifest, f func(*tag)) {
	for i := m.tags; i != 0; {
		t := s.tags.At(i)
		f(t)
		i = t.next
	}
}

// present returns in how many repos k is a blob or a manifest. If there is one, the bytes of k must be there.
func (s *state) present(k key) int32 {
	var buf [maxKey]byte
	if i := s.lookup(append(buf[:0], k...)); i != 0 {
		return s.contents.At(i).present
	}
	return 0
}

// manifestOf returns the entry of the manifest that ref, a tag or a digest, names in a repo, or 0.
func (s *state) manifestOf(name, ref string) slab.ID {
	r := s.repos[name]
	if r == nil {
		return 0
	}
	if i := s.findTag(r, ref); i != 0 {
		return s.tags.At(i).entry
	}
	var buf [maxKey]byte
	return s.manifest(r, appendKey(buf[:0], ref))
}

// blobOf returns the content of the blob d of a repo, or 0.
func (s *state) blobOf(name, d string) slab.ID {
	r := s.repos[name]
	if r == nil {
		return 0
	}
	var buf [maxKey]byte
	if i := s.find(r, appendKey(buf[:0], d)); i != 0 && s.entries.At(i).linked {
		return s.entries.At(i).content
	}
	return 0
}

// descriptor describes the manifest of an entry. It allocates nothing unless something is quarantined.
func (s *state) descriptor(i slab.ID) Descriptor {
	e := s.entries.At(i)
	d := Descriptor{MediaType: s.manifests.At(e.manifest).mediaType, Size: s.contents.At(e.content).size,
		sum: s.keyOf(e.content)}
	if len(s.quarantined) > 0 {
		d.damaged = s.damagedPart(i, map[slab.ID]bool{})
	}
	return d
}

// isQuarantined reports whether k is present and its bytes were found damaged or missing. The mark alone does not
// count: it stays until the next collection or push when the last repo drops k, and earlier versions also set it on
// content that manifests only refer to.
func (s *state) isQuarantined(k key) bool {
	if len(s.quarantined) == 0 {
		return false
	}
	_, marked := s.quarantined[k]
	return marked && s.present(k) > 0
}

// damagedPart returns something quarantined among what a manifest consists of, itself first, or "". seen keeps a ring
// of manifests from becoming an endless loop.
func (s *state) damagedPart(i slab.ID, seen map[slab.ID]bool) key {
	e := s.entries.At(i)
	// The bytes of what this repo only refers to, such as a foreign layer, come from elsewhere.
	if k := s.keyOf(e.content).key(); e.present() && s.isQuarantined(k) {
		return k
	}
	if seen[i] || e.manifest == 0 {
		return ""
	}
	seen[i] = true
	for _, ref := range s.manifests.At(e.manifest).refs {
		if k := s.damagedPart(ref, seen); k != "" {
			return k
		}
	}
	return ""
}

// refersTo returns a manifest of the repo that refers to k and that skip does not accept. It scans the whole repo, but
// only if something refers to k: a refusal pays for it, the common case does not. It lets others have the lock again
// and again. If the repo changes meanwhile, the answer may be wrong, as when another process commits while a Tx reads:
// then the commit is a conflict, or Index.unchanged reports it.
func (s *state) refersTo(x *Index, r *repo, k key, skip func(key) bool) (key, bool) {
	var buf [maxKey]byte
	target := s.find(r, append(buf[:0], k...))
	if target == 0 || s.entries.At(target).refs == 0 {
		return "", false
	}
	for i := range r.entries.Walk(yieldEvery, x.yield) {
		e := s.entries.At(i)
		if e.manifest == 0 || !slices.Contains(s.manifests.At(e.manifest).refs, target) {
			continue
		}
		if k := s.keyOf(e.content).key(); !skip(k) {
			return k, true
		}
	}
	return "", false
}

// facts returns how many facts about content a repo has: tags go with their manifests.
func (s *state) facts(name string) int {
	if name == storeRepo {
		return len(s.condemned) + len(s.quarantined) + len(s.places) + len(s.records)
	}
	if r := s.repos[name]; r != nil {
		return r.links + r.manifests + len(r.departed)
	}
	return 0
}

// has reports whether a fact is one of those that facts counts.
func (s *state) has(name string, f factKey) (yes bool) {
	switch r := s.repos[name]; f.kind {
	case kindCondemned:
		_, yes = s.condemned[key(f.name)]
	case kindQuarantined:
		_, yes = s.quarantined[key(f.name)]
	case kindPlace:
		yes = s.placed(s.lookup([]byte(f.name)))
	case kindRecord:
		_, yes = s.records[f.name]
	case KindDeparted:
		_, yes = s.departed(name, key(f.name))
	case KindLink:
		i := s.find(r, []byte(f.name))
		yes = i != 0 && s.entries.At(i).linked
	case KindManifest:
		yes = s.manifest(r, []byte(f.name)) != 0
	}
	return yes
}

func (s *state) bytes(repo string) int64 {
	if r := s.repos[repo]; r != nil {
		return r.bytes
	}
	return 0
}
