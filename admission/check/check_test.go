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
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"trow/admission"
	"trow/admission/check"
	"trow/storage"
	"trow/storage/bolt"
	"trow/storage/memory"
)

const (
	denial = "Remote image docker.io/nginx disallowed as not contained in this registry and not in allow list"

	manifests = `
apiVersion: v1
kind: Pod
metadata: {name: good}
spec: {containers: [{name: c, image: "trow:31000/app:1"}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: bad}
spec: {template: {spec: {containers: [{name: c, image: nginx}]}}}
`
)

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
	root.AddCommand(check.Command(check.Program{Policy: settings}))
	root.SetArgs(append([]string{"check"}, args...))
	root.SetIn(strings.NewReader(in))
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestCheckByADataDirectory(t *testing.T) {
	dir, file := newDataDir(t), writeFile(t, manifests)
	for _, flag := range []string{"--data-dir", "--data"} {
		out, err := run(t, nil, "", "-f", file, flag, dir)
		want := fmt.Sprintf("allowed  %[1]s:2 Pod/good\nskipped  %[1]s:7 ConfigMap/c: has no images\n"+
			"denied   %[1]s:11 Deployment/bad: %[2]s\n2 checked, 1 denied\n", file, denial)
		want = strings.NewReplacer(":2 ", ":1 ", ":7 ", ":6 ", ":11 ", ":10 ").Replace(want)
		if !errors.Is(err, check.ErrDenied) || out != want {
			t.Errorf("%s: %v\ngot\n%s\nwant\n%s", flag, err, out, want)
		}
	}
	// From standard input, and with a rule that allows the image. The settings are those of the program.
	settings := func(cmd *cobra.Command) (o admission.PolicyOptions, err error) {
		o.AllowDockerOfficial, err = cmd.Flags().GetBool("allow-docker-official")
		return o, err
	}
	out, err := run(t, settings, manifests, "-f", "-", "--data-dir", dir, "--allow-docker-official")
	if err != nil || !strings.Contains(out, "2 checked, 0 denied") || !strings.Contains(out, "nginx names no host") {
		t.Errorf("with a rule: %v\n%s", err, out)
	}
}

// TestCheckMakesNothingInAnEmptyDirectory: it is that of an empty registry.
func TestCheckMakesNothingInAnEmptyDirectory(t *testing.T) {
	dir := t.TempDir()
	out, err := run(t, nil, manifests, "-f", "-", "-d", dir, "-o", "json")
	if !errors.Is(err, check.ErrDenied) || !strings.Contains(out, `"outcome": "skipped"`) ||
		!strings.Contains(out, `"denied": 2`) {
		t.Errorf("%v: %s", err, out)
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != 0 {
		t.Errorf("it made %v, %v", all, err)
	}
}

// newServer is a server whose webhook wants a token; its verdict comes from a webhook that does not enforce templates.
func newServer(t *testing.T, token string) (url, ca string) {
	t.Helper()
	x, err := storage.OpenIndex(t.Context(), memory.NewJournal(), storage.IndexOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(x.Close)
	policy, err := admission.NewPolicy(admission.PolicyOptions{AllowImages: []string{"trow:31000/app:1"}})
	if err != nil {
		t.Fatal(err)
	}
	hook := admission.New(admission.Options{Images: x, Policy: policy})
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
	file := writeFile(t, manifests)
	url, ca := newServer(t, "Bearer secret")
	out, err := run(t, nil, "", "-f", file, "--server", url+"/", "--cacert", ca, "--token-file", writeFile(t, "secret\n"))
	if !errors.Is(err, check.ErrDenied) || !strings.Contains(out, "2 checked, 1 denied") ||
		!strings.Contains(out, denial) {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = run(t, nil, "", "-f", file, "--server", url, "--cacert", ca)
	if err == nil || errors.Is(err, check.ErrDenied) ||
		!strings.Contains(err.Error(), "server: 401 Unauthorized: no admittance") {
		t.Errorf("without the token: %v\n%s", err, out)
	}
}

func TestWhatCannotBeCheckedIsAnError(t *testing.T) {
	dir, file := newDataDir(t), writeFile(t, manifests)
	url, ca := newServer(t, "")
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "{}") }))
	defer plain.Close()
	for _, tt := range []struct {
		want string
		args []string
	}{
		{"[data-dir server]", []string{"-f", file}},
		{`"filename" not set`, []string{"--data-dir", dir}},
		{"[data-dir server]", []string{"-f", file, "--data", dir, "--server", url}},
		{"data-dir: ", []string{"-f", file, "--data-dir", dir + "/none"}},
		{"no such file", []string{"-f", dir + "/none.yaml", "--data-dir", dir}},
		{"document 1", []string{"-f", ca, "--data-dir", dir}},
		{"contains no certificate", []string{"-f", file, "--server", url, "--cacert", file}},
		{"cacert: ", []string{"-f", file, "--server", url, "--cacert", "/none"}},
		{"token-file: ", []string{"-f", file, "--server", url, "--token-file", "/none"}},
		{"server: ", []string{"-f", file, "--server", url}}, // its certificate is not trusted
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
