package mirror

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"

	"trow/registry/upstream"
)

const (
	// maxMoves bounds the images that are fetched at the same time so that a tag can move to them.
	maxMoves = 4
	// moveTime bounds how long one of them may take. Images of 50 GB at 10 MB/s take less.
	moveTime = 2 * time.Hour
)

// errMoved is the kind of the error in a moved.
var errMoved = errors.New("it moves when its new image is here as a whole")

// moved is the answer about a tag that names another manifest at the upstream, and goes on naming what is held until
// that is here as a whole.
type moved struct {
	to     digest.Digest
	why    *upstream.Error // as clients see it
	failed bool            // the last attempt to fetch it
}

func (m *moved) Error() string { return m.why.Error() }
func (m *moved) Unwrap() error { return m.why }

// move fetches, in the background, the image that a tag names at the upstream, and then moves the tag. It does nothing
// if that is under way already. If too many are, the upstream is asked again with the next read of the tag.
func (m *Mirror) move(q question, to *moved) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.moving[q] || m.context.Err() != nil {
		return
	}
	if len(m.moving) == maxMoves {
		m.answers.Remove(q)
		return
	}
	m.moving[q] = true
	m.background.Add(1)
	go func() {
		defer m.background.Done()
		ctx, cancel := context.WithTimeout(m.context, moveTime)
		defer cancel()
		if err := m.Fetch(ctx, q.repo, q.ref, m.options.Platforms, nil); err != nil {
			why := *to.why
			why.Reason, why.Cause = "it is "+to.to.String()+" there, which could not be fetched", err
			m.answers.Add(q, answer{at: time.Now(), err: &moved{to.to, &why, true}})
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.moving, q)
	}()
}
