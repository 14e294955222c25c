package main

import (
	"fmt"
	"os"
	"strings"
)

// readmeFile is the file that --readme rewrites, below the repository's root.
const readmeFile = "registry/bench/README.md"

// The tables are between these two lines.
const (
	beginMark = "<!-- comparison:begin -->\n"
	endMark   = "<!-- comparison:end -->\n"
)

// rewriteReadme puts the tables into a file. Errors: that the file does not have the two lines, once each, in order.
func rewriteReadme(path, text string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	changed, err := between(string(b), text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(changed), 0o644)
}

// between replaces what stands between the two lines.
func between(old, text string) (string, error) {
	before, rest, begun := strings.Cut(old, beginMark)
	_, after, ended := strings.Cut(rest, endMark)
	if !begun || !ended || strings.Contains(after, beginMark) || strings.Contains(after, endMark) {
		return "", fmt.Errorf("the lines %s and %s must be there once, in this order", strings.TrimSpace(beginMark), strings.TrimSpace(endMark))
	}
	return before + beginMark + "\n" + strings.TrimSpace(text) + "\n\n" + endMark + after, nil
}
