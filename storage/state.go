package storage

import (
	"bytes"
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"trow/storage/internal/slab"
)

// state is what the journal's facts add up to. It has no lock of its own: the Index's lock guards it.
//
// Why slabs and IDs instead of pointers and maps: there are millions of small records. This way they take half the
// memory, and the garbage collector has next to nothing to scan. IDs and pointers to records are valid only while the
// lock is held; what leaves the lock is a copy.
//
// A digest is one content for all repos. What a repo has to do with a content is an entry, found by the digest in the
// repo's own table. An entry that is a manifest keeps the manifest's fields in a record of its own, since most entries
// are blobs.
type state struct {
	revision     Revision
	loaded       Revision // of the full state
	synced       bool     // the full state has been loaded
	format       int      // with a shared journal, the newest one that this process knows; see unknown. 0: not shared
	repos        map[string]*repo
	ended        map[string]Revision // of repos without a fact that still have a revision
	waitingRepos int                 // how many of repos are waiting repos
	waiting      map[slab.ID][]*repo // by content: the waiting repos that link it; nil while empty
	catalog      ordered             // the repos that have a manifest
	types        map[string]string   // media types, each kept once
	stats        Stats
	memory       int64 // an estimate of the bytes that all of this takes; see limit.go

	seed      maphash.Seed // clients choose digests and tags; they must not choose their buckets
	contents  slab.Slab[content]
	byDigest  slab.Table[content]    // every digest that is named anywhere
	tails     map[slab.ID]sha512Tail // of contents
	halves    map[half]manifestsOf   // by the first half of their sha512
	entries   slab.Slab[entry]
	manifests slab.Slab[manifest]
	tags      slab.Slab[tag]

	condemned   map[key]string // with the value of the mark
	quarantined map[key]Damage
	places      map[slab.ID]place // of contents
	records     map[string][]byte
	reserved    map[string]reservation // by process; see noteReserved
	replicas    map[string]replica     // by name; nil while empty
}

// content is a digest that facts name, shared by all of them.
//
// Why two counts: a manifest may refer to what is not in the registry, such as a foreign layer. present answers whether
// the bytes must be here; referenced answers who still needs them.
type content struct {
	sum        half  // of a sha512, the first one
	size       int64 // bytes; 0 until the content is present for the first time
	present    int32 // repos in which it is linked as a blob or recorded as a manifest
	referenced int32 // repos in which a manifest refers to it
	subjects   int32 // manifests whose subject it is
}

// half is a sha256, or half of a sha512.
type half [shortKey - 1]byte

// manifestsOf is a content, and how many repos have it as a manifest.
type manifestsOf struct {
	content   slab.ID
	manifests int32
}

// sha512Tail is the second half of a sha512, for which content.sum has no room. A content without one is a sha256.
type sha512Tail [maxKey - shortKey]byte

// repo is one repository.
type repo struct {
	name      string
	revision  Revision // that a batch compares
	changed   Revision // of the last change since the full state
	entries   slab.Table[entry]
	tags      slab.Table[tag]
	order     ordered // the names of tags
	links     int
	manifests int
	departed  map[slab.ID]departed  // by manifest, a content; nil while empty
	kept      map[slab.ID]int32     // entries: how many of departed refer to each
	referrers map[slab.ID][]slab.ID // by subject, a content: the entries that refer to it, by digest; nil while empty
	waiting   bool                  // see waitingPrefix
	bytes     int64                 // of what is present, each content once; see Index.Bytes
	// no tag of the repo has, or had since the start, a greater order; see HeldTag.Order
	newest int64
}

// entry is what a repo has to do with a content: it is a blob, a manifest, a part of manifests, or several of these.
type entry struct {
	content  slab.ID
	manifest slab.ID // 0: not a manifest in this repo
	refs     int32   // manifests of this repo that refer to it
	since    moment  // when it was linked
	linked   bool    // a blob of this repo
	cached   bool    // with linked: see Tx.LinkCached
}

// present reports whether the repo holds the content itself.
func (e *entry) present() bool { return e.linked || e.manifest != 0 }

type manifest struct {
	mediaType string
	refs      []slab.ID // entries
	time      moment    // when it was pushed
	subject   slab.ID   // a content
	tags      slab.ID   // the first of the list of tags that name it
	cached    bool      // see Manifest.Cached
}

// tag is a name of a manifest. The tags of one manifest are a linked list.
type tag struct {
	name       string
	order      int64  // see HeldTag.Order
	time       moment // since when it names this manifest
	entry      slab.ID
	prev, next slab.ID
	targets    uint32 // how many it has had; 0 if its history is not recorded
}

// moment is a time in Unix seconds, from 1970 to 2106: half the size of an int64.
type moment uint32

func momentOf(unix int64) moment { return moment(min(max(unix, 0), 1<<32-1)) }

// nanos returns the moment in Unix nanoseconds.
func (m moment) nanos() int64 { return int64(m) * int64(time.Second) }

func newState() *state {
	s := &state{repos: map[string]*repo{}, ended: map[string]Revision{}, types: map[string]string{},
		seed: maphash.MakeSeed(), tails: map[slab.ID]sha512Tail{}, halves: map[half]manifestsOf{},
		condemned: map[key]string{}, quarantined: map[key]Damage{},
		places: map[slab.ID]place{}, records: map[string][]byte{}}
	s.byDigest = slab.NewTable(&s.contents)
	return s
}

// apply brings the state up to an update. After an error the state is useless: the journal contradicts itself.
func (s *state) apply(u Update) error {
	for _, b := range u.Batches {
		r := s.repos[b.Repo]
		if r == nil {
			// A clone, because the journal may hand out parts of a larger string.
			r = &repo{name: strings.Clone(b.Repo), entries: slab.NewTable(&s.entries), tags: slab.NewTable(&s.tags),
				revision: s.ended[b.Repo]}
			delete(s.ended, b.Repo)
			if s.repos[r.name] = r; strings.HasPrefix(r.name, waitingPrefix) {
				r.waiting = true
				s.waitingRepos++
			}
			s.memory += memOfRepo(r.name)
		}
		for _, f := range b.Facts {
			if err := s.applyFact(r, f); err != nil {
				return damaged(b.Repo, f, err)
			}
		}
		switch r.changed = u.Revision; {
		case !s.synced:
			r.revision = b.Base
		case b.Ends && !b.Detached:
			r.revision = 0
		case !b.Detached:
			r.revision = u.Revision
		}
		// A repo exists as long as a fact names it. Facts of storeRepo have no entries.
		if r.entries.Len() == 0 && (b.Repo != storeRepo || s.facts(storeRepo) == 0) {
			if delete(s.repos, b.Repo); r.waiting {
				s.waitingRepos--
			}
			if r.revision != 0 {
				s.ended[r.name] = r.revision
			}
			s.memory -= memOfRepo(b.Repo)
		}
	}
	s.revision = max(s.revision, u.Revision)
	if s.synced = s.synced || u.Synced; u.Synced {
		s.loaded = u.Revision
	}
	return nil
}

func (s *state) applyFact(r *repo, f Fact) error {
	if f.Kind == KindHistory { // it is read from the journal when it is asked for
		return nil
	}
	if !f.Kind.known() {
		return s.unknown(f.Kind)
	}
	if f.Kind != KindTag && f.Kind != kindRecord && !key(f.Name).valid() {
		return errFact
	}
	if r.name == storeRepo {
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
	case f.Kind == KindDeparted:
		return s.depart(r, k, f.Value)
	default: // of a kind that only storeRepo has
		return errFact
	}
	return nil
}

// applyStoreFact applies a fact about content itself.
func (s *state) applyStoreFact(f Fact) (err error) {
	k := key(strings.Clone(f.Name))
	switch {
	case f.Kind == kindCondemned && f.Value != nil:
		s.condemned[k] = string(f.Value)
	case f.Kind == kindCondemned:
		delete(s.condemned, k)
	case f.Kind == kindQuarantined && f.Value != nil:
		s.quarantined[k], err = parseQuarantined(f.Value)
	case f.Kind == kindQuarantined:
		delete(s.quarantined, k)
	case f.Kind == kindPlace:
		err = s.setPlace([]byte(f.Name), f.Value)
	case f.Kind == kindRecord:
		s.setRecord(string(k), f.Value)
	default:
		err = errFact
	}
	return err
}

func (s *state) link(r *repo, k, v []byte) error {
	size, unix, cached, err := parseLink(v)
	if err != nil {
		return err
	}
	e := s.entries.At(s.addEntry(r, k))
	if !e.linked {
		s.countLink(r, 1)
	}
	s.uncount(r, e)
	e.since, e.linked, e.cached = momentOf(unix), true, cached
	s.contents.At(e.content).size = size
	s.count(r, e)
	return nil
}

func (s *state) unlink(r *repo, k []byte) {
	i := s.find(r, k)
	if i == 0 {
		return
	}
	if e := s.entries.At(i); e.linked {
		s.uncount(r, e)
		e.linked, e.cached = false, false
		s.count(r, e)
		s.countLink(r, -1)
		s.release(r, i)
	}
}

func (s *state) countLink(r *repo, n int) {
	if r.links += n; !r.waiting {
		s.stats.Links += n
	}
}

// uncount takes an entry out of the counts of what is present, and count puts it back. They enclose each change of an
// entry, so that the counts are right whatever the change is.
func (s *state) uncount(r *repo, e *entry) { s.addToCounts(r, e, -1) }

func (s *state) count(r *repo, e *entry) { s.addToCounts(r, e, 1) }

func (s *state) addToCounts(r *repo, e *entry, sign int32) {
	if e.present() {
		c := s.contents.At(e.content)
		if r.waiting {
			s.countWaiting(r, e.content, sign)
		} else {
			c.present += sign
		}
		r.bytes += int64(sign) * c.size
	}
}

// addRef counts a reference of a manifest of r to k, and returns k's entry.
func (s *state) addRef(r *repo, k []byte) slab.ID {
	i := s.addEntry(r, k)
	e := s.entries.At(i)
	if e.refs++; e.refs == 1 {
		s.contents.At(e.content).referenced++
	}
	return i
}

// removeRef undoes addRef.
func (s *state) removeRef(r *repo, i slab.ID) {
	e := s.entries.At(i)
	if e.refs--; e.refs == 0 {
		s.contents.At(e.content).referenced--
	}
	s.release(r, i)
}

func (s *state) putManifest(r *repo, k, v []byte) error {
	f, err := parseManifest(v)
	if err != nil {
		return err
	}
	i := s.addEntry(r, k)
	m := manifest{mediaType: s.mediaType(f.mediaType), time: momentOf(f.time), refs: make([]slab.ID, 0, f.count)}
	if m.cached, err = f.rest(func(k []byte) { m.refs = append(m.refs, s.addRef(r, k)) }); err != nil {
		return err
	}
	e := s.entries.At(i)
	// A manifest that is pushed again, perhaps under another media type, keeps its tags. The old references go after
	// the new ones were added, so that an entry that both have is not dropped in between.
	if e.manifest != 0 {
		m.tags = s.manifests.At(e.manifest).tags
		s.dropManifest(r, i)
	}
	if len(f.subject) > 0 {
		m.subject = s.intern(f.subject)
		s.addReferrer(r, m.subject, i)
	}
	s.countHalf(e.content, 1)
	s.uncount(r, e)
	s.contents.At(e.content).size = f.size
	e.manifest = s.manifests.Add(m)
	s.memory += s.memOfManifest(m.mediaType, len(m.refs))
	s.count(r, e)
	s.stats.Manifests++
	if r.manifests++; r.manifests == 1 {
		s.catalog.insert(r.name)
	}
	return nil
}

func (s *state) deleteManifest(r *repo, k []byte) error {
	i := s.manifest(r, k)
	if i == 0 {
		return nil
	}
	// A tag must not name what is gone: the batch has to delete the tags first.
	if s.manifests.At(s.entries.At(i).manifest).tags != 0 {
		return errFact
	}
	s.dropManifest(r, i)
	s.release(r, i)
	return nil
}

// dropManifest undoes putManifest, but leaves the entry.
func (s *state) dropManifest(r *repo, i slab.ID) {
	e := s.entries.At(i)
	m := s.manifests.At(e.manifest)
	for _, ref := range m.refs {
		s.removeRef(r, ref)
	}
	if m.subject != 0 {
		s.removeReferrer(r, m.subject, i)
	}
	s.memory -= s.memOfManifest(m.mediaType, len(m.refs))
	s.manifests.Remove(e.manifest)
	s.countHalf(e.content, -1)
	// Not earlier: until here the entry counts as present, so that nothing above can forget its content.
	s.uncount(r, e)
	e.manifest = 0
	s.count(r, e)
	s.stats.Manifests--
	if r.manifests--; r.manifests == 0 {
		s.catalog.remove(r.name)
	}
}

// countHalf adds to the number of manifests that have a content, if its digest is a sha512.
func (s *state) countHalf(i slab.ID, n int32) {
	if _, long := s.tails[i]; !long {
		return
	}
	first := s.contents.At(i).sum
	before := s.halves[first]
	switch after := before.manifests + n; {
	case after == 0:
		delete(s.halves, first)
		s.memory -= memHalf
	case before.manifests == 0:
		s.memory += memHalf
		fallthrough
	default:
		s.halves[first] = manifestsOf{i, after}
	}
}

// addReferrer records that the subject of a manifest is a content.
func (s *state) addReferrer(r *repo, subject, manifest slab.ID) {
	if r.referrers == nil {
		r.referrers = map[slab.ID][]slab.ID{}
	}
	s.memory += memOfReferrer(r, subject)
	s.contents.At(subject).subjects++
	at := s.referrerIndex(r, subject, manifest)
	r.referrers[subject] = slices.Insert(r.referrers[subject], at, manifest)
}

// removeReferrer undoes addReferrer.
func (s *state) removeReferrer(r *repo, subject, manifest slab.ID) {
	at := s.referrerIndex(r, subject, manifest)
	if list := slices.Delete(r.referrers[subject], at, at+1); len(list) > 0 {
		r.referrers[subject] = list
	} else {
		delete(r.referrers, subject)
	}
	s.memory -= memOfReferrer(r, subject)
	s.contents.At(subject).subjects--
	s.forget(subject)
}

// referrerIndex returns where a manifest is, or would go, among the referrers of a subject.
func (s *state) referrerIndex(r *repo, subject, manifest slab.ID) int {
	want := s.keyOf(s.entries.At(manifest).content)
	at, _ := slices.BinarySearchFunc(r.referrers[subject], want, func(i slab.ID, want sum) int {
		have := s.keyOf(s.entries.At(i).content)
		return bytes.Compare(have[:], want[:])
	})
	return at
}

func (s *state) applyTag(r *repo, name string, v []byte) error {
	if v == nil {
		s.deleteTag(r, name)
		return nil
	}
	f, err := parseTag(v)
	if err != nil {
		return err
	}
	order := f.order
	e := s.manifest(r, f.digest)
	if e == 0 { // a tag names a manifest of the same repo
		return errFact
	}
	i := s.findTag(r, name)
	if i == 0 {
		s.memory += memOfTag(name)
		if r.tags.Len() == 0 {
			s.memory += memFirstTag
		}
		i = s.tags.Add(tag{name: strings.Clone(name)})
		r.tags.Add(i, s.hashTag(name))
		r.order.insert(s.tags.At(i).name)
		s.stats.Tags++
	} else {
		s.detachTag(i)
	}
	// Put it at the head of the list of the manifest's tags.
	t, m := s.tags.At(i), s.manifests.At(s.entries.At(e).manifest)
	t.entry, t.time, t.order, t.targets, t.prev, t.next = e, momentOf(f.unix), order, f.targets, 0, m.tags
	if m.tags != 0 {
		s.tags.At(m.tags).prev = i
	}
	m.tags = i
	if order == 0 { // it may have been set at any time within its second; what comes later is newer
		order = t.time.nanos() + int64(time.Second) - 1
	}
	r.newest = max(r.newest, order)
	return nil
}

func (s *state) deleteTag(r *repo, name string) {
	if i := s.findTag(r, name); i != 0 {
		s.detachTag(i)
		r.tags.Remove(i)
		r.order.remove(name)
		s.tags.Remove(i)
		s.stats.Tags--
		s.memory -= memOfTag(name)
		if r.tags.Len() == 0 {
			s.memory -= memFirstTag
		}
	}
}

// detachTag takes a tag off its manifest's list.
func (s *state) detachTag(i slab.ID) {
	t := s.tags.At(i)
	if t.prev != 0 {
		s.tags.At(t.prev).next = t.next
	} else {
		s.manifests.At(s.entries.At(t.entry).manifest).tags = t.next
	}
	if t.next != 0 {
		s.tags.At(t.next).prev = t.prev
	}
}

// addEntry returns the entry of k in r, and adds an empty one if r has none. The caller makes it present or
// referenced.
func (s *state) addEntry(r *repo, k []byte) slab.ID {
	i := s.find(r, k)
	if i == 0 {
		i = s.entries.Add(entry{content: s.intern(k)})
		r.entries.Add(i, s.hash(k))
		s.memory += memEntry
	}
	return i
}

// release drops an entry that is neither present nor referenced any more.
func (s *state) release(r *repo, i slab.ID) {
	e := s.entries.At(i)
	if e.present() || e.refs > 0 {
		return
	}
	c := e.content
	r.entries.Remove(i)
	s.entries.Remove(i)
	s.memory -= memEntry
	s.forget(c)
}

// intern returns the content with the digest k, and adds it if it is new.
func (s *state) intern(k []byte) slab.ID {
	c := s.lookup(k)
	if c == 0 {
		c = s.contents.Add(content{sum: half(k[1:])})
		if len(k) > shortKey {
			s.tails[c] = sha512Tail(k[shortKey:])
		}
		s.byDigest.Add(c, s.hash(k))
		s.memory += memOfContent(len(k))
	}
	return c
}

// forget drops a content that no fact names any more.
func (s *state) forget(i slab.ID) {
	if c := s.contents.At(i); c.present+c.referenced+c.subjects == 0 && len(s.waiting[i]) == 0 && !s.placed(i) {
		if s.memory -= memContent; len(s.tails) > 0 {
			if _, long := s.tails[i]; long {
				s.memory -= memTail
			}
		}
		s.byDigest.Remove(i)
		s.contents.Remove(i)
		delete(s.tails, i)
	}
}

// mediaType interns a media type. One that is longer than RFC 6838 allows becomes "".
func (s *state) mediaType(b []byte) string {
	const maxTypes = 1024 // a client that may push can invent types, so the table must not grow without end
	// Earlier versions recorded the mediaType in a manifest of up to 4 MiB as it was. A hundred of them would take the
	// memory of everything else, at every start. The journal and the manifest's own bytes keep the value.
	const maxType = 255
	if len(b) > maxType {
		return ""
	}
	t, ok := s.types[string(b)]
	if !ok {
		t = string(b)
		if len(s.types) < maxTypes {
			s.types[t] = t
			s.memory += memType + memText(len(t))
		}
	}
	return t
}
