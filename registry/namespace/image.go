package namespace

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"

	"trow/registry/address"
)

// maxImage bounds the text of an image in bytes: a name, a tag and the longest digest have less together.
const maxImage = 1 << 10

// Image is an image as a pod names it.
type Image struct {
	Name
	Tag    string        // latest if neither tag nor digest is written; without effect beside a digest
	Digest digest.Digest // empty unless written
}

// ParseImage parses the name of an image as container runtimes do: nginx is docker.io/library/nginx:latest. Errors: it
// is not a valid [host[:port]/]repository[:tag][@digest].
func ParseImage(text string) (i Image, err error) {
	bad := func(why string) error {
		return fmt.Errorf("%.150q is not a valid image: %s; want [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]", text, why)
	}
	if text == "" || len(text) > maxImage {
		return i, bad(fmt.Sprintf("its name has 1 to %d characters", maxImage))
	}
	name, at, digested := strings.Cut(text, "@")
	if i.Digest = digest.Digest(at); digested && i.Digest.Validate() != nil {
		return Image{}, bad("the part after @ is not a digest")
	}
	// A colon behind the last slash begins the tag; one before it is that of a port.
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		if i.Tag = name[colon+1:]; !ValidTag(i.Tag) {
			return Image{}, bad("the part after the colon is not a tag")
		}
		name = name[:colon]
	}
	host, repo, slash := strings.Cut(name, "/")
	if !slash || !address.LooksLikeHost(host) {
		host, repo = address.Hub, name
	}
	if i.Name, err = Parse(host, repo); err != nil {
		return Image{}, bad(err.Error())
	}
	if i.Tag == "" && i.Digest == "" {
		i.Tag = "latest"
	}
	return i, nil
}

// Ref returns what names the manifest in the repository: the digest if there is one, else the tag.
func (i Image) Ref() string {
	if i.Digest != "" {
		return i.Digest.String()
	}
	return i.Tag
}

// String returns the image's name in full: host/repository:tag, or host/repository@digest.
func (i Image) String() string {
	if i.Digest != "" {
		return i.Name.String() + "@" + i.Digest.String()
	}
	return i.Name.String() + ":" + i.Tag
}
