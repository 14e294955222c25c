package admission_test

import (
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"trow/admission"
)

// messageFor reviews a pod with one image and returns the message of the denial, "" if it is allowed.
func messageFor(t *testing.T, w *admission.Webhook, image string) string {
	t.Helper()
	return reviewPod(t, w, podOf(image)).message()
}

type response struct{ *admissionv1.AdmissionResponse }

func (r response) message() string {
	if r.Allowed {
		return ""
	}
	return r.Result.Message
}

func reviewPod(t *testing.T, w *admission.Webhook, pod object) response {
	t.Helper()
	r, err := w.Review(t.Context(), &admissionv1.AdmissionRequest{
		UID: "u", Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}, Operation: admissionv1.Create,
		Object: runtime.RawExtension{Raw: encode(t, pod)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return response{r}
}

const notContained = " disallowed as not contained in this registry and not in allow list"

func remote(name string) string { return "Remote image " + name + notContained }
func local(image string) string { return "Local image " + image + notContained }

func TestVerdicts(t *testing.T) {
	const allowed = ""
	for _, tt := range []struct {
		name    string
		options admission.PolicyOptions
		verdict map[string]string // image -> message
	}{{
		name: "without rules the images of the registry and of Kubernetes are allowed",
		verdict: map[string]string{
			host + "/k8s-php:1.0.0":              allowed,
			"trow:31000/nginx:1.21.0":            allowed,
			host + "/app@" + digestOf("app one"): allowed,
			"registry.k8s.io/pause:3.10":         allowed,
			"k8s.gcr.io/pause:3.1":               allowed,
			"nginx":                              remote("docker.io/nginx"),
			"nginx:1.21.0":                       remote("docker.io/nginx"),
			"docker.io/nginx":                    remote("docker.io/nginx"),
			"docker.io/library/nginx:1.21.0":     remote("docker.io/nginx"),
			"quay.io/team/app:1":                 remote("quay.io/team/app"),
			host + "/app":                        local(host + "/app"), // there is no latest
			host + "/app:3":                      local(host + "/app:3"),
			host + "/nothing:1":                  local(host + "/nothing:1"),
			"Trow:31000/nothing:1":               local("Trow:31000/nothing:1"),
			// another repository's
			host + "/app@" + digestOf("php one"):      local(host + "/app@" + digestOf("php one")),
			host + "/k8s-php:1.0.0@sha256:" + hex64:   local(host + "/k8s-php:1.0.0@sha256:" + hex64),
			host + "/app:gone@" + digestOf("app one"): allowed, // beside a digest a tag decides nothing
			"registry.k8s.io.example.com/pause:3.10":  remote("registry.k8s.io.example.com/pause"),
			"docker.io/containersol/trow":             remote("docker.io/containersol/trow"),
			"registry.k8s.io:5000/pause":              remote("registry.k8s.io:5000/pause"),
			"NGINX": `Invalid image reference "NGINX": ` +
				`repository names are in lower case`,
		},
	}, {
		name:    "the images of Kubernetes are denied on request",
		options: admission.PolicyOptions{DenyK8sImages: true},
		verdict: map[string]string{"registry.k8s.io/pause:3.10": remote("registry.k8s.io/pause")},
	}, {
		name:    "official images of Docker Hub are those under library",
		options: admission.PolicyOptions{AllowDockerOfficial: true},
		verdict: map[string]string{
			"nginx":                   allowed,
			"docker.io/nginx:1":       allowed,
			"docker.io/library/nginx": allowed,
			"nginx/nginx-ingress":     remote("docker.io/nginx/nginx-ingress"),
			"quay.io/library/nginx":   remote("quay.io/library/nginx"),
		},
	}, {
		name: "a prefix covers whole path components",
		options: admission.PolicyOptions{AllowPrefixes: []string{
			"quay.io/team", "ghcr.io/org/", "GCR.io", "docker.io/nginx", "index.docker.io/bitnami/", "[::1]:5000/x",
		}},
		verdict: map[string]string{
			"quay.io/team:1":                allowed,
			"quay.io/team/x":                allowed,
			"QUAY.io/team/x/y":              allowed,
			"quay.io/team-other":            remote("quay.io/team-other"),
			"quay.io:443/team":              allowed, // the same host
			"quay.io:8443/team":             remote("quay.io:8443/team"),
			"quay.io.evil.com/team":         remote("quay.io.evil.com/team"),
			"ghcr.io/org/x":                 allowed,
			"ghcr.io/org":                   remote("ghcr.io/org"),
			"gcr.io/anything/at/all":        allowed,
			"nginx":                         allowed,
			"docker.io/library/nginx:1":     allowed,
			"nginx/nginx-ingress":           allowed, // the user nginx
			"docker.io/library/nginx-x":     remote("docker.io/nginx-x"),
			"bitnami/redis":                 allowed,
			"bitnami":                       remote("docker.io/bitnami"),
			"[::1]:5000/x":                  allowed,
			"quay.io/library/team":          remote("quay.io/library/team"),
			"docker.io/other/library/nginx": remote("docker.io/other/library/nginx"),
		},
	}, {
		name: "an image of the allow list is that tag or that digest",
		options: admission.PolicyOptions{AllowImages: []string{
			"quay.io/team/app:1", "docker.io/redis", "quay.io/pin@sha256:" + hex64,
			"quay.io/both:1@sha256:" + hex64, host +
				"/soon:1",
		}},
		verdict: map[string]string{
			"quay.io/team/app:1":                 allowed,
			"quay.io/team/app:2":                 remote("quay.io/team/app"),
			"quay.io/team/app":                   remote("quay.io/team/app"),
			"quay.io/team/app:1@sha256:" + hex64: remote("quay.io/team/app"),
			"quay.io/team/app@sha256:" + hex64:   remote("quay.io/team/app"),
			"quay.io/team/app/more:1":            remote("quay.io/team/app/more"),
			"redis":                              allowed,
			"redis:latest":                       allowed,
			"redis:7":                            remote("docker.io/redis"),
			"quay.io/pin@sha256:" + hex64:        allowed,
			"quay.io/pin:any@sha256:" + hex64:    allowed,
			"quay.io/pin:any":                    remote("quay.io/pin"),
			"quay.io/both@sha256:" + hex64:       allowed,
			"quay.io/both:1":                     remote("quay.io/both"),
			host + "/soon:1":                     allowed, // although not in the registry
			"trow:31000/soon:1":                  allowed, // by its other name
			host + "/soon:2":                     local(host + "/soon:2"),
		},
	}, {
		name: "local images can be disallowed by prefix",
		options: admission.PolicyOptions{
			DisallowLocalPrefixes: []string{"team", host + "/k8s-php"},
			AllowImages:           []string{host + "/team/app:1"}, // has no effect
		},
		verdict: map[string]string{
			host + "/team/app:1":       "Local image " + host + "/team/app:1 on deny list",
			"trow:31000/team/app:1":    "Local image trow:31000/team/app:1 on deny list",
			"trow:31000/k8s-php:1.0.0": "Local image trow:31000/k8s-php:1.0.0 on deny list",
			host + "/team-other/x:1":   allowed,
			"quay.io/team/app":         remote("quay.io/team/app"),
			host + "/team/nothing:1":   "Local image " + host + "/team/nothing:1 on deny list",
		},
	}, {
		name:    "a local name alone disallows all local images",
		options: admission.PolicyOptions{DisallowLocalPrefixes: []string{host}},
		verdict: map[string]string{"trow:31000/app:1": "Local image trow:31000/app:1 on deny list"},
	}, {
		name: "local images can be disallowed one by one",
		options: admission.PolicyOptions{
			DisallowLocalImages: []string{"nginx:1.21.0", host + "/k8s-php:1.0.0",
				"app@" + digestOf("app two"), "gone"},
		},
		verdict: map[string]string{
			host + "/nginx:1.21.0":  "Local image " + host + "/nginx:1.21.0 on deny list",
			host + "/k8s-php:1.0.0": "Local image " + host + "/k8s-php:1.0.0 on deny list",
			host + "/app:2":         "Local image " + host + "/app:2 on deny list",
			host + "/app:1":         allowed,
			host + "/gone":          "Local image " + host + "/gone on deny list",
			host + "/gone:1":        local(host + "/gone:1"),
		},
	}, {
		name: "each of the disallowed images of a repository counts, also if the registry does not hold it",
		options: admission.PolicyOptions{
			AllowPrefixes:       []string{host}, // has no effect on them
			DisallowLocalImages: []string{"app:7", "app:8", "nothing:1", "nothing:2"},
		},
		verdict: map[string]string{
			host + "/app:7":     "Local image " + host + "/app:7 on deny list",
			host + "/app:8":     "Local image " + host + "/app:8 on deny list",
			host + "/nothing:2": "Local image " + host + "/nothing:2 on deny list",
			host + "/nothing:3": allowed,
			host + "/app:9":     allowed,
		},
	}, {
		name: "a repository that is called as a local name without its port",
		options: admission.PolicyOptions{
			Names:                 []string{"trow:443"},
			AllowPrefixes:         []string{"trow:443"},
			DisallowLocalPrefixes: []string{"trow/a", "trow:443/b"},
			DisallowLocalImages:   []string{"trow/c", "trow:443/d"},
		},
		verdict: map[string]string{
			"trow:443/trow/a/x": "Local image trow:443/trow/a/x on deny list",
			"trow:443/a/x":      allowed,
			"trow:443/b/x":      "Local image trow:443/b/x on deny list",
			"trow:443/trow/b/x": allowed,
			"trow:443/trow/c":   "Local image trow:443/trow/c on deny list",
			"trow:443/c":        allowed,
			"trow:443/d":        "Local image trow:443/d on deny list",
			"trow:443/trow/d":   allowed,
		},
	}, {
		name: "the longest rule wins, and deny when equal",
		options: admission.PolicyOptions{
			Allow: []string{"quay.io", "quay.io/team/public", "ghcr.io/same", host + "/mirror"},
			Deny: []string{
				"quay.io/team", "ghcr.io/same", "docker.io/nginx", "trow:31000/team", "registry.k8s.io/",
				"k8s.gcr.io/old",
			},
			AllowImages:         []string{"quay.io/team/exception:1"},
			AllowDockerOfficial: true,
		},
		verdict: map[string]string{
			"quay.io/x":                allowed,
			"quay.io/team/x":           "Remote image quay.io/team/x on deny list",
			"quay.io/team/public/x":    allowed,
			"quay.io/team/exception:1": allowed,
			"quay.io/team/exception:2": "Remote image quay.io/team/exception on deny list",
			"ghcr.io/same":             "Remote image ghcr.io/same on deny list",
			"ghcr.io/other":            remote("ghcr.io/other"),
			"redis":                    allowed,
			"nginx":                    "Remote image docker.io/nginx on deny list", // longer than docker.io/library/
			host + "/team/app:1":       "Local image " + host + "/team/app:1 on deny list",
			host + "/mirror/x:1":       allowed,
			"registry.k8s.io/pause":    "Remote image registry.k8s.io/pause on deny list",
			"k8s.gcr.io/pause":         allowed,
		},
	}, {
		name:    "default Allow concerns remote images that no rule covers",
		options: admission.PolicyOptions{Default: "Allow", Deny: []string{"quay.io/team"}},
		verdict: map[string]string{
			"nginx":             allowed,
			"quay.io/other":     allowed,
			"quay.io/team/x":    "Remote image quay.io/team/x on deny list",
			host + "/nothing:1": local(host + "/nothing:1"),
			"":                  `Invalid image reference "": empty`,
		},
	}, {
		name:    "a name without a port is not the name with one",
		options: admission.PolicyOptions{Names: []string{"Registry.example.com"}},
		verdict: map[string]string{
			"registry.example.com/app:1":      allowed,
			"REGISTRY.example.com/app:1":      allowed,
			"registry.example.com:443/app:1":  allowed, // the same host
			"registry.example.com:5000/app:1": remote("registry.example.com:5000/app"),
		},
	}} {
		t.Run(tt.name, func(t *testing.T) {
			w, _ := newWebhook(t, tt.options)
			for image, want := range tt.verdict {
				if got := messageFor(t, w, image); got != want {
					t.Errorf("%s:\n got %q\nwant %q", image, got, want)
				}
			}
		})
	}
}

// TestSpellingsDoNotBypassARule has spellings each of which got around a rule in some policy engine.
func TestSpellingsDoNotBypassARule(t *testing.T) {
	denyHub := admission.PolicyOptions{Default: "Allow", Deny: []string{"docker.io/nginx"}}
	denyTag := admission.PolicyOptions{DisallowLocalImages: []string{"app:1"}}
	allowQuay := admission.PolicyOptions{AllowPrefixes: []string{"quay.io"}}
	allowHub := admission.PolicyOptions{AllowPrefixes: []string{"docker.io"}}
	denyAll := admission.PolicyOptions{DisallowLocalPrefixes: []string{host + "/"}}
	for _, tt := range []struct {
		name    string
		options admission.PolicyOptions
		images  []string
	}{
		{"familiar and canonical names are one image", denyHub,
			[]string{"nginx", "docker.io/nginx", "index.docker.io/library/nginx", "docker.io/library/nginx:latest",
				"library/nginx"}},
		{"an alias and the default port are the same host", denyHub,
			[]string{"registry-1.docker.io/library/nginx", "docker.io:443/library/nginx", "docker.io:00443/nginx"}},
		{"the default port does not evade a deny rule on any host",
			admission.PolicyOptions{Default: "Allow", Deny: []string{"quay.io/team"}},
			[]string{"quay.io:443/team/x", "QUAY.IO:443/team/x"}},
		{"zeros before a port, and other spellings of an address, are the same host",
			admission.PolicyOptions{Default: "Allow", Deny: []string{"quay.io:05000", "[2001:DB8:0::1]:80", "10.0.0.7",
				"registry.hub.docker.com/team/x", "trow:0443", "[::ffff:7f00:2]/x", "example.com.:443"}},
			[]string{"quay.io:5000/x", "QUAY.io:0005000/x", "[2001:db8::1]:80/x", "[2001:0db8:0000:0::1]:080/x",
				"10.0.0.7:443/x", "[::ffff:a00:7]/x", "docker.io/team/x", "index.docker.io:443/team/x", "TROW/x",
				"trow:443/x", "127.0.0.2/x/y", "example.com:443/x", "Example.com/x"}},
		{"an address in a form of the C library is not a host", admission.PolicyOptions{Default: "Allow"},
			[]string{"127.1:31000/x", "0x7f.0.0.1/x", "0177.0.0.1/x", "2130706433:31000/x", "0X7F000001/x",
				"127.0.0.01/x",
				"127.0.0.256/x", "1.2.3.4.5/x", "a.1/x", "a.0x/x", "a.99999999999999999999999999/x", "quay.io:65536/x",
				"quay.io:0/x", "quay.io:99999999999999999999/x", "[:::]/x", "[1]/x"}},
		{"the unspecified address is loopback", admission.PolicyOptions{Default: "Allow",
			Deny: []string{"127.0.0.1:31000", "[::1]:31000"}}, []string{"0.0.0.0:31000/x", "[::]:31000/x"}},
		{"the case of a remote host does not matter",
			admission.PolicyOptions{Default: "Allow", Deny: []string{"quay.io/team"}},
			[]string{"QUAY.IO/team/x", "Quay.io/team"}},
		{"the case of a local host does not matter", denyAll,
			[]string{"Trow.kube-public:31000/app:1", "TROW:31000/app:1"}},
		{"a prefix ends at a component of the host", allowQuay,
			[]string{"quay.io.evil.com/x", "quay.io-evil.com/x", "quay.io:5000/x", "evil.com/quay.io/x"}},
		{"deny by tag catches the digest", denyTag,
			[]string{host + "/app@" + digestOf("app one"), host + "/app:1@" + digestOf("app one"), host + "/app:2@" +
				digestOf("app one")}},
		{"deny by tag catches another tag of the same manifest", denyTag,
			[]string{host + "/app:stable", "trow:31000/app:stable"}},
		{"the ID of a cached image is not an image of Docker Hub", allowHub,
			[]string{"sha256:" + hex64, "sha256:" + hex64[:8], hex64}},
		{"other names of the machine are not local",
			admission.PolicyOptions{}, []string{"127.0.0.1:31000/app:1", "127.1:31000/app:1", "[::1]:31000/app:1",
				"localhost:31000/app:1", "10.0.0.7:31000/app:1"}},
		{"another port of a local name is not local", admission.PolicyOptions{},
			[]string{"trow.kube-public/app:1", "trow.kube-public:31001/app:1", "trow.kube-public:0/app:1"}},
		{"a trailing dot does not help", admission.PolicyOptions{Default: "Allow"},
			[]string{"docker.io./x", "trow.kube-public.:31000/app:1"}},
		{"a rule for one local name holds for the others",
			admission.PolicyOptions{Deny: []string{host + "/app"}}, []string{"trow:31000/app:1"}},
		{"a host that the parser does not take for one is not local",
			admission.PolicyOptions{AllowPrefixes: []string{host}}, []string{"a_b.example/x", "0_0.0/0"}},
		{"blank and auto are not left open in a pod", allowQuay, []string{"", " ", "auto"}},
		{"a local name is not a prefix of another", admission.PolicyOptions{},
			[]string{"trow:310000/app:1", "xtrow:31000/app:1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, _ := newWebhook(t, tt.options)
			for _, image := range tt.images {
				if messageFor(t, w, image) == "" {
					t.Errorf("%s is allowed", image)
				}
			}
		})
	}
}

func TestInvalidSettingsAreRefused(t *testing.T) {
	for _, tt := range []struct {
		name    string
		options admission.PolicyOptions
		want    string
	}{
		{"a prefix without a host", admission.PolicyOptions{AllowPrefixes: []string{"team/x"}},
			`allow-prefixes: "team/x": no host; for Docker Hub write docker.io/team/x`},
		{"an empty prefix", admission.PolicyOptions{Allow: []string{""}}, `allow: "": no host`},
		{"a prefix with a scheme", admission.PolicyOptions{Deny: []string{"https://quay.io"}},
			`deny: "https://quay.io": remove the scheme`},
		{"a prefix with a star", admission.PolicyOptions{Allow: []string{"quay.io/*"}}, "remove the *"},
		{"a prefix with a tag", admission.PolicyOptions{Allow: []string{"quay.io/x:1"}}, "neither tag nor digest"},
		{"a prefix in upper case", admission.PolicyOptions{AllowPrefixes: []string{"quay.io/Team"}},
			`allow-prefixes: "quay.io/Team": repository names are in lower case`},
		{"a prefix that ends within a component", admission.PolicyOptions{Allow: []string{"quay.io/team-"}},
			"whole path components"},
		{"a prefix with an invalid host", admission.PolicyOptions{Allow: []string{"quay.io:x/team"}},
			"not a valid host[:port]"},
		{"an image without a host", admission.PolicyOptions{AllowImages: []string{"nginx"}},
			`allow-images: "nginx": no host; write docker.io/nginx`},
		{"an invalid image", admission.PolicyOptions{AllowImages: []string{"quay.io/X"}},
			`allow-images: "quay.io/X": repository names are in lower case`},
		{"a name without domain and port", admission.PolicyOptions{Names: []string{"trow"}},
			`names: "trow": trow/app would mean an image of Docker Hub`},
		{"a name with a path", admission.PolicyOptions{Names: []string{"trow:31000/x"}},
			`names: "trow:31000/x": not a valid host[:port]; write it without scheme and path`},
		{"a name with a control character", admission.PolicyOptions{Names: []string{"a\x7f.example"}},
			`names: "a\x7f.example": not a valid host[:port]; write it without scheme and path`},
		{"an IPv4 address in brackets", admission.PolicyOptions{Names: []string{"[127.0.0.1]:31000"}},
			`names: "[127.0.0.1]:31000": not a valid host[:port]`},
		{"text in brackets", admission.PolicyOptions{Deny: []string{"[a.example]:31000/x"}}, "not a valid host[:port]"},
		{"nothing in brackets", admission.PolicyOptions{Names: []string{"[]:31000"}}, "not a valid host[:port]"},
		{"an IPv6 address without brackets", admission.PolicyOptions{Names: []string{"2001:db8::1:31000"}},
			`names: "2001:db8::1:31000": not a valid host[:port]`},
		{"a prefix with a port that does not exist", admission.PolicyOptions{Deny: []string{"quay.io:65536"}},
			"its port is not between 1 and 65535"},
		{"a prefix with half an address", admission.PolicyOptions{Deny: []string{"127.1:31000/x"}},
			"not a valid IPv4 address; write 127.0.0.1:31000"},
		{"a name with half an address", admission.PolicyOptions{Names: []string{"0x7f.1:31000"}},
			`names: "0x7f.1:31000": not a valid IPv4 address; write 127.0.0.1:31000`},
		{"a name with a zone", admission.PolicyOptions{Names: []string{"[fe80::1%eth0]:5000"}}, "remove the zone"},
		{"a prefix with a zone", admission.PolicyOptions{Deny: []string{"[fe80::1%25eth0]/x"}}, "remove the zone"},
		{"a name without its port", admission.PolicyOptions{Names: []string{"trow:"}}, "its port is missing"},
		{"a name in Unicode", admission.PolicyOptions{Names: []string{"b\u00fccher.example"}}, "write it as xn--"},
		{"Docker Hub by another name", admission.PolicyOptions{Names: []string{"registry.hub.docker.com:0443"}},
			"this is Docker Hub"},
		{"a name with a scheme", admission.PolicyOptions{Names: []string{"https://trow:31000"}},
			"not a valid host[:port]"},
		{"Docker Hub as a name", admission.PolicyOptions{Names: []string{"docker.io"}}, "this is Docker Hub"},
		{"a local prefix of another host", admission.PolicyOptions{DisallowLocalPrefixes: []string{"trow:5000/x"}},
			`disallow-local-prefixes: "trow:5000/x": "trow:5000" is not one of names`},
		{"an empty local prefix", admission.PolicyOptions{DisallowLocalPrefixes: []string{""}}, ": empty"},
		{"a local prefix with a tag", admission.PolicyOptions{DisallowLocalPrefixes: []string{"x:1"}},
			"neither tag nor digest"},
		{"a local image of another host", admission.PolicyOptions{DisallowLocalImages: []string{"trow:5000/x"}},
			"is not one of names"},
		{"an invalid local image", admission.PolicyOptions{DisallowLocalImages: []string{"X"}},
			`disallow-local-images: "X": repository names`},
		{"an invalid default", admission.PolicyOptions{Default: "maybe"}, `default: "maybe": want Allow or Deny`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.options.Names == nil {
				tt.options.Names = localNames
			}
			_, err := admission.NewPolicy(tt.options)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestAllInvalidSettingsAreReportedAtOnce(t *testing.T) {
	_, err := admission.NewPolicy(admission.PolicyOptions{Names: []string{"a"}, Allow: []string{"b", "c"},
		Default: "d"})
	if err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("got %v", err)
	}
}

func TestLocalReportsTheImagesOfTheRegistry(t *testing.T) {
	names := append(localNames, "[::ffff:127.0.0.1]:31000", "[::1]:031000") // a setting may end in an IPv4 address
	p := newPolicy(t, admission.PolicyOptions{Default: "deny", Names: names})
	for image, want := range map[string]bool{"TROW:31000/x": true, "trow:031000/x": true, "quay.io/x": false,
		"x": false, "[0:0::1]:31000/x": true, "[::ffff:7f00:1]:31000/x": true, "0.0.0.0:31000/x": true,
		"127.0.0.1:31000/x": true} {
		r, err := admission.ParseReference(image)
		if err != nil || p.Local(r) != want {
			t.Errorf("%s: local is %v (%v)", image, !want, err)
		}
	}
}
