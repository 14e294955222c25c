package maintenance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/disk"
)

// RebuildOptions say how to rebuild a journal.
type RebuildOptions struct {
	// Into is the repo that gets the manifests that no repo holds.
	Into string
	// Parse reads a manifest; ok is false for content that is not one. It need not set Digest, Size and Time. parts has
	// the size in bytes of every part that a repo with this manifest must hold, so not of foreign layers.
	Parse func(content []byte) (m storage.Manifest, parts map[digest.Digest]int64, ok bool)
	// Reading is called before objects are read whose digests are not known, with their number and bytes. Optional.
	Reading func(objects int, bytes int64)
	// Progress is called about once a second with the number of blobs examined. Optional.
	Progress func(blobs int)
	// Recover puts the manifests that no repo holds into Into. They are deleted ones that were not collected yet, and
	// what was pushed after the backup: nothing distinguishes the two.
	Recover bool
	// Discard leaves them to the collector also if the journal was damaged.
	Discard bool
	// DryRun changes nothing.
	DryRun bool
	// Warn hears what an engine has handled by itself, and what its administrator must know. Optional.
	Warn func(error)
}

// ErrUndecided ends a rebuild of a damaged journal that found manifests that no repo holds, where the options do not
// say what becomes of them: a collection would delete them. No server starts until it has been run again with Recover
// or Discard.
var ErrUndecided = errors.New("manifests were found that no repository holds")

// Rebuilt is what became of a journal.
type Rebuilt struct {
	Damage   string             // what was wrong with the journal; empty: nothing
	Aside    string             // where the damaged file is now
	Backup   time.Time          // when the copy that took its place was made; zero: there was none
	Copy     storage.Copy       // beside the bytes, from which the facts are; see RebuildPair
	Damaged  []string           // newer copies that cannot be used, and why
	Unread   int                // with DryRun: objects that would be read, because their digests are not known
	ToRead   int64              // with DryRun: bytes of these
	Restored storage.Stats      // what the journal knows, without what was found
	Found    []storage.Manifest // manifests among the blobs that no repo held; with Recover, they are in Into now
	Missing  []digest.Digest    // content that repos hold and that has no bytes; it is quarantined
	// Unclaimed counts the blobs without Found that are still not present in any repo, and their bytes: the next
	// collection frees them.
	Unclaimed      int
	UnclaimedBytes int64
}

// Rebuild makes a journal that can be read, on a data directory without a server: from the journal itself if it is
// intact, else from the backup that the server keeps beside it, and from the manifests among the blobs. What was
// changed after the backup was made, such as tags, is recorded nowhere else. Nothing is deleted. If Rebuild fails or is
// cut short, no server starts on the directory until it is run again; it then continues where it was. Errors: as
// bolt.Open; the directory holds no data; [ErrUndecided], with what was found; those of the file system.
func Rebuild(ctx context.Context, dir string, o RebuildOptions) (done *Rebuilt, err error) {
	dir = filepath.Clean(dir) // as in the messages of the journal, in which its copy gets the name of the original
	at := dir
	if o.DryRun {
		if !bolt.Exists(dir) {
			return nil, fmt.Errorf("%s holds no data of a registry; set --data-dir to the data directory of one", dir)
		}
		// A copy in the directory itself: there is room for a journal where one grows.
		if at, err = os.MkdirTemp(dir, "rebuild-dry-run-"); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(at)) }()
		release, err := bolt.CopyTo(dir, at)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	r := rebuilding{o: o}
	journal, err := bolt.Recover(at, func(j *bolt.Journal) (err error) {
		r.index, err = storage.OpenIndex(ctx, j, storage.IndexOptions{})
		return err
	})
	if err != nil {
		return nil, err
	}
	defer journal.Journal.Close()
	defer r.index.Close()
	if id, err := r.index.Record(ctx, identityRecord); err != nil || id != nil {
		return nil, cmp.Or(err, fmt.Errorf("the bytes of the journal in %s are not in that directory (identity %s, "+
			"setting blobs): a rebuild would call all of them missing; set blobs as for the server, so that the "+
			"journal is made from the copy of the facts beside them", dir, id))
	}
	damage, _, _ := strings.Cut(strings.ReplaceAll(journal.Damage, at, dir), "; run trow rebuild") // it runs
	r.done = &Rebuilt{Damage: damage, Aside: journal.Aside, Backup: journal.Backup}
	if r.blobs, err = disk.Open(dir, disk.Options{}); err != nil {
		return nil, err
	}
	if err := r.run(ctx); err != nil {
		return nil, err
	}
	if len(r.done.Found) > 0 && journal.Unfinished() && !o.Recover && !o.Discard && !o.DryRun {
		return r.done, ErrUndecided
	}
	// Last: from here on a server may start, and a collection may believe the journal.
	return r.done, journal.Done()
}

// rebuilding is one rebuild.
type rebuilding struct {
	o     RebuildOptions
	index *storage.Index
	blobs storage.Blobs
	done  *Rebuilt
}

func (r *rebuilding) run(ctx context.Context) (err error) {
	r.done.Restored = r.index.Stats()
	// What was condemned when the backup was made may have been pushed again since.
	pardon := storage.Collector{Blobs: r.blobs, Index: r.index}
	if err := pardon.Pardon(ctx); err != nil {
		return err
	}
	found, err := r.orphans(ctx)
	if err != nil {
		return err
	}
	waiting := map[digest.Digest]bool{} // what comes back if they do
	for _, o := range found {
		r.done.Found = append(r.done.Found, o.Manifest)
		if r.o.Recover {
			if err := r.adopt(ctx, o); err != nil {
				return err
			}
			continue
		}
		waiting[o.Digest] = true
		for d := range o.parts {
			waiting[d] = true
		}
	}
	for info, err := range r.blobs.All(ctx) {
		if err != nil {
			return err
		}
		if !r.index.Present(info.Digest) && !waiting[info.Digest] {
			r.done.Unclaimed++
			r.done.UnclaimedBytes += info.Size
		}
	}
	return r.quarantineMissing(ctx)
}

// orphan is a manifest that no repo holds.
type orphan struct {
	storage.Manifest
	parts map[digest.Digest]int64 // as [RebuildOptions.Parse] returns them
}

// orphans returns the manifests among the blobs that no repo holds.
func (r *rebuilding) orphans(ctx context.Context) (found []orphan, err error) {
	const maxManifest = 4 << 20 // bytes; the registry accepts no larger one
	n, lastReport := 0, time.Now()
	for info, err := range r.blobs.All(ctx) {
		if err != nil {
			return nil, err
		}
		if n++; r.o.Progress != nil && time.Since(lastReport) > time.Second {
			lastReport = time.Now()
			r.o.Progress(n)
		}
		if info.Size > maxManifest || r.index.Present(info.Digest) {
			continue
		}
		content, err := r.read(ctx, info.Digest)
		if err != nil {
			return nil, err
		}
		m, parts, ok := r.o.Parse(content)
		m.Digest, m.Size = info.Digest, info.Size
		if ok && info.Digest.Algorithm().FromBytes(content) == info.Digest { // damaged bytes say nothing
			found = append(found, orphan{m, parts})
		}
	}
	return found, nil
}

func (r *rebuilding) read(ctx context.Context, d digest.Digest) ([]byte, error) {
	f, err := r.blobs.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// adopt records a manifest and links its parts. A part whose bytes are missing is linked as well, with the size that
// the manifest gives, and quarantined later: the repo held it, so it is damage, and the next push heals it. A foreign
// layer is linked only if its bytes exist.
func (r *rebuilding) adopt(ctx context.Context, m orphan) error {
	sizes := maps.Clone(m.parts)
	for _, d := range m.Refs {
		info, err := r.blobs.Stat(ctx, d)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		if err == nil {
			sizes[d] = info.Size
		}
	}
	return r.index.Update(ctx, r.o.Into, func(tx *storage.Tx) error {
		for d, size := range sizes {
			tx.Link(d, size)
		}
		return tx.PutManifest(m.Manifest)
	})
}

// quarantineMissing quarantines what repos hold and has no bytes. What their manifests only refer to, such as a foreign
// layer, is not missing.
func (r *rebuilding) quarantineMissing(ctx context.Context) error {
	for d := range r.index.Contents() {
		if _, err := r.blobs.Stat(ctx, d); !errors.Is(err, storage.ErrNotFound) {
			if err != nil {
				return err
			}
			continue
		}
		r.done.Missing = append(r.done.Missing, d)
		if err := r.index.Quarantine(ctx, d, "its bytes are missing"); err != nil {
			return err
		}
	}
	return nil
}
