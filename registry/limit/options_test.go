package limit_test

import (
	"testing"

	"trow/registry/limit"
	"trow/registry/settings/settingstest"
)

var load = settingstest.Load[limit.Options]

func TestSettings(t *testing.T) {
	o, err := load(t, `
limits:
- who: user:alice, robot:ci
  requests: 5
  pull-rate: 1.5Mi
  push-rate: 100000
- who: ["*"]
  by-address: true
  uploads: 3
quotas:
- repositories: ["team/**"]
  bytes: 10Gi
- repositories: a, b
  bytes: 2G
max-requests: 1
`)
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Limits) != 2 || len(o.Limits[0].Who) != 2 || o.Limits[0].PullRate.Value() != 3<<19 ||
		o.Limits[0].PushRate.Value() != 100_000 ||
		!o.Limits[1].ByAddress || o.Limits[1].Uploads != 3 || o.MaxRequests != 1 {
		t.Errorf("%+v", o)
	}
	quotas, err := limit.Quotas(o.Quotas)
	if err != nil || len(quotas) != 2 || quotas[0].Bytes != 10<<30 || quotas[1].Bytes != 2e9 || !quotas[1].Match("b") {
		t.Errorf("%+v, %v", quotas, err)
	}
}

func TestTheDefaultOfMaxRequests(t *testing.T) {
	if o, err := load(t, "limits: []"); err != nil || o.MaxRequests != 1000 {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestSettingsThatAreInvalid(t *testing.T) {
	settingstest.Reject[limit.Options](t, map[string]string{
		"limits: [{who: '*', pull-rate: fast}]":            "not a number of bytes",
		"limits: [{who: '*', pull-rate: -1}]":              "pull-rate, push-rate: want at least 16Ki",
		"limits: [{who: '*', request: 1}]":                 "request",
		"quotas: [{repositories: '**', bytes: 10GB}]":      "not a number of bytes",
		"quotas: [{repositories: '**', bytes: -5}]":        "bytes: want",
		"quotas: [{repositories: '**', byte: 5}]":          "byte",
		"max-requests: 0":                                  "max-requests: 0 is too low",
		"limits: [{who: '*', requests: 1}, {requests: 1}]": "limits: limit 2: who",
	})
}
