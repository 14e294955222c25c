package upstream

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestMetrics(t *testing.T) {
	u := New(Config{Any: true})
	if err := u.Set([]Entry{{Host: "docker.io"}, {Host: "quay.io", Path: "team", Endpoints: []Endpoint{
		{URL: "https://quay.io"}, {URL: "https://quay.io", Helper: "x"}}}}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := u.Find("ghcr.io", "a"); err != nil {
		t.Fatal(err)
	}
	hub, _, _ := u.Find("docker.io", "a")
	hub.endpoints[0].rate = Rate{Limit: 100, Remaining: 76, At: time.Now()}
	for range breakAfter {
		hub.endpoints[0].breaker.done(regular, down)
	}
	want := `
# HELP trow_upstream_ratelimit_limit How many manifests the endpoint gives within its window, as it last said.
# TYPE trow_upstream_ratelimit_limit gauge
trow_upstream_ratelimit_limit{endpoint="registry-1.docker.io",upstream="docker.io"} 100
# HELP trow_upstream_ratelimit_remaining How many of them are left, as it last said.
# TYPE trow_upstream_ratelimit_remaining gauge
trow_upstream_ratelimit_remaining{endpoint="registry-1.docker.io",upstream="docker.io"} 76
# HELP trow_upstream_up 1 unless the endpoint is left alone because it has not answered several times in a row.
# TYPE trow_upstream_up gauge
trow_upstream_up{endpoint="quay.io",upstream="quay.io/team"} 1
trow_upstream_up{endpoint="registry-1.docker.io",upstream="docker.io"} 0
`
	if err := testutil.CollectAndCompare(u, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}
