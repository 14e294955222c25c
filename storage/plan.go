package storage

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// plan is what the functions of a group come to: the batches of one commit.
type plan struct {
	x       *Index
	repos   map[string]*planned
	order   []*planned
	changes int // how many changes of the group are in the commit; the others do not fit
	cost    cost
	changed bool   // by a change so far
	seal    []byte // Index.ownSeal
	growth  *growth
	adding  *adding
}

// planned is what a commit does to one repo.
type planned struct {
	name       string
	base, seen Revision // see Index.revisionOf
	newest     int64    // the greatest order of a tag; see HeldTag.Order
	changes    overlay
	conditions overlay
	moved      bool // there is a change that must be in conflict with others
	ends       bool // its revision ends
}

// plan calls the functions of a group, as far as their changes fit into one commit.
func (x *Index) plan(group []*change) *plan {
	p := &plan{x: x, repos: map[string]*planned{}, growth: &growth{quotas: x.currentQuotas()}, adding: &adding{}}
	x.mu.RLock()
	p.seal = x.ownSeal
	x.mu.RUnlock()
	p.cost = p.costOfSeal()
	for _, c := range group {
		if !p.run(c) {
			break
		}
		p.changes++
	}
	return p
}

// repo returns the part of the plan for a repo. The revisions are read before a function runs: if the repo changes in
// between, the commit of a batch that is not Detached is a conflict, and unchanged reports it for the others.
func (p *plan) repo(name string) *planned {
	r := p.repos[name]
	if r == nil {
		r = &planned{name: name, changes: overlay{}}
		r.base, r.seen, r.newest = p.x.revisionOf(name)
		p.repos[name] = r
		p.order = append(p.order, r)
	}
	return r
}

// changesOf returns what the commit does to a repo so far.
func (p *plan) changesOf(name string) overlay {
	if r := p.repos[name]; r != nil {
		return r.changes
	}
	return nil
}

// run calls the function of a change and adds what it does. It reports false if that does not fit into the commit, or
// if the commit has another fence: the change then goes into the next commit.
func (p *plan) run(c *change) (fits bool) {
	r, now := p.repo(c.repo), time.Now()
	if p.x.shared || p.x.options.Placed {
		// Before the function reads it, so that unchanged notices a change of what a failed function saw of it.
		p.repo(storeRepo)
	}
	tx := &Tx{x: p.x, repo: c.repo, pending: r.changes, store: p.changesOf(storeRepo), growth: p.growth,
		waiting: p.changesOf(waitingOf(c.repo)), now: now.Unix(), clock: now.UnixNano(), newest: &r.newest,
		adding: p.adding}
	c.depends = p.changed
	tx.readQuotas()
	if c.err = c.call(tx); c.err == nil {
		c.err = cmp.Or(tx.refused, tx.exceeded())
	}
	if c.err == nil && p.x.shared {
		c.err = tx.checkFormats()
	}
	if len(tx.own)+len(tx.ownStore) > 0 && c.err == nil && !tx.seals {
		c.err = p.x.sealed()
	}
	// Nothing of a function that failed is committed. Its answer still depends on the repo; see unchanged.
	if c.quiet = c.err != nil || len(tx.own) == 0 && !tx.ends; c.quiet {
		return true
	}
	var waiting overlay
	if !tx.copied {
		waiting = p.letGo(tx)
	}
	tx.guardQuotas()
	if p.x.traits.bounded() {
		all := p.cost.plus(p.costOf(tx, waiting)).plus(p.costOfFence(c.fence))
		if !p.x.traits.fit(all) {
			if p.changes > 0 {
				return false
			}
			c.err, c.quiet = fmt.Errorf("index: %q: %w", c.repo, ErrTooLarge), true
			return true
		}
		p.cost = all
	}
	if !p.agrees(tx) {
		return false
	}
	if !p.guard(c.fence) {
		return false
	}
	c.store = len(tx.ownStore)+len(tx.conditions) > 0
	p.take(tx, waiting)
	return true
}

// agrees reports whether the conditions of a change are those that the commit has for the same facts. Otherwise another
// process's commit has shown between two changes, and of the two conditions at most one holds.
func (p *plan) agrees(tx *Tx) bool {
	for f, value := range tx.conditions {
		if r := p.repos[f.repo]; r != nil {
			if other, required := r.conditions[f.factKey]; required && !same(other, value) {
				return false
			}
		}
	}
	return true
}

// take adds the changes of a function.
func (p *plan) take(tx *Tx, waiting overlay) {
	p.changed = true
	r := p.repos[tx.repo]
	maps.Copy(r.changes, tx.own)
	r.moved, r.ends = r.moved || tx.moved, tx.ends
	if len(waiting) > 0 {
		w := p.repo(waitingOf(tx.repo))
		maps.Copy(w.changes, waiting)
		w.moved = true
	}
	if len(tx.ownStore) > 0 {
		maps.Copy(p.repo(storeRepo).changes, tx.ownStore)
	}
	for f, value := range tx.conditions {
		p.repo(f.repo).require(f.factKey, value)
	}
	p.growth.add(tx.repo, tx.added-tx.counted)
	p.adding.take(tx.repo, tx.adds)
}

// require adds a condition.
func (r *planned) require(f factKey, value []byte) {
	if r.conditions == nil {
		r.conditions = overlay{}
	}
	r.conditions[f] = value
}

// batches returns what to commit.
func (p *plan) batches() (all []Batch) {
	if slices.ContainsFunc(p.order, func(r *planned) bool { return len(r.changes) > 0 || r.ends }) {
		p.requireSeal()
	}
	for _, r := range p.order {
		if len(r.changes)+len(r.conditions) == 0 && !r.ends {
			continue
		}
		b := Batch{Repo: r.name, Facts: r.changes.facts(), If: r.conditions.facts()}
		// All repos share the facts about content itself: if these had a revision, each push would conflict with every
		// other one. So their batch is Detached, and its conditions decide. A batch that only adds links is Detached as
		// well, so that pushes of blobs to one repo do not conflict.
		if b.Detached = p.x.shared && (r.name == storeRepo || !r.moved); !b.Detached {
			b.Base, b.Ends = r.base, r.ends || !p.x.shared && p.x.endsWith(r.name, r.changes)
		}
		all = append(all, b)
	}
	return all
}

// cost is what a commit takes of the bounds of a journal; see Traits.
type cost struct{ compares, operations, bytes int }

func (c cost) plus(d cost) cost {
	return cost{c.compares + d.compares, c.operations + d.operations, c.bytes + d.bytes}
}

func (t Traits) bounded() bool { return t.Compares > 0 || t.Operations > 0 || t.Bytes > 0 }

// fit reports whether one commit can have a cost.
func (t Traits) fit(c cost) bool {
	within := func(n, most int) bool { return most == 0 || n <= most }
	return within(c.compares, t.Compares) && within(c.operations, t.Operations) && within(c.bytes, t.Bytes)
}

// costOf returns what a change adds at most: facts that an earlier change of the same commit has set count again.
func (p *plan) costOf(tx *Tx, waiting overlay) (c cost) {
	count := func(repo string, changes overlay) {
		if len(changes) == 0 {
			return
		}
		if r := p.repos[repo]; r == nil || len(r.changes) == 0 {
			c = c.plus(cost{1, 1, len(repo)})
		}
		for f, value := range changes {
			c = c.plus(cost{0, 1, len(repo) + len(f.name) + len(value)})
		}
	}
	count(tx.repo, tx.own)
	count(waitingOf(tx.repo), waiting)
	count(storeRepo, tx.ownStore)
	for f, value := range tx.conditions {
		c = c.plus(cost{1, 0, len(f.repo) + len(f.name) + len(value)})
	}
	return c
}
