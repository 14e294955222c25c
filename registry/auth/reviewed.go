package auth

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// reviewed remembers what the Kubernetes API has said about tokens, by their SHA-256, so that it is not asked for each
// request and may be away for a while.
type reviewed struct {
	reviewer Reviewer
	turns    chan struct{} // bounds what is asked at once

	mu  sync.Mutex // guards all
	all map[[32]byte]review
}

// review is an answer.
type review struct {
	who  *Identity // nil: the API does not know the token
	at   time.Time
	ends time.Time // the token's own end; zero: it says none
}

const (
	// freshReview is how long an answer is taken without asking again.
	freshReview = time.Minute
	// oldReview is how old an answer may get while the API is away.
	oldReview = 5 * time.Minute
	// noReview is how long a refusal is taken: long enough that a client that tries again and again asks rarely.
	noReview = 10 * time.Second
	// maxReviews bounds the memory.
	maxReviews = 4096
	// reviewsAtOnce bounds what is asked at once.
	reviewsAtOnce = 8
)

func newReviewed(r Reviewer) *reviewed {
	return &reviewed{reviewer: r, turns: make(chan struct{}, reviewsAtOnce), all: map[[32]byte]review{}}
}

// identity tells whose a token is. Errors: ErrUnauthorized, ErrUnavailable, that of ctx.
func (v *reviewed) identity(ctx context.Context, token string, now time.Time) (*Identity, error) {
	key := sha256.Sum256([]byte(token))
	if who, ok := v.remembered(key, now, freshReview); ok {
		return answerOf(who)
	}
	select {
	case v.turns <- struct{}{}:
		defer func() { <-v.turns }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if who, ok := v.remembered(key, now, freshReview); ok { // asked while this one waited
		return answerOf(who)
	}
	who, err := v.reviewer.Review(ctx, token)
	switch {
	case err == nil:
		who.Cluster = true
		who.owner, who.cert, who.orgs, who.robot, who.grant = false, false, nil, nil, nil
		if strings.HasPrefix(who.Name, robotPrefix) || strings.HasPrefix(who.Name, certPrefix) || who.Name == "" {
			return nil, errWrong
		}
		v.remember(key, review{&who, now, endOf(token)})
		return &who, nil
	case errors.Is(err, ErrUnauthorized):
		v.remember(key, review{nil, now, time.Time{}})
		return nil, errWrong
	}
	if who, ok := v.remembered(key, now, oldReview); ok && who != nil {
		return who, nil
	}
	if errors.Is(err, ErrUnavailable) {
		return nil, err
	}
	return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
}

func answerOf(who *Identity) (*Identity, error) {
	if who == nil {
		return nil, errWrong
	}
	return who, nil
}

// remembered returns an answer that is not older than that.
func (v *reviewed) remembered(key [32]byte, now time.Time, age time.Duration) (*Identity, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	r, ok := v.all[key]
	if ok && r.who == nil {
		age = noReview
	}
	if !ok || now.Sub(r.at) >= age || !r.ends.IsZero() && !now.Before(r.ends) {
		return nil, false
	}
	return r.who, true
}

func (v *reviewed) remember(key [32]byte, r review) {
	v.mu.Lock()
	defer v.mu.Unlock()
	makeRoom(v.all, maxReviews, func(o review) bool { return r.at.Sub(o.at) >= oldReview }, func(review) bool { return true })
	v.all[key] = r
}

// endOf reads the end that a token says of itself, which the API has checked. Zero: it says none.
func endOf(token string) time.Time {
	_, rest, _ := strings.Cut(token, ".")
	middle, _, _ := strings.Cut(rest, ".")
	b, err := base64.RawURLEncoding.DecodeString(middle)
	var c struct {
		End int64 `json:"exp"`
	}
	if err != nil || json.Unmarshal(b, &c) != nil || c.End <= 0 {
		return time.Time{}
	}
	return time.Unix(c.End, 0)
}
