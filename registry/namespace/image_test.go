package namespace_test

import (
	"strings"
	"testing"

	"trow/registry/namespace"
)

// TestParseImage: names of images are read as container runtimes read them.
func TestParseImage(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for text, want := range map[string]string{
		"nginx":                         "docker.io/library/nginx:latest",
		"nginx:1.27":                    "docker.io/library/nginx:1.27",
		"team/app":                      "docker.io/team/app:latest",
		"index.docker.io/nginx":         "docker.io/library/nginx:latest",
		"quay.io/a/b:c":                 "quay.io/a/b:c",
		"quay.io:443/a/b":               "quay.io/a/b:latest",
		"QUAY.io/a/b":                   "quay.io/a/b:latest",
		"localhost/app":                 "localhost/app:latest",
		"trow:31000/app":                "trow:31000/app:latest",
		"trow:31000/app:1@" + d:         "trow:31000/app@" + d,
		"nginx@" + d:                    "docker.io/library/nginx@" + d,
		"":                              "",
		"nginx:":                        "",
		"nginx@sha256:1":                "",
		"Nginx":                         "",
		"nginx:a b":                     "",
		"quay.io/":                      "",
		"quay.io/../x":                  "",
		"q_.io/x":                       "",
		"[fd00::1]:5000/app":            "[fd00::1]:5000/app:latest",
		strings.Repeat("a/", 200) + "a": "docker.io/" + strings.Repeat("a/", 200) + "a:latest",
		strings.Repeat("a", 2000):       "",
	} {
		i, err := namespace.ParseImage(text)
		if (err == nil) != (want != "") || err == nil && i.String() != want {
			t.Errorf("%.80q: %v, %v; want %q", text, i, err, want)
		}
	}
}
