package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"trow/storage/files"
)

const (
	// configFlag is the flag that names the configuration files, and is not a setting.
	configFlag = "config"
	// optionalFile is what a directory stands for among the configuration files: a ConfigMap that may not exist is
	// mounted as an empty directory.
	optionalFile = "trow.yaml"
)

// AddConfigFlag registers the flag --config, which names a configuration file and may be repeated.
func AddConfigFlag(fs *pflag.FlagSet) {
	fs.VarP(&configValue{}, configFlag, "c", "configuration file (YAML); its keys are the names of the settings; "+
		"may be repeated: a later file overrides an earlier one, key by key; a directory stands for its "+optionalFile+
		", if it has one")
}

// WithConfig adds the flag --config to a command, and returns the command.
func WithConfig(cmd *cobra.Command) *cobra.Command {
	AddConfigFlag(cmd.Flags())
	return cmd
}

// document is a configuration file as it was read. A file that is optional and does not exist has no content.
type document struct {
	Path    string `json:"path"`
	Content string `json:"content"`
}

// configValue is the value of --config: the files, and what they held when they were read. They are read once, so that
// what is validated is what is used and kept; a file may be a pipe as well.
type configValue struct {
	paths []string
	docs  []document // nil: not read yet
}

// String implements pflag.Value.
func (c *configValue) String() string { return strings.Join(c.paths, ", ") }

// Set implements pflag.Value. It adds a file.
func (c *configValue) Set(path string) error {
	if path != "" {
		c.paths = append(c.paths, path)
	}
	return nil
}

// Type implements pflag.Value.
func (c *configValue) Type() string { return "file" }

// config returns the configuration files of a command: those of the flag --config, or else the one of TROW_CONFIG.
func config(given *pflag.FlagSet) *configValue {
	c := &configValue{}
	if f := given.Lookup(configFlag); f != nil {
		c = f.Value.(*configValue)
	}
	if path := os.Getenv("TROW_CONFIG"); len(c.paths) == 0 && path != "" {
		c.paths = []string{path}
	}
	return c
}

// documents returns what the files hold, and reads them if they were not read before. Errors: those of read.
func (c *configValue) documents() ([]document, error) {
	if c.docs == nil && len(c.paths) > 0 {
		docs, err := c.read()
		if err != nil {
			return nil, err
		}
		c.docs = docs
	}
	return c.docs, nil
}

// read reads the files. Errors name the file: one that does not exist, is not readable or is too large; a directory
// with YAML files of other names only.
func (c *configValue) read() ([]document, error) {
	docs := make([]document, len(c.paths))
	for i, path := range c.paths {
		var err error
		switch info, e := os.Stat(path); {
		case e != nil:
			err = e
		case info.IsDir() && yamlName(path):
			// A file was here, or should be: container engines create a directory for a file that they cannot find to
			// mount. Taken for one without settings, it would open a registry that has logins.
			err = errors.New("is a directory, and has the name of a file; put the file back")
		case info.IsDir():
			path, docs[i].Content, err = readDir(path)
		case info.Mode().IsRegular():
			var b []byte
			b, err = files.Read(path, files.MaxSize)
			docs[i].Content = string(b)
		case len(c.docs) == len(c.paths):
			docs[i].Content = c.docs[i].Content // a pipe, which can be read once
		default:
			docs[i].Content, err = readPipe(path)
		}
		if err != nil {
			return nil, fmt.Errorf("configuration file %s: %s", path, oneLine(err))
		}
		docs[i].Path = path
	}
	return docs, nil
}

// readDir reads the optional file of a directory.
func readDir(dir string) (path, content string, err error) {
	path = filepath.Join(dir, optionalFile)
	b, err := files.Read(path, files.MaxSize)
	if !errors.Is(err, fs.ErrNotExist) {
		return path, string(b), err
	}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		// A file with another name would be ignored, although somebody has put settings into it: invariant 1.
		if yamlName(e.Name()) {
			return path, "", fmt.Errorf("does not exist, but %s does; rename it to %s", e.Name(), optionalFile)
		}
	}
	return path, "", err
}

// yamlName reports whether this is the name of a YAML file.
func yamlName(name string) bool {
	ext := filepath.Ext(name)
	return ext == ".yaml" || ext == ".yml"
}

func readPipe(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, files.MaxSize+1))
	if err == nil && len(b) > files.MaxSize {
		err = fmt.Errorf("more than %d bytes", files.MaxSize)
	}
	return string(b), err
}

// source is a document that was parsed.
type source struct {
	path string
	v    *viper.Viper
}

// parse parses documents. Errors: those of checkYAML; one is not YAML; a key that no setting has, with the most similar
// one.
func parse(docs []document, all *pflag.FlagSet) (parsed []source, err error) {
	for _, d := range docs {
		v := viper.New()
		v.SetConfigType("yaml")
		if err := checkYAML(d.Content); err != nil {
			return nil, fmt.Errorf("configuration file %s: %s", d.Path, oneLine(err))
		}
		if err := v.ReadConfig(bytes.NewReader([]byte(d.Content))); err != nil {
			return nil, fmt.Errorf("configuration file %s: %s", d.Path, oneLine(err))
		}
		for _, key := range slices.Sorted(slices.Values(v.AllKeys())) {
			if all.Lookup(key) == nil {
				return nil, fmt.Errorf("configuration file %s: %w", d.Path, unknown(all, key))
			}
		}
		parsed = append(parsed, source{d.Path, v})
	}
	return parsed, nil
}

// unknown returns the error for a key that no setting has, with the one that it may be a misspelling of.
func unknown(all *pflag.FlagSet, key string) error {
	if outer, _, nested := strings.Cut(key, "."); nested && all.Lookup(outer) != nil {
		return fmt.Errorf("unknown setting %q; %s has no keys of its own; trow settings lists all settings", key, outer)
	}
	return fmt.Errorf("unknown setting %q%s; trow settings lists all", key, meant(key, all))
}

// origins are the files that settings come from, by key.
type origins map[string]string

// name adds the file to an error about a setting, if the setting comes from one. Such errors begin with the key.
func (o origins) name(err error) error {
	if err == nil {
		return nil
	}
	key := err.Error()
	if end := strings.IndexAny(key, ": "); end > 0 {
		key = key[:end]
	}
	if path, ok := o[key]; ok {
		return fmt.Errorf("configuration file %s: %w", path, err)
	}
	return err
}
