package admission

import (
	"errors"

	"github.com/go-json-experiment/json"
	admissionv1 "k8s.io/api/admission/v1"
)

// maxUID bounds a review's uid, which is echoed, in bytes. The API server sends 36.
const maxUID = 256

// supported are the versions of AdmissionReview. They do not differ in what is read and answered.
var supported = map[string]bool{"admission.k8s.io/v1": true, "admission.k8s.io/v1beta1": true}

// review is what is read of an AdmissionReview. Member names are compared exactly, and what is not read must
// be valid JSON all the same, without duplicate names and invalid UTF-8: nobody may understand another
// object than the API server does.
type review struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Request    *request `json:"request"`
}

type request struct {
	header
	Object    *object `json:"object"`
	OldObject *object `json:"oldObject"`
}

// header is a request without its objects.
type header struct {
	UID         string    `json:"uid"`
	Kind        groupKind `json:"kind"`
	SubResource string    `json:"subResource"`
	Name        string    `json:"name"`
	Namespace   string    `json:"namespace"`
	Operation   string    `json:"operation"`
	UserInfo    struct {
		Username string   `json:"username"`
		Groups   []string `json:"groups"`
	} `json:"userInfo"`
	DryRun bool `json:"dryRun"`
}

// groupKind names a kind. Versions of a kind do not differ in what is read here.
type groupKind struct {
	Group string `json:"group"`
	Kind  string `json:"kind"`
}

// decodeReview reads a review's body. Errors: *httpError.
func decodeReview(body []byte) (*review, error) {
	var v review
	err := json.Unmarshal(body, &v)
	if _, ok := errors.AsType[*json.SemanticError](err); ok {
		err = decodeForeign(body, &v, err)
	}
	switch {
	case err != nil:
		return nil, malformed("the body is no AdmissionReview: %s", quote(err.Error()))
	case !supported[v.APIVersion] || v.Kind != "AdmissionReview":
		return nil, malformed("the body is %s %s; expected an AdmissionReview of admission.k8s.io/v1 or v1beta1",
			quote(v.APIVersion), quote(v.Kind))
	case v.Request == nil:
		return nil, malformed("the AdmissionReview has no request")
	case v.Request.UID == "":
		return nil, malformed("the request of the AdmissionReview has no uid")
	case len(v.Request.UID) > maxUID:
		return nil, malformed("the uid is longer than %d bytes", maxUID)
	}
	return &v, nil
}

// decodeForeign reads a review whose object does not have the form of those that are judged, which is as it
// should be if it is of another kind. Otherwise it returns err.
func decodeForeign(body []byte, v *review, err error) error {
	var foreign struct {
		APIVersion string  `json:"apiVersion"`
		Kind       string  `json:"kind"`
		Request    *header `json:"request"`
	}
	if json.Unmarshal(body, &foreign) != nil || foreign.Request == nil {
		return err
	}
	if _, judged := kinds[foreign.Request.Kind]; judged {
		return err
	}
	*v = review{APIVersion: foreign.APIVersion, Kind: foreign.Kind, Request: &request{header: *foreign.Request}}
	return nil
}

// requestOf is a request as the API's types have it. Errors: *httpError.
func requestOf(r *admissionv1.AdmissionRequest) (*request, error) {
	q := &request{header: header{
		UID:         string(r.UID),
		Kind:        groupKind{r.Kind.Group, r.Kind.Kind},
		SubResource: r.SubResource,
		Name:        r.Name,
		Namespace:   r.Namespace,
		Operation:   string(r.Operation),
		DryRun:      r.DryRun != nil && *r.DryRun,
	}}
	q.UserInfo.Username, q.UserInfo.Groups = r.UserInfo.Username, r.UserInfo.Groups
	if _, judged := kinds[q.Kind]; !judged {
		return q, nil
	}
	var err error
	if q.Object, err = decodeObject(r.Object.Raw); err != nil {
		return nil, err
	}
	q.OldObject, err = decodeObject(r.OldObject.Raw)
	return q, err
}

// decodeObject reads an object of a kind that is judged; nil if there is none.
func decodeObject(raw []byte) (*object, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var o *object
	if err := json.Unmarshal(raw, &o); err != nil {
		return nil, malformed("the object is malformed: %s", quote(err.Error()))
	}
	return o, nil
}
