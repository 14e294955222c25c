package etcd

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// defaultPrefix is where an URL without a path keeps the keys.
const defaultPrefix = "trow/"

// maxPrefix bounds the prefix, which is part of every key of a commit; see Traits.
const maxPrefix = 64

// ParseURL reads the place of a journal: etcd://HOST:PORT[,HOST:PORT…]/PREFIX, or etcds:// for TLS. Without a prefix it
// is "trow/". A URL with credentials is refused: URLs are shown in lists of processes and in logs.
func ParseURL(s string) (Options, error) {
	fail := func(format string, args ...any) (Options, error) {
		return Options{}, fmt.Errorf("%s; want etcd://HOST:PORT[,HOST:PORT…]/PREFIX, or etcds:// for TLS",
			fmt.Sprintf(format, args...))
	}
	scheme, rest, found := strings.Cut(s, "://")
	if !found || scheme != "etcd" && scheme != "etcds" {
		return fail("the URL of the journal does not start with etcd:// or etcds://")
	}
	hosts, path, _ := strings.Cut(rest, "/")
	// Before anything of the URL is repeated in a message: an at sign anywhere may end a password.
	if strings.Contains(rest, "@") {
		return Options{}, errors.New("the URL of the journal has credentials, which lists of processes and logs " +
			"would show; give the user and a file with the password as settings instead")
	}
	if strings.ContainsAny(rest, "?#") {
		return fail("the URL of the journal has a query or a fragment")
	}
	prefix, err := url.PathUnescape(path)
	if err != nil {
		return fail("the path %q of the URL of the journal is not escaped as in URLs", path)
	}
	o := Options{Prefix: prefix, TLS: scheme == "etcds"}
	for host := range strings.SplitSeq(hosts, ",") {
		if !validEndpoint(host) {
			return fail("%q is not a host with a port", host)
		}
		o.Endpoints = append(o.Endpoints, host)
	}
	if _, err := cleanPrefix(prefix); err != nil {
		return fail("%v", err)
	}
	return o, nil
}

func validEndpoint(s string) bool {
	host, port, err := net.SplitHostPort(s)
	n, numeric := strconv.ParseUint(port, 10, 16)
	return err == nil && host != "" && !strings.ContainsAny(host, " /%") && numeric == nil && n > 0
}

// cleanPrefix returns the prefix as the keys have it: it ends with a slash, so that it is not the beginning of the
// prefix of another user of the same etcd.
func cleanPrefix(s string) (string, error) {
	trimmed := strings.Trim(s, "/")
	if trimmed == "" {
		return defaultPrefix, nil
	}
	if len(trimmed) >= maxPrefix {
		return "", fmt.Errorf("the prefix %.80q is longer than %d bytes", s, maxPrefix-1)
	}
	if strings.Contains(trimmed, "\x00") {
		return "", fmt.Errorf("the prefix %q has a zero byte", s)
	}
	for i, part := range strings.Split(trimmed, "/") {
		if i > 0 && slices.Contains(ranges, part+"/") {
			return "", fmt.Errorf("the prefix %q lies among the keys of a journal whose prefix ends before %q, which "+
				"would take all that is there for its own; choose one without that", s, "/"+part)
		}
	}
	return trimmed + "/", nil
}
