// Package glob matches names of repositories and tags against patterns in settings and flags.
//
// # Words
//
//   - pattern: letters, digits, . _ - / and wildcards: * matches any characters within a path element, ** any number of
//     elements, ? one character; or a regular expression between slashes.
//
// # Invariants
//
// A pattern matches the entire name. Matching takes time linear in the length of the name, whatever the pattern is
// (package regexp).
//
// # What it does not do
//
// It does not know what a valid name is.
package glob

import (
	"fmt"
	"regexp"
	"strings"
)

// Set is a list of patterns. The zero value matches nothing.
type Set []*regexp.Regexp

// Compile reads patterns. An error names the invalid pattern.
func Compile(texts ...string) (Set, error) {
	var all Set
	for _, text := range texts {
		re, err := pattern(text)
		if err != nil {
			return nil, err
		}
		all = append(all, re)
	}
	return all, nil
}

// Match reports whether one of the patterns matches a name.
func (s Set) Match(name string) bool {
	for _, re := range s {
		if re.MatchString(name) {
			return true
		}
	}
	return false
}

func pattern(text string) (*regexp.Regexp, error) {
	if inner, ok := strings.CutPrefix(text, "/"); ok && len(inner) > 1 && strings.HasSuffix(inner, "/") {
		re, err := regexp.Compile(`^(?:` + strings.TrimSuffix(inner, "/") + `)$`)
		if err != nil {
			return nil, fmt.Errorf("%.80q is not a valid regular expression: %w", text, err)
		}
		return re, nil
	}
	if text == "" || strings.ContainsAny(text, " \t,:@[]{}()^$+\\|") {
		return nil, fmt.Errorf("%.80q is not a valid pattern: want letters, digits, . _ - / and the wildcards * ** ?",
			text)
	}
	expr := regexp.QuoteMeta(text)
	// The longer wildcards come first, because they contain the shorter ones. "**/" also matches no element at all.
	for _, sign := range [][2]string{{`\*\*/`, `(?:.*/)?`}, {`\*\*`, `.*`}, {`\*`, `[^/]*`}, {`\?`, `[^/]`}} {
		expr = strings.ReplaceAll(expr, sign[0], sign[1])
	}
	re, err := regexp.Compile(`^` + expr + `$`)
	if err != nil {
		return nil, fmt.Errorf("%.80q is not a valid pattern: %w", text, err)
	}
	return re, nil
}
