package admission

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"trow/registry/address"
)

const (
	hub      = address.Hub
	official = "library/" // where Docker Hub keeps the images whose familiar name has one component

	// maxReference bounds a reference, in bytes. A host name (253), a port, a path (255), a tag (128) and the longest
	// digest (135) have less together.
	maxReference = 1024

	// maxQuoted bounds how much of an invalid string a sentence repeats, in bytes.
	maxQuoted = 100
)

// Reference is an image reference in canonical form: two spellings that a container runtime takes for the
// same image have the same String.
type Reference struct {
	Domain string        // host[:port] in canonical form; docker.io for every known name of Docker Hub
	Path   string        // the repository, with library/ for official images of Docker Hub
	Tag    string        // "latest" if neither tag nor digest is written; without effect beside a Digest
	Digest digest.Digest // empty unless written
	Short  bool          // written without a host: docker.io for containerd and Docker, CRI-O may look elsewhere
}

// InvalidError says why a string is not a valid image reference. Its text and its fields are safe to print: bounded,
// and without control characters.
type InvalidError struct {
	Quoted string // the string, quoted and cut
	Reason string
}

func (e *InvalidError) Error() string {
	return "invalid image reference " + e.Quoted + ": " + e.Reason
}

// ParseReference parses an image reference as Docker and containerd do (the grammar of
// github.com/distribution/reference), and makes it canonical. A digest without a repository, in full or shortened, is
// refused: containerd takes it for the ID of an image in the cache of the node, wherever that image is from. Errors:
// *InvalidError.
func ParseReference(s string) (Reference, error) {
	if reason := implausible(s); reason != "" {
		return Reference{}, &InvalidError{quote(s), reason}
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, &InvalidError{quote(s), explain(s, err)}
	}
	r := Reference{Domain: reference.Domain(named), Path: reference.Path(named)}
	if r.Domain == "" { // the parser takes a_b.example/x for a path, but a runtime asks the host a_b.example
		return Reference{}, &InvalidError{quote(s), "the part before the first slash is not a valid host[:port]"}
	}
	r.Short = r.Domain == hub && !namesHost(s)
	if r.Domain, err = address.Host(r.Domain); err != nil {
		return Reference{}, &InvalidError{quote(s), "the host is " + err.Error()}
	}
	if r.Domain == hub && !strings.Contains(r.Path, "/") {
		r.Path = official + r.Path
	}
	if tagged, ok := named.(reference.Tagged); ok {
		r.Tag = tagged.Tag()
	}
	if digested, ok := named.(reference.Digested); ok {
		r.Digest = digested.Digest()
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	return r, nil
}

// Name returns the image's name as sentences show it: the domain, a slash and the familiar path, without
// library/, tag and digest. nginx, nginx:1.21.0 and docker.io/library/nginx are all docker.io/nginx.
func (r Reference) Name() string { return r.Domain + "/" + r.familiar() }

// Ref returns what names the manifest within the repository: the digest if there is one, else the tag.
func (r Reference) Ref() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}

// String returns the canonical text: domain/path:tag, or domain/path@digest.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Domain + "/" + r.Path + "@" + r.Digest.String()
	}
	return r.Domain + "/" + r.Path + ":" + r.Tag
}

// familiar is the path without the library/ of an official image.
func (r Reference) familiar() string {
	if rest, ok := strings.CutPrefix(r.Path, official); ok && r.Domain == hub && !strings.Contains(rest, "/") {
		return rest
	}
	return r.Path
}

// key returns the reference with only what decides which image it means.
func (r Reference) key() Reference {
	r.Short = false
	if r.Digest != "" {
		r.Tag = ""
	}
	return r
}

// implausible returns the reason to refuse a string before it is parsed, or "" to parse it.
func implausible(s string) string {
	alg, _, colon := strings.Cut(s, ":")
	switch {
	case s == "":
		return "empty"
	case len(s) > maxReference:
		return fmt.Sprintf("longer than %d bytes", maxReference)
	case colon && digest.Algorithm(alg).Available(): // also a digest cut short: containerd accepts those
		return "a digest without a repository means an image in the cache of the node, not one in a registry"
	}
	return ""
}

// explain words an error of the parser, whose own words may repeat the string unquoted.
func explain(s string, err error) string {
	switch {
	case errors.Is(err, reference.ErrNameTooLong):
		return "the repository name is longer than 255 characters"
	case errors.Is(err, digest.ErrDigestUnsupported):
		return "the digest's algorithm is not supported"
	case errors.Is(err, digest.ErrDigestInvalidLength), errors.Is(err, digest.ErrDigestInvalidFormat):
		return "the digest is malformed"
	case reference.IdentifierRegexp.FindString(s) == s:
		return "64 hex digits mean an image in the cache of the node, not one in a registry"
	}
	if host, rest, _ := strings.Cut(s, "/"); strings.Contains(host+":", ".:") {
		name, port := address.SplitPort(host)
		host := address.JoinPort(strings.TrimRight(name, "."), port)
		if _, err := reference.ParseNormalizedNamed(host + "/" + rest); err == nil {
			return "not a valid host: it ends with a dot; remove the dot"
		}
	}
	if _, err := reference.ParseNormalizedNamed(strings.ToLower(s)); err == nil {
		return "repository names are in lower case"
	}
	return "not a valid [host[:port]/]repository[:tag][@digest]"
}

// namesHost reports whether the part before the first slash is a host to the parser. The parser also takes any first
// component in upper case for one; this function does not.
func namesHost(s string) bool {
	host, _, slash := strings.Cut(s, "/")
	return slash && address.LooksLikeHost(host)
}

// quote makes any string safe to print in a sentence: in quotes, ASCII, bounded.
func quote(s string) string { return quoteUpTo(maxQuoted, s) }

// quoteUpTo is [quote] with a bound of its own, in bytes.
func quoteUpTo(max int, s string) string {
	if len(s) <= max {
		return strconv.QuoteToASCII(s)
	}
	cut := max
	for cut > max-utf8.UTFMax && !utf8.RuneStart(s[cut]) { // do not cut a character in two
		cut--
	}
	return strconv.QuoteToASCII(s[:cut]) + "..."
}
