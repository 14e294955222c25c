package admission

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	admissionv1 "k8s.io/api/admission/v1"
)

const (
	// maxUID bounds a review's uid, which is echoed, in bytes. The API server sends 36.
	maxUID = 256

	// maxFault bounds what an answer says about malformed JSON, in bytes: it may quote the input.
	maxFault = 400
)

// supported are the versions of AdmissionReview. They do not differ in what is read and answered.
var supported = map[string]bool{"admission.k8s.io/v1": true, "admission.k8s.io/v1beta1": true}

// review is what is read of an AdmissionReview.
type review struct {
	APIVersion string
	Kind       string
	Request    *request
}

// request is what is read of an AdmissionRequest.
type request struct {
	UID         string
	Kind        groupKind
	SubResource string
	Name        string
	Namespace   string
	Operation   string
	User        user
	DryRun      bool
	Object      *object
	OldObject   *object
	Probe       string // see decodeProbe
}

// groupKind names a kind. The versions of a kind do not differ in what is read here.
type groupKind struct{ Group, Kind string }

type user struct {
	Name   string
	IsNode bool // a member of nodeGroup. The groups are not kept: a hostile review can have a million
}

// nodeGroup is the group of all kubelets, and nodePrefix begins the names of their users.
const (
	nodeGroup  = "system:nodes"
	nodePrefix = "system:node:"
)

// decodeReview decodes the body of a review. The result shares no memory with the body. Errors: *httpError.
//
// Names are compared exactly, and duplicate names and invalid UTF-8 are errors wherever they are, so that the object
// whose images are checked is the object that the API server sees. Unknown members are skipped.
func decodeReview(body []byte) (*review, error) {
	v, later := new(review), objects{}
	err := decode(body, func(dec *jsontext.Decoder) error {
		if err := v.read(dec, &later); err != nil {
			return err
		}
		return atEnd(body, dec.InputOffset())
	})
	if err != nil {
		return nil, malformed("the body is not an AdmissionReview: %s", fault("", err))
	}
	switch {
	case !supported[v.APIVersion] || v.Kind != "AdmissionReview":
		return nil, malformed("the body is %s %s; want an AdmissionReview of admission.k8s.io/v1 or v1beta1",
			quote(v.APIVersion), quote(v.Kind))
	case v.Request == nil:
		return nil, malformed("the AdmissionReview has no request")
	case v.Request.UID == "":
		return nil, malformed("the request of the AdmissionReview has no uid")
	case len(v.Request.UID) > maxUID:
		return nil, malformed("the uid is longer than %d bytes", maxUID)
	}
	if err := v.Request.decodeObjects(later.object.of(body), later.oldObject.of(body), validated...); err != nil {
		return nil, malformed("the body is not an AdmissionReview: %s", err)
	}
	return v, nil
}

// atEnd returns an error if more than white space follows the value that ends at offset.
func atEnd(body []byte, offset int64) error {
	rest := bytes.TrimLeft(body[offset:], " \t\r\n")
	if len(rest) == 0 {
		return nil
	}
	r, _ := utf8.DecodeRune(rest)
	return fmt.Errorf("invalid character %s after top-level value at byte %d", strconv.QuoteRune(r),
		len(body)-len(rest))
}

func (v *review) read(dec *jsontext.Decoder, later *objects) error {
	return members(dec, func(name []byte) (err error) {
		switch string(name) {
		case "apiVersion":
			v.APIVersion, err = text(dec)
		case "kind":
			v.Kind, err = text(dec)
		case "request":
			if dec.PeekKind() == 'n' {
				return skip(dec)
			}
			v.Request = new(request)
			return v.Request.read(dec, later)
		default:
			return skip(dec)
		}
		return err
	})
}

// objects are the objects of a request that came before what decides whether they are needed.
type objects struct{ object, oldObject span }

func (q *request) read(dec *jsontext.Decoder, later *objects) error {
	return members(dec, func(name []byte) (err error) {
		switch string(name) {
		case "uid":
			q.UID, err = text(dec)
		case "kind":
			err = q.Kind.read(dec)
		case "subResource":
			q.SubResource, err = text(dec)
		case "name":
			q.Name, err = text(dec)
		case "namespace":
			q.Namespace, err = text(dec)
		case "operation":
			q.Operation, err = text(dec)
		case "userInfo":
			err = q.User.read(dec)
		case "dryRun":
			q.DryRun, err = boolean(dec)
		case "object":
			q.Object, err = q.readObject(dec, &later.object, q.Operation == "CREATE" || q.Operation == "UPDATE")
		case "oldObject":
			q.OldObject, err = q.readObject(dec, &later.oldObject, q.Operation == "UPDATE")
		default:
			err = skip(dec)
		}
		return err
	})
}

// readObject decodes an object if it is known by now that the verdict depends on it: the API server sends kind and
// operation before the objects, so that each is read once. Otherwise it is only skipped, and decoded by decodeObjects.
func (q *request) readObject(dec *jsontext.Decoder, later *span, needed bool) (*object, error) {
	if k, checked := kinds[q.Kind]; checked && needed {
		return k.read(dec)
	}
	return nil, later.read(dec)
}

func (k *groupKind) read(dec *jsontext.Decoder) error {
	return members(dec, func(name []byte) (err error) {
		switch string(name) {
		case "group":
			k.Group, err = text(dec)
		case "kind":
			k.Kind, err = text(dec)
		default:
			err = skip(dec)
		}
		return err
	})
}

func (u *user) read(dec *jsontext.Decoder) error {
	return members(dec, func(name []byte) (err error) {
		switch string(name) {
		case "username":
			u.Name, err = text(dec)
		case "groups":
			err = elements(dec, func() error {
				group, err := textBytes(dec)
				u.IsNode = u.IsNode || string(group) == nodeGroup
				return err
			})
		default:
			err = skip(dec)
		}
		return err
	})
}

// requestOf converts a request of the API's types. Errors: *httpError.
func requestOf(r *admissionv1.AdmissionRequest) (*request, error) {
	q := &request{
		UID:         string(r.UID),
		Kind:        groupKind{r.Kind.Group, r.Kind.Kind},
		SubResource: r.SubResource,
		Name:        r.Name,
		Namespace:   r.Namespace,
		Operation:   string(r.Operation),
		User:        user{r.UserInfo.Username, slices.Contains(r.UserInfo.Groups, nodeGroup)},
		DryRun:      r.DryRun != nil && *r.DryRun,
	}
	if err := q.decodeObjects(r.Object.Raw, r.OldObject.Raw); err != nil {
		return nil, malformed("the object is malformed: %s", err)
	}
	return q, nil
}

// validated are the options for a text that has been read before. All its names have been compared and its UTF-8
// checked; to do so again would double what a hostile review costs.
var validated = []jsontext.Options{jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)}

// decodeObjects decodes as much of the objects as the verdict depends on: nothing starts with a DELETE or a CONNECT,
// only an UPDATE has images that were there before, and kinds without images are only named in the Decision. Objects
// that have been decoded stay as they are.
func (q *request) decodeObjects(object, oldObject []byte, o ...jsontext.Options) (err error) {
	k, checked := kinds[q.Kind]
	if !checked {
		q.Probe = decodeProbe(q, object)
		if q.Name == "" {
			q.Object = decodeMetadata(object, o...)
		}
		return nil
	}
	if q.Operation == "DELETE" || q.Operation == "CONNECT" {
		return nil
	}
	if q.Object == nil {
		q.Object, err = decodeObject(k, "request.object", object, o...)
	}
	if err == nil && q.Operation == "UPDATE" && q.OldObject == nil {
		q.OldObject, err = decodeObject(k, "request.oldObject", oldObject, o...)
	}
	return err
}

// decodeObject decodes an object of one of the kinds; nil for an absent object. path is where it is in the review.
func decodeObject(k kind, path string, text []byte, options ...jsontext.Options) (o *object, err error) {
	if len(text) == 0 {
		return nil, nil
	}
	err = decode(text, func(dec *jsontext.Decoder) (err error) {
		if o, err = k.read(dec); err != nil {
			return err
		}
		return atEnd(text, dec.InputOffset())
	}, options...)
	if err != nil {
		return nil, errors.New(fault(path, err))
	}
	return o, nil
}

// decodeMetadata decodes the metadata of an object of another kind; nil if it has none that can be understood: such an
// object need not have the form of the kinds that are checked.
func decodeMetadata(text []byte, options ...jsontext.Options) *object {
	if len(text) == 0 {
		return nil
	}
	var o object
	if decode(text, o.readMetadata, options...) != nil {
		return nil
	}
	return &o
}

// fault words an error of the decoder, for an answer: bounded, printable, with the path of the value as Kubernetes
// writes paths. prefix is the path of the text that was decoded.
func fault(prefix string, err error) string {
	var (
		text    string
		pointer jsontext.Pointer
	)
	if e, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		text, pointer = fmt.Sprintf("%v at byte %d", e.Err, e.ByteOffset), e.JSONPointer
	} else if e, ok := errors.AsType[*mismatch](err); ok {
		text, pointer = e.Error(), e.pointer
	} else if text = err.Error(); err == io.EOF { // an empty input
		text = io.ErrUnexpectedEOF.Error()
	}
	if path := fieldPath(prefix, pointer); path != "" {
		text = path + ": " + text
	}
	return quoteUpTo(maxFault, text)
}

// fieldPath appends a JSON pointer to a path, in the form spec.containers[1].image. It cuts what is too long.
func fieldPath(prefix string, pointer jsontext.Pointer) string {
	const maxPath, maxName = 200, 100 // bytes; a path of a real review has less than 100
	var b strings.Builder
	b.WriteString(prefix)
	for token := range pointer.Tokens() {
		if b.Len() > maxPath {
			b.WriteString("...")
			break
		}
		if i, err := strconv.ParseUint(token, 10, 32); err == nil && b.Len() > 0 {
			fmt.Fprintf(&b, "[%d]", i)
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(token[:min(len(token), maxName)])
	}
	return b.String()
}
