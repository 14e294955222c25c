package upstream

import (
	"fmt"
	"sync"
	"time"
)

const (
	// maxQuestions bounds the questions under way: each has a goroutine and, at the endpoint, a connection.
	maxQuestions = 512
	// smallAnswer is how many bytes of its answers are part of a question. Nearly all manifests are smaller, so large
	// ones that arrive slowly do not keep them out.
	smallAnswer = 16 << 10
	// answerFactor is how many bytes of memory a byte of a larger answer takes: it is decoded, and copied.
	answerFactor = 3
	// leastAnswers is for answers of the largest size with any limit of memory: one upstream alone gets half of it.
	leastAnswers = 2 * answerFactor * (maxManifest + smallAnswer)
	// unnamedHosts is what questions to hosts that no entry names count for: clients choose these hosts.
	unnamedHosts = ""
)

// questions bounds the questions to upstreams that are under way, and the memory of their answers. Questions do not end
// with the client that has asked, so that nothing else bounds them.
type questions struct {
	mu    sync.Mutex // guards all below
	under places
	bytes places // of what is beyond smallAnswer
}

// newQuestions returns questions whose answers take so many bytes together; less than leastAnswers is that.
func newQuestions(bytes int64) *questions {
	return &questions{under: newPlaces(maxQuestions), bytes: newPlaces(int(max(bytes, leastAnswers)))}
}

// question is what one question has taken. Its methods are for one goroutine at a time. A nil one is not bounded.
type question struct {
	of    *questions
	from  string
	bytes int // of its answers
}

// Begin takes a place for one question, whose answers may take several requests, and returns the Upstream to put it to.
// The caller calls end when it needs the answers no more. Errors: ErrUnavailable, if too many are under way.
func (u *Upstream) Begin() (under *Upstream, end func(), err error) {
	if u.questions == nil {
		return u, func() {}, nil
	}
	q := &question{of: u.questions, from: u.from}
	q.of.mu.Lock()
	defer q.of.mu.Unlock()
	if !q.of.under.take(q.from, 1) {
		return nil, nil, u.busy("", fmt.Sprintf("%d questions to upstreams are under way", q.of.under.taken))
	}
	with := *u
	with.question = q
	return &with, q.end, nil
}

func (u *Upstream) busy(repo, reason string) *Error {
	return &Error{Kind: ErrUnavailable, Host: u.Host, Repo: repo, Retry: time.Second, Reason: reason, Cause: ErrBusy}
}

func (q *question) end() {
	q.forget(0)
	q.of.mu.Lock()
	defer q.of.mu.Unlock()
	q.of.under.leave(q.from, 1)
}

// kept returns how many bytes of answers the question keeps.
func (q *question) kept() int {
	if q == nil {
		return 0
	}
	return q.bytes
}

// keep takes the memory for n more bytes of answers. It reports false if there is not enough.
func (q *question) keep(n int) bool {
	if q == nil {
		return true
	}
	more := beyond(q.bytes+n) - beyond(q.bytes)
	q.of.mu.Lock()
	defer q.of.mu.Unlock()
	if more > 0 && !q.of.bytes.take(q.from, more) {
		return false
	}
	q.bytes += n
	return true
}

// forget gives back what keep has taken since kept was n.
func (q *question) forget(n int) {
	if q == nil {
		return
	}
	q.of.mu.Lock()
	defer q.of.mu.Unlock()
	if less := beyond(q.bytes) - beyond(n); less > 0 {
		q.of.bytes.leave(q.from, less)
	}
	q.bytes = n
}

// beyond returns how much memory so many bytes of answers take that are not part of the question.
func beyond(n int) int { return max(n-smallAnswer, 0) * answerFactor }
