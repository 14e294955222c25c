package maintenance_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"trow/registry/maintenance"
	"trow/storage"
)

// failToOpen makes the journal of a directory one that this process cannot write to.
func failToOpen(t *testing.T, cause error) {
	maintenance.SetOpenJournal(t, func(string) (storage.Journal, error) {
		return nil, &os.PathError{Op: "open", Path: "journal.db", Err: cause}
	})
}

// TestADirectoryThatCannotBeWrittenToIsServed: whether the file system or the permissions forbid it, what is there can
// be read, and what would write fails with the reason.
func TestADirectoryThatCannotBeWrittenToIsServed(t *testing.T) {
	for _, cause := range []error{syscall.EROFS, syscall.EACCES, syscall.EPERM} {
		t.Run(cause.Error(), func(t *testing.T) {
			var log bytes.Buffer
			o := options(t, &log)
			data, index := open(t, o)
			d := push(t, data, index, "a", "content")
			if err := data.Close(); err != nil {
				t.Fatal(err)
			}
			failToOpen(t, cause)
			data, index = open(t, o)
			ok, text := data.ReadOnlyCheck()
			if ok || !data.ReadOnly() || !strings.Contains(text, "journal.db: "+cause.Error()) {
				t.Errorf("%v %s", ok, text)
			}
			if !strings.Contains(log.String(), "the data directory cannot be written to") {
				t.Errorf("the log: %s", &log)
			}
			if info, err := data.Blobs().Stat(t.Context(), d); err != nil || info.Size != int64(len("content")) {
				t.Errorf("the blob: %v", err)
			}
			_, err := data.Blobs().Create(t.Context(), "a", d.Algorithm())
			uerr := index.Update(t.Context(), "a", func(tx *storage.Tx) error { return tx.Unlink(d) })
			if !errors.Is(err, storage.ErrReadOnly) || !errors.Is(uerr, storage.ErrReadOnly) {
				t.Errorf("writes: %v, %v", err, uerr)
			}
			if !index.Present(d) {
				t.Error("after a write that failed, the blob is gone")
			}
		})
	}
}

// TestOtherErrorsOfADirectoryStay: a server does not become one for pulls because of a mistake that has another remedy.
func TestOtherErrorsOfADirectoryStay(t *testing.T) {
	o := options(t, &bytes.Buffer{})
	data, _ := open(t, o)
	if err := data.Close(); err != nil {
		t.Fatal(err)
	}
	failToOpen(t, syscall.ENOSPC)
	if _, err := maintenance.Open(o); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	// With nothing to serve, the first error has the remedy.
	failToOpen(t, syscall.EROFS)
	o.DataDir = t.TempDir()
	if _, err := maintenance.Open(o); !errors.Is(err, syscall.EROFS) ||
		strings.Contains(err.Error(), "nothing to serve") {
		t.Errorf("an empty directory: %v", err)
	}
}

// TestADirectoryThatBecomesReadOnlyIsReported while the server runs: by a line of /readyz?verbose and a metric as long
// as it is so, and by the log once.
func TestADirectoryThatBecomesReadOnlyIsReported(t *testing.T) {
	var log bytes.Buffer
	o := options(t, &log)
	data, _ := open(t, o)
	var now error
	maintenance.SetWritable(t, func() error { return now })
	check := func(what string, want bool, metric float64, logged int) {
		t.Helper()
		maintenance.WatchWritable(data)
		maintenance.WatchWritable(data)
		ok, text := data.ReadOnlyCheck()
		if ok != want || !want && !strings.HasSuffix(text, now.Error()) {
			t.Errorf("%s: %v, %q", what, ok, text)
		}
		if n := strings.Count(log.String(), "the data directory has become read-only"); n != logged {
			t.Errorf("%s: logged %d times, want %d: %s", what, n, logged, &log)
		}
		registry := prometheus.NewRegistry()
		registry.MustRegister(data)
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "trow_storage_read_only" && f.Metric[0].GetGauge().GetValue() != metric {
				t.Errorf("%s: trow_storage_read_only is %v", what, f.Metric[0].GetGauge().GetValue())
			}
		}
	}
	check("it can be written to", true, 0, 0)
	now = &os.PathError{Op: "write", Path: "/data/uploads", Err: syscall.EROFS}
	check("it cannot", false, 1, 1)
	now = nil
	if check("again", true, 0, 1); !strings.Contains(log.String(), "can be written to again") {
		t.Errorf("the log: %s", &log)
	}
	now = syscall.EACCES
	check("and not again", false, 1, 2)
	now = fmt.Errorf("%w: no space", storage.ErrFull)
	check("a full disk is no read-only one", true, 0, 2)
}
