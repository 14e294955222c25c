package platform_test

import (
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"trow/registry/platform"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"linux/amd64": "linux/amd64", "windows/amd64": "windows/amd64", "Linux/AMD64": "linux/amd64",
		"linux/x86_64": "linux/amd64", "linux/x86-64": "linux/amd64", "linux/amd64/v1": "linux/amd64",
		"linux/amd64/v3": "linux/amd64/v3", "linux/i386": "linux/386", "linux/i386/x": "linux/386",
		"linux/aarch64": "linux/arm64", "linux/arm64/v8": "linux/arm64", "linux/arm64/8": "linux/arm64",
		"linux/aarch64/v8.0": "linux/arm64", "linux/arm64/v9.0": "linux/arm64/v9", "linux/arm64/9": "linux/arm64/v9",
		"linux/arm": "linux/arm", "linux/arm/v7": "linux/arm/v7", "linux/arm/7": "linux/arm/v7",
		"linux/arm/6": "linux/arm/v6", "linux/armhf": "linux/arm/v7", "linux/armel": "linux/arm/v6",
		"macos/arm64": "darwin/arm64", "linux/riscv64": "linux/riscv64", "linux/ppc64le": "linux/ppc64le",

		"": "", "amd64": "", "linux": "", "linux/": "", "/amd64": "", "linux/amd64/": "", "a/b/c/d": "",
		"linux amd64": "", "linux/../x": "", "*": "", "linux/" + strings.Repeat("a", 33): "", "linux/amd64\n": "",
	} {
		p, err := platform.Parse(text)
		switch {
		case (err == nil) != (want != ""):
			t.Errorf("%q: %v", text, err)
		case err == nil && platform.Text(&p) != want:
			t.Errorf("%q is %s, want %s", text, platform.Text(&p), want)
		}
	}
	if all, err := platform.ParseAll([]string{"linux/amd64", "linux"}); err == nil || all != nil {
		t.Errorf("%v, %v", all, err)
	}
	if all, err := platform.ParseAll(nil); err != nil || all != nil {
		t.Errorf("%v, %v", all, err)
	}
}

// TestWanted has the rows of which containerd on a node decides in the same way.
func TestWanted(t *testing.T) {
	for _, row := range []struct {
		wanted, has string
		want        bool
	}{
		{"linux/amd64", "linux/amd64", true},
		{"linux/amd64", "windows/amd64", false},
		{"linux/amd64", "linux/arm64", false},
		{"linux/amd64", "linux/x86_64", true},
		{"linux/x86_64", "linux/amd64", true},
		{"linux/amd64", "Linux/AMD64", true},
		{"linux/amd64", "linux/amd64p32", false},
		{"linux/amd64/v3", "linux/amd64", true}, // runs on all variants
		{"linux/amd64/v3", "linux/amd64/v3", true},
		{"linux/amd64/v3", "linux/amd64/v4", false},
		{"linux/amd64", "linux/amd64/v3", true},
		{"linux/arm64", "linux/arm64/v8", true},
		{"linux/arm64/v8", "linux/arm64", true},
		{"linux/arm64", "linux/aarch64", true},
		{"linux/aarch64", "linux/arm64/v8", true},
		{"linux/arm64", "linux/arm/v7", false},
		{"linux/arm/v7", "linux/arm", true},
		{"linux/arm/v6", "linux/arm", false}, // an image for linux/arm is for v7
		{"linux/arm", "linux/arm/v6", true},
		{"linux/arm", "linux/arm", true},
		{"linux/arm/v7", "linux/arm/v6", false},
		{"linux/arm/v6", "linux/armel", true},
		{"linux/arm/v7", "linux/armhf", true},
		{"linux/386", "linux/i386", true},
		{"linux/amd64", "unknown/unknown", false},
		{"linux/amd64", "", false},
	} {
		w, err := platform.Parse(row.wanted)
		if err != nil {
			t.Fatal(err)
		}
		if got := platform.Wanted([]v1.Platform{w}, platform.Split(row.has)); got != row.want {
			t.Errorf("%+v: %t", row, got)
		}
	}
	s390x := v1.Platform{OS: "linux", Architecture: "s390x"}
	if !platform.Wanted(nil, s390x) || platform.Wanted([]v1.Platform{}, s390x) {
		t.Error("nil stands for all platforms, an empty list for none")
	}
}

func TestText(t *testing.T) {
	for text, known := range map[string]bool{"linux/amd64": true, "linux/arm/v7": true, "unknown/unknown": false} {
		p := platform.Split(text)
		if platform.Text(&p) != text || platform.Known(&p) != known || platform.Runs(p) != known {
			t.Errorf("%q: %q, %v", text, platform.Text(&p), platform.Known(&p))
		}
	}
	if platform.Text(nil) != "" || platform.Known(nil) || platform.Known(&v1.Platform{}) {
		t.Error("no platform has a text")
	}
	if !platform.Runs(v1.Platform{Architecture: "amd64"}) {
		t.Error("only what is said to be unknown does not run")
	}
}
