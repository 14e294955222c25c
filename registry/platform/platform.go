// Package platform parses and compares the platforms of images, such as linux/arm64, in the same way for the webhook,
// the cache and the commands. It is a leaf.
//
// # Words
//
//   - platform: os/architecture, or os/architecture/variant, as an index names one for each of its manifests.
//   - wanted platforms: those of the cluster's nodes, or those that a command names.
//
// # Invariants
//
// Platforms are compared in the form to which containerd normalizes them (github.com/containerd/platforms):
// linux/x86_64 is linux/amd64, linux/aarch64 and linux/arm64/v8 are linux/arm64, and an image for linux/arm is for
// linux/arm/v7. The table is written out here, because that module would bring a logger (logrus) with it for these few
// lines.
//
// # What it does not do
//
// It does not know which platforms a processor can run beside its own, such as linux/arm/v7 on linux/arm64, and it does
// not compare os.version and os.features.
package platform

import (
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// unknown is the operating system of manifests that nothing runs, such as the attestations of BuildKit.
const unknown = "unknown"

// valid matches os/arch[/variant]. No platform in use comes near the lengths.
var valid = regexp.MustCompile(`^[A-Za-z0-9]{1,32}/[A-Za-z0-9_-]{1,32}(/[A-Za-z0-9._]{1,32})?$`)

// errForm says which form a platform has. Callers name the text.
var errForm = errors.New("want OS/ARCH[/VARIANT], such as linux/arm64")

// Parse parses os/arch[/variant] and normalizes it, but for one thing: linux/arm stays without a variant, and so stands
// for all of its variants in [Wanted]. Errors: the text has another form.
func Parse(text string) (p v1.Platform, err error) {
	if !valid.MatchString(text) {
		return p, errForm
	}
	p = Split(text)
	p.OS, p.Architecture, p.Variant = normalize(p)
	return p, nil
}

// ParseAll parses each of the texts, see [Parse]. It returns nil if there are none. Errors: one is not valid.
func ParseAll(texts []string) (all []v1.Platform, err error) {
	for _, text := range texts {
		p, err := Parse(text)
		if err != nil {
			return nil, fmt.Errorf("platform: %.80q is not valid; %w", text, err)
		}
		all = append(all, p)
	}
	return all, nil
}

// Server returns the platform of this server's node: images are those of Linux, whatever the server runs on.
func Server() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// Split returns the platform that [Text] has written. It checks nothing, because an index may name anything: what is
// missing is empty.
func Split(text string) (p v1.Platform) {
	var rest string
	p.OS, rest, _ = strings.Cut(text, "/")
	p.Architecture, p.Variant, _ = strings.Cut(rest, "/")
	return p
}

// Text returns os/arch[/variant] as the index has it, or an empty string for nil.
func Text(p *v1.Platform) string {
	switch {
	case p == nil:
		return ""
	case p.Variant == "":
		return p.OS + "/" + p.Architecture
	}
	return p.OS + "/" + p.Architecture + "/" + p.Variant
}

// Known reports whether an index names a platform for a manifest: neither nothing, nor that of manifests that nothing
// runs.
func Known(p *v1.Platform) bool { return p != nil && p.OS != "" && p.OS != unknown }

// Runs reports whether a manifest of the platform could be run at all: attestations, whose platform is unknown/unknown,
// could not.
func Runs(p v1.Platform) bool { return p.OS != unknown }

// Wanted reports whether a manifest for p, as its index names the platform, is for one of the wanted platforms, as
// [Parse] returns them. If wanted is nil, all are; if it is empty, none is. A wanted platform without a variant stands
// for all variants, and a manifest without a variant is for all of them.
func Wanted(wanted []v1.Platform, p v1.Platform) bool {
	if wanted == nil {
		return true
	}
	system, arch, variant := normalize(p)
	if arch == "arm" && variant == "" {
		variant = "v7"
	}
	return slices.ContainsFunc(wanted, func(w v1.Platform) bool {
		return w.OS == system && w.Architecture == arch &&
			(w.Variant == "" || variant == "" || w.Variant == variant)
	})
}

// normalize returns the parts of a platform by their usual names, as normalizeOS and normalizeArch in
// github.com/containerd/platforms have them, but for the variant of linux/arm.
func normalize(p v1.Platform) (system, arch, variant string) {
	system, arch, variant = strings.ToLower(p.OS), strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	if system == "macos" {
		system = "darwin"
	}
	switch arch {
	case "i386":
		return system, "386", ""
	case "x86_64", "x86-64", "amd64":
		arch = "amd64"
		if variant == "v1" {
			variant = ""
		}
	case "aarch64", "arm64":
		arch = "arm64"
		switch variant {
		case "8", "v8", "v8.0":
			variant = ""
		case "9", "9.0", "v9.0":
			variant = "v9"
		}
	case "armhf":
		return system, "arm", "v7"
	case "armel":
		return system, "arm", "v6"
	case "arm":
		switch variant {
		case "5", "6", "7", "8":
			variant = "v" + variant
		}
	}
	return system, arch, variant
}
