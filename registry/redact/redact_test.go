package redact_test

import (
	"crypto/rand"
	"math"
	"strings"
	"testing"

	"trow/registry/redact"
)

func TestSecretsOfRobotsAreRemoved(t *testing.T) {
	secret := rand.Text() + rand.Text()
	for _, text := range []string{"trow_" + secret, "/v2/trow_" + secret + "/app/manifests/1",
		"trow_" + strings.ToLower(secret),
		"trow_" + secret[:30], "a trow_" + secret + " and trow_" + secret, "TROW_" + secret, "x/strow_" + secret} {
		if got := redact.Secrets(text); strings.Contains(strings.ToUpper(got), secret[:20]) ||
			!strings.Contains(got, "trow_[REDACTED]") {
			t.Errorf("%s: %s", text, got)
		}
	}
	for _, text := range []string{"", "/v2/trow_backend/app", "trow-" + secret, "my_app", "/v2/app/manifests/v1"} {
		if got := redact.Secrets(text); got != text {
			t.Errorf("%s became %s", text, got)
		}
	}
	// The least of several: under the race detector sync.Pool, which regexp uses, forgets at random.
	least := math.Inf(1)
	for range 100 {
		least = min(least, testing.AllocsPerRun(1, func() { redact.Secrets("/v2/trow_backend/my_app/manifests/v1") }))
	}
	if least != 0 {
		t.Errorf("%v allocations", least)
	}
}
