package maintenance_test

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"

	"trow/registry/maintenance"
	"trow/storage"
	"trow/storage/storagetest"
)

// copies returns the copies of a service, the newest first, and checks that each is whole.
func (s *service) copies(t *testing.T) []storage.Copy {
	t.Helper()
	all, err := storage.CopiesOf(t.Context(), s.objects)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		r, err := s.objects.OpenCopy(t.Context(), c.Name)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := storage.ReadFacts(r, nil); err != nil || h.Identity != s.id || h.Revision != c.Revision {
			t.Errorf("%s: %+v, %v", c.Name, h, err)
		}
	}
	return all
}

// TestTheFactsAreCopiedBesideTheBytes: the last two copies stay, and none has a key.
func TestTheFactsAreCopiedBesideTheBytes(t *testing.T) {
	s := newService()
	s.use(t)
	data, index, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"auth/key/1", "auth/robot/ci", "upload-key"} {
		if err := index.SetRecord(t.Context(), name, nil, []byte("value of "+name)); err != nil {
			t.Fatal(err)
		}
	}
	var last storage.Copy
	for i, want := range []int{1, 2, 2, 2} { // within a second: the names differ all the same
		push(t, data, index, "a", strings.Repeat("x", i+1))
		maintenance.CopyFacts(data)
		all := s.copies(t)
		if len(all) != want || !all[0].Time.After(last.Time) || all[0].Revision <= last.Revision {
			t.Fatalf("after %d: %+v", i+1, all)
		}
		last = all[0]
	}
	maintenance.CopyFacts(data) // nothing has changed
	if all := s.copies(t); all[0] != last {
		t.Errorf("the same was copied again: %+v", all)
	}
	r, err := s.objects.OpenCopy(t.Context(), last.Name)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(r)
	for _, row := range []struct {
		record string
		there  bool
	}{{"auth/key/1", false}, {"upload-key", false}, {"auth/robot/ci", true}} {
		if bytes.Contains(text, []byte("value of "+row.record)) != row.there {
			t.Errorf("%s is in the copy: %v", row.record, !row.there)
		}
	}
}

// TestAJournalThatIsOlderThanTheCopyStopsTheCollector: also if no server ran when it was replaced, and also of a server
// that starts later. The copies stay until the journal is to be believed.
func TestAJournalThatIsOlderThanTheCopyStopsTheCollector(t *testing.T) {
	s := newService()
	s.use(t)
	data, index, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		push(t, data, index, "a", strings.Repeat("x", i+1))
	}
	maintenance.CopyFacts(data)
	before := s.copies(t)
	old := newService()
	old.objects = s.objects // the identity is in a backup as well
	err = storagetest.OpenIndex(t, old.journal).SetRecord(t.Context(), "identity", nil, []byte("JOURNAL"))
	if err != nil {
		t.Fatal(err)
	}
	old.use(t)
	suspected, index, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 { // its revision is higher now
		push(t, suspected, index, "b", strings.Repeat("y", i+1))
	}
	later, _, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]*maintenance.Data{"the first": suspected, "a later one": later} {
		if ok, text := data.CollectorCheck(); ok || !strings.Contains(text, "the journal went back") ||
			!strings.Contains(text, "trow gc --all") {
			t.Errorf("%s: %v %s", name, ok, text)
		}
		if _, text := job(t, data, "POST", "/admin/gc?grace=0s"); !strings.Contains(text, "the journal went back") ||
			!strings.Contains(text, "restore that one. Run trow gc --all if the journal is to be believed") {
			t.Errorf("%s: gc: %s", name, text)
		}
		if m := gather(t, data); m["trow_gc_suspended"] != 1 {
			t.Errorf("%s: %v", name, m)
		}
		maintenance.CopyFacts(data)
		if after := s.copies(t); !slices.Equal(after, before) {
			t.Errorf("%s: the copies are %+v", name, after)
		}
	}
	if s.objects.Len() != 70 {
		t.Errorf("%d objects are left", s.objects.Len())
	}
	if _, text := job(t, later, "POST", "/admin/gc?all"); strings.Contains(text, "error") {
		t.Errorf("gc: %s", text)
	}
	if ok, text := suspected.CollectorCheck(); !ok {
		t.Error(text)
	}
	maintenance.CopyFacts(suspected)
	if after := s.copies(t); len(after) != 2 || after[1] != before[0] {
		t.Errorf("the copies are %+v", after)
	}
}

// TestAJournalThatIsBelievedStaysBelieved, also while its last commit is older than the copies from before.
func TestAJournalThatIsBelievedStaysBelieved(t *testing.T) {
	s := newService()
	s.use(t)
	data, index, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		push(t, data, index, "a", strings.Repeat("x", i+1))
	}
	maintenance.CopyFacts(data)
	before := s.copies(t)
	old := newService()
	old.objects = s.objects
	err = storagetest.OpenIndex(t, old.journal).SetRecord(t.Context(), "identity", nil, []byte("JOURNAL"))
	if err != nil {
		t.Fatal(err)
	}
	old.use(t)
	data, index, err = start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	if ok, text := data.CollectorCheck(); ok || !strings.Contains(text, "the journal went back") {
		t.Fatalf("%v %s", ok, text)
	}
	if _, text := job(t, data, "POST", "/admin/gc?all"); strings.Contains(text, "error") {
		t.Fatalf("gc: %s", text)
	}
	after := s.copies(t)
	if len(after) != 2 || after[1] != before[0] || after[0].Revision >= before[0].Revision ||
		index.Revision() >= before[0].Revision {
		t.Fatalf("the copies are %+v, at revision %d", after, index.Revision())
	}
	if _, text := job(t, data, "POST", "/admin/gc"); strings.Contains(text, "error") {
		t.Errorf("a further collection: %s", text)
	}
	later, _, err := start(t, replica(t, &bytes.Buffer{}))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]*maintenance.Data{"the first": data, "a later one": later} {
		if ok, text := data.CollectorCheck(); !ok {
			t.Errorf("%s: %s", name, text)
		}
	}
}
