package client_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"

	"trow/registry/client"
)

// helper is a credential helper as docker's are: it knows two hosts, and fails for one.
const helper = `#!/bin/sh
read host
[ "$1" = get ] || exit 1
case $host in
registry.example:5000 | https://index.docker.io/v1/) echo '{"Username":"'"$host"'","Secret":"s"}' ;;
token.example) echo '{"Username":"<token>","Secret":"refresh"}' ;;
broken.example) echo 'the keychain is locked'; exit 1 ;;
*) echo 'credentials not found in native keychain'; exit 1 ;;
esac
`

// TestDockerLogins: what docker login keeps is found as docker finds it, whether in the file or in a helper, and errors
// name the file, the host and what to change, but no password.
func TestDockerLogins(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-xyz"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	const hub = "registry-1.docker.io"
	const alice = `{"auth":"YWxpY2U6cHc="}` // alice:pw
	for name, c := range map[string]struct{ config, host, user, want string }{
		"the file":            {`{"auths":{"r.example:5000":` + alice + `}}`, "r.example:5000", "alice", ""},
		"another port":        {`{"auths":{"r.example:5000":` + alice + `}}`, "r.example", "", ""},
		"a URL as the key":    {`{"auths":{"https://r.example/v1/":` + alice + `}}`, "r.example", "alice", ""},
		"Docker Hub":          {`{"auths":{"https://index.docker.io/v1/":` + alice + `}}`, hub, "alice", ""},
		"Docker Hub, podman":  {`{"auths":{"docker.io":` + alice + `}}`, hub, "alice", ""},
		"Docker Hub, by hand": {`{"auths":{"index.docker.io":` + alice + `}}`, hub, "alice", ""},
		"Docker Hub's host":   {`{"auths":{"registry-1.docker.io":` + alice + `}}`, hub, "alice", ""},
		"not Docker Hub":      {`{"auths":{"docker.io":` + alice + `}}`, "docker.io.example", "", ""},
		"credsStore": {`{"auths":{"registry.example:5000":{}},"credsStore":"xyz"}`, "registry.example:5000",
			"registry.example:5000", ""},
		"credsStore without it": {`{"credsStore":"xyz"}`, "r.example", "", ""},
		"credHelpers": {`{"credHelpers":{"registry.example:5000":"xyz"}}`, "registry.example:5000",
			"registry.example:5000", ""},
		"credHelpers of another": {`{"credHelpers":{"a.example":"xyz"}}`, "registry.example:5000", "", ""},
		"credHelpers before a file": {`{"auths":{"r.example":` + alice + `},"credHelpers":{"r.example":"xyz"}}`,
			"r.example", "", ""},
		"Docker Hub in a helper": {`{"credsStore":"xyz"}`, hub, "https://index.docker.io/v1/", ""},
		"a token":                {`{"credsStore":"xyz"}`, "token.example", "refresh", ""},
		"no helper": {`{"credsStore":"none"}`, "r.example", "",
			"there is no program docker-credential-none in PATH; install it, or change credHelpers or credsStore"},
		"a helper that fails": {`{"credsStore":"xyz"}`, "broken.example", "", "the keychain is locked"},
		"no login":            {`{}`, "r.example", "", ""},
		"no file":             {``, "r.example", "", ""},
		"a damaged entry":     {`{"auths":{"r.example":{"auth":"c2VjcmV0"}}}`, "r.example", "", "is not the base64 of"},
	} {
		dir := t.TempDir()
		t.Setenv("DOCKER_CONFIG", dir)
		if c.config != "" {
			if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(c.config), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		logins, err := client.DockerLogins()
		if err != nil {
			t.Fatal(err)
		}
		got, err := logins(t.Context(), c.host)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.host) ||
				!strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: error %v, want %q", name, err, c.want)
			}
			continue
		}
		if err != nil || got.Username+got.RefreshToken != c.user {
			t.Errorf("%s: %+v, %v; want %q", name, got, err, c.user)
		}
	}
	t.Setenv("DOCKER_CONFIG", "")
	t.Setenv("HOME", "")
	logins, err := client.DockerLogins()
	if err != nil {
		t.Fatalf("without a home directory: %v", err)
	}
	if got, err := logins(t.Context(), "r.example"); err != nil || got != auth.EmptyCredential {
		t.Errorf("without a home directory: %+v, %v", got, err)
	}
}

// TestAHelperThatHangs is not waited for, although a program that it has started keeps its output open after it was
// killed; and it is not started without end.
func TestAHelperThatHangs(t *testing.T) {
	bin := t.TempDir()
	script := "#!/bin/sh\nread host\ncase $host in good) echo '{\"Username\":\"alice\",\"Secret\":\"s\"}';; " +
		"*) cat " + filepath.Join(bin, "never") + "; true;; esac\n"
	if err := syscall.Mkfifo(filepath.Join(bin, "never"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-xyz"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // ends what the helper has started
		if f, err := os.OpenFile(filepath.Join(bin, "never"), os.O_RDWR, 0); err == nil {
			f.Close()
		}
	})
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	config := filepath.Join(bin, "config.json")
	if err := os.WriteFile(config, []byte(`{"credsStore":"xyz"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := client.FileLogins(config)
	if err != nil {
		t.Fatal(err)
	}
	for name, logins := range map[string]client.Logins{"helper": client.HelperLogins("xyz"), "file": file} {
		if c, err := logins(t.Context(), "good"); err != nil || c.Username != "alice" {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if _, err := logins(ctx, "bad"); err == nil || !strings.Contains(err.Error(), "the login for bad in ") {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		all.Wait()
		if _, err := logins(t.Context(), "bad"); err == nil || !strings.Contains(err.Error(), "have not ended") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
