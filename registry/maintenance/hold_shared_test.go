package maintenance_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/rs/zerolog"

	"trow/registry/maintenance"
	"trow/storage"
)

// atLine calls do once, when a line with text is logged.
type atLine struct {
	text string
	do   func()
}

func (l *atLine) Write(line []byte) (int, error) {
	if l.do != nil && bytes.Contains(line, []byte(l.text)) {
		do := l.do
		l.do = nil
		do()
	}
	return len(line), nil
}

// retaining are two replicas with a rule that keeps one tag, and two repositories of three tags, a and b. Runs of the
// first are logged to log.
func retaining(t *testing.T, log *atLine) (one, two *maintenance.Data, x *storage.Index) {
	newService().use(t)
	o := replica(t, &bytes.Buffer{})
	o.Log = zerolog.New(log)
	one, x = open(t, o, keepOne)
	two, y := open(t, replica(t, &bytes.Buffer{}), keepOne)
	for _, repo := range []string{"a", "b"} {
		for _, tag := range []string{"1", "2", "3"} {
			d := digest.FromString(repo + tag)
			u, err := one.Blobs().Create(t.Context(), repo, digest.SHA256)
			if err == nil {
				_, err = u.Write([]byte(repo + tag))
			}
			if err != nil {
				t.Fatal(err)
			}
			release, err := x.Commit(t.Context(), u, d)
			if err != nil {
				t.Fatal(err)
			}
			err = x.Update(t.Context(), repo, func(tx *storage.Tx) error {
				if err := tx.PutManifest(storage.Manifest{Digest: d, MediaType: "m", Size: 2}); err != nil {
					return err
				}
				return tx.SetTag(tag, d)
			})
			if release(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := y.CatchUp(t.Context(), storage.CatchUpTime); err != nil {
		t.Fatal(err)
	}
	return one, two, x
}

func hold(t *testing.T, data *maintenance.Data) {
	t.Helper()
	if code, text := job(t, data, "POST", "/admin/retention-hold"); code != 204 {
		t.Fatalf("%d %s", code, text)
	}
}

// ended makes an import that is under way one that ended long ago, n seconds after 1970.
func ended(t *testing.T, x *storage.Index, n int) {
	t.Helper()
	old, err := x.Record(t.Context(), "retention-hold")
	if err == nil {
		err = x.SetRecord(t.Context(), "retention-hold", old,
			fmt.Appendf(nil, `{"meaning":1,"reports":1,"until":%d}`, n))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func wantHold(t *testing.T, x *storage.Index, tags int, record string) {
	t.Helper()
	got, err := x.Record(t.Context(), "retention-hold")
	if n := x.Stats().Tags; err != nil || n != tags || !strings.Contains(string(got), record) {
		t.Errorf("%d tags, %s, %v; want %d, %s", n, got, err, tags, record)
	}
}

// TestAnImportAtAnotherReplica holds the runs of this one while it is under way, and in the first run after it; which
// of the replicas does a run, and which is asked about it, is all the same.
func TestAnImportAtAnotherReplica(t *testing.T) {
	one, two, x := retaining(t, &atLine{})
	hold(t, two)
	for range 3 {
		maintenance.Retain(t.Context(), one)
		wantHold(t, x, 6, `"reports":1`)
	}
	pending := func(want float64) {
		t.Helper()
		for _, data := range []*maintenance.Data{one, two} {
			if _, err := x.CatchUp(t.Context(), storage.CatchUpTime); err != nil {
				t.Fatal(err)
			}
			if ok, text := data.RetentionCheck(); metric(t, data, "trow_retention_pending") != want ||
				ok != (want == 0) {
				t.Errorf("want %v pending: %v %s", want, ok, text)
			}
		}
	}
	ended(t, x, 1)
	maintenance.Retain(t.Context(), two)
	pending(8)
	wantHold(t, x, 6, `"reports":0`)
	maintenance.Retain(t.Context(), one)
	wantHold(t, x, 2, `"reports":0`)
	pending(0)
}

// TestAnImportThatBeginsDuringARun of another replica: from then on the run removes nothing, it does not count as one
// that has reported, and its end does not end the hold.
func TestAnImportThatBeginsDuringARun(t *testing.T) {
	t.Run("that removes", func(t *testing.T) {
		log := &atLine{text: "removed by retention"}
		one, two, x := retaining(t, log)
		log.do = func() { hold(t, two) }
		maintenance.Retain(t.Context(), one)
		wantHold(t, x, 4, `"reports":1`)
	})
	t.Run("that has removed all", func(t *testing.T) {
		log := &atLine{text: `"repo":"b"`}
		one, two, x := retaining(t, log)
		log.do = func() { hold(t, two) }
		maintenance.Retain(t.Context(), one)
		wantHold(t, x, 2, `"reports":1`)
	})
	t.Run("that reports", func(t *testing.T) {
		log := &atLine{text: "would remove"}
		one, two, x := retaining(t, log)
		hold(t, two)
		ended(t, x, 1)
		log.do = func() {
			hold(t, two)
			ended(t, x, 2) // the run takes more than a minute
		}
		maintenance.Retain(t.Context(), one)
		wantHold(t, x, 6, `"reports":1`)
	})
}

// TestAnImportIsNotRefusedBecauseOfARun of another replica that ends at the same time.
func TestAnImportIsNotRefusedBecauseOfARun(t *testing.T) {
	one, two, x := retaining(t, &atLine{})
	for range 20 {
		ended(t, x, 1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			maintenance.Retain(t.Context(), one)
		}()
		hold(t, two)
		<-done
		wantHold(t, x, 6, `"reports":1`)
	}
}
