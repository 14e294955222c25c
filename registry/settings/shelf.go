package settings

import (
	"encoding/json"
	"errors"
	"os"

	"github.com/spf13/cast"
	"github.com/spf13/pflag"
)

// Shelf keeps the last good files outside of the data directory as well, for a server whose data directory ends with
// it, as that of a replica. Load returns what was saved last, nil if there is nothing. It is an alias, so that packages
// that do not import this one can return one.
type Shelf = interface {
	Load() ([]byte, error)
	Save(content []byte) error
}

// Lookup returns a setting although the settings as a whole cannot be loaded: as the flag, the environment or a file
// that can be parsed say, or the default.
type Lookup = func(key string) string

// lookup returns the Lookup of the present files. Where one of them cannot be read, it reads the others by themselves.
func (f *Files) lookup(given *pflag.FlagSet, parts []Part) Lookup {
	docs := f.seen
	for _, path := range f.config.paths {
		if info, err := os.Stat(path); f.seen != nil || err != nil || !info.Mode().IsRegular() && !info.IsDir() {
			continue // a pipe cannot be read twice
		}
		one, _ := (&configValue{paths: []string{path}}).read()
		docs = append(docs, one...)
	}
	return func(key string) string {
		all := pflag.NewFlagSet("settings", pflag.ContinueOnError)
		Register(all, parts...)
		value := ""
		if f := all.Lookup(key); f != nil {
			value = f.DefValue
		}
		for _, d := range docs {
			if one, err := parse([]document{d}, all); err == nil && one[0].v.IsSet(key) {
				value = cast.ToString(one[0].v.Get(key))
			}
		}
		if env := environment(); env.BindEnv(key) == nil && env.IsSet(key) {
			value = env.GetString(key)
		}
		if f := given.Lookup(key); f != nil && f.Changed {
			value = f.Value.String()
		}
		return value
	}
}

// onShelf returns the sets of files on the shelf. Errors: those of the shelf.
func (f *Files) onShelf() (sets [][]document, err error) {
	if f.shelf == nil {
		return nil, nil
	}
	content, err := f.shelf.Load()
	if err != nil || content == nil {
		return nil, err
	}
	return sets, json.Unmarshal(content, &sets)
}

// keep writes sets of files, newest first, into the data directory and onto the shelf; nowhere if dir is empty, which
// means that nothing may be written. Errors: those of both.
func (f *Files) keep(dir string, sets ...[]document) error {
	if dir == "" {
		return nil
	}
	content, err := encode(sets)
	if err != nil {
		return err
	}
	err = keep(dir, content)
	if f.shelf != nil && f.Problem() == nil { // or these are old ones, and another server may have put newer ones there
		err = errors.Join(err, f.shelf.Save(content))
	}
	return err
}
