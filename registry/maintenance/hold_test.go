package maintenance_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"trow/registry/maintenance"
	"trow/registry/retention"
	"trow/storage"
)

var keepOne = retention.Rule{Repositories: []string{"**"}, KeepLast: 1}

// setTags gives a manifest of its own to each of some tags.
func setTags(t *testing.T, index *storage.Index, tags ...string) {
	t.Helper()
	for _, tag := range tags {
		err := index.Update(t.Context(), "a", func(tx *storage.Tx) error {
			if err := tx.PutManifest(storage.Manifest{Digest: digest.FromString(tag), MediaType: "m"}); err != nil {
				return err
			}
			return tx.SetTag(tag, digest.FromString(tag))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// runs lets the work beside the requests go on until done, for at most ten seconds.
func runs(t *testing.T, data *maintenance.Data, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- data.Run(ctx) }()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Error("nothing happens")
			break
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// metric returns the value of a metric without labels.
func metric(t *testing.T, data *maintenance.Data, name string) float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(data)
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name && f.GetType() == dto.MetricType_GAUGE {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// wantReport lets one run of retention report that it would remove n, and tests where that shows.
func wantReport(t *testing.T, data *maintenance.Data, index *storage.Index, n, tags int) {
	t.Helper()
	runs(t, data, func() bool { return metric(t, data, "trow_retention_pending") == float64(n) })
	if got := index.Stats().Tags; got != tags {
		t.Fatalf("%d tags are left: the first run removes, want %d", got, tags)
	}
	if ok, text := data.RetentionCheck(); ok || !strings.Contains(text, fmt.Sprint(n, " tags and manifests")) {
		t.Errorf("readyz: %v, %s", ok, text)
	}
}

// wantRemoval lets runs of retention remove all but the newest tag.
func wantRemoval(t *testing.T, data *maintenance.Data, index *storage.Index, newest string) {
	t.Helper()
	runs(t, data, func() bool { return index.Stats().Tags == 1 && metric(t, data, "trow_retention_pending") == 0 })
	if got, _, err := index.Tags(t.Context(), "a", "", -1); err != nil || len(got) != 1 || got[0] != newest {
		t.Errorf("left: %v, %v; want %s", got, err, newest)
	}
	if ok, text := data.RetentionCheck(); !ok || text != "" {
		t.Errorf("readyz: %v, %s", ok, text)
	}
}

// slow has a time between two runs in which a test can look at what the first did, also on a busy machine.
const slow = 1500 * time.Millisecond

// TestTheFirstRunAfterAnImportOnlyReports: an import makes all content new, so rules may remove what they kept before.
func TestTheFirstRunAfterAnImportOnlyReports(t *testing.T) {
	log := &bytes.Buffer{}
	o := options(t, log)
	o.GCInterval = slow
	data, index := open(t, o, keepOne)
	setTags(t, index, "1", "2", "3")
	if code, text := job(t, data, "POST", "/admin/retention-hold"); code != 204 {
		t.Fatalf("%d %s", code, text)
	}
	// While the import is under way, any number of runs only report.
	wantReport(t, data, index, 4, 3)
	setTags(t, index, "4")
	wantReport(t, data, index, 6, 4)
	if err := data.Close(); err != nil {
		t.Fatal(err)
	}
	data, index = open(t, o, keepOne) // the mark survives a restart
	wantReport(t, data, index, 6, 4)
	wantRemoval(t, data, index, "4")
	for _, want := range []string{`"tag":"1"`, "retention would remove this", `"pending":6`, "removed by retention"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %s: %s", want, log)
		}
	}
}

// TestTheFirstRunOnOlderDataOnlyReports: the rules may mean something else now.
func TestTheFirstRunOnOlderDataOnlyReports(t *testing.T) {
	for name, write := range map[string]string{"no file": "", "another version": `{"meaning":0,"reports":0}`,
		"damage": "{"} {
		t.Run(name, func(t *testing.T) {
			o := options(t, &bytes.Buffer{})
			o.GCInterval = slow
			data, index := open(t, o)
			setTags(t, index, "1", "2")
			if err := data.Close(); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(o.DataDir, "retention.json")
			err := os.Remove(file)
			if write != "" {
				err = os.WriteFile(file, []byte(write), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			data, _ = open(t, o) // without rules no run counts
			if err := data.Close(); err != nil {
				t.Fatal(err)
			}
			data, index = open(t, o, keepOne)
			wantReport(t, data, index, 2, 2)
			wantRemoval(t, data, index, "2")
		})
	}
}

// TestRetentionByHandRemovesAtOnce and the runs after it too.
func TestRetentionByHandRemovesAtOnce(t *testing.T) {
	o := options(t, &bytes.Buffer{})
	o.GCInterval = slow
	data, index := open(t, o, keepOne)
	setTags(t, index, "1", "2")
	job(t, data, "POST", "/admin/retention-hold")
	wantReport(t, data, index, 2, 2)
	job(t, data, "POST", "/admin/retention?dry-run")
	if n := metric(t, data, "trow_retention_pending"); n != 2 {
		t.Errorf("after a dry run, %v are pending", n)
	}
	if _, answer := job(t, data, "POST", "/admin/retention"); !strings.Contains(answer, `"removed":2`) {
		t.Errorf("by hand: %s", answer)
	}
	setTags(t, index, "3")
	wantRemoval(t, data, index, "3")
}

// TestNewDataIsNotHeld: in a new data directory there is nothing to report first.
func TestNewDataIsNotHeld(t *testing.T) {
	o := options(t, &bytes.Buffer{})
	o.GCInterval = slow
	data, index := open(t, o, keepOne)
	setTags(t, index, "1", "2")
	wantRemoval(t, data, index, "2")
}
