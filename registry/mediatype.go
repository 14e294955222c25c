package registry

import (
	"mime"
	"strings"
)

// This file is which media types are stored. What was stored before it was bounded so is served as it is.

// maxMediaPart bounds a type and a subtype, in bytes (RFC 6838, section 4.2). Both and the slash are 255 bytes.
const maxMediaPart = 127

// validMediaType reports whether s is a media type without parameters: two restricted names (RFC 6838, section 4.2).
func validMediaType(s string) bool {
	kind, subtype, ok := strings.Cut(s, "/")
	return ok && restrictedName(kind) && restrictedName(subtype)
}

func restrictedName(s string) bool {
	if s == "" || len(s) > maxMediaPart {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9':
		case i == 0 || strings.IndexByte("!#$&-^_.+", c) < 0:
			return false
		}
	}
	return true
}

// The types that clients without one of their own send. They say nothing about the manifest.
const (
	typeJSON  = "application/json"
	typeBytes = "application/octet-stream"
	typeForm  = "application/x-www-form-urlencoded" // curl --data sends it
)

// storable reports whether a manifest may be stored under a media type. The types of text, images and scripts are for
// browsers, which would interpret the bytes that a client has chosen; a general type hides what a manifest is.
func storable(mediaType string) bool {
	return validMediaType(mediaType) && strings.HasPrefix(mediaType, "application/") &&
		mediaType != typeJSON && mediaType != typeBytes && mediaType != typeForm
}

// typeOf returns the media type, in lower case: that of the Content-Type without its parameters, or what the body says
// where that is missing or general. A body with another type is refused, because a client that pulls the manifest
// could believe either. decodeErr is why the body cannot be decoded.
func typeOf(contentType string, c content, decodeErr error) (string, error) {
	if c.MediaType != "" && !validMediaType(c.MediaType) { // an index without a limit would keep it in memory
		return "", mediaTypeInvalid("mediaType", c.MediaType)
	}
	given, err := parseContentType(contentType)
	if err != nil {
		return "", err
	}
	inBody := strings.ToLower(c.MediaType)
	switch {
	case given == "":
		given, err = typeOfBody(inBody, c, decodeErr)
	case given == typeJSON || given == typeBytes:
		given, err = typeOfGeneral(given, inBody, c, decodeErr)
	case inBody != "" && inBody != given:
		return "", manifestInvalid("Content-Type is %q, but the manifest's mediaType is %q", given, c.MediaType)
	}
	if err == nil && !storable(given) {
		err = typeNotStorable(given)
	}
	return given, err
}

// parseContentType returns the media type in a Content-Type, in lower case, or "" for an empty one.
func parseContentType(contentType string) (string, error) {
	contentType = strings.TrimSpace(contentType)
	if contentType == "" {
		return "", nil
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil || !validMediaType(mediaType) { // a list and a wildcard among them
		return "", mediaTypeInvalid("Content-Type", contentType)
	}
	return mediaType, nil
}

// typeOfBody returns the media type of a manifest that comes without one: its mediaType, or what its shape is.
func typeOfBody(inBody string, c content, decodeErr error) (string, error) {
	switch {
	case decodeErr != nil:
		return "", manifestInvalid("the manifest has no Content-Type and is not valid JSON: %v", brief(decodeErr))
	case inBody != "":
		return inBody, nil
	case c.Manifests != nil:
		return typeOCIIndex, nil
	case c.Config != nil:
		return typeOCIManifest, nil
	}
	return "", manifestInvalid("the manifest has neither a Content-Type nor a mediaType")
}

// typeOfGeneral returns the media type of a manifest that comes with a general one, if it is plainly an image or an
// index: its JSON identifies no other type.
func typeOfGeneral(given, inBody string, c content, decodeErr error) (string, error) {
	switch {
	case decodeErr == nil && knownType(inBody):
		return inBody, nil
	case decodeErr == nil && inBody == "" && c.Manifests != nil && c.Config == nil && c.Layers == nil:
		return typeOCIIndex, nil
	case decodeErr == nil && inBody == "" && c.Manifests == nil && c.Config != nil && c.Layers != nil:
		return typeOCIManifest, nil
	}
	return "", typeNotStorable(given)
}

// knownType reports whether the registry knows the form of a media type.
func knownType(mediaType string) bool {
	switch mediaType {
	case typeOCIManifest, typeDockerManifest, typeOCIIndex, typeDockerList:
		return true
	}
	return false
}

// indexType reports whether a media type is that of an index, of OCI or Docker.
func indexType(mediaType string) bool {
	return mediaType == typeOCIIndex || mediaType == typeDockerList
}

// checkTypes refuses a manifest whose list entry would have an artifact type that is not a media type (image spec,
// "Image Manifest" and "Content Descriptors"). A list of referrers copies it, and clients compare it.
func checkTypes(c content) error {
	if c.Artifact != "" && !validMediaType(c.Artifact) {
		return mediaTypeInvalid("artifactType", c.Artifact)
	}
	if c.Config != nil && c.Config.MediaType != "" && !validMediaType(c.Config.MediaType) {
		return mediaTypeInvalid("config.mediaType", c.Config.MediaType)
	}
	return nil
}
