package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"trow/admission"
	"trow/admission/cluster"
	"trow/manifests/kube"
	"trow/manifests/kube/kubetest"
	"trow/registry/auth"
	"trow/registry/auth/authtest"
	"trow/registry/server"
	"trow/registry/service"
	"trow/registry/settings"
)

// process is the whole program, run in this process.
type process struct {
	*testing.T
	url    string
	dir    string
	client *http.Client
	out    *output
	errOut *output
	stop   func() int
}

// output collects what a program has written so far.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

var listensOn = regexp.MustCompile(`listens on +(https?)://\S+:(\d+)`)

// start runs trow serve on a free port until the test ends.
func start(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	p := &process{T: t, dir: dir, out: &output{}, errOut: &output{}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, append([]string{"serve", "--listen=127.0.0.1:0", "--data-dir=" + dir}, args...),
			strings.NewReader(""), p.out, p.errOut)
	}()
	p.stop = sync.OnceValue(func() int { cancel(); return <-ended })
	t.Cleanup(func() { p.stop() })
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if m := listensOn.FindStringSubmatch(p.out.String()); m != nil {
			p.url = m[1] + "://localhost:" + m[2]
			break
		}
		select {
		case code := <-ended:
			t.Fatalf("ended with %d: %s", code, p.errOut)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("not ready: %s%s", p.out, p.errOut)
		}
	}
	p.client = &http.Client{Transport: &http.Transport{}}
	if strings.HasPrefix(p.url, "https") {
		ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca)
		p.client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	}
	t.Cleanup(p.client.CloseIdleConnections)
	return p
}

// do sends a request and returns status, headers and body.
func (p *process) do(method, path, body string, headers ...string) (int, http.Header, string) {
	p.Helper()
	req, err := http.NewRequestWithContext(p.Context(), method, p.url+path, strings.NewReader(body))
	if err != nil {
		p.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := p.client.Do(req)
	if err != nil {
		p.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func (p *process) want(status int, method, path, body string, headers ...string) string {
	p.Helper()
	got, _, answer := p.do(method, path, body, headers...)
	if got != status {
		p.Fatalf("%s %s: status %d, want %d: %s", method, path, got, status, answer)
	}
	return answer
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// push pushes an image of one layer.
func (p *process) push(repo, tag string) digest.Digest {
	p.Helper()
	config, layer := "{}", "a layer of "+repo
	for _, blob := range []string{config, layer} {
		p.want(201, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+digest.FromString(blob).String(), blob)
	}
	manifest := fmt.Sprintf(
		`{"schemaVersion":2,"mediaType":%q,`+
			`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
			`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		manifestType,
		digest.FromString(config),
		len(config),
		digest.FromString(layer),
		len(layer),
	)
	p.want(201, "PUT", "/v2/"+repo+"/manifests/"+tag, manifest, "Content-Type", manifestType)
	return digest.FromString(manifest)
}

func podReview(images ...string) string {
	var containers []string
	for i, image := range images {
		containers = append(containers, fmt.Sprintf(`{"name":"c%d","image":%q}`, i, image))
	}
	return fmt.Sprintf(
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1",
		"kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},
		"namespace":"default","operation":"CREATE","userInfo":{"username":"me"},
		"object":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[%s]}}}}`,
		strings.Join(containers, ","),
	)
}

// admit asks the webhook.
func (p *process) admit(path string, images ...string) *admissionv1.AdmissionResponse {
	p.Helper()
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal([]byte(p.want(200, "POST", path, podReview(images...), "Content-Type",
		"application/json")),
		&review); err != nil {
		p.Fatal(err)
	}
	if review.Response == nil || review.Response.UID != "u1" {
		p.Fatalf("no answer to this review: %+v", review)
	}
	return review.Response
}

const tutorialSentence = "Remote image docker.io/nginx disallowed as not contained in this registry " +
	"and not in allow list"

func TestAnImageFromPushToDelete(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	p.want(200, "GET", "/healthz", "")
	p.want(200, "GET", "/readyz", "")
	d := p.push("k8s-php", "1.0.0")

	for _, path := range []string{"/validate", "/validate-image"} {
		for _, image := range []string{"trow.kube-public:31000/k8s-php:1.0.0", "127.0.0.1:31000/k8s-php@" + d.String(),
			strings.TrimPrefix(p.url, "https://") + "/k8s-php:1.0.0"} {
			if r := p.admit(path, image); !r.Allowed {
				t.Errorf("%s is denied: %s", image, r.Result.Message)
			}
		}
		if r := p.admit(path, "nginx"); r.Allowed || r.Result.Message != tutorialSentence || r.Result.Code != 403 {
			t.Errorf("nginx: %+v", r.Result)
		}
	}
	if r := p.admit("/validate", "trow.kube-public:31000/k8s-php:2.0.0"); r.Allowed {
		t.Error("a tag that is not there is allowed")
	}
	metrics := p.want(200, "GET", "/metrics", "")
	for _, line := range []string{`trow_admission_reviews_total{verdict="denied"} 3`, "trow_index_tags 1",
		"trow_index_manifests 1", "trow_index_repositories 1",
		`trow_http_requests_total{code="201",method="PUT",route="manifest"} 1`,
		"trow_tls_certificate_not_after_seconds"} {
		if !strings.Contains(metrics, line) {
			t.Errorf("metrics lack %s", line)
		}
	}
	if code := p.stop(); code != 0 {
		t.Fatalf("stopped with %d: %s", code, p.errOut)
	}

	p = start(t, dir) // after a restart everything is as before, and the CA is the same
	if got := p.want(200, "GET", "/v2/k8s-php/tags/list", ""); got != `{"name":"k8s-php","tags":["1.0.0"]}` {
		t.Error(got)
	}
	if !p.admit("/validate", "trow:31000/k8s-php:1.0.0").Allowed {
		t.Error("after a restart the image is denied")
	}
	p.want(202, "DELETE", "/v2/k8s-php/manifests/"+d.String(), "") // the listener is a loopback one
	if p.admit("/validate", "trow:31000/k8s-php:1.0.0").Allowed {
		t.Error("a deleted image is allowed")
	}
	if log := p.errOut.String(); !strings.Contains(log, `"event":"verdict","outcome":"denied"`) ||
		!strings.Contains(log, `"repo":"k8s-php"`) {
		t.Errorf("the log lacks a denial or a request: %s", log)
	}
}

// TestEveryCommandIsInAGroup of the help, and the help fits a terminal.
func TestEveryCommandIsInAGroup(t *testing.T) {
	_, help, _ := command(t, "", "--help")
	_, others, found := strings.Cut(help, "Additional Commands:")
	if names := strings.Fields(others); !found || strings.Contains(others, "Run:") || len(names) < 2 ||
		names[0] != "completion" || strings.Count(strings.Split(others, "Flags:")[0], "\n  ") != 2 {
		t.Errorf("completion and help are not alone outside of the groups:\n%s", help)
	}
	for line := range strings.SplitSeq(help, "\n") {
		if len(line) > 80 {
			t.Errorf("%d characters: %s", len(line), line)
		}
	}
}

func TestStartUpText(t *testing.T) {
	p := start(t, t.TempDir())
	text := p.out.String()
	for _, part := range []string{"is ready", "trow.kube-public:31000", "registry.k8s.io/", "SHA-256",
		"--dest-cert-dir " + p.dir, "trow import --data-dir " + p.dir, "trow check -f",
		"--cacert " + p.dir + "/ca.crt"} {
		if !strings.Contains(text, part) {
			t.Errorf("the text lacks %q:\n%s", part, text)
		}
	}
	// It needs neither another user's rights nor another registry, and no further name where nobody else can connect.
	for _, part := range []string{"sudo", "docker.io/library", "tls-names"} {
		if strings.Contains(text, part) {
			t.Errorf("the text has %q:\n%s", part, text)
		}
	}
	all := start(t, t.TempDir(), "--listen=0.0.0.0:0")
	if text := all.out.String(); !strings.Contains(text, "--tls-names") {
		t.Errorf("on all interfaces the text lacks tls-names:\n%s", text)
	}
	ca := p.want(200, "GET", "/ca.crt", "")
	if block, _ := pem.Decode([]byte(ca)); block == nil || block.Type != "CERTIFICATE" {
		t.Errorf("the CA is %q", ca)
	}
	p.want(404, "GET", "/nothing", "")
	p.want(405, "POST", "/healthz", "")
	for _, path := range []string{"/v2", "/v2/", "/v2/a/tags/list", "/v2/a/manifests/x"} {
		if text := p.want(405, "BREW", path, ""); !strings.Contains(text, `"code":"UNSUPPORTED"`) {
			t.Errorf("BREW %s: %s", path, text)
		}
	}
	if text := p.want(200, "GET", "/readyz?verbose", ""); !strings.Contains(text, "[+]index loaded") {
		t.Error(text)
	}
}

// TestCollectAndScrub runs what an administrator runs beside a running server.
func TestCollectAndScrub(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir, "--no-tls", "--gc-interval=0", "--scrub-interval=0")
	d := p.push("app", "v")
	p.want(201, "POST", "/v2/app/blobs/uploads/?digest="+digest.FromString("unused").String(), "unused")
	trow := func(code int, want string, args ...string) {
		t.Helper()
		got, out, errOut := command(t, "", append(args, "--data-dir="+dir)...)
		if got != code || !strings.Contains(out+errOut, want) {
			t.Errorf("trow %v: code %d, %s%s; want %d, %s", args, got, out, errOut, code, want)
		}
	}
	trow(0, "Would free 0 B: would delete 0 of 4 blobs", "gc", "--dry-run")
	trow(0, "Unlinked nothing", "gc")
	time.Sleep(1100 * time.Millisecond) // times in facts are whole seconds
	trow(0, "Would free 6 B: would delete 1 of 4 blobs; would unlink 1 in 1 repository.", "gc", "--dry-run",
		"--grace=0")
	trow(0, "Freed 6 B: deleted 1 of 4 blobs; unlinked 1 in 1 repository.", "gc", "--grace=0", "--now")
	p.want(404, "HEAD", "/v2/app/blobs/"+digest.FromString("unused").String(), "")
	p.want(200, "GET", "/v2/app/manifests/v", "")
	if metrics := p.want(200, "GET", "/metrics", ""); !strings.Contains(metrics, "trow_gc_freed_bytes_total 6\n") {
		t.Error("the metrics do not count what was freed")
	}

	trow(0, "Read 3 blobs and manifests", "scrub")
	layer := digest.FromString("a layer of app")
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", layer.Encoded()), []byte("damaged"),
		0o600); err != nil {
		t.Fatal(err)
	}
	trow(1, "damaged  "+layer.String(), "scrub", "--rate=1Gi")
	if ready := p.want(200, "GET", "/readyz?verbose", ""); !strings.Contains(ready, "[-]content whole: 1 quarantined") {
		t.Errorf("readyz says %s", ready)
	}
	r := p.admit("/validate", strings.TrimPrefix(p.url, "http://")+"/app:v")
	if !r.Allowed || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "damaged here, push it again") {
		t.Errorf("the webhook says %+v", r)
	}
	p.want(404, "GET", "/v2/app/blobs/"+layer.String(), "")
	if again := p.push("app", "v"); again != d {
		t.Error("another digest")
	}
	trow(0, "0 damaged", "scrub")
	trow(2, "grace: \"-1h\" is not a valid duration", "gc", "--grace=-1h")
	p.stop()
	trow(2, "no server runs on the data directory", "gc")
}

// TestExportAndImport makes a backup and brings it into another server, as a directory and through a pipe.
func TestExportAndImport(t *testing.T) {
	from, dir := start(t, t.TempDir(), "--no-tls"), t.TempDir()
	d := from.push("team/app", "v")
	from.push("other", "v")
	trow := func(code int, in, want string, args ...string) (out string) {
		t.Helper()
		got, out, errOut := command(t, in, args...)
		if got != code || !strings.Contains(errOut, want) {
			t.Errorf("trow %v: code %d, %s; want %d, %s", args, got, errOut, code, want)
		}
		return out
	}
	archive := filepath.Join(dir, "archive")
	trow(0, "", "Exported 2 manifests and 3 blobs", "export", archive, "-d", from.dir)
	trow(0, "", "Exported 0 manifests and 0 blobs, 0 B; 5 already there", "export", archive, "-d", from.dir)
	stream := trow(0, "", "Exported 1 manifest and 2 blobs", "export", "-", "-d", from.dir, "--repository=team/**")
	less := trow(
		0,
		"",
		"Exported 1 manifest and 0 blobs",
		"export",
		"-",
		"-d",
		from.dir,
		"--repository=team/**",
		"--base="+archive,
	)
	if len(less) >= len(stream) {
		t.Errorf("%d bytes on top of the archive, %d without it", len(less), len(stream))
	}

	to := start(t, t.TempDir(), "--no-tls")
	trow(0, stream, "Imported 1 manifest and 2 blobs", "import", "-", "-d", to.dir)
	to.want(404, "GET", "/v2/other/manifests/v", "")
	trow(0, "", "Imported 1 manifest and 2 blobs", "import", archive, "-d", to.dir)
	for _, repo := range []string{"team/app", "other"} {
		if got := to.want(200, "GET", "/v2/"+repo+"/manifests/v", ""); got != from.want(
			200,
			"GET",
			"/v2/"+repo+"/manifests/v",
			"",
		) {
			t.Errorf("%s is another one", repo)
		}
	}
	if !to.admit("/validate", strings.TrimPrefix(to.url, "http://")+"/team/app@"+d.String()).Allowed {
		t.Error("an imported image is denied")
	}
	trow(2, "", "no server runs on the data directory", "import", archive, "-d", dir)
	trow(2, "", "is not a valid pattern", "export", archive, "-d", from.dir, "--repository=a b")
	trow(2, "", "--prune: not supported for a tar stream", "export", "-", "-d", from.dir, "--prune")
	trow(2, "", "not an archive", "import", t.TempDir(), "-d", to.dir)
	trow(2, "", "got no argument; want: trow import", "import")
}

// TestRebuild loses a journal, with its backup and without.
func TestRebuild(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir, "--no-tls")
	p.push("app", "v")
	p.stop()
	backup, err := os.ReadFile(filepath.Join(dir, "journal.backup")) // of a clean stop
	if err != nil {
		t.Fatal(err)
	}
	p = start(t, dir, "--no-tls")
	later := p.push("later", "w")
	lost := p.push("gone", "x")
	p.stop()
	if err := os.WriteFile(filepath.Join(dir, "journal.backup"), backup, 0o600); err != nil { // as after a crash
		t.Fatal(err)
	}
	rebuild := func(want ...string) {
		t.Helper()
		code, out, errOut := command(t, "", "rebuild", "--recover", "--data-dir="+dir)
		for _, text := range want {
			if code != 0 || !strings.Contains(out, text) {
				t.Errorf("code %d, %s%s; want %q", code, out, errOut, text)
			}
		}
	}
	damage := func() {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "journal.db"), []byte(strings.Repeat("damaged", 5000)),
			0o600); err != nil {
			t.Fatal(err)
		}
	}
	damage()
	if code, _, errOut := command(t, "", "serve", "--listen=127.0.0.1:0", "--data-dir="+dir); code != 2 ||
		!strings.Contains(errOut, "run trow rebuild --data-dir "+dir) {
		t.Errorf("a server on a damaged journal: %d, %s", code, errOut)
	}
	if err := os.Remove(filepath.Join(dir, "blobs", "sha256",
		digest.FromString("a layer of gone").Encoded())); err != nil {
		t.Fatal(err)
	}
	rebuild(
		"Restored the backup of ",
		"The journal lists 1 repository, 1 manifest, 1 tag.",
		"found    recovered@"+later.String(),
		"found    recovered@"+lost.String(),
		"1 blob or manifest is missing",
	)
	rebuild("The journal is intact.", "The journal lists 2 repositories, 3 manifests, 1 tag.")
	p = start(t, dir, "--no-tls", "--gc-interval=0")
	p.want(200, "GET", "/v2/app/manifests/v", "")
	p.want(200, "GET", "/v2/recovered/manifests/"+later.String(), "")
	p.want(200, "GET", "/v2/recovered/blobs/"+digest.FromString("a layer of later").String(), "")
	p.want(404, "GET", "/v2/recovered/blobs/"+digest.FromString("a layer of gone").String(), "")
	p.stop()

	damage()
	if err := os.Remove(filepath.Join(dir, "journal.backup")); err != nil {
		t.Fatal(err)
	}
	unclaimed := filepath.Join(dir, "blobs", "sha256", digest.FromString("unclaimed").Encoded())
	if err := os.WriteFile(unclaimed, []byte("unclaimed"), 0o600); err != nil {
		t.Fatal(err)
	}
	rebuild(
		"There was no backup",
		"The journal lists 0 repositories",
		"Found 3 manifests that no repository held",
		"1 blob (9 B) that no repository uses",
	)
	start(t, dir, "--no-tls").want(200, "GET", "/v2/recovered/manifests/"+lost.String(), "")
}

// TestADataDirectoryWithoutSockets is on a file system that has no sockets: everything else works.
func TestADataDirectoryWithoutSockets(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "trow.sock", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := start(t, dir, "--no-tls")
	p.push("app", "v")
	if !strings.Contains(p.errOut.String(), "no administration socket") {
		t.Errorf("the log says nothing of it: %s", p.errOut)
	}
}

// TestRetention applies rules of a file, dry and for good, and does not touch immutable tags.
func TestRetention(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(t.TempDir(), "trow.yaml")
	text := `
retention:
  - repositories: [app]
    keep-last: 1
    keep-younger: 0s
    keep-tags: [v*]
    delete-untagged: 30d
immutable-tags: ["app:v*"]
gc-interval: 0
`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, dir, "--no-tls", "--config="+config)
	p.push("app", "v1")
	for i := range 3 {
		image := fmt.Sprintf(
			`{"schemaVersion":2,"mediaType":%q,"manifests":[],"annotations":{"n":"%d"}}`,
			"application/vnd.oci.image.index.v1+json",
			i,
		)
		p.want(
			201,
			"PUT",
			fmt.Sprintf("/v2/app/manifests/n%d", i),
			image,
			"Content-Type",
			"application/vnd.oci.image.index.v1+json",
		)
		time.Sleep(1050 * time.Millisecond) // times in facts are whole seconds
	}
	p.want(403, "DELETE", "/v2/app/manifests/v1", "")
	code, out, errOut := command(t, "", "retention", "--dry-run", "--data-dir="+dir)
	if code != 0 || !strings.Contains(out, "app:n0: not among the last 1; not one of v*\n") ||
		!strings.Contains(out, "Would remove 4 tags and manifests.") {
		t.Errorf("dry run: %d, %s%s", code, out, errOut)
	}
	p.want(200, "GET", "/v2/app/manifests/n0", "")
	if code, out, errOut = command(t, "", "retention", "--data-dir="+dir); code != 0 ||
		!strings.Contains(out, "Removed 4 tags and manifests.") {
		t.Errorf("%d, %s%s", code, out, errOut)
	}
	if tags := p.want(200, "GET", "/v2/app/tags/list", ""); !strings.Contains(tags, `["n2","v1"]`) {
		t.Errorf("left: %s", tags)
	}
	p.stop()
	start(t, dir, "--no-tls")
	if code, out, errOut = command(t, "", "retention", "--data-dir="+dir); code != 0 ||
		!strings.Contains(out, "No rules") {
		t.Errorf("%d, %s%s", code, out, errOut)
	}
}

// TestAFullDisk refuses uploads while less than the reserve is free; everything else continues.
func TestAFullDisk(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir, "--no-tls")
	p.push("app", "v")
	p.stop()
	p = start(t, dir, "--no-tls", "--reserve=1Ei")
	status, header, body := p.do("POST", "/v2/app/blobs/uploads/", "")
	if status != 507 || header.Get("Retry-After") == "" || !strings.Contains(body, `"code":"UNKNOWN"`) {
		t.Errorf("an upload: %d %v %s", status, header, body)
	}
	p.want(507, "POST", "/v2/app/blobs/uploads/?digest="+digest.FromString("x").String(), "x")
	p.want(200, "GET", "/v2/app/manifests/v", "")
	if ready := p.want(200, "GET", "/readyz?verbose", ""); !strings.Contains(ready, "[-]space for uploads") ||
		!strings.HasSuffix(ready, "ok\n") {
		t.Errorf("readyz says %s", ready)
	}
	p.want(202, "DELETE", "/v2/app/manifests/v", "")
	if n := strings.Count(p.errOut.String(), "the storage is full"); n != 1 {
		t.Errorf("the log says it %d times", n)
	}
}

// TestOpenUploadsAreBounded counts idle uploads as well, and those from before a restart, but none without bytes.
func TestOpenUploadsAreBounded(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir, "--no-tls", "--max-uploads=2")
	begin := func() string {
		_, header, _ := p.do("POST", "/v2/app/blobs/uploads/", "")
		return header.Get("Location")
	}
	first := begin()
	p.want(202, "PATCH", first, "x")
	second := begin()
	p.want(202, "PATCH", second, "x")
	p.want(202, "PATCH", begin(), "x")
	p.want(404, "GET", first, "") // it has given way
	p.stop()
	p = start(t, dir, "--no-tls", "--max-uploads=2")
	p.want(204, "GET", second, "")
	third := begin()
	p.want(202, "PATCH", third, "x") // those from before the restart count, and this one was continued
	p.push("app", "v")               // what one request brings does not
	p.want(204, "GET", second, "")
	p.want(204, "GET", third, "")
}

// TestSettingsOfManifests: the settings of what new manifests may be reach the registry.
func TestSettingsOfManifests(t *testing.T) {
	p := start(t, t.TempDir(), "--no-tls", "--foreign-layers=false", "--max-references=2")
	part := `{"mediaType":"application/vnd.oci.image.layer.nondistributable.v1.tar","digest":"` +
		digest.FromString("x").String() + `","size":1}`
	put := func(layers string) string {
		return p.want(400, "PUT", "/v2/app/manifests/v",
			`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
				`"config":`+strings.Replace(part, ".nondistributable", "", 1)+`,"layers":[`+layers+`]}`)
	}
	if got := put(part); !strings.Contains(got, "foreign-layers") {
		t.Error(got)
	}
	if got := put(strings.ReplaceAll(part+","+part, ".nondistributable", "")); !strings.Contains(got,
		"max-references") {
		t.Error(got)
	}
}

// TestRequestsAreBounded bounds pushes and other requests separately; verdicts are not among them.
func TestRequestsAreBounded(t *testing.T) {
	p := start(t, t.TempDir(), "--no-tls", "--max-requests=1", "--max-connections=50")
	d := digest.FromString("body")
	var hold *io.PipeWriter
	done := make(chan int, 1)
	begin := func() {
		var body *io.PipeReader
		body, hold = io.Pipe()
		go func() {
			resp, err := http.Post(p.url+"/v2/app/blobs/uploads/?digest="+d.String(), "application/octet-stream", body)
			if err != nil {
				t.Error(err)
				done <- 0
				return
			}
			resp.Body.Close()
			done <- resp.StatusCode
		}()
		if _, err := io.WriteString(hold, "bo"); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		status, refused, text := p.do("POST", "/v2/app/blobs/uploads/", "")
		if status == 429 && refused.Get("Retry-After") == "1" && strings.Contains(text, "TOOMANYREQUESTS") {
			break
		}
		select {
		case first := <-done: // one of the others was first
			if first != 429 {
				t.Fatalf("the first one: %d", first)
			}
			begin()
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("a second upload: %d %v %s", status, refused, text)
		}
	}
	p.want(200, "GET", "/v2/", "")
	p.admit("/validate", "trow:31000/app:v")
	p.want(200, "GET", "/readyz", "")
	if metrics := p.want(200, "GET", "/metrics", ""); !strings.Contains(
		metrics,
		`trow_http_requests_total{code="429",method="POST",route="uploads"}`,
	) ||
		!strings.Contains(metrics, "\ntrow_http_connections ") {
		t.Error("the metrics lack refused requests or connections")
	}
	_, _ = io.WriteString(hold, "dy")
	hold.Close()
	if status := <-done; status != 201 {
		t.Errorf("the first one: %d", status)
	}
}

func TestPlainHTTP(t *testing.T) {
	p := start(t, t.TempDir(), "--no-tls")
	if !strings.HasPrefix(p.url, "http:") {
		t.Fatal(p.url)
	}
	p.push("a", "v")
	p.want(404, "GET", "/ca.crt", "")
	if _, err := os.Stat(filepath.Join(p.dir, "tls")); err == nil {
		t.Error("certificates were made without TLS")
	}
}

func TestLogin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, t.TempDir(), "--user=u", "--password-file="+file)
	p.want(401, "GET", "/v2/", "")
	p.want(401, "GET", "/v2/a/tags/list", "")
	p.want(404, "GET", "/v2/a/tags/list", "", "Authorization", "Basic dTpzZWNyZXQ=")
	if strings.Contains(p.errOut.String(), "secret") || strings.Contains(p.errOut.String(), "dTpz") {
		t.Error("the log has the password")
	}
}

// basicAuth returns the header of a login.
func basicAuth(user, password string) []string {
	return []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))}
}

// TestTokensOfRobots creates a robot over the socket, and uses and revokes it.
func TestTokensOfRobots(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir, "--user=u", "--password=p", "--anonymous=pull")
	trow := func(code int, want string, args ...string) (out string) {
		t.Helper()
		got, out, errOut := command(t, "", append(args, "--data-dir="+dir)...)
		if got != code || !strings.Contains(out+errOut, want) {
			t.Errorf("trow %v: code %d, %s%s; want %d, %s", args, got, out, errOut, code, want)
		}
		return out
	}
	secret := strings.TrimSpace(
		trow(0, "robot ci, valid until 20", "token", "create", "ci", "--repository=team/**", "--actions=pull,push"),
	)
	login := basicAuth("any", secret)
	p.want(202, "POST", "/v2/team/app/blobs/uploads/", "", login...)
	p.want(403, "POST", "/v2/other/blobs/uploads/", "", login...)
	p.want(403, "DELETE", "/v2/team/app/manifests/v", "", login...)
	var token struct{ Token string }
	if err := json.Unmarshal([]byte(p.want(200, "GET", "/token?scope=repository:team/app:pull,push", "", login...)),
		&token); err != nil {
		t.Fatal(err)
	}
	p.want(202, "POST", "/v2/team/app/blobs/uploads/", "", "Authorization", "Bearer "+token.Token)
	trow(0, "team/**       pull,push", "token", "list")
	if log := p.errOut.String(); strings.Contains(log, secret) || strings.Contains(log, token.Token) ||
		!strings.Contains(log, `"robot":"ci"`) ||
		!strings.Contains(log, `"user":"robot:ci"`) ||
		!strings.Contains(log, `"event":"created"`) {
		t.Errorf("the log: %s", log)
	}
	trow(0, "yes: the robot was created for that", "can-i", "push", "team/app", "--as=robot:ci")
	trow(1, "no: the robot was not created for that", "can-i", "push", "other", "--as=robot:ci")
	trow(2, `robot "cd" does not exist`, "can-i", "push", "other", "--as=robot:cd")
	trow(2, `user "cd" does not exist`, "can-i", "push", "other", "--as=cd")
	trow(0, "Robot ci revoked.", "token", "revoke", "ci")
	p.want(401, "POST", "/v2/team/app/blobs/uploads/", "", login...)
	p.want(401, "POST", "/v2/team/app/blobs/uploads/", "", "Authorization", "Bearer "+token.Token)
	trow(2, `robot "ci" does not exist`, "token", "revoke", "ci")
	trow(2, "repository", "token", "create", "ci")
	trow(2, "expires", "token", "create", "ci", "--repository=a", "--expires=soon")
	trow(2, "actions", "token", "create", "ci", "--repository=a", "--actions=fly")
	trow(2, "name", "token", "create", "C I", "--repository=a")

	yaml := trow(
		0,
		"kind: Secret",
		"pull-secret",
		"--namespace=team-a",
		"--repository=team/**",
		"--server=registry.example.org:5000",
		"--server=127.0.0.1:31000",
	)
	var config struct {
		Auths map[string]struct{ Username, Password string }
	}
	m := regexp.MustCompile(`'?(\{"auths".*\})'?`).FindStringSubmatch(yaml)
	if m == nil || json.Unmarshal([]byte(m[1]), &config) != nil || len(config.Auths) != 2 ||
		!strings.Contains(yaml, "namespace: team-a") ||
		!strings.Contains(yaml, "type: kubernetes.io/dockerconfigjson") {
		t.Fatalf("%s", yaml)
	}
	one := config.Auths["registry.example.org:5000"]
	p.want(200, "GET", "/v2/", "", basicAuth(one.Username, one.Password)...)
	trow(2, "robot \"pull-team-a\" already exists; use --replace", "pull-secret", "--namespace=team-a")
	trow(0, "kind: Secret", "pull-secret", "--namespace=team-a", "--replace")
	p.want(401, "GET", "/v2/", "", basicAuth(one.Username, one.Password)...)
	trow(2, "server", "pull-secret", "--server=a/b")
	trow(2, "namespace", "pull-secret", "--namespace=A")
	trow(2, "name", "pull-secret", "--name=A B")
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("p"), 0o600); err != nil {
		t.Fatal(err)
	}
	trow(2, "u may administer the registry", "pull-secret", "--user=u", "--password-file="+password)
	code, yaml, errOut := command(t, "p\n", "pull-secret", "--user=u", "--password-file=-", "--data-dir="+t.TempDir())
	if code != 2 || yaml != "" || !strings.Contains(errOut, "cannot find out whether u may administer") {
		t.Errorf("where no server can be asked: %d, %s, %s", code, yaml, errOut)
	}
}

// TestAdministrationOverTLS needs a login with the admin permission.
func TestAdministrationOverTLS(t *testing.T) {
	p := start(t, t.TempDir(), "--user=u", "--password=p", "--htpasswd="+authtest.Htpasswd(t, "alice"))
	p.want(401, "POST", "/admin/gc", "")
	p.want(401, "POST", "/admin/token-create?name=x&repository=**&action=push", "")
	p.want(403, "POST", "/admin/gc", "", basicAuth("alice", "alice")...)
	p.want(403, "POST", "/admin/gc", "", append(basicAuth("u", "p"), "Sec-Fetch-Site", "cross-site")...)
	if answer := p.want(200, "POST", "/admin/gc?dry-run", "", basicAuth("u", "p")...); !strings.Contains(
		answer,
		`"done"`,
	) {
		t.Errorf("%s", answer)
	}
	p.want(401, "GET", "/admin/repositories", "")
	p.want(404, "GET", "/admin/v2/", "", basicAuth("u", "p")...)
	open := start(t, t.TempDir())
	open.want(403, "POST", "/admin/gc", "")
	open.want(200, "GET", "/v2/", "")
}

// TestRules changes rules while the server runs, and asks can-i.
func TestRules(t *testing.T) {
	t.Parallel()
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "trow.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const one = "rules:\n- {who: [user:alice], may: [pull, push], repositories: ['team/**']}\n" +
		"- {who: '*', may: pull, repositories: ['*/public']}\n"
	write(one)
	p := start(t, dir, "--config="+file, "--htpasswd="+authtest.Htpasswd(t, "alice"))
	if text := p.out.String(); !strings.Contains(text, "what the 2 rules of the configuration file allow") {
		t.Errorf("the text does not mention the rules: %s", text)
	}
	alice := basicAuth("alice", "alice")
	p.want(202, "POST", "/v2/team/app/blobs/uploads/", "", alice...)
	p.want(403, "POST", "/v2/x/public/blobs/uploads/", "", alice...)
	p.want(404, "GET", "/v2/x/public/manifests/v", "")
	p.want(401, "GET", "/v2/team/app/manifests/v", "")
	ask := func(code int, want string, args ...string) {
		t.Helper()
		got, out, errOut := command(t, "", append([]string{"can-i"}, args...)...)
		if got != code || !strings.Contains(out+errOut, want) {
			t.Errorf("can-i %v: code %d, %s%s; want %d, %s", args, got, out, errOut, code, want)
		}
	}
	for _, where := range []string{"--data-dir=" + dir, "--config=" + file} {
		ask(0, "yes: rule 1 decides: user:alice may pull, push in team/**", "push", "team/app", "--as=alice", where)
		ask(1, "no: none of the 2 rules allows it", "delete", "team/app", "--as=alice", where)
		ask(0, "yes: rule 2", "pull", "x/public", where)
		ask(1, "no: none", "push", "team-a/app", "--as=system:serviceaccount:team-a:ci", "--as-group=x", where)
		ask(1, "no: none", "catalog", where)
		ask(2, "needs a repository", "push", where)
		ask(2, "applies to the whole registry", "admin", "x", where)
		ask(2, `"fly": want one of pull`, "fly", "x", where)
	}
	ask(2, "the server knows", "pull", "x", "--as=robot:ci", "--config="+file)

	await := func(text string, n int) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for ; strings.Count(p.errOut.String(), text) < n; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the log does not say %q: %s", text, p.errOut)
			}
		}
	}
	write("rules: [{who: alice, may: pull}]") // a mistake
	await("the previous rules stay in effect", 1)
	p.want(202, "POST", "/v2/team/app/blobs/uploads/", "", alice...)
	write(one + "- {who: user:alice, may: delete, repositories: 'team/**'}\n")
	await("its rules, limits, quotas, upstreams and cache-size are in effect", 1)
	p.want(404, "DELETE", "/v2/team/app/manifests/v", "", alice...)
	p.want(202, "POST", "/v2/team/app/blobs/uploads/", "", alice...)
}

// audited reads the lines of an audit log.
func audited(t *testing.T, path string) (all []map[string]any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var one map[string]any
		if err := json.Unmarshal([]byte(line), &one); err != nil || one["message"] != "audit" || one["time"] == nil {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, one)
	}
	return all
}

// TestTheAuditLog records who did what, over every way in, without a secret in it or in any other log.
func TestTheAuditLog(t *testing.T) {
	t.Parallel()
	const canary = "CANARY-pa55word"
	dir, files := t.TempDir(), t.TempDir()
	log, token := filepath.Join(files, "audit.log"), filepath.Join(files, "token")
	if err := os.WriteFile(token, []byte(canary+"-of-the-webhook\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(
		t,
		dir,
		"--user=root",
		"--password="+canary,
		"--htpasswd="+authtest.Htpasswd(t, "alice"),
		"--audit-log="+log,
		"--validate-token-file="+token,
		"--log-level=debug",
		"--metrics-login",
	)
	_, secret, _ := command(
		t,
		"",
		"token",
		"create",
		"ci",
		"--repository=team/**",
		"--actions=pull,push",
		"--data-dir="+dir,
	)
	secret = strings.TrimSpace(secret)
	p.do("GET", "/v2/"+secret+"/app/manifests/v1", "") // people type secrets where names belong
	p.do("GET", "/v2/team/app/manifests/"+secret, "", basicAuth("root", canary)...)
	if text := p.want(200, "GET", "/readyz?verbose", ""); text != "ok\n" {
		t.Errorf("without a login that may metrics, readyz shows %q", text)
	}
	text := p.want(200, "GET", "/readyz?verbose", "", basicAuth("root", canary)...)
	if !strings.Contains(text, "[+]index loaded") {
		t.Errorf("with a login, readyz shows %q", text)
	}
	if text := p.errOut.String(); strings.Contains(text, secret) || strings.Count(text, "trow_[REDACTED]") < 2 {
		t.Errorf("a secret in a path is logged: %s", text)
	}
	robot, owner := basicAuth("x", secret), basicAuth("root", canary)
	push := func(status int, login []string, repo string) {
		t.Helper()
		config := "{}"
		if code, _, _ := p.do("POST", "/v2/"+repo+"/blobs/uploads/?digest="+digest.FromString(config).String(), config,
			login...); code != status {
			t.Errorf("a blob: %d, want %d", code, status)
		}
		manifest := fmt.Sprintf(
			`{"schemaVersion":2,"mediaType":%q,`+
				`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},"layers":[]}`,
			manifestType,
			digest.FromString(config),
		)
		p.want(
			status,
			"PUT",
			"/v2/"+repo+"/manifests/v1",
			manifest,
			append([]string{"Content-Type", manifestType}, login...)...)
	}
	push(201, robot, "team/app")
	push(403, robot, "other")
	p.want(401, "GET", "/v2/", "", basicAuth("root", canary+"-wrong")...)
	p.want(401, "GET", "/v2/", "", basicAuth(canary, "x")...)
	p.want(401, "GET", "/v2/", "", "Authorization", "Bearer "+canary)
	p.want(401, "GET", "/token?account="+canary, "", basicAuth("alice", canary)...)
	p.want(
		401,
		"POST",
		"/token",
		"grant_type=password&username=alice&password="+canary,
		"Content-Type",
		"application/x-www-form-urlencoded",
	)
	p.want(403, "POST", "/admin/gc", "", basicAuth("alice", "alice")...)
	p.want(401, "GET", "/metrics", "")
	p.want(403, "GET", "/metrics", "", robot...)
	if text := p.want(200, "GET", "/metrics", "", basicAuth("alice", "alice")...); !strings.Contains(
		text,
		"trow_audit_left_out_total 0",
	) ||
		!strings.Contains(text, "trow_audit_failed_total 0") {
		t.Errorf("%s", text)
	}
	review := podReview("nginx")
	p.want(401, "POST", "/validate", review, "Content-Type", "application/json", "Authorization", "Bearer "+canary)
	p.want(401, "POST", "/validate-image", review, "Content-Type", "application/json")
	p.want(
		200,
		"POST",
		"/validate",
		review,
		"Content-Type",
		"application/json",
		"Authorization",
		"Bearer "+canary+"-of-the-webhook",
	)
	p.want(200, "GET", "/readyz", "")
	pods := filepath.Join(files, "pods.yaml")
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{image: nginx}]}\n"
	if err := os.WriteFile(pods, []byte(pod), 0o600); err != nil {
		t.Fatal(err)
	}
	check := []string{"check", "-f", pods, "--server=" + p.url, "--cacert=" + filepath.Join(dir, "ca.crt")}
	if code, _, errOut := command(t, "", check...); code != 2 || !strings.Contains(errOut, "for the API server") {
		t.Errorf("check without the token: %d, %s", code, errOut)
	}
	if code, out, errOut := command(t, "", append(check, "--token-file="+token)...); code != 1 ||
		!strings.Contains(out, "1 denied") {
		t.Errorf("check with the token: %d, %s%s", code, out, errOut)
	}
	p.want(202, "DELETE", "/v2/team/app/manifests/v1", "", owner...)
	layout := filepath.Join(files, "layout")
	push(201, owner, "back/up")
	if code, _, errOut := command(t, "", "export", layout, "--data-dir="+dir); code != 0 {
		t.Fatal(errOut)
	}
	p.want(202, "DELETE", "/v2/back/up/manifests/v1", "", owner...)
	if code, _, errOut := command(t, "", "import", layout, "--data-dir="+dir); code != 0 {
		t.Fatal(errOut)
	}
	var got []string
	for _, e := range audited(t, log) {
		text := ""
		for _, key := range []string{"event", "outcome", "identity", "user", "action", "repo", "tags", "kind", "name"} {
			if e[key] != nil {
				text += fmt.Sprint(e[key]) + " "
			}
		}
		if proved, is := e["authenticated"].(bool); is != (e["event"] == "verdict") || is && !proved {
			t.Errorf("authenticated although it is no verdict, or the reverse: %v", e)
		}
		if e["from"] != "127.0.0.1" && e["identity"] != "socket" || e["req"] == nil && e["identity"] != "socket" {
			t.Errorf("no address or no request: %v", e)
		}
		got = append(got, strings.TrimSpace(text))
	}
	want := []string{
		"push ok robot robot:ci push team/app [v1]",
		"request denied robot robot:ci push other",
		"request denied robot robot:ci push other [v1]",
		"login failed user root",
		"login failed unknown", "login failed unknown",
		"login failed user alice", "login failed user alice",
		"request denied user alice admin",
		"request denied robot robot:ci metrics",
		"request denied unknown validate", "request denied unknown validate",
		"verdict denied cluster me validate Pod p",
		"request denied unknown validate",
		"verdict denied cluster validate Pod a",
		"delete ok user root delete team/app [v1]",
		"push ok user root push back/up [v1]",
		"delete ok user root delete back/up [v1]",
		"push ok socket push back/up [v1]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the log has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"the audit log": string(b), "the ordinary log": p.errOut.String(),
		"the output": p.out.String()} {
		for _, s := range []string{canary, secret, base64.StdEncoding.EncodeToString([]byte(canary))[:12]} {
			if strings.Contains(text, s) {
				t.Errorf("%s has a secret", name)
			}
		}
	}
	if info, err := os.Stat(log); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestLimitsAndQuotasAreFollowed changes both while the server runs; a mistake in one changes none.
func TestLimitsAndQuotasAreFollowed(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "trow.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(
		"quotas: [{repositories: ['team/**'], bytes: 1Ki}]\n" +
			"limits: [{who: ['user:alice'], requests: 1000, push-rate: 1Mi, uploads: 3}]\n",
	)
	p := start(t, t.TempDir(), "--config="+file, "--htpasswd="+authtest.Htpasswd(t, "alice"))
	alice := basicAuth("alice", "alice")
	blob := func(status int, n int) string {
		t.Helper()
		content := strings.Repeat("x", n)
		return p.want(
			status,
			"POST",
			"/v2/team/app/blobs/uploads/?digest="+digest.FromString(content).String(),
			content,
			alice...)
	}
	blob(201, 1000)
	if text := blob(403, 25); !strings.Contains(
		text,
		"the quota of the repositories team/** is 1.0 KiB (setting quotas); they hold 1000 B, and this would add 25 B",
	) {
		t.Errorf("%s", text)
	}
	if text := p.want(200, "GET", "/metrics", ""); !strings.Contains(text, `trow_quota_used_bytes{quota="1"} 1000`) ||
		!strings.Contains(text, `trow_quota_bytes{quota="1"} 1024`) {
		t.Errorf("%s", text)
	}
	await := func(text string) {
		t.Helper()
		end := time.Now().Add(time.Minute)
		for ; !strings.Contains(p.errOut.String(), text); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the log does not say %q: %s", text, p.errOut)
			}
		}
	}
	write("quotas: [{repositories: ['team/**'], bytes: 1Mi}]\nlimits: [{who: ['user:alice'], requests: -1}]\n")
	await("the previous rules stay in effect")
	blob(403, 25)
	write("quotas: [{repositories: ['team/**'], bytes: 1Mi}]\nlimits: [{who: ['user:alice'], requests: 1, burst: 2}]\n")
	await("its rules, limits, quotas, upstreams and cache-size are in effect")
	blob(201, 25)
	// On a busy machine the requests may be a second apart, and each then finds another one allowed.
	status, text := 0, ""
	for n := 0; n < 100 && status != 429; n++ {
		status, _, text = p.do("GET", "/v2/team/app/tags/list", "", alice...)
	}
	const refusal = "alice may have 1 requests per second (setting limits, limit 1: requests)"
	if status != 429 || !strings.Contains(text, refusal) {
		t.Errorf("%d %s", status, text)
	}
	p.want(200, "GET", "/healthz", "")
}

// TestCertificatesOfClients logs in and calls the webhook with certificates, each of its own CA.
func TestCertificatesOfClients(t *testing.T) {
	t.Parallel()
	files := t.TempDir()
	users, show := clientCA(t, filepath.Join(files, "users.pem"))
	api, showAPI := clientCA(t, filepath.Join(files, "api.pem"))
	config := filepath.Join(files, "trow.yaml")
	const rules = "rules:\n- {who: ['cert:build-7'], may: [pull, push], repositories: ['team/**']}\n" +
		"- {who: ['cert-group:readers'], may: pull}\n"
	if err := os.WriteFile(config, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(
		t,
		t.TempDir(),
		"--config="+config,
		"--client-ca="+users,
		"--validate-client-ca="+api,
		"--validate-client-names=kube-apiserver",
	)
	plain := p.client
	as := func(cert tls.Certificate) {
		c := plain.Transport.(*http.Transport).TLSClientConfig.Clone()
		c.Certificates = []tls.Certificate{cert}
		p.client = &http.Client{Transport: &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}}
	}
	p.want(401, "GET", "/v2/", "")
	as(show("build-7"))
	p.want(200, "GET", "/v2/", "")
	p.push("team/app", "v1")
	p.want(403, "POST", "/v2/other/blobs/uploads/", "")
	as(show("someone", "readers"))
	p.want(200, "GET", "/v2/team/app/manifests/v1", "")
	p.want(403, "DELETE", "/v2/team/app/manifests/v1", "")
	as(show("alice"))
	p.want(404, "GET", "/v2/team/app/manifests/v1", "")
	json := []string{"Content-Type", "application/json"}
	p.want(401, "POST", "/validate", podReview("nginx"), json...) // a user's certificate is not the API server's
	as(showAPI("kube-apiserver"))
	p.want(200, "POST", "/validate", podReview("nginx"), json...)
	p.want(401, "GET", "/v2/team/app/manifests/v1", "") // nor the other way round
	as(showAPI("kubelet"))
	p.want(403, "POST", "/validate", podReview("nginx"), json...)
	p.client = plain
	p.want(401, "POST", "/validate", podReview("nginx"), json...)
	p.want(200, "GET", "/readyz", "")
	if log := p.errOut.String(); !strings.Contains(log, `"user":"cert:build-7"`) ||
		!strings.Contains(log, `"identity":"certificate"`) {
		t.Errorf("%s", log)
	}
	if code, out, errOut := command(t, "", "can-i", "pull", "x", "--as=cert:y", "--as-group=readers",
		"--data-dir="+p.dir); code != 0 ||
		!strings.Contains(out, "rule 2 decides: cert-group:readers may pull") {
		t.Errorf("%d, %s%s", code, out, errOut)
	}
}

// clientCA makes a CA, writes its certificate to a file, and returns a function that issues certificates.
func clientCA(t *testing.T, path string) (file string, show func(cn string, orgs ...string) tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: path},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, &key.PublicKey, key)
	if err == nil {
		err = os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path, func(cn string, orgs ...string) tls.Certificate {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(2),
			Subject:      pkix.Name{CommonName: cn, Organization: orgs},
			NotBefore:    ca.NotBefore,
			NotAfter:     ca.NotAfter,
			ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &own.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own}
	}
}

func TestASecondServerOnTheSameDataIsRefused(t *testing.T) {
	t.Parallel()
	p := start(t, t.TempDir())
	var errOut output
	code := run(
		t.Context(),
		[]string{"serve", "--listen=127.0.0.1:0", "--data-dir=" + p.dir},
		strings.NewReader(""),
		io.Discard,
		&errOut,
	)
	if want := fmt.Sprintf("in use by process %d", os.Getpid()); code != 2 || !strings.Contains(errOut.String(), want) {
		t.Errorf("code %d: %s", code, &errOut)
	}
}

func TestBeforeTheIndexIsLoaded(t *testing.T) {
	o := &options{}
	settings.Register(pflag.NewFlagSet("x", pflag.ContinueOnError), o.parts()...) // sets the defaults
	o.registry.Data.DataDir, o.registry.Names = t.TempDir(), []string{"trow.kube-public:31000"}
	reg, err := service.Open(o.registry)
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	handler := routes(o, &server.Probes{}, reg, server.NewPending(admission.Loading), nil, http.NotFoundHandler())
	for _, path := range []string{"/v2/", "/v2/a/manifests/v", "/validate", "/validate-image", "/readyz?verbose"} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != 503 {
			t.Errorf("%s: status %d", path, w.Code)
		}
		if strings.HasPrefix(path, "/v2/") && !strings.Contains(w.Body.String(), `"errors":[{"code":`) {
			t.Errorf("%s: %s", path, w.Body)
		}
	}
	w := httptest.NewRecorder()
	if reg.Administration().ServeHTTP(w, httptest.NewRequest("POST", "/admin/gc", nil)); w.Code != 503 {
		t.Errorf("a job: status %d", w.Code)
	}
}

// command runs a command to its end.
func command(t *testing.T, in string, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e output
	code = run(t.Context(), args, strings.NewReader(in), &o, &e)
	return code, o.String(), e.String()
}

func TestBadSettingsAreOneClearLine(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	files := 0
	file := func(text string) []string { // the arguments for a configuration file
		files++
		return []string{"--config=" + write(fmt.Sprintf("trow%d.yaml", files), text)}
	}
	for _, row := range []struct {
		name string
		args []string
		env  string
		want string
	}{
		{"an unknown key", file("lisen: x"), "", `unknown setting "lisen"`},
		{"a nested key", file("tls: {cert: x}"), "", `unknown setting "tls.cert"`},
		{"no YAML", file(":\n:"), "", ".yaml: "},
		{"no file", []string{"--config=" + dir + "/none.yaml"}, "", "none.yaml"},
		{"a bad value in a file", file("upload-timeout: 1s"), "", ".yaml: upload-timeout"},
		{"an unknown variable", nil, "TROW_LISEN=x", `TROW_LISEN: unknown setting "lisen"`},
		{"a word for a number", []string{"--upload-timeout=soon"}, "", "upload-timeout"},
		{"a word for a switch", nil, "TROW_NO_TLS=maybe", "no-tls"},
		{"a list of numbers", file("names: [1]"), "", "names"},
		{"a time that is too short", []string{"--upload-timeout=1s"}, "", "upload-timeout"},
		{"no requests at all", []string{"--max-requests=0"}, "", "max-requests"},
		{"no references at all", []string{"--max-references=0"}, "", "max-references"},
		{"no connections at all", []string{"--max-connections=-1"}, "", "max-connections"},
		{"no uploads at all", []string{"--max-uploads=0"}, "", "max-uploads"},
		{"a reserve without a unit that exists", []string{"--reserve=5%,1GB"}, "", "reserve"},
		{"a reserve of everything", []string{"--reserve=100%"}, "", "reserve"},
		{"a collection without a pause", []string{"--gc-interval=1ms"}, "", "gc-interval"},
		{"no grace", []string{"--gc-grace=0"}, "", "gc-grace"},
		{"a scrub without a pause", []string{"--scrub-interval=1s"}, "", "scrub-interval"},
		{"a rule without effect", file("retention: [{repositories: [a]}]"), "", "retention: rule 1"},
		{"a rule with an unknown key", file("retention: [{repositories: [a], keeplast: 1}]"), "", "keeplast"},
		{"a rule with an invalid duration", file("retention: [{repositories: [a], keep-younger: soon}]"), "", "soon"},
		{"immutable tags without a repository", []string{"--immutable-tags=v1"}, "", "immutable-tags"},
		{"an invalid rate", []string{"--scrub-rate=fast"}, "", "scrub-rate"},
		{"a stall that is too short", []string{"--stall-timeout=1ms"}, "", "stall-timeout"},
		{"an unknown level", []string{"--log-level=loud"}, "", "log-level"},
		{"a password twice", []string{"--user=u", "--password=p", "--password-file=x"}, "", "password-file"},
		{"a password without a user", []string{"--password=p"}, "", "user"},
		{"a user without a password", []string{"--user=u"}, "", `user: "u" needs a password`},
		{"a missing password file", []string{"--user=u", "--password-file=" + dir + "/none"}, "", "password-file"},
		{"an empty password file", []string{"--user=u", "--password-file=" + write("empty", "\n")}, "", "is empty"},
		{"an unknown level of anonymous", []string{"--anonymous=all"}, "", "anonymous"},
		{"a missing file of users", []string{"--htpasswd=" + dir + "/none"}, "", "htpasswd"},
		{"users with weak hashes", []string{"--htpasswd=" + write("users", "a:{SHA}x")}, "",
			"line 1: want name:hash with a bcrypt hash"},
		{"a rule without identities", file("rules: [{may: pull}]"), "", "rules: rule 1: who"},
		{"an access rule with an unknown key", file("rules: [{who: a, may: pull, repos: a}]"), "", "repos"},
		{"rules with anonymous", append(file("rules: [{who: '*', may: pull}]"), "--anonymous=pull"), "",
			"anonymous: cannot be combined with rules"},
		{"an invalid public URL", []string{"--public-url=registry.example.org"}, "", "public-url"},
		{"no way to log in", []string{"--anonymous=none"}, "", "no user could log in"},
		{"TLS and no TLS", []string{"--no-tls", "--tls-cert=x"}, "", "no-tls"},
		{"a missing certificate", []string{"--tls-cert=" + dir + "/none"}, "", dir + "/none"},
		{"an invalid prefix", []string{"--allow-prefixes=nginx"}, "", "allow-prefixes"},
		{"an unknown default", []string{"--default=Perhaps"}, "", "default"},
		{"an unknown mode of the webhook", []string{"--webhook=on"}, "", "webhook"},
		{"a webhook without TLS", []string{"--webhook=enforce", "--no-tls"}, "", "over TLS only"},
		{"a webhook outside of a cluster", []string{"--webhook=enforce"}, "", "outside a cluster"},
		{"exempt namespaces without a webhook", []string{"--exempt-namespaces=a"}, "", "exempt-namespaces"},
		{"an invalid namespace", []string{"--webhook=audit", "--exempt-namespaces=A_b"}, "", "exempt-namespaces"},
		{"tokens outside of a cluster", []string{"--token-audience=trow"}, "", "outside a cluster"},
		{"an invalid audience", []string{"--token-audience= "}, "", "token-audience"},
		{"access-review without token-audience", []string{"--access-review"}, "", "token-audience: trow"},
		{"standard output as the audit log", []string{"--audit-log=-"}, "", "audit-log"},
		{"an audit log in a missing directory", []string{"--audit-log=" + dir + "/none/a"}, "", "audit-log"},
		{"a limit without identities", file("limits: [{requests: 1}]"), "", "limits: limit 1: who"},
		{"a limit with an unknown key", file("limits: [{who: '*', request: 1}]"), "", "request"},
		{"a limit with an invalid size", file("limits: [{who: '*', pull-rate: fast}]"), "", "is not a number of bytes"},
		{"a limit of clients without a login", file("limits: [{who: anonymous, requests: 1}]"), "", "by-address"},
		{"a quota without repositories", file("quotas: [{bytes: 1Gi}]"), "", "quotas: quota 1"},
		{"a quota without bytes", file("quotas: [{repositories: a}]"), "", "quotas: quota 1: bytes"},
		{"certificates without TLS", []string{"--client-ca=x", "--no-tls"}, "", "no-tls"},
		{"a missing client CA", []string{"--client-ca=" + dir + "/none"}, "", dir + "/none"},
		{"an invalid client CA", []string{"--validate-client-ca=" + write("nonsense.pem", "x")}, "",
			"nonsense.pem: it has no certificate"},
		{"names of callers without a CA", []string{"--validate-client-names=x"}, "", "validate-client-ca"},
		{"a short token of the webhook", []string{"--validate-token-file=" + write("short", "x")}, "",
			"validate-token-file: the file must have one line"},
		{"a missing token of the webhook", []string{"--validate-token-file=" + dir + "/none"}, "",
			"validate-token-file"},
		{"an overlap that is too short", []string{"--ca-overlap=1s"}, "", "ca-overlap"},
		{"an invalid address", []string{"--listen=nowhere"}, "", "listen"},
		{"an unknown flag", []string{"--lisen=x"}, "", "lisen"},
		{"an argument", []string{"x"}, "", "x"},
		{"a data directory that is a file", []string{"--data-dir=" + write("file", "")}, "", "file"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if name, value, ok := strings.Cut(row.env, "="); ok {
				t.Setenv(name, value)
			}
			args := append([]string{"serve", "--listen=127.0.0.1:0", "--data-dir=" + filepath.Join(dir, "data")},
				row.args...)
			code, _, errOut := command(t, "", args...)
			lines := strings.Split(strings.TrimSpace(errOut), "\n")
			last := lines[len(lines)-1]
			if code != 2 || !strings.Contains(last, row.want) || len(lines) > 1 && !strings.HasPrefix(lines[0], "{") {
				t.Errorf("code %d, want a line with %q: %s", code, row.want, errOut)
			}
		})
	}
}

func TestWhereSettingsComeFrom(t *testing.T) {
	file := filepath.Join(t.TempDir(), "trow.yaml")
	const content = "log-level: warn\nupload-timeout: 2h\nnames: [a.example:1, b.example:2]\n" +
		"allow-prefixes: quay.io/a quay.io/b\nanonymous: pull\n"
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TROW_CONFIG", file)
	t.Setenv("TROW_UPLOAD_TIMEOUT", "3h")
	t.Setenv("TROW_ALLOW_IMAGES", "quay.io/x:1, quay.io/y:2")
	t.Setenv("TROW_PORT", "tcp://10.0.0.1:443") // Kubernetes makes these up for a Service called trow
	t.Setenv("TROW_SERVICE_HOST", "10.0.0.1")
	t.Setenv("TROW_PORT_443_TCP", "x")
	cmd := &cobra.Command{}
	settings.AddConfigFlag(cmd.Flags())
	settings.Register(cmd.Flags(), new(options).parts()...)
	if err := cmd.ParseFlags([]string{"--log-level=debug", "--deny=quay.io/z,quay.io/w"}); err != nil {
		t.Fatal(err)
	}
	o, err := load(cmd)
	if err != nil {
		t.Fatal(err)
	}
	for got, want := range map[string]string{
		o.server.LogLevel:                         "debug",
		o.registry.Data.UploadTimeout.String():    "3h0m0s",
		o.server.StallTimeout.String():            "1m0s",
		strings.Join(o.policy.Names, " "):         "a.example:1 b.example:2",
		strings.Join(o.policy.AllowPrefixes, " "): "quay.io/a quay.io/b",
		strings.Join(o.policy.AllowImages, " "):   "quay.io/x:1 quay.io/y:2",
		strings.Join(o.policy.Deny, " "):          "quay.io/z quay.io/w",
		o.registry.Auth.Anonymous:                 "pull",
		o.server.Listen:                           "127.0.0.1:8443",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestAMistakeInTheSettings: the server runs on with the last good files, says so, and trow config check says so
// before.
func TestAMistakeInTheSettings(t *testing.T) {
	data, dir := t.TempDir(), t.TempDir()
	base, mine := filepath.Join(dir, "base.yaml"), filepath.Join(dir, "mine", "trow.yaml")
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700),
			os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write(base, "anonymous: create\nallow-prefixes: [quay.io/base]\n")
	write(mine, "allow-prefixes: [quay.io/mine]\n")
	args := []string{"--config=" + base, "--config=" + filepath.Dir(mine)}
	check := func(code int, want, in string, files ...string) {
		t.Helper()
		got, out, errOut := command(t, in, append([]string{"config", "check"}, files...)...)
		if got != code || !strings.Contains(out+errOut, want) || strings.Count(out+errOut, "\n") != 1 {
			t.Errorf("trow config check %v: code %d, %s%s; want %d, %q", files, got, out, errOut, code, want)
		}
	}
	check(0, "valid: "+base, "", base, mine)
	p := start(t, data, args...)
	if !p.admit("/validate", "quay.io/mine/app").Allowed || p.admit("/validate", "quay.io/base/app").Allowed {
		t.Error("the later file does not count")
	}
	if text := p.want(200, "GET", "/readyz?verbose", ""); !strings.Contains(text, "[+]configuration files in use") {
		t.Error(text)
	}
	p.stop()
	for _, bad := range []string{"allow-prefixes: [nginx]", "alow-prefixes: [quay.io/mine]", "htpasswd: /nowhere",
		"audit-log: " + dir + "/none/a", "allow-prefixes: {a: b}", "allow-prefixes: [quay.io/mine", "htpasswd: [1]",
		"allow-prefixes: [quay.io/other]\n---\nallow-prefixes: [quay.io/base]"} {
		write(mine, bad)
		p = start(t, data, args...)
		if !p.admit("/validate", "quay.io/mine/app").Allowed {
			t.Errorf("%s: the last good file does not count", bad)
		}
		if text := p.want(200, "GET", "/readyz?verbose", ""); !strings.Contains(text, "[-]configuration files: ") ||
			!strings.Contains(text, mine) && !strings.Contains(text, strings.TrimSuffix(strings.Fields(bad)[0], ":")) {
			t.Errorf("%s: %s", bad, text)
		}
		if text := p.want(200, "GET", "/metrics", ""); !strings.Contains(text, "trow_settings_valid 0\n") {
			t.Errorf("%s: no metric", bad)
		}
		if log := p.errOut.String(); !strings.Contains(log, "the last good ones are in use") {
			t.Errorf("%s: the log: %s", bad, log)
		}
		p.stop()
	}
	check(1, "not valid: configuration file "+mine+`: unknown setting "alow`, "", base,
		func() string { write(mine, "alow-prefixes: []"); return mine }())
	check(1, `(standard input): rules: entry 1: `, "rules: [{whom: a}]", base, "-")
	check(2, "none.yaml", "", dir+"/none.yaml")
	for _, more := range []string{"--anonymous=all", "--listen=nowhere"} {
		code, _, errOut := command(t, "", append([]string{"serve", "--data-dir=" + data, more}, args...)...)
		if code != 2 {
			t.Errorf("%s: code %d, %s", more, code, errOut)
		}
	}
}

func TestCheck(t *testing.T) {
	p := start(t, t.TempDir())
	p.push("app", "1")
	const file = "admission/check/testdata/pods.yaml"
	pods, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(how string, args ...string) {
		t.Helper()
		code, out, errOut := command(t, string(pods), append([]string{"check"}, args...)...)
		if code != 1 || !strings.Contains(out, "denied   "+how) || !strings.Contains(out, "Deployment/bad") ||
			!strings.Contains(out, tutorialSentence) ||
			!strings.Contains(out, "skipped") ||
			!strings.Contains(out, "2 checked, 1 denied") {
			t.Errorf("%v: code %d\n%s%s", args, code, out, errOut)
		}
	}
	verify(file, "-f", file, "--server", p.url, "--cacert", filepath.Join(p.dir, "ca.crt"))
	p.stop()
	verify(file, "-f", file, "--data", p.dir)
	verify("-", "-f", "-", "--data", p.dir)
	if code, out, errOut := command(t, "", "check", "-f", file, "--data", p.dir,
		"--allow-docker-official"); code != 0 ||
		!strings.Contains(out, "2 checked, 0 denied") {
		t.Errorf("with a rule: code %d\n%s%s", code, out, errOut)
	}
	for _, args := range [][]string{
		{"-f", file},
		{"--data", p.dir},
		{"-f", file, "--data", p.dir, "--server", p.url},
		{"-f", file, "--data", p.dir + "/none"},
		{"-f", p.dir + "/none.yaml", "--data", p.dir},
		{"-f", file, "--server", p.url, "--cacert", file},
		{"-f", file, "--server", p.url, "--cacert", "/none"},
		{"-f", file, "--server", "https://127.0.0.1:1"},
		{"-f", file, "--server", "::"},
	} {
		if code, _, errOut := command(t, "", append([]string{"check"}, args...)...); code != 2 || errOut == "" {
			t.Errorf("%v: code %d: %s", args, code, errOut)
		}
	}
	if code, _, errOut := command(t, "a: [", "check", "-f", "-", "--data", p.dir); code != 2 ||
		!strings.Contains(errOut, "-:1:1: ") {
		t.Errorf("bad YAML: code %d: %s", code, errOut)
	}
}

// TestBench measures this server; it holds the images of the pods in the reviews.
func TestBench(t *testing.T) {
	p := start(t, t.TempDir())
	var out bytes.Buffer
	bench := func(args ...string) int {
		out.Reset()
		return run(
			t.Context(),
			append([]string{"bench", "--duration=5ms", "--connections=2"}, args...),
			nil,
			&out,
			io.Discard,
		)
	}
	ca := "--cacert=" + filepath.Join(p.dir, "ca.crt")
	if code := bench(p.url, ca, "--scenarios=admission,manifest-head-tag", "--json=-"); code != 0 {
		t.Fatalf("code %d: %s", code, &out)
	}
	var report struct {
		Results []struct {
			Scenario           string
			Operations, Errors int
		}
	}
	if err := json.Unmarshal(out.Bytes(), &report); err != nil || len(report.Results) != 2 ||
		report.Results[1].Scenario != "admission" ||
		report.Results[0].Operations < 2 ||
		report.Results[1].Operations < 2 ||
		report.Results[0].Errors+report.Results[1].Errors > 0 {
		t.Errorf("%s %v", &out, err)
	}
	if metrics := p.want(200, "GET", "/metrics", ""); strings.Contains(metrics, `reviews_total{verdict="allowed"} 0`) ||
		!strings.Contains(metrics, `reviews_total{verdict="denied"} 0`) {
		t.Errorf("the verdicts: %s", metrics)
	}
	if code := bench(p.url, ca, "--clean"); code != 0 || !strings.HasPrefix(out.String(), "Deleted 100 manifests.") {
		t.Errorf("code %d: %s", code, &out)
	}
	if code := bench(p.url, ca, "--scenarios=manifest-head-tag", "--no-populate"); code != 1 ||
		!strings.Contains(out.String(), "404 Not Found") {
		t.Errorf("without content: code %d: %s", code, &out)
	}
	if code := bench(p.url); code != 2 || out.Len() > 0 {
		t.Errorf("without the CA: code %d: %s", code, &out)
	}
	if code := bench("--list"); code != 0 || strings.Count(out.String(), "\n") != 15 {
		t.Errorf("code %d: %s", code, &out)
	}
}

func TestVersionAndManifest(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"--version"}} {
		if code, out, _ := command(t, "", args...); code != 0 || !strings.HasPrefix(out, "trow "+version) {
			t.Errorf("%v: %d, %q", args, code, out)
		}
	}
	if code, out, _ := command(t, "", "manifest"); code != 0 || !strings.Contains(out, "nodePort: 31000") ||
		!strings.Contains(out, "image: trow:"+version) {
		t.Errorf("manifest: %d, %q", code, out)
	}
	if code, _, errOut := command(t, "", "manifest", "--namespace=A", "--storage=x"); code != 2 ||
		!strings.Contains(errOut, "namespace:") ||
		!strings.Contains(errOut, "storage:") {
		t.Errorf("manifest with bad options: %d, %q", code, errOut)
	}
}

// TestHowTheRegistryAsksTheCluster decides by the answers of the API server, and logs no token.
func TestHowTheRegistryAsksTheCluster(t *testing.T) {
	const account = "system:serviceaccount:team:app"
	token := func(name string) string {
		encode := base64.RawURLEncoding.EncodeToString
		return encode(
			[]byte(`{"alg":"RS256"}`),
		) + "." + encode(
			[]byte(`{"aud":["trow"],"jti":"`+name+`"}`),
		) + "." + encode(
			[]byte("signature"),
		)
	}
	client := fake.NewClientset()
	client.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		switch review.Spec.Token {
		case token("good"):
			review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: []string{"trow"},
				User: authenticationv1.UserInfo{Username: account, Groups: []string{"system:serviceaccounts"}}}
		case token("down"):
			return true, nil, errors.New("connection refused")
		}
		return true, review, nil
	})
	client.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		at := review.Spec.ResourceAttributes
		if at.Name == "down" {
			return true, nil, errors.New("connection refused")
		}
		review.Status.Allowed = review.Spec.User == account &&
			slices.Equal(review.Spec.Groups, []string{"system:serviceaccounts"}) &&
			at.Verb == "get" &&
			at.Namespace == "team" &&
			at.Name == "back/end"
		return true, review, nil
	})
	var log bytes.Buffer
	r := cluster.NewReviewer(kubetest.Client(client), kube.Audience, zerolog.New(&log))
	guard := authtest.New(
		t,
		auth.Options{
			Name:         "trow.kube-public:31000",
			Reviewer:     r,
			Accesses:     r,
			AccessReview: true,
			Anonymous:    "none",
		},
	)
	for _, row := range []struct {
		token, repo string
		action      auth.Action
		identify    error
		authorize   error
	}{
		{"good", "team/back/end", auth.Pull, nil, nil},
		{"good", "team/back/end", auth.Push, nil, auth.ErrDenied},
		{"good", "team/app", auth.Pull, nil, auth.ErrHidden},
		{"good", "team/down", auth.Pull, nil, auth.ErrUnavailable},
		{"bad", "", auth.Login, auth.ErrUnauthorized, nil},
		{"down", "", auth.Login, auth.ErrUnavailable, nil},
	} {
		req := httptest.NewRequest("GET", "/v2/", nil)
		req.SetBasicAuth("serviceaccount", token(row.token))
		who, err := guard.Identify(req)
		if !errors.Is(err, row.identify) || err == nil && who.Name != account {
			t.Errorf("%+v: %+v, %v", row, who, err)
		}
		if err == nil {
			if err := guard.Authorize(t.Context(), who, row.repo, row.action); !errors.Is(err, row.authorize) {
				t.Errorf("%+v: %v", row, err)
			}
		}
	}
	if text := log.String(); !strings.Contains(text, "refused") || !strings.Contains(text, "cannot review") ||
		strings.Contains(text, strings.Split(token("bad"), ".")[1]) {
		t.Errorf("the log: %s", text)
	}
}

// TestCommandsForAClusterWithoutOne prints the remedy in one line.
func TestCommandsForAClusterWithoutOne(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("HOME", t.TempDir())
	for _, row := range []struct {
		args []string
		want string
	}{
		{[]string{"disarm"}, "configuration"},
		{[]string{"arm"}, "configuration"},
		{[]string{"rotate-ca", "--kubeconfig=/nowhere"}, "/nowhere"},
		{[]string{"node"}, "--print"},
		{[]string{"node", "--print=talos"}, "kubectl -n kube-public get configmap trow-ca"},
		{[]string{"node", "--print=talos", "--ca=/nowhere"}, "/nowhere"},
		{[]string{"node", "--print=talos", "--ca=-"}, "certificate"},
		{[]string{"node", "--print=toaster", "--ca=-"}, "talos"},
	} {
		code, _, errOut := command(t, "", row.args...)
		if code != 2 || !strings.Contains(errOut, row.want) || strings.Count(errOut, "\n") != 1 {
			t.Errorf("%v: %d, want a line with %q: %s", row.args, code, row.want, errOut)
		}
	}
}

func TestInstructionsForANode(t *testing.T) {
	p := start(t, t.TempDir())
	_, _, ca := p.do("GET", "/ca.crt", "")
	code, out, errOut := command(t, ca, "node", "--print=talos", "--ca=-", "--host=registry.example.org",
		"--port=30500")
	if code != 0 || !strings.Contains(out, "registry.example.org:30500") ||
		!strings.Contains(out, "https://127.0.0.1:20500") {
		t.Errorf("%d, %s%s", code, out, errOut)
	}
}

// ---- Rules of the house

// folderRule says what the packages of a folder may not import, or may import alone.
type folderRule struct {
	from   string   // a folder and everything below it
	never  []string // folders of ours
	except []string // packages among those
	why    string
}

// folderRules keep registry and admission apart: the index is all that they share, so that one of them can be
// understood, tested and replaced without the other.
var folderRules = []folderRule{
	{"registry", []string{"admission", "tls", "manifests"}, nil, "the registry knows nothing of Kubernetes"},
	{
		"admission",
		[]string{"registry", "tls"},
		[]string{"registry/address", "registry/platform"},
		"a verdict is a look-up in the index",
	},
	{"tls", []string{"registry", "admission", "manifests"}, nil,
		"certificates do not depend on what is served with them"},
	{
		"manifests",
		[]string{"registry", "admission", "tls"},
		[]string{"registry/address", "registry/namespace", "registry/ocierror", "registry/socket"},
		"a node runs without a registry",
	},
	{"storage", []string{"registry", "admission", "tls", "manifests"}, nil, "storage is below everything"},
	{"manifests/kube", []string{"manifests/node", "registry"}, nil, "a leaf: admission/cluster imports it"},
	{"registry/ocierror", []string{"registry", "storage"}, nil, "a leaf: all packages that answer HTTP import it"},
	{
		"registry/auth",
		[]string{"registry/server", "registry/maintenance", "registry/limit"},
		nil,
		"limits ask who, not the reverse",
	},
}

// onlyFrom says which of ours a package may import at all.
var onlyFrom = map[string][]string{
	"storage":           {"storage/internal"},
	"storage/files":     {},
	"storage/disk":      {"storage", "storage/files", "storage/internal"},
	"storage/bolt":      {"storage", "storage/files", "storage/internal"},
	"storage/etcd":      {"storage", "storage/files", "storage/internal"},
	"storage/memory":    {"storage", "storage/files", "storage/internal"},
	"storage/migrate":   {"storage"}, // it knows no engine
	"storage/s3":        {"storage", "storage/files", "storage/internal"},
	"registry/address":  {}, // a leaf: hosts have one form to registry, webhook and nodes
	"registry/ocierror": {},
	"registry/glob":     {},
	"registry/bounded":  {},
	"registry/size":     {},
	"registry/socket":   {}, // a leaf: server and node bound their connections alike
	"registry/platform": {}, // a leaf: webhook and cache compare platforms alike

	"registry/namespace": {"registry/address", "registry/settings"},
}

// onlyIn says which packages alone may import something, and why it is worth a rule.
var onlyIn = map[string][]string{
	"github.com/spf13/viper":            {"registry/settings"},       // one place knows how settings come together
	"go.etcd.io/bbolt":                  {"storage/bolt"},            // engines are replaceable
	"go.etcd.io/etcd/client/v3":         {"storage/etcd"},            // the same
	"github.com/minio/minio-go/v7":      {"storage/s3"},              // the same
	"k8s.io/client-go/kubernetes":       {"manifests/kube/kubetest"}, // a third of the program, see manifests/kube
	"github.com/distribution/reference": {"admission", "manifests", "manifests/node/credential"},
	"github.com/spf13/cobra": {".", "admission/check", "admission/cluster", "manifests", "manifests/node",
		"manifests/node/credential", "registry/admin/commands", "registry/bench", "registry/settings"}, // commands
	"trow/storage/etcd": {"registry/maintenance", // one place opens engines as settings say
		"manifests"}, // checks URLs
	"trow/storage/s3": {"registry/maintenance", "manifests"},
}

// standardOnly are the packages with nothing but the standard library and what is listed.
var standardOnly = map[string][]string{
	"storage":       {"github.com/opencontainers/go-digest"},
	"storage/files": {},
}

// Limits of size. main.go grows with each part that is added, so it has a limit of its own.
const (
	maxMainLines     = 350
	maxFileLines     = 650
	maxFunctionLines = 110
)

// source is a parsed file of the product (not of its tests).
type source struct {
	pkg, path string
	file      *ast.File
	set       *token.FileSet
}

func sources(t *testing.T) (all []source) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil ||
			d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" ||
				d.Name() == "e2e") {
			if err == nil {
				err = fs.SkipDir
			}
			return err
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		all = append(all, source{filepath.Dir(path), path, f, set})
		return err
	})
	if err != nil || len(all) < 20 {
		t.Fatalf("%d files: %v", len(all), err)
	}
	return all
}

// within reports whether a package is a folder or below it.
func within(pkg, folder string) bool { return pkg == folder || strings.HasPrefix(pkg, folder+"/") }

func withinAny(pkg string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return within(pkg, f) })
}

func TestWhoImportsWhom(t *testing.T) {
	for _, s := range sources(t) {
		for _, spec := range s.file.Imports {
			path := strings.Trim(spec.Path.Value, `"`)
			ours, isOurs := strings.CutPrefix(path, "trow/")
			for _, rule := range folderRules {
				if isOurs && within(s.pkg, rule.from) && withinAny(ours, rule.never) && !within(ours, rule.from) &&
					!slices.Contains(rule.except, ours) {
					t.Errorf("%s imports %s: %s", s.path, path, rule.why)
				}
			}
			if allowed, ok := onlyFrom[s.pkg]; ok && isOurs && !withinAny(ours, allowed) {
				t.Errorf("%s imports %s; %s may import only %v", s.path, path, s.pkg, allowed)
			}
			if who, ok := onlyIn[path]; ok && !slices.Contains(who, s.pkg) {
				t.Errorf("%s imports %s, which only %v may", s.path, path, who)
			}
			if allowed, ok := standardOnly[s.pkg]; ok && !isOurs && strings.Contains(path, ".") &&
				!slices.Contains(allowed, path) {
				t.Errorf("%s imports %s; %s has only the standard library and %v", s.path, path, s.pkg, allowed)
			}
		}
	}
}

func TestEveryPackageHasOneComment(t *testing.T) {
	docs := map[string]int{}
	for _, s := range sources(t) {
		docs[s.pkg] += 0
		if s.file.Doc != nil {
			docs[s.pkg]++
		}
	}
	for pkg, n := range docs {
		if n != 1 {
			t.Errorf("package %s has %d comments, not 1", pkg, n)
		}
	}
}

func TestFilesAndFunctionsAreOfASizeToBeRead(t *testing.T) {
	for _, s := range sources(t) {
		lines, limit := s.set.File(s.file.FileStart).LineCount(), maxFileLines
		if s.path == "main.go" {
			limit = maxMainLines
		}
		if lines > limit {
			t.Errorf("%s has %d lines; want at most %d", s.path, lines, limit)
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := s.set.Position(f.End()).Line - s.set.Position(f.Pos()).Line + 1; n > maxFunctionLines {
				t.Errorf("%s: %s has %d lines; want at most %d", s.path, f.Name.Name, n, maxFunctionLines)
			}
		}
	}
}

// TestSettingsAreDefinedInAddFlags: a setting has one place, and is true or false, never unset.
func TestSettingsAreDefinedInAddFlags(t *testing.T) {
	defines := regexp.MustCompile(`^(String|StringSlice|Int|Bool|Duration)?VarP?$`)
	commands := onlyIn["github.com/spf13/cobra"] // their own flags are no settings
	for _, s := range sources(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			if star, ok := n.(*ast.StarExpr); ok {
				if x, ok := star.X.(*ast.Ident); ok && x.Name == "bool" {
					t.Errorf("%s: *bool: a setting has a default", s.set.Position(star.Pos()))
				}
			}
			return true
		})
		if slices.Contains(commands, s.pkg) && s.pkg != "admission/cluster" {
			continue
		}
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || strings.HasPrefix(f.Name.Name, "Add") || f.Name.Name == "FileOnly" {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					if sel, ok := call.Fun.(*ast.SelectorExpr); ok && defines.MatchString(sel.Sel.Name) &&
						len(call.Args) >= 3 &&
						s.pkg != "admission/cluster" {
						t.Errorf("%s: a setting outside of AddFlags", s.set.Position(call.Pos()))
					}
				}
				return true
			})
		}
	}
}

func TestPackagesBelowMainDoNotPrintOrLog(t *testing.T) {
	for _, s := range sources(t) {
		if s.file.Name.Name == "main" {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if call, ok := n.(*ast.SelectorExpr); ok {
				x, ok := call.X.(*ast.Ident)
				if ok &&
					(x.Name == "fmt" && strings.HasPrefix(call.Sel.Name, "Print") ||
						x.Name == "log" && (strings.HasPrefix(call.Sel.Name, "Print") ||
							strings.HasPrefix(call.Sel.Name, "Fatal")) ||
						x.Name == "os" && call.Sel.Name == "Exit") {
					t.Errorf("%s: %s.%s: return an error instead", s.path, x.Name, call.Sel.Name)
				}
			}
			return true
		})
	}
}

// settingsOf reads the rows of a table of settings: key and default.
func settingsOf(t *testing.T, text string) map[string]string {
	t.Helper()
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)`[^|]*\\|([^|]*)\\|")
	all := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		all[m[1]] = strings.Trim(m[2], " `")
	}
	return all
}

// TestTheSettingsAreDocumented: registry/README.md has the table that trow settings prints, and README.md some of its
// rows.
func TestTheSettingsAreDocumented(t *testing.T) {
	code, table, errOut := command(t, "", "settings", "--markdown")
	if code != 0 || strings.Count(table, "\n") < 50 {
		t.Fatalf("code %d: %s%s", code, table, errOut)
	}
	read := func(path string) string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if !strings.Contains(read("registry/README.md"), table) {
		t.Errorf("registry/README.md does not have this table:\n%s", table)
	}
	all, readme := settingsOf(t, table), read("README.md")
	some := settingsOf(t, readme)
	if len(some) < 10 || len(some) > 14 {
		t.Errorf("README.md lists %d settings; want about a dozen", len(some))
	}
	for key, value := range some {
		if want, ok := all[key]; !ok || value != want {
			t.Errorf("README.md: %s has the default %q; want %q", key, value, want)
		}
	}
	if n := strings.Count(readme, "\n"); n > 200 {
		t.Errorf("README.md has %d lines; want at most 200", n)
	}
}
