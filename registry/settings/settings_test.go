package settings_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"

	"trow/registry/settings"
	"trow/registry/settings/settingstest"
)

// rule is an element of a file-only setting.
type rule struct {
	Who   []string          `mapstructure:"who"`
	Rate  resource.Quantity `mapstructure:"rate"`
	After time.Duration     `mapstructure:"after"`
	Count int               `mapstructure:"count"`
	Flag  bool              `mapstructure:"flag"`
}

// options are settings of each type.
type options struct {
	Text  string
	Count int
	Flag  bool
	Time  time.Duration
	List  []string
	Size  resource.QuantityValue
	Rules []rule
}

func (o *options) AddFlags(fs *pflag.FlagSet) {
	o.Size = resource.QuantityValue{Quantity: resource.MustParse("16Mi")}
	fs.StringVarP(&o.Text, "a-text", "t", "default", "a text")
	fs.IntVar(&o.Count, "count", 7, "a number")
	fs.BoolVar(&o.Flag, "flag", false, "a switch")
	fs.DurationVar(&o.Time, "time", time.Hour, "a time")
	fs.StringSliceVar(&o.List, "list", nil, "a list")
	fs.Var(&o.Size, "size", "a size")
	settings.FileOnly(fs, &o.Rules, "rules", "rules")
}

func (o *options) Validate() error { return nil }

var load = settingstest.Load[options]

func TestDefaultsHoldWithoutAnything(t *testing.T) {
	o, err := load(t, "")
	if err != nil || o.Text != "default" || o.Count != 7 || o.Flag || o.Time != time.Hour || len(o.List) != 0 ||
		o.Size.Value() != 16<<20 {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestTheFileSetsEverySetting(t *testing.T) {
	o, err := load(t, `
a-text: x
count: 3
flag: true
time: 90m
list: [a, b c]
size: 1Gi
rules:
  - {who: "u v", rate: 2Mi, after: 1h}
  - {who: [w]}
`)
	if err != nil || o.Text != "x" || o.Count != 3 || !o.Flag || o.Time != 90*time.Minute ||
		strings.Join(o.List, "|") != "a|b|c" ||
		o.Size.Value() != 1<<30 {
		t.Errorf("%+v, %v", o, err)
	}
	if len(o.Rules) != 2 || strings.Join(o.Rules[0].Who, "|") != "u|v" || o.Rules[0].Rate.Value() != 2<<20 ||
		o.Rules[0].After != time.Hour ||
		o.Rules[1].Who[0] != "w" {
		t.Errorf("%+v", o.Rules)
	}
}

// TestTypesAreConverted as in earlier versions: a number or a switch may be text.
func TestTypesAreConverted(t *testing.T) {
	o, err := load(t, "rules: [{who: u, count: \"10\", flag: \"true\"}]")
	if err != nil || len(o.Rules) != 1 || o.Rules[0].Count != 10 || !o.Rules[0].Flag || o.Rules[0].Who[0] != "u" {
		t.Errorf("%+v, %v", o.Rules, err)
	}
}

func TestFlagsOverrideTheEnvironmentWhichOverridesTheFile(t *testing.T) {
	t.Setenv("TROW_COUNT", "2")
	t.Setenv("TROW_A_TEXT", "environment")
	t.Setenv("TROW_LIST", "x, y z")
	o, err := load(t, "count: 1\na-text: file\ntime: 5m\nlist: [file]", "--a-text=flag")
	if err != nil || o.Text != "flag" || o.Count != 2 || o.Time != 5*time.Minute ||
		strings.Join(o.List, "|") != "x|y|z" {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestTheFileMayBeNamedByTheEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trow.yaml")
	if err := os.WriteFile(path, []byte("count: 5"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TROW_CONFIG", path)
	if o, err := load(t, ""); err != nil || o.Count != 5 {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestVariablesThatKubernetesMakesUpAreIgnored(t *testing.T) {
	for _, name := range []string{"TROW_PORT", "TROW_SERVICE_HOST", "TROW_PORT_443_TCP"} {
		t.Setenv(name, "tcp://10.0.0.1:443")
	}
	if _, err := load(t, ""); err != nil {
		t.Error(err)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for name, row := range map[string]struct{ text, env, want string }{
		"an unknown key":        {text: "cuont: 1", want: `unknown setting "cuont"`},
		"a nested key":          {text: "tls: {cert: x}", want: `unknown setting "tls.cert"`},
		"text that is not YAML": {text: ":\n:", want: "trow.yaml"},
		"an unknown variable":   {env: "TROW_CUONT=1", want: "TROW_CUONT"},
		"a variable for a file-only setting": {env: "TROW_RULES=x",
			want: "rules can only be set in the configuration file"},
		"a word for a number":         {text: "count: many", want: `count: "many" is not a valid int`},
		"a list for a number":         {text: "count: [1]", want: "count"},
		"a word for a switch":         {env: "TROW_FLAG=maybe", want: "flag"},
		"a duration without a unit":   {text: "time: 60", want: `time: "60" is not a valid duration`},
		"a list of numbers":           {text: "list: [1]", want: "put it in quotes"},
		"a size without a known unit": {text: "size: 1GB", want: "size"},
		"the nearest key":             {text: "cuont: 1", want: "did you mean count?"},
		"the file of a bad value":     {text: "count: many", want: "trow.yaml: count: "},
		"an unknown key in a rule": {text: "rules: [{who: a}, {who: b, rates: 1}]",
			want: `trow.yaml: rules: entry 2: unknown key "rates"; did you mean rate?; ` +
				`the keys are who, rate, after, count, flag`},
		"a size in a rule without a known unit": {text: "rules: [{who: a, rate: fast}]",
			want: "is not a number of bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			if key, value, ok := strings.Cut(row.env, "="); ok {
				t.Setenv(key, value)
			}
			if _, err := load(t, row.text); err == nil || !strings.Contains(err.Error(), row.want) ||
				strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want one line with %q", err, row.want)
			}
		})
	}
}

func TestAFileOnlySettingIsNotAFlag(t *testing.T) {
	var o options
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	fs.Usage = func() {}
	o.AddFlags(fs)
	if err := fs.Parse([]string{"--rules=x"}); err == nil || !strings.Contains(err.Error(), "configuration file") {
		t.Error(err)
	}
}

func TestMarkdown(t *testing.T) {
	var o options
	fs := pflag.NewFlagSet("x", pflag.ContinueOnError)
	fs.SortFlags = false
	o.AddFlags(fs)
	want := "| setting | default | meaning |\n|---|---|---|\n" +
		"| `a-text` (`-t`) | `default` | a text |\n" +
		"| `count` | `7` | a number |\n" +
		"| `flag` | `false` | a switch |\n" +
		"| `time` | `1h` | a time |\n" +
		"| `list` |  | a list |\n" +
		"| `size` | `16Mi` | a size |\n" +
		"| `rules` |  | rules; in the configuration file alone |\n"
	if got := settings.Markdown(fs); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
