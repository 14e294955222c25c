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

// rewriteReadme replaces the tables in a file. Errors: the file does not have the two lines once each, in this order.
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

// between replaces the text between the two lines.
func between(old, text string) (string, error) {
	before, rest, started := strings.Cut(old, beginMark)
	_, after, ended := strings.Cut(rest, endMark)
	if !started || !ended || strings.Contains(after, beginMark) || strings.Contains(after, endMark) {
		return "", fmt.Errorf("want the lines %s and %s once each, in this order",
			strings.TrimSpace(beginMark), strings.TrimSpace(endMark))
	}
	return before + beginMark + "\n" + strings.TrimSpace(text) + "\n\n" + endMark + after, nil
}
