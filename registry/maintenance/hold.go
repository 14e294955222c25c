package maintenance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"trow/registry/retention"
	"trow/storage"
	"trow/storage/files"
)

// hold keeps retention from removing anything before a run has reported it: after an import, which makes all content
// new, and after the first start on data of an earlier version, in which less is known about the order of tags. The
// next run of retention then only reports what it would remove, and the run after that removes it. trow retention, run
// by an administrator, removes at once.
//
// It is kept in a file of its own in the data directory, and not in the journal: it is about the work on the data, and
// a backup or an export of the data must not contain it. Servers that share a journal have no other place that is
// common.
type hold struct {
	root *os.Root
	// index is where it is kept instead if several servers share the journal: any of them applies the rules, and an
	// import reaches only one. nil: it is in root.
	index *storage.Index
	runs  sync.Mutex // held while retention removes, so that an import does not begin in the middle of a run

	mu    sync.Mutex // guards all below
	state holdState
	kept  []byte // the record from which state was read

	// For a hold in the directory these two are in memory only; in the record they are part of state.
	until   time.Time // an import that is under way lets runs report until then
	pending int       // what the last run would have removed; 0 if it has removed
}

// holdState is the content of the file, or of the record.
type holdState struct {
	// Meaning is the version of the data by which retention decides. Another one means data of an earlier version.
	Meaning int `json:"meaning"`
	// Reports is how many of the next runs only report.
	Reports int `json:"reports"`
	// Until is the time, in Unix seconds, until which an import counts as under way, and Pending how many removals the
	// last run has reported. They are in the record only, because each run may be that of another replica.
	Until   int64 `json:"until,omitempty"`
	Pending int   `json:"pending,omitempty"`
}

const (
	holdFile = "retention.json"
	// holdMeaning 1: the order of tags is that of the journal.
	holdMeaning = 1
	// holdTime is how long an import counts as under way after its last request. It sends them more often.
	holdTime = time.Minute
)

// openHold reads the file; without one, or with one that cannot be used, the next run only reports. The caller has
// locked the directory. Errors: the directory cannot be opened; what a crash left cannot be removed, unless the
// directory is read-only.
func openHold(dir string, readOnly bool) (*hold, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	h := &hold{root: root}
	if !readOnly {
		if err := files.Sweep(root, "."); err != nil {
			return nil, errors.Join(err, root.Close())
		}
	}
	text, err := files.ReadIn(root, holdFile, 1<<10)
	if err != nil {
		text = nil // missing, too large or not a file: the next run only reports
	}
	if err := json.Unmarshal(text, &h.state); err != nil {
		h.state = holdState{} // with Meaning 0, which is that of an earlier version; loaded decides
	}
	return h, nil
}

// loaded decides whether the first run only reports, if the file or record is missing or of another version. empty:
// there is no data. Errors: those of the file system, or of the Journal.
func (h *hold) loaded(empty bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.read()
	return h.change(func(s holdState) holdState {
		switch {
		case s.Meaning == holdMeaning: // decided already, at an earlier start or by another replica
		case empty:
			s.Reports = 0
		default:
			s.Reports = 1
		}
		return s
	})
}

// change replaces the state that is kept by what next returns for it. The caller holds mu. Errors: as set.
func (h *hold) change(next func(holdState) holdState) (err error) {
	const tries = 10 // each fails only if another replica has changed the record since it was read
	for range tries {
		h.read()
		if err = h.set(next(h.state)); !errors.Is(err, storage.ErrConflict) {
			return err
		}
	}
	return err
}

// set sets the state in memory and writes it. If it cannot be written, the state in memory counts all the same, so that
// a full disk does not make retention remove. The caller holds mu. Errors: those of the file system, or of the Journal;
// ErrConflict if another replica has changed the record.
func (h *hold) set(next holdState) error {
	next.Meaning = holdMeaning
	if h.state == next {
		return nil
	}
	h.state = next
	text, err := json.Marshal(next)
	switch {
	case err != nil:
	case h.index != nil:
		err = h.index.SetRecord(context.Background(), holdRecord, h.kept, text)
	default:
		err = files.Write(h.root, holdFile, append(text, '\n'), 0o600)
	}
	if err == nil {
		h.kept = text
	} else {
		h.state.Meaning = 0 // so that the next set writes it
		return fmt.Errorf("%s: %w", holdFile, err)
	}
	return nil
}

// holdRecord is the name of the record that replaces the file.
const holdRecord = "retention-hold"

// keepIn keeps the hold in the journal from now on; the file no longer counts.
func (h *hold) keepIn(x *storage.Index) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.index, h.state = x, holdState{}
}

// read reads the record, which another server may have changed. One that cannot be decoded is data of an earlier
// version. The caller holds mu.
func (h *hold) read() {
	if h.index == nil {
		return
	}
	h.kept = nil
	for name, value := range h.index.Records(holdRecord) {
		if name == holdRecord {
			h.kept = value
		}
	}
	h.state = holdState{}
	_ = json.Unmarshal(h.kept, &h.state)
}

// importing lets the next run, and all runs within holdTime, only report. It returns when no run of this server
// removes. Errors: those of the file system, or of the Journal.
func (h *hold) importing() error {
	h.runs.Lock() // waits for a run that removes
	defer h.runs.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	until := time.Now().Add(holdTime)
	if h.index == nil {
		h.until = until
		return h.set(holdState{Reports: 1})
	}
	// A run of another replica may be under way. Its removals are refused once the record has changed (allowed), and it
	// does not count as the run that reports.
	return h.change(func(s holdState) holdState {
		s.Reports, s.Until = 1, until.Unix()
		return s
	})
}

// underWay reports whether an import is under way. The caller holds mu, and has called read.
func (h *hold) underWay() bool {
	now := time.Now()
	return now.Before(h.until) || now.Before(time.Unix(h.state.Until, 0))
}

// holdRun is a run of retention, with the hold as it was when the run began.
type holdRun struct {
	*hold
	dry      bool   // it must not remove
	underWay bool   // an import was under way
	kept     []byte // the record
}

// begin begins a run. The caller holds runs if the run may remove.
func (h *hold) begin() holdRun {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.read()
	return holdRun{h, h.state.Reports > 0 || h.underWay(), h.underWay(), h.kept}
}

// errHeld ends a run because an import has begun at another replica.
var errHeld = errors.New("an import has begun")

// allowed returns a condition for the Update of each removal: the record is the one with which the run began. It is nil
// if no other replica can change that. Errors of the condition: errHeld.
func (r holdRun) allowed() func(*storage.Tx) error {
	if r.index == nil { // importing waits for the run
		return nil
	}
	return func(tx *storage.Tx) error {
		if !bytes.Equal(tx.Record(holdRecord), r.kept) {
			return errHeld
		}
		return nil
	}
}

// reported ends a run that has only reported n tags and manifests. Errors: those of the file system, or of the Journal.
func (r holdRun) reported(n int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.index == nil {
		r.pending = n
	}
	r.read()
	next := r.state
	// The run counts as the one that reports only if it has seen all content: no import was under way when it began,
	// none is now, and none has begun and ended in between.
	if whole := !r.hold.underWay() && (r.index == nil || !r.underWay && bytes.Equal(r.hold.kept, r.kept)); whole {
		next.Reports = max(next.Reports-1, 0)
	}
	return r.end(next, n)
}

// removed ends a run that was allowed to remove. Errors: those of the file system, or of the Journal.
func (r holdRun) removed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending, r.until = 0, time.Time{}
	r.read()
	if !bytes.Equal(r.hold.kept, r.kept) { // an import has begun at another replica after the last removal
		return nil
	}
	next := r.state
	next.Reports, next.Until = 0, 0
	return r.end(next, 0)
}

// end sets the state after a run. On a conflict the state of an import that has just begun at another replica stays.
// The caller holds mu. Errors: those of the file system, or of the Journal.
func (r holdRun) end(next holdState, pending int) error {
	if r.index != nil {
		next.Pending = pending
	}
	err := r.set(next)
	if errors.Is(err, storage.ErrConflict) {
		return nil
	}
	return err
}

// pendingNow returns how many removals the last run has only reported.
func (h *hold) pendingNow() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.index == nil {
		return h.pending
	}
	h.read()
	return h.state.Pending
}

// retain applies the rules, unless a hold lets this run only report.
func (d *Data) retain(ctx context.Context) {
	l := d.loaded.Load()
	if !l.retention.Rules() {
		return // a run without rules reports nothing, so it must not count as the one that reports
	}
	// Not Lock: an administrator's run sends its report to a client, which may be slow, and the collection must not
	// wait.
	if !d.hold.runs.TryLock() {
		return
	}
	defer d.hold.runs.Unlock()
	run, n := d.hold.begin(), 0
	report := d.removed
	if run.dry {
		report = d.wouldRemove
	}
	err := l.retention.Apply(ctx, l.index, run.dry, run.allowed(), func(r retention.Removal) { n++; report(r) })
	switch {
	case errors.Is(err, errHeld): // the next run reports
		return
	case err != nil: // the next run tries again
	case run.dry:
		if err = run.reported(n); n > 0 {
			d.log.Warn().Int("pending", n).Msg("retention only reports in this run, the first after an import or an " +
				"upgrade; the next run removes what it has reported, and trow retention removes it at once")
		}
	default:
		err = run.removed()
	}
	if err != nil && ctx.Err() == nil {
		d.log.Error().Err(err).Msg("retention")
	}
}

// wouldRemove logs what a run that only reports would remove.
func (d *Data) wouldRemove(r retention.Removal) {
	d.log.Info().Str("repo", r.Repo).Str("tag", r.Tag).Stringer("digest", r.Digest).Str("why", r.Why).
		Msg("retention would remove this")
}

// RetentionCheck is a line of /readyz?verbose while retention has reported what it has not removed.
func (d *Data) RetentionCheck() (ok bool, text string) {
	n := d.hold.pendingNow()
	if n == 0 {
		return true, ""
	}
	return false, fmt.Sprintf("retention: %d tags and manifests will be removed by the next run, "+
		"the second after an import or an upgrade", n)
}

// holdRetention answers an import, which calls it before, while and after it pushes.
func (d *Data) holdRetention(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "method not allowed; allowed: POST", http.StatusMethodNotAllowed)
		return
	}
	if d.readOnly != "" {
		http.Error(w, errReadOnly.Error(), http.StatusConflict)
		return
	}
	if err := d.hold.importing(); err != nil {
		d.log.Error().Err(err).Msg("holding retention for an import")
		http.Error(w, "retention cannot be held for the import: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
