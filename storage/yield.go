package storage

import "iter"

// yieldEvery is after how many steps a long look through the state lets others have the lock: well below a millisecond.
const yieldEvery = 1000

// yielding iterates over a map of the state, with the lock held for reading by the caller; it lets go of it again and
// again. A commit that waits for the lock keeps all readers waiting, verdicts too, so nothing may hold it for as long
// as a million names take. What is added or removed meanwhile may be seen or not. If the state is loaded again, the
// rest is that of the old one, which no longer changes: the caller must not look anything up in another state than
// before.
func yielding[K comparable, V any](x *Index, m map[K]V) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		left := yieldEvery
		for k, v := range m {
			// The lock is held when yield is called, and nothing was removed since the map gave k: IDs are valid.
			if !yield(k, v) {
				return
			}
			if left--; left == 0 {
				x.yield()
				left = yieldEvery
			}
		}
	}
}

// yield lets others have the lock, which the caller holds for reading.
func (x *Index) yield() {
	x.mu.RUnlock()
	x.mu.RLock()
}
