package maintenance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"trow/registry/maintenance"
	"trow/registry/retention"
	"trow/registry/settings/settingstest"
	"trow/storage"
	"trow/storage/memory"
)

// service is a pair of engines that several servers share.
type service struct {
	journal *memory.Journal
	objects *memory.Service
	id      string       // of the journal
	down    atomic.Int32 // how many attempts to reach each engine fail
	silent  atomic.Bool  // the journal does not answer, and requests for content fail at once
	turns   bool         // servers take turns
}

func newService() *service {
	s := &service{journal: memory.NewJournal(), objects: memory.NewService(), id: "JOURNAL"}
	s.journal.Is = storage.Traits{Shared: true, Compares: 128, Operations: 128, Bytes: 1 << 20}
	return s
}

type sharedJournal struct {
	storage.Journal
	s *service
}

// leadingJournal is one with which replicas take turns.
type leadingJournal struct {
	sharedJournal
	storage.Leads
}

func (j sharedJournal) Identity() string { return j.s.id }

func (j sharedJournal) Head(ctx context.Context) (storage.Revision, error) {
	if j.s.silent.Load() {
		return 0, errors.New("silence")
	}
	return j.Journal.Head(ctx)
}

type sharedObjects struct {
	storage.Placed
	storage.Identified
	storage.Keeper
	s *service
}

func (b sharedObjects) Answering() error {
	if b.s.silent.Load() {
		return errors.New("S3 at nowhere: 20 requests in a row have failed")
	}
	return nil
}

// use makes the test's servers open these engines.
func (s *service) use(t *testing.T) {
	reached := func() error {
		if s.down.Add(-1) >= 0 {
			return fmt.Errorf("service at nowhere: %w", storage.ErrUnavailable)
		}
		return nil
	}
	journal := func() (storage.Journal, error) {
		if s.turns {
			return leadingJournal{sharedJournal{s.journal, s}, s.journal}, reached()
		}
		return sharedJournal{s.journal, s}, reached()
	}
	maintenance.SetEngines(t, journal,
		func(r storage.Records) (storage.Blobs, error) {
			return sharedObjects{&memory.Objects{Service: s.objects, Records: r}, s.objects, s.objects, s}, reached()
		})
}

// replica returns the options of a server with both engines elsewhere.
func replica(t *testing.T, log *bytes.Buffer) maintenance.Options {
	o := options(t, log)
	o.Journal, o.Blobs = "etcd://127.0.0.1:1/trow", "s3://bucket/trow?endpoint=http://127.0.0.1:2"
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	return o
}

// start opens a server, and returns the error of its start.
func start(t *testing.T, o maintenance.Options) (*maintenance.Data, *storage.Index, error) {
	t.Helper()
	data, err := maintenance.Open(o)
	if err != nil {
		return nil, nil, err
	}
	t.Cleanup(func() { _ = data.Close() })
	keep, err := retention.Compile(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	index, err := data.Load(t.Context(), keep, nil)
	if err != nil {
		_ = data.Close()
	}
	return data, index, err
}

// TestServersShareEngines: each has a directory of its own, and holds what the other one has got.
func TestServersShareEngines(t *testing.T) {
	newService().use(t)
	one, x, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	two, y, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	d := push(t, one, x, "a", "content")
	if _, err := y.CatchUp(t.Context(), storage.CatchUpTime); err != nil || !y.Present(d) {
		t.Errorf("the other server does not hold it: %v", err)
	}
	if info, err := two.Blobs().Stat(t.Context(), d); err != nil || info.Size != 7 {
		t.Errorf("its bytes: %+v, %v", info, err)
	}
	// An import that reaches one server holds retention at the other one.
	if code, text := job(t, one, "POST", "/admin/retention-hold"); code != http.StatusNoContent {
		t.Errorf("hold: %d %s", code, text)
	}
	record, err := y.Record(t.Context(), "retention-hold")
	if err != nil || !strings.Contains(string(record), `"reports":1`) {
		t.Errorf("the hold: %s, %v", record, err)
	}
	if code, text := job(t, two, "POST", "/admin/gc?all"); code != 200 || strings.Contains(text, "error") {
		t.Errorf("gc: %d %s", code, text)
	}
}

// TestAServerStartsAfterItsContentHasMoved: it serves reads, and it is the one that goes on with a migration that was
// cut short after the switch, when all servers may be gone.
func TestAServerStartsAfterItsContentHasMoved(t *testing.T) {
	s := newService()
	s.turns = true
	s.use(t)
	one, x, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	d := push(t, one, x, "a", "content")
	if err := x.Seal(t.Context(), storage.Migration{To: "another place"}); err != nil {
		t.Fatal(err)
	}
	log := &bytes.Buffer{}
	two, y, err := start(t, replica(t, log))
	if err != nil {
		t.Fatalf("a start after the switch: %v", err)
	}
	if !y.Present(d) {
		t.Error("it does not hold what there was")
	}
	ctx, end := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer end()
	if err := two.Run(ctx); err != nil {
		t.Error(err)
	}
	if strings.Contains(log.String(), "another place") {
		t.Errorf("it tries to write: %s", log)
	}
	if ok, text := two.MigrationCheck(); ok || !strings.Contains(text, "moves to another place") {
		t.Errorf("the check says %v, %q", ok, text)
	}
}

// TestADirectoryOfAnotherServerIsRefused, also where it holds no data: it has certificates and a socket.
func TestADirectoryOfAnotherServerIsRefused(t *testing.T) {
	newService().use(t)
	o := replica(t, &bytes.Buffer{})
	if _, _, err := start(t, o); err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup // each waits for some seconds
	for _, o := range []maintenance.Options{o, {Engines: maintenance.Engines{DataDir: o.DataDir}}} {
		both.Go(func() {
			if _, err := maintenance.Open(o); err == nil || !strings.Contains(err.Error(), "in use") {
				t.Errorf("journal %q: %v", o.Journal, err)
			}
		})
	}
	both.Wait()
}

// TestAServerWaitsForItsEngines, and says so; what waiting does not change ends the start.
func TestAServerWaitsForItsEngines(t *testing.T) {
	s := newService()
	s.use(t)
	s.down.Store(5)
	var log bytes.Buffer
	data, _, err := start(t, replica(t, &log))
	if err != nil || data.Blobs() == nil || !strings.Contains(log.String(), "waiting for the storage") ||
		!strings.Contains(log.String(), "service at nowhere") {
		t.Errorf("%v; the log: %s", err, &log)
	}
	refused := errors.New("access denied")
	maintenance.SetEngines(t, func() (storage.Journal, error) { return s.journal, nil },
		func(storage.Records) (storage.Blobs, error) { return nil, refused })
	if _, _, err := start(t, replica(t, &bytes.Buffer{})); !errors.Is(err, refused) {
		t.Errorf("refused: %v", err)
	}
	// A stop ends the wait.
	s.down.Store(1 << 30)
	s.use(t)
	waiting, err := maintenance.Open(replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := waiting.Load(ctx, nil, nil); err == nil {
		t.Error("Load has returned without engines")
	}
	if waiting.Blobs() != nil || gather(t, waiting) == nil {
		t.Error("there is something of engines that were not reached")
	}
}

// gather returns the metrics by name.
func gather(t *testing.T, data *maintenance.Data) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(data)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		all[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
	}
	return all
}

// TestWhatAnEngineDoesNotHaveIsNotShown, and what it has is.
func TestWhatAnEngineDoesNotHaveIsNotShown(t *testing.T) {
	s := newService()
	s.use(t)
	embedded, _ := open(t, options(t, &bytes.Buffer{}))
	shared, x, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	local := []string{"trow_storage_size_bytes", "trow_storage_free_bytes", "trow_storage_reserve_bytes",
		"trow_uploads_open"}
	elsewhere := []string{"trow_journal_age_seconds", "trow_blobs_circuit_open", "trow_gc_suspended"}
	for _, row := range []struct {
		data     *maintenance.Data
		has, not []string
	}{{embedded, local, elsewhere}, {shared, elsewhere, local}} {
		metrics := gather(t, row.data)
		for _, name := range row.has {
			if _, ok := metrics[name]; !ok {
				t.Errorf("there is no %s", name)
			}
		}
		for _, name := range row.not {
			if v, ok := metrics[name]; ok {
				t.Errorf("%s is %v", name, v)
			}
		}
	}
	for _, check := range []func() (bool, string){embedded.JournalCheck, embedded.BlobsCheck, shared.SpaceCheck,
		shared.CollectorCheck, shared.ScrubCheck, embedded.ScrubCheck} {
		if ok, text := check(); !ok || text != "" {
			t.Errorf("%v %q", ok, text)
		}
	}
	lines := func() string {
		ok, text := shared.JournalCheck()
		ok2, text2 := shared.BlobsCheck()
		return fmt.Sprint(ok, " ", ok2, " ", text, "; ", text2)
	}
	if got := lines(); got != "true true journal: the index is up to date; blobs: the service answers" {
		t.Error(got)
	}
	s.silent.Store(true)
	if ok, text := shared.BlobsCheck(); ok || !strings.Contains(text, "20 requests in a row") {
		t.Errorf("%v %s", ok, text)
	}
	if m := gather(t, shared); m["trow_blobs_circuit_open"] != 1 || m["trow_journal_age_seconds"] <= 0 {
		t.Errorf("%v", m)
	}
	if age, _ := x.CatchUp(t.Context(), storage.CatchUpTime); age == 0 {
		t.Error("the journal is silent, and the index counts as up to date")
	}
	maintenance.StaleAfter(t, 0)
	if ok, text := shared.JournalCheck(); ok || !strings.Contains(text, "has not answered") ||
		!strings.HasSuffix(text, "silence") {
		t.Errorf("the check does not say why: %v %s", ok, text)
	}
	// A list that cannot be certain says why, where the connection was cut without a word.
	if code, answer := job(t, shared, "GET",
		"/admin/repositories?repository=a"); code != http.StatusServiceUnavailable ||
		!strings.Contains(answer, "does not answer") {
		t.Errorf("a list: %d %s", code, answer)
	}
}

// TestAPairKeepsTogether: bytes and a journal that do not belong together are refused until they are adopted.
func TestAPairKeepsTogether(t *testing.T) {
	s := newService()
	s.use(t)
	data, index, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	d := push(t, data, index, "a", "content")
	if id, _ := s.objects.Identity(t.Context()); id != "JOURNAL" {
		t.Errorf("the identity is %q", id)
	}
	refused := func(s *service, names ...string) maintenance.Options {
		t.Helper()
		s.use(t)
		o := replica(t, &bytes.Buffer{})
		_, _, err := start(t, o)
		if !errors.Is(err, maintenance.ErrIdentity) {
			t.Fatalf("it starts: %v", err)
		}
		for _, name := range append(names, o.Journal, o.Blobs) {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("%v; want %s", err, name)
			}
		}
		o.Adopt = "SOMETHING"
		if _, _, err := start(t, o); !errors.Is(err, maintenance.ErrIdentity) {
			t.Fatalf("it adopts another: %v", err)
		}
		return o
	}
	adopted := func(o maintenance.Options, id string) {
		t.Helper()
		for _, o.Adopt = range []string{id, "", id} {
			o.DataDir = t.TempDir()
			if _, _, err := start(t, o); err != nil {
				t.Fatalf("adopt %q: %v", o.Adopt, err)
			}
		}
	}
	// A new journal on old bytes.
	fresh := newService()
	fresh.objects, fresh.id = s.objects, "FRESH"
	adopted(refused(fresh, "identity FRESH", "identity JOURNAL", "trow serve --adopt FRESH", "run trow rebuild"),
		"FRESH")
	s.use(t)
	_ = s.objects.SetIdentity(t.Context(), "JOURNAL")
	// A new journal on old bytes without an identity.
	bare := newService()
	bare.objects = memory.NewService()
	pushed := &memory.Objects{Service: bare.objects, Records: index}
	u, err := pushed.Create(t.Context(), "a", d.Algorithm())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = u.Write([]byte("content"))
	if err := u.Commit(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	adopted(refused(bare, "without an identity"), "JOURNAL")
	// An old journal on a new bucket.
	moved := newService()
	moved.journal = s.journal
	adopted(refused(moved, "without an identity", "--adopt JOURNAL"), "JOURNAL")
}

// TestALostIdentityStopsWhatDeletes: nothing is collected or quarantined, and checks, job and metric say so.
func TestALostIdentityStopsWhatDeletes(t *testing.T) {
	s := newService()
	s.use(t)
	var log bytes.Buffer
	data, index, err := start(t, replica(t, &log))
	if err != nil {
		t.Fatal(err)
	}
	d := push(t, data, index, "a", "content")
	place, err := index.Place(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	placed := data.Blobs().(storage.Placed)
	_ = s.objects.SetIdentity(t.Context(), "")
	_ = placed.Remove(t.Context(), place)
	if _, text := job(t, data, "POST", "/admin/scrub"); !strings.Contains(text, `"failed":1`) || index.Quarantined(d) {
		t.Errorf("scrub: %s", text)
	}
	if err := data.Check(t.Context(), d); err != nil || index.Quarantined(d) {
		t.Errorf("a pull has quarantined it: %v", err)
	}
	if _, text := job(t, data, "POST", "/admin/gc"); !strings.Contains(text, "do not belong together") {
		t.Errorf("gc: %s", text)
	}
	if ok, text := data.CollectorCheck(); ok || !strings.Contains(text, "do not belong together") {
		t.Errorf("%v %s", ok, text)
	}
	if m := gather(t, data); m["trow_gc_suspended"] != 1 {
		t.Errorf("%v", m)
	}
	_ = s.objects.SetIdentity(t.Context(), "JOURNAL")
	if _, text := job(t, data, "POST", "/admin/gc"); strings.Contains(text, "error") {
		t.Errorf("gc: %s", text)
	}
	if ok, text := data.CollectorCheck(); !ok || text != "" {
		t.Errorf("%v %s", ok, text)
	}
	if _, text := job(t, data, "POST", "/admin/scrub"); !strings.Contains(text, `"damaged":1`) ||
		!index.Quarantined(d) {
		t.Errorf("scrub: %s", text)
	}
	push(t, data, index, "a", "another")
	if _, text := job(t, data, "POST", "/admin/scrub"); !strings.Contains(text, `"listed":true,"blobs":2,"bytes":0`) {
		t.Errorf("scrub: %s", text)
	}
	if _, text := job(t, data, "POST", "/admin/scrub?read"); !strings.Contains(text, `"blobs":2,"bytes":7`) {
		t.Errorf("scrub --read: %s", text)
	}
}

// TestAScrubThatStoppedWaits for an administrator, and says so.
func TestAScrubThatStoppedWaits(t *testing.T) {
	data, index := open(t, options(t, &bytes.Buffer{}))
	n := 0
	for i := range 120 {
		d := push(t, data, index, "a", fmt.Sprint(i))
		if err := data.Blobs().Delete(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		n++
	}
	_, text := job(t, data, "POST", "/admin/scrub")
	if ok, line := data.ScrubCheck(); ok || !strings.Contains(line, "trow scrub --all") ||
		!strings.Contains(text, "trow scrub --all") || index.Stats().Quarantined != 100 {
		t.Errorf("%v %s; %s", ok, line, text)
	}
	if m := gather(t, data); m["trow_scrub_suspended"] != 1 {
		t.Errorf("%v", m)
	}
	_, text = job(t, data, "POST", "/admin/scrub?all")
	if ok, line := data.ScrubCheck(); !ok || line != "" || index.Stats().Quarantined != n {
		t.Errorf("%v %s; %s", ok, line, text)
	}
}

// TestAJournalInTheDirectoryWithBytesElsewhere has an identity as well, and neither the directory's own bytes nor a
// rebuild are taken for what it names.
func TestAJournalInTheDirectoryWithBytesElsewhere(t *testing.T) {
	newService().use(t)
	o := options(t, &bytes.Buffer{})
	o.Blobs = "s3://bucket?endpoint=http://127.0.0.1:2"
	data, index, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	push(t, data, index, "a", "content")
	id, err := index.Record(t.Context(), "identity")
	if err != nil || len(id) == 0 {
		t.Fatalf("%q, %v", id, err)
	}
	if err := data.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = maintenance.Rebuild(t.Context(), o.DataDir, maintenance.RebuildOptions{Parse: parseManifest, DryRun: true})
	if err == nil || !strings.Contains(err.Error(), "setting blobs") {
		t.Errorf("a rebuild: %v", err)
	}
	embedded := o
	embedded.Blobs = ""
	if _, _, err := start(t, embedded); !errors.Is(err, maintenance.ErrIdentity) ||
		!strings.Contains(err.Error(), "the data directory "+o.DataDir+" (without an identity)") {
		t.Errorf("with the directory's own bytes: %v", err)
	}
}

func TestEngineSettings(t *testing.T) {
	type o = maintenance.Options
	both := "blobs: s3://bucket/x?endpoint=http://127.0.0.1:2\n"
	settingstest.Reject[o](t, map[string]string{
		"journal: etcd://h:1/x": "blobs: a journal in etcd is for several servers",
		"journal: http://h:1\n" + both: "journal: the URL of the journal does not start with " +
			"etcd://",
		"journal: etcd://u:secret@h:1/x\n" + both:             "journal: the URL of the journal has credentials",
		"blobs: s3://k:secret@b/x":                            "blobs: the URL has credentials",
		"blobs: s3://b/x?size=1":                              `blobs: "size" is not a parameter`,
		"blobs: /srv/blobs":                                   "blobs: not a URL of the form s3://BUCKET/PREFIX",
		"journal-ca-file: ca.pem":                             "journal-ca-file: it is for a journal in etcd over TLS",
		"journal: etcd://h:1\njournal-key-file: k\n" + both:   "journal-key-file: it is for a journal in etcd over TLS",
		"journal: etcds://h:1\njournal-cert-file: c\n" + both: "journal-cert-file: a client certificate needs its key",
		"journal: etcd://h:1\njournal-user: u\n" + both:       "journal-user: a user needs a password",
		"journal-user: u\njournal-password-file: p":           "journal-user: it is for a journal in etcd",
		"blobs-ca-file: ca.pem":                               "blobs-ca-file: it is for blobs in S3",
		"blobs-redirect-networks: [10.0.0.0/8]":               "blobs-redirect-networks: a data directory has no URL",
		"blobs-redirect-networks: [10.0.0.0/8, pods]\n" + both: `blobs-redirect-networks: "pods" is not an ` +
			"address or network; want 10.0.0.7 or 10.0.0.0/8",
		"blobs-redirect-networks: all\n" + both: `blobs-redirect-networks: "all" is not an address`,
	})
	for _, file := range []string{both,
		"blobs-redirect-networks: [10.0.0.0/8, 192.0.2.7, \"fd00::/8\"]\n" + both,
		"journal: etcd://h:1,g:2/x\n" + both,
		"journal: etcds://h:1\njournal-ca-file: a\njournal-cert-file: b\njournal-key-file: c\n" +
			"journal-user: u\njournal-password-file: p\nblobs-ca-file: d\n" + both} {
		if _, err := settingstest.Load[o](t, file); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	_, err := settingstest.Load[o](t, "blobs: s3://k:hidden@b/x")
	if err == nil || strings.Contains(err.Error(), "hidden") {
		t.Errorf("a credential is quoted: %v", err)
	}
}

// TestAnEmptyFileIsLockedNotTaken: the directory of a server without a journal can become that of one.
func TestAnEmptyFileIsLockedNotTaken(t *testing.T) {
	newService().use(t)
	o := replica(t, &bytes.Buffer{})
	data, _, err := start(t, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := data.Close(); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(o.DataDir, "journal.db")); err != nil || fi.Size() != 0 {
		t.Errorf("%v, %v", fi, err)
	}
	embedded := options(t, &bytes.Buffer{})
	embedded.DataDir = o.DataDir
	if _, _, err := start(t, embedded); err != nil {
		t.Error(err)
	}
}

// TestTheHostsOfTheEngines are what the cluster must be able to start before the server.
func TestTheHostsOfTheEngines(t *testing.T) {
	for _, row := range []struct{ journal, blobs, want string }{
		{"", "", ""},
		{"etcds://a.etcd.db.svc:2379,[fd00::1]:2379/trow", "s3://images/p?endpoint=https://minio.minio.svc:9000",
			"a.etcd.db.svc fd00::1 minio.minio.svc"},
		{"", "s3://images?endpoint=http://10.0.0.1&region=x", "10.0.0.1"},
		{"", "s3://images?region=eu-west-1", "s3.amazonaws.com"},
		{"nonsense", "nonsense", ""},
	} {
		o := maintenance.Engines{Journal: row.journal, Blobs: row.blobs}
		if got := strings.Join(o.Hosts(), " "); got != row.want {
			t.Errorf("%s, %s: %q, want %q", row.journal, row.blobs, got, row.want)
		}
	}
}
