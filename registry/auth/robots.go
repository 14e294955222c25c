package auth

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"trow/registry/glob"
	"trow/storage"
)

// SecretPrefix begins the secrets of robots, so that scanners for secrets find them in code.
const SecretPrefix = "trow_"

// robotPrefix begins the names of robots as identities; names of users cannot begin with it.
const robotPrefix = "robot:"

// Robot is a robot as it is listed.
type Robot struct {
	Name         string    `json:"name"`
	Repositories []string  `json:"repositories"` // patterns
	Actions      []Action  `json:"actions"`
	Created      time.Time `json:"created"`
	Expires      time.Time `json:"expires,omitzero"` // zero: never
}

// storedRobot is the value of a robot's record. Of its secret, it has the SHA-256. Slow hashes are for passwords, which
// can be guessed; 256 random bits cannot, and with a fast hash a machine can log in with each request.
type storedRobot struct {
	Robot
	SHA256 string `json:"sha256"`
}

// robot is a Robot that was read.
type robot struct {
	Robot
	who   *Identity
	hash  [sha256.Size]byte
	id    string // distinguishes it from an earlier robot of the same name
	repos glob.Set
}

// may reports whether the robot was created for that.
func (r *robot) may(repo string, a Action) bool {
	return includes(r.Actions, a) && (a.Whole() || r.repos.Match(repo))
}

func (r *robot) expired(now time.Time) bool { return !r.Expires.IsZero() && !now.Before(r.Expires) }

// robots are all robots. A set never changes.
type robots struct {
	stored map[string][]byte // the values of the records, by name; also of those that cannot be read
	byHash map[[sha256.Size]byte]*robot
	byName map[string]*robot
}

// maxRobots bounds the robots. Several processes that create robots at the same moment may exceed it by a few.
const maxRobots = 10_000

// newRobots reads the values of records. What was read for the set before is not read again. A value that cannot be
// read is no robot, so that its secret is refused; it is reported once, and can be replaced and revoked.
func newRobots(stored map[string][]byte, before *robots, report func(error)) *robots {
	r := &robots{stored: stored, byHash: make(map[[sha256.Size]byte]*robot, len(stored)),
		byName: make(map[string]*robot, len(stored))}
	for name, value := range stored {
		var one *robot
		known := before != nil && bytes.Equal(before.stored[name], value)
		if known {
			one = before.byName[name]
		} else {
			var err error
			if one, err = parseRobotRecord(name, value); err != nil {
				report(err)
			}
		}
		if one != nil {
			r.byHash[one.hash], r.byName[name] = one, one
		}
	}
	return r
}

func parseRobotRecord(name string, value []byte) (*robot, error) {
	var stored storedRobot
	if err := json.Unmarshal(value, &stored); err != nil {
		return nil, fmt.Errorf("robot %q: %w", name, err)
	}
	if stored.Name != name {
		return nil, fmt.Errorf("robot %q: its record is that of %q", name, stored.Name)
	}
	return stored.robot()
}

// robot returns the robot as it is used.
func (r storedRobot) robot() (one *robot, err error) {
	one = &robot{Robot: r.Robot}
	sum, err := hex.DecodeString(r.SHA256)
	if err != nil || len(sum) != sha256.Size {
		return nil, fmt.Errorf("robot %q: invalid sha256", r.Name)
	}
	if one.repos, err = glob.Compile(r.Repositories...); err != nil {
		return nil, fmt.Errorf("robot %q: %w", r.Name, err)
	}
	one.hash, one.id = [sha256.Size]byte(sum), r.SHA256[:16]
	one.who = &Identity{Name: robotPrefix + r.Name, robot: one}
	return one, nil
}

// find returns the robot with this secret, or nil, and whether the secret is known: that of one that has expired is.
// The time that a look-up in a map takes reveals nothing about the secret, because the key is a hash.
func (r *robots) find(secret string, now time.Time) (one *robot, known bool) {
	if !strings.HasPrefix(secret, SecretPrefix) {
		return nil, true // no robot has such a one, here or elsewhere
	}
	one = r.byHash[sha256.Sum256([]byte(secret))]
	if one == nil {
		return nil, false
	}
	if one.expired(now) {
		return nil, true
	}
	return one, true
}

// robot returns the robot with this secret, or nil if it does not exist: a secret that is not known is confirmed with
// the journal, since another replica may have just created the robot. It also returns the state that says so. Errors:
// ErrUnavailable; that of ctx.
func (g *Guard) robot(ctx context.Context, s *state, secret string, now time.Time) (*robot, *state, error) {
	one, known := s.robots.find(secret, now)
	if known {
		return one, s, nil
	}
	s, err := g.confirmed(ctx, s)
	if err != nil {
		return nil, s, err
	}
	one, _ = s.robots.find(secret, now)
	return one, s, nil
}

// ReplaceRobot is CreateRobot in the place of a robot of the same name, if there is one: the secret of that one, and
// the tokens that were issued for it, become invalid in the same step.
func (g *Guard) ReplaceRobot(ctx context.Context, o Robot) (secret string, err error) {
	return g.putRobot(ctx, o, true)
}

// CreateRobot creates a robot and returns its secret, which is not stored anywhere. Errors: an invalid name, pattern,
// action or end; a robot of this name exists; nothing may be written; those of the journal.
func (g *Guard) CreateRobot(ctx context.Context, o Robot) (secret string, err error) {
	return g.putRobot(ctx, o, false)
}

func (g *Guard) putRobot(ctx context.Context, o Robot, replace bool) (secret string, err error) {
	o.Created = time.Now().UTC().Truncate(time.Second)
	if err := o.validate(); err != nil {
		return "", err
	}
	secret = SecretPrefix + rand.Text() + rand.Text() // 260 bits
	sum := sha256.Sum256([]byte(secret))
	value, err := json.Marshal(storedRobot{o, hex.EncodeToString(sum[:])})
	if err != nil {
		return "", err
	}
	err = g.changeRobot(ctx, o.Name, func(r *robots) ([]byte, error) {
		switch _, exists := r.stored[o.Name]; {
		case exists && !replace:
			return nil, fmt.Errorf("robot %q already exists; use --replace, which makes its present token invalid, or "+
				"choose another name", o.Name)
		case !exists && len(r.stored) >= maxRobots:
			return nil, fmt.Errorf("there are %d robots already, which is the limit; revoke those that have expired",
				maxRobots)
		}
		return value, nil
	})
	if err != nil {
		return "", err
	}
	return secret, nil
}

// validate reports the first invalid field.
func (r *Robot) validate() error {
	valid := func(c rune) bool {
		return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.ContainsRune("._-", c)
	}
	switch {
	case r.Name == "" || len(r.Name) > 63 || strings.ContainsFunc(r.Name, func(c rune) bool { return !valid(c) }):
		return fmt.Errorf("invalid name %.80q: want 1 to 63 lower-case letters, digits, '.', '_' and '-'", r.Name)
	case !r.Expires.IsZero() && !r.Expires.After(r.Created):
		return fmt.Errorf("expires: %s is in the past", r.Expires.Format(time.RFC3339))
	case len(r.Repositories) == 0:
		return fmt.Errorf("repository: at least one pattern is needed; ** matches all repositories")
	}
	if _, err := glob.Compile(r.Repositories...); err != nil {
		return fmt.Errorf("repository: %w", err)
	}
	return nil
}

// RevokeRobot revokes a robot: its secret and the tokens that were issued for it are invalid at once, and at the other
// replicas as soon as they hear of it. Errors: there is no robot of this name; ErrUnavailable if that cannot be
// confirmed; nothing may be written; those of the journal.
func (g *Guard) RevokeRobot(ctx context.Context, name string) error {
	return g.changeRobot(ctx, name, func(r *robots) ([]byte, error) {
		if _, exists := r.stored[name]; !exists {
			return nil, fmt.Errorf("robot %q does not exist", name)
		}
		return nil, nil
	})
}

// Robots returns the robots, sorted by name. If the journal does not answer in time, they are those that are known.
func (g *Guard) Robots(ctx context.Context) []Robot {
	if s := g.state.Load(); s.records != nil {
		_, _ = s.records.CatchUp(ctx, storage.CatchUpTime)
	}
	all := g.current().robots.byName
	list := make([]Robot, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, all[name].Robot)
	}
	return list
}

// changeRobot replaces the record of a robot with the value that decide returns, nil for none. The change is durable
// before it takes effect: a secret that is shown must be valid after a crash, and one that was revoked must stay
// invalid.
func (g *Guard) changeRobot(ctx context.Context, name string, decide func(*robots) (value []byte, err error)) error {
	g.changes.Lock() // or two changes at once would exceed maxRobots
	defer g.changes.Unlock()
	s, err := g.writable(ctx)
	if err != nil {
		return err
	}
	if _, exists := s.robots.stored[name]; !exists {
		limited, cancel := context.WithTimeout(ctx, maxConfirm)
		defer cancel()
		if _, err := s.records.Record(limited, robotRecord+name); err != nil {
			return fmt.Errorf("robot %q: %w", name, err)
		}
		s = g.current()
	}
	for range maxAttempts {
		value, err := decide(s.robots)
		if err != nil {
			return err
		}
		err = s.records.SetRecord(ctx, robotRecord+name, s.robots.stored[name], value)
		s = g.current() // shows the change, or the one that was faster
		if !errors.Is(err, storage.ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("robot %q: others change it at the same time; try again", name)
}

const (
	// maxAttempts bounds how often a change of a record that another replica has just changed is tried again.
	maxAttempts = 10
	// maxConfirm bounds how long an administrator waits for a journal that does not answer.
	maxConfirm = 5 * time.Second
)
