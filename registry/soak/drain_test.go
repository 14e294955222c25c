package soak

import (
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAProcessThatIsAskedToStopServesOnUntilTheDelayIsOver: SIGTERM makes it unready at once, and until its replicas
// are found instead, it answers pulls and reviews, on new connections as well.
func TestAProcessThatIsAskedToStopServesOnUntilTheDelayIsOver(t *testing.T) {
	const delay = 4 * time.Second
	s := start(t, "--shutdown-delay="+delay.String())
	status := func(c *http.Client, method, path, body string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatalf("%s: %v\n%s", path, err, &s.log)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode
	}
	if got := status(s.client, "GET", "/readyz", ""); got != 200 {
		t.Fatalf("/readyz answers %d before", got)
	}
	asked := time.Now()
	if err := s.process().Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for status(s.client, "GET", "/readyz", "") != 503 {
		if time.Since(asked) > delay {
			t.Fatal("still ready")
		}
	}
	for name, c := range map[string]*http.Client{"an old connection": s.client, "a new one": s.newClient()} {
		verdict := status(c, "POST", "/validate", string(review("docker.io/nginx")))
		if v2 := status(c, "GET", "/v2/", ""); v2 != 200 || verdict != 200 {
			t.Errorf("%s: /v2/ %d, /validate %d", name, v2, verdict)
		}
	}
	err := s.process().Wait()
	if took := time.Since(asked); err != nil || took < delay {
		t.Errorf("it ended %v after SIGTERM, with %v\n%s", took, err, &s.log)
	}
	s.mu.Lock()
	s.cmd = nil
	s.mu.Unlock()
}
