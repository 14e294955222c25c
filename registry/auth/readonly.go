package auth

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"trow/storage/files"
)

// errReadOnly refuses what must be durable.
var errReadOnly = errors.New("the registry is read-only: it writes nothing to its data directory, so no token can be " +
	"created or revoked; restart it where it may write there")

// openDir opens the directory of a Guard. If it is read-only and does not exist, both results are nil.
func openDir(o Options) (*os.Root, error) {
	if !o.ReadOnly {
		return files.OpenDir(o.Dir)
	}
	root, err := os.OpenRoot(o.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return root, err
}

// keepKeys makes a keyring durable. Where nothing is written, it is valid until the process ends: clients get new
// tokens then, as they do when theirs have expired.
func (g *Guard) keepKeys(content []byte) error {
	if g.options.ReadOnly {
		return nil
	}
	return files.Write(g.root, keysFile, content, 0o600)
}

// keepRobots makes a set of robots durable.
func (g *Guard) keepRobots(content []byte) error {
	if g.options.ReadOnly {
		return errReadOnly
	}
	return files.Write(g.root, robotsFile, content, 0o600)
}

// readOnlySummary is Summary for a read-only registry: whatever the settings allow, nothing is pushed or deleted.
func (g *Guard) readOnlySummary() string {
	const only = "; to push and to delete is not possible, because the registry is read-only"
	switch p := g.state.Load().policy; {
	case p.Rules() > 0:
		return fmt.Sprintf("pull, as the %d rules of the configuration file allow (ask with trow can-i)", p.Rules()) + only
	case p.Private || p.Anonymous >= ReadOnly:
		return "pull" + only
	}
	return "nothing" + only
}
