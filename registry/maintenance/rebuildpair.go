package maintenance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/storage"
	"trow/storage/bolt"
)

// RebuildPair makes a new journal for bytes that are not in the data directory: from the newest complete copy of the
// facts beside them, and from the manifests among the newer objects. The journal that the settings name must be empty.
// Changes after the copy, such as those of tags, are lost. Nothing is deleted. If RebuildPair fails or is cut short, no
// server starts with the journal until it is run again; it then begins with the same copy. A dry run reads no object
// but the copy, and does not open the journal. Errors: as bolt.Open; those of the engines; the journal is not empty;
// there is nothing to rebuild from; [ErrUndecided], with what was found.
func RebuildPair(ctx context.Context, e Engines, r RebuildOptions) (done *Rebuilt, err error) {
	var j storage.Journal // nil: that of the settings
	use := Use{ReadOnly: r.DryRun, Memory: Memory(), Warn: r.Warn}
	if use.Warn == nil {
		use.Warn = func(error) {}
	}
	if r.DryRun { // the same steps, with a temporary journal
		var at string
		if at, err = os.MkdirTemp("", "trow-rebuild-"); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(at)) }()
		if j, err = journalOr(bolt.Open(at)); err != nil {
			return nil, err
		}
	}
	opened, err := e.Open(ctx, use, j, storage.IndexOptions{})
	if errors.Is(err, storage.ErrDamaged) && e.Journal == "" {
		err = fmt.Errorf("%w; as the bytes are in %s, move journal.* and owner out of %s and run it again: the facts "+
			"are then taken from the copy beside the bytes", err, e.Blobs, e.DataDir)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	kept, ok := opened.Blobs.(storage.Keeper)
	identified, ok2 := opened.Blobs.(storage.Identified)
	objects, ok3 := opened.Blobs.(storage.Placed)
	if !ok || !ok2 || !ok3 {
		return nil, fmt.Errorf("%s: %w: this engine keeps no copies of the facts", e.Where(), errors.ErrUnsupported)
	}
	p := &pair{rebuilding: rebuilding{o: r, index: opened.Index, blobs: opened.Blobs, done: &Rebuilt{}}, engines: e,
		journal: opened.Journal, kept: kept, objects: objects, found: map[string]bool{}}
	if p.identity, err = identified.Identity(ctx); err != nil {
		return nil, err
	}
	return p.done, p.run(ctx)
}

// pair is one rebuild of a journal for bytes that are not in the data directory.
type pair struct {
	rebuilding
	engines  Engines
	journal  storage.Journal
	kept     storage.Keeper
	objects  storage.Placed
	identity string           // of the bytes
	unnamed  []storage.Object // that no fact of the copy names
	newer    []storage.Object // of these, those that a server may have named after the copy
	found    map[string]bool  // objects of manifests that no repo holds
}

func (p *pair) run(ctx context.Context) error {
	from, unfinished := p.index.Rebuilding()
	where := p.engines.Where()
	switch {
	case p.identity == "":
		return fmt.Errorf("%s: the bytes have no identity, so no server has ever used them; correct the setting blobs",
			where)
	case !unfinished && !p.index.Empty():
		return fmt.Errorf("%s: the journal is not empty; a rebuild makes a new one: give another prefix of etcd, or "+
			"another data directory, or empty it", where)
	}
	if !unfinished {
		if err := p.choose(ctx); err != nil {
			return err
		}
		if err := p.index.BeginRebuild(ctx, p.done.Copy.Name); err != nil {
			return err
		}
	} else if from != "" { // the same copy as before: the journal may have some of its facts already
		p.done.Copy, _ = storage.ParseCopy(from)
	}
	if err := p.restore(ctx); err != nil {
		return err
	}
	p.done.Restored = p.index.Stats()
	places, err := p.list(ctx)
	if err != nil {
		return err
	}
	if err := p.recoverNewer(ctx); err != nil {
		return err
	}
	if err := p.missing(ctx, places); err != nil || p.o.DryRun {
		return err
	}
	if len(p.done.Found) > 0 && !p.o.Recover && !p.o.Discard {
		return ErrUndecided
	}
	// A new copy, with the revision of the new journal: the newest one has a higher revision, and the server would
	// suspect that the journal went back.
	all, err := storage.CopiesOf(ctx, p.kept)
	if err != nil {
		return err
	}
	if _, err := writeFacts(ctx, p.kept, p.journal, p.engines.DataDir, all, p.identity,
		p.index.Revision()); err != nil {
		return err
	}
	return p.index.EndRebuild(ctx, p.identity) // last: from here on a server may start
}

// choose finds the newest copy that is complete and has the identity of the bytes. Without one, the journal is made
// from the objects alone. Errors: those of the engine.
func (p *pair) choose(ctx context.Context) error {
	all, err := storage.CopiesOf(ctx, p.kept)
	if err != nil {
		return err
	}
	for _, c := range all {
		h, err := p.read(ctx, c.Name, nil)
		switch {
		case errors.Is(err, storage.ErrCopy):
			p.done.Damaged = append(p.done.Damaged, fmt.Sprintf("%s: %v", c.Name, err))
		case err != nil:
			return err
		case h.Identity != p.identity:
			p.done.Damaged = append(p.done.Damaged, fmt.Sprintf("%s: it is of a journal of another identity", c.Name))
		default:
			p.done.Copy = c
			return nil
		}
	}
	return nil
}

func (p *pair) read(ctx context.Context, name string,
	apply func(string, []storage.Fact) error) (storage.CopyHeader, error) {
	r, err := p.kept.OpenCopy(ctx, name)
	if err != nil {
		return storage.CopyHeader{}, err
	}
	defer r.Close()
	return storage.ReadFacts(r, apply)
}

// restore records the facts of the copy in the journal. Errors: those of the engines; ErrCopy.
func (p *pair) restore(ctx context.Context) error {
	if p.done.Copy.Name == "" {
		return nil
	}
	_, err := p.read(ctx, p.done.Copy.Name, func(repo string, facts []storage.Fact) error {
		return p.index.CopyFacts(ctx, repo, facts)
	})
	return err
}

// clocks is how far the clocks of a server and of the service may differ: an object is compared with the time of a
// copy.
const clocks = time.Hour

// list lists the objects. It returns the places of those that facts name, and notes the others in unnamed and newer.
func (p *pair) list(ctx context.Context) (places map[string]bool, err error) {
	named := map[string]bool{}
	for _, place := range p.index.Places() {
		named[place] = true
	}
	places = map[string]bool{}
	for o, err := range p.objects.Objects(ctx) {
		if err != nil {
			return nil, err
		}
		switch {
		case named[o.Place]:
			places[o.Place] = true
			continue
		case p.index.Nameable(o.Place) && o.ModTime.After(p.done.Copy.Time.Add(-clocks)):
			p.newer = append(p.newer, o)
		}
		p.unnamed = append(p.unnamed, o)
	}
	return places, nil
}

// recoverNewer reads the newer objects that are small enough to be manifests, and with Recover puts the manifests that
// no repo holds into Into. Errors: those of the engines.
func (p *pair) recoverNewer(ctx context.Context) error {
	const maxManifest = 4 << 20 // bytes; the registry accepts no larger one
	var small, large []storage.Object
	bytes := int64(0)
	for _, o := range p.newer {
		if o.Size > maxManifest {
			large = append(large, o)
			continue
		}
		small, bytes = append(small, o), bytes+o.Size
	}
	if p.done.Unread, p.done.ToRead = len(small), bytes; p.o.DryRun || len(small) == 0 {
		return nil
	}
	p.done.Unread, p.done.ToRead = 0, 0
	p.say(len(small), bytes)
	at := map[digest.Digest]storage.Object{}
	var found []orphan
	for i, o := range small {
		content, d, err := p.content(ctx, o, maxManifest)
		if err != nil {
			return err
		}
		if p.o.Progress != nil && i%100 == 99 {
			p.o.Progress(i + 1)
		}
		m, parts, ok := p.o.Parse(content)
		if _, again := at[d]; ok && !again && !p.index.Present(d) {
			m.Digest, m.Size = d, o.Size
			found = append(found, orphan{m, parts})
			p.done.Found = append(p.done.Found, m)
			p.found[o.Place] = true
		}
		at[d] = o
	}
	if !p.o.Recover {
		return nil
	}
	if err := p.readLarge(ctx, found, large, at); err != nil {
		return err
	}
	for _, m := range found {
		if err := p.adoptPlaced(ctx, m, at); err != nil {
			return err
		}
	}
	return nil
}

func (p *pair) say(objects int, bytes int64) {
	if p.o.Reading != nil {
		p.o.Reading(objects, bytes)
	}
}

// content reads up to most bytes of an object, and computes their digest, which the name of an object does not have.
func (p *pair) content(ctx context.Context, o storage.Object, most int64) ([]byte, digest.Digest, error) {
	r, err := p.kept.OpenObject(ctx, o.Place)
	if err != nil {
		return nil, "", err
	}
	defer r.Close()
	content, err := io.ReadAll(io.LimitReader(r, most))
	return content, digest.FromBytes(content), err
}

// readLarge finds the parts of the found manifests among the large objects, and notes them in at. It reads only objects
// that have the size of a part in a manifest. Errors: those of the engine.
func (p *pair) readLarge(ctx context.Context, found []orphan, large []storage.Object,
	at map[digest.Digest]storage.Object) error {
	wanted := map[int64]bool{}
	for _, m := range found {
		for d, size := range m.parts {
			if _, known := at[d]; !known {
				wanted[size] = true
			}
		}
	}
	var like []storage.Object
	bytes := int64(0)
	for _, o := range large {
		if wanted[o.Size] {
			like, bytes = append(like, o), bytes+o.Size
		}
	}
	if len(like) == 0 {
		return nil
	}
	p.say(len(like), bytes)
	for _, o := range like {
		r, err := p.kept.OpenObject(ctx, o.Place)
		if err != nil {
			return err
		}
		d, err := digest.FromReader(r)
		_ = r.Close()
		if err != nil {
			return err
		}
		at[d] = o
	}
	return nil
}

// adoptPlaced is adopt for objects, which facts have to name. The names come first, then the links, and the manifest
// last, so that a rebuild that is cut short leaves no manifest without its parts. A part without bytes is linked as
// well, and quarantined later.
func (p *pair) adoptPlaced(ctx context.Context, m orphan, at map[digest.Digest]storage.Object) error {
	for _, d := range append([]digest.Digest{m.Digest}, m.Refs...) {
		o, ok := at[d]
		if !ok {
			continue
		}
		if err := p.index.NameObject(ctx, d, o.Place); err != nil {
			return err
		}
	}
	var links []digest.Digest
	for d, size := range m.parts {
		_, err := p.index.Place(ctx, d)
		if errors.Is(err, storage.ErrNotFound) {
			err = p.index.LinkLost(ctx, p.o.Into, d, size)
		} else if err == nil {
			links = append(links, d)
		}
		if err != nil {
			return err
		}
	}
	err := storage.InSteps(links, func(step []digest.Digest) error {
		return p.index.Update(ctx, p.o.Into, func(tx *storage.Tx) error {
			for _, d := range step {
				tx.Link(d, m.parts[d])
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	return p.index.Update(ctx, p.o.Into, func(tx *storage.Tx) error { return tx.PutManifest(m.Manifest) })
}

// missing quarantines content that repos hold and that has no object, and counts the objects that nothing names. places
// are those of the objects that facts named when they were listed.
func (p *pair) missing(ctx context.Context, places map[string]bool) error {
	for _, o := range p.newer {
		places[o.Place] = true
	}
	there, now := map[digest.Digest]bool{}, map[string]bool{}
	for d, place := range p.index.Places() {
		there[d], now[place] = places[place], true
	}
	for _, o := range p.unnamed {
		if !now[o.Place] && !p.found[o.Place] {
			p.done.Unclaimed++
			p.done.UnclaimedBytes += o.Size
		}
	}
	for d := range p.index.Contents() {
		if there[d] {
			continue
		}
		p.done.Missing = append(p.done.Missing, d)
		if err := p.index.Quarantine(ctx, d, "its bytes are missing"); err != nil {
			return err
		}
	}
	return nil
}
