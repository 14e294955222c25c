package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// readKnown reads the known survivors and their reasons. Lines that begin with # are comments, and indented lines are
// the reason of the survivor above them. It returns an error for a survivor without a reason, and for one that occurs
// twice.
func readKnown(file string) (map[string]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	known := map[string]string{}
	last := ""
	for i, line := range strings.Split(string(data), "\n") {
		text := strings.TrimSpace(line)
		_, twice := known[text]
		switch {
		case text == "" || strings.HasPrefix(line, "#"):
		case line[0] == ' ' && last == "":
			return nil, fmt.Errorf("%s:%d: a reason without a survivor", file, i+1)
		case line[0] == ' ':
			known[last] = strings.TrimSpace(known[last] + " " + text)
		case twice:
			return nil, fmt.Errorf("%s:%d: occurs twice: %s", file, i+1, text)
		default:
			last = text
			known[last] = ""
		}
	}
	for key, reason := range known {
		if reason == "" {
			return nil, fmt.Errorf("%s: no reason for: %s; write it below, indented", file, key)
		}
	}
	return known, nil
}

// stale returns the known survivors of a package that are not survivors, of those that only matches.
func stale(known map[string]string, pkg string, survivors []string, only *regexp.Regexp) []string {
	var s []string
	for key := range known {
		if strings.HasPrefix(key, pkg+" ") && only.MatchString(key) && !slices.Contains(survivors, key) {
			s = append(s, key)
		}
	}
	slices.Sort(s)
	return s
}
