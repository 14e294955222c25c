package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// contentsOf lists everything in a directory, with what a write would change.
func contentsOf(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprint(path, fi.Mode(), fi.ModTime())
		if fi.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += digest.FromBytes(content).String()
		}
		all = append(all, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestReadOnly runs a server on a data directory that it must not write to: pulls and verdicts work, everything that
// changes anything is refused with the reason, and nothing in the directory has changed in the end.
func TestReadOnly(t *testing.T) {
	dir, config := t.TempDir(), filepath.Join(t.TempDir(), "trow.yaml")
	if err := os.WriteFile(config, []byte("log-level: info\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--names=trow.example", "--config=" + config, "--user=root", "--password=root", "--anonymous=pull"}
	p := start(t, dir, append(args, "--anonymous=push")...)
	d := p.push("app", "v")
	_, robot, _ := command(t, "", "token", "create", "ci", "--repository=**", "--data-dir="+dir)
	if p.stop() != 0 {
		t.Fatal(p.errOut)
	}
	// What an unclean stop leaves, which a server that may write removes.
	for _, name := range []string{".trow-tmp-1", "journal.db.new"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := contentsOf(t, dir)

	p = start(t, dir, append(args, "--read-only", "--tls-names=another.example")...) // for which the leaf is made anew
	root := basicAuth("root", "root")
	layer := digest.FromString("a layer of app").String()
	for _, path := range []string{"manifests/v", "manifests/" + d.String(), "blobs/" + layer, "tags/list",
		"referrers/" + d.String(), "manifest_history/v"} {
		p.want(200, "GET", "/v2/app/"+path, "")
	}
	p.want(200, "GET", "/v2/app/manifests/v", "", basicAuth("robot", strings.TrimSpace(robot))...)
	p.want(200, "GET", "/token?service=x&scope=repository:app:pull", "", root...) // with a key that may be a new one
	if r := p.admit("/validate", "trow.example/app:v"); !r.Allowed {
		t.Errorf("the image is denied: %+v", r.Result)
	}
	if r := p.admit("/validate", "trow.example/app:none"); r.Allowed {
		t.Error("an image that is not here is allowed")
	}
	for _, line := range []string{"[-]read-only, pulls and verdicts alone: setting read-only", "ok"} {
		if text := p.want(200, "GET", "/readyz?verbose", ""); !strings.Contains(text, line+"\n") {
			t.Errorf("readyz has no line %q:\n%s", line, text)
		}
	}
	if text := p.want(200, "GET", "/metrics", ""); !strings.Contains(text, "\ntrow_storage_read_only 1\n") {
		t.Error("no metric says so")
	}
	for _, write := range [][3]string{{"PUT", "manifests/w", "GET, HEAD"}, {"PUT", "manifests/v", "GET, HEAD"},
		{"DELETE", "manifests/v", "GET, HEAD"}, {"DELETE", "blobs/" + layer, "GET, HEAD"},
		{"POST", "blobs/uploads/", ""},
		{"POST", "blobs/uploads/?mount=" + layer + "&from=app", ""}, {"POST", "blobs/uploads/?digest=" + layer, ""},
		{"PATCH", "blobs/uploads/1", ""}, {"GET", "blobs/uploads/1", ""}} {
		status, header, body := p.do(write[0], "/v2/app/"+write[1], "a layer of app", append(root, "Content-Type",
			manifestType)...)
		var answer struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 405 ||
			header.Get("Allow") != write[2] ||
			answer.Errors[0].Code != "UNSUPPORTED" || !strings.Contains(answer.Errors[0].Message, "read-only") {
			t.Errorf("%v: %d, Allow %q, %s", write, status, header.Get("Allow"), body)
		}
	}
	p.want(401, "PUT", "/v2/app/manifests/w", "") // a login comes first, as elsewhere
	for _, job := range []string{"gc", "scrub", "retention", "token-create?name=x&repository=a&action=pull",
		"token-revoke?name=ci"} {
		if text := p.want(200, "POST", "/admin/"+job, "", root...); !strings.Contains(text, "read-only") {
			t.Errorf("%s: %s", job, text)
		}
	}
	p.want(200, "POST", "/admin/gc?dry-run", "", root...)
	p.want(409, "POST", "/admin/retention-hold", "", root...)
	p.want(200, "GET", "/admin/repositories", "", root...)
	if p.stop() != 0 {
		t.Fatal(p.errOut)
	}
	for i, line := range contentsOf(t, dir) {
		if i >= len(before) || line != before[i] {
			t.Errorf("the directory has changed: %s", line)
		}
	}
	// A server that may write goes on where the first one has stopped.
	start(t, dir, args...).want(200, "GET", "/v2/app/manifests/v", "")
}

// TestReadOnlyNeedsWhatItCannotMake: without a journal or a CA, the error says what to do.
func TestReadOnlyNeedsWhatItCannotMake(t *testing.T) {
	dir := t.TempDir()
	serve := func(args ...string) string {
		code, _, errOut := command(t, "", append([]string{"serve", "--listen=127.0.0.1:0", "--data-dir=" + dir,
			"--read-only"}, args...)...)
		if code != 2 {
			t.Errorf("exit code %d", code)
		}
		return errOut
	}
	if text := serve("--no-tls"); !strings.Contains(text, "holds nothing to serve") {
		t.Errorf("an empty directory: %s", text)
	}
	p := start(t, dir, "--no-tls")
	p.push("app", "v")
	p.stop()
	if text := serve(); !strings.Contains(text, "contains no CA") || !strings.Contains(text, "set no-tls") {
		t.Errorf("without a CA: %s", text)
	}
	start(t, dir, "--no-tls", "--read-only").want(200, "GET", "/v2/app/manifests/v", "")
}
