package admission_test

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"trow/admission"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestSpellingsOfOneImageHaveOneCanonicalForm(t *testing.T) {
	for canonical, spellings := range map[string][]string{
		"docker.io/library/nginx:latest": {
			"nginx", "nginx:latest", "library/nginx", "docker.io/nginx", "docker.io/library/nginx:latest",
			"Docker.IO/nginx",
			"index.docker.io/nginx", "index.docker.io/library/nginx:latest", "INDEX.docker.io/nginx",
			"registry-1.docker.io/library/nginx", "registry-1.docker.io/nginx", "docker.io:443/library/nginx",
			"docker.io:443/nginx",
			"docker.io:0443/nginx", "registry-1.docker.io:443/nginx", "registry.hub.docker.com/library/nginx",
			"Registry.Hub.Docker.com:443/nginx",
		},
		"docker.io/team/app:1":       {"team/app:1", "docker.io/team/app:1"},
		"docker.io/library/foo:5000": {"foo:5000"},
		"quay.io/x:latest": {
			"quay.io/x", "QUAY.IO/x", "Quay.io/x:latest", "quay.io:443/x", "quay.io:000443/x",
		},
		"docker.io:10443/x:latest": {"docker.io:10443/x"},
		// a first component in upper case is a host
		"foo:443/bar:latest":                   {"FOO/bar", "foo:0443/bar"},
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
		"docker.io./x":                        "not a valid host: it ends with a dot", // the same host to DNS
		"quay.io.:443/x":                      "not a valid host: it ends with a dot",
		"127.1:31000/x":                       "the host is not a valid IPv4 address; write 127.0.0.1:31000",
		"0x7f.0.513:0443/x":                   "write 127.0.2.1",
		"0177.0.0.1/x":                        "write 127.0.0.1",
		"3221225985:5000/x":                   "write 192.0.2.1:5000",
		"1.2.3.256/x":                         "the host is not a valid IPv4 address",
		"09.1/x":                              "the host is not a valid IPv4 address",
		"[:::]:5000/x":                        "the host is not a valid IPv6 address",
		"quay.io:0/x":                         "the host is not valid: its port is not between 1 and 65535",
		"quay.io:65536/x":                     "its port is not between 1 and 65535",
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
		"", "nginx", "0_0.0/0", "docker.io:443/library/nginx", "QUAY.IO/x", "FOO/bar",
		"a:b@sha256:" + hex64, "sha256:" +
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
		// The canonical text means the same.
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

// dialKey returns what is dialed for a host[:port], by the parsers of the standard library.
func dialKey(t *testing.T, domain string) string {
	u, err := url.Parse("https://" + strings.ToLower(domain))
	if err != nil {
		t.Fatal(err) // a reference has no such host
	}
	host, port := u.Hostname(), cmp.Or(u.Port(), "443")
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort(host, strconv.Itoa(n))
}

// FuzzHosts checks that two hosts for which the same is dialed are one host to a rule that denies, and that nothing
// else is.
func FuzzHosts(f *testing.F) {
	for _, pair := range [][2]string{
		{"quay.io", "QUAY.io:0443"}, {"10.0.0.7:5000", "[::ffff:a00:7]:05000"}, {"[::1]", "[0:0:0:0:0:0:0:1]:443"},
		{"FOO", "foo:443"}, {"127.1", "127.0.0.1"}, {"a.b:1", "a.b:10"}, {"0.0.0.0:1", "[::]:1"},
		{"docker.io", "docker.io:1"},
	} {
		f.Add(pair[0], pair[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		ra, errA := admission.ParseReference(a + "/team/x")
		rb, errB := admission.ParseReference(b + "/team/x")
		if errA != nil || errB != nil || ra.Short || rb.Short || strings.ContainsAny(a+b, "/@") {
			return
		}
		p, err := admission.NewPolicy(admission.PolicyOptions{Default: "Allow", Deny: []string{ra.Domain}})
		if err != nil {
			t.Fatalf("%q is %q, which is no prefix: %v", a, ra.Domain, err)
		}
		same := dialKey(t, a) == dialKey(t, b)
		if v := p.Decide(t.Context(), nil, b+"/team/x"); same && v.Allowed {
			t.Errorf("%q is denied (%s), and %q is allowed (%s)", a, ra.Domain, b, rb.Domain)
		} else if special := ra.Domain == "docker.io" || strings.HasPrefix(ra.Domain, "127.0.0.1") ||
			strings.HasPrefix(ra.Domain, "[::1]"); !same && !v.Allowed && !special {
			t.Errorf("%q is %s, and %q is %s", a, ra.Domain, b, rb.Domain)
		}
	})
}

func TestCanonicalHostsCostNoAllocation(t *testing.T) {
	images := []string{"quay.io/team/x:1", "trow.kube-public:31000/app:1", "10.0.0.7:5000/x:1"}
	p := newPolicy(t, admission.PolicyOptions{Default: "Allow", Names: []string{"trow:31000"}})
	for _, image := range images { // the first verdict parses, and others look up
		p.Decide(t.Context(), nil, image)
	}
	if n := testing.AllocsPerRun(100, func() {
		for _, image := range images {
			p.Decide(t.Context(), nil, image)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
