package registry

import (
	"container/list"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/crowd"
	"trow/registry/limit"
	"trow/storage"
)

// sessions are the uploads that clients have begun and may continue.
//
// A session without bytes is kept nowhere: its ID says all about it, so that a client that begins a million of them
// takes no room and no place. The ID is a UUID, under which storage has the upload once there are bytes, a dot, and in
// base64 the time and the algorithm of its beginning and a MAC (HMAC-SHA-256, RFC 2104) over these and the repository:
// 63 characters. Earlier versions issued the UUID alone; such an ID continues an upload that storage has.
//
// An ID that has ended must not begin anew. So the last maxEnded ones are remembered, and when that is not enough, and
// after a restart, the older IDs count as ended unless storage has their upload: a client that has one begins again. An
// upload with bytes outlives a restart. Each of several replicas remembers only the IDs that have ended there: a common
// list would take a fact for each upload in the memory of each replica, and with an ID that has ended elsewhere a
// client gains no more than an upload without bytes, which it may begin anyway.
type sessions struct {
	key     []byte
	timeout time.Duration // how long an ID is valid without bytes
	share   int           // how many uploads in storage one client may have; 0: no bound

	mu     sync.Mutex // guards all below
	ended  map[uuid]bool
	ring   []endedID // what ended has, in the order of the ends
	next   int       // where the ring goes on
	floor  int64     // IDs that were made until then, in Unix ms, begin no upload
	stored map[storedKey]*stored
	used   *list.List // of *stored, the one that was used least recently first
	owners map[limit.Client]int
	idle   crowd.Crowd[limit.Client, *stored] // those that can give way: no request is under way, and they do not leave
}

// maxEnded bounds the memory of IDs that have ended, to about 4 MiB.
const maxEnded = 1 << 16

type uuid [16]byte

func (u uuid) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

type endedID struct {
	id   uuid
	made int64
}

// sessionID is an ID that was parsed.
type sessionID struct {
	id   uuid
	name string // the UUID as text, under which storage has the upload
	alg  digest.Algorithm
	made int64 // Unix ms; 0: an ID from an earlier version, the UUID alone
}

func newSessions(key []byte, timeout time.Duration, share int) *sessions {
	if len(key) == 0 {
		key = make([]byte, sha256.Size)
		rand.Read(key) // never fails
	}
	if timeout == 0 {
		timeout = defaultUploadTimeout
	}
	return &sessions{key: key, timeout: timeout, share: share, floor: time.Now().UnixMilli() - 1,
		ended:  map[uuid]bool{},
		stored: map[storedKey]*stored{}, used: list.New(), owners: map[limit.Client]int{}}
}

const (
	uuidLength = 36
	macLength  = 12 // bytes; RFC 2104, section 5, asks for 10 or more
	// defaultUploadTimeout is the default of the setting upload-timeout.
	defaultUploadTimeout = 6 * time.Hour
	// skew is how far in the future an ID may have been made, because the clock was set back since then.
	skew = time.Minute
)

// algorithms are what the byte in an ID stands for.
var algorithms = []digest.Algorithm{digest.SHA256, digest.SHA512}

// strict has one text for each sequence of bytes, so that an ID has one form.
var strict = base64.RawURLEncoding.Strict()

// begin makes the ID of a session without bytes.
func (s *sessions) begin(repo string, alg digest.Algorithm) string {
	var id uuid
	rand.Read(id[:])                                // never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // RFC 9562, version 4
	b := make([]byte, 8, 8+sha256.Size)             // two bytes are left out below
	binary.BigEndian.PutUint64(b, uint64(time.Now().UnixMilli()))
	b = append(b[2:], byte(slices.Index(algorithms, alg)))
	b = append(b, s.mac(id, b, repo)...)
	return id.String() + "." + strict.EncodeToString(b)
}

// mac authenticates what an ID says. All parts but the last have a fixed length, so that none runs into the next.
func (s *sessions) mac(id uuid, says []byte, repo string) []byte {
	h := hmac.New(sha256.New, s.key)
	h.Write(id[:])
	h.Write(says)
	h.Write([]byte(repo))
	return h.Sum(nil)[:macLength]
}

// parse parses an ID that a client has sent. ok is false for one that was not made for this repo.
func (s *sessions) parse(repo, text string) (id sessionID, ok bool) {
	name, rest, long := strings.Cut(text, ".")
	raw, err := hex.DecodeString(strings.ReplaceAll(name, "-", ""))
	if err != nil || len(name) != uuidLength || len(raw) != len(id.id) {
		return id, false
	}
	// Storage has the upload under the text, so another text for the same UUID would be another session without bytes.
	if id.id, id.name = uuid(raw), name; id.id.String() != name {
		return id, false
	}
	if !long {
		return id, true
	}
	b, err := strict.DecodeString(rest)
	const said = 7 // bytes: six of time, one of the algorithm
	if err != nil || len(b) != said+macLength || !hmac.Equal(b[said:], s.mac(id.id, b[:said], repo)) ||
		int(b[6]) >= len(algorithms) {
		return id, false
	}
	id.made, id.alg = int64(binary.BigEndian.Uint64(append(make([]byte, 2), b[:6]...))), algorithms[b[6]]
	return id, true
}

// open reports whether an upload may begin under an ID, of which storage has none.
func (s *sessions) open(id sessionID) bool {
	age := time.Since(time.UnixMilli(id.made))
	s.mu.Lock()
	defer s.mu.Unlock()
	return id.made > s.floor && -skew < age && age <= s.timeout && !s.ended[id.id]
}

// end remembers that an ID has ended. Call it before the upload vanishes from storage: a request that does not find it
// there asks open next.
func (s *sessions) end(id sessionID) {
	if id.made == 0 { // the long form of it may exist
		id.made = time.Now().UnixMilli()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended[id.id] {
		return
	}
	s.ended[id.id] = true
	if len(s.ring) < maxEnded {
		s.ring = append(s.ring, endedID{id.id, id.made})
		return
	}
	// What is forgotten must not begin anew, so no ID that is as old may.
	oldest := &s.ring[s.next]
	delete(s.ended, oldest.id)
	s.floor = max(s.floor, oldest.made)
	*oldest = endedID{id.id, id.made}
	s.next = (s.next + 1) % maxEnded
}

// stored is an upload in storage. Those from before a restart have no owner until a client continues them.
type stored struct {
	storedKey
	session  sessionID
	owner    limit.Client
	requests int       // under way
	leaving  bool      // it gives way to another one; no request may start
	at       time.Time // of the last use
	inUsed   *list.Element
	inIdle   *crowd.Member[limit.Client, *stored] // nil: it cannot give way
}

type storedKey struct{ repo, name string }

// enter notes that a request on an upload is under way. u is nil if the upload is not known; ok is false if it gives
// way to another one. The caller calls leave.
func (s *sessions) enter(repo string, id sessionID) (u *stored, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u = s.stored[storedKey{repo, id.name}]; u == nil {
		return nil, true
	}
	if u.leaving {
		return nil, false
	}
	s.use(u, 1)
	return u, true
}

// adopt is enter for an upload that storage has and that is not known, because it is from before a restart. It belongs
// to the client that continues it. No other one gives way to it, because nothing was added.
func (s *sessions) adopt(repo string, id sessionID, owner limit.Client) *stored {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := s.stored[storedKey{repo, id.name}]; u != nil { // another request was faster
		s.use(u, 1)
		return u
	}
	return s.add(repo, id, owner)
}

// admit is enter for an upload that is about to be stored. If its owner has more than its share then, victim is the
// idle one of them that was used least recently: the caller drops it before the new one is stored, and then calls
// dropped for it. Uploads of other clients do not give way here, and those with a request under way never do. Errors:
// ErrClosed if another request stores the upload; TOOMANYREQUESTS if none can give way.
func (s *sessions) admit(repo string, id sessionID, owner limit.Client) (u, victim *stored, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stored[storedKey{repo, id.name}] != nil {
		return nil, nil, fmt.Errorf("upload: %w: another request has begun it", storage.ErrClosed)
	}
	s.forget()
	if s.share > 0 && s.owners[owner] >= s.share {
		oldest := s.idle.FirstOf(owner)
		if oldest == nil {
			return nil, nil, tooManyUploads(owner, s.share)
		}
		victim = s.send(oldest.Value)
	}
	return s.add(repo, id, owner), victim, nil
}

// yield returns the upload that gives way to a new one of owner when storage has no place for it, as in admit: of the
// client with the most idle ones, that which was used least recently. So clients that fill all places together keep no
// other one out. It is one of owner itself if no other client has more. nil: none can give way.
func (s *sessions) yield(owner limit.Client) (victim *stored) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget()
	first := s.idle.First()
	if first == nil {
		return nil
	}
	if own := s.idle.FirstOf(owner); own != nil && first.Group().Weight() <= own.Group().Weight() {
		first = own
	}
	return s.send(first.Value)
}

// send makes an idle upload leave. The caller holds mu.
func (s *sessions) send(u *stored) *stored {
	u.leaving = true
	s.note(u)
	return u
}

// forget removes what storage has dropped since, because it was idle for too long. The caller holds mu.
func (s *sessions) forget() {
	for e := s.used.Front(); e != nil; {
		u := e.Value.(*stored)
		if time.Since(u.at) <= s.timeout {
			return
		}
		if e = e.Next(); u.inIdle != nil {
			s.remove(u)
		}
	}
}

// add lists an upload with one request under way. The caller holds mu.
func (s *sessions) add(repo string, id sessionID, owner limit.Client) *stored {
	u := &stored{storedKey: storedKey{repo, id.name}, session: id, owner: owner, requests: 1, at: time.Now()}
	u.inUsed = s.used.PushBack(u)
	s.owners[owner]++
	s.stored[u.storedKey] = u
	return u
}

// use counts the requests of an upload up or down. The caller holds mu.
func (s *sessions) use(u *stored, requests int) {
	u.requests += requests
	if s.stored[u.storedKey] != u {
		return // it has ended
	}
	u.at = time.Now()
	s.used.MoveToBack(u.inUsed)
	s.note(u)
}

// note lists an upload among those that can give way, or takes it off, as the newest. The caller holds mu.
func (s *sessions) note(u *stored) {
	idle := u.requests == 0 && !u.leaving && s.stored[u.storedKey] == u
	switch {
	case idle && u.inIdle == nil:
		u.inIdle = s.idle.Add(u.owner, 1, u)
	case !idle && u.inIdle != nil:
		s.idle.Remove(u.inIdle)
		u.inIdle = nil
	}
}

// leave ends what enter, adopt or admit has begun. gone reports whether storage has the upload no more. u may be nil.
func (s *sessions) leave(u *stored, gone bool) {
	if u == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.use(u, -1); gone {
		s.remove(u)
	}
}

// dropped ends the leaving of an upload.
func (s *sessions) dropped(u *stored, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.leaving = false; gone {
		s.remove(u)
	}
	s.note(u)
}

// remove takes an upload off the lists. The caller holds mu.
func (s *sessions) remove(u *stored) {
	if s.stored[u.storedKey] != u {
		return
	}
	delete(s.stored, u.storedKey)
	s.used.Remove(u.inUsed)
	s.note(u)
	if s.owners[u.owner]--; s.owners[u.owner] == 0 {
		delete(s.owners, u.owner)
	}
}
