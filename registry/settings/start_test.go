package settings_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/spf13/pflag"

	"trow/registry/settings"
	"trow/storage/files"
)

// server has the settings of a server that keeps something in a directory.
type server struct {
	options
	DataDir string
}

func (s *server) AddFlags(fs *pflag.FlagSet) {
	s.options.AddFlags(fs)
	fs.StringVar(&s.DataDir, "data-dir", "./nowhere", "a directory")
}

// Validate has a condition on a setting from a file.
func (s *server) Validate() error {
	if s.Count > 100 {
		return errors.New("count: too large")
	}
	return nil
}

// write writes files into a directory.
func write(t *testing.T, dir string, texts map[string]string) {
	t.Helper()
	for name, text := range texts {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// begin starts a server with these arguments; open stands for what is opened once the settings are loaded. then runs
// after the server has started.
func begin(t *testing.T, args []string, open func(*server) error, then func(*settings.Files, func() (*server, error))) (
	o *server, err error) {
	t.Helper()
	return beginWith(t, nil, args, open, then)
}

// beginWith is begin for a server that keeps its files on a shelf as well.
func beginWith(t *testing.T, shelf func(settings.Lookup) settings.Shelf, args []string, open func(*server) error,
	then func(*settings.Files, func() (*server, error))) (o *server, err error) {
	t.Helper()
	given := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	new(server).AddFlags(given)
	settings.AddConfigFlag(given)
	if err := given.Parse(args); err != nil {
		t.Fatal(err)
	}
	load := func() (*server, error) {
		s := &server{}
		return s, settings.LoadParts(given, func() {}, s)
	}
	err = settings.Start(given, []settings.Part{new(server)}, shelf, func(f *settings.Files) error {
		s, err := load()
		if err == nil && open != nil {
			err = open(s)
		}
		if err != nil {
			return err
		}
		o = s
		if err := f.Started(s.DataDir); err != nil {
			t.Error(err)
		}
		if then != nil {
			then(f, load)
		}
		return nil
	})
	return o, err
}

func TestALaterFileOverridesAnEarlierOneKeyByKey(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"base.yaml": "a-text: base\ncount: 1\nlist: [a, b]\nrules: [{who: a}, {who: b}]",
		"mine/trow.yaml": "count: 2\nlist: [c]\nrules: [{who: c}]\n"})
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"--config=" + dir + "/base.yaml", "-c", dir + "/mine", "--config=" + dir + "/empty",
		"--data-dir=" + dir}
	o, err := begin(t, args, nil, nil)
	if err != nil || o.Text != "base" || o.Count != 2 || strings.Join(o.List, " ") != "c" || len(o.Rules) != 1 ||
		o.Rules[0].Who[0] != "c" {
		t.Errorf("%+v, %v", o, err)
	}
	args[0], args[1], args[2] = "-c", dir+"/mine", "--config="+dir+"/base.yaml"
	if o, err := begin(t, args, nil, nil); err != nil || o.Count != 1 || len(o.Rules) != 2 {
		t.Errorf("in the other order: %+v, %v", o, err)
	}
}

func TestMistakesNameFileEntryAndKeys(t *testing.T) {
	for name, row := range map[string]struct {
		text string
		want []string
	}{
		"a misspelled key": {"cuont: 1", []string{"b.yaml: ", `unknown setting "cuont"; did you mean count?`}},
		"an unknown key":   {"nothing-like-it: 1", []string{"b.yaml: ", "trow settings lists all"}},
		"a bad value":      {"count: many", []string{"b.yaml: count: "}},
		"an invalid value": {"count: 101", []string{"b.yaml: count: too large"}},
		"a key of an entry": {"rules: [{who: a}, {who: b, rates: 1}]", []string{"b.yaml: rules: entry 2: ", "rates",
			"the keys are who, rate, after"}},
		"a value in one": {"rules: [{who: a, rate: fast}]",
			[]string{`b.yaml: rules: entry 1: rate: "fast" is not a number of bytes`}},
		"a list in one": {"rules: [{who: a, rate: [1, 2]}]",
			[]string{`b.yaml: rules: entry 1: rate: "[1 2]" is not a number of bytes`}},
		"a second document":      {"count: 1\n...\ncuont: 1", []string{"b.yaml: yaml: line 2: "}},
		"what follows the end":   {"count: 1\n...\ncuont: 1", []string{"b.yaml: yaml: line 2: "}},
		"junk after the end":     {"count: 1\n---\n:\n:", []string{"b.yaml: "}},
		"a list":                 {"- count: 1", []string{"b.yaml: line 1: not settings"}},
		"text":                   {"count", []string{"b.yaml: line 1: not settings"}},
		"no YAML":                {"count: [", []string{"b.yaml: "}},
		"a key twice":            {"count: 1\ncount: 2", []string{"b.yaml: line 2: count is set in line 1 already"}},
		"a key in other letters": {"count: 1\nCount: 2", []string{"b.yaml: line 2: count is set in line 1 already"}},
		"the same in an entry":   {"rules: [{who: a, WHO: b}]", []string{"b.yaml: line 1: who is set"}},
		"a list for a value":     {"count: [1]", []string{"b.yaml: count: [1] is not a int"}},
		"a mapping for a value":  {"count: {a: 1}", []string{`b.yaml: unknown setting "count.a"`}},
		"a number for text":      {"list: [1]", []string{"b.yaml: list: 1 is not text; put it in quotes"}},
		"a value for a file-only": {"rules: all",
			[]string{`b.yaml: rules: entry 1: "all" is not an entry; the keys of one are who, rate, after`}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{"a.yaml": "count: 1", "b.yaml": row.text})
			_, err := begin(t, []string{"-c", dir + "/a.yaml", "-c", dir + "/b.yaml"}, nil, nil)
			for _, want := range row.want {
				if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v, want one line with %q", err, want)
				}
			}
		})
	}
}

// TestADirectoryWithAnotherFile: settings in it would be ignored.
func TestADirectoryWithAnotherFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"config.yml": "count: 1", "users": "x"})
	if _, err := begin(t, []string{"-c", dir}, nil, nil); err == nil || !strings.Contains(err.Error(),
		"rename it to trow.yaml") {
		t.Error(err)
	}
	if _, err := begin(t, []string{"-c", dir + "/none"}, nil, nil); err == nil || !strings.Contains(err.Error(),
		dir+"/none") {
		t.Error(err)
	}
}

// TestWhatSetsNothingIsNoMistake.
func TestWhatSetsNothingIsNoMistake(t *testing.T) {
	for _, text := range []string{"", "\n", "# count: 2", "---\n", "---\n# a\n---\n", "null", "{}", "count:",
		"list: []"} {
		dir := t.TempDir()
		write(t, dir, map[string]string{"a.yaml": "count: 1\nlist: [a]", "b.yaml": text})
		o, err := begin(t, []string{"-c", dir + "/a.yaml", "-c", dir + "/b.yaml", "--data-dir=" + dir}, nil, nil)
		if err != nil || o.Count != 1 || (len(o.List) == 0) != (text == "list: []") {
			t.Errorf("%q: %+v, %v", text, o, err)
		}
	}
}

// TestAMistakeDoesNotKeepAServerFromStarting, which has started before: neither one that is found in the file, nor one
// that shows when something is opened.
func TestAMistakeDoesNotKeepAServerFromStarting(t *testing.T) {
	for name, row := range map[string]struct {
		text string
		open func(*server) error
	}{
		"an unknown key": {"cuont: 1", nil},
		"no YAML":        {":\n:", nil},
		"a bad value":    {"count: 101", nil},
		"an entry":       {"rules: [{x: y}]", nil},
		"what cannot be opened": {"a-text: /missing", func(s *server) error {
			if s.Text == "/missing" {
				return errors.New("a-text: no such file")
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			data, dir := t.TempDir(), t.TempDir()
			args := []string{"-c", dir + "/trow.yaml", "--data-dir=" + data}
			write(t, dir, map[string]string{"trow.yaml": row.text})
			if o, err := begin(t, args, row.open, nil); err == nil {
				t.Fatalf("a first start: %+v", o)
			}
			write(t, dir, map[string]string{"trow.yaml": "count: 5\nrules: [{who: a}]"})
			if _, err := begin(t, args, row.open, nil); err != nil {
				t.Fatal(err)
			}
			write(t, dir, map[string]string{"trow.yaml": row.text})
			for range 2 { // a start with the copy keeps the copy
				var line string
				o, err := begin(t, args, row.open, func(f *settings.Files, _ func() (*server, error)) {
					ok, text := f.Check()
					if line = text; ok || f.Problem() == nil || testutil.ToFloat64(f) != 0 {
						t.Errorf("it says %t %q, %v", ok, text, f.Problem())
					}
				})
				if err != nil || o.Count != 5 || len(o.Rules) != 1 || !strings.Contains(line, "last good") {
					t.Errorf("%+v, %v, %q", o, err, line)
				}
			}
			if o, err := begin(t, append(args, "--count=101"), row.open, nil); err == nil {
				t.Errorf("with a bad flag: %+v", o)
			}
			t.Setenv("TROW_CUONT", "1")
			if o, err := begin(t, args, row.open, nil); err == nil || !strings.Contains(err.Error(), "TROW_CUONT") {
				t.Errorf("with a bad variable: %+v, %v", o, err)
			}
		})
	}
}

// TestAFileThatIsNoFile is one of the mistakes that do not keep a server from starting; nor is a missing one.
func TestAFileThatIsNoFile(t *testing.T) {
	directory := func(path string) error { return os.MkdirAll(path, 0o700) }
	for name, row := range map[string]struct {
		arg, file string // what --config names, and the file with the settings
		then      func(path string) error
		want      string
	}{
		"gone":                       {"trow.yaml", "trow.yaml", func(string) error { return nil }, "no such file"},
		"a directory":                {"trow.yaml", "trow.yaml", directory, "is a directory"},
		"a directory in a directory": {"mine", "mine/trow.yaml", directory, "is not a regular file"},
		"a link that leads nowhere": {"trow.yaml", "trow.yaml", func(p string) error {
			return os.Symlink("x", p)
		}, "no such file"},
		"too large": {"trow.yaml", "trow.yaml", func(p string) error {
			return os.WriteFile(p, bytes.Repeat([]byte("# \n"), files.MaxSize), 0o600)
		}, "bytes"},
		"a directory that is gone": {"mine", "mine/trow.yaml", func(p string) error {
			return os.Remove(filepath.Dir(p))
		},
			"no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			data, dir := t.TempDir(), t.TempDir()
			write(t, dir, map[string]string{row.file: "count: 5"})
			args := []string{"-c", filepath.Join(dir, row.arg), "--data-dir=" + data}
			if _, err := begin(t, args, nil, nil); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, row.file)
			if err := errors.Join(os.Remove(path), row.then(path)); err != nil {
				t.Fatal(err)
			}
			o, err := begin(t, args, nil, func(f *settings.Files, _ func() (*server, error)) {
				if ok, text := f.Check(); ok || !strings.Contains(text, row.want) || testutil.ToFloat64(f) != 0 {
					t.Errorf("it says %t %q", ok, text)
				}
			})
			if err != nil || o.Count != 5 {
				t.Errorf("%+v, %v", o, err)
			}
			if o, err := begin(t, append(args[:1:1], args[1], "--data-dir="+t.TempDir()), nil, nil); err == nil {
				t.Errorf("a first start: %+v", o)
			}
		})
	}
}

// TestTheDataDirectoryIsFound where the flag, the environment or a file say.
func TestTheDataDirectoryIsFound(t *testing.T) {
	data, dir := t.TempDir(), t.TempDir()
	args := []string{"-c", dir + "/base.yaml", "-c", dir + "/trow.yaml"}
	write(t, dir, map[string]string{"base.yaml": "data-dir: " + data, "trow.yaml": "count: 5"})
	if _, err := begin(t, args, nil, nil); err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{"trow.yaml": "count: x"})
	if o, err := begin(t, args, nil, nil); err != nil || o.Count != 5 {
		t.Errorf("in a file: %+v, %v", o, err)
	}
	write(t, dir, map[string]string{"base.yaml": ""})
	t.Setenv("TROW_DATA_DIR", data)
	if o, err := begin(t, args, nil, nil); err != nil || o.Count != 5 {
		t.Errorf("in the environment: %+v, %v", o, err)
	}
}

// TestAChangeOfTheFiles is applied and kept, and a mistake is neither. What was only applied may fail at the next
// start; then the files of the last start count.
func TestAChangeOfTheFiles(t *testing.T) {
	data, dir := t.TempDir(), t.TempDir()
	args := []string{"-c", dir, "--data-dir=" + data} // the file may appear later
	open := func(s *server) error {
		if s.Text == "/missing" {
			return errors.New("a-text: no such file")
		}
		return nil
	}
	follow := func(texts ...string) (outcomes []string) {
		synctest.Test(t, func(t *testing.T) {
			_, err := begin(t, args, open, func(f *settings.Files, load func() (*server, error)) {
				for _, text := range texts {
					ctx, cancel := context.WithTimeout(t.Context(), 4*files.PollInterval)
					write(t, dir, map[string]string{"trow.yaml": text})
					f.Follow(ctx, data, func() error { _, err := load(); return err }, func(err error) {
						outcomes = append(outcomes, text)
						if err != nil {
							outcomes = append(outcomes, "error")
						}
					})
					cancel()
					if bad := f.Problem() != nil; bad != (text == "count: x") {
						t.Errorf("%s: %v", text, f.Problem())
					}
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
		return outcomes
	}
	if got := strings.Join(follow("count: 1", "count: x", "count: 3\na-text: /missing"), "|"); got !=
		"count: 1|count: x|error|count: 3\na-text: /missing" {
		t.Errorf("applied: %q", got)
	}
	if o, err := begin(t, args, open, nil); err != nil || o.Count != 7 || o.Text != "default" {
		t.Errorf("after a change that cannot be opened: %+v, %v; want what was there at the start", o, err)
	}
	if got := follow("count: 3"); len(got) != 1 {
		t.Errorf("applied: %q", got)
	}
	write(t, dir, map[string]string{"trow.yaml": "count: x"})
	if o, err := begin(t, args, open, nil); err != nil || o.Count != 3 {
		t.Errorf("%+v, %v; want what was taken over last", o, err)
	}
}

func TestWithoutAFile(t *testing.T) {
	data := t.TempDir()
	if _, err := begin(t, []string{"--data-dir=" + data}, nil, func(f *settings.Files, _ func() (*server, error)) {
		f.Follow(context.Background(), data, func() error { t.Error("applied"); return nil }, func(error) {})
		if ok, text := f.Check(); !ok || text != "" || testutil.ToFloat64(f) != 1 {
			t.Errorf("%t %q", ok, text)
		}
	}); err != nil {
		t.Error(err)
	}
	if all, err := os.ReadDir(data); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	calls := 0
	err := settings.Start(pflag.NewFlagSet("x", pflag.ContinueOnError), nil, nil, func(*settings.Files) error {
		calls++
		return errors.New("no")
	})
	if err == nil || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
}
