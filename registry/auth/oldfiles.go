package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"trow/storage"
	"trow/storage/files"
)

// Earlier versions kept robots and keys in files of the data directory. They are taken into the records, once, in this
// order:
//
//  1. each robot and each key becomes a record, unless there is one of its name;
//  2. the record takenRecord says that this is done;
//  3. the journal is copied, for trow rebuild: the last copy does not know the records;
//  4. the files are removed. They hold the hashes of secrets and the keys themselves, also of robots that are revoked
//     later.
//
// A crash before 2 loses nothing: the next start does it again, and no robot can have been revoked in between, because
// no other process writes to this journal, and a change of a robot needs 2. A crash after 2 revives nothing: the files
// do not count any more, whether they are gone or not. Until 2 has succeeded, and where nothing may be written, robots
// and keys are those of the records and of the files together.

// The files in Options.Dir.
const (
	robotsFile = "robots.json"
	keysFile   = "token-keys.json"
	// maxRobotsFile is more than maxRobots take.
	maxRobotsFile = 64 << 20
)

// oldFiles are the files of an earlier version.
type oldFiles struct {
	robots []storedRobot
	keys   keyring
	gone   bool // they were removed; guarded by Guard.changes
}

// findFiles looks for the files, and reads them if they count. Errors: those of robots that cannot be read, because
// machines have the secrets.
func (g *Guard) findFiles(r Records) error {
	root, err := os.OpenRoot(g.options.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("directory of tokens: %w", err)
	}
	defer root.Close()
	if !exists(root, robotsFile) && !exists(root, keysFile) {
		return nil
	}
	if r.Shared() {
		g.options.Log.Warn().Str("dir", g.options.Dir).
			Msg("robots and keys in files are ignored, because those of the " +
				"shared journal count; trow migrate moves a data directory with its robots")
		return nil
	}
	old := &oldFiles{}
	if !recorded(r, takenRecord) {
		if old.robots, err = readRobots(root); err != nil {
			return err
		}
		if old.keys, err = readKeys(root); err != nil {
			return err
		}
	}
	g.old = old
	return nil
}

func exists(root *os.Root, name string) bool {
	_, err := root.Lstat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

// recorded reports whether there is a record of this name.
func recorded(r Records, name string) bool {
	for other := range r.Records(name) {
		if other == name {
			return true
		}
	}
	return false
}

func readRobots(root *os.Root) (list []storedRobot, err error) {
	b, err := files.ReadIn(root, robotsFile, maxRobotsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	for _, stored := range list {
		if err == nil {
			_, err = stored.robot()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the robots in %s: %w; "+
			"restore the file from a copy, or delete it, which revokes all robots",
			filepath.Join(root.Name(), robotsFile), err)
	}
	return list, nil
}

// readKeys reads the keys. A file that cannot be decoded counts as empty: clients get new tokens automatically, so that
// nothing is lost.
func readKeys(root *os.Root) (keyring, error) {
	b, err := files.ReadIn(root, keysFile, files.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("token keys: %w", err)
	}
	var ring keyring
	if json.Unmarshal(b, &ring) != nil {
		return nil, nil
	}
	for i := range ring {
		if !ring[i].valid() {
			return nil, nil
		}
	}
	return ring, nil
}

// add adds what has no record.
func (o *oldFiles) add(stored map[string][]byte, keys *keyring) {
	for _, r := range o.robots {
		if _, ok := stored[r.Name]; !ok {
			stored[r.Name] = mustMarshal(r)
		}
	}
	for _, k := range o.keys {
		if keys.find(k.ID) == nil {
			*keys = append(*keys, k)
		}
	}
}

// mustMarshal encodes what was decoded from JSON.
func mustMarshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// takeFiles takes the files into the records and removes them; see the order above. The caller holds changes. Errors:
// what could not be recorded. That the files could not be removed is logged: the next start tries again.
func (g *Guard) takeFiles(ctx context.Context) error {
	old := g.old
	if old == nil || old.gone {
		return nil
	}
	s := g.current()
	if !s.taken {
		if err := old.record(ctx, s.records); err != nil {
			return fmt.Errorf("robots and keys of %s cannot be taken into the journal: %w", g.options.Dir, err)
		}
		g.options.Log.Info().Int("robots", len(old.robots)).Msg("robots and keys are records of the journal now; " +
			"their files are removed")
	}
	old.gone = true // also if that fails: one attempt for each start
	if err := g.removeFiles(ctx); err != nil {
		g.options.Log.Error().Err(err).Str("dir", g.options.Dir).
			Msg("files of robots and keys, which are not used any " +
				"more, cannot be removed; remove them, they hold keys and hashes of secrets")
	}
	return nil
}

// record is steps 1 and 2.
func (o *oldFiles) record(ctx context.Context, r Records) error {
	set := func(name string, value []byte) error {
		if err := r.SetRecord(ctx, name, nil, value); !errors.Is(err, storage.ErrConflict) {
			return err
		}
		return nil // an attempt before this one has recorded it
	}
	for _, one := range o.robots {
		if err := set(robotRecord+one.Name, mustMarshal(one)); err != nil {
			return err
		}
	}
	for _, k := range o.keys {
		if err := set(keyRecord+k.ID, mustMarshal(k)); err != nil {
			return err
		}
	}
	return set(takenRecord, []byte(time.Now().UTC().Format(time.RFC3339)))
}

// removeFiles is steps 3 and 4.
func (g *Guard) removeFiles(ctx context.Context) error {
	if g.cleanup != nil {
		if err := g.cleanup(ctx); err != nil {
			return err
		}
	}
	root, err := files.OpenDir(g.options.Dir) // which removes what a crash left of a write
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range []string{robotsFile, keysFile} {
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return files.SyncDirIn(root, ".")
}
