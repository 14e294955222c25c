package server

import (
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
)

// Build returns a line about the program: name, version, the commit it was built from if the toolchain recorded that,
// toolchain and platform.
func Build(name, version string) string {
	var notes []string
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" || s.Key == "vcs.modified" && s.Value == "true" {
				notes = append(notes, strings.TrimPrefix(s.Key, "vcs.")+" "+s.Value)
			}
		}
	}
	slices.Sort(notes)
	notes = append(notes, runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH)
	return name + " " + version + " (" + strings.Join(notes, ", ") + ")"
}
