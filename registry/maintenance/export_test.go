package maintenance

import (
	"context"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"trow/storage"
	"trow/storage/bolt"
)

// SetOpenJournal makes Open open the journal by another function, for one test.
func SetOpenJournal(t *testing.T, open func(dir string) (*bolt.Journal, error)) {
	old := openJournal
	openJournal = open
	t.Cleanup(func() { openJournal = old })
}

// RecordKey is recordKey.
var RecordKey = recordKey

// Turns are the turns of one replica, of the task collect.
type Turns struct{ *turns }

// NewTurns returns the turns of a replica, which has a name.
func NewTurns(j storage.Journal, index *storage.Index, log zerolog.Logger, name string) Turns {
	t := newTurns(j, index, log)
	if t != nil {
		t.name = name
	}
	return Turns{t}
}

func (t Turns) Repeat(ctx context.Context, interval time.Duration, do func(context.Context)) {
	t.repeat(ctx, taskCollect, interval, time.Minute, do)
}

func (t Turns) Finish(ctx context.Context, c *storage.Collector) { t.finish(ctx, c) }

func (t Turns) Join(ctx context.Context) error { return t.join(ctx) }

func (t Turns) Beat(ctx context.Context) { t.beat(ctx) }

func (t Turns) Now(ctx context.Context, report func(any), do func(context.Context) error) error {
	return t.now(ctx, taskCollect, report, do)
}
