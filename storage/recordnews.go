package storage

import "strings"

// recordNews is called when a record whose name starts with prefix may have changed.
type recordNews struct {
	prefix string
	call   func()
}

// NotifyRecords makes the Index call changed after each change of a record whose name starts with prefix, whichever
// process has made it, and after the full state was loaded again. It is called before the Update that made the change
// returns, and with the Index's lock held: it must return at once and call nothing of the Index. It is never removed.
func (x *Index) NotifyRecords(prefix string, changed func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.recordNews = append(x.recordNews, recordNews{prefix, changed})
}

// Shared reports whether several processes write to the Journal, so that what the Index does not know may exist.
func (x *Index) Shared() bool { return x.shared }

// notifyRecords calls the functions whose records an update changes; the caller holds mu, and the state shows the
// update.
func (x *Index) notifyRecords(u Update) {
	for _, n := range x.recordNews {
		if n.concerns(u) {
			n.call()
		}
	}
}

func (n *recordNews) concerns(u Update) bool {
	for _, b := range u.Batches {
		if b.Repo != storeRepo {
			continue
		}
		for _, f := range b.Facts {
			if f.Kind == kindRecord && strings.HasPrefix(f.Name, n.prefix) {
				return true
			}
		}
	}
	return false
}

// reloaded calls all functions, because any record may have changed; the caller holds mu.
func (x *Index) reloaded() {
	for _, n := range x.recordNews {
		n.call()
	}
}
