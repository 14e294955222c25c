package main

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// startFigure has the start times of a peer with all content, with its files in the page cache.
type startFigure struct {
	Peer    string    `json:"peer"`
	Seconds []float64 `json:"seconds"` // from exec to the first 200 on a HEAD of a tag
	Idle    []float64 `json:"idle_rss_bytes"`
}

// startDelay is how long a server that has just started is left idle before its memory is read.
const startDelay = time.Second

// starts measures the starts of the registries.
func (l *laboratory) starts(ctx context.Context, n int) (all []startFigure, err error) {
	for _, p := range l.peers {
		if p.missing != "" || p.bound() {
			continue
		}
		f := startFigure{Peer: p.name}
		for range n {
			if err := l.timeStart(ctx, p, &f); err != nil {
				return all, err
			}
		}
		l.log("start of %s: %.3f s, %.0f MB idle", p.name, median(f.Seconds), median(f.Idle)/1e6)
		all = append(all, f)
	}
	return all, nil
}

func (l *laboratory) timeStart(ctx context.Context, p *peer, f *startFigure) error {
	s, err := l.launch(p, l.store(p), false)
	if err != nil {
		return err
	}
	defer s.stop()
	ok := func(status int) bool { return status == http.StatusOK }
	if err := s.await(ctx, "/v2/bench/manifests/t00000", ok); err != nil {
		return err
	}
	f.Seconds = append(f.Seconds, time.Since(s.begin).Seconds())
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(startDelay):
	}
	rss, err := s.resident()
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	f.Idle = append(f.Idle, float64(rss))
	return nil
}
