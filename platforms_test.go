package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestAVerdictNamesThePlatformsThatAreMissing: the webhook asks the registry, which knows them once a node has asked
// for the image.
func TestAVerdictNamesThePlatformsThatAreMissing(t *testing.T) {
	p := start(t, t.TempDir(), "--no-tls", "--names=trow.example", "--sparse-indexes=app")
	here, absent := p.push("app", "one"), digest.FromString("not here")
	const indexType = "application/vnd.oci.image.index.v1+json"
	child := func(d digest.Digest, arch string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":1,"platform":{"os":"linux","architecture":%q}}`,
			manifestType,
			d, arch)
	}
	p.want(201, "PUT", "/v2/app/manifests/v", fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s,%s]}`,
		indexType, child(here, "amd64"), child(absent, "arm64")), "Content-Type", indexType)
	for _, missing := range []string{absent.String()[:len("sha256:")+12], "linux/arm64"} {
		r := p.admit("/validate", "trow.example/app:v")
		want := "not here for all of its platforms (missing: " + missing + "): trow.example/app:v"
		if text := strings.Join(r.Warnings, "\n"); !r.Allowed || !strings.Contains(text, want) {
			t.Errorf("warnings %q, want %q", text, want)
		}
		p.want(200, "GET", "/v2/app/manifests/v", "")
	}
}
