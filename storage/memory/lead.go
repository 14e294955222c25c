package memory

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"trow/storage"
)

// leads are the tasks that have a leader; guarded by the journal's lock.
type leads struct {
	terms map[string]*term // by task
	count int              // of all terms
}

// term is the time during which one process does a task.
type term struct {
	name  string
	value []byte        // of the fence
	ended chan struct{} // closed when it ends
}

var _ storage.Leads = (*Journal)(nil)

// Lead implements [storage.Leads].
func (j *Journal) Lead(ctx context.Context, task, name string) (storage.Fact, <-chan struct{}, error) {
	for {
		t, mine := j.begin(task, name)
		if mine {
			context.AfterFunc(ctx, func() { j.end(task, t) })
			return storage.Fact{Kind: storage.KindLead, Name: task, Value: t.value}, t.ended, nil
		}
		select {
		case <-t.ended:
		case <-ctx.Done():
			return storage.Fact{}, nil, context.Cause(ctx)
		}
	}
}

// begin begins a term, or returns the present one.
func (j *Journal) begin(task, name string) (t *term, mine bool) {
	j.feed.Lock()
	defer j.feed.Unlock()
	if t := j.leads.terms[task]; t != nil {
		return t, false
	}
	j.leads.count++
	t = &term{name, fmt.Appendf(nil, "%s %d", name, j.leads.count), make(chan struct{})}
	if j.leads.terms == nil {
		j.leads.terms = map[string]*term{}
	}
	j.leads.terms[task] = t
	return t, true
}

func (j *Journal) end(task string, t *term) {
	j.feed.Lock()
	defer j.feed.Unlock()
	if j.leads.terms[task] == t {
		delete(j.leads.terms, task)
		close(t.ended)
	}
}

// Leader implements [storage.Leads].
func (j *Journal) Leader(_ context.Context, task string) (string, error) {
	j.feed.Lock()
	defer j.feed.Unlock()
	if t := j.leads.terms[task]; t != nil {
		return t.name, nil
	}
	return "", nil
}

// Depose ends the term of the leader of a task, as if its process had been suspended for so long that another one may
// take over.
func (j *Journal) Depose(task string) {
	j.feed.Lock()
	t := j.leads.terms[task]
	j.feed.Unlock()
	if t != nil {
		j.end(task, t)
	}
}

// fit reports whether the fences among the conditions of a batch hold.
func (l *leads) fit(b storage.Batch) bool {
	return !slices.ContainsFunc(b.If, func(f storage.Fact) bool {
		t := l.terms[f.Name]
		return f.Kind == storage.KindLead && (t == nil || !bytes.Equal(t.value, f.Value))
	})
}
