package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"trow/registry/audit"
)

// line is a decoded line of the log.
type line struct {
	Event, Outcome, User, From, Repo, Reason, Message string
	Tags                                              []string
	LeftOut                                           int
}

func lines(t *testing.T, text string) (all []line) {
	t.Helper()
	for one := range strings.Lines(text) {
		var l line
		if err := json.Unmarshal([]byte(one), &l); err != nil {
			t.Fatalf("%q is not a line of JSON: %v", one, err)
		}
		if l.Message != "audit" {
			t.Errorf("message %q", l.Message)
		}
		all = append(all, l)
	}
	return all
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func openLog(t *testing.T, path string, program *bytes.Buffer) *audit.Log {
	t.Helper()
	l, err := audit.Open(audit.Options{AuditLog: path}, zerolog.New(program).Level(zerolog.ErrorLevel))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var pushed = audit.Event{What: audit.Push, Outcome: audit.OK, User: "alice", From: "10.0.0.1", Repo: "a/b",
	Tags: []string{"v1", "v2"}}

// TestEventsGoIntoTheOrdinaryLogAtAnyLevel, if there is no file.
func TestEventsGoIntoTheOrdinaryLogAtAnyLevel(t *testing.T) {
	var program bytes.Buffer
	openLog(t, "", &program).Record(t.Context(), pushed)
	all := lines(t, program.String())
	if len(all) != 1 || all[0].Event != "push" || all[0].User != "alice" || len(all[0].Tags) != 2 {
		t.Errorf("%+v", all)
	}
}

func TestWhatIsEmptyIsLeftOutAndWhatIsLongIsCut(t *testing.T) {
	var program bytes.Buffer
	l := openLog(t, "", &program)
	l.Record(t.Context(), audit.Event{What: audit.Login, Outcome: audit.Failed,
		Reason: strings.Repeat("ä", 1000) + "\n{\"forged\":1}"})
	if text := program.String(); strings.Count(text, "\n") != 1 || len(text) > 500 || strings.Contains(text, "user") ||
		strings.Contains(text, "tags") {
		t.Errorf("%s", text)
	}
}

// TestFailuresAreBoundedAndChangesAreNot uses a fake clock, so that no time passes between the events.
func TestFailuresAreBoundedAndChangesAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var program bytes.Buffer // guarded by zerolog's SyncWriter; it is read while no goroutine writes
		l, err := audit.Open(audit.Options{}, zerolog.New(zerolog.SyncWriter(&program)))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 1000 {
					l.Record(t.Context(), audit.Event{What: audit.Login, Outcome: audit.Failed})
				}
			})
		}
		wg.Wait()
		for range 1000 {
			l.Record(t.Context(), pushed)
		}
		l.Record(t.Context(), audit.Event{What: audit.Request, Outcome: audit.Denied}) // another kind has its own room
		count := func() map[string]int {
			n := map[string]int{}
			synctest.Wait()
			for _, one := range lines(t, program.String()) {
				if one.LeftOut > 0 {
					n["left out"] += one.LeftOut
					continue
				}
				n[one.Event]++
			}
			return n
		}
		if n := count(); n["login"] != 50 || n["push"] != 1000 || n["request"] != 1 || n["left out"] != 0 ||
			l.LeftOut() != 7950 {
			t.Errorf("%v, %d left out", n, l.LeftOut())
		}
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { _ = l.Run(ctx) })
		time.Sleep(11 * time.Second) // it is reported without a further event
		if n := count(); n["left out"] != 7950 {
			t.Errorf("%v", n)
		}
		for range 150 {
			l.Record(t.Context(), audit.Event{What: audit.Login, Outcome: audit.Failed})
		}
		time.Sleep(time.Second)
		l.Record(t.Context(), audit.Event{What: audit.Login, Outcome: audit.Failed}) // or together with the next event
		cancel()
		wg.Wait()
		if n := count(); n["left out"] != 8064 || n["login"] != 87 { // the first ones count still
			t.Errorf("%v", n)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheFileIsTheOwnersAndIsAppendedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	for range 2 {
		l := openLog(t, path, &bytes.Buffer{})
		l.Record(t.Context(), pushed)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 || len(lines(t, read(t, path))) != 2 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestOnlyARegularFileIsAccepted(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, path := range []string{dir, filepath.Join(dir, "none", "audit.log"), fifo, "/dev/null"} {
		if _, err := audit.Open(audit.Options{AuditLog: path}, zerolog.Nop()); err == nil ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestARotatedFileIsLeft: a second after it was renamed or removed; at once at SIGHUP.
func TestARotatedFileIsLeft(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	l := openLog(t, path, &bytes.Buffer{})
	defer l.Close()
	l.Record(t.Context(), pushed)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond)
	l.Record(t.Context(), pushed)
	if err := os.Remove(path); err != nil {
		t.Errorf("a new file was not created: %v", err)
	}
	if n := len(lines(t, read(t, path+".1"))); n != 1 {
		t.Errorf("the old file has %d lines", n)
	}
	time.Sleep(1100 * time.Millisecond)
	l.Record(t.Context(), pushed)
	if n := len(lines(t, read(t, path))); n != 1 {
		t.Errorf("the file after the one that was removed has %d lines", n)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = l.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	if err := os.Rename(path, path+".2"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal("SIGHUP did not reopen the file")
		}
	}
}

// TestAFullDiskFailsNoRequest: it is counted and reported once, and later lines are complete.
func TestAFullDiskFailsNoRequest(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	var program bytes.Buffer
	l := openLog(t, path, &program)
	defer l.Close()
	l.Record(t.Context(), pushed)
	one := int64(len(read(t, path)))
	limit := before
	limit.Cur = uint64(one + one/2) // the second line is torn
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		l.Record(t.Context(), pushed)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	l.Record(t.Context(), pushed)
	text := read(t, path)
	if l.Failed() != 10 || strings.Count(program.String(), "cannot be written") != 1 {
		t.Errorf("%d failed; the ordinary log: %s", l.Failed(), program.String())
	}
	if all := strings.SplitAfter(strings.TrimSpace(text), "\n"); len(all) != 3 || len(lines(t, all[0]+all[2])) != 2 {
		t.Errorf("%s", text)
	}
}

// TestOptions: standard output is refused as a file.
func TestOptions(t *testing.T) {
	var o audit.Options
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.AddFlags(fs)
	if err := fs.Parse([]string{"--audit-log=/var/log/audit"}); err != nil || o.AuditLog != "/var/log/audit" ||
		o.Validate() != nil {
		t.Errorf("%+v, %v", o, err)
	}
	o.AuditLog = "-"
	if err := o.Validate(); err == nil || !strings.HasPrefix(err.Error(), "audit-log: ") {
		t.Error(err)
	}
}

func TestARecordHasTheIDOfItsRequest(t *testing.T) {
	type key struct{}
	var program bytes.Buffer
	id := func(ctx context.Context) string { s, _ := ctx.Value(key{}).(string); return s }
	l, err := audit.Open(audit.Options{RequestID: id}, zerolog.New(&program))
	if err != nil {
		t.Fatal(err)
	}
	l.Record(context.WithValue(t.Context(), key{}, "8f3k"), pushed)
	if !strings.Contains(program.String(), `"req":"8f3k"`) {
		t.Error(program.String())
	}
}

func TestMetrics(t *testing.T) {
	var program bytes.Buffer
	l := openLog(t, "", &program)
	for range 150 {
		l.Record(t.Context(), audit.Event{What: audit.Login, Outcome: audit.Failed})
	}
	want := `
# HELP trow_audit_failed_total Lines of the audit log that could not be written.
# TYPE trow_audit_failed_total counter
trow_audit_failed_total 0
# HELP trow_audit_left_out_total Events that are not in the audit log, because there were too many of their kind.
# TYPE trow_audit_left_out_total counter
trow_audit_left_out_total ` + strconv.FormatInt(l.LeftOut(), 10) + "\n"
	if err := testutil.CollectAndCompare(l, strings.NewReader(want)); err != nil || l.LeftOut() == 0 {
		t.Error(err, l.LeftOut())
	}
}

// TestARobotsSecretInATagIsNotRecorded: a tag may have the form of one.
func TestARobotsSecretInATagIsNotRecorded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := openLog(t, path, new(bytes.Buffer))
	secret := "trow_" + strings.Repeat("ABC2", 13)
	e := pushed
	e.Tags, e.Reason = []string{secret}, "tag "+secret
	l.Record(t.Context(), e)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if text := read(t, path); strings.Contains(text, secret) || strings.Count(text, "trow_[REDACTED]") != 2 ||
		e.Tags[0] != secret {
		t.Errorf("recorded %s; tags %q", text, e.Tags)
	}
}
