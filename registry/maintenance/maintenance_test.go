package maintenance_test

import (
	"bytes"
	"errors"
	"math"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"trow/registry/audit"
	"trow/registry/maintenance"
	"trow/registry/retention"
	"trow/storage"
)

// options returns the default settings for a new data directory.
func options(t *testing.T, log *bytes.Buffer) maintenance.Options {
	t.Helper()
	var o maintenance.Options
	o.AddFlags(pflag.NewFlagSet("x", pflag.ContinueOnError))
	o.DataDir, o.Log = t.TempDir(), zerolog.New(log)
	return o
}

// open opens a data directory and loads its index.
func open(t *testing.T, o maintenance.Options, rules ...retention.Rule) (*maintenance.Data, *storage.Index) {
	t.Helper()
	data, err := maintenance.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = data.Close() })
	keep, err := retention.Compile(rules, nil)
	if err != nil {
		t.Fatal(err)
	}
	index, err := data.Load(
		t.Context(),
		keep,
		[]storage.Quota{{Name: "all", Match: func(string) bool { return true }, Bytes: 1000}},
	)
	if err != nil {
		t.Fatal(err)
	}
	return data, index
}

// push stores content and links it in a repository.
func push(t *testing.T, data *maintenance.Data, index *storage.Index, repo, content string) digest.Digest {
	t.Helper()
	d := digest.FromString(content)
	u, err := data.Blobs().Create(t.Context(), repo, d.Algorithm())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	release, err := index.Commit(t.Context(), u, d)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	err = index.Update(t.Context(), repo, func(tx *storage.Tx) error { tx.Link(d, int64(len(content))); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// job runs a job and returns its answer.
func job(t *testing.T, data *maintenance.Data, method, path string) (int, string) {
	t.Helper()
	name, _, _ := strings.Cut(strings.TrimPrefix(path, "/admin/"), "?")
	w := httptest.NewRecorder()
	data.Jobs()[name].ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w.Code, w.Body.String()
}

func TestASecondProcessIsRefused(t *testing.T) {
	o := options(t, &bytes.Buffer{})
	open(t, o)
	if _, err := maintenance.Open(o); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second one: %v", err)
	}
}

// TestACleanStopRefreshesTheBackup: a rebuild after it loses nothing.
func TestACleanStopRefreshesTheBackup(t *testing.T) {
	o := options(t, &bytes.Buffer{})
	data, index := open(t, o)
	d := push(t, data, index, "a", "content")
	if err := data.Close(); err != nil {
		t.Fatal(err)
	}
	spoil(t, o.DataDir)
	r, err := maintenance.Rebuild(t.Context(), o.DataDir, maintenance.RebuildOptions{Parse: parseManifest})
	if err != nil || r.Restored.Repos != 1 || r.Unclaimed != 0 {
		t.Errorf("%s is lost: %+v, %v", d, r, err)
	}
}

func TestJobs(t *testing.T) {
	data, index := open(t, options(t, &bytes.Buffer{}))
	d := push(t, data, index, "a", "content")
	for _, row := range []struct {
		method, path string
		want         string
	}{
		{"POST", "/admin/gc?dry-run", `"blobs":1,"deleted":0`},
		{"POST", "/admin/gc?grace=soon", "grace: \\\"soon\\\" is not a valid duration"},
		{"POST", "/admin/gc?grace=-1h", "is not a valid duration"},
		{"POST", "/admin/scrub", `"blobs":1`},
		{"POST", "/admin/scrub?rate=fast", "rate: \\\"fast\\\" is not a number of bytes"},
		{"POST", "/admin/retention", `"done":{"removed":0,"rules":false}`},
		{"GET", "/admin/repositories", d.String()},
		{"GET", "/admin/repositories?repository=b&repository=a", d.String()},
	} {
		if code, answer := job(t, data, row.method, row.path); code != 200 || !strings.Contains(answer, row.want) {
			t.Errorf("%s %s: %d %s, want %s", row.method, row.path, code, answer, row.want)
		}
	}
	if _, answer := job(t, data, "GET", "/admin/repositories?repository=b"); answer != "" {
		t.Errorf("a repository that does not exist: %s", answer)
	}
	if code, _ := job(t, data, "POST", "/admin/repositories"); code != 405 {
		t.Errorf("POST of a list: %d", code)
	}
}

func TestRetentionIsAudited(t *testing.T) {
	o := options(t, &bytes.Buffer{})
	var events []audit.Event
	o.Audit = func(e audit.Event) { events = append(events, e) }
	data, index := open(t, o, retention.Rule{Repositories: []string{"**"}, KeepLast: 1})
	for _, tag := range []string{"old", "new"} {
		d := digest.FromString(tag)
		err := index.Update(t.Context(), "a", func(tx *storage.Tx) error {
			return errors.Join(
				tx.PutManifest(storage.Manifest{Digest: d, MediaType: "application/x", Size: 1}),
				tx.SetTag(tag, d),
			)
		})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(1050 * time.Millisecond) // times in facts are whole seconds
	}
	if _, answer := job(t, data, "POST", "/admin/retention?dry-run"); !strings.Contains(answer, `"removed":2`) ||
		len(events) != 0 {
		t.Errorf("dry run: %s, %d events", answer, len(events))
	}
	if _, answer := job(t, data, "POST", "/admin/retention"); !strings.Contains(answer, `"removed":2`) {
		t.Errorf("%s", answer)
	}
	// the tag, and the manifest that was its only one
	if len(events) != 2 || events[1].Tags != nil || events[0].Repo != "a" || events[0].Tags[0] != "old" ||
		events[0].Kind != "retention" {
		t.Errorf("%+v", events)
	}
}

func TestDamageIsCounted(t *testing.T) {
	var log bytes.Buffer
	o := options(t, &log)
	data, index := open(t, o)
	d := push(t, data, index, "a", "content")
	if ok, text := data.ContentCheck(); !ok || text != "content whole: 0 quarantined" {
		t.Errorf("before: %v %s", ok, text)
	}
	file := filepath.Join(o.DataDir, "blobs", "sha256", d.Encoded())
	if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := data.Check(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if ok, text := data.ContentCheck(); ok || text != "content whole: 1 quarantined" {
		t.Errorf("after: %v %s", ok, text)
	}
	if !strings.Contains(log.String(), "quarantined until it is pushed again") {
		t.Errorf("the log: %s", &log)
	}
}

func TestMetrics(t *testing.T) {
	o := options(t, &bytes.Buffer{})
	data, index := open(t, o)
	push(t, data, index, "a", "content")
	r := prometheus.NewRegistry()
	r.MustRegister(data)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		got[f.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
	}
	for name, want := range map[string]float64{"trow_index_repositories": 1, "trow_index_blobs": 1,
		"trow_index_tags":       0,
		"trow_quota_used_bytes": 7, "trow_quota_bytes": 1000, "trow_uploads_open": 0, "trow_gc_deleted_total": 0} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", name, v, ok, want)
		}
	}
	if v := got["trow_storage_free_bytes"]; v <= 0 || math.IsNaN(v) {
		t.Errorf("free bytes: %v", v)
	}
}

func TestReserve(t *testing.T) {
	for text, want := range map[string]int64{"5%,1Gi": 1 << 30, "0": 0, "500Mi": 500 << 20, " 10% , 2Gi ": 2 << 30} {
		var r maintenance.Reserve
		if err := r.Set(text); err != nil {
			t.Fatal(err)
		}
		if got := r.Of(100 << 30); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
	for _, text := range []string{"", "51%", "-1%", "1GB", "5%,", "-1Gi", "all"} {
		var r maintenance.Reserve
		if err := r.Set(text); err == nil {
			t.Errorf("%q is valid", text)
		}
	}
	if got := new(maintenance.Reserve).Of(1 << 40); got != 0 {
		t.Errorf("without a reserve: %d", got)
	}
}

func TestInvalidSettingsAreNamed(t *testing.T) {
	for key, change := range map[string]func(*maintenance.Options){
		"data-dir":               func(o *maintenance.Options) { o.DataDir = "" },
		"upload-timeout":         func(o *maintenance.Options) { o.UploadTimeout = time.Second },
		"max-uploads":            func(o *maintenance.Options) { o.MaxUploads = 0 },
		"max-uploads-per-client": func(o *maintenance.Options) { o.MaxUploadsPerClient = -1 },
		"gc-interval":            func(o *maintenance.Options) { o.GCInterval = time.Millisecond },
		"gc-grace":               func(o *maintenance.Options) { o.GCGrace = 0 },
		"scrub-interval":         func(o *maintenance.Options) { o.ScrubInterval = time.Second },
		"scrub-rate":             func(o *maintenance.Options) { _ = o.ScrubRate.Set("-1Mi") },
	} {
		o := options(t, &bytes.Buffer{})
		if err := o.Validate(); err != nil {
			t.Fatalf("the defaults: %v", err)
		}
		change(&o)
		if err := o.Validate(); err == nil || !strings.HasPrefix(err.Error(), key+": ") {
			t.Errorf("%s: %v", key, err)
		}
	}
}
