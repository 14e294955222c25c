package auth_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"trow/registry/auth"
	"trow/registry/settings/settingstest"
)

var load = settingstest.Load[auth.Options]

func TestSettings(t *testing.T) {
	o, err := load(t, `
user: root
rules:
- who: ["*"]
  may: pull
  repositories: ["public/**"]
- who: user:alice, robot:ci
  may: [pull, push]
`, "-p=secret", "--public-url=https://registry.example.org")
	if err != nil {
		t.Fatal(err)
	}
	if o.User != "root" || o.Password != "secret" || o.PublicURL != "https://registry.example.org" ||
		len(o.Rules) != 2 ||
		len(o.Rules[1].Who) != 2 || len(o.Rules[0].May) != 1 {
		t.Errorf("%+v", o)
	}
	p, err := o.Policy()
	if err != nil || p.Rules() != 2 || p.Anonymous != auth.None {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestSettingsThatAreInvalid(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	write(t, empty, "\n")
	rules := "rules: [{who: '*', may: pull}]\n"
	for want, flags := range map[string][]string{
		"password-file: conflicts with password": {"", "-u=u", "-p=p", "--password-file=" + empty},
		"is empty":                               {"", "-u=u", "--password-file=" + empty},
		"password-file: open /nowhere":           {"", "-u=u", "--password-file=/nowhere"},
		"anonymous: cannot be combined":          {rules, "--anonymous=pull"},
		`anonymous: "delete": want one of`:       {"", "--anonymous=delete"},
		"public-url: want https://":              {"", "--public-url=registry"},
		"public-url: want https://host[:port][/": {"", "--public-url=https://r.example/a/../b"},
		"public-url: the path must not":          {"", "--public-url=https://r.example/v2/a/"},
		"rules: rule 1: who":                     {"rules: [{may: pull}]\n"},
	} {
		if _, err := load(t, flags[0], flags[1:]...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", flags, err, want)
		}
	}
}

// TestAPasswordFromAPipe can be read only once, however often the options are validated.
func TestAPasswordFromAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() { _ = os.WriteFile(path, []byte("secret\n"), 0) }()
	o, err := load(t, "", "-u=u", "--password-file="+path)
	if err != nil || o.Password != "secret" {
		t.Fatalf("%q, %v", o.Password, err)
	}
	g := guard(t, o)
	if _, err := may(g, withLogin("u", "secret"), "a", auth.Push); err != nil {
		t.Error(err)
	}
}

func TestWhatAnonymousIsByDefault(t *testing.T) {
	for _, row := range []struct {
		o    auth.Options
		want auth.Level
	}{
		{auth.Options{}, auth.CreateOnly},
		{auth.Options{Loopback: true}, auth.CreateOnly},
		{auth.Options{Reviewer: &reviewer{}}, auth.CreateOnly},
		{auth.Options{Anonymous: "pull"}, auth.ReadOnly},
		{auth.Options{User: "u"}, auth.None},
		{auth.Options{User: "u", Anonymous: "push"}, auth.ReadWrite},
		{auth.Options{Htpasswd: "f"}, auth.None},
		{auth.Options{ClientCA: true}, auth.None},
		{auth.Options{Certificate: shown}, auth.None},
		{auth.Options{Rules: []auth.Rule{rule("*", "pull", "")}}, auth.None},
	} {
		for range 2 { // the result is not taken for a setting
			if err := row.o.Validate(); err != nil {
				t.Error(err)
			}
		}
		if p, err := row.o.Policy(); err != nil || p.Anonymous != row.want {
			t.Errorf("%+v: %v, %v", row.o, p, err)
		}
	}
}

func TestSummary(t *testing.T) {
	const readOnly = "; to push and to delete is not possible, because the registry is read-only"
	for _, row := range []struct {
		o    auth.Options
		want string
	}{
		{auth.Options{},
			"pull, and push of what is new; to move or delete a tag is not possible, because there are no users"},
		{auth.Options{Loopback: true}, "pull, push and delete (only this machine can connect)"},
		{auth.Options{Anonymous: "push"},
			"pull and push, for every client that can connect; delete is not possible, because there are no users"},
		{auth.Options{Anonymous: "push", Loopback: true}, "pull, push and delete (only this machine can connect)"},
		{auth.Options{Anonymous: "pull", User: "u", Password: "p"}, "pull; everything else needs a login"},
		{auth.Options{User: "u", Password: "p"}, "nothing"},
		{auth.Options{Rules: []auth.Rule{rule("*", "pull", "")}},
			"what the 1 rules of the configuration file allow; ask with trow can-i"},
		// A read-only registry said that it could be pushed to.
		{auth.Options{ReadOnly: true, Loopback: true}, "pull" + readOnly},
		{auth.Options{ReadOnly: true, Anonymous: "push"}, "pull" + readOnly},
		{auth.Options{ReadOnly: true, Anonymous: "pull"}, "pull" + readOnly},
		{auth.Options{ReadOnly: true}, "pull" + readOnly},
		{auth.Options{ReadOnly: true, User: "u", Password: "p"}, "nothing" + readOnly},
		{auth.Options{ReadOnly: true, Rules: []auth.Rule{rule("*", "pull", "")}},
			"pull, as the 1 rules of the configuration file allow (ask with trow can-i)" + readOnly},
	} {
		if got := byDefault(t, row.o).Summary(); got != row.want {
			t.Errorf("%q, want %q", got, row.want)
		}
	}
}

// TestAPipeIsReadOnce: a reload of the configuration file validates the options again, and a second read of a pipe
// would wait for ever. A regular file is read each time.
func TestAPipeIsReadOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- os.WriteFile(path, []byte("secret\n"), 0) }()
	for range 3 {
		o := auth.Options{User: "u", PasswordFile: path}
		if err := o.Validate(); err != nil || o.Password != "secret" {
			t.Fatalf("%q, %v", o.Password, err)
		}
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	for _, password := range []string{"one", "two"} {
		if err := os.WriteFile(file, []byte(password), 0o600); err != nil {
			t.Fatal(err)
		}
		o := auth.Options{User: "u", PasswordFile: file}
		if err := o.Validate(); err != nil || o.Password != password {
			t.Errorf("%q, %v; want %q", o.Password, err, password)
		}
	}
}
