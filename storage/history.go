package storage

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// HistoryLength is how many targets of a tag its history keeps, the present one included.
const HistoryLength = 50

// maxBy bounds the bytes of the name of who set a tag. The names of ServiceAccounts, the longest that Kubernetes makes,
// have at most 338: prefix, namespace (63), colon, name (253).
const maxBy = 512

// Target is what a tag names, or named before.
type Target struct {
	Digest digest.Digest
	Since  time.Time // from when on
	By     string    // who set it; empty if that is not known
}

// As records who makes the changes, for the history of the tags that they set.
func (tx *Tx) As(who string) {
	if tx.by = who; len(who) > maxBy { // cut between two characters: what follows is shown as text
		tx.by = strings.ToValidUTF8(who[:maxBy], "")
	}
}

// The history of a tag is a ring of facts: target n is in place n modulo HistoryLength. So a push writes one of them,
// reads none and leaves nothing to trim; the tag itself records how many targets it has had.

func historyName(tag string, n uint32) string {
	return tag + "\x00" + string(rune('0'+n%HistoryLength)) // up to 'a': one byte each
}

func historyValue(d key, order int64, by string) []byte {
	return appendString(binary.AppendVarint(appendString(nil, string(d)), order), by)
}

func parseTarget(v []byte) (Target, error) {
	r := reader{buf: v}
	d, order, by := r.key(false), r.number(), r.bytes()
	return Target{key(d).digest(), time.Unix(0, order), string(by)}, r.err
}

// remember records that a tag names d from now on, and returns how many targets it has had.
func (tx *Tx) remember(name string, d key, order int64) uint32 {
	old, n := tx.target(name)
	// Earlier versions kept no history. Its first entry is then what the tag has named until now.
	if n == 0 && old.digest != nil {
		tx.set(KindHistory, historyName(name, 0), historyValue(key(old.digest), old.since(), ""))
		n = 1
	}
	tx.set(KindHistory, historyName(name, n), historyValue(d, order, tx.by))
	return n + 1
}

// forget ends the history of a tag.
func (tx *Tx) forget(name string) {
	_, n := tx.target(name)
	for i := range min(n, HistoryLength) {
		tx.set(KindHistory, historyName(name, i), nil)
	}
}

// target returns what a tag names before the change, and how many targets it has had. The digest is nil if there is no
// such tag.
func (tx *Tx) target(name string) (tagFact, uint32) {
	if v, ok := tx.fact(KindTag, name); ok {
		t, err := parseTag(v)
		if v == nil || err != nil {
			return tagFact{}, 0
		}
		return t, t.targets
	}
	t := tx.x.tagFact(tx.repo, name)
	return t, t.targets
}

// since is when the tag began to name what it names, in Unix nanoseconds. Earlier versions recorded seconds alone.
func (t *tagFact) since() int64 { return cmp.Or(t.order, momentOf(t.unix).nanos()) }

// tagFact returns what is recorded of a tag. The digest is nil if there is no such tag.
func (x *Index) tagFact(repo, name string) tagFact {
	x.mu.RLock()
	defer x.mu.RUnlock()
	r := x.state.repos[repo]
	if r == nil {
		return tagFact{}
	}
	i := x.state.findTag(r, name)
	if i == 0 {
		return tagFact{}
	}
	t := x.state.tags.At(i)
	d := x.state.keyOf(x.state.entries.At(t.entry).content)
	return tagFact{digest: []byte(d.key()), unix: int64(t.time), order: t.order, targets: t.targets}
}

// History returns what a tag names and has named before, the newest first, at most HistoryLength targets. A target need
// not be in the repo any more. The history ends with its tag. It is read from the Journal. Errors: ErrNotFound if the
// repo has no such tag.
func (x *Index) History(ctx context.Context, repo, name string) ([]Target, error) {
	if _, ok, err := x.Resolve(ctx, repo, name); err != nil {
		return nil, err
	} else if t := x.tagFact(repo, name); ok && t.digest != nil {
		return x.history(ctx, repo, name, t)
	}
	return nil, fmt.Errorf("tag %q: %w", name, ErrNotFound)
}

func (x *Index) history(ctx context.Context, repo, name string, t tagFact) ([]Target, error) {
	if t.targets == 0 {
		return []Target{{Digest: key(t.digest).digest(), Since: time.Unix(0, t.since())}}, nil
	}
	facts, err := x.journal.History(ctx, repo, name+"\x00")
	if err != nil {
		return nil, fmt.Errorf("history of %q: %w", name, err)
	}
	targets := make([]Target, 0, len(facts))
	for _, f := range facts {
		// One that cannot be read must not hide the others.
		if target, err := parseTarget(f.Value); err == nil && strings.HasPrefix(f.Name, name+"\x00") {
			targets = append(targets, target)
		}
	}
	slices.SortFunc(targets, func(a, b Target) int { return b.Since.Compare(a.Since) })
	return targets, nil
}
