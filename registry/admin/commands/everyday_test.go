package commands_test

import (
	"cmp"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/admin"
	"trow/registry/admin/commands"
	"trow/registry/auth"
)

// blob pushes a blob and returns its descriptor.
func (s *server) blob(repo, mediaType, text string) v1.Descriptor {
	s.Helper()
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromString(text), Size: int64(len(text))}
	at := "/v2/" + repo + "/blobs/uploads/?digest=" + d.Digest.String()
	if status := s.request("POST", at, "application/octet-stream", []byte(text)); status != http.StatusCreated {
		s.Fatalf("blob: status %d", status)
	}
	return d
}

// manifest pushes a manifest, by its digest without a tag.
func (s *server) manifest(repo, tag, mediaType string, v any) v1.Descriptor {
	s.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		s.Fatal(err)
	}
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	if tag == "" {
		tag = d.Digest.String()
	}
	if status := s.request("PUT", "/v2/"+repo+"/manifests/"+tag, mediaType, body); status != http.StatusCreated {
		s.Fatalf("manifest %s: status %d", tag, status)
	}
	return d
}

// image pushes an image of two layers, one of which every image has.
func (s *server) image(repo, tag, arch string) v1.Descriptor {
	s.Helper()
	config, err := json.Marshal(map[string]any{"architecture": arch, "os": "linux", "created": "2026-01-02T03:04:05Z",
		"config": map[string]any{"User": "65534", "Env": []string{"PATH=/bin"}, "Entrypoint": []string{"/app", "-v"},
			"ExposedPorts": map[string]any{"80/tcp": struct{}{}}, "Labels": map[string]string{"a": "b"}}})
	if err != nil {
		s.Fatal(err)
	}
	return s.manifest(repo, tag, v1.MediaTypeImageManifest, v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest, Config: s.blob(repo, v1.MediaTypeImageConfig, string(config)),
		Layers: []v1.Descriptor{s.blob(repo, v1.MediaTypeImageLayerGzip, strings.Repeat("base", 5000)),
			s.blob(repo, v1.MediaTypeImageLayerGzip, strings.Repeat(arch, 1000))}})
}

// fill pushes team/app, an index of two platforms with two tags and a signature, and team/web, one of its images.
func (s *server) fill() (index v1.Descriptor) {
	s.Helper()
	amd, arm := s.image("team/app", "", "amd64"), s.image("team/app", "", "arm64")
	amd.Platform = &v1.Platform{OS: "linux", Architecture: "amd64"}
	arm.Platform = &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	all := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{amd, arm}, Annotations: map[string]string{"org.example": "yes"}}
	index = s.manifest("team/app", "1.0", v1.MediaTypeImageIndex, all)
	s.manifest("team/app", "latest", v1.MediaTypeImageIndex, all)
	s.signature("team/app", index)
	s.image("team/web", "a-tag-that-is-so-long-that-a-table-of-eighty-columns-has-to-shorten-it", "amd64")
	return index
}

// signature pushes a referrer.
func (s *server) signature(repo string, of v1.Descriptor) v1.Descriptor {
	s.Helper()
	empty := s.blob(repo, v1.MediaTypeEmptyJSON, "{}")
	of.Platform = nil
	return s.manifest(repo, "", v1.MediaTypeImageManifest, v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/vnd.example.signature", Config: empty,
		Layers: []v1.Descriptor{empty}, Subject: &of})
}

// notTable matches the lines of a transcript that may be long: commands, errors, what an image lacks, and JSON.
var notTable = regexp.MustCompile(`^(\$ |error: |\S+/\S+: |\s*")`)

var times = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d|("(?:set|pushed|updated|used|time|order)": )\d+`)

// golden compares what commands print with a file of testdata, which UPDATE=1 writes anew. No line is longer than 80
// characters, but those of JSON.
func golden(t *testing.T, name, got string) {
	t.Helper()
	got = times.ReplaceAllStringFunc(got, func(s string) string {
		if key, _, ok := strings.Cut(s, ": "); ok && strings.HasPrefix(key, `"`) {
			return key + ": 0"
		}
		return "2026-01-02 03:04"
	})
	for line := range strings.SplitSeq(got, "\n") {
		if utf8.RuneCountInString(line) > 80 && !notTable.MatchString(line) {
			t.Errorf("%d characters: %s", utf8.RuneCountInString(line), line)
		}
	}
	file := filepath.Join("testdata", name+".txt")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: printed\n%s\nwant\n%s", file, got, want)
	}
}

// TestHelpFitsATerminal: the help of every command is at most 80 columns wide; that of the commands for every day is
// as it was.
func TestHelpFitsATerminal(t *testing.T) {
	for _, name := range []string{"ls", "tags", "inspect", "history", "cp", "rm", "du", "warm",
		"cached", "evict", "export"} {
		out, _, err := run(t, "./data", "", name, "--help")
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "help-"+name, out)
	}
	for _, name := range []string{"", "gc", "retention", "scrub", "rebuild", "import", "token",
		"token create",
		"can-i", "pull-secret"} {
		out, _, err := run(t, "./data", "", append(strings.Fields(name), "--help")...)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.SplitSeq(out, "\n") {
			if utf8.RuneCountInString(line) > 80 {
				t.Errorf("%s: %d characters: %s", name, utf8.RuneCountInString(line), line)
			}
		}
	}
}

func TestCommandsForEveryDay(t *testing.T) {
	s := newRegistry(t)
	index := s.fill()
	transcript := func(name string, lines ...string) {
		t.Helper()
		var all strings.Builder
		for _, line := range lines {
			stdin := ""
			command, answer, ok := strings.Cut(line, " <<< ")
			if ok {
				stdin = answer + "\n"
			}
			out, errOut, err := s.run(stdin, strings.Fields(
				strings.ReplaceAll(command, "INDEX", index.Digest.String()))...)
			fmt.Fprintf(&all, "$ trow %s\n%s%s", line, out, errOut)
			if err != nil {
				fmt.Fprintf(&all, "error: %v\n", err)
			}
			all.WriteString("\n")
		}
		golden(t, name, all.String())
	}
	transcript("ls", "ls", "ls -q", "ls -o json", "ls team/app", "ls team/app -q", "ls team/web -o json", "ls none")
	transcript("tags", "tags team/app", "tags -q team/app", "tags team/web", "tags team/web -o json", "tags -q none",
		"tags team/app:1.0")
	transcript("inspect", "inspect team/app", "inspect team/app:1.0 --platform linux/arm64", "inspect -q team/app:1.0",
		"inspect team/app@INDEX -o json", "inspect team/app --platform linux/s390x", "inspect team/app:2")
	const arm = "44a94562ab8277e073a2cd22fec3a0b0f02b5fc3505f8e056aafda737c94839b"
	if out, _, err := s.run("", "inspect", "-q", "team/app", "--platform", "linux/aarch64"); out != "sha256:"+arm+"\n" {
		t.Errorf("by another name of the platform: %s%v", out, err)
	}
	transcript("du", "du", "du team/app", "du -o json")
	transcript("cp", "cp team/app:1.0 copy", "cp team/app:1.0 copy:1.0", "cp -q team/app copy:2", "ls copy",
		"cp -a team/app copy/all", "tags copy/all", "cp team/app:3 copy")
	transcript("rm", "rm team/app:1.0 --dry-run", "rm team/app:1.0 <<< n", "rm team/app:1.0 --manifest --yes",
		"rm team/app:1.0 -y", "rm team/app:latest --manifest <<< y", "ls team/app", "rm copy@INDEX -y",
		"rm copy/all -y",
		"rm copy/all --manifest", "rm none -y", "rm team/web --dry-run -o json")
	for _, arch := range []string{"amd64", "arm64", "amd64"} {
		s.image("moved", "latest", arch)
	}
	transcript("history", "history moved", "history -q moved:latest", "history moved -o json", "history team/web",
		"history none:1", "history moved@INDEX", "history")
	// Back to what the tag named before, as the help says.
	before, _, _ := s.run("", "history", "-q", "moved")
	digests := strings.Fields(before)
	if _, _, err := s.run("", "cp", "moved@"+digests[1], "moved:latest"); err != nil {
		t.Error(err)
	}
	if now, _, err := s.run("", "history", "-q", "moved"); err != nil || now != digests[1]+"\n"+before {
		t.Errorf("after the way back: %v: %s", err, now)
	}
}

// TestDuOfAnyRegistry: its URL alone stands for all of its repositories, as for ls.
func TestDuOfAnyRegistry(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	s := newRegistry(t)
	s.fill()
	url, ca := s.remote(distribution)
	out, errOut, err := run(t, t.TempDir(), "", "du", url+"/", "--cacert", ca)
	if err != nil || !strings.Contains(out, "team/web ") || !strings.Contains(out, " in 2 repositories") ||
		!strings.Contains(errOut, "Only what tags lead to is counted") {
		t.Errorf("%v: %s%s", err, out, errOut)
	}
	if _, _, err = run(t, t.TempDir(), "", "du", url+"/team/none", "--cacert", ca); err == nil ||
		!strings.Contains(err.Error(), "team/none not found; trow ls "+url+" lists the repositories") {
		t.Errorf("a repository that is not there: %v", err)
	}
	if _, _, err = s.run("", "du", "team/app", "team/none"); err == nil ||
		!strings.Contains(err.Error(), "team/none not found; trow ls lists the repositories") {
		t.Errorf("a repository that is not there, of several: %v", err)
	}
}

// TestOneBadManifestEndsNoList: of a registry that is no Trow, which may hold any bytes, and lists what is deleted.
func TestOneBadManifestEndsNoList(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	s := newRegistry(t)
	index := s.fill()
	var first v1.Descriptor
	url, ca := s.remote(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			switch bad := "no JSON"; {
			case strings.HasPrefix(req.URL.Path, "/admin/"):
				http.NotFound(w, req)
			case req.URL.Path == "/v2/_catalog":
				fmt.Fprint(w, `{"repositories":["deleted","team/app","team/web"]}`)
			case strings.HasPrefix(req.URL.Path, "/v2/team/web/manifests/"),
				first.Digest != "" && strings.HasSuffix(req.URL.Path, first.Digest.String()):
				w.Header().Set("Docker-Content-Digest", cmp.Or(first.Digest, digest.FromString(bad)).String())
				w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
				fmt.Fprint(w, bad)
			default:
				next.ServeHTTP(w, req)
			}
		})
	})
	host := strings.TrimPrefix(url, "https://")
	for args, want := range map[string]string{"du " + url: "in 2 repositories", "ls " + host + "/team/web": "a-tag-",
		"tags " + host + "/team/web": "a-tag-"} {
		out, errOut, err := run(t, t.TempDir(), "", append(strings.Fields(args), "--cacert", ca)...)
		if err != nil || !strings.Contains(out, want) || !strings.Contains(errOut, "it is not JSON") {
			t.Errorf("%s: %v: %s%s", args, err, out, errOut)
		}
	}
	// What would go is not certain, so nothing goes.
	if _, _, err := run(t, t.TempDir(), "", "rm", host+"/team/web", "-y", "--cacert", ca); err == nil {
		t.Error("rm of a repository that cannot be read")
	}
	first = s.image("team/app", "", "amd64")
	out, errOut, err := run(t, t.TempDir(), "", "inspect", host+"/team/app@"+index.Digest.String(), "--cacert", ca)
	if err != nil || !strings.Contains(out, "linux/arm64/v8") || errOut == "" {
		t.Errorf("inspect: %v: %s%s", err, out, errOut)
	}
}

// TestAnImageWithoutATime: what builds reproducibly writes none, the year 1 (Go's zero time), or that of Unix.
func TestAnImageWithoutATime(t *testing.T) {
	s := newRegistry(t)
	for _, created := range []string{"0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z"} {
		config := s.blob("a", v1.MediaTypeImageConfig, `{"os":"linux","architecture":"arm","created":"`+created+`"}`)
		s.manifest("a", "v", v1.MediaTypeImageManifest, v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: v1.MediaTypeImageManifest, Config: config, Layers: []v1.Descriptor{}})
		if out, _, err := s.run("", "inspect", "a:v"); err != nil || strings.Contains(out, "Created") {
			t.Errorf("%s: %v: %s", created, err, out)
		}
	}
}

// TestRemovingWhatIsNeeded: a platform of an index stays, and rm ends with the error of a removal that removed nothing.
func TestRemovingWhatIsNeeded(t *testing.T) {
	s := newRegistry(t)
	s.fill()
	arm := s.image("team/app", "", "arm64")
	out, _, err := s.run("", "rm", "team/app@"+arm.Digest.String(), "--yes")
	if !errors.Is(err, commands.ErrKept) || !strings.Contains(out, "needed by index sha256:") {
		t.Errorf("error %v, printed %s", err, out)
	}
	if status := s.request("HEAD", "/v2/team/app/manifests/"+arm.Digest.String(), "", nil); status != http.StatusOK {
		t.Errorf("the platform: status %d", status)
	}
}

// remote serves a registry over TLS as well, and returns its URL and the file of its CA. Requests pass through with.
func (s *server) remote(with func(http.Handler) http.Handler) (url, ca string) {
	s.Helper()
	h := s.handler
	if with != nil {
		h = with(h)
	}
	ts := httptest.NewTLSServer(h)
	s.Cleanup(ts.Close)
	ca = filepath.Join(s.TempDir(), "ca.crt")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ts.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		s.Fatal(err)
	}
	return ts.URL, ca
}

// distribution makes a Trow answer as Distribution 3 does: it has no API for referrers, ignores ?tag=, and hands out
// OCI manifests only to those who accept them by name.
func distribution(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		accepts := strings.Join(req.Header.Values("Accept"), ", ")
		switch read := req.Method == http.MethodGet || req.Method == http.MethodHead; {
		case strings.Contains(req.URL.Path, "/referrers/"), strings.HasPrefix(req.URL.Path, "/admin/"),
			strings.Contains(req.URL.Path, "/manifests/") && read &&
				(!strings.Contains(accepts, v1.MediaTypeImageIndex) ||
					!strings.Contains(accepts, v1.MediaTypeImageManifest)):
			http.NotFound(w, req)
			return
		}
		q := req.URL.Query()
		q.Del("tag")
		req.URL.RawQuery = q.Encode()
		next.ServeHTTP(withoutSubject{w}, req)
	})
}

// TestCopyBetweenRegistries: everything arrives, also in a registry that has no API for referrers, and a second copy
// sends nothing; and everything comes back from there.
func TestCopyBetweenRegistries(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	from, to := newRegistry(t), newRegistry(t)
	index := from.fill()
	cosign := strings.Replace(index.Digest.String(), ":", "-", 1) + ".sig"
	from.image("team/app", cosign, "none")
	url, ca := to.remote(distribution)
	host := strings.TrimPrefix(url, "https://")
	out, errOut, err := from.run("", "cp", "team/app:1.0", host+"/x/app", "--cacert", ca)
	if err != nil || !strings.Contains(out, "Copied 5 manifests and 8 blobs, ") {
		t.Fatalf("%v: %s%s", err, out, errOut)
	}
	for _, ref := range []string{"1.0", cosign, strings.TrimSuffix(cosign, ".sig")} {
		if status := to.request("HEAD", "/v2/x/app/manifests/"+ref, "", nil); status != http.StatusOK {
			t.Errorf("%s: status %d", ref, status)
		}
	}
	out, _, err = from.run("", "cp", "team/app:1.0", host+"/x/app", "--cacert", ca)
	if err != nil || !strings.HasPrefix(out, "Copied 0 manifests and 0 blobs, 0 B; ") {
		t.Errorf("again: %v: %s", err, out)
	}
	out, _, err = from.run("", "ls", "-q", host+"/x/app", "--cacert", ca)
	if err != nil || !strings.Contains(out, host+"/x/app:1.0\n") {
		t.Errorf("ls: %v: %s", err, out)
	}
	out, _, err = from.run("", "cp", host+"/x/app:1.0", "back", "--cacert", ca)
	if err != nil || !strings.Contains(out, "back@"+index.Digest.String()) {
		t.Errorf("back: %v: %s", err, out)
	}
	want, _, _ := from.run("", "inspect", "team/app:1.0", "-o", "json")
	got, _, err := from.run("", "inspect", "back:1.0", "-o", "json")
	if err != nil || strings.Replace(got, `"back"`, `"team/app"`, 1) != want {
		t.Errorf("what came back: %v: %s\nwant %s", err, got, want)
	}
	out, _, err = from.run("", "ls", url, "--cacert", ca)
	if err != nil || out != "REPOSITORY\nx/app\n" {
		t.Errorf("ls of a URL: %v: %s", err, out)
	}
}

// withoutSubject is a response of a registry that does not know referrers.
type withoutSubject struct{ http.ResponseWriter }

func (w withoutSubject) WriteHeader(status int) {
	w.Header().Del("OCI-Subject")
	w.ResponseWriter.WriteHeader(status)
}

// TestAPasswordGoesToItsRegistryOnly: --user is for --server, and no other registry that a command names sees it.
func TestAPasswordGoesToItsRegistryOnly(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	s, other := newRegistry(t), newRegistry(t)
	s.fill()
	var seen, leaked []string
	login := func(to *[]string) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if user, _, ok := req.BasicAuth(); ok {
					*to = append(*to, user)
					next.ServeHTTP(w, req)
					return
				}
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
			})
		}
	}
	url, ca := s.remote(login(&seen))
	foreign, _ := other.remote(login(&leaked))
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--server", url, "--cacert", ca, "--user", "root", "--password-file", password}
	out, _, err := s.run("", append([]string{"ls", "-q"}, args...)...)
	if err != nil || out != "team/app\nteam/web\n" || len(seen) == 0 {
		t.Errorf("ls: %v: %s", err, out)
	}
	_, _, err = s.run("", append([]string{"cp", "team/app", strings.TrimPrefix(foreign, "https://") + "/a"},
		args...)...)
	if err == nil || !strings.Contains(err.Error(), "docker login") || len(leaked) != 0 {
		t.Errorf("cp: %v; the other registry has seen %v", err, leaked)
	}
	if _, _, err := s.run("", "ls", "--server", url, "--cacert", ca); err == nil ||
		!strings.Contains(err.Error(), "log in with docker login") {
		t.Errorf("without a login: %v", err)
	}
}

// TestDockerLoginIsRead: without --user, the login is that of docker login.
func TestDockerLoginIsRead(t *testing.T) {
	s := newServer(t, map[string]admin.Job{"robots": nil})
	s.handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, password, _ := req.BasicAuth(); user != "alice" || password != "pw" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if req.URL.Path != "/admin/"+auth.JobListRobots {
			http.NotFound(w, req)
			return
		}
		fmt.Fprintln(w, `{"done":[]}`)
	})
	url, ca := s.remote(nil)
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	config := `{"auths":{"` + strings.TrimPrefix(url, "https://") + `":{"auth":"YWxpY2U6cHc="}}}` // alice:pw
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, err := s.run("", "token", "list", "--server", url, "--cacert", ca); err != nil ||
		!strings.HasPrefix(out, "NAME") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestCompletionOfRepositoriesAndTags(t *testing.T) {
	s := newRegistry(t)
	s.fill()
	for typed, want := range map[string]string{
		"ls te": "team/app\nteam/web\n:6\n", "inspect team/app:": "team/app:1.0\nteam/app:latest\n:4\n",
		"rm team/app:l": "team/app:latest\n:4\n", "history team/app:1": "team/app:1.0\n:4\n",
		"history te":       "team/app\nteam/web\n:6\n",
		"inspect nothing:": ":4\n", "tags a b": ":4\n"} {
		if out, _, err := s.run("", append([]string{"__complete"}, strings.Fields(typed)...)...); err != nil ||
			out != want {
			t.Errorf("%s: %v: %q, want %q", typed, err, out, want)
		}
	}
	if out, _, _ := run(t, t.TempDir(), "", "__complete", "ls", ""); out != ":6\n" {
		t.Errorf("without a server: %q", out)
	}
}

func TestReferences(t *testing.T) {
	s := newRegistry(t)
	s.fill()
	for ref, want := range map[string]string{
		"team/APP": "is not a valid repository", "team/app:": "is not a valid tag",
		"team/app@sha256:12": "is not a valid digest",
		"https://host":       "names a registry and no repository", "ho$st.example/a": "is not a valid HOST[:PORT]",
		"a/../../b": "is not a valid repository", "": "is not a valid repository",
		"http://x/y/": "is not a valid repository"} {
		if _, _, err := s.run("", "inspect", ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", ref, err, want)
		}
	}
	// On the server's machine, its name on the nodes means the server.
	for _, ref := range []string{"/team/app:1.0", "registry.example:31000/team/app:1.0"} {
		if _, _, err := s.run("", "inspect", ref); err != nil {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

// TestNothingFromARegistryControlsTheTerminal: labels and the like are text of the author of the image.
func TestNothingFromARegistryControlsTheTerminal(t *testing.T) {
	s := newRegistry(t)
	s.manifest("a", "v", v1.MediaTypeImageIndex, v1.Index{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{},
		Annotations: map[string]string{"x": "\x1b]0;title\a\u009b2J"}})
	out, _, err := s.run("", "inspect", "a:v")
	if err != nil || strings.ContainsAny(out, "\x1b\a\u009b") || !strings.Contains(out, "x=?]0;title??2J") {
		t.Errorf("%v: %q", err, out)
	}
}

func TestAnUnknownFlagNamesTheNearest(t *testing.T) {
	for flag, want := range map[string]string{"--dryrun": "did you mean --dry-run?",
		"--qwertz": "trow gc --help lists"} {
		if _, _, err := run(t, "./data", "", "gc", flag); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}
