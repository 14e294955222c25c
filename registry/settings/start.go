package settings

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"trow/storage/files"
)

const (
	// lastGoodFile is the file in the data directory with copies of configuration files, newest first: those that a
	// running server has taken over, if there are any, and those that it has started with. The former may have settings
	// that count at the next start only, and have not been tried. The files of a set belong together, so one file has
	// all.
	lastGoodFile = "last-good-settings.json"
	// maxLastGood is more than a few files of files.MaxSize take in JSON.
	maxLastGood = 64 << 20
	// dataDir is the setting that names the directory in which the copies are kept.
	dataDir = "data-dir"
)

// Files are the configuration files of a server that runs. Make it with [Start]. Safe for concurrent use; a nil *Files
// stands for a server without any.
type Files struct {
	config *configValue
	seen   []document // the present files at the start, in use or not; nil: they could not be read
	first  []document // those that the server has started with
	shelf  Shelf      // nil: they are kept in the data directory alone

	mu      sync.Mutex // guards the rest
	problem error      // why the present files are not in use; nil: they are
	started bool       // Started was called
}

// Start calls run, which loads the settings and starts a server. If run fails before it has called [Files.Started],
// Start calls it again with the last good files, if there are other ones than the present: a mistake in a file must not
// keep a server from starting on whose verdicts a whole cluster waits. Flags and environment are the same each time;
// what is wrong with them is an error each time, and returned. shelf returns where the files are kept beside the data
// directory, nil if nowhere; it may be nil. Errors: that of the first call, if no other call has started the server.
func Start(given *pflag.FlagSet, parts []Part, shelf func(Lookup) Shelf, run func(*Files) error) error {
	f := &Files{config: config(given)}
	f.seen, _ = f.config.documents() // run reports a file that cannot be read
	f.first = f.seen
	lookup := f.lookup(given, parts)
	if shelf != nil && len(f.config.paths) > 0 {
		f.shelf = shelf(lookup)
	}
	err := run(f)
	if err == nil || f.hasStarted() {
		return err
	}
	sets, shelfErr := f.lastGood(lookup(dataDir))
	if shelfErr != nil {
		err = fmt.Errorf("%w; the last good configuration files cannot be read: %s", err, oneLine(shelfErr))
	}
	for _, set := range sets {
		f.config.docs, f.first, f.problem = set, set, errors.New(oneLine(err))
		if again := run(f); again == nil || f.hasStarted() {
			return again
		}
	}
	return err
}

func (f *Files) hasStarted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.started
}

// lastGood returns the copies that differ from the present files: those in the data directory, which this server has
// used, and then those on the shelf. Errors: those of the shelf. A damaged copy in the directory is as good as none:
// the error of the present files is returned.
func (f *Files) lastGood(dir string) ([][]document, error) {
	if len(f.config.paths) == 0 {
		return nil, nil
	}
	var copies [][]document
	if root, err := os.OpenRoot(dir); err == nil {
		if b, err := files.ReadIn(root, lastGoodFile, maxLastGood); err != nil || json.Unmarshal(b, &copies) != nil {
			copies = nil
		}
		root.Close()
	}
	others, err := f.onShelf()
	copies = slices.DeleteFunc(append(copies, others...), func(c []document) bool {
		return len(c) == 0 || slices.Equal(c, f.seen)
	})
	return slices.CompactFunc(copies, slices.Equal[[]document]), err
}

// Started notes that the server has started, and keeps the files that its settings come from in the data directory, as
// the last good ones, and on the shelf; nowhere if dir is empty. Errors: those of the file system and of the shelf; the
// server runs all the same.
func (f *Files) Started(dir string) error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	f.started = true
	f.mu.Unlock()
	if len(f.config.paths) == 0 {
		return nil
	}
	return f.keep(dir, f.first)
}

// encode returns sets of files as they are kept, each once.
func encode(sets [][]document) ([]byte, error) {
	return json.Marshal(slices.CompactFunc(sets, slices.Equal[[]document]))
}

// keep writes encoded sets of files into the data directory.
func keep(dir string, content []byte) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if have, err := files.ReadIn(root, lastGoodFile, maxLastGood); err == nil && bytes.Equal(have, content) {
		return nil
	}
	// Only the owner may read it: a configuration file may have a password.
	if err := files.Write(root, lastGoodFile, content, 0o600); err != nil {
		return fmt.Errorf("cannot keep a copy of the configuration files in %s: %w", dir, err)
	}
	return nil
}

// Problem returns why the present configuration files are not in use, nil if they are.
func (f *Files) Problem() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.problem
}

// Check reports whether the present configuration files are in use, for /readyz?verbose. Without any there is no line.
func (f *Files) Check() (ok bool, text string) {
	if f == nil || len(f.config.paths) == 0 {
		return true, ""
	}
	if err := f.Problem(); err != nil {
		return false, fmt.Sprintf("configuration files: %v; the last good ones are in use", err)
	}
	return true, "configuration files in use"
}

// Follow calls apply whenever a file changes, and report with the outcome, until ctx is done. The settings that apply
// loads are those of the changed files; if it fails, those in use stay. If it does not, the files are kept in dir as
// the last good ones. Without a file it returns at once.
func (f *Files) Follow(ctx context.Context, dir string, apply func() error, report func(error)) {
	if f == nil || len(f.config.paths) == 0 {
		return
	}
	// What is seen are the present files, also after a start with a copy: they have failed then, and are not tried
	// again before they change.
	files.FollowFunc(ctx, f.contents, contents(f.seen), func([][]byte) error {
		docs, err := f.config.read()
		if err != nil {
			return err
		}
		before := f.config.docs
		f.config.docs = docs // what apply loads
		if err = apply(); err != nil {
			f.config.docs = before
		}
		return err
	}, func(err error) {
		f.mu.Lock()
		if f.problem = nil; err != nil {
			f.problem = errors.New(oneLine(err))
		}
		f.mu.Unlock()
		report(err)
		if err == nil {
			// The disk may be full. The copies of before stay then, so this is not a problem of the settings.
			_ = f.keep(dir, f.config.docs, f.first)
		}
	})
}

// contents reads the present files.
func (f *Files) contents() ([][]byte, error) {
	docs, err := f.config.read()
	return contents(docs), err
}

func contents(docs []document) (all [][]byte) {
	for _, d := range docs {
		all = append(all, []byte(d.Content))
	}
	return all
}

var valid = prometheus.NewDesc("trow_settings_valid",
	"1 if the configuration files are in use; 0 if they cannot be used, and the last good ones are in use.", nil, nil)

// Describe implements prometheus.Collector.
func (f *Files) Describe(to chan<- *prometheus.Desc) { to <- valid }

// Collect implements prometheus.Collector.
func (f *Files) Collect(to chan<- prometheus.Metric) {
	value := 1.0
	if f.Problem() != nil {
		value = 0
	}
	to <- prometheus.MustNewConstMetric(valid, prometheus.GaugeValue, value)
}
