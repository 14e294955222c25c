package storage

import (
	"errors"
	"testing"
)

// TestAFailedLoadIsTold: whatever part of the state is not taken, the journal's reader hears of it and ends.
func TestAFailedLoadIsTold(t *testing.T) {
	broken := errors.New("not taken")
	for n := range 4 {
		deliver, wait := behind(func(Update) error {
			if n--; n < 0 {
				return broken
			}
			return nil
		})
		var err error
		for i := 0; i < 10 && err == nil; i++ {
			err = deliver(Update{})
		}
		if waited := wait(); !errors.Is(err, broken) || !errors.Is(waited, broken) {
			t.Errorf("deliver said %v, and wait %v", err, waited)
		}
	}
	_, wait := behind(func(Update) error { return broken })
	if err := wait(); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}
