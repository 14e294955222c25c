package upstream

import (
	"context"
	"os"
	"path/filepath"
	"time"
)

const (
	// keepFor is how long what a download has left stays, if no other one continues it.
	keepFor = time.Hour
	// maxLeft bounds how many there are. They keep their room in the cache, so their bytes are bounded as well.
	maxLeft = 32
)

// leftover is what has arrived of a content before its download has failed.
type leftover struct {
	key      key
	at       time.Time
	size     int64
	path     string   // of a spool file; empty: the upload itself was kept
	releases []func() // of the room in the cache
	d        Download // to find the upload, if that was kept
}

func (l *leftover) release() {
	for _, release := range l.releases {
		release()
	}
	l.releases = nil
}

// drop deletes the bytes, and gives their room back.
func (l *leftover) drop() {
	if l.path != "" {
		_ = os.Remove(l.path) // what stays is found at the next start
	} else if u, err := l.d.Resume(context.Background()); err == nil {
		_ = u.Cancel(context.Background()) // an upload that stays expires
	}
	l.release()
}

// keep keeps a leftover for the next download of its content.
func (f *Fetcher) keep(l *leftover) {
	var drop []*leftover
	f.mu.Lock()
	if old := f.left[l.key]; old != nil {
		drop = append(drop, old)
		f.forget(old)
	}
	if f.flights[l.key] != nil && f.flights[l.key].d.Resume != nil && l.path == "" {
		// Another download has begun, and has taken the upload over.
		f.mu.Unlock()
		l.release()
		return
	}
	f.left[l.key] = l
	if l.path != "" {
		f.spooled += l.size
	}
	if !f.sweeps {
		f.sweeps = true
		time.AfterFunc(keepFor, f.sweepLeft)
	}
	for len(f.left) > maxLeft {
		old := f.oldest(false)
		drop = append(drop, old)
		f.forget(old)
	}
	f.mu.Unlock()
	for _, old := range drop {
		if old.path != l.path || l.path != "" { // an upload of the same content is the one that is kept now
			old.drop()
		} else {
			old.release()
		}
	}
}

// forget removes a leftover. The caller holds mu.
func (f *Fetcher) forget(l *leftover) {
	delete(f.left, l.key)
	if l.path != "" {
		f.spooled -= l.size
	}
}

// take returns what was left of a content, which is the caller's from then on; nil if there is nothing.
func (f *Fetcher) take(k key) *leftover {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.left[k]
	if l != nil {
		f.forget(l)
	}
	return l
}

// oldest returns the leftover that has stayed the longest; nil if there is none. The caller holds mu.
func (f *Fetcher) oldest(spools bool) (oldest *leftover) {
	for _, l := range f.left {
		if (!spools || l.path != "") && (oldest == nil || l.at.Before(oldest.at)) {
			oldest = l
		}
	}
	return oldest
}

// dropOldest drops a leftover, of spool files alone or of any kind. It reports false if there is none.
func (f *Fetcher) dropOldest(spools bool) bool {
	f.mu.Lock()
	l := f.oldest(spools)
	if l != nil {
		f.forget(l)
	}
	f.mu.Unlock()
	if l == nil {
		return false
	}
	l.drop()
	return true
}

// findLeft finds the spool files from before the start. It removes those that belong to no content, and those beyond
// the bound.
func (f *Fetcher) findLeft() {
	paths, _ := filepath.Glob(filepath.Join(f.options.Dir, spoolPrefix+"*")) // only a bad pattern is an error
	for _, path := range paths {
		info, err := os.Stat(path)
		k, ok := spoolKey(path)
		if err != nil || !ok || info.Size() < keepFrom || time.Since(info.ModTime()) > keepFor {
			_ = os.Remove(path)
			continue
		}
		f.keep(&leftover{key: k, at: info.ModTime(), size: info.Size(), path: path})
	}
	for f.spooled > f.options.Spool && f.dropOldest(true) {
	}
}

// sweepLeft drops what no download has continued for keepFor.
func (f *Fetcher) sweepLeft() {
	for {
		f.mu.Lock()
		l := f.oldest(false)
		f.sweeps = l != nil && f.ctx.Err() == nil
		if f.sweeps {
			if wait := keepFor - time.Since(l.at); wait > 0 {
				time.AfterFunc(wait, f.sweepLeft)
				f.mu.Unlock()
				return
			}
		}
		due := f.sweeps
		f.mu.Unlock()
		if !due {
			return
		}
		f.dropOldest(false)
	}
}
