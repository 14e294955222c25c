package service

import (
	"context"
	"errors"
	"testing"
)

// TestFetchesEndWithTheService: their contexts end, and the data is closed only after them.
func TestFetchesEndWithTheService(t *testing.T) {
	var a ahead
	began, ended, closed := make(chan bool), make(chan error), make(chan bool)
	goOn := make(chan bool)
	go func() {
		ended <- a.do(t.Context(), func(ctx context.Context) error {
			close(began)
			<-ctx.Done()
			<-goOn
			return context.Cause(ctx)
		})
	}()
	<-began
	a.stop()
	go func() { a.wait(); close(closed) }()
	select {
	case <-closed:
		t.Error("the work was not waited for")
	default:
	}
	close(goOn)
	if err := <-ended; !errors.Is(err, errClosed) {
		t.Error(err)
	}
	<-closed
	if err := a.do(t.Context(), func(context.Context) error { return nil }); !errors.Is(err, errClosed) {
		t.Errorf("after the end: %v", err)
	}
	// One that ends by itself leaves nothing behind.
	a = ahead{}
	if err := a.do(t.Context(), func(context.Context) error { return nil }); err != nil || len(a.cancels) != 0 {
		t.Errorf("%v, %d", err, len(a.cancels))
	}
	a.wait()
}
