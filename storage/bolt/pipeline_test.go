package bolt

import (
	"errors"
	"testing"

	"trow/storage"
)

// TestAFailedLoadEndsTheReading: whichever part of the state is refused, the reader of the journal gets the error and
// stops.
func TestAFailedLoadEndsTheReading(t *testing.T) {
	broken := errors.New("refused")
	for n := range 4 {
		deliver, wait := pipeline(func(storage.Update) error {
			if n--; n < 0 {
				return broken
			}
			return nil
		})
		var err error
		for i := 0; i < 10 && err == nil; i++ {
			err = deliver(storage.Update{})
		}
		if waited := wait(); !errors.Is(err, broken) || !errors.Is(waited, broken) {
			t.Errorf("deliver returned %v, and wait %v", err, waited)
		}
	}
	_, wait := pipeline(func(storage.Update) error { return broken })
	if err := wait(); err != nil {
		t.Errorf("without a part: %v", err)
	}
}
