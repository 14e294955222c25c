package admission

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"

	"github.com/distribution/reference"

	"trow/registry/address"
)

// self is the host of local images in references and rules, so that a rule for one local name holds for all of them. No
// parsed reference has an empty host.
const self = ""

// prefix is what a rule covers: all images of a host; a repository and those below it; or, with a trailing slash, only
// those below it.
type prefix struct {
	host    string // canonical, or self
	path    string // without slashes at the ends; "" for the whole host
	beneath bool
	rule    Rule // where it comes from
}

// parsePrefix parses host[:port][/path][/].
func parsePrefix(s string) (prefix, error) {
	if strings.Contains(s, "://") {
		return prefix{}, errors.New("remove the scheme; a prefix starts with the host")
	}
	host, path, _ := strings.Cut(s, "/")
	if !address.LooksLikeHost(host) {
		return prefix{}, fmt.Errorf("no host; for Docker Hub write docker.io/%s", strings.ToLower(s))
	}
	p, err := parsePath(path)
	if err != nil {
		return prefix{}, err
	}
	if p.host, err = settingHost(host); err != nil {
		return prefix{}, fmt.Errorf("the part before the first slash is %w", err)
	}
	return p, nil
}

// settingHost returns the canonical form of a host in a setting, in which a dot may end it and an IPv6 address may end
// in an IPv4 address, which references cannot.
func settingHost(host string) (string, error) {
	name, port := address.SplitPort(host)
	if strings.HasSuffix(host, ":") {
		return "", errors.New("not a valid host[:port]: its port is missing; remove the colon or write the port")
	}
	if a, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil && a.Is6() && strings.HasPrefix(name, "[") {
		if a.Zone() != "" {
			return "", errors.New("an IPv6 address with a zone, which no image can name; remove the zone")
		}
		name = "[" + netip.AddrFrom16(a.As16()).StringExpanded() + "]" // without dots
	}
	host = address.JoinPort(strings.TrimSuffix(name, "."), port)
	if n, err := reference.WithName(host + "/x"); err != nil || reference.Domain(n) != host {
		for _, c := range host {
			if c > unicode.MaxASCII {
				return "", errors.New("not a valid host[:port]: images name such a host in ASCII; write it as xn--NAME")
			}
		}
		return "", errors.New("not a valid host[:port]; write it without scheme and path")
	}
	return address.Host(host)
}

// parsePath parses the part of a prefix after the host.
func parsePath(path string) (prefix, error) {
	p := prefix{path: strings.TrimSuffix(path, "/"), beneath: strings.HasSuffix(path, "/")}
	if p.path == "" {
		return prefix{}, nil
	}
	if _, err := reference.WithName("localhost/" + p.path); err == nil {
		return p, nil
	}
	switch {
	case strings.Contains(path, "*"):
		return prefix{}, errors.New("remove the *; a prefix covers all repositories below it")
	case strings.ContainsAny(path, ":@"):
		return prefix{}, errors.New("a prefix has neither tag nor digest; put single images into the list of images")
	case path != strings.ToLower(path):
		return prefix{}, errors.New("repository names are in lower case")
	}
	return prefix{}, errors.New("not a valid host[:port]/path; a prefix consists of whole path components")
}

// covers returns how much of the canonical path the prefix covers, as a number to compare with those of other prefixes
// that cover the same reference; 0 if it does not cover it. On Docker Hub the familiar path counts as well:
// docker.io/nginx covers the official image nginx, and the repositories of the user nginx.
func (p prefix) covers(r Reference) int {
	if p.host != r.Domain {
		return 0
	}
	if p.coversPath(r.Path) {
		return 1 + len(p.path)
	}
	if p.coversPath(r.familiar()) {
		return 1 + len(official) + len(p.path)
	}
	return 0
}

func (p prefix) coversPath(path string) bool {
	if p.path == "" {
		return true
	}
	rest, ok := strings.CutPrefix(path, p.path)
	return ok && (rest == "" && !p.beneath || strings.HasPrefix(rest, "/"))
}

// longest returns the most that one of the prefixes covers of the reference, and its rule; 0 if none covers it. Of
// equally long ones it is the first.
func longest(list []prefix, r Reference) (n int, rule Rule) {
	for i := range list {
		if m := list[i].covers(r); m > n {
			n, rule = m, list[i].rule
		}
	}
	return n, rule
}
