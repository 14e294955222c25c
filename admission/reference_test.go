package admission_test

import (
	"errors"
	"strings"
	"testing"
	"unicode"

	"trow/admission"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestSpellingsOfOneImageHaveOneCanonicalForm(t *testing.T) {
	for canonical, spellings := range map[string][]string{
		"docker.io/library/nginx:latest": {
			"nginx", "nginx:latest", "library/nginx", "docker.io/nginx", "docker.io/library/nginx:latest", "Docker.IO/nginx",
			"index.docker.io/nginx", "index.docker.io/library/nginx:latest", "INDEX.docker.io/nginx",
			"registry-1.docker.io/library/nginx", "registry-1.docker.io/nginx", "docker.io:443/library/nginx",
			"docker.io:443/nginx",
			"docker.io:0443/nginx", "registry-1.docker.io:443/nginx",
		},
		"docker.io/team/app:1":                 {"team/app:1", "docker.io/team/app:1"},
		"docker.io/library/foo:5000":           {"foo:5000"},
		"quay.io/x:latest":                     {"quay.io/x", "QUAY.IO/x", "Quay.io/x:latest"},
		"quay.io:443/x:latest":                 {"quay.io:443/x"},
		"docker.io:10443/x:latest":             {"docker.io:10443/x"},
		"foo/bar:latest":                       {"FOO/bar"}, // a first component in upper case is a host
		"localhost/x:latest":                   {"localhost/x"},
		"docker.io/localhostevil/x:latest":     {"localhostevil/x"},
		"[::1]:5000/x:latest":                  {"[::1]:5000/x"},
		host + "/app:1":                        {host + "/app:1", "Trow.Kube-Public:31000/app:1"},
		host + "/app@sha256:" + hex64:          {host + "/app@sha256:" + hex64, host + "/app:1@sha256:" + hex64},
		"docker.io/library/sha256:" + "latest": {"sha256"},
	} {
		for _, s := range spellings {
			r, err := admission.ParseReference(s)
			if err != nil {
				t.Errorf("%s: %v", s, err)
			} else if r.String() != canonical {
				t.Errorf("%s is %s, want %s", s, r, canonical)
			}
		}
	}
}

func TestTheNameInSentencesHasNoTagAndNoLibrary(t *testing.T) {
	for s, want := range map[string]string{
		"nginx":                           "docker.io/nginx",
		"nginx:1.21.0":                    "docker.io/nginx",
		"docker.io/nginx":                 "docker.io/nginx",
		"docker.io/library/nginx:1.21.0":  "docker.io/nginx",
		"docker.io/library/a/b":           "docker.io/library/a/b",
		"team/app@sha256:" + hex64:        "docker.io/team/app",
		"quay.io/library/nginx":           "quay.io/library/nginx",
		host + "/app:1":                   host + "/app",
		"registry.k8s.io/coredns/coredns": "registry.k8s.io/coredns/coredns",
	} {
		r, err := admission.ParseReference(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
		} else if r.Name() != want {
			t.Errorf("%s is named %s, want %s", s, r.Name(), want)
		}
	}
}

func TestInvalidReferencesAreRefusedWithAReason(t *testing.T) {
	const cached = "cache"
	for s, reason := range map[string]string{
		"":                                    "empty",
		" ":                                   "not a valid",
		"nginx ":                              "not a valid",
		"nginx\n":                             "not a valid",
		"a//b":                                "not a valid",
		"https://quay.io/x":                   "not a valid",
		"docker.io./x":                        "not a valid", // a trailing dot is the same host to DNS
		"[fe80::1%25eth0]/x":                  "not a valid",
		"quay.io/x:":                          "not a valid",
		"quay.io/x@":                          "not a valid",
		"Nginx":                               "lower case",
		"quay.io/Team/x":                      "lower case",
		"quay.io/x@sha256:abc":                "not a valid",
		"quay.io/x@sha256:" + hex64[1:]:       "digest is malformed",
		"quay.io/x@sha257:" + hex64:           "not supported",
		"sha256:" + hex64:                     cached,
		"sha512:" + hex64 + hex64:             cached,
		"sha256:" + hex64[:12]:                cached, // cut short, as containerd accepts it
		"sha256:x@sha256:" + hex64:            cached,
		hex64:                                 cached,
		"quay.io/" + strings.Repeat("a", 256): "255",
		strings.Repeat("a", 1025):             "1024",
		"quay.io/x\x00":                       "not a valid",
		"quay.io/\xff":                        "not a valid",
		"квай.io/x":                           "not a valid",
		"a_b.example/x":                       "not a valid host", // to the parser a path without a host
		"0_0.0/0":                             "not a valid host",
	} {
		_, err := admission.ParseReference(s)
		var invalid *admission.InvalidError
		if !errors.As(err, &invalid) || !strings.Contains(invalid.Reason, reason) {
			t.Errorf("%q: got %v, want a reason with %q", s, err, reason)
		}
	}
}

func TestTheErrorIsSafeToPrint(t *testing.T) {
	for _, s := range []string{"a\nb\x1b[31mRed", strings.Repeat("€", 5000), strings.Repeat("X", 101),
		strings.Repeat("a", 99) + "€"} {
		_, err := admission.ParseReference(s)
		if err == nil {
			t.Fatalf("%q is accepted", s)
		}
		if text := err.Error(); len(text) > 800 || strings.ContainsFunc(text, notPrintable) {
			t.Errorf("%q (%d bytes)", text, len(text))
		}
	}
}

func notPrintable(r rune) bool { return r > unicode.MaxASCII || !unicode.IsPrint(r) }

func FuzzReference(f *testing.F) {
	for _, s := range []string{
		"", "nginx", "0_0.0/0", "docker.io:443/library/nginx", "QUAY.IO/x", "FOO/bar", "a:b@sha256:" + hex64, "sha256:" +
			hex64, hex64, "[::1]:5000/x", "x\xff",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := admission.ParseReference(s)
		if err != nil {
			if text := err.Error(); len(text) > 1000 || strings.ContainsFunc(text, notPrintable) {
				t.Errorf("unsafe text %q", text)
			}
			return
		}
		if r.Domain == "" || r.Path == "" || r.Ref() == "" || r.Domain != strings.ToLower(r.Domain) {
			t.Fatalf("%q is %+v", s, r)
		}
		// The canonical text means the same, unless its host has no mark of one: that needs upper case.
		if !strings.ContainsAny(r.Domain, ".:") && r.Domain != "localhost" {
			return
		}
		again, err := admission.ParseReference(r.String())
		if err != nil || again.String() != r.String() {
			t.Fatalf("%q is %s, which is %s (%v)", s, r, again, err)
		}
	})
}

func BenchmarkParseReference(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := admission.ParseReference(host + "/k8s-php:1.0.0"); err != nil {
			b.Fatal(err)
		}
	}
}
