package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
)

// RebuildOptions say how to rebuild a journal.
type RebuildOptions struct {
	// Into is the repo that gets the manifests of which nothing says whose they are.
	Into string
	// Parse reads a manifest; ok is false for what is none. Digest, Size and Time are not its concern.
	Parse func(content []byte) (m Manifest, ok bool)
	// Progress is told the number of blobs looked at, now and then. Optional.
	Progress func(blobs int)
}

// Rebuilt says what became of a journal.
type Rebuilt struct {
	Damage   string          // what was wrong with the journal; empty: nothing
	Aside    string          // where the damaged file is now
	Backup   time.Time       // when the copy that took its place was made; zero: there was none
	Restored Stats           // what the journal knows, without what was found
	Found    []Manifest      // manifests among the blobs that no repo held; they are in Into now
	Missing  []digest.Digest // what repos hold, and has no bytes: quarantined
	// Unclaimed counts the blobs that still belong to nothing, and their bytes: the next collection frees them.
	Unclaimed      int
	UnclaimedBytes int64
}

// Rebuild makes a journal that can be read of what is left, on a data directory without a server: of the journal
// itself if it is whole, else of the copy that the server has kept beside it, and of the manifests among the blobs.
// What was changed after the copy was made, such as tags, is not known to anything else. Nothing is deleted. If it fails
// or is cut short, no server starts on the directory until it is run again, which goes on from where it was. Errors: as
// OpenBolt; what the file system says.
func Rebuild(ctx context.Context, dir string, o RebuildOptions) (*Rebuilt, error) {
	r := &Rebuilt{}
	j, x, err := r.open(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer j.Close()
	defer x.Close()
	r.Restored = x.Stats()
	if err := pardon(ctx, x); err != nil {
		return nil, err
	}
	b, err := OpenDisk(dir, DiskOptions{})
	if err != nil {
		return nil, err
	}
	if r.Found, err = orphans(ctx, b, x, o); err != nil {
		return nil, err
	}
	for _, m := range r.Found {
		if err := adopt(ctx, b, x, o.Into, m); err != nil {
			return nil, err
		}
	}
	for info, err := range b.All(ctx) {
		if err != nil {
			return nil, err
		}
		if !x.present(keyOf(info.Digest)) {
			r.Unclaimed++
			r.UnclaimedBytes += info.Size
		}
	}
	if r.Missing, err = missing(ctx, b, x); err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(dir, unfinishedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return r, syncDir(dir)
}

// mark makes an empty file, durably, unless it is there.
func mark(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), syncDir(filepath.Dir(path)))
}

// open opens the journal; a damaged one is put aside, and its copy or an empty one takes its place.
func (r *Rebuilt) open(ctx context.Context, dir string) (*Bolt, *Index, error) {
	j, x, err := openBoth(ctx, dir)
	if !errors.Is(err, ErrDamaged) {
		return j, x, err
	}
	r.Damage = err.Error()
	if err := mark(filepath.Join(dir, unfinishedFile)); err != nil {
		return nil, nil, err
	}
	path, backup := filepath.Join(dir, journalFile), filepath.Join(dir, backupFile)
	r.Aside = path + ".damaged-" + time.Now().UTC().Format("20060102T150405Z")
	if err := os.Rename(path, r.Aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("put the damaged journal aside: %w", err)
	}
	for _, from := range []string{backup, ""} {
		if j, x, err = r.begin(ctx, dir, from); !errors.Is(err, ErrDamaged) && !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return j, x, err
}

// begin opens a copy of the file from, or a new journal if that is empty.
func (r *Rebuilt) begin(ctx context.Context, dir, from string) (*Bolt, *Index, error) {
	path := filepath.Join(dir, journalFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	r.Backup = time.Time{}
	if from == "" {
		if err := os.Remove(filepath.Join(dir, ownerFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
		return openBoth(ctx, dir)
	}
	fi, err := os.Stat(from)
	if err != nil {
		return nil, nil, err
	}
	if err := copyFile(from, path); err != nil {
		return nil, nil, err
	}
	r.Backup = fi.ModTime()
	return openBoth(ctx, dir)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close(), syncDir(filepath.Dir(to)))
}

func openBoth(ctx context.Context, dir string) (*Bolt, *Index, error) {
	j, err := openBolt(dir)
	if err != nil {
		return nil, nil, err
	}
	x, err := OpenIndex(ctx, j, IndexOptions{})
	if err != nil {
		return nil, nil, errors.Join(err, j.Close())
	}
	return j, x, nil
}

// pardon takes back what was condemned when the copy was made: it may have been pushed again since.
func pardon(ctx context.Context, x *Index) error {
	return x.Update(ctx, Store, func(tx *Tx) error {
		for _, k := range x.condemned() {
			tx.set(KindCondemned, string(k), nil)
		}
		return nil
	})
}

// orphans finds the manifests that no repo holds.
func orphans(ctx context.Context, b *Disk, x *Index, o RebuildOptions) (found []Manifest, err error) {
	const most = 4 << 20 // bytes of a manifest
	n, told := 0, time.Now()
	for info, err := range b.All(ctx) {
		if err != nil {
			return nil, err
		}
		if n++; o.Progress != nil && time.Since(told) > time.Second {
			told = time.Now()
			o.Progress(n)
		}
		if info.Size > most || x.present(keyOf(info.Digest)) {
			continue
		}
		content, err := readAll(ctx, b, info.Digest)
		if err != nil {
			return nil, err
		}
		m, ok := o.Parse(content)
		if m.Digest, m.Size = info.Digest, info.Size; ok && info.Digest.Algorithm().FromBytes(content) == info.Digest {
			found = append(found, m)
		}
	}
	return found, nil
}

func readAll(ctx context.Context, b Blobs, d digest.Digest) ([]byte, error) {
	f, err := b.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(f)
}

// adopt records a manifest and what it consists of, as far as it is there.
func adopt(ctx context.Context, b *Disk, x *Index, repo string, m Manifest) error {
	sizes := map[digest.Digest]int64{}
	for _, d := range m.Refs {
		info, err := b.Stat(ctx, d)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if err == nil {
			sizes[d] = info.Size
		}
	}
	return x.Update(ctx, repo, func(tx *Tx) error {
		for d, size := range sizes {
			tx.Link(d, size)
		}
		return tx.PutManifest(m)
	})
}

// missing quarantines what repos hold and has no bytes.
func missing(ctx context.Context, b *Disk, x *Index) (gone []digest.Digest, err error) {
	for k := range x.contents(0) {
		d := k.digest()
		if _, err := b.Stat(ctx, d); !errors.Is(err, ErrNotFound) {
			if err != nil {
				return nil, err
			}
			continue
		}
		gone = append(gone, d)
		if err := x.Quarantine(ctx, d, "its bytes are missing"); err != nil {
			return nil, err
		}
	}
	return gone, nil
}
