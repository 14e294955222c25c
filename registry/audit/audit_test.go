package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"trow/registry/audit"
)

// line is a line of the log, read.
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
			t.Fatalf("%q is no line of JSON: %v", one, err)
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
	l, err := audit.Open(path, zerolog.New(program).Level(zerolog.ErrorLevel))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var pushed = audit.Event{What: audit.Push, Outcome: audit.OK, User: "alice", From: "10.0.0.1", Repo: "a/b", Tags: []string{"v1", "v2"}}

// TestEventsGoIntoTheOrdinaryLogAtAnyLevel if there is no file.
func TestEventsGoIntoTheOrdinaryLogAtAnyLevel(t *testing.T) {
	var program bytes.Buffer
	openLog(t, "", &program).Write(pushed)
	all := lines(t, program.String())
	if len(all) != 1 || all[0].Event != "push" || all[0].User != "alice" || len(all[0].Tags) != 2 {
		t.Errorf("%+v", all)
	}
}

func TestWhatIsEmptyIsLeftOutAndWhatIsLongIsCut(t *testing.T) {
	var program bytes.Buffer
	l := openLog(t, "", &program)
	l.Write(audit.Event{What: audit.Login, Outcome: audit.Failed, Reason: strings.Repeat("ä", 1000) + "\n{\"forged\":1}"})
	if text := program.String(); strings.Count(text, "\n") != 1 || len(text) > 500 || strings.Contains(text, "user") || strings.Contains(text, "tags") {
		t.Errorf("%s", text)
	}
}

// TestFailuresAreBoundedAndChangesAreNot in a bubble, whose clock stands still.
func TestFailuresAreBoundedAndChangesAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var program bytes.Buffer // zerolog's SyncWriter guards it; it is read when nobody writes
		l, err := audit.Open("", zerolog.New(zerolog.SyncWriter(&program)))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 1000 {
					l.Write(audit.Event{What: audit.Login, Outcome: audit.Failed})
				}
			})
		}
		wg.Wait()
		for range 1000 {
			l.Write(pushed)
		}
		l.Write(audit.Event{What: audit.Request, Outcome: audit.Denied}) // another kind has room of its own
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
		if n := count(); n["login"] != 100 || n["push"] != 1000 || n["request"] != 1 || n["left out"] != 0 || l.LeftOut() != 7900 {
			t.Errorf("%v, %d left out", n, l.LeftOut())
		}
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() { l.Run(ctx) })
		time.Sleep(11 * time.Second) // it is told without another one
		if n := count(); n["left out"] != 7900 {
			t.Errorf("%v", n)
		}
		for range 150 {
			l.Write(audit.Event{What: audit.Login, Outcome: audit.Failed})
		}
		time.Sleep(time.Second)
		l.Write(audit.Event{What: audit.Login, Outcome: audit.Failed}) // or before the next
		cancel()
		wg.Wait()
		if n := count(); n["left out"] != 7950 || n["login"] != 201 {
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
		l.Write(pushed)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 || len(lines(t, read(t, path))) != 2 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestAFileThatIsNoneIsAnError(t *testing.T) {
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
		if _, err := audit.Open(path, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestARotatedFileIsLeft: renamed or removed, at the latest a second later; at once at SIGHUP.
func TestARotatedFileIsLeft(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.log")
	l := openLog(t, path, &bytes.Buffer{})
	defer l.Close()
	l.Write(pushed)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1100 * time.Millisecond)
	l.Write(pushed)
	if err := os.Remove(path); err != nil {
		t.Errorf("a new file was not begun: %v", err)
	}
	if n := len(lines(t, read(t, path+".1"))); n != 1 {
		t.Errorf("the old file has %d lines", n)
	}
	time.Sleep(1100 * time.Millisecond)
	l.Write(pushed)
	if n := len(lines(t, read(t, path))); n != 1 {
		t.Errorf("the file after the one that was removed has %d lines", n)
	}

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
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
			t.Fatal("SIGHUP did not open the file anew")
		}
	}
}

// TestAFullDiskEndsNothing: it is counted, told once, and after it lines are whole again.
func TestAFullDiskEndsNothing(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "audit.log")
	var program bytes.Buffer
	l := openLog(t, path, &program)
	defer l.Close()
	l.Write(pushed)
	one := int64(len(read(t, path)))
	limit := before
	limit.Cur = uint64(one + one/2) // the second line is torn
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		l.Write(pushed)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	l.Write(pushed)
	text := read(t, path)
	if l.Failed() != 10 || strings.Count(program.String(), "cannot be written") != 1 {
		t.Errorf("%d failed; the ordinary log: %s", l.Failed(), program.String())
	}
	if all := strings.SplitAfter(strings.TrimSpace(text), "\n"); len(all) != 3 || len(lines(t, all[0]+all[2])) != 2 {
		t.Errorf("%s", text)
	}
}
