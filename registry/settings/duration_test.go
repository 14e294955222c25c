package settings_test

import (
	"testing"
	"time"

	"trow/registry/settings"
)

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{"30d": 720 * time.Hour, "12h": 12 * time.Hour, "0d": 0,
		"90m": 90 * time.Minute} {
		var got settings.Duration
		if err := got.UnmarshalText([]byte(text)); err != nil || time.Duration(got) != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "d", "-1d", "-1h", "99999999d", "soon"} {
		if err := new(settings.Duration).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
	for text, d := range map[string]time.Duration{"30d": 720 * time.Hour, "12h0m0s": 12 * time.Hour, "0s": 0} {
		if got := settings.Duration(d).String(); got != text {
			t.Errorf("%s, want %s", got, text)
		}
	}
}
