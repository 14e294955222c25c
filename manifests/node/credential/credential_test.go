package credential_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	kubelet "k8s.io/kubelet/config/v1"
	credentialprovider "k8s.io/kubelet/pkg/apis/credentialprovider/v1"
	"sigs.k8s.io/yaml"

	"trow/manifests/node/credential"
)

var now = time.Unix(1_800_000_000, 0)

// token returns a token with these claims.
func token(claims string) string {
	return "eyJhbGciOiJSUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2lnbmF0dXJl"
}

func lasting(d time.Duration) string { return token(fmt.Sprintf(`{"exp":%d}`, now.Add(d).Unix())) }

func request(image, token string) string {
	return fmt.Sprintf(
		`{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":%q,
		"serviceAccountToken":%q,"serviceAccountAnnotations":{"a":"b"},"newer":"than this program"}`, image, token)
}

func TestAnswer(t *testing.T) {
	for _, row := range []struct {
		image, token, host string
		keep               time.Duration
	}{
		{"trow.kube-public:31000/team/app", lasting(time.Hour), "trow.kube-public:31000", 5 * time.Minute},
		{"trow.kube-public:31000/app:1", lasting(3 * time.Minute), "trow.kube-public:31000", 150 * time.Second},
		{"127.0.0.1:31000/app@sha256:" + strings.Repeat("0", 64), lasting(10 * time.Second), "127.0.0.1:31000", 0},
		{"localhost:31000/app", lasting(-time.Hour), "localhost:31000", 0},
		{"[::1]:31000/app", token(`{}`), "[::1]:31000", 0},
		{"trow:31000/app", "opaque", "trow:31000", 0},
		{"registry.example.org/app", token(`[`), "registry.example.org", 0},
		{"registry.example.org/app", "a.!.c", "registry.example.org", 0},
	} {
		var out bytes.Buffer
		if err := credential.Answer(strings.NewReader(request(row.image, row.token)), &out, now); err != nil {
			t.Errorf("%s: %v", row.image, err)
			continue
		}
		var r credentialprovider.CredentialProviderResponse
		d := json.NewDecoder(&out)
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			t.Fatal(err)
		}
		want := credentialprovider.AuthConfig{Username: "serviceaccount", Password: row.token}
		if r.APIVersion != "credentialprovider.kubelet.k8s.io/v1" || r.Kind != "CredentialProviderResponse" ||
			r.CacheKeyType != "Registry" || r.CacheDuration.Duration != row.keep || len(r.Auth) != 1 ||
			r.Auth[row.host] != want {
			t.Errorf("%s: %+v, kept for %s", row.image, r, r.CacheDuration.Duration)
		}
	}
}

func TestRequestsThatCannotBeAnswered(t *testing.T) {
	secret := lasting(time.Hour)
	good := request("trow.kube-public:31000/app", secret)
	for name, row := range map[string]struct {
		in   io.Reader
		want string
	}{
		"nothing":              {strings.NewReader(""), "not the JSON"},
		"no JSON":              {strings.NewReader("{" + secret), "not the JSON"},
		"two":                  {strings.NewReader(good + good), "not the JSON"},
		"a number for a token": {strings.NewReader(strings.Replace(good, `"`+secret+`"`, "1", 1)), "not the JSON"},
		"another version":      {strings.NewReader(strings.Replace(good, "k8s.io/v1", "k8s.io/v1beta1", 1)), "v1beta1"},
		"another kind": {strings.NewReader(strings.Replace(good, "rRequest", "rResponse", 1)),
			"ProviderResponse"},
		"no token": {strings.NewReader(request("trow.kube-public:31000/app", "")), "tokenAttributes"},
		"no image": {strings.NewReader(request("", secret)), "not a valid image reference"},
		"an invalid image": {strings.NewReader(request("trow.kube-public:1/A", secret)),
			"not a valid image reference"},
		"Docker Hub's":        {strings.NewReader(request("nginx", secret)), "too wide"},
		"Docker Hub's, whole": {strings.NewReader(request("docker.io/library/nginx", secret)), "too wide"},
		"no host": {strings.NewReader(request("evil_x.example/app", secret)),
			"not a valid image reference"},
		"Docker Hub's, older":  {strings.NewReader(request("registry-1.docker.io/app", secret)), "too wide"},
		"a port too high":      {strings.NewReader(request("a.example:99999/app", secret)), "between 1 and 65535"},
		"port 0":               {strings.NewReader(request("a.example:0/app", secret)), "between 1 and 65535"},
		"five numbers":         {strings.NewReader(request("1.2.3.4.5/app", secret)), "not a valid IPv4 address"},
		"a hexadecimal number": {strings.NewReader(request("0x7f.1/app", secret)), "not a valid IPv4 address"},
		"a user": {strings.NewReader(request("trow:1@evil.example/app", secret)),
			"not a valid image reference"},
		"too large":     {strings.NewReader(good + strings.Repeat(" ", 1<<20)), "more than 1048576 bytes"},
		"a broken pipe": {iotest.ErrReader(errors.New("broken pipe")), "broken pipe"},
	} {
		var out bytes.Buffer
		err := credential.Answer(row.in, &out, now)
		if err == nil || !strings.Contains(err.Error(), row.want) || out.Len() != 0 {
			t.Errorf("%s: %v, %s", name, err, out.String())
		}
		if err != nil && strings.Contains(err.Error(), strings.Split(secret, ".")[1]) {
			t.Errorf("%s: the token is in the error: %v", name, err)
		}
	}
	if err := credential.Answer(strings.NewReader(good), writer{}, now); err == nil {
		t.Error("a response that cannot be written is not an error")
	}
}

// writer fails.
type writer struct{}

func (writer) Write([]byte) (int, error) { return 0, errors.New("closed") }

// decoded returns the provider in the output of --print-config.
func decoded(t *testing.T, text []byte) kubelet.CredentialProvider {
	t.Helper()
	var c kubelet.CredentialProviderConfig
	if err := yaml.UnmarshalStrict(text, &c); err != nil || c.Kind != "CredentialProviderConfig" ||
		len(c.Providers) != 1 {
		t.Fatalf("%v: %s", err, text)
	}
	return c.Providers[0]
}

func TestTheKubeletsConfiguration(t *testing.T) {
	o := credential.Defaults()
	text, err := credential.Config(o)
	if err != nil {
		t.Fatal(err)
	}
	p := decoded(t, text)
	if p.Name != "trow" ||
		!slices.Equal(p.Args, []string{"credential-provider", "--names=" + strings.Join(o.Names, ",")}) ||
		p.APIVersion != "credentialprovider.kubelet.k8s.io/v1" || !slices.Equal(p.MatchImages, o.Names) ||
		p.DefaultCacheDuration.Duration != 5*time.Minute {
		t.Errorf("the provider: %+v", p)
	}
	a := p.TokenAttributes
	if a == nil || a.ServiceAccountTokenAudience != "trow" || a.CacheType != "Token" || !*a.RequireServiceAccount {
		t.Errorf("the token: %+v", a)
	}
	for _, line := range []string{
		"#        --image-credential-provider-config=/etc/kubernetes/trow-credential-provider.yaml\n",
		"#        --image-credential-provider-bin-dir=/usr/local/lib/trow\n",
		"#        /usr/local/lib/trow/trow\n",
	} {
		if !strings.Contains(string(text), line) {
			t.Errorf("%q is missing in\n%s", line, text)
		}
	}
	o = credential.ConfigOptions{Names: []string{"registry.example.org"}, Audience: "https://registry.example.org",
		Program: "/opt/images", File: "/etc/p.yaml"}
	if text, err = credential.Config(o); err != nil {
		t.Fatal(err)
	}
	p = decoded(t, text)
	if p.Name != "images" || p.TokenAttributes.ServiceAccountTokenAudience != o.Audience ||
		p.MatchImages[0] != "registry.example.org" {
		t.Errorf("with other options: %+v", p)
	}
}

func TestInvalidOptions(t *testing.T) {
	for _, name := range []string{"..", "-", ".", "a..b", "a.example:0", "a.example:99999", "[1]", "[:::::]",
		"docker.io", "index.docker.io", "u@a.example", "0x7f.1", "1.2.3", "a.example.", "a", "a_b.example:1"} {
		o := credential.Defaults()
		o.Names = append(o.Names, name)
		want := fmt.Sprintf("names: %q:", name)
		if _, err := credential.Config(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for want, change := range map[string]func(*credential.ConfigOptions){
		"names: empty":    func(o *credential.ConfigOptions) { o.Names = nil },
		`names: "*.org"`:  func(o *credential.ConfigOptions) { o.Names = []string{"*.org"} },
		`names: "a/b"`:    func(o *credential.ConfigOptions) { o.Names = []string{"a.b", "a/b"} },
		"audience:":       func(o *credential.ConfigOptions) { o.Audience = "a\nb" },
		`program: "trow"`: func(o *credential.ConfigOptions) { o.Program = "trow" },
		"program: \"A":    func(o *credential.ConfigOptions) { o.Program = "/opt/A" },
		`file: "/a/../b"`: func(o *credential.ConfigOptions) { o.File = "/a/../b" },
	} {
		o := credential.Defaults()
		change(&o)
		if _, err := credential.Config(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s, got %v", want, err)
		}
	}
}

func TestTheCommand(t *testing.T) {
	run := func(in string, args ...string) (string, error) {
		var out bytes.Buffer
		cmd := credential.Command()
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetIn(strings.NewReader(in))
		cmd.SetOut(&out)
		cmd.SetArgs(append([]string{}, args...)) // nil would mean os.Args
		err := cmd.Execute()
		return out.String(), err
	}
	out, err := run(request("trow.kube-public:31000/app", "t"))
	if err != nil || !strings.Contains(out, `"password":"t"`) {
		t.Errorf("%v: %s", err, out)
	}
	out, err = run("", "--print-config", "--names=a.example:1,b.example:2", "--audience=x")
	if err != nil || len(decoded(t, []byte(out)).MatchImages) != 2 {
		t.Errorf("%v: %s", err, out)
	}
	out, err = run("", "--print-config", "--audience=-", "--file=x")
	if err == nil || out != "" || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v: %s", err, out)
	}
	// The kubelet's matchImages may be wider than the names: no other host gets the token.
	for _, image := range []string{"registry.evil.example/app", "a.example/app", "a.example:2/app",
		"a.example:1.evil.example/x"} {
		out, err := run(request(image, "t"), "--names=a.example:1,b.example:2")
		if err == nil || out != "" {
			t.Errorf("%s: %v: %s", image, err, out)
		}
	}
	// Names are compared as the webhook does.
	for _, names := range []string{"a.example:1,b.example:2", "B.example.:02", "b.example:2"} {
		if out, err := run(request("b.example:2/app", "t"), "--names="+names); err != nil ||
			!strings.Contains(out, `"b.example:2"`) {
			t.Errorf("%s: %v: %s", names, err, out)
		}
	}
	if out, err := run(request("a.example:443/app", "t"), "--names=a.example"); err != nil ||
		!strings.Contains(out, `"a.example:443"`) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := run("", "more"); err == nil {
		t.Error("an argument is accepted")
	}
}
