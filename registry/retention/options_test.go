package retention_test

import (
	"testing"
	"time"

	"trow/registry/retention"
	"trow/registry/settings/settingstest"
)

var load = settingstest.Load[retention.Options]

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

func TestImmutableTagsAreNoRules(t *testing.T) {
	o, err := load(t, `immutable-tags: "**:*"`)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := o.Policy(); err != nil || p.Rules() {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestSettingsThatAreInvalid(t *testing.T) {
	settingstest.Reject[retention.Options](t, map[string]string{
		"retention: [{repositories: '**', keep-younger: soon}]": "not a valid duration",
		"retention: [{repositories: '**', keep: 5}]":            "keep",
		"retention: [{keep-last: 5}]":                           "retention: rule 1: repositories",
		"immutable-tags: [v1]":                                  "immutable-tags",
	})
}
