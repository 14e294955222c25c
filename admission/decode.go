package admission

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
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
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Request    *request `json:"request"`
}

// request is what is read of an AdmissionRequest. The two objects are by far the largest part of it. They are only
// skipped at first, and then decoded if the verdict depends on them: see decodeObjects.
type request struct {
	UID         string    `json:"uid"`
	Kind        groupKind `json:"kind"`
	SubResource string    `json:"subResource"`
	Name        string    `json:"name"`
	Namespace   string    `json:"namespace"`
	Operation   string    `json:"operation"`
	User        user      `json:"userInfo"`
	DryRun      bool      `json:"dryRun"`
	ObjectAt    span      `json:"object"`
	OldObjectAt span      `json:"oldObject"`

	Object    *object `json:"-"`
	OldObject *object `json:"-"`
	Probe     string  `json:"-"` // see decodeProbe
}

// groupKind names a kind. The versions of a kind do not differ in what is read here.
type groupKind struct {
	Group string `json:"group"`
	Kind  string `json:"kind"`
}

type user struct {
	Name   string `json:"username"`
	IsNode member `json:"groups"`
}

// nodeGroup is the group of all kubelets.
const nodeGroup = "system:nodes"

// member reports whether a list of groups contains nodeGroup. The list itself is not kept: a hostile review can have
// a million groups.
type member bool

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (m *member) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*m = false
	return elements(dec, func(group string) { *m = *m || group == nodeGroup })
}

// elements decodes an array and calls next with each element; null is an empty array.
func elements[T any](dec *jsontext.Decoder, next func(T)) error {
	if kind := dec.PeekKind(); kind != '[' {
		var none []T
		return json.UnmarshalDecode(dec, &none) // accepts null, and words the error for anything else
	}
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	var element, zero T // one for all: a million empty elements must not be a million allocations
	for dec.PeekKind() != ']' {
		element = zero
		if err := json.UnmarshalDecode(dec, &element); err != nil { // also where the input is broken
			return err
		}
		next(element)
	}
	_, err := dec.ReadToken()
	return err
}

// list is an array of which all elements are kept.
type list[T any] []T

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (l *list[T]) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*l = nil
	return elements(dec, func(e T) {
		if len(*l) == cap(*l) { // append alone would allocate five times the size of a long list in all
			*l = slices.Grow(*l, max(len(*l), 4))
		}
		*l = append(*l, e)
	})
}

// span is where the text of a value is in the input.
type span struct{ start, end int64 }

// UnmarshalJSONFrom implements json.UnmarshalerFrom. ReadValue checks all of the value's syntax, names and UTF-8.
func (s *span) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	v, err := dec.ReadValue()
	*s = span{dec.InputOffset() - int64(len(v)), dec.InputOffset()}
	return err
}

// of returns the text of the value in the input.
func (s span) of(input []byte) []byte { return input[s.start:s.end] }

// validated are the options for a text that span has read. All its names have been compared and its UTF-8 checked; to
// do so again would double what a hostile review costs.
var validated = json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// decodeReview decodes the body of a review. The result shares no memory with the body. Errors: *httpError.
//
// Names are compared exactly, and duplicate names and invalid UTF-8 are errors wherever they are, so that the object
// whose images are checked is the object that the API server sees. Unknown members are skipped.
func decodeReview(body []byte) (*review, error) {
	var v review
	if err := json.Unmarshal(body, &v); err != nil {
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
	q := v.Request
	if err := q.decodeObjects(q.ObjectAt.of(body), q.OldObjectAt.of(body), validated); err != nil {
		return nil, malformed("the body is not an AdmissionReview: %s", err)
	}
	return &v, nil
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
		User:        user{r.UserInfo.Username, member(slices.Contains(r.UserInfo.Groups, nodeGroup))},
		DryRun:      r.DryRun != nil && *r.DryRun,
	}
	if err := q.decodeObjects(r.Object.Raw, r.OldObject.Raw, json.DefaultOptionsV2()); err != nil {
		return nil, malformed("the object is malformed: %s", err)
	}
	return q, nil
}

// decodeObjects decodes as much of the objects as the verdict depends on: nothing starts with a DELETE or a CONNECT,
// only an UPDATE has images that were there before, and kinds without images are only named in the Decision.
func (q *request) decodeObjects(object, oldObject []byte, o json.Options) (err error) {
	k, checked := kinds[q.Kind]
	if !checked {
		q.Probe = decodeProbe(q, object)
		if q.Name == "" {
			q.Object = decodeMetadata(object)
		}
		return nil
	}
	if q.Operation == "DELETE" || q.Operation == "CONNECT" {
		return nil
	}
	if q.Object, err = decodeObject(k, "request.object", object, o); err == nil && q.Operation == "UPDATE" {
		q.OldObject, err = decodeObject(k, "request.oldObject", oldObject, o)
	}
	return err
}

// decodeObject decodes an object of one of the kinds; nil if there is none. path is where it is in the review.
func decodeObject(k kind, path string, text []byte, opts json.Options) (*object, error) {
	if len(text) == 0 {
		return nil, nil
	}
	o, err := k.decode(text, opts)
	if err != nil {
		return nil, errors.New(fault(path, err))
	}
	return o, nil
}

// decodeMetadata decodes the metadata of an object of another kind; nil if it has none that can be understood: such an
// object need not have the form of the kinds that are checked.
func decodeMetadata(text []byte) *object {
	var o struct {
		Metadata metadata `json:"metadata"`
	}
	if len(text) == 0 || json.Unmarshal(text, &o) != nil {
		return nil
	}
	return &object{Metadata: o.Metadata}
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
	} else if e, ok := errors.AsType[*json.SemanticError](err); ok {
		text, pointer = typeMismatch(e), e.JSONPointer
	} else {
		text = err.Error()
	}
	if path := fieldPath(prefix, pointer); path != "" {
		text = path + ": " + text
	}
	return quoteUpTo(maxFault, text)
}

// typeMismatch says which type of value was found and which was expected.
func typeMismatch(e *json.SemanticError) string {
	if e.GoType == nil {
		return "a value of the wrong type"
	}
	found := map[jsontext.Kind]string{
		'n': "null", 't': "a boolean", 'f': "a boolean", '"': "a string", '0': "a number", '{': "an object", '[': "an array",
	}[e.JSONKind]
	want := "an object"
	switch e.GoType.Kind() {
	case reflect.String:
		want = "a string"
	case reflect.Bool:
		want = "a boolean"
	case reflect.Slice:
		want = "an array"
	}
	return found + " instead of " + want
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
