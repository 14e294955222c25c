package mirror

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// validPlatform matches os/arch[/variant].
var validPlatform = regexp.MustCompile(`^[a-z0-9]{1,32}/[a-z0-9_-]{1,32}(/[a-z0-9._]{1,32})?$`)

// ParsePlatform parses os/arch[/variant]. Errors: the text has another form.
func ParsePlatform(text string) (p Platform, err error) {
	if !validPlatform.MatchString(text) {
		return p, fmt.Errorf("%.80q is not a platform; want OS/ARCH[/VARIANT], such as linux/arm64", text)
	}
	parts := append(strings.Split(text, "/"), "")
	return Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}, nil
}

// maxListedPlatforms bounds the platforms that a sentence names.
const maxListedPlatforms = 8

// platformList names platforms, each once, as far as they look like platforms: an index may name others as it likes.
func platformList(all []Platform) string {
	var names []string
	for _, p := range all {
		name := strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
		if !validPlatform.MatchString(name) {
			name = "another platform"
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) > maxListedPlatforms {
		names = append(names[:maxListedPlatforms], "others")
	}
	return strings.Join(names, ", ")
}

// Wanted reports whether an image of platform p is one of those that are wanted; of none, all are. A wanted platform
// without a variant stands for all variants.
func Wanted(wanted []Platform, p Platform) bool {
	for _, w := range wanted {
		if w.OS == p.OS && w.Architecture == p.Architecture &&
			(w.Variant == "" || p.Variant == "" || w.Variant == p.Variant) {
			return true
		}
	}
	return wanted == nil
}
