package commands_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"trow/admission/check"
	"trow/registry/admin"
	"trow/registry/admin/commands"
	"trow/registry/auth"
	"trow/registry/maintenance"
	"trow/registry/retention"
	"trow/storage"
)

// server is a server of jobs, with a record of what it was asked.
type server struct {
	*testing.T
	dir   string
	mu    sync.Mutex
	asked []string // job?query; guarded by mu

	handler http.Handler // of newRegistry
}

// newServer serves jobs on the socket of a new data directory. The jobs' JSON is written out in the tests: it is what
// other versions of the commands and of the server speak.
func newServer(t *testing.T, jobs map[string]admin.Job) *server {
	t.Helper()
	s := &server{T: t, dir: t.TempDir()}
	mux := http.NewServeMux()
	for name, job := range jobs {
		mux.Handle("/admin/"+name, job)
	}
	s.serve(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		q := req.URL.Query()
		q.Del("expires") // depends on the time
		s.mu.Lock()
		s.asked = append(s.asked, strings.TrimPrefix(req.URL.Path, "/admin/")+"?"+q.Encode())
		s.mu.Unlock()
		mux.ServeHTTP(w, req)
	}))
	return s
}

func (s *server) serve(h http.Handler) {
	s.Helper()
	l, err := admin.Listen(s.dir)
	if err != nil {
		s.Fatal(err)
	}
	hs := &http.Server{Handler: h}
	go hs.Serve(l)
	s.Cleanup(func() { hs.Close() })
}

func (s *server) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *server) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = nil
}

// run runs a command as main does, with the data directory of s.
func (s *server) run(stdin string, args ...string) (stdout, stderr string, err error) {
	s.Helper()
	return run(s.T, s.dir, stdin, args...)
}

func run(t *testing.T, dir, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut bytes.Buffer
	p := commands.Program{
		Servers: []string{"registry.example:31000"},
		Cluster: check.Cluster{},
		DataDir: func(cmd *cobra.Command) func() (string, error) {
			at := cmd.Flags().String("data-dir", dir, "")
			cmd.Flags().StringP("config", "c", "", "")
			return func() (string, error) {
				if *at == "" {
					return "", errors.New("no data directory")
				}
				return *at, nil
			}
		},
		Engines: func(cmd *cobra.Command) func() (maintenance.Engines, error) {
			var o maintenance.Engines
			o.AddEngineFlags(cmd.Flags())
			cmd.Flags().StringP("config", "c", "", "")
			return func() (maintenance.Engines, error) {
				if !cmd.Flags().Changed("data-dir") {
					o.DataDir = dir
				}
				return o, nil
			}
		},
		Policy: func(*cobra.Command) (*auth.Policy, func(string, []string) (*auth.Identity, error), error) {
			p, err := auth.Compile([]auth.Rule{{Who: []string{"user:alice"}, May: []string{"push"},
				Repositories: []string{"team/**"}}},
				auth.PolicyOptions{})
			return p, (&auth.Options{User: "root"}).Impersonate, err
		},
	}
	root := &cobra.Command{Use: "trow", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(p.Commands()...)
	commands.Arrange(root)
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&errOut)
	err = root.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

// want runs a command that must succeed with exactly this output, and must have asked the server for asked.
func (s *server) want(stdout, stderr, asked string, args ...string) {
	s.Helper()
	s.forget()
	out, errOut, err := s.run("", args...)
	if err != nil {
		s.Fatalf("%v: %v", args, err)
	}
	if out != stdout || errOut != stderr {
		s.Errorf("%v: printed\n%s%s\nwant\n%s%s", args, out, errOut, stdout, stderr)
	}
	if got := strings.Join(s.questions(), " "); got != asked {
		s.Errorf("%v: asked the server for %s, want %s", args, got, asked)
	}
}

// wantError runs a command that must fail with text in its error, without asking the server for anything.
func (s *server) wantError(text string, args ...string) {
	s.Helper()
	s.forget()
	_, _, err := s.run("", args...)
	no := errors.Is(err, commands.ErrDamaged) || errors.Is(err, commands.ErrDenied)
	if err == nil || no || !strings.Contains(err.Error(), text) {
		s.Errorf("%v: error %v, want %q", args, err, text)
	}
	if asked := s.questions(); len(asked) > 0 {
		s.Errorf("%v: asked the server for %v", args, asked)
	}
}

// answer is a job that reports progress and returns done; both are JSON as a server of any version sends it.
func answer(done string, progress ...string) admin.Job {
	return func(_ context.Context, _ url.Values, report func(any)) (any, error) {
		for _, p := range progress {
			report(json.RawMessage(p))
		}
		return json.RawMessage(done), nil
	}
}

func fails(context.Context, url.Values, func(any)) (any, error) {
	return nil, errors.New("the disk is full")
}

func TestGC(t *testing.T) {
	s := newServer(t, map[string]admin.Job{"gc": answer(
		`{"repositories":1,"unlinked":2,"blobs":10,"deleted":3,"freed":1572864}`,
		`{"repositories":1,"blobs":7,"freed":1024}`)})
	const progress = "Checked 1 repository and 7 blobs; 1.0 KiB to free\n"
	s.want("Freed 1.5 MiB: deleted 3 of 10 blobs; unlinked 2 in 1 repository.\n", progress, "gc?", "gc")
	s.want("Freed 1.5 MiB: deleted 3 of 10 blobs; unlinked 2 in 1 repository.\n", progress, "gc?", "gc", "--now")
	s.want("Would free 1.5 MiB: would delete 3 of 10 blobs; would unlink 2 in 1 repository.\n", progress,
		"gc?dry-run=&grace=10m", "gc", "--dry-run", "--grace=10m")
	s.wantError("exclude each other", "gc", "--dry-run", "--now")
	s.wantError("got 1 argument (", "gc", "everything")
	if out, _, err := s.run("", "gc", "--help"); err != nil || strings.Contains(out, "--now") {
		t.Errorf("the help lists --now, which does nothing: %v, %s", err, out)
	}
	s = newServer(t, map[string]admin.Job{"gc": answer(`{"waiting":true}`)})
	out, _, err := s.run("", "gc")
	if err != nil || !strings.Contains(out, "\nUnlinked nothing: the server has run for less than the grace period") {
		t.Errorf("a server that has just started: %v, %s", err, out)
	}
}

func TestTheProgressOfTheCollectorIsPrinted(t *testing.T) {
	s := newServer(t, map[string]admin.Job{"gc": func(_ context.Context, _ url.Values, report func(any)) (any, error) {
		report(maintenance.Waits{For: "trow-1", Does: "collects"})
		report(storage.Collected{Repos: 2, Blobs: 1, Freed: 5})
		return storage.Collected{Repos: 2, Blobs: 1}, nil
	}})
	s.want("Freed 0 B: deleted 0 of 1 blob; unlinked 0 in 2 repositories.\n",
		"Waiting for trow-1, which collects\nChecked 2 repositories and 1 blob; 5 B to free\n", "gc?", "gc")
}

func TestRetention(t *testing.T) {
	d := digest.FromString("a manifest")
	job := func(_ context.Context, _ url.Values, report func(any)) (any, error) {
		report(retention.Removal{Repo: "ci", Tag: "v1", Digest: d, Why: "old"})
		report(retention.Removal{Repo: "ci", Digest: d, Why: "untagged"})
		return maintenance.Retained{Removed: 2, Rules: true}, nil
	}
	s := newServer(t, map[string]admin.Job{"retention": job})
	list := "ci:v1: old\nci@" + d.String() + ": untagged\n"
	s.want(list+"Removed 2 tags and manifests.\n", "", "retention?", "retention")
	s.want(list+"Would remove 2 tags and manifests.\n", "", "retention?dry-run=", "retention", "--dry-run")
	s = newServer(t, map[string]admin.Job{"retention": answer(`{"removed":1,"rules":true}`)})
	s.want("Removed 1 tag or manifest.\n", "", "retention?", "retention")
	s = newServer(t, map[string]admin.Job{"retention": answer(`{"removed":0,"rules":false}`)})
	s.want("No rules: the setting retention is empty, so everything is kept.\n", "", "retention?", "retention")
}

func TestScrub(t *testing.T) {
	s := newServer(t, map[string]admin.Job{"scrub": answer(
		`{"contents":3,"blobs":3,"bytes":2048,"damaged":0,"healed":1,"failed":0,"damages":{}}`,
		`{"contents":3,"blobs":1,"bytes":512}`)})
	s.want("Read 3 blobs and manifests, 2.0 KiB: 0 damaged, 1 healed, 0 unreadable.\n",
		"Read 1 of 3 blobs and manifests, 512 B\n", "scrub?rate=16Mi", "scrub", "--rate=16Mi")
	s = newServer(t, map[string]admin.Job{"scrub": answer(
		`{"contents":3,"total":2048,"blobs":3,"bytes":2048,"damaged":0,"healed":0,"failed":0,"damages":{}}`,
		`{"contents":3,"total":2048,"blobs":0,"bytes":0}`)})
	s.want("Read 3 blobs and manifests, 2.0 KiB: 0 damaged, 0 healed, 0 unreadable.\n",
		"Reading 3 blobs and manifests, 2.0 KiB\n", "scrub?read=", "scrub", "--read")
	s = newServer(t, map[string]admin.Job{"scrub": answer(
		`{"contents":3,"total":2048,"listed":true,"blobs":3,"bytes":0,"damages":{}}`,
		`{"contents":3,"total":2048,"listed":true,"blobs":1,"bytes":0}`)})
	s.want("Compared names and sizes of 3 blobs and manifests with the list of the service, and read 0 B: 0 damaged, "+
		"0 healed, 0 unreadable.\ntrow scrub --read reads all of it, 2.0 KiB.\n",
		"Compared 1 of 3 blobs and manifests, and read 0 B\n", "scrub?", "scrub")
	d := digest.FromString("damaged")
	s = newServer(t, map[string]admin.Job{"scrub": func(context.Context, url.Values, func(any)) (any, error) {
		return maintenance.Found{Scrubbed: storage.Scrubbed{Blobs: 1},
			Damages: map[digest.Digest]storage.Damage{d: {Reason: "it is missing"}}}, nil
	}})
	// Damage that an earlier scrub found counts as well.
	out, _, err := s.run("", "scrub")
	if !errors.Is(err, commands.ErrDamaged) || !strings.Contains(out, "\ndamaged  "+d.String()+": it is missing\n") ||
		!strings.Contains(out, "push the images") {
		t.Errorf("damage: %v, %s", err, out)
	}
}

func TestAJobThatFails(t *testing.T) {
	jobs := map[string]admin.Job{}
	for _, name := range []string{"gc", "retention", "scrub", "token-create", "token-list", "token-revoke", "can-i"} {
		jobs[name] = fails
	}
	s := newServer(t, jobs)
	for _, args := range [][]string{{"gc"}, {"retention"}, {"scrub"}, {"token", "create", "ci", "--repository=a"},
		{"token", "list"},
		{"token", "revoke", "ci"}, {"can-i", "pull", "a"}, {"pull-secret"}} {
		out, _, err := s.run("", args...)
		if err == nil || err.Error() != "the disk is full" || out != "" {
			t.Errorf("%v: error %v, output %q", args, err, out)
		}
		if _, _, err := run(t, t.TempDir(), "", args...); err == nil ||
			!strings.Contains(err.Error(), "no server runs on") {
			t.Errorf("%v without a server: %v", args, err)
		}
		if _, _, err := run(t, "", "", args...); err == nil || err.Error() != "no data directory" {
			t.Errorf("%v without a data directory: %v", args, err)
		}
	}
}

func TestProgressThatIsNotUnderstoodEndsTheCommand(t *testing.T) {
	s := newServer(t, map[string]admin.Job{"gc": answer(`{}`, `{"freed":"much"}`)})
	if out, _, err := s.run("", "gc"); err == nil || out != "" {
		t.Errorf("error %v, output %q", err, out)
	}
}

func TestTokenCreate(t *testing.T) {
	var expires string
	create := func(_ context.Context, q url.Values, _ func(any)) (any, error) {
		done := `{"name":"` + q.Get("name") + `","secret":"trow_s"}`
		if q.Get("name") == "plain" {
			done = strings.Replace(done, "}", `,"warning":"no-tls: in the clear"}`, 1)
		}
		if expires = q.Get("expires"); expires != "" {
			done = strings.Replace(done, "}", `,"expires":"`+expires+`"}`, 1)
		}
		return json.RawMessage(done), nil
	}
	s := newServer(t, map[string]admin.Job{"token-create": create})
	s.want("trow_s\n", "Token of robot ci, valid until revoked. It cannot be shown again.\n",
		"token-create?action=pull&action=push&name=ci&repository=team%2F%2A%2A&repository=b",
		"token", "create", "ci", "--repository=team/**,b", "--actions=pull,push", "--expires=never")
	s.want("trow_s\n", "warning: no-tls: in the clear\nToken of robot plain, valid until revoked. It cannot be shown "+
		"again.\n",
		"token-create?action=pull&name=plain&repository=a", "token", "create", "plain", "--repository=a",
		"--expires=never")
	out, errOut, err := s.run("", "token", "create", "ci", "--repository=a")
	at, terr := time.Parse(time.RFC3339, expires)
	if left := time.Until(at); err != nil || terr != nil || left < 89*24*time.Hour || left > 90*24*time.Hour {
		t.Errorf("expires %q, %v, %v; want in 90 days", expires, err, terr)
	}
	if out != "trow_s\n" || errOut != "Token of robot ci, valid until "+expires+". It cannot be shown again.\n" {
		t.Errorf("printed %s%s", out, errOut)
	}
	s.wantError(`expires: "soon" is not a valid duration`, "token", "create", "ci", "--repository=a", "--expires=soon")
	s.wantError(`expires: "0h" is not a valid duration`, "token", "create", "ci", "--repository=a", "--expires=0h")
	s.wantError("repository", "token", "create", "ci")
	s.wantError("got no argument; want: trow ", "token", "create", "--repository=a")
}

func TestTokenList(t *testing.T) {
	s := newServer(t, map[string]admin.Job{"token-list": answer(`[
		{"name":"ci","repositories":["team/**","b"],"actions":["pull","push"],"created":"2026-01-02T03:04:05Z"},
		{"name":"old","repositories":["**"],"actions":["pull"],
			"created":"2020-01-02T03:04:05Z","expires":"2020-02-01T00:00:00Z"},
		{"name":"new","repositories":["**"],"actions":["pull"],
			"created":"2020-01-02T03:04:05Z","expires":"2999-01-01T00:00:00Z"}]`)})
	s.want(`NAME  REPOSITORIES  ACTIONS    CREATED           VALIDITY
ci    team/**,b     pull,push  2026-01-02 03:04  until revoked
old   **            pull       2020-01-02 03:04  expired 2020-02-01 00:00
new   **            pull       2020-01-02 03:04  until 2999-01-01 00:00
`, "", "token-list?", "token", "list")
	s = newServer(t, map[string]admin.Job{"token-list": answer(`[]`)})
	s.want("NAME  REPOSITORIES  ACTIONS  CREATED  VALIDITY\n", "", "token-list?", "token", "list")
	s.wantError("got 1 argument (", "token", "list", "ci")
}

func TestTokenRevoke(t *testing.T) {
	s := newServer(t, map[string]admin.Job{"token-revoke": answer(`{"name":"ci"}`)})
	s.want("Robot ci revoked.\n", "", "token-revoke?name=ci", "token", "revoke", "ci")
	s.wantError("got no argument; want: trow ", "token", "revoke")
}

func TestCanI(t *testing.T) {
	s := newServer(t, map[string]admin.Job{"can-i": func(_ context.Context, q url.Values, _ func(any)) (any, error) {
		return auth.Explanation{Allowed: q.Get("as") == "alice", Why: "rule 1 decides"}, nil
	}})
	s.want("yes: rule 1 decides\n", "", "can-i?action=push&as=alice&group=a&group=b&repository=team%2Fapp",
		"can-i", "push", "team/app", "--as=alice", "--as-group=a,b")
	if out, _, err := s.run("", "can-i", "catalog"); !errors.Is(err, commands.ErrDenied) ||
		out != "no: rule 1 decides\n" {
		t.Errorf("error %v, output %q; want ErrDenied and no", err, out)
	}
	if want := "can-i?action=catalog&as=&repository="; !slices.Contains(s.questions(), want) {
		t.Errorf("asked the server for %v, want %s", s.questions(), want)
	}
	s.wantError("push needs a repository", "can-i", "push")
	s.wantError("admin applies to the whole registry", "can-i", "admin", "team/app")
	s.wantError(`action: "fly"`, "can-i", "fly", "team/app")
	s.wantError("got no argument; want: trow can-i ACTION", "can-i")
}

func TestCanIByAConfigurationFile(t *testing.T) {
	s := newServer(t, nil) // nothing may be asked of it
	for _, c := range []struct {
		want string
		args []string
	}{
		{"yes: ", []string{"push", "team/app", "--as=alice"}},
		{"no: ", []string{"push", "other", "--as=alice"}},
		{"no: ", []string{"push", "team/app"}},
		{"yes: ", []string{"delete", "other", "--as=root"}},
	} {
		out, _, err := s.run("", append([]string{"can-i", "--config=trow.yaml"}, c.args...)...)
		var want error
		if c.want == "no: " {
			want = commands.ErrDenied
		}
		if !strings.HasPrefix(out, c.want) || !errors.Is(err, want) {
			t.Errorf("%v: error %v, output %q; want %s", c.args, err, out, c.want)
		}
	}
	s.wantError("only the server knows", "can-i", "pull", "a", "--as=robot:ci", "-c", "trow.yaml")
}

func TestPullSecret(t *testing.T) {
	create := func(_ context.Context, q url.Values, _ func(any)) (any, error) {
		return auth.CreatedRobot{Robot: auth.Robot{Name: q.Get("name")}, Secret: "trow_s"}, nil
	}
	s := newServer(t, map[string]admin.Job{"token-create": create})
	out, errOut, err := s.run("", "pull-secret", "--namespace=team-a", "--repository=team-a/**")
	if err != nil || errOut != "The Secret has the token of robot pull-team-a, valid until revoked.\n" {
		t.Errorf("error %v, %s", err, errOut)
	}
	want := "token-create?action=pull&name=pull-team-a&repository=team-a%2F%2A%2A"
	if !slices.Equal(s.questions(), []string{want}) {
		t.Errorf("asked the server for %v, want %s", s.questions(), want)
	}
	wantSecret(t, out, "team-a", "regcred",
		`{"auths":{"registry.example:31000":{"password":"trow_s","username":"pull-team-a"}}}`)

	out, _, err = s.run("", "pull-secret", "--robot=web", "--name=web", "--server=a.example", "--server=127.0.0.1:5000")
	if err != nil {
		t.Error(err)
	}
	wantSecret(t, out, "default", "web", `{"auths":{"127.0.0.1:5000":{"password":"trow_s","username":"web"},`+
		`"a.example":{"password":"trow_s","username":"web"}}}`)

	for _, args := range [][]string{{"pull-secret", "--replace"}, {"token", "create", "x", "--repository=a",
		"--replace"}} {
		s.questions()
		if _, _, err := s.run("", args...); err != nil {
			t.Error(err)
		}
		if asked := s.questions(); !strings.HasSuffix(asked[len(asked)-1], "&replace=true") &&
			!strings.Contains(asked[len(asked)-1], "&replace=true&") {
			t.Errorf("%v: asked the server for %v", args, asked)
		}
	}
	s.wantError("replace", "pull-secret", "--replace", "--user=u", "--password-file=-")

	// No robot is created for a Secret that would be refused.
	s.wantError("server: ", "pull-secret", "--server=a/b")
	s.wantError("namespace: ", "pull-secret", "--namespace=A")
	s.wantError("name: ", "pull-secret", "--name=A B")
	s.wantError("got 1 argument (", "pull-secret", "team-a")
}

func TestPullSecretOfAUser(t *testing.T) {
	rights := func(_ context.Context, q url.Values, _ func(any)) (any, error) {
		if q.Get("action") != "admin" || q.Get("as") == "absent" {
			return nil, errors.New("user does not exist")
		}
		return auth.Explanation{Allowed: q.Get("as") == "root", Why: "rule 3 decides"}, nil
	}
	s := newServer(t, map[string]admin.Job{auth.JobExplain: rights})
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("from a file\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{"-": "from stdin", file: "from a file"} {
		out, errOut, err := s.run("from stdin\n", "pull-secret", "--user=alice", "--password-file="+from)
		if err != nil || errOut != "" {
			t.Errorf("%s: error %v, %s", from, err, errOut)
		}
		wantSecret(t, out, "default", "regcred",
			`{"auths":{"registry.example:31000":{"password":"`+want+`","username":"alice"}}}`)
	}
	if out, _, err := s.run("x\n", "pull-secret", "--user=root", "--password-file=-"); err == nil || out != "" ||
		!strings.Contains(err.Error(), "root may administer the registry (rule 3 decides)") ||
		!strings.Contains(err.Error(), "omit --user") {
		t.Errorf("a user who may administer: %s %v", out, err)
	}
	for name, row := range map[string]struct {
		args []string
		want string
	}{
		"a user who is not known": {[]string{"--user=absent"}, "user does not exist"},
		"no server in this directory": {[]string{"--user=alice", "--data-dir=" + t.TempDir()},
			"cannot find out whether alice may administer"},
		"a server that does not answer": {[]string{"--user=alice", "--server=http://127.0.0.1:1"},
			"connection refused"},
	} {
		args := append([]string{"pull-secret", "--password-file=-"}, row.args...)
		if out, _, err := s.run("x\n", args...); err == nil || out != "" || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s.wantError("actions: admin: ", "pull-secret", "--actions=pull,admin")
	s.wantError("is empty", "pull-secret", "--user=alice", "--password-file=-")
	s.wantError("no such file", "pull-secret", "--user=alice", "--password-file="+file+".none")
	s.wantError("more than 65536 bytes", "pull-secret", "--user=alice", "--password-file="+large)
	s.wantError("--user needs --password-file as well", "pull-secret", "--user=alice")
	s.wantError("exclude each other", "pull-secret", "--user=alice", "--robot=r", "--password-file=-")
}

func wantSecret(t *testing.T, text, namespace, name, config string) {
	t.Helper()
	var got struct {
		APIVersion, Kind, Type string
		Metadata               struct{ Name, Namespace string }
		StringData             map[string]string
	}
	if err := yaml.UnmarshalStrict([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	if got.APIVersion != "v1" || got.Kind != "Secret" || got.Type != "kubernetes.io/dockerconfigjson" ||
		got.Metadata.Name != name || got.Metadata.Namespace != namespace {
		t.Errorf("printed %s; want a Secret %s/%s", text, namespace, name)
	}
	if got.StringData[".dockerconfigjson"] != config {
		t.Errorf("credentials %s, want %s", got.StringData[".dockerconfigjson"], config)
	}
}
