package soak

import (
	"cmp"
	"fmt"
	"math/bits"
	"net/http"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// The content of TestLinearizable: each repo has three tags and four manifests. The last manifest is an index whose
// child is the first one; the subject of the last but one is the first one as well.
const (
	tagCount      = 3
	manifestCount = 4
	child         = 0
	referrer      = 2
	index         = 3
	none          = -1
)

// state is what a repo holds: its manifests, and which of them each tag names (or none).
type state struct {
	held uint8
	tags [tagCount]int8
}

func (s state) holds(m int) bool { return s.held&(1<<m) != 0 }

// action is what an operation does.
type action string

// The actions, named after their requests.
const (
	put            action = "PUT manifest"
	deleteTag      action = "DELETE tag"
	deleteManifest action = "DELETE manifest"
	getTag         action = "GET tag"
	getManifest    action = "GET manifest"
	listTags       action = "GET tags"
	listReferrers  action = "GET referrers"
)

// condition is an If-Match or If-None-Match.
type condition string

const (
	always     condition = ""
	ifAny      condition = "If-Match: *"
	ifNone     condition = "If-None-Match: *"
	ifManifest condition = "If-Match: manifest"
	ifOther    condition = "If-None-Match: manifest"
)

// input is an operation. All actions have this type; fields that an action does not use are zero.
type input struct {
	repo     string
	action   action
	tag      int   // or none: by digest
	more     uint8 // further tags of a PUT (?tag=)
	manifest int
	when     condition
	expect   int // the manifest of the condition
}

func (i input) String() string {
	return fmt.Sprintf("%s tag %d +%03b manifest %d %s %d", i.action, i.tag, i.more, i.manifest, i.when, i.expect)
}

// output is the answer to an operation.
type output struct {
	status   int
	manifest int   // of a GET
	list     uint8 // of a list: tags or manifests
	lost     bool  // there was no answer
}

func (o output) String() string {
	if o.lost {
		return "lost"
	}
	return fmt.Sprintf("%d manifest %d list %04b", o.status, o.manifest, o.list)
}

// allows reports whether the condition of a write holds, given the manifest that exists now, or none.
func (i input) allows(now int) bool {
	switch i.when {
	case ifAny:
		return now != none
	case ifNone:
		return now == none
	case ifManifest:
		return now == i.expect
	case ifOther:
		return now != i.expect
	}
	return true
}

// apply is the registry as one function: it returns the answer to an operation, and the state after it.
func apply(s state, i input) (output, state) {
	switch i.action {
	case put:
		return applyPut(s, i)
	case deleteTag:
		return applyDeleteTag(s, i)
	case deleteManifest:
		return applyDeleteManifest(s, i)
	case getTag:
		return found(int(s.tags[i.tag])), s
	case getManifest:
		if !s.holds(i.manifest) {
			return found(none), s
		}
		return found(i.manifest), s
	case listTags:
		o := output{status: http.StatusOK, manifest: none}
		for tag, m := range s.tags {
			if m != none {
				o.list |= 1 << tag
			}
		}
		return o, s
	case listReferrers:
		return output{status: http.StatusOK, manifest: none, list: s.held & (1 << referrer)}, s
	}
	panic("no such action: " + i.action)
}

func found(m int) output {
	if m == none {
		return answered(http.StatusNotFound)
	}
	return output{status: http.StatusOK, manifest: m}
}

func answered(status int) output { return output{status: status, manifest: none} }

func applyPut(s state, i input) (output, state) {
	now := none
	if i.tag != none {
		now = int(s.tags[i.tag])
	} else if s.holds(i.manifest) {
		now = i.manifest
	}
	if !i.allows(now) {
		return answered(http.StatusPreconditionFailed), s
	}
	if i.manifest == index && !s.holds(child) {
		return answered(http.StatusNotFound), s
	}
	s.held |= 1 << i.manifest
	for tag := range tagCount {
		if tag == i.tag || i.more&(1<<tag) != 0 {
			s.tags[tag] = int8(i.manifest)
		}
	}
	return answered(http.StatusCreated), s
}

func applyDeleteTag(s state, i input) (output, state) {
	switch now := int(s.tags[i.tag]); {
	case !i.allows(now):
		return answered(http.StatusPreconditionFailed), s
	case now == none:
		return answered(http.StatusNotFound), s
	}
	s.tags[i.tag] = none
	return answered(http.StatusAccepted), s
}

func applyDeleteManifest(s state, i input) (output, state) {
	if !s.holds(i.manifest) {
		return answered(http.StatusNotFound), s
	}
	if i.manifest == child && s.holds(index) {
		return answered(http.StatusMethodNotAllowed), s
	}
	s.held &^= 1 << i.manifest
	for tag, m := range s.tags {
		if int(m) == i.manifest {
			s.tags[tag] = none
		}
	}
	return answered(http.StatusAccepted), s
}

// model is apply for the checker. A lost operation has happened or has not.
var model = (&porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		at := map[string]int{}
		for _, o := range history {
			repo := o.Input.(input).repo
			if _, known := at[repo]; !known {
				at[repo] = len(parts)
				parts = append(parts, nil)
			}
			parts[at[repo]] = append(parts[at[repo]], o)
		}
		return parts
	},
	Init: func() []any { return []any{state{tags: [tagCount]int8{none, none, none}}} },
	Step: func(s, in, out any) []any {
		o, next := apply(s.(state), in.(input))
		switch {
		case out.(output).lost:
			return []any{s, next}
		case o == out:
			return []any{next}
		}
		return nil
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%v: %v", in, out) },
}).ToModel()

// at returns an operation for a handwritten history.
func at(call, end int64, i input, o output) porcupine.Operation {
	i.repo = "r"
	return porcupine.Operation{Input: i, Output: o, Call: call, Return: end}
}

func TestTheCheckerFindsWrongHistories(t *testing.T) {
	pushed := func(tag, m int) input { return input{action: put, tag: tag, manifest: m} }
	created, deleted, lost := answered(201), answered(202), output{lost: true}
	missing := found(none)
	get := func(tag int) input { return input{action: getTag, tag: tag} }
	has := func(m int) input { return input{action: getManifest, tag: none, manifest: m} }
	remove := func(m int) input { return input{action: deleteManifest, tag: none, manifest: m} }
	fresh := input{action: put, tag: 0, manifest: 1, when: ifNone}
	freshOther := input{action: put, tag: 0, manifest: 2, when: ifNone}
	for _, c := range []struct {
		name    string
		want    porcupine.CheckResult
		history []porcupine.Operation
	}{
		{"a write is seen after its answer", porcupine.Ok,
			[]porcupine.Operation{at(0, 1, pushed(0, 1), created), at(2, 3, get(0), found(1))}},
		{"a write is not seen after its answer", porcupine.Illegal,
			[]porcupine.Operation{at(0, 1, pushed(0, 1), created), at(2, 3, get(0), missing)}},
		{"a write may be seen before its answer", porcupine.Ok,
			[]porcupine.Operation{at(0, 9, pushed(0, 1), created), at(2, 3, get(0), found(1))}},
		{"a write is seen, and later not", porcupine.Illegal,
			[]porcupine.Operation{at(0, 9, pushed(0, 1), created), at(2, 3, get(0), found(1)),
				at(4, 5, get(0), missing)}},
		{"a read of the value before the last one", porcupine.Illegal, []porcupine.Operation{
			at(0, 1, pushed(0, 1), created), at(2, 3, pushed(0, 2), created), at(4, 5, get(0), found(1))}},
		{"a lost write happened", porcupine.Ok,
			[]porcupine.Operation{at(0, 9, pushed(0, 1), lost), at(2, 3, get(0), found(1))}},
		{"a lost write happened late", porcupine.Ok, []porcupine.Operation{
			at(0, 9, pushed(0, 1), lost), at(2, 3, get(0), missing), at(4, 5, get(0), found(1))}},
		{"a lost write never happened", porcupine.Ok,
			[]porcupine.Operation{at(0, 9, pushed(0, 1), lost), at(20, 30, get(0), missing)}},
		{"a lost write happens after its process was dead", porcupine.Illegal, []porcupine.Operation{
			at(0, 9, pushed(0, 1), lost), at(10, 11, get(0), missing), at(12, 13, get(0), found(1))}},
		{"a lost write is seen, and vanishes without a delete", porcupine.Illegal, []porcupine.Operation{
			at(0, 9, pushed(0, 1), lost), at(10, 11, get(0), found(1)), at(12, 13, get(0), missing)}},
		{"a lost write to two tags happened for one of them", porcupine.Illegal, []porcupine.Operation{
			at(0, 9, input{action: put, tag: 0, more: 2, manifest: 1}, lost), at(10, 11, get(0), found(1)),
			at(12, 13, get(1), missing)}},
		{"two writers find the tag free", porcupine.Illegal,
			[]porcupine.Operation{at(0, 9, fresh, created), at(0, 9, freshOther, created)}},
		{"one of two writers finds the tag free", porcupine.Ok,
			[]porcupine.Operation{at(0, 9, fresh, created), at(0, 9, freshOther, answered(412))}},
		{"a tag outlives its manifest", porcupine.Illegal, []porcupine.Operation{
			at(0, 1, pushed(0, 1), created), at(2, 3, remove(1), deleted), at(4, 5, get(0), found(1))}},
		{"a child is deleted while its index exists", porcupine.Illegal, []porcupine.Operation{
			at(0, 1, pushed(0, child), created), at(2, 3, pushed(1, index), created),
			at(4, 5, remove(child), deleted)}},
		{"a child is kept while its index exists", porcupine.Ok, []porcupine.Operation{
			at(0, 1, pushed(0, child), created), at(2, 3, pushed(1, index), created),
			at(4, 5, remove(child), answered(405)), at(6, 7, has(child), found(child))}},
		{"an index is pushed without its child", porcupine.Illegal,
			[]porcupine.Operation{at(0, 1, pushed(0, index), created)}},
		{"a list omits a tag", porcupine.Illegal, []porcupine.Operation{at(0, 1, pushed(0, 1), created),
			at(2, 3, input{action: listTags}, output{status: 200, manifest: none})}},
		{"a referrer is not listed", porcupine.Illegal, []porcupine.Operation{at(0, 1, pushed(0, referrer), created),
			at(2, 3, input{action: listReferrers}, output{status: 200, manifest: none})}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := porcupine.CheckOperationsTimeout(model, c.history, time.Minute); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// describeHistory returns the end of the shortest beginning of a repo's history that is wrong, for the search of a
// failure's cause; of a history that could not be judged, its end.
func describeHistory(history []porcupine.Operation) string {
	for _, part := range model.Partition(history) {
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
		illegal := func(n int) bool {
			return porcupine.CheckOperationsTimeout(model, beginning(part, n), checkTime/8) == porcupine.Illegal
		}
		if illegal(len(part)) {
			history = beginning(part, 1+sort.Search(len(part)-1, func(n int) bool { return illegal(n + 1) }))
			break
		}
	}
	var b strings.Builder
	for _, o := range history[max(0, len(history)-200):] {
		fmt.Fprintf(&b, "%12d %12d client %d: %v: %v\n", o.Call, o.Return, o.ClientId, o.Input, o.Output)
	}
	return b.String()
}

// beginning returns a history, ordered by Return, until the end of its operation n: those that end later, and had begun
// by then, may have happened.
func beginning(history []porcupine.Operation, n int) []porcupine.Operation {
	end := history[n-1].Return
	begun := slices.Clone(history[:n])
	for _, o := range history[n:] {
		if o.Call < end {
			o.Return, o.Output = end+1, output{lost: true}
			begun = append(begun, o)
		}
	}
	return begun
}

// tagsOf returns the numbers in a set of tags.
func tagsOf(set uint8) (tags []int) {
	for ; set != 0; set &= set - 1 {
		tags = append(tags, bits.TrailingZeros8(set))
	}
	return tags
}
