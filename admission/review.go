package admission

import (
	admissionv1 "k8s.io/api/admission/v1"
)

// maxUID bounds a review's uid, which is echoed, in bytes. The API server sends 36.
const maxUID = 256

// supported are the versions of AdmissionReview. They do not differ in what is read and answered.
var supported = map[string]bool{"admission.k8s.io/v1": true, "admission.k8s.io/v1beta1": true}

// review is what is read of an AdmissionReview.
type review struct {
	APIVersion string
	Kind       string
	Request    *request
}

type request struct {
	UID         string
	Kind        groupKind
	SubResource string
	Name        string
	Namespace   string
	Operation   string
	User        string
	Groups      []string
	DryRun      bool
	Object      *object
	OldObject   *object
}

// groupKind names a kind. Versions of a kind do not differ in what is read here.
type groupKind struct {
	Group string
	Kind  string
}

// decodeReview reads a review's body. Errors: *httpError.
func decodeReview(body []byte) (*review, error) {
	var v review
	s := newScanner(body)
	defer s.free()
	odd := v.read(s)
	s.end()
	if s.fault == nil && odd != nil {
		if _, judged := kinds[v.Request.Kind]; judged {
			s.fault = odd
		} else { // an object of another kind need not have the form of those that are judged
			v.Request.Object, v.Request.OldObject = nil, nil
		}
	}
	switch {
	case s.fault != nil:
		return nil, malformed("the body is no AdmissionReview: %s", quote(s.fault.Error()))
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

// read reads a review. What is not of the expected type within the objects is no fault of the text: it is returned.
func (v *review) read(s *scanner) (odd *fault) {
	for ok := s.object(); ok; ok = s.next() {
		switch string(s.name) {
		case "apiVersion":
			v.APIVersion = s.string()
		case "kind":
			v.Kind = s.string()
		case "request":
			if !s.null() {
				v.Request = &request{}
				odd = v.Request.read(s)
			}
		default:
			s.skip()
		}
	}
	return odd
}

func (q *request) read(s *scanner) (odd *fault) {
	for ok := s.object(); ok; ok = s.next() {
		switch string(s.name) {
		case "uid":
			q.UID = s.string()
		case "kind":
			q.Kind.read(s)
		case "subResource":
			q.SubResource = s.string()
		case "name":
			q.Name = s.string()
		case "namespace":
			q.Namespace = s.string()
		case "operation":
			q.Operation = s.string()
		case "userInfo":
			q.readUser(s)
		case "dryRun":
			q.DryRun = s.bool()
		case "object":
			q.Object = readObject(s, &odd)
		case "oldObject":
			q.OldObject = readObject(s, &odd)
		default:
			s.skip()
		}
	}
	return odd
}

func (k *groupKind) read(s *scanner) {
	for ok := s.object(); ok; ok = s.next() {
		switch string(s.name) {
		case "group":
			k.Group = s.string()
		case "kind":
			k.Kind = s.string()
		default:
			s.skip()
		}
	}
}

func (q *request) readUser(s *scanner) {
	for ok := s.object(); ok; ok = s.next() {
		switch string(s.name) {
		case "username":
			q.User = s.string()
		case "groups":
			q.Groups = list(s, func(group *string, s *scanner) { *group = s.string() })
		default:
			s.skip()
		}
	}
}

// readObject reads an object, nil if there is none. odd takes what is not of the expected type in it.
func readObject(s *scanner, odd **fault) *object {
	if s.null() {
		return nil
	}
	before := s.fault
	o := &object{}
	o.read(s)
	if s.fault != before && !s.fault.fatal {
		*odd, s.fault = s.fault, before
	}
	return o
}

// requestOf is a request as the API's types have it. Errors: *httpError.
func requestOf(r *admissionv1.AdmissionRequest) (*request, error) {
	q := &request{
		UID:         string(r.UID),
		Kind:        groupKind{r.Kind.Group, r.Kind.Kind},
		SubResource: r.SubResource,
		Name:        r.Name,
		Namespace:   r.Namespace,
		Operation:   string(r.Operation),
		User:        r.UserInfo.Username,
		Groups:      r.UserInfo.Groups,
		DryRun:      r.DryRun != nil && *r.DryRun,
	}
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
	s := newScanner(raw)
	defer s.free()
	var odd *fault
	o := readObject(s, &odd)
	if s.end(); s.fault == nil {
		s.fault = odd
	}
	if s.fault != nil {
		return nil, malformed("the object is malformed: %s", quote(s.fault.Error()))
	}
	return o, nil
}
