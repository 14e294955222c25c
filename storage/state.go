package storage

import (
	"bytes"
	"hash/maphash"
	"slices"
	"strings"
)

// state is what the journal's facts add up to. It has no lock of its own: the Index's guards it.
//
// Why slabs and numbers and not pointers and maps: there are millions of small records. So they take half the memory,
// and the garbage collector has next to nothing to look at. What leaves the lock is a copy.
//
// A digest is a content, once for all repos. What a repo has to do with it is a hold, found by the digest in the
// repo's own table. A hold that is a manifest has that apart, since most are not.
type state struct {
	revision Revision
	synced   bool // the full state is in
	repos    map[string]*repo
	catalog  ordered           // the repos that have a manifest
	types    map[string]string // media types, once each
	stats    Stats

	seed      maphash.Seed // digests and tags are the clients' choice: their places must not be
	contents  slab[content]
	byDigest  table[content]    // every digest that is named anywhere
	tails     map[id]sha512Tail // of contents
	holds     slab[hold]
	manifests slab[manifest]
	tags      slab[tag]

	condemned   map[key]struct{}
	quarantined map[key]Damage
}

// content is a digest that facts name, shared by all of them.
//
// Why two counts: a manifest may refer to what is not in the registry, such as a foreign layer. Whether bytes are to be
// here is asked of present; who still needs them, of referenced.
type content struct {
	sum        [shortKey - 1]byte // of sha512 the first half
	size       int64              // bytes; 0 until it is present for the first time
	present    int32              // repos in which it is linked as a blob or recorded as a manifest
	referenced int32              // repos in which a manifest refers to it
	names      int32              // subjects that point here
}

// sha512Tail is the half of a sum that content.sum has no room for. Who has none is a sha256.
type sha512Tail [maxKey - shortKey]byte

// repo is one repository.
type repo struct {
	name      string
	revision  Revision
	holds     table[hold]
	tags      table[tag]
	order     ordered // the names of tags
	manifests int
	referrers map[id][]id // of contents: the holds whose subject it is, in order of digest; nil until there are any
	bytes     int64       // of what it holds, each content once; see Index.Bytes
}

// hold is what a repo has to do with a content: a link to it as a blob, a manifest, references from its manifests, or
// several of these.
type hold struct {
	content  id
	manifest id     // 0: not a manifest here
	refs     int32  // manifests of this repo that consist of it
	since    moment // when it was linked
	linked   bool   // a blob of this repo
}

type manifest struct {
	mediaType string
	refs      []id   // holds
	time      moment // when it was pushed
	subject   id     // a content
	tags      id     // the first of those that name it
}

// present reports whether the repo holds the content itself.
func (h *hold) present() bool { return h.linked || h.manifest != 0 }

// tag is a name of a manifest. Those of one manifest are a list.
type tag struct {
	name        string
	time        moment // since when it names this one
	hold        id
	prev, after id
}

// moment is a time in Unix seconds, from 1970 to 2106.
type moment uint32

func momentOf(unix int64) moment { return moment(min(max(unix, 0), 1<<32-1)) }

func newState() *state {
	s := &state{repos: map[string]*repo{}, types: map[string]string{}, seed: maphash.MakeSeed(), tails: map[id]sha512Tail{},
		condemned: map[key]struct{}{}, quarantined: map[key]Damage{}}
	s.byDigest.slab = &s.contents
	return s
}

// apply brings the state up to an update. An error leaves it useless: the journal contradicts itself.
func (s *state) apply(u Update) error {
	for _, b := range u.Batches {
		r := s.repos[b.Repo]
		if r == nil {
			r = &repo{name: strings.Clone(b.Repo), holds: table[hold]{slab: &s.holds}, tags: table[tag]{slab: &s.tags}}
			s.repos[r.name] = r
		}
		for _, f := range b.Facts {
			if err := s.applyFact(r, f); err != nil {
				return damaged(b.Repo, f, err)
			}
		}
		if r.revision = u.Revision; !s.synced {
			r.revision = b.Base // in the full state: the repo's last revision
		}
		if r.holds.len == 0 && (b.Repo != Store || len(s.condemned)+len(s.quarantined) == 0) {
			delete(s.repos, b.Repo)
		}
	}
	s.revision = max(s.revision, u.Revision)
	s.synced = s.synced || u.Synced
	return nil
}

func (s *state) applyFact(r *repo, f Fact) error {
	if f.Kind != KindTag && !key(f.Name).valid() {
		return errFact
	}
	if r.name == Store {
		return s.applyStoreFact(f)
	}
	if f.Kind == KindTag {
		return s.applyTag(r, f.Name, f.Value)
	}
	var buf [maxKey]byte
	k := append(buf[:0], f.Name...)
	switch {
	case f.Kind == KindLink && f.Value != nil:
		return s.link(r, k, f.Value)
	case f.Kind == KindLink:
		s.unlink(r, k)
	case f.Kind == KindManifest && f.Value != nil:
		return s.putManifest(r, k, f.Value)
	case f.Kind == KindManifest:
		return s.deleteManifest(r, k)
	default: // a kind of a later version, which a newer Format would have announced
		return errFact
	}
	return nil
}

// applyStoreFact takes in a fact about content itself.
func (s *state) applyStoreFact(f Fact) (err error) {
	k := key(strings.Clone(f.Name))
	switch {
	case f.Kind == KindCondemned && f.Value != nil:
		s.condemned[k] = struct{}{}
	case f.Kind == KindCondemned:
		delete(s.condemned, k)
	case f.Kind == KindQuarantined && f.Value != nil:
		s.quarantined[k], err = parseQuarantined(f.Value)
	case f.Kind == KindQuarantined:
		delete(s.quarantined, k)
	default:
		err = errFact
	}
	return err
}

func (s *state) link(r *repo, k, v []byte) error {
	size, unix, err := parseLink(v)
	if err != nil {
		return err
	}
	h := s.holds.at(s.hold(r, k))
	if !h.linked {
		s.stats.Links++
	}
	s.withdraw(r, h)
	h.since, h.linked = momentOf(unix), true
	s.contents.at(h.content).size = size
	s.enter(r, h)
	return nil
}

// withdraw takes a hold out of the counts that depend on what it is, and enter puts it back: before and after a change
// of a hold, so that the counts are right whatever changed.
func (s *state) withdraw(r *repo, h *hold) { s.count(r, h, -1) }

func (s *state) enter(r *repo, h *hold) { s.count(r, h, 1) }

func (s *state) count(r *repo, h *hold, sign int32) {
	if h.present() {
		c := s.contents.at(h.content)
		c.present += sign
		r.bytes += int64(sign) * c.size
	}
}

// refer counts a reference of a manifest of r to k.
func (s *state) refer(r *repo, k []byte) id {
	i := s.hold(r, k)
	h := s.holds.at(i)
	if h.refs++; h.refs == 1 {
		s.contents.at(h.content).referenced++
	}
	return i
}

// unrefer undoes refer.
func (s *state) unrefer(r *repo, i id) {
	h := s.holds.at(i)
	if h.refs--; h.refs == 0 {
		s.contents.at(h.content).referenced--
	}
	s.release(r, i)
}

func (s *state) unlink(r *repo, k []byte) {
	i := s.find(r, k)
	if i == 0 {
		return
	}
	if h := s.holds.at(i); h.linked {
		s.withdraw(r, h)
		h.linked = false
		s.enter(r, h)
		s.stats.Links--
		s.release(r, i)
	}
}

func (s *state) putManifest(r *repo, k, v []byte) error {
	f, err := parseManifest(v)
	if err != nil {
		return err
	}
	i := s.hold(r, k)
	m := manifest{mediaType: s.mediaType(f.mediaType), time: momentOf(f.time), refs: make([]id, 0, f.count)}
	if err := f.eachRef(func(k []byte) {
		m.refs = append(m.refs, s.refer(r, k))
	}); err != nil {
		return err
	}
	h := s.holds.at(i)
	if h.manifest != 0 { // pushed again, perhaps under another media type
		m.tags = s.manifests.at(h.manifest).tags
		s.dropManifest(r, i)
	}
	if len(f.subject) > 0 {
		m.subject = s.intern(f.subject)
		s.addReferrer(r, m.subject, i)
	}
	s.withdraw(r, h)
	s.contents.at(h.content).size = f.size
	h.manifest = s.manifests.add(m)
	s.enter(r, h)
	s.stats.Manifests++
	if r.manifests++; r.manifests == 1 {
		s.catalog.insert(r.name)
	}
	return nil
}

func (s *state) deleteManifest(r *repo, k []byte) error {
	m := s.manifest(r, k)
	if m == 0 {
		return nil
	}
	if s.manifests.at(s.holds.at(m).manifest).tags != 0 {
		return errFact
	}
	s.dropManifest(r, m)
	s.release(r, m)
	return nil
}

// dropManifest undoes putManifest, but leaves the hold.
func (s *state) dropManifest(r *repo, i id) {
	h := s.holds.at(i)
	m := s.manifests.at(h.manifest)
	for _, ref := range m.refs {
		s.unrefer(r, ref)
	}
	if m.subject != 0 {
		s.removeReferrer(r, m.subject, i)
	}
	s.manifests.remove(h.manifest)
	s.withdraw(r, h) // not sooner: what is above must not find the content unused and forget it
	h.manifest = 0
	s.enter(r, h)
	s.stats.Manifests--
	if r.manifests--; r.manifests == 0 {
		s.catalog.remove(r.name)
	}
}

// addReferrer notes that the subject of a manifest is a content.
func (s *state) addReferrer(r *repo, subject, manifest id) {
	if r.referrers == nil {
		r.referrers = map[id][]id{}
	}
	s.contents.at(subject).names++
	at := s.referrer(r, subject, manifest)
	r.referrers[subject] = slices.Insert(r.referrers[subject], at, manifest)
}

func (s *state) removeReferrer(r *repo, subject, manifest id) {
	at := s.referrer(r, subject, manifest)
	if list := slices.Delete(r.referrers[subject], at, at+1); len(list) > 0 {
		r.referrers[subject] = list
	} else {
		delete(r.referrers, subject)
	}
	s.contents.at(subject).names--
	s.forget(subject)
}

// referrer tells where among the referrers of a subject a manifest is, or would go.
func (s *state) referrer(r *repo, subject, manifest id) int {
	want := s.keyOf(s.holds.at(manifest).content)
	at, _ := slices.BinarySearchFunc(r.referrers[subject], want, func(i id, want sum) int {
		have := s.keyOf(s.holds.at(i).content)
		return bytes.Compare(have[:], want[:])
	})
	return at
}

func (s *state) applyTag(r *repo, name string, v []byte) error {
	if v == nil {
		s.untag(r, name)
		return nil
	}
	k, unix, err := parseTag(v)
	if err != nil {
		return err
	}
	h := s.manifest(r, k)
	if h == 0 {
		return errFact
	}
	i := s.findTag(r, name)
	if i == 0 {
		i = s.tags.add(tag{name: strings.Clone(name)})
		r.tags.add(i, s.hashTag(name))
		r.order.insert(s.tags.at(i).name)
		s.stats.Tags++
	} else {
		s.detach(i)
	}
	t, m := s.tags.at(i), s.manifests.at(s.holds.at(h).manifest)
	t.hold, t.time, t.prev, t.after = h, momentOf(unix), 0, m.tags
	if m.tags != 0 {
		s.tags.at(m.tags).prev = i
	}
	m.tags = i
	return nil
}

func (s *state) untag(r *repo, name string) {
	if i := s.findTag(r, name); i != 0 {
		s.detach(i)
		r.tags.remove(i)
		r.order.remove(name)
		s.tags.remove(i)
		s.stats.Tags--
	}
}

// detach takes a tag off its manifest's list.
func (s *state) detach(i id) {
	t := s.tags.at(i)
	if t.prev != 0 {
		s.tags.at(t.prev).after = t.after
	} else {
		s.manifests.at(s.holds.at(t.hold).manifest).tags = t.after
	}
	if t.after != 0 {
		s.tags.at(t.after).prev = t.prev
	}
}

// tagsOf calls f for every tag that names a manifest.
func (s *state) tagsOf(m *manifest, f func(*tag)) {
	for i := m.tags; i != 0; {
		t := s.tags.at(i)
		f(t)
		i = t.after
	}
}

// hold returns what r has to do with k, making it up if that is nothing yet.
func (s *state) hold(r *repo, k []byte) id {
	i := s.find(r, k)
	if i == 0 {
		c := s.intern(k)
		i = s.holds.add(hold{content: c})
		r.holds.add(i, s.hash(k))
	}
	return i
}

// release drops a hold that has become nothing.
func (s *state) release(r *repo, i id) {
	h := s.holds.at(i)
	if h.present() || h.refs > 0 {
		return
	}
	c := h.content
	r.holds.remove(i)
	s.holds.remove(i)
	s.forget(c)
}

func (s *state) intern(k []byte) id {
	c := s.lookup(k)
	if c == 0 {
		c = s.contents.add(content{sum: [shortKey - 1]byte(k[1:])})
		if len(k) > shortKey {
			s.tails[c] = sha512Tail(k[shortKey:])
		}
		s.byDigest.add(c, s.hash(k))
	}
	return c
}

// forget drops a content that nothing points to any more.
func (s *state) forget(i id) {
	if c := s.contents.at(i); c.present == 0 && c.referenced == 0 && c.names == 0 {
		s.byDigest.remove(i)
		s.contents.remove(i)
		delete(s.tails, i)
	}
}

// mediaType interns a media type. The table is bounded, since anybody who may push can invent types.
func (s *state) mediaType(b []byte) string {
	const bound = 1024
	t, ok := s.types[string(b)]
	if !ok {
		t = string(b)
		if len(s.types) < bound {
			s.types[t] = t
		}
	}
	return t
}

func (s *state) hash(k []byte) uint32 { return uint32(maphash.Bytes(s.seed, k)) }

func (s *state) hashTag(name string) uint32 { return uint32(maphash.String(s.seed, name)) }

// is tells whether k is a content's digest.
func (s *state) is(i id, k []byte) bool {
	if string(s.contents.at(i).sum[:]) != string(k[1:shortKey]) {
		return false
	}
	tail, long := s.tails[i]
	return !long && len(k) == shortKey || long && string(tail[:]) == string(k[shortKey:])
}

// keyOf returns a content's digest.
func (s *state) keyOf(i id) (k sum) {
	k[0] = algSHA256
	copy(k[1:], s.contents.at(i).sum[:])
	if tail, long := s.tails[i]; long {
		k[0] = algSHA512
		copy(k[shortKey:], tail[:])
	}
	return k
}

// lookup finds a content; k is nil for a malformed digest.
func (s *state) lookup(k []byte) id {
	if len(k) == 0 {
		return 0
	}
	hash := s.hash(k)
	for i := s.byDigest.first(hash); i != 0; i = s.byDigest.next(i, hash) {
		if s.is(i, k) {
			return i
		}
	}
	return 0
}

// find finds a repo's hold, as lookup does a content. It allocates nothing, nor do the others that find something.
func (s *state) find(r *repo, k []byte) id {
	if len(k) == 0 {
		return 0
	}
	hash := s.hash(k)
	for i := r.holds.first(hash); i != 0; i = r.holds.next(i, hash) {
		if s.is(s.holds.at(i).content, k) {
			return i
		}
	}
	return 0
}

// manifest finds a hold that is a manifest.
func (s *state) manifest(r *repo, k []byte) id {
	if i := s.find(r, k); i != 0 && s.holds.at(i).manifest != 0 {
		return i
	}
	return 0
}

func (s *state) findTag(r *repo, name string) id {
	hash := s.hashTag(name)
	for i := r.tags.first(hash); i != 0; i = r.tags.next(i, hash) {
		if s.tags.at(i).name == name {
			return i
		}
	}
	return 0
}

// present returns in how many repos k is a blob or a manifest. If there is one, the bytes of k must be there.
func (s *state) present(k key) int32 {
	var buf [maxKey]byte
	if i := s.lookup(append(buf[:0], k...)); i != 0 {
		return s.contents.at(i).present
	}
	return 0
}

// manifestOf finds the manifest that ref, a tag or a digest, names: its hold, or 0.
func (s *state) manifestOf(name, ref string) id {
	r := s.repos[name]
	if r == nil {
		return 0
	}
	if i := s.findTag(r, ref); i != 0 {
		return s.tags.at(i).hold
	}
	var buf [maxKey]byte
	return s.manifest(r, appendKey(buf[:0], ref))
}

// blobOf finds the blob that the repo holds under d: its content, or 0.
func (s *state) blobOf(name, d string) id {
	r := s.repos[name]
	if r == nil {
		return 0
	}
	var buf [maxKey]byte
	if i := s.find(r, appendKey(buf[:0], d)); i != 0 && s.holds.at(i).linked {
		return s.holds.at(i).content
	}
	return 0
}

// descriptor describes a manifest. It allocates nothing unless something is quarantined.
func (s *state) descriptor(i id) Descriptor {
	h := s.holds.at(i)
	d := Descriptor{MediaType: s.manifests.at(h.manifest).mediaType, Size: s.contents.at(h.content).size, sum: s.keyOf(h.content)}
	if len(s.quarantined) > 0 {
		d.damaged = s.damagedPart(i, map[id]bool{})
	}
	return d
}

// isQuarantined reports whether k is present and its bytes were found damaged or missing. A mark alone does not count:
// it stays until the next collection or push when the last repo lets go of k, and older versions set it also on what
// manifests only refer to.
func (s *state) isQuarantined(k key) bool {
	if len(s.quarantined) == 0 {
		return false
	}
	_, marked := s.quarantined[k]
	return marked && s.present(k) > 0
}

// damagedPart finds something quarantined among what a manifest consists of, itself first.
func (s *state) damagedPart(i id, seen map[id]bool) key {
	h := s.holds.at(i)
	// Of what this repo only refers to, such as a foreign layer, the bytes come from elsewhere.
	if k := s.keyOf(h.content).key(); h.present() && s.isQuarantined(k) {
		return k
	}
	if seen[i] || h.manifest == 0 {
		return ""
	}
	seen[i] = true
	for _, ref := range s.manifests.at(h.manifest).refs {
		if k := s.damagedPart(ref, seen); k != "" {
			return k
		}
	}
	return ""
}

// refersTo finds a manifest of the repo that consists of k among others, and that skip does not name.
func (s *state) refersTo(r *repo, k key, skip func(key) bool) (key, bool) {
	var buf [maxKey]byte
	target := s.find(r, append(buf[:0], k...))
	if target == 0 || s.holds.at(target).refs == 0 {
		return "", false
	}
	for i := range r.holds.all() {
		h := s.holds.at(i)
		if h.manifest == 0 || !slices.Contains(s.manifests.at(h.manifest).refs, target) {
			continue
		}
		if k := s.keyOf(h.content).key(); !skip(k) {
			return k, true
		}
	}
	return "", false
}
