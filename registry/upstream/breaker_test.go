package upstream

import (
	"testing"
	"time"
)

// TestOnlyTheProbeEndsTheProbe: requests from before the break fail later, and let no second probe through.
func TestOnlyTheProbeEndsTheProbe(t *testing.T) {
	b := &breaker{}
	var before []permit
	for range 10 {
		p, _ := b.allow("blobs")
		before = append(before, p)
	}
	for _, p := range before[:breakAfter] {
		b.done(p, down)
	}
	if p, wait := b.allow("blobs"); p != none || wait <= 0 {
		t.Fatalf("after %d failures: %v, %v", breakAfter, p, wait)
	}
	b.until = time.Now() // the break is over
	p, _ := b.allow("blobs")
	if p != probe {
		t.Fatalf("after the break: %v", p)
	}
	for _, old := range before[breakAfter:9] {
		b.done(old, down)
		b.done(old, unknown)
		if again, _ := b.allow("blobs"); again != none {
			t.Fatal("a second probe while the first one is under way")
		}
	}
	if b.failures != breakAfter || time.Now().Before(b.until) {
		t.Errorf("old failures count: %d until %v", b.failures, b.until)
	}
	b.done(p, down)
	if p, _ := b.allow("blobs"); p != none || b.failures != breakAfter+1 {
		t.Errorf("a failed probe: %v, %d", p, b.failures)
	}
	b.done(before[9], alive) // it answers, whenever it was asked
	if p, _ := b.allow("blobs"); p != regular {
		t.Errorf("after an answer: %v", p)
	}
}
