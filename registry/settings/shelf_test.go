package settings_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"trow/registry/settings"
)

// board is a shelf in memory.
type board struct {
	content []byte
	saves   int
	err     error
}

func (b *board) Load() ([]byte, error) { return b.content, b.err }

func (b *board) Save(content []byte) error {
	if b.err == nil && !bytes.Equal(b.content, content) {
		b.content, b.saves = content, b.saves+1
	}
	return b.err
}

// on returns the shelf if the setting a-text is shared, as that of replicas.
func (b *board) on(lookup settings.Lookup) settings.Shelf {
	if lookup("a-text") != "shared" {
		return nil
	}
	return b
}

// TestAMistakeDoesNotKeepAReplicaFromStarting, whose data directory is empty: it starts with the files that another one
// has started with.
func TestAMistakeDoesNotKeepAReplicaFromStarting(t *testing.T) {
	dir, b := t.TempDir(), &board{}
	args := func() []string { // each replica has a directory of its own
		return []string{"-c", dir + "/base.yaml", "-c", dir + "/mine", "--data-dir=" + t.TempDir()}
	}
	write(t, dir, map[string]string{"base.yaml": "a-text: shared", "mine/trow.yaml": "cuont: 1"})
	if o, err := beginWith(t, b.on, args(), nil, nil); err == nil || b.saves != 0 {
		t.Fatalf("a first start: %+v, %d saves", o, b.saves)
	}
	write(t, dir, map[string]string{"mine/trow.yaml": "count: 5"})
	for range 2 {
		if _, err := beginWith(t, b.on, args(), nil, nil); err != nil || b.saves != 1 {
			t.Fatalf("%v, %d saves", err, b.saves)
		}
	}
	for what, files := range map[string]map[string]string{
		"an unknown key":      {"mine/trow.yaml": "cuont: 1"},
		"no YAML":             {"mine/trow.yaml": ":\n:"},
		"a bad value":         {"mine/trow.yaml": "count: 101"},
		"a file too many":     {"mine/x.yaml": "count: 1", "mine/trow.yaml/x": ""},
		"a base without text": {"base.yaml": "a-text: shared\ncuont: 1", "mine/trow.yaml": "count: 6"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			args := args()
			args[1], args[3] = dir+"/base.yaml", filepath.Join(dir, "mine")
			write(t, dir, map[string]string{"base.yaml": "a-text: shared"})
			write(t, dir, files)
			shelf := b.on
			if what == "a base without text" { // the base as a whole is of no use
				shelf = func(settings.Lookup) settings.Shelf { return b }
			}
			for range 2 { // the second start has a copy of its own
				o, err := beginWith(t, shelf, args, nil, func(f *settings.Files, _ func() (*server, error)) {
					if ok, text := f.Check(); ok || !strings.Contains(text, "the last good ones are in use") {
						t.Errorf("it says %t %q", ok, text)
					}
				})
				if err != nil || o.Count != 5 || o.Text != "shared" || b.saves != 1 {
					t.Errorf("%+v, %v, %d saves", o, err, b.saves)
				}
			}
		})
	}
}

// TestAServerOfItsOwn has no shelf.
func TestAServerOfItsOwn(t *testing.T) {
	dir, b := t.TempDir(), &board{err: errors.New("asked")}
	write(t, dir, map[string]string{"trow.yaml": "count: 5"})
	if _, err := beginWith(t, b.on, []string{"-c", dir, "--data-dir=" + t.TempDir()}, nil, nil); err != nil {
		t.Error(err)
	}
}

// TestTheShelfIsOutOfReach: the server starts without it, and a mistake is an error that says so.
func TestTheShelfIsOutOfReach(t *testing.T) {
	dir, b := t.TempDir(), &board{err: errors.New("no route\nto host")}
	on := func(settings.Lookup) settings.Shelf { return b }
	write(t, dir, map[string]string{"trow.yaml": "cuont: 5"})
	_, err := beginWith(t, on, []string{"-c", dir, "--data-dir=" + t.TempDir()}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), `unknown setting "cuont"`) ||
		!strings.HasSuffix(err.Error(), "; the last good configuration files cannot be read: no route to host") {
		t.Errorf("%v", err)
	}
	b.content, b.err = []byte("damaged"), nil
	if _, err := beginWith(t, on, []string{"-c", dir, "--data-dir=" + t.TempDir()}, nil, nil); err == nil {
		t.Error("it starts with a mistake")
	}
}

// TestAChangeIsOnTheShelf as soon as it is applied.
func TestAChangeIsOnTheShelf(t *testing.T) {
	dir, b := t.TempDir(), &board{}
	write(t, dir, map[string]string{"trow.yaml": "a-text: shared"})
	args := []string{"-c", dir, "--data-dir=" + t.TempDir()}
	_, err := beginWith(t, b.on, args, nil, func(f *settings.Files, load func() (*server, error)) {
		ctx, cancel := context.WithCancel(t.Context())
		write(t, dir, map[string]string{"trow.yaml": "a-text: shared\ncount: 7"})
		f.Follow(ctx, args[2][len("--data-dir="):], func() error { _, err := load(); return err }, func(err error) {
			if err != nil {
				t.Error(err)
			}
			cancel()
		})
	})
	if err != nil || b.saves != 2 || !strings.Contains(string(b.content), "count: 7") {
		t.Errorf("%v, %d saves: %s", err, b.saves, b.content)
	}
}
