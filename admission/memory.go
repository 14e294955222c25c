package admission

import "sync"

// memory keeps what image strings mean: the pods of a cluster name the same few, and parsing one costs as much as all
// the rest of a verdict. A reference means the same for ever, so nothing in it is ever stale. What is no reference is not
// kept. The zero value is ready, and safe for concurrent use.
type memory struct {
	mu         sync.Mutex // guards what follows
	fresh, old map[string]Reference
}

// maxMemory bounds half of a memory. With maxReference for each, both halves take 2 MiB at the most, and 500 KiB with
// references as they are.
const maxMemory = 1024

// reference is ParseReference with a memory. What was asked for lately outlives what was not: when the one half is full,
// it becomes the other, which is dropped.
func (m *memory) reference(s string) (Reference, error) {
	m.mu.Lock()
	r, ok := m.fresh[s]
	if !ok {
		if r, ok = m.old[s]; ok {
			m.keep(s, r)
		}
	}
	m.mu.Unlock()
	if ok {
		return r, nil
	}
	r, err := ParseReference(s)
	if err != nil {
		return r, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keep(s, r)
	return r, nil
}

// keep notes what s means; the caller has mu.
func (m *memory) keep(s string, r Reference) {
	if m.fresh == nil || len(m.fresh) >= maxMemory {
		m.fresh, m.old = make(map[string]Reference), m.fresh
	}
	m.fresh[s] = r
}
