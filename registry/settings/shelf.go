package settings

import (
	"encoding/json"
	"errors"
	"os"

	"github.com/spf13/cast"
	"github.com/spf13/pflag"
)

// Shelf keeps the last good files outside of the data directory as well, for a server whose data directory is deleted
// with it, such as a replica. Load returns the content that was saved last; nil if there is none. Shelf is an alias, so
// that packages that do not import this one can return one.
type Shelf = interface {
	Load() ([]byte, error)
	Save(content []byte) error
}

// Lookup returns one setting even if the settings as a whole cannot be loaded: from the flag, the environment, a file
// that can be parsed, or the default, in this order.
type Lookup = func(key string) string

// lookup returns the Lookup of the present files. If one of them cannot be read, the others count.
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

// onShelf returns the sets of files on the shelf. Errors: those of the shelf; the content is damaged.
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
	if f.shelf != nil && f.Problem() == nil { // with a problem, these are old ones, and the shelf may have newer ones
		err = errors.Join(err, f.shelf.Save(content))
	}
	return err
}
