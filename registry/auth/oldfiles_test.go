package auth_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/rs/zerolog"

	"trow/registry/auth"
	"trow/storage"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

// older makes the files of an earlier version: robots a, b and c with the secrets trow_a and so on, and a key.
func older(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	var all []string
	for _, name := range []string{"a", "b", "c"} {
		all = append(all,
			fmt.Sprintf(`{"name":%q,"repositories":["**"],"actions":["pull"],"created":"2026-01-02T03:04:05Z",`+
				`"sha256":"%x"}`, name, sha256.Sum256([]byte("trow_"+name))))
	}
	write(t, filepath.Join(dir, "robots.json"), "["+strings.Join(all, ",")+"]")
	write(t, filepath.Join(dir, "token-keys.json"), fmt.Sprintf(`[{"id":"OLDKEY23","made":%q,"seed":%q}]`,
		time.Now().Add(-time.Hour).Format(time.RFC3339), base64.StdEncoding.EncodeToString(make([]byte, 32))))
	write(t, filepath.Join(dir, ".trow-tmp-1"), "what a crash left of robots.json")
	return dir
}

// tokenOfOld is a token of robot a that the earlier version has issued.
func tokenOfOld(t *testing.T, g *auth.Guard) string {
	t.Helper()
	id, key := g.Key()
	if id != "OLDKEY23" {
		t.Fatalf("%s signs", id)
	}
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte("trow_a")))
	return auth.Sign(t, jwt.SigningMethodEdDSA, id, key,
		map[string]any{"iss": "trow", "sub": "robot:a", "robot": sum[:16],
			"aud": []string{"example.com"}, "exp": time.Now().Add(time.Hour).Unix(),
			"access": []map[string]any{{"type": "repository", "name": "x", "actions": []string{"pull"}}}})
}

// good fails unless exactly these robots can log in.
func good(t *testing.T, when string, g *auth.Guard, names string) {
	t.Helper()
	for _, name := range []string{"a", "b", "c"} {
		if _, err := g.Identify(bearer("trow_" + name)); (err == nil) != strings.Contains(names, name) {
			t.Errorf("%s, robot %s: %v", when, name, err)
		}
	}
}

func filesIn(t *testing.T, dir string) (n int) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// dying is an index of a process that dies after some changes.
type dying struct {
	*storage.Index
	left int
}

func (d *dying) SetRecord(ctx context.Context, name string, old, value []byte) error {
	if d.left--; d.left < 0 {
		return errFull
	}
	return d.Index.SetRecord(ctx, name, old, value)
}

// TestFilesOfAnEarlierVersionAreTakenOnce: a crash at any point loses no robot and revives none.
func TestFilesOfAnEarlierVersionAreTakenOnce(t *testing.T) {
	const steps = 5 // three robots, a key, and that it is done
	for left := range steps + 1 {
		for _, copies := range []error{nil, errFull} { // a copy of the journal fails, or not
			name := fmt.Sprintf("after %d changes, %v", left, copies)
			dir, x := older(t), storagetest.OpenIndex(t, memory.NewJournal())
			var log bytes.Buffer
			o := auth.Options{Dir: dir, User: "u", Password: "p", Log: zerolog.New(&log)}
			open := func(r auth.Records, copied func(context.Context) error) *auth.Guard {
				t.Helper()
				g, err := auth.New(o)
				if err == nil {
					err = g.Load(t.Context(), r, copied)
				}
				if err != nil {
					t.Fatal(err)
				}
				return g
			}
			copied := 0
			copyOf := func(context.Context) error {
				n := 0
				for range x.Records("auth/") {
					n++
				}
				if copied++; n != steps || filesIn(t, dir) != 3 {
					t.Errorf("%s: copied with %d records and %d files", name, n, filesIn(t, dir))
				}
				return copies
			}
			r := &dying{x, left}
			g := open(r, copyOf)
			good(t, name, g, "abc")
			token := tokenOfOld(t, g)
			if _, err := may(g, bearer(token), "x", auth.Pull); err != nil {
				t.Errorf("%s: a token: %v", name, err)
			}
			taken := left == steps
			if gone := filesIn(t, dir) == 0; gone != (taken && copies == nil) || (copied == 1) != taken {
				t.Errorf("%s: the files are gone: %v; copied %d times", name, gone, copied)
			}
			if !strings.Contains(log.String(), "no space") && (!taken || copies != nil) {
				t.Errorf("%s: nothing is logged: %s", name, &log)
			}
			if !taken { // what cannot be recorded changes nothing
				r.left = 0
				if err := g.RevokeRobot(t.Context(), "a"); !errors.Is(err, errFull) {
					t.Errorf("%s: revoked: %v", name, err)
				}
				if _, err := g.CreateRobot(t.Context(), robot("d", "pull", "**")); !errors.Is(err, errFull) {
					t.Errorf("%s: created: %v", name, err)
				}
				good(t, name, g, "abc")
			}
			// The next process, which finishes it.
			g = open(x, func(context.Context) error { return nil })
			good(t, name+", again", g, "abc")
			if _, err := may(g, bearer(token), "x", auth.Pull); err != nil || g.Keys() != 1 {
				t.Errorf("%s, again: %d keys, a token: %v", name, g.Keys(), err)
			}
			if n := filesIn(t, dir); n != 0 {
				t.Errorf("%s, again: %d files", name, n)
			}
			if err := g.RevokeRobot(t.Context(), "b"); err != nil {
				t.Fatal(err)
			}
			// A power cut brings the files back, whose removal was not durable.
			back := older(t)
			for _, file := range []string{"robots.json", "token-keys.json"} {
				if err := os.Rename(filepath.Join(back, file), filepath.Join(dir, file)); err != nil {
					t.Fatal(err)
				}
			}
			g = open(x, nil)
			good(t, name+", with the files back", g, "ac")
			if n := filesIn(t, dir); n != 0 {
				t.Errorf("%s, with the files back: %d files", name, n)
			}
		}
	}
}

// TestAChangeTakesTheFilesFirst if that has failed at the start.
func TestAChangeTakesTheFilesFirst(t *testing.T) {
	dir, x := older(t), storagetest.OpenIndex(t, memory.NewJournal())
	r := &dying{x, 2}
	g, err := auth.New(auth.Options{Dir: dir, User: "u", Password: "p"})
	if err == nil {
		err = g.Load(t.Context(), r, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.left = 100
	if err := g.RevokeRobot(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	good(t, "after it", g, "ab")
	if n := filesIn(t, dir); n != 0 {
		t.Errorf("%d files", n)
	}
}

// TestReadOnlyServesTheFilesOfAnEarlierVersion and leaves them as they are; once they were taken they do not count.
func TestReadOnlyServesTheFilesOfAnEarlierVersion(t *testing.T) {
	dir, x := older(t), storagetest.OpenIndex(t, memory.NewJournal())
	open := func(readOnly bool) *auth.Guard {
		t.Helper()
		g, err := auth.New(auth.Options{Dir: dir, User: "u", Password: "p", ReadOnly: readOnly})
		if err == nil {
			err = g.Load(t.Context(), x, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	g := open(true)
	good(t, "read-only", g, "abc")
	token := tokenOfOld(t, g)
	if _, err := may(g, bearer(token), "x", auth.Pull); err != nil {
		t.Error(err)
	}
	for range x.Records("") {
		t.Error("something is recorded")
	}
	if filesIn(t, dir) != 3 {
		t.Error("the files have changed")
	}
	if err := g.RevokeRobot(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("revoked: %v", err)
	}
	if err := open(false).RevokeRobot(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	back := older(t)
	if err := os.Rename(filepath.Join(back, "robots.json"), filepath.Join(dir, "robots.json")); err != nil {
		t.Fatal(err)
	}
	good(t, "read-only, after they were taken", open(true), "bc")
	// Without any key, one signs that ends with the process.
	none, err := auth.New(auth.Options{User: "u", Password: "p", ReadOnly: true})
	if err == nil {
		err = none.Load(t.Context(), storagetest.OpenIndex(t, memory.NewJournal()), nil)
	}
	if err != nil || none.Keys() != 1 {
		t.Errorf("%v, %d keys", err, none.Keys())
	}
	ask(t, none, tokenGET("u", "p"), 200)
}

// TestASharedJournalTakesNoFiles: another replica may have revoked those robots.
func TestASharedJournalTakesNoFiles(t *testing.T) {
	var log bytes.Buffer
	dir := older(t)
	g := replica(t, shared(), auth.Options{Dir: dir, User: "u", Password: "p", Log: zerolog.New(&log)})
	good(t, "shared", g, "")
	if filesIn(t, dir) != 3 || !strings.Contains(log.String(), "trow migrate") {
		t.Errorf("%d files, %s", filesIn(t, dir), &log)
	}
}

// TestTheFilesAreTakenAsTheyAre: what listed robots and when they end stays.
func TestTheFilesAreTakenAsTheyAre(t *testing.T) {
	dir := older(t)
	write(t, filepath.Join(dir, "token-keys.json"), "{") // clients get new tokens
	g := guard(t, auth.Options{Dir: dir, User: "u", Password: "p"})
	all := g.Robots(t.Context())
	want := robot("a", "pull", "**")
	want.Created = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	got, _ := json.Marshal(all[0])
	if text, _ := json.Marshal(want); len(all) != 3 || !bytes.Equal(got, text) || g.Keys() != 1 {
		t.Errorf("%+v, %d keys", all, g.Keys())
	}
}

// TestFilesThatWereTakenAreNotRead, so that a damaged one keeps no server from starting.
func TestFilesThatWereTakenAreNotRead(t *testing.T) {
	for _, taken := range []bool{false, true} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "robots.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		x := storagetest.OpenIndex(t, memory.NewJournal())
		if taken {
			if err := x.SetRecord(t.Context(), "auth/taken", nil, []byte("1")); err != nil {
				t.Fatal(err)
			}
		}
		g, err := auth.New(auth.Options{Dir: dir, User: "u", Password: "p"})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Load(t.Context(), x, nil); (err == nil) != taken {
			t.Errorf("taken: %v: %v", taken, err)
		}
	}
}
