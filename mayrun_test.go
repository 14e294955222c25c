package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// otherRegistry is a registry with one image for two platforms, of which it has one layer each.
type otherRegistry struct {
	*httptest.Server
	content map[string][]byte // by the end of the path
	types   map[string]string

	mu    sync.Mutex
	asked []string
}

func (o *otherRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	o.asked = append(o.asked, r.Method+" "+r.URL.Path)
	o.mu.Unlock()
	_, ref, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
	ref = ref[strings.LastIndexByte(ref, '/')+1:]
	body, ok := o.content[ref]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", o.types[ref])
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(body).String())
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	if r.Method == "GET" {
		_, _ = w.Write(body)
	}
}

func (o *otherRegistry) requests() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.asked
}

func (o *otherRegistry) put(mediaType, content string, names ...string) string {
	d := digest.FromString(content).String()
	for _, name := range append(names, d) {
		o.content[name], o.types[name] = []byte(content), mediaType
	}
	return d
}

// newOther returns the registry, the digest of its index, and the parts of its amd64 image.
func newOther(t *testing.T) (o *otherRegistry, index string, parts []string) {
	o = &otherRegistry{content: map[string][]byte{}, types: map[string]string{}}
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	var children []string
	for _, arch := range []string{"amd64", "arm64"} {
		config := o.put("application/octet-stream", `{"os":"linux","architecture":"`+arch+`"}`)
		layer := o.put("application/octet-stream", "layer for "+arch)
		m := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":`+
			`"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"mediaType":`+
			`"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`, manifestType, config,
			len(o.content[config]), layer, len(o.content[layer]))
		d := o.put(manifestType, m)
		children = append(children, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux",`+
			`"architecture":%q}}`, manifestType, d, len(m), arch))
		if arch == "amd64" {
			parts = []string{"manifests/" + d, "blobs/" + config, "blobs/" + layer}
		}
	}
	const indexType = "application/vnd.oci.image.index.v1+json"
	index = o.put(indexType, fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, indexType,
		strings.Join(children, ",")), "v")
	return o, index, parts
}

// TestMayRunOfAnUpstream, from a denial to a pull to a pod, by the webhook and by trow check with and without a server.
func TestMayRunOfAnUpstream(t *testing.T) {
	t.Parallel()
	o, index, parts := newOther(t)
	file := filepath.Join(t.TempDir(), "trow.yaml")
	write := func(mayRun string) {
		t.Helper()
		text := fmt.Sprintf("platforms: [linux/amd64]\nnames: [trow.example]\nupstreams:\n  - host: other.example\n"+
			"    insecure: true\n    fresh: 1h\n    endpoints: [{url: '%s'}]\n    may-run: %s\n", o.URL, mayRun)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("held")
	p := start(t, t.TempDir(), "--no-tls", "--config="+file)
	names := []string{"other.example/team/app:v", "trow.example/f/other.example/team/app:v",
		"other.example/team/app@" + index}
	// Each way of asking says the same.
	says := func(how string, image string) (denial, warnings string) {
		t.Helper()
		if how == "webhook" {
			r := p.admit("/validate", image)
			if !r.Allowed {
				denial = r.Result.Message
			}
			return denial, strings.Join(r.Warnings, "\n")
		}
		args := []string{"check", "-f", "-", "-o", "json", "--server", p.url}
		if how == "data" { // where the files of the server are not
			text, err := os.ReadFile(file)
			elsewhere := filepath.Join(filepath.Dir(file), "elsewhere.yaml")
			if err == nil {
				err = os.WriteFile(elsewhere, append(text, "    ca-file: /nowhere\n"...), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			args = []string{"check", "-f", "-", "-o", "json", "--config=" + elsewhere, "--data-dir=" + p.dir}
		}
		_, out, errOut := command(t, "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: '"+image+"'}]}\n", args...)
		var answer struct {
			Results []struct {
				Message  string
				Warnings []string
			}
		}
		if err := json.Unmarshal([]byte(out), &answer); err != nil || len(answer.Results) != 1 {
			t.Fatalf("%v: %s%s", args, out, errOut)
		}
		return answer.Results[0].Message, strings.Join(answer.Results[0].Warnings, "\n")
	}
	verify := func(want string, warning string, ways ...string) {
		t.Helper()
		for _, how := range ways {
			for i, image := range names {
				denial, warnings := says(how, image)
				if (denial == "") != (want == "") || !strings.Contains(denial, want) ||
					!strings.Contains(warnings, warning) {
					t.Errorf("%s: %s: %q, %q; want %q, %q", how, image, denial, warnings, want, warning)
				}
				const byTag = "nodes that do not pull through this registry"
				if got := strings.Contains(warnings, byTag); got != (want == "" && i == 0) {
					t.Errorf("%s: %s: %q", how, image, warnings)
				}
			}
		}
	}
	const notHeld = "disallowed as not held here (may-run: held of upstream other.example)"
	verify(notHeld, "trow warm", "webhook", "server")
	if got := o.requests(); len(got) > 0 {
		t.Fatalf("verdicts ask the upstream: %q", got)
	}
	pull := func(what string) {
		t.Helper()
		p.want(200, "GET", "/v2/team/app/"+what+"?ns=other.example", "")
	}
	pull("manifests/v")
	verify(notHeld, "(missing: linux/amd64)", "webhook")
	for _, part := range parts {
		pull(part)
	}
	verify("", "", "webhook", "server")
	p.stop()
	verify("", "", "data")

	p = start(t, p.dir, "--no-tls", "--config="+file)
	verify("", "", "webhook", "server") // the platforms are known again
	write("deny")
	const reloaded = "its rules, limits, quotas, upstreams and cache-size are in effect"
	for end := time.Now().Add(time.Minute); !strings.Contains(p.errOut.String(), reloaded); {
		if time.Sleep(20 * time.Millisecond); time.Now().After(end) {
			t.Fatal(p.errOut.String())
		}
	}
	verify("disallowed by may-run: deny of upstream other.example", "", "webhook", "server")
	p.stop()
	verify("disallowed by may-run: deny of upstream other.example", "", "data")
}

// TestAVerdictFetchesAnImage for the API server, and not for a dry run.
func TestAVerdictFetchesAnImage(t *testing.T) {
	o, index, parts := newOther(t)
	dir := t.TempDir()
	file, token := filepath.Join(dir, "trow.yaml"), filepath.Join(dir, "token")
	const secret = "0123456789abcdef0123"
	text := fmt.Sprintf("platforms: [linux/amd64]\nupstreams:\n  - {host: other.example, insecure: true, "+
		"may-run: fetch, endpoints: [{url: '%s'}]}\n", o.URL)
	for name, text := range map[string]string{file: text, token: secret} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := start(t, filepath.Join(dir, "data"), "--no-tls", "--config="+file, "--validate-token-file="+token)
	review := podReview("other.example/team/app:v")
	dry := strings.Replace(review, `"operation"`, `"dryRun":true,"operation"`, 1)
	p.want(401, "POST", "/validate", review, "Content-Type", "application/json")
	auth := []string{"Content-Type", "application/json", "Authorization", "Bearer " + secret}
	if text := p.want(200, "POST", "/validate", dry, auth...); !strings.Contains(text, `"allowed":true`) ||
		strings.Contains(text, "fetching") {
		t.Errorf("%s", text)
	}
	code, out, errOut := command(t, "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: other.example/a}]}\n",
		"check", "-f", "-", "--server", p.url, "--token-file", token)
	if code != 0 {
		t.Errorf("%d: %s%s", code, out, errOut)
	}
	if got := o.requests(); len(got) > 0 {
		t.Fatalf("a dry run has fetched: %q", got)
	}
	if text := p.want(200, "POST", "/validate", review, auth...); !strings.Contains(text, `"allowed":true`) ||
		!strings.Contains(text, `"fetching":"other.example/team/app:v"`) {
		t.Errorf("%s", text)
	}
	if text := p.errOut.String(); strings.Count(text, `"fetching":["other.example/team/app:v"]`) != 1 { // at debug: 2
		t.Errorf("the audit log: %s", text)
	}
	const done = `trow_admission_fetches_total{outcome="done"} 1`
	for end := time.Now().Add(time.Minute); !strings.Contains(p.want(200, "GET", "/metrics", ""), done); {
		if time.Sleep(20 * time.Millisecond); time.Now().After(end) {
			t.Fatalf("not fetched: %s", p.errOut)
		}
	}
	o.Close()
	p.want(200, "GET", "/v2/team/app/manifests/"+index+"?ns=other.example", "")
	for _, part := range parts {
		p.want(200, "GET", "/v2/team/app/"+part+"?ns=other.example", "")
	}
	if all := strings.Join(o.requests(), "\n"); strings.Count(all, "/blobs/") != 2 {
		t.Errorf("other platforms were fetched, too:\n%s", all)
	}
}
