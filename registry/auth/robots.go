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
	"slices"
	"strings"
	"time"

	"trow/registry/glob"
)

// SecretPrefix begins the secrets of robots, so that scanners for secrets find them in code.
const SecretPrefix = "trow_"

// robotPrefix begins the names of robots as identities; users cannot have it.
const robotPrefix = "robot:"

// Robot is a robot, as it is listed.
type Robot struct {
	Name         string    `json:"name"`
	Repositories []string  `json:"repositories"` // patterns
	Actions      []Action  `json:"actions"`
	Created      time.Time `json:"created"`
	Expires      time.Time `json:"expires,omitzero"` // zero: it does not end by itself
}

// kept is a robot in the file. What is kept of its secret is the SHA-256. A slow hash is for passwords, that can be
// guessed; 256 random bits cannot, and a fast one lets a machine log in with each request.
type kept struct {
	Robot
	SHA256 string `json:"sha256"`
}

// robot is one, read.
type robot struct {
	Robot
	who   *Identity
	id    string // of this one, and not of another that had its name before
	repos glob.Set
}

// may tells what the robot was made for.
func (r *robot) may(repo string, a Action) bool {
	return slices.Contains(r.Actions, a) && (a.Whole() || r.repos.Match(repo))
}

func (r *robot) ended(now time.Time) bool { return !r.Expires.IsZero() && !now.Before(r.Expires) }

// robots are all of them. A set never changes.
type robots struct {
	kept   []kept
	byHash map[[32]byte]*robot
	byName map[string]*robot
}

const (
	// maxRobots bounds the file.
	maxRobots = 10_000
	// maxRobotsFile is what that many may take at most.
	maxRobotsFile = 64 << 20
)

// readRobots reads the file. It cannot be made anew: others have the secrets.
func readRobots(path string) (*robots, error) {
	b, err := readFile(path, maxRobotsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return newRobots(nil)
	}
	var list []kept
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	var r *robots
	if err == nil {
		r, err = newRobots(list)
	}
	if err != nil {
		return nil, fmt.Errorf("the robots' tokens in %s cannot be used: %w; put a copy of the file back, or delete it, which revokes them all", path, err)
	}
	return r, nil
}

func newRobots(list []kept) (*robots, error) {
	r := &robots{kept: list, byHash: map[[32]byte]*robot{}, byName: map[string]*robot{}}
	for _, k := range list {
		one := &robot{Robot: k.Robot}
		sum, err := hex.DecodeString(k.SHA256)
		if err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("robot %q: its sha256 is none", k.Name)
		}
		if one.repos, err = glob.Compile(k.Repositories...); err != nil {
			return nil, fmt.Errorf("robot %q: %w", k.Name, err)
		}
		one.id = k.SHA256[:16]
		one.who = &Identity{Name: robotPrefix + k.Name, robot: one}
		r.byHash[[32]byte(sum)] = one
		r.byName[k.Name] = one
	}
	return r, nil
}

// find tells whose secret it is. That a look-up in a map takes longer for some keys says nothing: the key is a hash.
func (r *robots) find(secret string, now time.Time) *robot {
	if !strings.HasPrefix(secret, SecretPrefix) {
		return nil
	}
	one := r.byHash[sha256.Sum256([]byte(secret))]
	if one == nil || one.ended(now) {
		return nil
	}
	return one
}

// with returns the set with one more, and its secret.
func (r *robots) with(o Robot) (*robots, string, error) {
	switch _, exists := r.byName[o.Name]; {
	case exists:
		return nil, "", fmt.Errorf("there is a robot %q already; revoke it, or take another name", o.Name)
	case len(r.kept) >= maxRobots:
		return nil, "", fmt.Errorf("there are %d robots, and not one more; revoke those that have ended", maxRobots)
	}
	secret := SecretPrefix + rand.Text() + rand.Text() // 260 bits
	sum := sha256.Sum256([]byte(secret))
	next, err := newRobots(append(slices.Clone(r.kept), kept{o, hex.EncodeToString(sum[:])}))
	return next, secret, err
}

// without returns the set without one.
func (r *robots) without(name string) (*robots, error) {
	if _, ok := r.byName[name]; !ok {
		return nil, fmt.Errorf("there is no robot %q", name)
	}
	return newRobots(slices.DeleteFunc(slices.Clone(r.kept), func(k kept) bool { return k.Name == name }))
}

func (r *robots) save(path string) error {
	b, err := json.MarshalIndent(r.kept, "", "  ")
	if err != nil {
		return err
	}
	return save(path, append(b, '\n'))
}

// CreateRobot makes a robot and returns its secret, which nobody can tell again. Errors: what is wrong with the name,
// the patterns, the actions or the end; that it exists; whatever the file system reports.
func (g *Guard) CreateRobot(o Robot) (secret string, err error) {
	o.Created = time.Now().UTC().Truncate(time.Second)
	if err := o.check(); err != nil {
		return "", err
	}
	err = g.changeRobots(func(r *robots) (*robots, error) {
		next, s, err := r.with(o)
		secret = s
		return next, err
	})
	if err != nil {
		return "", err
	}
	return secret, nil
}

// check finds what cannot be meant.
func (r *Robot) check() error {
	valid := func(c rune) bool {
		return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || strings.ContainsRune("._-", c)
	}
	switch {
	case r.Name == "" || len(r.Name) > 63 || strings.ContainsFunc(r.Name, func(c rune) bool { return !valid(c) }):
		return fmt.Errorf("name: %.80q is none: 1 to 63 lower-case letters, digits, '.', '_' and '-'", r.Name)
	case !r.Expires.IsZero() && !r.Expires.After(r.Created):
		return fmt.Errorf("expires: the end has passed already")
	case len(r.Repositories) == 0:
		return fmt.Errorf("repository: say which it is for; ** is all")
	}
	if _, err := glob.Compile(r.Repositories...); err != nil {
		return fmt.Errorf("repository: %w", err)
	}
	return nil
}

// RevokeRobot ends a robot: its secret and the tokens given for it count no more. Errors: that there is none of this
// name; whatever the file system reports.
func (g *Guard) RevokeRobot(name string) error {
	return g.changeRobots(func(r *robots) (*robots, error) { return r.without(name) })
}

// Robots lists the robots by name.
func (g *Guard) Robots() []Robot {
	all := g.state.Load().robots.byName
	list := make([]Robot, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, all[name].Robot)
	}
	return list
}

// changeRobots makes the change durable, and then lets it count.
func (g *Guard) changeRobots(change func(*robots) (*robots, error)) error {
	return g.change(func(s *state) error {
		next, err := change(s.robots)
		if err != nil {
			return err
		}
		s.robots = next
		return next.save(g.path(robotsFile))
	})
}

// path is a file of the guard's own.
func (g *Guard) path(name string) string { return g.options.Dir + string(os.PathSeparator) + name }
