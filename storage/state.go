package storage

import (
	"cmp"
	"slices"
)

// state is what the journal's facts add up to. It has no lock of its own: the Index's guards it.
type state struct {
	revision Revision
	synced   bool // the full state is in
	repos    map[string]*repo
	catalog  ordered           // the repos that have a manifest
	contents map[key]*content  // every digest that is named anywhere, once
	types    map[string]string // media types, once each
	stats    Stats

	condemned   map[key]struct{}
	quarantined map[key]Damage
}

// content is a digest that facts name, shared by all of them.
type content struct {
	key   key
	size  int64 // bytes; 0 while it is only referred to
	holds int32 // of repos
	names int32 // subjects that point here
}

// repo is one repository.
type repo struct {
	name      string
	revision  Revision
	holds     map[key]*hold
	tags      map[string]tagged
	order     ordered // the names in tags
	manifests int
	referrers map[key][]*hold // by subject, in order of digest
	bytes     int64           // of what it holds, each content once; see Index.Bytes
}

// tagged is what a tag names, and since when.
type tagged struct {
	*hold
	time int64 // Unix seconds
}

// hold is what a repo has to do with a digest: a link to it as a blob, a manifest, references from its
// manifests, or several of these.
type hold struct {
	*content
	manifest *manifest // nil: not a manifest here
	since    int64     // when it was linked, Unix seconds
	refs     int32     // manifests of this repo that consist of it
	linked   bool      // a blob of this repo
}

type manifest struct {
	mediaType string
	time      int64 // when it was pushed, Unix seconds
	subject   *content
	refs      []*hold
	tags      []string
}

func newState() *state {
	return &state{repos: map[string]*repo{}, contents: map[key]*content{}, types: map[string]string{},
		condemned: map[key]struct{}{}, quarantined: map[key]Damage{}}
}

// apply brings the state up to an update. An error leaves it useless: the journal contradicts itself.
func (s *state) apply(u Update) error {
	for _, b := range u.Batches {
		r := s.repos[b.Repo]
		if r == nil {
			r = &repo{name: b.Repo, holds: map[key]*hold{}, tags: map[string]tagged{}, referrers: map[key][]*hold{}}
			s.repos[b.Repo] = r
		}
		for _, f := range b.Facts {
			r.bytes -= r.bytesOf(f)
			if err := s.applyFact(r, f); err != nil {
				return damaged(b.Repo, f, err)
			}
			r.bytes += r.bytesOf(f)
		}
		if r.revision = u.Revision; !s.synced {
			r.revision = b.Base // in the full state: the repo's last revision
		}
		if len(r.holds) == 0 && (b.Repo != Store || len(s.condemned)+len(s.quarantined) == 0) {
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
	switch {
	case f.Kind == KindLink && f.Value != nil:
		return s.link(r, key(f.Name), f.Value)
	case f.Kind == KindLink:
		s.unlink(r, key(f.Name))
	case f.Kind == KindManifest && f.Value != nil:
		return s.putManifest(r, key(f.Name), f.Value)
	case f.Kind == KindManifest:
		return s.deleteManifest(r, key(f.Name))
	case f.Kind == KindTag && f.Value != nil:
		return s.tag(r, f.Name, f.Value)
	case f.Kind == KindTag:
		s.untag(r, f.Name)
	default: // a kind of a later version, which a newer Format would have announced
		return errFact
	}
	return nil
}

// applyStoreFact takes in a fact about content itself.
func (s *state) applyStoreFact(f Fact) (err error) {
	k := key(f.Name)
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

func (s *state) link(r *repo, k key, v []byte) error {
	size, unix, err := parseLink(v)
	if err != nil {
		return err
	}
	h := s.hold(r, k)
	if !h.linked {
		s.stats.Links++
	}
	h.size, h.since, h.linked = size, unix, true
	return nil
}

func (s *state) unlink(r *repo, k key) {
	if h := r.holds[k]; h != nil && h.linked {
		h.linked = false
		s.stats.Links--
		s.release(r, h)
	}
}

func (s *state) putManifest(r *repo, k key, v []byte) error {
	f, err := parseManifest(v)
	if err != nil {
		return err
	}
	h := s.hold(r, k)
	m := &manifest{mediaType: s.mediaType(f.mediaType), time: f.time, refs: make([]*hold, 0, f.count)}
	if err := f.eachRef(func(k []byte) {
		ref := s.hold(r, key(k))
		ref.refs++
		m.refs = append(m.refs, ref)
	}); err != nil {
		return err
	}
	if old := h.manifest; old != nil { // pushed again, perhaps under another media type
		m.tags = old.tags
		s.dropManifest(r, h)
	}
	if len(f.subject) > 0 {
		m.subject = s.intern(key(f.subject))
		m.subject.names++
		list := r.referrers[m.subject.key]
		i, _ := slices.BinarySearchFunc(list, k, byKey)
		r.referrers[m.subject.key] = slices.Insert(list, i, h)
	}
	h.size, h.manifest = f.size, m
	s.stats.Manifests++
	if r.manifests++; r.manifests == 1 {
		s.catalog.insert(r.name)
	}
	return nil
}

func (s *state) deleteManifest(r *repo, k key) error {
	h := r.holds[k]
	if h == nil || h.manifest == nil {
		return nil
	}
	if len(h.manifest.tags) > 0 {
		return errFact
	}
	s.dropManifest(r, h)
	s.release(r, h)
	return nil
}

// dropManifest undoes putManifest, but leaves the hold.
func (s *state) dropManifest(r *repo, h *hold) {
	m := h.manifest
	h.manifest = nil
	for _, ref := range m.refs {
		ref.refs--
		s.release(r, ref)
	}
	if m.subject != nil {
		list := r.referrers[m.subject.key]
		i, _ := slices.BinarySearchFunc(list, h.key, byKey)
		if list = slices.Delete(list, i, i+1); len(list) == 0 {
			delete(r.referrers, m.subject.key)
		} else {
			r.referrers[m.subject.key] = list
		}
		m.subject.names--
		s.forget(m.subject)
	}
	s.stats.Manifests--
	if r.manifests--; r.manifests == 0 {
		s.catalog.remove(r.name)
	}
}

func byKey(h *hold, k key) int { return cmp.Compare(h.key, k) }

func (s *state) tag(r *repo, name string, v []byte) error {
	k, unix, err := parseTag(v)
	if err != nil {
		return err
	}
	h := r.holds[k]
	if h == nil || h.manifest == nil {
		return errFact
	}
	if old, ok := r.tags[name]; ok {
		old.dropTag(name)
	} else {
		r.order.insert(name)
		s.stats.Tags++
	}
	r.tags[name] = tagged{h, unix}
	h.manifest.tags = append(h.manifest.tags, name)
	return nil
}

func (s *state) untag(r *repo, name string) {
	if h, ok := r.tags[name]; ok {
		h.dropTag(name)
		delete(r.tags, name)
		r.order.remove(name)
		s.stats.Tags--
	}
}

func (h *hold) dropTag(name string) {
	i := slices.Index(h.manifest.tags, name)
	h.manifest.tags = slices.Delete(h.manifest.tags, i, i+1)
}

// hold returns what r has to do with k, making it up if that is nothing yet.
func (s *state) hold(r *repo, k key) *hold {
	h := r.holds[k]
	if h == nil {
		h = &hold{content: s.intern(k)}
		h.content.holds++
		r.holds[h.key] = h
	}
	return h
}

// release drops a hold that has become nothing.
func (s *state) release(r *repo, h *hold) {
	if !h.linked && h.manifest == nil && h.refs == 0 {
		delete(r.holds, h.key)
		h.content.holds--
		s.forget(h.content)
	}
}

func (s *state) intern(k key) *content {
	c := s.contents[k]
	if c == nil {
		c = &content{key: k}
		s.contents[k] = c
	}
	return c
}

// forget drops a content that nothing points to any more.
func (s *state) forget(c *content) {
	if c.holds == 0 && c.names == 0 {
		delete(s.contents, c.key)
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

// held tells whether a repo holds k, or a manifest consists of it: its bytes are needed then.
func (s *state) held(k key) bool {
	c := s.contents[k]
	return c != nil && c.holds > 0
}

// manifestOf finds the manifest that ref, a tag or a digest, names. It allocates nothing.
func (s *state) manifestOf(name, ref string) *hold {
	r := s.repos[name]
	if r == nil {
		return nil
	}
	if t, ok := r.tags[ref]; ok {
		return t.hold
	}
	h := r.at(ref)
	if h == nil || h.manifest == nil {
		return nil
	}
	return h
}

// linkOf finds the blob that the repo holds under d. It allocates nothing.
func (s *state) linkOf(name, d string) *hold {
	r := s.repos[name]
	if r == nil {
		return nil
	}
	h := r.at(d)
	if h == nil || !h.linked {
		return nil
	}
	return h
}

// at finds a digest's hold.
func (r *repo) at(d string) *hold {
	var buf [maxKey]byte
	return r.holds[key(appendKey(buf[:0], d))]
}

// descriptor describes a manifest. It allocates nothing unless something is quarantined.
func (s *state) descriptor(h *hold) Descriptor {
	d := Descriptor{MediaType: h.manifest.mediaType, Size: h.size, key: h.key}
	if len(s.quarantined) > 0 {
		d.damaged = s.damagedPart(h, map[*hold]bool{})
	}
	return d
}

func (s *state) isQuarantined(k key) bool {
	if len(s.quarantined) == 0 {
		return false
	}
	_, yes := s.quarantined[k]
	return yes
}

// damagedPart finds something quarantined among what a manifest consists of, itself first.
func (s *state) damagedPart(h *hold, seen map[*hold]bool) key {
	if s.isQuarantined(h.key) {
		return h.key
	}
	if seen[h] || h.manifest == nil {
		return ""
	}
	seen[h] = true
	for _, ref := range h.manifest.refs {
		if k := s.damagedPart(ref, seen); k != "" {
			return k
		}
	}
	return ""
}

// refersTo finds a manifest of the repo that consists of k among others, and that skip does not name.
func (r *repo) refersTo(k key, skip func(key) bool) (key, bool) {
	target := r.holds[k]
	if target == nil || target.refs == 0 {
		return "", false
	}
	for _, h := range r.holds {
		if h.manifest != nil && !skip(h.key) && slices.Contains(h.manifest.refs, target) {
			return h.key, true
		}
	}
	return "", false
}
