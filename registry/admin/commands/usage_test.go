package commands_test

import (
	"strings"
	"testing"
)

// TestErrorsOfTheCommandLine: each names what was meant.
func TestErrorsOfTheCommandLine(t *testing.T) {
	for args, want := range map[string]string{
		"foo":                  `unknown command "foo"; trow --help lists the commands`,
		"tokn":                 `unknown command "tokn"; did you mean trow token?`,
		"remove a":             `unknown command "remove"; did you mean trow rm?`,
		"copy a b":             `unknown command "copy"; did you mean trow cp?`,
		"images":               `unknown command "images"; did you mean trow ls?`,
		"token lst":            `unknown command "lst"; did you mean trow token list?`,
		"token delete":         `unknown command "delete"; did you mean trow token revoke?`,
		"token x y":            `unknown command "x"; trow token --help lists the commands`,
		"help foo":             `unknown command "foo"; trow --help lists the commands`,
		"help token foo":       `unknown command "foo"; trow token --help lists the commands`,
		"completion csh":       `unknown command "csh"; did you mean trow completion`,
		"tags":                 `got no argument; want: trow tags REPOSITORY [flags]`,
		"cp a":                 `got 1 argument ("a"); want: trow cp SOURCE DESTINATION [flags]`,
		"rm a b c d":           `got 4 arguments ("a", "b", "c", …); want: trow rm REFERENCE [flags]`,
		"ls -q -o json":        `--output and --quiet exclude each other; omit one of them`,
		"ls --user a":          `--user needs --password-file as well`,
		"ls --password-file a": `--password-file needs --user as well`,
		"gc --dry-run --now":   `--dry-run and --now exclude each other; omit one of them`,
		"token create a":       `--repository is missing; want: trow token create NAME`,
		"ls -o yaml":           `want table or json; see trow ls --help`,
		"ls --output":          `flag needs an argument: --output; see trow ls --help`,
		"ls --outptu json":     `unknown flag: --outptu; did you mean --output?`,
		"ls -z":                `trow ls --help lists the flags`,
		"inspect https://r.io": `want HOST[:PORT]/REPOSITORY; trow ls https://HOST lists ` +
			`the repositories`,
		"ls https://r.io --server https://a": `server: the argument names a registry already`,
		"du https://r.io --server https://a": `server: the argument names a registry already`,
		"du https://r.io https://s.io":       `names a registry and no repository`,
		"ls localhost:5000":                  `want a repository alone; a registry is named by https://localhost:5000`,
		"tags r.io:5000":                     `want a repository alone; a registry is named by https://r.io:5000`,
		"ls TEAM":                            `"TEAM" is not a valid repository; want lower-case names`,
	} {
		out, _, err := run(t, t.TempDir(), "", strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), `"TEAM"`) > 1 || out != "" {
			t.Errorf("trow %s: printed %q, error %v, want %q", args, out, err, want)
		}
	}
	for _, args := range []string{"", "token", "help", "help token", "help token create"} {
		if out, _, err := run(t, t.TempDir(), "", strings.Fields(args)...); err != nil ||
			!strings.Contains(out, "Usage:") {
			t.Errorf("trow %s: %v: %s", args, err, out)
		}
	}
}

// TestErrorsOfRegistriesNameTheRemedy, and the registry: a command may talk to two.
func TestErrorsOfRegistriesNameTheRemedy(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	s := newRegistry(t)
	s.fill()
	url, _ := s.remote(nil)
	host := strings.TrimPrefix(url, "https://")
	for args, want := range map[string]string{
		"cp team/app " + host + "/a": host + ": tls: failed to verify certificate: x509: ",
		"ls " + url:                  "name the CA of the registry with --cacert",
		"ls https://127.0.0.1:1":     "is this the host and the port of the registry, and does it run?",
		"inspect 127.0.0.1:1/a":      "127.0.0.1:1: dial tcp",
		"ls r.io":                    "lists the repositories; a registry is named by https://r.io",
		"ls none":                    "repository none not found; trow ls lists the repositories",
		"tags none -q":               "repository none not found; trow ls lists the repositories",
		"rm none:1 -y":               "repository none not found; trow ls lists the repositories",
		"inspect team/app@sha256:" + strings.Repeat("0", 64): "; trow tags team/app lists the tags",
	} {
		if _, _, err := s.run("", strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("trow %s: error %v, want %q", args, err, want)
		}
	}
}
