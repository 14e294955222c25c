package commands

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/registry"
	"trow/registry/auth"
	"trow/registry/namespace"
	"trow/storage"
)

// reference is what an argument names: a repository, and maybe a manifest of it.
type reference struct {
	url    string // of the registry; empty: the server of the command
	repo   string
	tag    string
	digest digest.Digest
}

// referenceUsage is the part of the help that says how to name things.
const referenceUsage = "A reference is REPOSITORY[:TAG|@DIGEST] on the server of the command, or " +
	"HOST[:PORT]/REPOSITORY…\n" +
	"on another registry, as in image names: the part before the first slash is a host if it has a dot or a\n" +
	"colon, or is localhost. http://HOST/… is without TLS, and /REPOSITORY is never a host."

// dockerHub is the host of image names, dockerAPI the one that answers for it.
const (
	dockerHub = "docker.io"
	dockerAPI = "registry-1.docker.io"
)

// parseReference reads an argument.
func parseReference(text string) (r reference, err error) {
	rest := text
	scheme := "https://"
	named := false
	for _, prefix := range []string{"docker://", "https://", "http://"} {
		if after, ok := strings.CutPrefix(rest, prefix); ok {
			rest, named = after, true
			if prefix == "http://" {
				scheme = prefix
			}
			break
		}
	}
	first, path, slash := strings.Cut(rest, "/")
	switch {
	case slash && first == "" && !named:
		rest = path
	case slash && (named || strings.ContainsAny(first, ".:") || first == "localhost"):
		if !auth.ValidHost(first) {
			return r, fmt.Errorf("%.150q: %.80q is not a valid HOST[:PORT]", text, first)
		}
		rest = path
		switch first {
		case dockerHub, "index." + dockerHub, "registry.hub.docker.com", dockerAPI:
			first = dockerAPI
			if !strings.Contains(rest, "/") {
				rest = "library/" + rest
			}
		}
		r.url = scheme + strings.ToLower(first)
	case named:
		return r, fmt.Errorf("%.150q names a registry and no repository; want HOST[:PORT]/REPOSITORY; "+
			"trow ls https://HOST lists the repositories", text)
	}
	rest, at, hasDigest := strings.Cut(rest, "@")
	if hasDigest {
		if r.digest, err = storage.ParseDigest(at); err != nil {
			return r, fmt.Errorf("%.150q: the part after @ is not a valid digest; want sha256: and 64 digits", text)
		}
	}
	rest, tag, hasTag := strings.Cut(rest, ":")
	if hasTag && !namespace.ValidTag(tag) {
		return r, fmt.Errorf("%.150q: %.130q is not a valid tag", text, tag)
	}
	if !hasDigest { // with a digest, the tag is a remark
		r.tag = tag
	}
	if r.repo = rest; !registry.ValidName(rest) {
		in := ""
		if rest != text {
			in = fmt.Sprintf("%.150q: ", text)
		}
		return r, fmt.Errorf("%s%.130q is not a valid repository; want lower-case names, separated by /", in, rest)
	}
	return r, nil
}

// ref is the tag or the digest; without either it is latest, as for docker.
func (r reference) ref() string {
	switch {
	case r.digest != "":
		return r.digest.String()
	case r.tag != "":
		return r.tag
	}
	return "latest"
}

// text is the reference without a host, as people write it.
func (r reference) text() string {
	if r.digest != "" {
		return r.repo + "@" + r.digest.String()
	}
	return r.repo + ":" + r.ref()
}

// local makes a reference to one of these hosts one to the server of the command.
func (r *reference) local(names []string) {
	if u, err := url.Parse(r.url); err == nil && slices.Contains(names, u.Host) {
		r.url = ""
	}
}
