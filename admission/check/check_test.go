package check_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"trow/admission"
	"trow/admission/check"
	front "trow/registry/server"
	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/memory"
	"trow/storage/storagetest"
)

const denial = "Remote image docker.io/nginx disallowed as not contained in this registry and not in allow list"

// pods is a file with an image of this registry and one that is denied.
const pods = "testdata/pods.yaml"

// newDataDir returns the data directory of a stopped server that holds app:1.
func newDataDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	journal, err := bolt.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	x, err := storage.OpenIndex(t.Context(), journal, storage.IndexOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	err = x.Update(t.Context(), "app", func(tx *storage.Tx) error {
		m := storage.Manifest{Digest: digest.FromString("x"), MediaType: "application/vnd.oci.image.manifest.v1+json",
			Size: 1}
		if err := tx.PutManifest(m); err != nil {
			return err
		}
		return tx.SetTag("1", m.Digest)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// run runs the command below a root, as the program does.
func run(t *testing.T, settings func(*cobra.Command) (admission.PolicyOptions, error), in string,
	args ...string) (string, error) {
	t.Helper()
	if settings == nil {
		settings = func(*cobra.Command) (admission.PolicyOptions, error) { return admission.PolicyOptions{}, nil }
	}
	root := &cobra.Command{Use: "trow", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(check.Command(func(cmd *cobra.Command) (check.Config, error) {
		o, err := settings(cmd)
		return check.Config{Policy: o}, err
	}))
	root.SetArgs(append([]string{"check"}, args...))
	root.SetIn(strings.NewReader(in))
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestCheckByADataDirectory(t *testing.T) {
	dir, file := newDataDir(t), pods
	for _, flag := range []string{"--data-dir", "--data"} {
		out, err := run(t, nil, "", "-f", file, flag, dir)
		want := fmt.Sprintf("allowed  %[1]s:1 Pod/good\nskipped  %[1]s:5 ConfigMap/c: has no images\n"+
			"denied   %[1]s:9 Deployment/bad: %[2]s\n2 checked, 1 denied\n", file, denial)
		if !errors.Is(err, check.ErrDenied) || out != want {
			t.Errorf("%s: %v\ngot\n%s\nwant\n%s", flag, err, out, want)
		}
	}
	// From standard input, and with a rule that allows the image. The settings are those of the program.
	settings := func(cmd *cobra.Command) (o admission.PolicyOptions, err error) {
		o.AllowDockerOfficial, err = cmd.Flags().GetBool("allow-docker-official")
		return o, err
	}
	content, err := os.ReadFile(pods)
	if err != nil {
		t.Fatal(err)
	}
	out, err := run(t, settings, string(content), "-f", "-", "--data-dir", dir, "--allow-docker-official")
	if err != nil || !strings.Contains(out, "2 checked, 0 denied") || !strings.Contains(out, "nginx names no host") {
		t.Errorf("with a rule: %v\n%s", err, out)
	}
}

// TestCheckMakesNothingInAnEmptyDirectory: it is that of an empty registry.
func TestCheckMakesNothingInAnEmptyDirectory(t *testing.T) {
	dir := t.TempDir()
	out, err := run(t, nil, "", "-f", pods, "-d", dir, "-o", "json")
	if !errors.Is(err, check.ErrDenied) || !strings.Contains(out, `"outcome": "skipped"`) ||
		!strings.Contains(out, `"denied": 2`) {
		t.Errorf("%v: %s", err, out)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 0 {
		t.Errorf("it made %v, %v", all, err)
	}
}

// TestCheckOfAServerOfEtcd: its data directory does not say what it holds, so nothing is decided by it.
func TestCheckOfAServerOfEtcd(t *testing.T) {
	dir := t.TempDir()
	release, err := bolt.LockDirectory(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	out, err := run(t, nil, "", "-f", pods, "-d", dir)
	if err == nil || errors.Is(err, check.ErrDenied) ||
		!strings.Contains(err.Error(), "ask a running server with --server") ||
		out != "" {
		t.Errorf("%v: %s", err, out)
	}
}

// newServer is a server whose webhook wants a token; its verdict comes from a webhook that does not enforce templates.
func newServer(t *testing.T, token string) (url, ca string) {
	t.Helper()
	x := storagetest.OpenIndex(t, memory.NewJournal())
	policy, err := admission.NewPolicy(admission.PolicyOptions{AllowImages: []string{"trow:31000/app:1"}})
	if err != nil {
		t.Fatal(err)
	}
	hook := admission.New(admission.Options{Images: x, Policy: policy, Bodies: front.NewBodies(1 << 30)})
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/validate" || r.Header.Get("Authorization") != token {
			http.Error(w, "no admittance", http.StatusUnauthorized)
			return
		}
		hook.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return server.URL, writeFile(t, string(cert))
}

func TestCheckByAServer(t *testing.T) {
	file := pods
	url, ca := newServer(t, "Bearer secret")
	out, err := run(t, nil, "", "-f", file, "--server", url+"/", "--cacert", ca, "--token-file",
		writeFile(t, "secret\n"))
	if !errors.Is(err, check.ErrDenied) || !strings.Contains(out, "2 checked, 1 denied") ||
		!strings.Contains(out, denial) {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = run(t, nil, "", "-f", file, "--server", url, "--cacert", ca)
	if err == nil || errors.Is(err, check.ErrDenied) ||
		!strings.Contains(err.Error(), "server: 401 Unauthorized: no admittance; name the file of its token") {
		t.Errorf("without the token: %v\n%s", err, out)
	}
}

func TestWhatCannotBeCheckedIsAnError(t *testing.T) {
	dir, file := newDataDir(t), pods
	url, ca := newServer(t, "")
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }))
	defer plain.Close()
	for _, tt := range []struct {
		want string
		args []string
	}{
		{"neither --server nor --data-dir is set", []string{"-f", file}},
		{`"filename" not set`, []string{"--data-dir", dir}},
		{"[data-dir server]", []string{"-f", file, "--data", dir, "--server", url}},
		{"data-dir: ", []string{"-f", file, "--data-dir", dir + "/none"}},
		{"no such file", []string{"-f", dir + "/none.yaml", "--data-dir", dir}},
		{":1:1: not an object", []string{"-f", ca, "--data-dir", dir}},
		{`server: "localhost:8443" is not a valid URL; want https://`,
			[]string{"-f", file, "--server", "localhost:8443"}},
		{`"https:///x" is not a valid URL`, []string{"-f", file, "--server", "https:///x"}},
		{"is this the host and the port of the server, and does it run?",
			[]string{"-f", file, "--server", "http://127.0.0.1:1"}},
		{"contains no certificate", []string{"-f", file, "--server", url, "--cacert", file}},
		{"cacert: ", []string{"-f", file, "--server", url, "--cacert", "/none"}},
		{"token-file: ", []string{"-f", file, "--server", url, "--token-file", "/none"}},
		{"with --cacert", []string{"-f", file, "--server", url}}, // its certificate is not trusted
		{"server: ", []string{"-f", file, "--server", "::"}},
		{"does not answer as a webhook does", []string{"-f", file, "--server", plain.URL}},
	} {
		if out, err := run(t, nil, "", tt.args...); err == nil || errors.Is(err, check.ErrDenied) ||
			!strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %v, want %q\n%s", tt.args, err, tt.want, out)
		}
	}
	if _, err := os.Stat(dir + "/none"); err == nil {
		t.Error("a wrong path was created")
	}
	settings := func(*cobra.Command) (admission.PolicyOptions, error) {
		return admission.PolicyOptions{Default: "x", Allow: []string{"y"}}, nil
	}
	_, err := run(t, settings, "", "-f", file, "--data-dir", dir)
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "default: ") ||
		!strings.Contains(err.Error(), "allow: ") {
		t.Errorf("invalid settings: %v", err)
	}
}

// TestADirectoryIsChecked: files in order, bad ones reported and passed over, links not followed out.
func TestADirectoryIsChecked(t *testing.T) {
	data, dir, outside := newDataDir(t), t.TempDir(), t.TempDir()
	pod := func(name, image string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec: {containers: [{image: '" + image +
			"'}]}\n"
	}
	for name, content := range map[string]string{
		"b/2.yml":     pod("good", "trow:31000/app:1"),
		"a.yaml":      pod("bad", "nginx") + "---\na: [\n---\n" + pod("late", "nginx"),
		"b/1.JSON":    `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"}}`,
		"b/notes.txt": "a: [", ".git/x.yaml": "a: [",
		"c.yaml": "apiVersion: a.b/v1\nkind: X\nmetadata: {name: x}\nspec: {image: x}\n",
		"d.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: kube-system}\n" +
			"spec: {containers: [{image: x}]}\n" +
			"---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: csi}\nspec: {containers: [{image: x}]}\n" +
			"---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: cni}\nspec: {containers: [{image: x}]}\n",
	} {
		path := filepath.Join(dir, name)
		_ = os.MkdirAll(filepath.Dir(path), 0o700) // the file cannot be written without it
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(outside, "secret.yaml")
	err := errors.Join(os.WriteFile(secret, []byte(pod("outside", "nginx")), 0o600),
		os.Symlink(secret, filepath.Join(dir, "e.yaml")), os.Symlink(outside, filepath.Join(dir, "f.yaml")),
		os.Symlink(outside, filepath.Join(dir, "g")), os.Symlink("b/2.yml", filepath.Join(dir, "h.yaml")),
		os.Symlink("..", filepath.Join(dir, "b", "loop")))
	if err != nil {
		t.Fatal(err)
	}
	root := &cobra.Command{Use: "trow", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(check.Command(func(*cobra.Command) (check.Config, error) {
		return check.Config{Exempt: []string{"csi"}}, nil
	}))
	root.SetArgs([]string{"check", "-f", dir, "--data-dir", data, "--exempt-namespace", "cni"})
	var b bytes.Buffer
	root.SetOut(&b)
	err = root.ExecuteContext(t.Context())
	if err == nil || errors.Is(err, check.ErrDenied) || !strings.HasPrefix(err.Error(), dir+"/a.yaml:2:5: ") ||
		!strings.HasSuffix(err.Error(), "; and 2 more") {
		t.Errorf("error %v", err)
	}
	var got []string
	for line := range strings.Lines(strings.ReplaceAll(b.String(), dir+"/", "")) {
		if !strings.HasPrefix(line, "   ") {
			got = append(got, strings.TrimSpace(line[:min(len(line), 34)]))
		}
	}
	want := []string{"denied   a.yaml:1 Pod/bad: Remote", "error    a.yaml:2:5: yaml: line 1:",
		"denied   a.yaml:7 Pod/late: Remote",
		"skipped  b/1.JSON:1 Secret/s: has", "allowed  b/2.yml:1 Pod/good", "warning  c.yaml:1 X/x: not judged:",
		"exempt   d.yaml:1 Pod/p: namespace", "exempt   d.yaml:5 Pod/p: namespace",
		"exempt   d.yaml:10 Pod/p: namespac",
		"error    e.yaml: statat e.yaml: pa", "error    f.yaml: statat f.yaml: pa", "allowed  h.yaml:1 Pod/good",
		"4 checked, 2 denied, 3 exempt, 1 n"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

// TestAnObjectThatCannotBeReviewed does not end the check of other objects.
func TestAnObjectThatCannotBeReviewed(t *testing.T) {
	url, ca := newServer(t, "")
	const in = "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {containers: {image: nginx}}\n---\n" +
		"apiVersion: v1\nkind: Pod\nmetadata: {name: late}\nspec: {containers: [{image: nginx}]}\n"
	for _, args := range [][]string{{"--server", url, "--cacert", ca}, {"--data-dir", newDataDir(t)}} {
		out, err := run(t, nil, in, append([]string{"-f", "-"}, args...)...)
		if err == nil || errors.Is(err, check.ErrDenied) || !strings.Contains(err.Error(), "-:1 Pod/bad: ") ||
			!strings.Contains(err.Error(), "cannot be reviewed: ") ||
			!strings.Contains(out, "denied   -:5 Pod/late: ") ||
			!strings.HasSuffix(out, "1 checked, 1 denied, 1 not read\n") {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

// TestAReadOnlyVolume can be checked against: nothing is written.
func TestAReadOnlyVolume(t *testing.T) {
	check.Unwritable(t)
	out, err := run(t, nil, "", "-f", pods, "--data-dir", newDataDir(t))
	if !errors.Is(err, check.ErrDenied) || !strings.Contains(out, "allowed  "+pods+":1 Pod/good") {
		t.Errorf("%v\n%s", err, out)
	}
}
