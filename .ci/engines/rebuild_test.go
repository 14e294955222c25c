package engines

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	clientv3 "go.etcd.io/etcd/client/v3"

	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/s3"
)

// The program loses its journal, or gets an older one, as its administrator would see it.

const adminPassword = "a-password-of-the-tests"

// server is trow serve with the settings of a file, which the other commands read as well.
type server struct {
	t       *testing.T
	dir     string // of the file and the data
	url     string
	gateway *gateway
	env     []string
	log     buffer
	cmd     *exec.Cmd
}

// buffer is a bytes.Buffer that a process may write to meanwhile.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// newServer makes the settings of a server with its bytes in S3. journal is empty for the data directory.
func newServer(t *testing.T, g *gateway, journal string) *server {
	t.Helper()
	address := freeAddr(t)
	s := &server{t: t, dir: t.TempDir(), url: "http://" + address, gateway: g}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "TROW_") {
			s.env = append(s.env, e)
		}
	}
	s.write("password", adminPassword)
	s.write("trow.yaml", fmt.Sprintf("listen: %s\ndata-dir: %s\nno-tls: true\nuser: admin\npassword-file: %s\n"+
		"journal: %q\nblobs: %q\ngc-interval: 1s\nscrub-interval: 0s\n"+
		"quotas: [{repositories: [\"team/**\"], bytes: 1Gi}]\n", address, s.data(),
		filepath.Join(s.dir, "password"), journal,
		s.blobs()))
	t.Cleanup(func() {
		s.stop(syscall.SIGKILL)
		if t.Failed() {
			log := s.log.String()
			t.Logf("the end of the log:\n%s", log[max(0, len(log)-5000):])
		}
	})
	return s
}

func (s *server) data() string { return filepath.Join(s.dir, "data") }

func (s *server) blobs() string {
	return "s3://bucket/trow?path-style=true&region=us-east-1&endpoint=" + url.QueryEscape(s.gateway.endpoint)
}

func (s *server) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// command makes a command of the program.
func (s *server) command(args ...string) *exec.Cmd {
	s.t.Helper()
	program := os.Getenv("ENGINES_TROW")
	if program == "" {
		s.t.Fatal("ENGINES_TROW does not name the program; run bash .ci/run engines")
	}
	cmd := exec.Command(program, append(args, "--config", filepath.Join(s.dir, "trow.yaml"))...)
	cmd.Env = s.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// trow runs a command, which must end with a code and say something.
func (s *server) trow(code int, want string, args ...string) (stdout string) {
	s.t.Helper()
	var out, errOut bytes.Buffer
	cmd := s.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(out.String()+errOut.String(), want) {
		s.t.Fatalf("trow %s: %v, want code %d and %q:\n%s%s", strings.Join(args, " "), err, code, want, &out, &errOut)
	}
	return out.String()
}

func (s *server) start() {
	s.t.Helper()
	s.cmd = s.command("serve")
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.await("it is ready", func() bool {
		resp, err := http.Get(s.url + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

func (s *server) stop(signal syscall.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(signal)
	_ = s.cmd.Wait()
	s.cmd = nil
}

// await waits for at most two minutes.
func (s *server) await(what string, is func() bool) {
	s.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not within two minutes: %s", what)
		}
	}
}

// do sends a request as the administrator, or with another Authorization.
func (s *server) do(method, path, body string, header ...string) (int, http.Header, string) {
	s.t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = s.url + path
	}
	header = append([]string{"Authorization", login()}, header...)
	resp, got := request(s.t, http.DefaultClient, method, path, []byte(body), header...)
	return resp.StatusCode, resp.Header, string(got)
}

func (s *server) want(status int, method, path, body string, header ...string) string {
	s.t.Helper()
	got, _, text := s.do(method, path, body, header...)
	if got != status {
		s.t.Fatalf("%s %s: %d, want %d: %s", method, path, got, status, text)
	}
	return text
}

// push pushes an image with a layer of a size.
func (s *server) push(repo, tag, layer string) digest.Digest {
	s.t.Helper()
	for _, blob := range []string{"{}", layer} {
		s.want(201, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+digest.FromString(blob).String(), blob)
	}
	m := fmt.Sprintf(
		`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json",`+
			`"digest":%q,"size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar",`+
			`"digest":%q,"size":%d}]}`,
		manifestType, digest.FromString("{}"), digest.FromString(layer), len(layer))
	s.want(201, "PUT", "/v2/"+repo+"/manifests/"+tag, m, "Content-Type", manifestType)
	return digest.FromString(m)
}

// ready returns the lines of readyz.
func (s *server) ready() string { return s.want(200, "GET", "/readyz?verbose", "") }

// metric returns the value of a metric as it is written.
func (s *server) metric(name string) string {
	s.t.Helper()
	m := regexp.MustCompile(`(?m)^` + name + `(\{.*\})? (.*)$`).FindStringSubmatch(s.want(200, "GET", "/metrics", ""))
	if m == nil {
		s.t.Fatalf("there is no metric %s", name)
	}
	return m[2]
}

// token logs a robot in.
func (s *server) token(secret string) string {
	s.t.Helper()
	_, h, _ := s.do("GET", "/v2/team/app/tags/list", "", "Authorization", "")
	m := regexp.MustCompile(`realm="([^"]*)",service="([^"]*)"`).FindStringSubmatch(h.Get("WWW-Authenticate"))
	if m == nil {
		s.t.Fatalf("the challenge is %q", h.Get("WWW-Authenticate"))
	}
	req, _ := http.NewRequest("GET", "/", nil)
	req.SetBasicAuth("ci", secret)
	text := s.want(200, "GET", m[1]+"?"+url.Values{"service": {m[2]}, "scope": {"repository:team/app:pull"}}.Encode(),
		"",
		"Authorization", req.Header.Get("Authorization"))
	var answer struct{ Token string }
	if err := json.Unmarshal([]byte(text), &answer); err != nil || answer.Token == "" {
		s.t.Fatalf("no token: %s, %v", text, err)
	}
	return answer.Token
}

// copies returns the copies of the facts beside the bytes, the newest first.
func (s *server) copies() (all []storage.Copy) {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.gateway.dir, "bucket", "trow", "facts"))
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	for _, e := range slices.Backward(entries) {
		if c, ok := storage.ParseCopy(e.Name()); ok {
			all = append(all, c)
		}
	}
	return all
}

// awaitCopy waits for the first copy, which is made a minute after the start, and has what was pushed until then.
func (s *server) awaitCopy() storage.Copy {
	s.t.Helper()
	s.await("a copy of the facts appears", func() bool { return len(s.copies()) > 0 })
	return s.copies()[0]
}

// objects counts what lies in S3.
func (s *server) objects() (n int) {
	s.t.Helper()
	err := filepath.WalkDir(filepath.Join(s.gateway.dir, "bucket", "trow", "objects"),
		func(_ string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				n++
			}
			return err
		})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// known is what clients see of a journal and the bytes; see holds.
func (s *server) known(j storage.Journal) map[string]string {
	s.t.Helper()
	o, err := s3.ParseURL(s.blobs())
	if err != nil {
		s.t.Fatal(err)
	}
	return holds(s.t, side(s.t, "", j, true, func(x *storage.Index) storage.Blobs {
		o.Records = x
		return open(s.t, o)
	}))
}

// fill pushes what the tests lose, and returns the secret of a robot.
func (s *server) fill() (secret string) {
	s.t.Helper()
	for _, tag := range []string{"1.10", "1.9", "latest", "1.9.1"} { // not in the order of their names
		s.push("team/app", tag, "layer of "+tag)
	}
	s.push("team/app", "latest", "layer of a later one")
	layer := digest.FromString("layer of 1.9").String()
	s.want(201, "POST", "/v2/team/web/blobs/uploads/?from=team/app&mount="+layer, "")
	s.push("alone", "v", "a layer of its own")
	return strings.TrimSpace(s.trow(0, "", "token", "create", "ci", "--repository", "team/**", "--actions", "pull"))
}

// wantFilled checks what fill has made, on a journal that was rebuilt. token is from before.
func (s *server) wantFilled(secret, token, used string) {
	s.t.Helper()
	if got := s.want(200, "GET", "/v2/team/app/tags/list", ""); got !=
		`{"name":"team/app","tags":["1.10","1.9","1.9.1","latest"]}` {
		s.t.Error(got)
	}
	layer := digest.FromString("layer of 1.9").String()
	if got := s.want(200, "GET", "/v2/team/web/blobs/"+layer, ""); got != "layer of 1.9" {
		s.t.Errorf("the mounted layer is %q", got)
	}
	s.want(404, "HEAD", "/v2/alone/blobs/"+layer, "")
	if got := s.metric("trow_quota_used_bytes"); got != used {
		s.t.Errorf("the quota's usage is %s, and was %s", got, used)
	}
	s.want(401, "GET", "/v2/team/app/tags/list", "", "Authorization", "Bearer "+token)
	s.want(200, "GET", "/v2/team/app/tags/list", "", "Authorization", "Bearer "+s.token(secret))
	if out := s.trow(0, "", "token", "list"); !strings.Contains(out, "ci") {
		s.t.Errorf("the robots are %s", out)
	}
	s.trow(0, "", "gc")
	if text := s.ready(); strings.Contains(text, "collector:") {
		s.t.Error(text)
	}
}

// wantSameFacts compares what there was with what there is, but for one repository.
func wantSameFacts(t *testing.T, before, after map[string]string, but string) {
	t.Helper()
	maps.DeleteFunc(after, func(k, _ string) bool { return strings.Contains(k, but) })
	for _, k := range slices.Sorted(maps.Keys(before)) {
		if before[k] != after[k] {
			t.Errorf("%s: %s became %s", k, before[k], after[k])
		}
	}
	for k := range after {
		if _, ok := before[k]; !ok && !strings.HasPrefix(k, "sha256:") { // the found manifest and its parts
			t.Errorf("%s came: %s", k, after[k])
		}
	}
}

// rebuild runs trow rebuild as its messages say: it reports, asks what becomes of what it finds, and rebuilds.
func (s *server) rebuild(c storage.Copy, found digest.Digest) {
	s.t.Helper()
	dry := s.trow(0, "The facts are from the copy "+c.Name, "rebuild", "--dry-run")
	if !strings.Contains(dry, "Would read ") || !strings.Contains(dry, "3 repositories, 6 manifests, 5 tags") {
		s.t.Errorf("a dry run: %s", dry)
	}
	s.trow(2, "with --recover to put them into recovered", "rebuild")
	if s.cmd = s.command("serve"); s.cmd.Run() == nil || s.cmd.ProcessState.ExitCode() != 2 {
		s.t.Errorf("a server on an unfinished rebuild ended with %v", s.cmd.ProcessState)
	}
	s.cmd = nil
	s.trow(0, "found    recovered@"+found.String(), "rebuild", "--recover")
	s.trow(2, "the journal is not empty", "rebuild", "--recover")
	s.start()
	s.want(200, "GET", "/v2/recovered/manifests/"+found.String(), "", "Accept", manifestType)
	s.want(200, "GET", "/v2/recovered/blobs/"+digest.FromString("a layer of later").String(), "")
}

// TestEtcdIsLost: etcd is empty while the server runs, and trow rebuild brings all back that was in the copy.
func TestEtcdIsLost(t *testing.T) {
	t.Parallel()
	g, c := startGateway(t), startEtcd(t, 1)
	prefix := newPrefix()
	s := newServer(t, g, "etcd://"+strings.Join(c.endpoints(), ",")+"/"+prefix)
	s.start()
	secret := s.fill()
	token, used := s.token(secret), s.metric("trow_quota_used_bytes")
	s.want(200, "GET", "/v2/team/app/tags/list", "", "Authorization", "Bearer "+token)
	before := s.known(c.open(t, prefix))
	facts := s.awaitCopy()
	found := s.push("later", "v", "a layer of later")

	m := c.members[0]
	m.kill()
	if err := os.RemoveAll(filepath.Join(m.dir, "data")); err != nil {
		t.Fatal(err)
	}
	m.start()
	c.await()
	s.await("it is noticed", func() bool { return strings.Contains(s.ready(), "collector: ") })
	objects := s.objects()
	s.stop(syscall.SIGTERM)
	out := s.command("serve")
	text, err := out.CombinedOutput()
	if out.ProcessState.ExitCode() != 2 || !strings.Contains(string(text), "run trow rebuild with the same settings") {
		t.Fatalf("a start with an empty etcd: %v\n%s", err, text)
	}
	t.Logf("a start with an empty etcd: %s", text)
	s.rebuild(facts, found)
	s.wantFilled(secret, token, used)
	if n := s.objects(); n < objects {
		t.Errorf("%d objects of %d are left", n, objects)
	}
	wantSameFacts(t, before, s.known(c.open(t, prefix)), "recovered")
	s.push("team/app", "after", "a layer of after")
}

// TestADirectoryWithTheJournalIsLost, with the bytes in S3.
func TestADirectoryWithTheJournalIsLost(t *testing.T) {
	t.Parallel()
	s := newServer(t, startGateway(t), "")
	s.start()
	secret := s.fill()
	token, used := s.token(secret), s.metric("trow_quota_used_bytes")
	facts := s.awaitCopy()
	s.stop(syscall.SIGTERM)
	known := func() map[string]string {
		j, err := bolt.OpenReadOnly(s.data())
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close() // before a server starts
		return s.known(j)
	}
	before := known()
	s.start()
	found := s.push("later", "v", "a layer of later")
	s.stop(syscall.SIGKILL)
	if err := os.Truncate(filepath.Join(s.data(), "journal.db"), 5000); err != nil {
		t.Fatal(err)
	}
	s.trow(2, "move journal.* and owner out of "+s.data(), "rebuild")
	away := t.TempDir()
	moved, err := filepath.Glob(filepath.Join(s.data(), "journal.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(moved, filepath.Join(s.data(), "owner")) {
		if err := os.Rename(path, filepath.Join(away, filepath.Base(path))); err != nil {
			t.Fatal(err)
		}
	}
	s.rebuild(facts, found)
	s.wantFilled(secret, token, used)
	s.stop(syscall.SIGTERM)
	wantSameFacts(t, before, known(), "recovered")
	s.start()
	s.push("team/app", "after", "a layer of after")
}

// restore puts a snapshot in the place of what a member has, as etcd's documentation says.
func (m *member) restore(snapshot string, flags ...string) {
	m.t.Helper()
	program := os.Getenv("ENGINES_ETCDUTL")
	if program == "" {
		m.t.Fatal("ENGINES_ETCDUTL does not name etcdutl; run bash .ci/run engines")
	}
	value := func(flag string) string { return m.args[slices.Index(m.args, flag)+1] }
	m.kill()
	if err := os.RemoveAll(value("--data-dir")); err != nil {
		m.t.Fatal(err)
	}
	args := append([]string{"snapshot", "restore", snapshot}, flags...)
	for _, flag := range []string{"--name", "--data-dir", "--initial-cluster", "--initial-advertise-peer-urls"} {
		args = append(args, flag, value(flag))
	}
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		m.t.Fatalf("etcdutl: %v\n%s", err, out)
	}
	m.start()
}

// TestEtcdIsRestored from a snapshot: nothing is collected until an administrator says so, and all else goes on.
func TestEtcdIsRestored(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		runs  bool // the server, while etcd is restored
		flags []string
	}{
		"under a server":                      {runs: true},
		"while no server runs":                {},
		"under a server, to higher revisions": {true, []string{"--bump-revision", "1000000", "--mark-compacted"}},
		"while no server runs, to higher revisions": {false,
			[]string{"--bump-revision", "1000000", "--mark-compacted"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, c := startGateway(t), startEtcd(t, 1)
			s := newServer(t, g, "etcd://"+strings.Join(c.endpoints(), ",")+"/"+newPrefix())
			s.start()
			s.push("team/app", "1", "layer 1")
			snapshot, r := filepath.Join(t.TempDir(), "snapshot"), c.snapshot()
			if err := os.WriteFile(snapshot, r, 0o600); err != nil {
				t.Fatal(err)
			}
			for i := range 5 {
				s.push("team/app", fmt.Sprint("lost", i), fmt.Sprint("lost layer ", i))
			}
			var before []storage.Copy
			if !tt.runs {
				s.awaitCopy()
				before = s.copies()
				s.stop(syscall.SIGTERM)
			}
			c.members[0].restore(snapshot, tt.flags...)
			c.await()
			if !tt.runs {
				s.start()
			}
			rests := func() bool {
				return strings.Contains(s.ready(), "[-]collector: ") && strings.Contains(s.ready(), "Run trow gc --all")
			}
			s.await("the collector stops", rests)
			t.Log(regexp.MustCompile(`.*collector: .*`).FindString(s.ready()))
			if got := s.metric("trow_gc_suspended"); got != "1" {
				t.Errorf("trow_gc_suspended is %s", got)
			}
			s.await("the automatic collection says so", func() bool {
				return strings.Contains(s.log.String(), "collect: stopped: ")
			})
			objects := s.objects()
			d := s.push("team/app", "after", "layer after")
			s.want(200, "GET", "/v2/team/app/manifests/after", "", "Accept", manifestType)
			s.want(404, "GET", "/v2/team/app/manifests/lost0", "", "Accept", manifestType)
			s.trow(2, "Run trow gc --all", "gc", "--grace=0")
			s.await("it is recorded", func() bool { return c.holds("journal/went-back") })
			s.stop(syscall.SIGKILL)
			s.start()
			s.await("the collector stops after a restart", rests)
			s.trow(2, "nothing is collected", "gc", "--grace=0")
			if n := s.objects(); n != objects+2 {
				t.Errorf("%d objects became %d, with two pushed", objects, n)
			}
			if got := s.copies(); !slices.Equal(got, before) {
				t.Errorf("the copies %v became %v", before, got)
			}
			s.trow(0, "", "gc", "--all")
			for range 2 { // it stays so
				s.trow(0, "", "gc")
				if text := s.ready(); strings.Contains(text, "collector:") {
					t.Error(text)
				}
				s.stop(syscall.SIGTERM)
				s.start()
			}
			if got := s.copies(); len(got) != len(before)+1 {
				t.Errorf("the copies %v became %v", before, got)
			}
			_, h, _ := s.do("HEAD", "/v2/team/app/manifests/after", "", "Accept", manifestType)
			if h.Get("Docker-Content-Digest") != d.String() {
				t.Errorf("the push is lost: %v", h)
			}
		})
	}
}

// holds reports whether a key of etcd has a text.
func (c *cluster) holds(text string) bool {
	c.t.Helper()
	all, err := c.admin.Get(c.t.Context(), "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, kv := range all.Kvs {
		if bytes.Contains(kv.Key, []byte(text)) {
			return true
		}
	}
	return false
}

// snapshot is what etcdctl snapshot save writes.
func (c *cluster) snapshot() []byte {
	c.t.Helper()
	r, err := c.admin.Snapshot(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}
