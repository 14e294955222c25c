// Package settings puts together what the settings say: defaults, the configuration files, the environment and flags;
// each overrides those before it, and a later file an earlier one.
//
// # Words
//
//   - setting: a key. It is the name of a flag (--gc-grace), of a key of the configuration file (gc-grace) and of an
//     environment variable (TROW_GC_GRACE).
//   - Options: the struct in which a package keeps its settings. Its AddFlags registers them as flags, with names,
//     defaults and usage; that is the only place where a setting is defined.
//   - file-only setting: a list of structs, which only a configuration file can hold. See [FileOnly].
//   - good: a set of configuration files with which a server has started. The last good ones are kept; see [Start].
//
// # Invariants
//
//  1. A key or a variable that sets nothing is an error that names it: a misspelled setting is never ignored.
//  2. Nothing that users name (a host, a repository) is a key, because keys are case-insensitive and contain no dots.
//  3. No other package imports viper.
//  4. A change of the configuration files never keeps a server from starting that has started with the files before.
//
// # What it does not do
//
// It does not know any setting, and it does not check values beyond their type: the Options' Validate do.
package settings

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cast"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"k8s.io/apimachinery/pkg/api/resource"

	"trow/registry/size"
)

// Load sets the flags of all, which are the settings, from the configuration files, the environment, and the flags
// that were given to a command. A command may have only some of the settings as flags; the files and the environment
// may set the others all the same. Errors name the file or the variable, and the key.
func Load(all, given *pflag.FlagSet) error {
	_, err := loadFrom(all, given)
	return err
}

// loadFrom is Load, and returns where the settings of files come from.
func loadFrom(all, given *pflag.FlagSet) (origins, error) {
	if err := checkEnvironment(all, os.Environ()); err != nil {
		return nil, err
	}
	docs, err := config(given).documents()
	if err != nil {
		return nil, err
	}
	sources, err := parse(docs, all)
	if err != nil {
		return nil, err
	}
	env := environment()
	from := origins{}
	all.VisitAll(func(f *pflag.Flag) {
		if err == nil {
			err = from.name(set(env, sources, f, given.Lookup(f.Name), from))
		}
	})
	return from, err
}

// environment returns what reads the environment.
func environment() *viper.Viper {
	env := viper.New()
	env.SetEnvPrefix("TROW")
	env.SetEnvKeyReplacer(strings.NewReplacer("-", "_"))
	return env
}

// Part is what the Options of a package can do.
type Part interface {
	AddFlags(*pflag.FlagSet)
	Validate() error
}

// Register registers the settings of parts as flags, grouped by part.
func Register(fs *pflag.FlagSet, parts ...Part) {
	fs.SortFlags = false
	for _, p := range parts {
		p.AddFlags(fs)
	}
}

// LoadParts sets the fields of parts as [Load] does, and validates them. Between the two it calls derive, which sets
// what the Validate of one part needs to know of another part.
func LoadParts(given *pflag.FlagSet, derive func(), parts ...Part) error {
	all := pflag.NewFlagSet("settings", pflag.ContinueOnError)
	Register(all, parts...)
	from, err := loadFrom(all, given)
	if err != nil {
		return err
	}
	derive()
	for _, p := range parts {
		if err := p.Validate(); err != nil {
			return from.name(err)
		}
	}
	return nil
}

// Version returns trow version, which prints a line.
func Version(line string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), line) },
	}
}

// Command returns trow settings, which prints the settings of parts as a table in Markdown, or as JSON.
func Command(parts ...Part) *cobra.Command {
	format := "table"
	cmd := &cobra.Command{
		Use:   "settings",
		Short: "Print the settings with their defaults",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all := pflag.NewFlagSet("settings", pflag.ContinueOnError)
			Register(all, parts...)
			switch format {
			case "table":
				_, err := io.WriteString(cmd.OutOrStdout(), Markdown(all))
				return err
			case "json":
				return writeJSON(cmd.OutOrStdout(), all)
			}
			return fmt.Errorf("output: %.40q: want table or json", format)
		},
	}
	cmd.Flags().Bool("markdown", true, "as a table in Markdown (the default)")
	cmd.Flags().StringVarP(&format, "output", "o", format, "table or json")
	return cmd
}

// set sets one flag. given is the flag of the command, nil if it has none of this name. The last source with the key
// counts, and is noted in from.
func set(env *viper.Viper, sources []source, f, given *pflag.Flag, from origins) error {
	fileOnly, _ := f.Value.(fileValue)
	switch {
	case given != nil && given.Changed:
		return copyValue(f, given)
	case fileOnly == nil && env.BindEnv(f.Name) == nil && env.IsSet(f.Name):
		return keyed(f.Name, setValue(f, env.Get(f.Name)))
	}
	for _, s := range slices.Backward(sources) {
		if !s.v.IsSet(f.Name) {
			continue
		}
		from[f.Name] = s.path
		if fileOnly != nil {
			return keyed(f.Name, fileOnly.decode(s.v.Get(f.Name)))
		}
		return keyed(f.Name, setValue(f, s.v.Get(f.Name)))
	}
	return nil
}

// keyed puts the key in front of an error, on one line.
func keyed(key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %s", key, oneLine(err))
}

// copyValue takes over a flag that was given to the command.
func copyValue(to, from *pflag.Flag) error {
	if list, ok := from.Value.(pflag.SliceValue); ok {
		return to.Value.(pflag.SliceValue).Replace(split(list.GetSlice()))
	}
	return to.Value.Set(from.Value.String())
}

// setValue sets a flag to a value from the file or the environment.
func setValue(f *pflag.Flag, value any) error {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		texts, err := texts(value)
		if err != nil {
			return err
		}
		return list.Replace(split(texts))
	}
	text, err := cast.ToStringE(value)
	if err != nil {
		return fmt.Errorf("%v is not a %s", value, f.Value.Type())
	}
	if err := f.Value.Set(text); err != nil {
		return fmt.Errorf("%.80q is not a valid %s", text, f.Value.Type())
	}
	return nil
}

// texts returns the elements of a list. A single text is a list of one.
func texts(value any) ([]string, error) {
	switch value := value.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{value}, nil
	case []any:
		var all []string
		for _, e := range value {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("%v is not text; put it in quotes", e)
			}
			all = append(all, s)
		}
		return all, nil
	}
	return nil, fmt.Errorf("%v is not a list", value)
}

// split splits the elements of a list at commas and white space, so that an environment variable can hold a list.
func split(texts []string) []string {
	return strings.FieldsFunc(strings.Join(texts, ","), func(r rune) bool {
		return r == ',' || r == ' ' || r == '\t' || r == '\n'
	})
}

// checkEnvironment names TROW_ variables that set nothing. Those that Kubernetes makes up for a Service called trow
// (TROW_PORT, TROW_SERVICE_HOST, …) are not mistakes.
func checkEnvironment(all *pflag.FlagSet, environ []string) error {
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		rest, ok := strings.CutPrefix(name, "TROW_")
		if !ok || rest == "CONFIG" || rest == "PORT" ||
			strings.HasPrefix(rest, "PORT_") || strings.HasPrefix(rest, "SERVICE_") {
			continue
		}
		key := strings.ToLower(strings.ReplaceAll(rest, "_", "-"))
		f := all.Lookup(key)
		if f == nil {
			return fmt.Errorf("environment: %s: %w", name, unknown(all, key))
		}
		if _, ok := f.Value.(fileValue); ok {
			return fmt.Errorf("environment: %s: the setting %s can only be set in the configuration file", name, key)
		}
	}
	return nil
}

// fileValue is the value of a file-only setting.
type fileValue interface{ decode(raw any) error }

// FileOnly registers a setting that only the configuration file can hold: a list of T, decoded by the mapstructure tags
// of T. Keys that T does not have are errors. Texts become durations, quantities and whatever T unmarshals from text.
func FileOnly[T any](fs *pflag.FlagSet, p *[]T, name, usage string) {
	fs.Var(&fileOnly[T]{p}, name, usage+"; in the configuration file alone")
	_ = fs.MarkHidden(name) // the flag exists
}

type fileOnly[T any] struct{ p *[]T }

func (f *fileOnly[T]) String() string { return "" }
func (f *fileOnly[T]) Type() string   { return "list" }
func (f *fileOnly[T]) Set(string) error {
	return fmt.Errorf("this setting can only be set in the configuration file")
}

func (f *fileOnly[T]) decode(raw any) error {
	list, err := decodeList[T](raw)
	if err == nil {
		*f.p = list
	}
	return err
}

// stringLists makes lists of strings, as in the settings that are lists themselves.
func stringLists(_, to reflect.Type, value any) (any, error) {
	if to != reflect.TypeFor[[]string]() {
		return value, nil
	}
	all, err := texts(value)
	return split(all), err
}

// quantities makes numbers of bytes, as Kubernetes writes them.
func quantities(_, to reflect.Type, value any) (any, error) {
	if to != reflect.TypeFor[resource.Quantity]() {
		return value, nil
	}
	text, err := cast.ToStringE(value)
	if err != nil {
		text = fmt.Sprint(value) // a list or a map, which is not a number
	}
	return size.ParseQuantity(text)
}

// Markdown returns the settings as a table in Markdown: key, default, meaning.
func Markdown(all *pflag.FlagSet) string {
	var b strings.Builder
	b.WriteString("| setting | default | meaning |\n|---|---|---|\n")
	all.VisitAll(func(f *pflag.Flag) {
		name, value := "`"+f.Name+"`", defaultText(f)
		if f.Shorthand != "" {
			name += " (`-" + f.Shorthand + "`)"
		}
		if value != "" {
			value = "`" + value + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", name, value, strings.ReplaceAll(f.Usage, "|", `\|`))
	})
	return b.String()
}

// writeJSON writes the settings as a list of objects.
func writeJSON(w io.Writer, all *pflag.FlagSet) error {
	type setting struct {
		Key      string `json:"key"`
		Default  string `json:"default"`
		Meaning  string `json:"meaning"`
		FileOnly bool   `json:"fileOnly,omitempty"`
	}
	list := []setting{}
	all.VisitAll(func(f *pflag.Flag) {
		_, fileOnly := f.Value.(fileValue)
		list = append(list, setting{f.Name, defaultText(f), f.Usage, fileOnly})
	})
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(list)
}

// defaultText is a flag's default as a person would write it.
func defaultText(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "duration":
		d, err := time.ParseDuration(f.DefValue)
		if err != nil {
			return f.DefValue
		}
		text := d.String()
		for _, zero := range []string{"m0s", "h0m"} { // 1h0m0s is 1h
			if strings.HasSuffix(text, zero) {
				text = text[:len(text)-2]
			}
		}
		return text
	case "stringSlice":
		return strings.Trim(f.DefValue, "[]")
	}
	return f.DefValue
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
