package retention_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"trow/registry/retention"
	"trow/registry/settings"
)

// load reads settings from a configuration file, as a server does.
func load(t *testing.T, file string) (retention.Options, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trow.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	var o retention.Options
	all, given := pflag.NewFlagSet("all", pflag.ContinueOnError), pflag.NewFlagSet("given", pflag.ContinueOnError)
	o.AddFlags(all)
	settings.AddConfigFlag(given)
	if err := given.Parse([]string{"--config=" + path}); err != nil {
		t.Fatal(err)
	}
	if err := settings.Load(all, given); err != nil {
		return o, err
	}
	return o, o.Validate()
}

func TestSettings(t *testing.T) {
	o, err := load(t, `
retention:
- repositories: team/**, x
  keep-last: 5
  keep-younger: 30d
  delete-untagged: 12h
immutable-tags: "prod/**:*, *:v*"
`)
	if err != nil {
		t.Fatal(err)
	}
	r := o.Retention[0]
	if len(r.Repositories) != 2 || r.KeepLast != 5 || r.KeepYounger != 30*day ||
		time.Duration(r.DeleteUntagged) != 12*time.Hour {
		t.Errorf("%+v", r)
	}
	p, err := o.Policy()
	if err != nil || !p.Rules() || !p.Immutable("prod/a", "x") || !p.Immutable("a", "v1") || p.Immutable("a", "1") {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestSettingsThatAreInvalid(t *testing.T) {
	for file, want := range map[string]string{
		"retention: [{repositories: '**', keep-younger: soon}]": "not a valid duration",
		"retention: [{repositories: '**', keep: 5}]":            "keep",
		"retention: [{keep-last: 5}]":                           "retention: rule 1: repositories",
		"immutable-tags: [v1]":                                  "immutable-tags",
	} {
		if _, err := load(t, file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
}
