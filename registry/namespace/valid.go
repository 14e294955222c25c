package namespace

import (
	"regexp"
	"strings"
)

// This file checks names byte by byte: each request has some, and a regular expression takes a microsecond for each.

// ValidRepo reports whether a text is a valid name of a repository, apart from its length: elements of lower-case
// letters and digits, with '.', '_', '__' or any number of '-' between them, separated by slashes (distribution spec,
// "Pulling manifests").
func ValidRepo(repo string) bool {
	for {
		element, rest, more := strings.Cut(repo, "/")
		if !validElement(element) {
			return false
		}
		if !more {
			return true
		}
		repo = rest
	}
}

// validElement reports whether a text can be one part of a repository's name.
func validElement(s string) bool {
	if s == "" || !alphanumeric(s[0]) || !alphanumeric(s[len(s)-1]) {
		return false
	}
	for i := 0; i < len(s); {
		if alphanumeric(s[i]) {
			i++
			continue
		}
		from := i
		for !alphanumeric(s[i]) { // ends, because the last character is alphanumeric
			i++
		}
		if sep := s[from:i]; sep != "." && sep != "_" && sep != "__" && strings.Trim(sep, "-") != "" {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

// maxTag is how many characters a tag may have.
const maxTag = 128

// ValidTag reports whether s can be a tag: [a-zA-Z0-9_][a-zA-Z0-9._-]{0,127} (distribution spec, "Pulling manifests").
func ValidTag(s string) bool {
	if s == "" || len(s) > maxTag || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !alphanumeric(c) && !('A' <= c && c <= 'Z') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// literal matches an IPv6 address in brackets, with or without a port.
var literal = regexp.MustCompile(`^\[[0-9a-f:.]+\](:[0-9]{1,5})?$`)

// ValidHost reports whether a text in lower case has the form of a host[:port]: a DNS name or an IPv4 address, or an
// IPv6 address in brackets, with or without a port (github.com/distribution/reference, "domain").
func ValidHost(host string) bool {
	if strings.HasPrefix(host, "[") {
		return literal.MatchString(host)
	}
	name, port, has := strings.Cut(host, ":")
	if has && (port == "" || len(port) > 5 || strings.Trim(port, "0123456789") != "") {
		return false
	}
	return validElement(name) && !strings.Contains(name, "_")
}
