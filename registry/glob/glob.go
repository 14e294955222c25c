// Package glob matches names of repositories and tags with the patterns that settings and flags have.
//
// # Words
//
//   - pattern: letters, digits, . _ - / and signs: * stands for anything within a path element, ** for any number of
//     them, ? for one character; or a regular expression between slashes.
//
// # Invariants
//
// A pattern matches whole names. Matching takes time linear in the name, whatever the pattern (package regexp).
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

// Set is a number of patterns. The zero value matches nothing.
type Set []*regexp.Regexp

// Compile reads patterns. An error names the one that is none.
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

// Match tells whether any of the patterns matches a name.
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
			return nil, fmt.Errorf("%.80q is no regular expression: %w", text, err)
		}
		return re, nil
	}
	if text == "" || strings.ContainsAny(text, " \t,:@[]{}()^$+\\|") {
		return nil, fmt.Errorf("%.80q is no pattern: it may have letters, digits, . _ - / and the signs * ** ?", text)
	}
	expr := regexp.QuoteMeta(text)
	for _, sign := range [][2]string{{`\*\*/`, `(?:.*/)?`}, {`\*\*`, `.*`}, {`\*`, `[^/]*`}, {`\?`, `[^/]`}} {
		expr = strings.ReplaceAll(expr, sign[0], sign[1])
	}
	re, err := regexp.Compile(`^` + expr + `$`)
	if err != nil {
		return nil, fmt.Errorf("%.80q is no pattern: %w", text, err)
	}
	return re, nil
}
