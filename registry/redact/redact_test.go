package redact_test

import (
	"crypto/rand"
	"io"
	"math"
	"strings"
	"testing"

	"trow/registry/redact"
)

func TestSecretsOfRobotsAreRemoved(t *testing.T) {
	secret := rand.Text() + rand.Text()
	for _, text := range []string{"trow_" + secret, "/v2/trow_" + secret + "/app/manifests/1",
		"trow_" + strings.ToLower(secret),
		"trow_" + secret[:30], "a trow_" + secret + " and trow_" + secret, "TROW_" + secret, "x/strow_" + secret,
		"trow%5F" + secret, "/v2/trow%5f" + secret + "/app", "trow%255F" + secret, "trow%25255f" + secret} {
		if got := redact.Secrets(text); strings.Contains(strings.ToUpper(got), secret[:20]) ||
			!strings.Contains(got, "trow_[REDACTED]") {
			t.Errorf("%s: %s", text, got)
		}
	}
	for _, text := range []string{"", "/v2/trow_backend/app", "trow-" + secret, "my_app", "/v2/app/manifests/v1",
		"100%", "trow%20" + secret, "trow%5Fbackend"} {
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

func TestAWriterRemovesSecrets(t *testing.T) {
	secret := "trow_" + rand.Text() + rand.Text()
	for line, want := range map[string]string{
		"a " + secret + " b\n": "a trow_[REDACTED] b\n", "my_app\n": "my_app\n", "": "",
		"a trow%5F" + secret[5:] + "%\n": "a trow_[REDACTED]%\n", "100%\n": "100%\n", "app\n": "app\n",
	} {
		var b strings.Builder
		if n, err := redact.Writer(&b).Write([]byte(line)); n != len(line) || err != nil || b.String() != want {
			t.Errorf("%q became %q (%d, %v)", line, b.String(), n, err)
		}
	}
	for _, line := range []string{secret, "app"} {
		_, broken := io.Pipe()
		broken.CloseWithError(io.ErrClosedPipe)
		if n, err := redact.Writer(broken).Write([]byte(line)); n != 0 || err == nil {
			t.Errorf("a log that cannot be written: %d, %v", n, err)
		}
	}
}
