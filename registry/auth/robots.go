package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"trow/registry/glob"
	"trow/storage/files"
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

// storedRobot is a robot in the file. Of its secret, the file has the SHA-256. Slow hashes are for passwords, which can
// be guessed; 256 random bits cannot, and with a fast hash a machine can log in with each request.
type storedRobot struct {
	Robot
	SHA256 string `json:"sha256"`
}

// robot is a Robot that was read.
type robot struct {
	Robot
	who   *Identity
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
	stored []storedRobot
	byHash map[[sha256.Size]byte]*robot
	byName map[string]*robot
}

const (
	// maxRobots bounds the file.
	maxRobots = 10_000
	// maxRobotsFile is more than that many robots take.
	maxRobotsFile = 64 << 20
)

// readRobots reads the file. Unlike the keys, it must not be replaced by an empty one when it is damaged: machines have
// the secrets.
func readRobots(root *os.Root) (*robots, error) {
	b, err := files.ReadIn(root, robotsFile, maxRobotsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return newRobots(nil)
	}
	var list []storedRobot
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	var r *robots
	if err == nil {
		r, err = newRobots(list)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the robots in %s: %w; "+
			"restore the file from a copy, or delete it, which revokes all robots", filepath.Join(root.Name(), robotsFile), err)
	}
	return r, nil
}

func newRobots(list []storedRobot) (*robots, error) {
	r := &robots{stored: list, byHash: map[[sha256.Size]byte]*robot{}, byName: map[string]*robot{}}
	for _, stored := range list {
		one := &robot{Robot: stored.Robot}
		sum, err := hex.DecodeString(stored.SHA256)
		if err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("robot %q: invalid sha256", stored.Name)
		}
		if one.repos, err = glob.Compile(stored.Repositories...); err != nil {
			return nil, fmt.Errorf("robot %q: %w", stored.Name, err)
		}
		one.id = stored.SHA256[:16]
		one.who = &Identity{Name: robotPrefix + stored.Name, robot: one}
		r.byHash[[sha256.Size]byte(sum)] = one
		r.byName[stored.Name] = one
	}
	return r, nil
}

// find returns the robot with this secret, or nil. The time that a look-up in a map takes reveals nothing
// about the secret, because the key is a hash.
func (r *robots) find(secret string, now time.Time) *robot {
	if !strings.HasPrefix(secret, SecretPrefix) {
		return nil
	}
	one := r.byHash[sha256.Sum256([]byte(secret))]
	if one == nil || one.expired(now) {
		return nil
	}
	return one
}

// with returns the set with one more robot, and its secret.
func (r *robots) with(o Robot) (*robots, string, error) {
	switch _, exists := r.byName[o.Name]; {
	case exists:
		return nil, "", fmt.Errorf("robot %q already exists; use --replace, which makes its present token invalid, or "+
			"choose another name", o.Name)
	case len(r.stored) >= maxRobots:
		return nil, "", fmt.Errorf("there are %d robots already, which is the limit; revoke those that have expired",
			maxRobots)
	}
	secret := SecretPrefix + rand.Text() + rand.Text() // 260 bits
	sum := sha256.Sum256([]byte(secret))
	next, err := newRobots(append(slices.Clone(r.stored), storedRobot{o, hex.EncodeToString(sum[:])}))
	return next, secret, err
}

// without returns the set without one robot.
func (r *robots) without(name string) (*robots, error) {
	if _, ok := r.byName[name]; !ok {
		return nil, fmt.Errorf("robot %q does not exist", name)
	}
	is := func(k storedRobot) bool { return k.Name == name }
	return newRobots(slices.DeleteFunc(slices.Clone(r.stored), is))
}

// ReplaceRobot is CreateRobot in the place of a robot of the same name, if there is one: the secret of that one, and
// the tokens that were issued for it, become invalid in the same step.
func (g *Guard) ReplaceRobot(o Robot) (secret string, err error) {
	return g.addRobot(o, func(r *robots) (*robots, error) {
		if _, exists := r.byName[o.Name]; exists {
			return r.without(o.Name)
		}
		return r, nil
	})
}

// CreateRobot creates a robot and returns its secret, which is not stored anywhere. Errors: an invalid name, pattern,
// action or end; a robot of this name exists; those of the file system.
func (g *Guard) CreateRobot(o Robot) (secret string, err error) {
	return g.addRobot(o, func(r *robots) (*robots, error) { return r, nil })
}

// addRobot adds a robot to the set that prepare makes of the present one.
func (g *Guard) addRobot(o Robot, prepare func(*robots) (*robots, error)) (secret string, err error) {
	o.Created = time.Now().UTC().Truncate(time.Second)
	if err := o.validate(); err != nil {
		return "", err
	}
	err = g.changeRobots(func(r *robots) (*robots, error) {
		r, err := prepare(r)
		if err != nil {
			return nil, err
		}
		next, s, err := r.with(o)
		secret = s
		return next, err
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

// RevokeRobot revokes a robot: its secret and the tokens that were issued for it are invalid at once. Errors: there is
// no robot of this name; those of the file system.
func (g *Guard) RevokeRobot(name string) error {
	return g.changeRobots(func(r *robots) (*robots, error) { return r.without(name) })
}

// Robots returns the robots, sorted by name.
func (g *Guard) Robots() []Robot {
	all := g.state.Load().robots.byName
	list := make([]Robot, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, all[name].Robot)
	}
	return list
}

// changeRobots makes a change durable before it takes effect: a secret that is shown must be valid after a crash, and
// one that was revoked must stay invalid.
func (g *Guard) changeRobots(change func(*robots) (*robots, error)) error {
	return g.change(func(s *state) error {
		next, err := change(s.robots)
		if err != nil {
			return err
		}
		b, err := json.MarshalIndent(next.stored, "", "  ")
		if err != nil {
			return err
		}
		s.robots = next
		return g.keepRobots(append(b, '\n'))
	})
}
