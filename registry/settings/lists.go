package settings

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/pflag"
)

// decodeList decodes the entries of a file-only setting. Errors name the entry, and for an unknown key those that
// there are.
func decodeList[T any](raw any) ([]T, error) {
	entries, ok := raw.([]any)
	if !ok { // a single entry is a list of one
		entries = []any{raw}
		if raw == nil {
			entries = nil
		}
	}
	var list []T
	for i, entry := range entries {
		var e T
		var met mapstructure.Metadata
		d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{Result: &e, Metadata: &met,
			WeaklyTypedInput: true,
			DecodeHook: mapstructure.ComposeDecodeHookFunc(stringLists, quantities,
				mapstructure.StringToTimeDurationHookFunc(),
				mapstructure.TextUnmarshallerHookFunc())})
		if err == nil {
			err = entryError(reflect.TypeFor[T](), entry, d.Decode(entry))
		}
		if err == nil && len(met.Unused) > 0 {
			slices.Sort(met.Unused)
			err = unknownKey(reflect.TypeFor[T](), met.Unused[0])
		}
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i+1, err)
		}
		list = append(list, e)
	}
	return list, nil
}

// entryError says in words of the file why an entry cannot be decoded: its key and its value. nil if err is.
func entryError(t reflect.Type, entry any, err error) error {
	if kind := reflect.ValueOf(entry).Kind(); err != nil && kind != reflect.Map {
		return fmt.Errorf("%.80q is not an entry; the keys of one are %s", fmt.Sprint(entry),
			strings.Join(keysOf(t), ", "))
	}
	of, ok := errors.AsType[*mapstructure.DecodeError](err)
	if !ok {
		return err
	}
	var expected reflect.Value
	var value any
	if parse, ok := errors.AsType[*mapstructure.ParseError](of); ok {
		expected, value = parse.Expected, parse.Value
	} else if other, ok := errors.AsType[*mapstructure.UnconvertibleTypeError](of); ok {
		expected, value = other.Expected, other.Value
	} else {
		return fmt.Errorf("%s: %w", of.Name(), of.Unwrap())
	}
	return fmt.Errorf("%s: %.80q is not a valid %s", of.Name(), fmt.Sprint(value), expected.Type())
}

// unknownKey is the error for a key that an entry does not have. A nested key is a path of keys.
func unknownKey(t reflect.Type, path string) error {
	parents := strings.Split(path, ".")
	key := parents[len(parents)-1]
	for _, parent := range parents[:len(parents)-1] {
		if f, ok := fieldOf(t, parent); ok {
			t = f
		}
	}
	near, all := "", keysOf(t)
	if name := Nearest(key, all); name != "" {
		near = fmt.Sprintf("; did you mean %s?", name)
	}
	return fmt.Errorf("unknown key %q%s; the keys are %s", path, near, strings.Join(all, ", "))
}

// keysOf returns the keys of a struct, as its mapstructure tags name them.
func keysOf(t reflect.Type) (keys []string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	for f := range t.Fields() {
		switch name, options, _ := strings.Cut(f.Tag.Get("mapstructure"), ","); {
		case strings.Contains(options, "squash"):
			keys = append(keys, keysOf(f.Type)...)
		case name != "" && name != "-":
			keys = append(keys, name)
		case name == "" && f.IsExported():
			keys = append(keys, strings.ToLower(f.Name))
		}
	}
	return keys
}

// fieldOf returns the type of a key of a struct.
func fieldOf(t reflect.Type, key string) (reflect.Type, bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() == reflect.Struct {
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("mapstructure"), ",")
			if name == key || name == "" && strings.EqualFold(f.Name, key) {
				return f.Type, true
			}
		}
	}
	return nil, false
}

// meant names the setting that a misspelled one most likely is.
func meant(key string, all *pflag.FlagSet) string {
	var names []string
	all.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if near := Nearest(key, names); near != "" {
		return fmt.Sprintf("; did you mean %s?", near)
	}
	return ""
}
