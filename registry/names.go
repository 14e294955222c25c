package registry

import (
	"bytes"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"trow/registry/ocierror"
)

// This file makes sure that all clients find the same members in a manifest. Most are written in Go, whose
// encoding/json ignores case: in {"layers":[A],"Layers":[B]} they find B, and others find A.

// object describes an object of a manifest: the members that clients know, and which of those have objects of their
// own.
type object struct {
	folded map[string]string  // the known members, by their folded names
	inner  map[string]*object // by exact name; also for each element of an array
}

func newObject(inner map[string]*object, names ...string) *object {
	o := &object{folded: map[string]string{}, inner: inner}
	for _, name := range names {
		o.folded[string(appendFolded(nil, []byte(name)))] = name
	}
	return o
}

// The objects of images and indexes, of OCI and Docker (image spec, "Image Manifest", "Image Index" and "Content
// Descriptors"; Docker's manifest version 2, schema 2). Annotations have free names.
var (
	platformObject = newObject(nil, "architecture", "os", "os.version", "os.features", "variant", "features")

	descriptorObject = newObject(map[string]*object{"platform": platformObject},
		"mediaType", "digest", "size", "urls", "annotations", "data", "artifactType", "platform")

	manifestObject = newObject(map[string]*object{"config": descriptorObject, "layers": descriptorObject,
		"manifests": descriptorObject, "subject": descriptorObject},
		"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations")
)

// longestName bounds the names that are compared, in bytes: a longer one cannot fold to a known one. The longest has 13
// characters, each of which folds from at most utf8.UTFMax bytes.
const longestName = 13 * utf8.UTFMax

// checkNames refuses a manifest of a known type with a member that only some clients take for a known one. body is
// valid JSON without duplicate names.
func checkNames(body []byte) error {
	// Duplicates are refused already, and looking for them takes most of the time.
	dec := jsontext.NewDecoder(bytes.NewReader(body), jsontext.AllowDuplicateNames(true))
	return checkObject(dec, manifestObject)
}

// checkObject checks the next value: an object, or an array of objects. What else it may be has no names.
func checkObject(dec *jsontext.Decoder, o *object) error {
	switch dec.PeekKind() {
	case '{':
		return checkMembers(dec, o)
	case '[':
		return elements(dec, func() error {
			if dec.PeekKind() == '{' {
				return checkMembers(dec, o)
			}
			return dec.SkipValue()
		})
	}
	return dec.SkipValue()
}

func checkMembers(dec *jsontext.Decoder, o *object) error {
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	var buf, foldBuf [longestName]byte
	for dec.PeekKind() != '}' {
		raw, err := dec.ReadValue()
		if err != nil {
			return err
		}
		name, err := jsontext.AppendUnquote(buf[:0], raw)
		if err != nil {
			return err
		}
		var inner *object
		if len(name) <= longestName {
			if known, ok := o.folded[string(appendFolded(foldBuf[:0], name))]; ok && known != string(name) {
				return manifestInvalid("the member %q equals %q but for case, and clients would disagree about which "+
					"they read; write it as %q", ocierror.Clip(string(name)), known, known)
			}
			inner = o.inner[string(name)]
		}
		if inner == nil {
			err = dec.SkipValue()
		} else {
			err = checkObject(dec, inner)
		}
		if err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

// appendFolded appends a name as encoding/json compares it: each character is the first of those that differ from it by
// case alone, such as 's', 'S' and 'ſ' (U+017F).
func appendFolded(buf, name []byte) []byte {
	for len(name) > 0 {
		r, n := utf8.DecodeRune(name)
		name = name[n:]
		for next := unicode.SimpleFold(r); ; next = unicode.SimpleFold(r) {
			if next <= r { // the orbit starts again
				r = next
				break
			}
			r = next
		}
		buf = utf8.AppendRune(buf, r)
	}
	return buf
}
